"""Isolated galaxies in the model frame, to train priors on: as the narrow Gaussian model PSF alone would show them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from tfdeblend.data.photometry import COADD_ZEROPOINT
from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import Galaxies, Population
from tfdeblend.simulation.real_galaxies import RealGalaxies, RealPopulation
from tfdeblend.simulation.spectra import Colors
from tfdeblend.simulation.surveys import Survey

CHUNK = 500  # stamps drawn from one random stream, whatever the number of stamps and workers


@dataclass(frozen=True)
class StampConfig:
    """Everything that stamps depend on besides their number.

    Args:
        population: which galaxies.
        survey: bands and their throughputs.
        side: pixels.
        pixel_scale: arcsec. None: the survey's.
        model_sigma: pixels, of the Gaussian model PSF, sampled at pixel centres (not averaged over pixels).
        jitter: pixels: centres are uniform within this of pixel (side // 2, side // 2).
        seed: of the random numbers.
    """

    population: Population | RealPopulation
    survey: Survey
    side: int = 64
    pixel_scale: float | None = None
    model_sigma: float = 1.0
    jitter: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side < 8:
            raise DataError("stamps", "side", f"expected at least 8 pixels, received {self.side}")
        if not 0.4 <= self.model_sigma < self.side / 8:
            problem = f"expected 0.4 to {self.side / 8:g} pixels, received {self.model_sigma}"
            raise DataError("stamps", "model_sigma", problem)

    @property
    def scale(self) -> float:
        """arcsec."""
        return self.pixel_scale or self.survey.pixel_scale

    def chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Stamps CHUNK * index and the following: images (CHUNK, C, P, P) float32 and their catalogue."""
        from tfdeblend.simulation.rendering import Camera

        rng = np.random.default_rng([self.seed, index])
        colors = Colors.of(self.survey.throughputs)
        zeropoints = np.full(len(self.survey.bands), COADD_ZEROPOINT)
        galaxies = self.population.draw(rng, CHUNK, colors, zeropoints, self.survey.bands)
        centers = self.side // 2 + rng.uniform(-self.jitter, self.jitter, (CHUNK, 2))
        camera = Camera.of_model(self.model_sigma, self.scale)
        images = np.empty((CHUNK, len(zeropoints), self.side, self.side), np.float32)
        for row, (y, x) in enumerate(centers):
            images[row] = camera.draw(galaxies.components(row), y, x, (self.side, self.side))
        return images, with_centers(galaxies, self.survey.bands, centers)


def draw_stamps(
    population: Population | RealPopulation,
    survey: Survey,
    number: int,
    side: int = 64,
    pixel_scale: float | None = None,
    model_sigma: float = 1.0,
    seed: int = 0,
    workers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """`number` galaxies, each alone, noiseless, in the model frame; stamp i depends on the arguments and i only.

    Args:
        population, survey, side, pixel_scale, model_sigma, seed: see `StampConfig`.
        workers: processes.

    Returns:
        images (number, C, side, side) float32 in flux of AB zero point 27, each centred within half a pixel of pixel
        (side // 2, side // 2); and a structured array of `Galaxies.catalog` with the centres `x`, `y`.

    Raises:
        DataError: a side, a model PSF or a survey that cannot be used.
    """
    if number < 1:
        raise DataError("stamps", "number", f"expected a positive number, received {number}")
    config = StampConfig(population, survey, side, pixel_scale, model_sigma, seed=seed)
    images, catalogs = zip(*_chunks(config, -(-number // CHUNK), workers), strict=True)
    return np.concatenate(images)[:number], np.concatenate(catalogs)[:number]


def with_centers(galaxies: Galaxies | RealGalaxies, bands: tuple[str, ...], centers: np.ndarray) -> np.ndarray:
    """The catalogue of galaxies with columns `x`, `y`, `is_star` in front, from centers (N,2) of (y, x) in pixels."""
    table = galaxies.catalog(bands)
    placed = np.empty(len(table), [("x", float), ("y", float), ("is_star", bool), *table.dtype.descr])
    placed["y"], placed["x"] = centers.T
    placed["is_star"] = galaxies.is_star
    for name in table.dtype.names or ():
        placed[name] = table[name]
    return placed


def _chunks(config: StampConfig, number: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if workers <= 1:
        yield from map(config.chunk, range(number))
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(config.chunk, range(number))
