"""A transient beside its host, by GalSim, in four epochs of which the first two are before it."""

from __future__ import annotations

import galsim
import numpy as np
from astropy.wcs import WCS
from helpers import gaussian

from tfdeblend.data.observation import Observation

SIDE, SCALE = 32, 0.2  # pixels; arcsec
HOST = {"y": 15.3, "x": 16.1, "radius": 3.0, "e1": 0.15, "e2": -0.1, "flux": 6000.0}  # radius in pixels
PLACE = (17.2, 14.4)  # of the transient
FLUXES = (0.0, 0.0, 900.0, 500.0)
SEEING, NOISE = (1.7, 2.0, 1.6, 2.2), (0.8, 1.0, 1.5, 1.0)  # sigma in pixels; of a pixel
OFF = [0, 1]


def wcs() -> WCS:
    sky = WCS(naxis=2)
    sky.wcs.cd, sky.wcs.crval, sky.wcs.crpix = SCALE / 3600 * np.diag([-1, 1]), [150, 2], [SIDE / 2] * 2
    sky.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    return sky


def host_image(seeing: float, y: float, x: float, radius: float, e1: float, e2: float, flux: float) -> np.ndarray:
    """(H, W) an exponential disk through a Gaussian PSF, by GalSim."""
    disk = galsim.Exponential(half_light_radius=radius, flux=flux).shear(g1=e1, g2=e2)
    image = galsim.ImageD(SIDE, SIDE, scale=1)
    seen = galsim.Convolve(disk, galsim.Gaussian(sigma=seeing))
    return seen.drawImage(image, center=galsim.PositionD(x + 1, y + 1), method="no_pixel").array


def observe(light: np.ndarray, epoch: int, bands: str = "r", mask: slice | None = None) -> Observation:
    """The light (C, H, W) with noise."""
    noise, seeing = NOISE[epoch], SEEING[epoch]
    images = light + np.random.default_rng(epoch).normal(scale=noise, size=light.shape)
    weights = np.full(light.shape, noise**-2.0)
    if mask is not None:
        weights[:, mask] = 0
    return Observation(images, weights, gaussian((25, 25), 12, 12, seeing), tuple(bands), f"epoch {epoch}", wcs())


def disk_epochs(place: tuple[float, float] = PLACE) -> list[Observation]:
    light = [host_image(s, **HOST) + f * gaussian((SIDE, SIDE), *place, s) for s, f in zip(SEEING, FLUXES, strict=True)]
    return [observe(image[None], epoch) for epoch, image in enumerate(light)]


def catalog(kind: str = "galaxy") -> dict:
    return {"x": [HOST["x"]], "y": [HOST["y"]], "kind": [kind]}
