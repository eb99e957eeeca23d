"""What an Observation demands of its PSF: one origin, light that sums to 1, wings that end; and the notes otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data.psf import centroid, core_width, fwhm, psf_center
from tfdeblend.data.validation import numbers
from tfdeblend.errors import DataError

LARGEST = 4_000  # pixels a side: what is further out is sky
TOLERANCE = 0.05  # a sum further from 1 is refused
ROUNDING = 1e-3  # a sum closer to 1 is renormalised without a note
FLOAT32 = 1e-6  # a sum closer to 1 is that of a PSF that was normalised in float32 before, and stays as it is
OFF_CENTER = 0.1  # pixels: a band whose centroid is so far from the origin is shifted to it
NOTED_OFF_CENTER = 0.3  # pixels: and this is noted
LEAST_INNER_LIGHT = 0.5  # within the inner half of the stamp along both axes, else the PSF is not in its middle
SMALL = 8  # pixels a side
CUT_OFF = 1e-3  # of the peak, where the PSF ends: wings go on beyond
NEGATIVE, FAR_NEGATIVE = 0.02, 0.2  # of the peak: no noise is as deep; and what is deeper is refused
NARROWEST = 1.3  # pixels, FWHM: what all light in one pixel measures
WIDTHS = (0.02, 15.0)  # arcsec, FWHM: from a 30 m telescope's to WISE's


def as_psf(
    where: str | Path, psf: Any, bands: tuple[str, ...], pixel_scale: float | None, notes: list[str]
) -> np.ndarray:
    """Convert the PSF to (C,h,w) float32, each band centred on the origin of all and divided by its sum.

    A sum far from 1, a shift, and what `doubts` says are noted, each kind once.

    Args:
        pixel_scale: arcsec, or None where it is not known.

    Raises:
        DataError: none, another shape, values that are not finite or far below 0, a sum off by more than TOLERANCE, a
            PSF that is not in the middle of its stamp.
    """
    array = _cube(where, psf, bands)
    totals = array.sum(axis=(1, 2))
    worst = int(np.argmax(np.abs(totals - 1)))
    if abs(totals[worst] - 1) > TOLERANCE:
        expected = f"expected a sum of 1 within {TOLERANCE:.0%} in band {bands[worst]}"
        raise DataError(where, "psf", f"{expected}, received {totals[worst]:.6g}", "divide each band by its sum")
    lowest = array.min((1, 2)) / array.max((1, 2))
    if lowest.min() < -FAR_NEGATIVE:
        expected = f"expected no values below 0 but of noise in band {bands[lowest.argmin()]}"
        raise DataError(where, "psf", f"{expected}, received {lowest.min():.0%} of the peak")
    inner = inner_light(array)
    if inner.min() < LEAST_INNER_LIGHT:
        expected = f"expected the inner half of the stamp to hold most light in band {bands[inner.argmin()]}"
        remedy = "move its centre to the middle (numpy.fft.fftshift, if it is at pixel (0, 0)), or give a larger stamp"
        raise DataError(where, "psf", f"{expected}, received {inner.min():.0%}", remedy)
    lines = []
    if abs(totals[worst] - 1) > ROUNDING:
        lines.append(f"PSF renormalised: summed to {', '.join(f'{total:.4f}' for total in totals)}")
    given = array / np.where(np.abs(totals - 1) > FLOAT32, totals, 1)[:, np.newaxis, np.newaxis]
    array, offsets = centred(given)
    far = [
        f"{x:+.2f}, {y:+.2f} pixel in {band}"
        for band, (y, x) in zip(bands, offsets, strict=True)
        if np.hypot(y, x) >= NOTED_OFF_CENTER
    ]
    if far:
        done = "too narrow to be shifted to its stamp's middle" if array is given else "shifted to its stamp's middle"
        lines.append(f"PSF {done}: it was off by (x, y) {'; '.join(far)}")
    lines += doubts(array, bands, pixel_scale)
    notes += [line for line in lines if not any(line.split(":")[0] in note for note in notes)]
    return array.astype(np.float32)


def _cube(where: str | Path, psf: Any, bands: tuple[str, ...]) -> np.ndarray:
    """The PSF as finite float64 numbers (C,h,w)."""
    if psf is None:
        raise DataError(where, "psf", "expected an array (bands, height, width), received none", "give one with psf")
    if isinstance(psf, str | Path):
        remedy = "read it with the image: Observation.read(path, psf=...)"
        raise DataError(where, "psf", "expected an array (bands, height, width), received the name of a file", remedy)
    if callable(getattr(psf, "drawImage", psf)):
        remedy = "draw it as the image's pixels see it: psf.drawImage(scale=pixel_scale).array"
        raise DataError(where, "psf", f"expected an array, received a profile, {type(psf).__name__}", remedy)
    array = numbers(where, "psf", getattr(psf, "value", psf))
    if array.ndim == 2:
        array = np.repeat(array[np.newaxis], len(bands), axis=0)
    if array.ndim != 3 or len(array) != len(bands) or 0 in array.shape or max(array.shape[1:]) > LARGEST:
        expected = f"expected shape ({len(bands)}, height, width) or (height, width), up to {LARGEST} pixels a side"
        raise DataError(where, "psf", f"{expected}, received {array.shape}")
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(where, "psf", f"expected finite values, received {count} NaN or infinite")
    return array.astype(float)


def centred(psf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift the bands of a PSF (C,h,w) whose centroid is further than OFF_CENTER from the origin of all onto it.

    Where a shift does not bring a band there, or makes it negative, it is too narrow for one: then all stay as they
    are.

    Returns:
        The PSF, each band with the sum it had; and the offsets (C,2) along (y, x), in pixels, that it had.
    """
    origin = np.array(psf_center(psf))
    offsets = np.array([centroid(band) for band in psf]) - origin
    far = np.hypot(*offsets.T) > OFF_CENTER
    if not far.any():
        return psf, offsets
    pairs = zip(psf, offsets, far, strict=True)
    moved = np.stack([shifted(band, *-by) if off else band for band, by, off in pairs])
    left = np.array([centroid(band) for band in moved]) - origin
    deeper = np.minimum(psf.min((1, 2)), 0) - moved.min((1, 2))
    whole = (np.hypot(*left.T) <= OFF_CENTER) & (deeper < NEGATIVE * moved.max((1, 2)))
    return (moved if whole.all() else psf), offsets


