"""Sources that several observations of one field show, looked for in each and merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.detection import detect
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import psf_fwhm
from tfdeblend.errors import DataError
from tfdeblend.forward.field import WITHOUT_WCS

if TYPE_CHECKING:
    from astropy.table import Table

# Of 480 crowded simulated sources 411 are found together and 367 in the sharp observation alone, at 0.5 to 1 alike.
SAME = 0.75  # of the wider of two PSFs' full widths at half maximum: detections closer than this are one source


def detect_together(observations: Sequence[Observation], threshold: float = 3.0) -> Table:
    """Sources detected in any of the observations, each at its place in the sharpest one that shows it.

    A correlation of the noise that is not given is that of the empty sky: at the threshold that white noise allows,
    drizzled images are full of detections. A detection within `SAME` of the PSF's width of one from an observation of a
    narrower PSF is that source, or several of them in one: what the sharper observation tells apart stays apart.

    Args:
      observations: each with a WCS. threshold: in sigma, see `detection.detect`.
    Returns:
      Table of x, y (pixels of the first observation, inside of its image), snr there, and observation, which is the
      name of the sharpest one that shows it; sharpest first, and of each the brightest first.

    Raises: DataError for observations that no WCS joins, and where nothing is detected.
    """
    from astropy.table import Table

    first = observations[0]
    found: list[tuple[float, float, float, str]] = []
    for width, one, pixels in sorted(_widths(observations), key=lambda part: part[0]):
        table = detect(_knowing_its_noise(one), threshold)
        places = np.stack([table["y"], table["x"]], 1).reshape(-1, 2) @ pixels.matrix.T + pixels.offset
        sharper = np.array([row[:2] for row in found]).reshape(-1, 2)
        for place, snr in zip(places, table["snr"], strict=True):
            inside = (place > -0.5).all() and (place < np.array(first.shape[1:]) - 0.5).all()
            if inside and not (np.hypot(*(sharper - place).T) < SAME * width).any():
                found.append((*place.tolist(), float(snr), one.name))
    if not found:
        raise DataError(first.name, "catalog", f"expected sources, detected none at {threshold:g} sigma")
    return Table(rows=found, names=("y", "x", "snr", "observation"))


def _knowing_its_noise(one: Observation) -> Observation:
    """With the correlation of its sky, unless one is given, or the sky tells none: then white."""
    try:
        return one if one.noise_correlation is not None else one.with_sky_correlation()
    except DataError:
        return one


def _widths(observations: Sequence[Observation]) -> list[tuple[float, Observation, AffineMap]]:
    """The width of each one's PSF in pixels of the first, and the map to these."""
    first, parts = observations[0], []
    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
        pixels = AffineMap.between(one.name, one.wcs, first.wcs, one.shape[1:])
        parts.append((float(psf_fwhm(one.psf).mean()) * pixels.area**0.5, one, pixels))
    return parts
