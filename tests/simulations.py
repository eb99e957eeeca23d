"""Blends drawn by GalSim, with their truth: independent of the code under test, down to the profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import galsim
import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source

PIXEL = 0.2  # arcsec
SEEING = (0.75, 0.65)  # FWHM in arcsec of the Moffat PSF in each band
PARAMETERS = galsim.GSParams(folding_threshold=1e-3)


class Galaxy(NamedTuple):
    """Position in pixels, flux in each band, Sersic index, half-light radius in arcsec, shear; radius 0: a star."""

    y: float
    x: float
    flux: tuple[float, ...]
    index: float = 1.0
    radius: float = 0.5
    shear: tuple[float, float] = (0.0, 0.0)

    def profile(self, band: int) -> galsim.GSObject:
        if not self.radius:
            return galsim.DeltaFunction(flux=self.flux[band])
        g1, g2 = self.shear
        sersic = galsim.Sersic(self.index, half_light_radius=self.radius, flux=self.flux[band], gsparams=PARAMETERS)
        return sersic.shear(g1=g1, g2=g2)


BLEND = (
    Galaxy(14.3, 12.2, (4000, 6000), 1.0, 0.5, (0.2, 0.1)),
    Galaxy(17.6, 20.4, (3000, 2500), 1.5, 0.4, (-0.1, 0.2)),
    Galaxy(22.1, 13.7, (1500, 1500), 0.8, 0.4),
)


def simulate(
    galaxies: Sequence[Galaxy] = BLEND,
    shape: tuple[int, int] = (32, 32),
    noise: float = 1.0,
    seed: int = 0,
    background: float = 0.0,
    **changes: object,
) -> tuple[Scene, np.ndarray]:
    """A scene of two bands with noise of the same sigma in every pixel, and its noiseless sources (K, C, H, W).

    The given positions are rounded to pixels, as detections are. `changes` are other fields of the Observation.
    """
    height, width = shape
    psfs = [galsim.Moffat(beta=3.5, fwhm=fwhm, gsparams=PARAMETERS) for fwhm in SEEING]
    truth = np.zeros((len(galaxies), len(SEEING), height, width))
    for k, galaxy in enumerate(galaxies):
        for c, psf in enumerate(psfs):
            image = galsim.ImageD(width, height, scale=PIXEL)
            center = galsim.PositionD(galaxy.x + 1, galaxy.y + 1)  # GalSim counts pixels from 1
            galsim.Convolve(galaxy.profile(c), psf).drawImage(image, center=center)
            truth[k, c] = image.array
    drawn = np.stack([psf.drawImage(nx=35, ny=35, scale=PIXEL, dtype=float).array for psf in psfs])
    images = truth.sum(0) + background + np.random.default_rng(seed).normal(scale=noise, size=truth.shape[1:])
    fields: dict[str, object] = {
        "images": images,
        "weights": np.full(images.shape, noise**-2.0),
        "psf": drawn / drawn.sum((1, 2), keepdims=True),
        "bands": ("g", "r"),
        "name": f"blend{seed}",
        "pixel_scale": PIXEL,
    }
    observation = Observation(**fields | changes)  # type: ignore[arg-type]
    sources = [
        Source(round(g.y), round(g.x), "galaxy" if g.radius else "point", str(k)) for k, g in enumerate(galaxies)
    ]
    return Scene(observation, tuple(sources)), truth


def random_blends(number: int, seed: int = 0) -> list[tuple[Scene, np.ndarray, np.ndarray]]:
    """(scene, noiseless sources, total fluxes (K, C)) of blends of three galaxies, 4 to 9 pixels from the next."""
    rng = np.random.default_rng(seed)
    blends = []
    for index in range(number):
        turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi / 3 * np.arange(3)
        reach = rng.uniform(3, 5, 3)
        galaxies = [
            Galaxy(
                y=16 + r * np.sin(a),
                x=16 + r * np.cos(a),
                flux=tuple(rng.uniform(1000, 6000) * rng.uniform(0.6, 1.5, 2)),
                index=rng.uniform(0.7, 2),
                radius=rng.uniform(0.3, 0.7),
                shear=tuple(rng.uniform(-0.25, 0.25, 2)),
            )
            for a, r in zip(turn, reach, strict=True)
        ]
        scene, truth = simulate(galaxies, seed=100 + index)
        blends.append((scene, truth, np.array([galaxy.flux for galaxy in galaxies])))
    return blends