def shifted(psf: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Move a PSF (h,w) by (dy, dx) pixels, band-limited, on its stamp: zeros come in, what goes out is made up for."""
    sides = [2 * size + int(abs(by)) for size, by in zip(psf.shape, (dy, dx), strict=True)]
    fy, fx = np.fft.fftfreq(sides[0])[:, None], np.fft.rfftfreq(sides[1])
    spectrum = np.fft.rfft2(psf, sides) * np.exp(-2j * np.pi * (fy * dy + fx * dx))
    moved = np.fft.irfft2(spectrum, sides)[: psf.shape[0], : psf.shape[1]]
    return moved * (psf.sum() / moved.sum())


def doubts(psf: np.ndarray, bands: Sequence[str], pixel_scale: float | None) -> list[str]:
    """Say what cannot be right about a PSF (C,h,w), one line a kind: it is cut off, negative, of no PSF's width."""
    found: dict[str, list[str]] = {}
    for image, band in zip(psf, bands, strict=True):
        for kind, what in _doubts(image, pixel_scale):
            found.setdefault(kind, []).append(f"{what} in {band}")
    return [f"{kind}: {'; '.join(each)}" for kind, each in found.items()]


def _doubts(psf: np.ndarray, pixel_scale: float | None) -> Iterator[tuple[str, str]]:
    level, lowest, width = last_level(psf), psf.min() / psf.max(), core_width(psf)
    if level > CUT_OFF:
        beyond = light_beyond(psf)
        part = "an unknown part" if beyond is None or beyond > 0.5 else f"about {beyond:.1%}"
        yield "PSF cut off before its wings end", f"at {level:.2%} of its peak ({part} of its light is missing)"
    if lowest < -NEGATIVE:
        yield "PSF negative", f"down to {lowest:.1%} of its peak"
    scale = 1.0 if pixel_scale is None else pixel_scale
    absurd = pixel_scale is not None and not WIDTHS[0] < width * scale < WIDTHS[1]
    if absurd or width < 2 * NARROWEST:
        width = float(fwhm(psf[np.newaxis])[0])
    if width < NARROWEST:
        yield "PSF narrower than pixels can show", f"FWHM {width:.2f} pixels"
    if absurd:
        yield (
            f"PSF of a width that no telescope has, for pixels of {scale:.4g} arcsec",
            f"FWHM {width * scale:.2g} arcsec",
        )


def inner_light(psf: np.ndarray) -> np.ndarray:
    """Measure the part of the light of each PSF (C,h,w) within the inner half of its stamp, along both axes: (C,).

    Stamps below SMALL pixels, which a PSF fills, have none but that.
    """
    y, x = (size // 4 if size >= SMALL else 0 for size in psf.shape[1:])
    return psf[:, y : psf.shape[1] - y, x : psf.shape[2] - x].sum((1, 2)) / psf.sum((1, 2))


def last_level(psf: np.ndarray) -> float:
    """Measure how bright a PSF (h,w) is where it ends, over its peak.

    It ends at its stamp's border or, where it is padded with zeros, at these: the mean there counts.
    """
    light = np.pad(psf != 0, 1)
    within = light[:-2, 1:-1] & light[2:, 1:-1] & light[1:-1, :-2] & light[1:-1, 2:]
    return float(psf[(psf != 0) & ~within].mean() / psf.max())


def light_beyond(psf: np.ndarray) -> float | None:
    """Estimate the part of its light that a PSF (h,w) lacks beyond its stamp, to a factor of 2.

    The power law of its mean profile, in the outer third of the radii, goes on. None where that is no wings': it falls
    as slowly as 1 / r^2, or is negative, or the stamp is too small to see it.
    """
    y0, x0 = psf_center(psf[np.newaxis])
    rows, columns = np.indices(psf.shape)
    radius, reach = np.hypot(rows - y0, columns - x0), min(psf.shape) / 2
    edges = np.geomspace(reach / 1.5, reach, 4)
    rings = [(low < radius) & (radius <= high) for low, high in itertools.pairwise(edges)]
    if not all(ring.any() and psf[ring].mean() > 0 for ring in rings):
        return None
    at, light = [np.log(radius[ring]).mean() for ring in rings], [np.log(psf[ring].mean()) for ring in rings]
    slope, offset = np.polyfit(at, light, 1)
    if slope >= -2:
        return None
    beyond = 2 * np.pi * np.exp(offset) * (psf.size / np.pi) ** (1 + slope / 2) / -(2 + slope)
    return float(beyond / (beyond + psf.sum()))
