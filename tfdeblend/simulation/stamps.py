"""Stamps to train priors on: isolated galaxies, noiseless, as the narrow Gaussian model PSF shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfdeblend.data.observation import COADD_ZEROPOINT
from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import Galaxies, Population, structured
from tfdeblend.simulation.real_galaxies import RealGalaxies, RealPopulation
from tfdeblend.simulation.surveys import Colors, Survey

CHUNK = 500  # stamps drawn from one random stream, whatever the number of stamps and workers


@dataclass(frozen=True)
class StampConfig:
    """Everything that stamps depend on, except their number.

    Args:
        population: which galaxies.
        survey: bands, their throughputs and pixels.
        side: pixels.
        model_sigma: pixels, of the Gaussian model PSF, sampled at pixel centres (not averaged over pixels).
        seed: of the random numbers.

    Raises:
        DataError: a side or a model PSF that cannot be used.
    """

    population: Population | RealPopulation
    survey: Survey
    side: int = 64
    model_sigma: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 8:
            raise DataError("stamps", "side", f"expected at least 8 pixels, received {self.side}")
        if not 0.4 <= self.model_sigma < self.side / 8:
            problem = f"expected 0.4 to {self.side / 8:g} pixels, received {self.model_sigma}"
            raise DataError("stamps", "model_sigma", problem)

    def chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the stamps from CHUNK * index on; each depends on the configuration and its number alone.

        Returns:
            images (CHUNK, C, P, P) float32 in flux of AB zero point 27, each centred within half a pixel of pixel
            (side // 2, side // 2); and their catalogue.
        """
        from tfdeblend.simulation.rendering import Camera

        rng = np.random.default_rng([self.seed, index])
        colors = Colors.of(self.survey.throughputs)
        zeropoints = np.full(len(self.survey.bands), COADD_ZEROPOINT)
        galaxies = self.population.draw(rng, CHUNK, colors, zeropoints, self.survey.bands)
        centers = self.side // 2 + rng.uniform(-0.5, 0.5, (CHUNK, 2))
        camera = Camera.of_model(self.model_sigma, self.survey.pixel_scale)
        images = np.empty((CHUNK, len(zeropoints), self.side, self.side), np.float32)
        for row, (y, x) in enumerate(centers):
            images[row] = camera.draw(galaxies.components(row), y, x, (self.side, self.side))
        return images, with_centers(galaxies, self.survey.bands, centers)


def with_centers(galaxies: Galaxies | RealGalaxies, bands: tuple[str, ...], centers: np.ndarray) -> np.ndarray:
    """Returns the catalogue with columns `x`, `y`, `is_star` in front; centers: (N,2) of (y, x) in pixels."""
    table = galaxies.catalog(bands)
    y, x = centers.T
    known = {name: table[name] for name in table.dtype.names or ()}
    return structured({"x": x, "y": y, "is_star": galaxies.is_star, **known})
