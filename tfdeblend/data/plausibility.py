"""Plausibility: what an observation's own pixels say against its weights, its sky and its PSF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
from scipy.ndimage import maximum_filter, minimum_filter

from tfdeblend.data import sky
from tfdeblend.data.sky import Level, Scatter
from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation
    from tfdeblend.data.scene import Scene

NOTED, REFUSED = 1.5, 3.0  # factors between the noise that weights state and the sky's scatter
MAGNITUDES = (10.0, 40.0)
BLANK = 0.005  # of the pixels
ALIKE = 1.25  # factor within which weights are what they seem to be
CORRELATED = 1.25  # factor by which errors are too small
SHARPER = 1.3  # ratio of curvatures
SHARP_LAGS = (1, 2, 3)  # pixels
SHARP_SIGMA = 6.0
LARGEST_SHARP = 8.0  # sigma that one band may contribute, so that a cosmic ray does not count as a PSF
READ_AS = {
    "standard deviations": lambda sigma: sigma,
    "variances": lambda sigma: sigma**2,
    "inverse standard deviations": lambda sigma: 1 / sigma,
}
REMEDY = (
    "give --rescale-weights (Observation.with_sky_weights()) to take the sky's scatter, "
    "or --trust-weights (Deblender(trust_weights=True)) to keep the weights"
)


def examined(scene: Scene, trust_weights: bool = False, background: bool = False) -> Scene:
    """Give the scene with a note on each observation whose pixels contradict what came with them.

    Args:
        trust_weights: whether weights that cannot be right are noted instead of refused.
        background: whether a constant background is fitted, so that a level of the sky is no mistake.

    Raises:
        DataError: weights that the sky's scatter contradicts by more than a factor of 3, images of magnitudes.
    """
    observations = []
    for one, pixels in zip(scene.observations, scene.maps, strict=True):
        positions = np.linalg.solve(pixels.matrix, (scene.positions[~scene.left_out] - pixels.offset).T).T
        new = [note for note in _notes(one, positions, trust_weights, background) if note not in one.notes]
        observations.append(replace(one, notes=(*one.notes, *new)) if new else one)
    same = all(one is own for one, own in zip(observations, scene.observations, strict=True))
    return scene if same else replace(scene, observations=tuple(observations))


def _notes(one: Observation, positions: np.ndarray, trust_weights: bool, background: bool) -> Iterator[str]:
    _refuse_magnitudes(one, positions)
    blank = _blank(one)
    share = blank.sum() / one.valid.sum()
    if BLANK < share < 1:
        one = replace(one, weights=np.where(blank, 0, one.weights))
    empty = sky.empty(one)
    scatters, smoothing = sky.scatters(one, empty)
    stated = sky.stated_noise(one)
    seen = stated * [1.0 if each is None or each.noiseless or not each.value > 0 else each.value for each in scatters]
    if silent := [
        band for band, each in zip(one.bands, scatters, strict=True) if each and (each.noiseless or not each.high)
    ]:
        yield f"no noise is seen in {_listed(silent)}, although the weights state some: errors cannot be checked"
    elif share > BLANK:
        alike = f"{share:.1%} of the pixels are exactly as those around them, such as {one.images[blank][0]:g}"
        yield f"{alike}: mask what is no data"
    yield from _on_weights(one, scatters, stated, trust_weights)
    if not background:
        yield from _on_level(one.bands, sky.levels(one, empty, seen))
    factor = sky.error_factor(smoothing, one.psf)
    if factor > CORRELATED:
        expected = f"the noise of neighbouring pixels is correlated: errors may be {factor:.1f} times too small"
        yield f"{expected}; --sky-correlation (Observation.with_sky_correlation()) measures and uses it"
    if sharp := _sharper(one, positions, seen / stated):
        yield f"sources in {_listed(sharp)} fall off faster than the PSF does: is it of another pixel scale or image?"


def _blank(one: Observation) -> np.ndarray:
    """(C,H,W) bool: the unmasked pixels in squares of nine that are all the same, but in images of integers."""
    if (one.images == np.round(one.images)).all():
        return np.zeros(one.shape, bool)
    square = (1, 3, 3)
    same = maximum_filter(one.images, square) == minimum_filter(one.images, square)
    return maximum_filter(same & minimum_filter(one.valid, square), square)


def _refuse_magnitudes(one: Observation, positions: np.ndarray) -> None:
    """Raises: DataError for images that are like magnitudes: of the size of these, and fainter at the sources."""
    y, x = np.round(positions).astype(int).T
    inside = (y >= 0) & (y < one.shape[1]) & (x >= 0) & (x < one.shape[2])
    for band, image, valid in zip(one.bands, one.images, one.valid, strict=True):
        values, at = image[valid], image[y[inside], x[inside]][valid[y[inside], x[inside]]]
        least, most = MAGNITUDES
        if len(at) and ((values > least) & (values < most)).mean() > 0.9 and np.median(at) < np.percentile(values, 10):
            received = f"received values such as {np.median(values):.4g} in {band} that are lower at the sources"
            raise DataError(one.name, "images", f"expected fluxes, {received}, as magnitudes are")


def _on_weights(one: Observation, scatters: Sequence[Scatter | None], stated: np.ndarray, trust: bool) -> Iterator[str]:
    """A note on weights that state another noise than is seen. Raises: DataError beyond REFUSED, unless trusted."""
    certain, wrong = np.ones(len(scatters)), np.ones(len(scatters))
    for band, scatter in enumerate(scatters):
        if scatter and scatter.seen:
            least, most = scatter.low / (1 + scatter.error), scatter.high * (1 + scatter.error)
            certain[band], wrong[band] = least if least > 1 else min(most, 1), scatter.value
    size = np.abs(np.log(certain))
    bad = np.flatnonzero(size > np.log(NOTED))
    if not len(bad):
        return
    worst = int(bad[np.argmax(size[bad])])
    noise, seen = stated[worst], (stated * wrong)[worst]
    cause = _cause(stated[bad], (stated * wrong)[bad])
    others = [one.bands[band] for band in bad if band != worst]
    where = f"in {one.bands[worst]}" + (f" (and wrong in {_listed(others)})" if others else "")
    if size[worst] > np.log(REFUSED) and not trust:
        received = f"received some that state noise of {noise:.3g} {where}, while the sky scatters by {seen:.3g}{cause}"
        raise DataError(one.name, "weights", f"expected inverse variances, {received}", REMEDY)
    many, kind = (seen / noise, "small") if seen > noise else (noise / seen, "large")
    text = f"the weights state noise of {noise:.3g} {where}, while the sky scatters by {seen:.3g}"
    yield f"{text}: errors may be {many:.3g} times too {kind}{cause}; --rescale-weights takes the sky's scatter"


def _cause(stated: np.ndarray, seen: np.ndarray) -> str:
    """What weights seem to be, by the noise that they state and that is seen in each band, as a clause."""
    weights = stated**-2
    far = {name: np.abs(np.log(weights / read(seen))).max() for name, read in READ_AS.items()}
    likely = min(far, key=lambda name: far[name])
    if far[likely] < np.log(ALIKE):
        return f", as if they were {likely}"
    ratio = seen / stated
    if len(ratio) > 1 and ratio.max() < ALIKE * ratio.min():
        return ", as if images and weights were in different units"
    return ", as if they were exposure times or counts"


def _on_level(bands: Sequence[str], levels: Sequence[Level | None]) -> Iterator[str]:
    """A note on a sky that is not 0 in some band, or in all bands together."""
    known = [(band, level) for band, level in zip(bands, levels, strict=True) if level is not None]
    off = [(band, level.value) for band, level in known if level.certain]
    known = [(band, level) for band, level in known if level.doubt < sky.CROWDED_LEVEL]
    if not off and known:
        doubt = np.array([level.doubt for _, level in known])
        share = doubt**-2.0 / (doubt**-2.0).sum()
        mean = float(share @ [level.value for _, level in known])
        if abs(mean) > max(sky.LEAST_LEVEL, (doubt**-2.0).sum() ** -0.5):
            off = [(band, level.value) for band, level in known]
    if off:
        values = [value for _, value in off]
        sizes = " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(values), max(values))))
        text = f"the sky is not 0 but {sizes} sigma a pixel in {_listed([band for band, _ in off])}"
        yield f"{text}: fluxes are off by it; --background (Deblender(background=True)) fits it"


def _sharper(one: Observation, positions: np.ndarray, scatter: np.ndarray) -> list[str]:
    """The bands in which some source falls off faster than the PSF; all together where only these tell.

    What is seen is the PSF convolved with something non-negative. So with L the difference of a pixel and those at a
    lag around it, and G a mean over nine pixels, L y <= c G y if L P <= c G P holds everywhere for the PSF P.

    Args:
        scatter: (C,) of the noise over that of the weights.
    """
    y, x = np.round(positions).astype(int).T
    reach = SHARP_LAGS[-1] + 1
    room = (y >= reach) & (y < one.shape[1] - reach) & (x >= reach) & (x < one.shape[2] - reach)
    if not room.any():
        return []
    width = np.arange(-reach, reach + 1)
    rows, columns = y[room, None, None] + width[:, None], x[room, None, None] + width
    raised = one.images - np.minimum(one.sky_levels(), 0)[:, None, None]  # what is seen is not negative
    image, weights = (part[:, rows, columns].astype(float) for part in (raised, one.weights))  # (C, K, n, n)
    shifted = _shifted(np.pad(one.psf.astype(float), ((0, 0), (reach, reach), (reach, reach))))
    seen, own = _mean(image), _mean(shifted)
    bright = own > 0.02 * own.max((1, 2, 3), keepdims=True)
    found = np.full(image.shape[:2], -np.inf)
    for lag in SHARP_LAGS:
        ratio = np.where(bright, _curvature(shifted, lag) / np.where(bright, own, 1), -np.inf).max((1, 2, 3))
        excess = _curvature(image, lag) - SHARPER * ratio[:, None, None, None] * np.maximum(seen, 0)
        middle = (slice(None), slice(None), slice(reach - 1, reach + 2), slice(reach - 1, reach + 2))
        complete = (weights[:, :, 1:-1, 1:-1] > 0).all((2, 3))
        sigma = scatter[:, None] / np.sqrt(np.where(complete, weights[:, :, reach, reach], np.inf))
        significance = excess[middle] / (np.sqrt(20) * np.where(complete, sigma, np.inf))[..., None, None]
        together = np.clip(significance, None, LARGEST_SHARP).sum(0) / np.sqrt(len(image))
        if together.max() > SHARP_SIGMA:
            k, row, column = np.unravel_index(int(np.argmax(together)), together.shape)
            found[:, k] = np.maximum(found[:, k], significance[:, k, row, column])
    return [band for band, best in zip(one.bands, found.max(1), strict=True) if best > SHARP_SIGMA / 2]


def _shifted(psf: np.ndarray) -> np.ndarray:
    """PSFs (C,h,w) at four places within a pixel: (C,4,h,w)."""
    shape = psf.shape[1:]
    ky, kx = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])
    phases = np.stack([np.exp(-2j * np.pi * (ky * y + kx * x)) for y in (0, 0.5) for x in (0, 0.5)])
    return scipy.fft.irfft2(scipy.fft.rfft2(psf)[:, None] * phases, shape)


def _mean(image: np.ndarray) -> np.ndarray:
    """(..., H, W): means of nine pixels, the nearer ones counting more; meaningless at the border."""
    rows = image / 2 + (np.roll(image, 1, -1) + np.roll(image, -1, -1)) / 4
    return rows / 2 + (np.roll(rows, 1, -2) + np.roll(rows, -1, -2)) / 4


def _curvature(image: np.ndarray, lag: int) -> np.ndarray:
    """(..., H, W): four times a pixel less its neighbours at a lag; meaningless at the border."""
    return 4 * image - sum(np.roll(image, shift, axis) for axis in (-1, -2) for shift in (-lag, lag))


def _listed(names: Sequence[str]) -> str:
    """Some names as text, the first of many."""
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
