"""The rules of an Observation's fields: each function converts one field, or raises DataError.

In all of them `where` is the observation's name or file, for messages; `notes` are warnings, to which some add a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.errors import DataError

MAX_SIDE = 20_000
MAX_BANDS = 1_000
MAX_NAME = 30  # of a band: two make the name of a colour's column, for which FITS has 68 characters
ABSURD = 1e30  # no flux is larger
SENTINEL, BRIGHTEST = 1e19, 1e9  # what surveys fill pixels without data with is larger, and so many times the usual
PIXEL_SCALES = (1e-3, 60.0)  # arcsec: those of cameras, and of nothing else
_SCALES = "{:g} to {:g}".format(*PIXEL_SCALES)
CLIP_SIGMA, CLIP_ROUNDS = 3.0, 10
MAD_TO_SIGMA = 1.4826  # of a Gaussian


def numbers(where: str | Path, field: str, value: Any, kinds: str = "fiu") -> np.ndarray:
    """Convert to an array of numbers in native byte order.

    Args:
        kinds: of NumPy's dtypes that count as numbers.

    Raises: DataError for anything else: objects, text, ragged lists.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(where, field, f"expected an array of numbers, received {error}") from error
    if array.dtype.kind not in kinds:
        raise DataError(where, field, f"expected an array of numbers, received dtype {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_images(where: str | Path, images: Any) -> np.ndarray:
    """Convert images to (C,H,W) numbers, whatever their values. Raises: DataError for another shape or size."""
    if images is None:
        raise DataError(where, "images", "expected an array (bands, height, width), received none")
    array = numbers(where, "images", images)
    array = array[np.newaxis] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(where, "images", f"expected shape (bands, height, width), received {array.shape}")
    if len(array) > MAX_BANDS:
        raise DataError(where, "images", f"expected at most {MAX_BANDS} bands, received {len(array)}")
    if max(array.shape[1:]) > MAX_SIDE:
        raise DataError(where, "images", f"expected at most {MAX_SIDE} pixels a side, received {array.shape}")
    return array


def as_bands(where: str | Path, bands: Any, count: int) -> tuple[str, ...]:
    """Convert the names of `count` bands; where not given they are band0, band1, ...

    Raises: DataError for another number of names, and for names that are blank or equal, or that no file of results can
    hold: longer than 30 characters, other than printable ASCII, or with columns in common.
    """
    if bands is None:
        return tuple(f"band{c}" for c in range(count))
    names = [bands] if isinstance(bands, str) else list(np.atleast_1d(np.asarray(bands, dtype=object)))
    names = [name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(where, "bands", f"expected names of bands, received {names[:8]}")
    names = [str(name).strip() for name in names]
    if len(names) != count:
        raise DataError(where, "bands", f"expected {count} names, one a band of images, received {len(names)}")
    if len(set(names)) != count:
        raise DataError(where, "bands", f"expected different names, received {', '.join(names[:20])}")
    for name in names:
        if not (name.isascii() and name.isprintable() and len(name) <= MAX_NAME):
            expected = f"expected names of up to {MAX_NAME} printable ASCII characters"
            raise DataError(where, "bands", f"{expected}, received {name[:60]!r}")
    check_columns(where, names)
    return tuple(names)


def check_columns(where: str | Path, bands: Sequence[str]) -> None:
    """Check that the bands' columns in a catalogue have names of their own, in whatever case, as in FITS.

    Raises: DataError for bands that have a column in common, such as g and err_g, or y and Y.
    """
    columns = [(f"{part}_{band}", band) for band in bands for part in ("flux", "flux_err", "mag", "mag_err")]
    columns += [(f"color_{blue}_{red}", f"{blue}, {red}") for blue, red in pairwise(bands)]
    first: dict[str, str] = {}
    for column, band in columns:
        other = first.setdefault(column.lower(), band)
        if other != band:
            expected = "expected names whose columns in a catalogue differ by more than capitals"
            received = f"received {other} and {band}, which both have {column}"
            raise DataError(where, "bands", f"{expected}, {received}", "rename one by --bands")


def valid_pixels(where: str | Path, images: np.ndarray, mask: Any, notes: list[str]) -> np.ndarray:
    """Find the pixels, (C,H,W) bool, that hold data and are not masked.

    Those that are not finite are counted in `notes`, and of the others those that are so large that they can only be
    the mark of a pixel without data, such as 1e30.
    """
    finite, valid = np.isfinite(images), np.ones(images.shape, bool)
    if broken := finite.size - int(finite.sum()):
        notes.append(f"{broken} NaN or infinite pixels masked")
    if mask is not None and mask is not np.ma.nomask:
        valid = ~as_mask(where, "mask", mask, images.shape)
    size = np.abs(images)
    usual = size[finite & (size > 0) & (size < SENTINEL)]
    if len(usual) > 0.01 * finite.sum():
        marks = finite & (size >= max(SENTINEL, BRIGHTEST * float(np.median(usual))))
        if count := int((marks & valid).sum()):
            marked = images[marks & valid][0]
            notes.append(f"{count} pixels without data masked, such as of {marked:g}")
        finite &= ~marks
    return finite & valid


def as_mask(where: str | Path, field: str, mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Broadcast a boolean mask of (C,H,W), or (H,W) for all bands, to `shape`. Raises: DataError for any other."""
    array = np.asarray(mask)
    if array.dtype.kind != "b":
        raise DataError(where, field, f"expected booleans, True = masked, received dtype {array.dtype}")
    if array.shape not in (shape, shape[1:]):
        raise DataError(where, field, f"expected shape {shape} as images, or {shape[1:]}, received {array.shape}")
    return np.broadcast_to(array, shape)


def estimate_weights(
    where: str | Path, images: np.ndarray, valid: np.ndarray, bands: tuple[str, ...], notes: list[str]
) -> np.ndarray:
    """Estimate weights (C,H,W), 1 / sigma^2 of the sky of each band, with a note.

    Raises: DataError for a band whose sky is constant.
    """
    weights = np.zeros(images.shape)
    for c, band in enumerate(bands):
        if valid[c].any():
            sigma = sky_sigma(images[c][valid[c]])
            if not 0 < sigma < ABSURD:
                raise DataError(where, "weights", f"expected weights or variance, as band {band} has no scatter")
            weights[c] = sigma**-2.0
    notes.append("no weights given: estimated from the scatter of the sky in each band")
    return weights


def sky_sigma(pixels: np.ndarray) -> float:
    """Estimate the standard deviation of the sky: 1.4826 MAD of pixels (n,), clipped above against sources."""
    sky = _sky(pixels)
    return MAD_TO_SIGMA * float(np.median(np.abs(sky - np.median(sky)))) or float(sky.std())


def sky_level(pixels: np.ndarray) -> float:
    """Estimate the level of the sky: the median of pixels (n,), clipped above against sources; 0 of none."""
    return float(np.median(_sky(pixels))) if len(pixels) else 0.0


def _sky(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(float)
    for _ in range(CLIP_ROUNDS):
        median = np.median(pixels)
        kept = pixels[pixels <= median + CLIP_SIGMA * MAD_TO_SIGMA * np.median(np.abs(pixels - median))]
        if len(kept) == len(pixels):
            break
        pixels = kept
    return pixels


def mask_pixels(
    where: str | Path,
    images: np.ndarray,
    weights: np.ndarray,
    valid: np.ndarray,
    bands: tuple[str, ...],
    notes: list[str],
    may_be_empty: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Set weights to 0 where pixels are not valid, and masked pixels of absurd values to 0: float32 and float64.

    Bands without a pixel are noted. Raises: DataError where no pixel is left, unless that may be, or one has an absurd
    value.
    """
    weights = np.where(valid, weights, 0).astype(float)
    empty = [band for c, band in enumerate(bands) if not (weights[c] > 0).any()]
    if len(empty) == len(bands) and not may_be_empty:
        raise DataError(where, "weights", "expected some pixels with positive weight, received an all-masked image")
    if empty:
        notes.append(f"every pixel is masked in {', '.join(empty)}")
    sane = np.isfinite(images) & (np.abs(images) <= np.where(weights > 0, ABSURD, SENTINEL))
    if (~sane & (weights > 0)).any():
        largest = np.abs(images[weights > 0]).max()
        raise DataError(where, "images", f"expected values up to {ABSURD:g}, received {largest:g}")
    return np.where(sane, images, 0).astype(np.float32), weights


def as_wcs(where: str | Path, wcs: Any) -> Any:
    """Take the celestial part of a WCS, or of the text of a FITS header; None stays None.

    Raises: DataError for another type, a header that cannot be read, a WCS without a celestial part.
    """
    if wcs is None:
        return None
    from astropy.wcs import WCS

    if isinstance(wcs, np.ndarray) and wcs.ndim == 0:
        wcs = wcs.item()
    if isinstance(wcs, str | bytes):
        wcs = parse_wcs(where, wcs.decode("ascii", "replace") if isinstance(wcs, bytes) else wcs)
    if not isinstance(wcs, WCS):
        raise DataError(where, "wcs", f"expected a WCS or the text of a FITS header, received {type(wcs).__name__}")
    try:
        celestial = wcs.celestial if wcs.has_celestial else None
    except Exception as error:  # of wcslib, such as of a singular matrix
        raise DataError(where, "wcs", f"expected a usable WCS, received {type(error).__name__}: {error}") from error
    if celestial is None:
        raise DataError(where, "wcs", "expected a celestial WCS (such as RA---TAN, DEC--TAN), received none")
    _check_wcs(where, celestial)
    return celestial


def _check_wcs(where: str | Path, wcs: Any) -> None:
    """Raises: DataError for a WCS that does not tell pixels apart, has no known frame, or cannot be written."""
    from astropy.wcs.utils import wcs_to_celestial_frame

    corners = np.array([[0, 0], [1, 1]])
    try:
        known = parse_wcs(where, wcs.to_header(relax=True))
        wcs_to_celestial_frame(known)
        back = known.all_world2pix(known.all_pix2world(corners, 0), 0, quiet=True)
    except DataError:
        raise
    except Exception as error:  # wcslib and astropy raise of many kinds
        raise DataError(where, "wcs", f"expected a usable WCS, received {type(error).__name__}: {error}") from error
    if not np.allclose(back, corners, atol=0.1):
        raise DataError(where, "wcs", "expected a sky position of its own for each pixel, received a singular matrix")


def parse_wcs(where: str | Path, header: Any) -> Any:
    """Parse a WCS from a FITS header or its text (with or without line breaks): of a cube that of its first two axes,
    where these are on the sky.

    Raises: DataError for a broken one.
    """
    import warnings

    from astropy.io import fits
    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(header, str):
                header = fits.Header.fromstring(header, sep="\n" if "\n" in header else "")
            wcs = WCS(header)
            # Astropy takes no celestial part out of some cubes, such as those of TPV.
            return WCS(header, naxis=2) if wcs.naxis > 2 and sorted(wcs.wcs.axis_types[:2]) == [2200, 2201] else wcs
    except Exception as error:  # wcslib and astropy raise of many kinds on a broken header
        raise DataError(where, "wcs", f"expected a readable WCS, received {type(error).__name__}: {error}") from error


def as_pixel_scale(where: str | Path, pixel_scale: Any, wcs: Any, notes: list[str]) -> float | None:
    """Convert the side of a pixel, in arcsec; where not given it is the root of the pixel's area in the WCS, or None.

    A given one that is 1% off the WCS's is noted. Raises: DataError for anything but one number within PIXEL_SCALES.
    """
    known = None
    if wcs is not None:
        from astropy.wcs.utils import proj_plane_pixel_area

        known = 3600 * float(np.sqrt(proj_plane_pixel_area(wcs)))
        if not PIXEL_SCALES[0] <= known <= PIXEL_SCALES[1]:
            raise DataError(where, "wcs", f"expected pixels of {_SCALES} arcsec, received {known:.3g}")
    if pixel_scale is None:
        return known
    value = numbers(where, "pixel_scale", _arcsec(where, pixel_scale))
    if value.size != 1:
        raise DataError(where, "pixel_scale", f"expected one number of arcsec, received {value.size}")
    if not PIXEL_SCALES[0] <= value.item() <= PIXEL_SCALES[1]:
        degrees = 3600 * value.item()
        remedy = f"give {degrees:.3g} if these are degrees" if 0 < degrees <= PIXEL_SCALES[1] else None
        raise DataError(where, "pixel_scale", f"expected {_SCALES} arcsec, received {value.item():g}", remedy)
    if known is not None and abs(known / value.item() - 1) > 0.01:
        notes.append(f"pixel_scale {value.item():g} arcsec given, {known:g} in the WCS")
    return float(value.item())


def _arcsec(where: str | Path, scale: Any) -> Any:
    """An angle, or one per pixel, as a number of arcsec; what has no unit is one. Raises: DataError for others."""
    from astropy import units

    if not hasattr(scale, "to_value"):
        return scale
    for angle in (scale, scale * units.pix):
        try:
            return angle.to_value(units.arcsec)
        except units.UnitConversionError:
            continue
    raise DataError(where, "pixel_scale", f"expected arcsec, received {scale.unit}")
