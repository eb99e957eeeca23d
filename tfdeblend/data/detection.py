"""Finding sources: images made for detection, and SEP (the library of Source Extractor) on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.data.astrometry import WITHOUT_WCS, AffineMap
from tfdeblend.data.holes import filled
from tfdeblend.data.local_sky import less_sky
from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import fwhm
from tfdeblend.data.sky import detection_image, psf_kernel
from tfdeblend.errors import DataError, expect

if TYPE_CHECKING:
    from astropy.table import Table

# Measured on 97 real HSC blends against the pipeline's 634 peaks, at 3 sigma: 77% are found within 2 pixels, and 44
# others; a saturated star that has a peak on either side of its masked middle is one here. A filter as wide as the PSF
# is best for a lone faint source but merges neighbours (59% found, 34 others); a contrast of 5e-4 finds 70%, and 33
# others.
FILTER_WIDTH = 0.5  # of the PSF
MIN_AREA = 5  # pixels above the threshold
DEBLEND_LEVELS = 64
DEBLEND_CONTRAST = 5e-5  # of the flux of the parent: low, for crowded fields
DECLARED_RADIUS = 1.5  # pixels: a residual peak this close to a source is that source's
LEAST = 1e-3  # of the variance of white noise through a filter: what is left of any other
# Of 480 crowded simulated sources 411 are found together and 367 in the sharp observation alone, at 0.5 to 1 alike.
SAME = 0.75  # of the wider of two PSFs' full widths at half maximum: detections closer than this are one source
TWICE = 1.0  # pixels: a detection this close to a brighter one is the same


def detect(observations: Observation | Sequence[Observation], threshold: float = 3.0) -> Table:
    """Find sources by SEP on the detection image of all bands, filtered with half the PSF's width.

    Holes in light are filled first. Of several observations of one field each is searched, that of the narrowest PSF
    first. A detection within `SAME` of the PSF's width of one from an observation of a narrower PSF is that source, or
    several of them in one: what the sharper observation separates stays apart. A correlation of their noise that is not
    given is then that of the empty sky: at the threshold that white noise allows, drizzled images are full of
    detections.

    Args:
        observations: what to search, less its sky, see `less_sky`; several need a WCS each.
        threshold: in sigma of the filtered image, its noise as correlated as the observation says.

    Returns:
        Table with a row a source, brightest first: x, y (pixels: the barycentre), snr (of the filtered image's peak),
        npix (above the threshold), peak (of the detection image, in sigma), a, b (pixels), theta (radians), flag
        (SEP's). Of several observations: y, x (pixels of the first, inside of its image), snr, and observation, the
        name of the sharpest one that shows the source; sharpest first, and of each the brightest first.

    Raises:
        DataError: a threshold that is not positive, observations without a WCS.
    """
    expect("threshold", threshold, float, int)
    if isinstance(observations, Observation):
        observations = (observations,)
    if len(observations) > 1:
        return _detect_in_each(observations, threshold)
    return search(less_sky(observations[0]), threshold)


def search(flat: Observation, threshold: float = 3.0) -> Table:
    """Find sources as `detect` does, in one observation whose sky is 0.

    Raises:
        DataError: a threshold that is not positive.
    """
    _check_threshold(flat, threshold)
    kernel = psf_kernel(flat.psf, FILTER_WIDTH)
    image, _ = detection_image(flat.images, flat.weights)
    bright = convolved(image, kernel) > threshold * filtered_sigma(kernel, flat)
    return _extract(filled(flat, bright, kernel), kernel, threshold, np.any(flat.valid, 0))


def _detect_in_each(observations: Sequence[Observation], threshold: float) -> Table:
    from astropy.table import Table

    first, parts = observations[0], []
    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
        pixels = AffineMap.between(one.name, one.wcs, first.wcs, one.shape[1:])
        parts.append((float(fwhm(one.psf).mean()) * pixels.area**0.5, one, pixels))
    found: list[tuple[float, float, float, str]] = []
    for width, one, pixels in sorted(parts, key=lambda part: part[0]):
        table = detect(_with_sky_correlation(one), threshold)
        places = np.stack([table["y"], table["x"]], 1).reshape(-1, 2) @ pixels.matrix.T + pixels.offset
        sharper = np.array([row[:2] for row in found]).reshape(-1, 2)
        for place, snr in zip(places, table["snr"], strict=True):
            inside = (place > -0.5).all() and (place < np.array(first.shape[1:]) - 0.5).all()
            if inside and not (np.hypot(*(sharper - place).T) < SAME * width).any():
                found.append((*place.tolist(), float(snr), one.name))
    names = ("y", "x", "snr", "observation")
    return Table(rows=found, names=names) if found else Table(names=names, dtype=(float, float, float, str))


def _with_sky_correlation(one: Observation) -> Observation:
    """The observation with its noise correlation, measured on the empty sky where none is given and it has enough."""
    try:
        return one if one.noise_correlation is not None else one.with_sky_correlation()
    except DataError:
        return one


def residual_detections(
    observation: Observation, model: np.ndarray, positions: np.ndarray, threshold: float = 5.0
) -> Table:
    """Sources that the model does not account for: detections on (images - model) through the PSF's matched filter.

    Args:
        observation: the data.
        model: (C,H,W) the rendered scene.
        positions: (K,2) of (y, x): the sources in the model; a detection within 1.5 pixel of one is left out, as what
            the model has left of that source.
        threshold: signal-to-noise, the noise as correlated as the observation says.

    Returns:
        Table of x, y (pixels) and snr, brightest first; perhaps of no rows.

    Raises:
        DataError: a threshold that is not positive.
    """
    _check_threshold(observation, threshold)
    residual = observation.derived(images=observation.images - model)
    found = _extract(residual, psf_kernel(residual.psf), threshold, np.any(residual.valid, 0))
    declared = np.asarray(positions, float).reshape(-1, 2)
    dy = np.asarray(found["y"])[:, np.newaxis] - declared[:, 0]
    dx = np.asarray(found["x"])[:, np.newaxis] - declared[:, 1]
    return found[(np.hypot(dy, dx) > DECLARED_RADIUS).all(axis=1)]["x", "y", "snr"]


def filtered_sigma(kernel: np.ndarray, observation: Observation) -> float:
    """Of a detection image's noise through a kernel: bands count by their weights, as they do there."""
    white = float((kernel**2).sum())
    if observation.noise_correlation is None:
        return float(np.sqrt(white))
    depth = observation.weights.mean((1, 2), dtype=float)
    correlation = np.average(observation.noise_correlation, axis=0, weights=depth if depth.any() else None)
    return float(np.sqrt(max((kernel * convolved(kernel, correlation)).sum(), LEAST * white)))


def _check_threshold(observation: Observation, threshold: float) -> None:
    """Raises: DataError for a threshold that is not positive."""
    if not threshold > 0:
        raise DataError(observation.name, "threshold", f"expected a positive number of sigma, received {threshold}")


def _extract(observation: Observation, kernel: np.ndarray, threshold: float, seen: np.ndarray) -> Table:
    """SEP's objects above `threshold` sigma of the filtered detection image, brightest first.

    seen: (H,W) bool, pixels that were seen and not filled; MIN_AREA of these are above the threshold.
    """
    import sep
    from astropy.table import Table

    noise = filtered_sigma(kernel, observation)
    image, sigma = detection_image(observation.images, observation.weights)
    sep.set_extract_pixstack(max(sep.get_extract_pixstack(), image.size))
    try:
        objects, pixels = sep.extract(
            np.ascontiguousarray(image),
            threshold * noise,
            mask=np.isinf(sigma),
            minarea=MIN_AREA,
            filter_kernel=kernel,
            filter_type="conv",
            deblend_nthresh=DEBLEND_LEVELS,
            deblend_cont=DEBLEND_CONTRAST,
            segmentation_map=True,
        )
    except Exception as error:  # SEP's own, of the base class: too many objects in one island of pixels
        raise DataError(
            observation.name, "images", f"expected an image that SEP can take apart, received {error}"
        ) from error
    table = Table({name: objects[name] for name in ("x", "y", "npix", "peak", "a", "b", "theta", "flag")})
    table.add_column(objects["cpeak"] / noise, name="snr", index=2)
    table = table[np.bincount(pixels[seen], minlength=len(objects) + 1)[1:] >= MIN_AREA]
    table.sort("snr", reverse=True)
    return table[_first_of_each(np.asarray(table["y"]), np.asarray(table["x"]))]


def _first_of_each(y: np.ndarray, x: np.ndarray) -> list[int]:
    """Indices of the detections that have no earlier one within TWICE pixels."""
    kept: list[int] = []
    for k in range(len(y)):
        if not kept or np.hypot(y[kept] - y[k], x[kept] - x[k]).min() > TWICE:
            kept.append(k)
    return kept
