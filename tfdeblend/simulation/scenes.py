"""Blends with their truth: scene number i of a configuration, GalSim's profiles seen through a survey's PSFs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io import npz
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.real_galaxies import RealPopulation
from tfdeblend.simulation.rendering import Camera, Component
from tfdeblend.simulation.stamps import with_centers
from tfdeblend.simulation.surveys import Colors, Survey

POSITIONS = ("uniform", "clustered")
NOISES = ("white", "correlated")
MOST_SOURCES = 30
PSF_SIDE = 43  # pixels
SEPARATION = 2.0  # pixels, least, of two sources
MARGIN = 0.1  # of the image's side, free of sources
NOISE_SIGMA = 0.45  # pixels, of the kernel of correlated noise: 0.17 between neighbours, a round choice
NOISE_REACH = 3  # pixels of that kernel


@dataclass(frozen=True)
class SceneConfig:
    """Holds everything that scenes depend on, except their number.

    Args:
        survey, population: what is seen, and of what.
        sources: least and most, 1 to 30; all numbers between are equally likely.
        positions: "uniform" over the image, or "clustered" around one source near its centre.
        noise: "white": Gaussian with the variance of sky, readout and the sources' own light; "correlated": the same
            variance, smoothed as by the resampling of a coadd.
        size: pixels, side.
        model_sigma: pixels, of the Gaussian model PSF for `truth_model`; None: no `truth_model`.
        seed: of the random numbers.

    Raises:
        DataError: a field that cannot be used.
    """

    survey: Survey
    population: Population | RealPopulation
    sources: tuple[int, int] = (1, 5)
    positions: str = "clustered"
    noise: str = "white"
    size: int = 71
    model_sigma: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = self.sources
        if not 1 <= least <= most <= MOST_SOURCES:
            raise DataError("simulate", "sources", f"expected 1 to {MOST_SOURCES}, received {least} to {most}")
        for field, known in (("positions", POSITIONS), ("noise", NOISES)):
            if getattr(self, field) not in known:
                problem = f"expected {' or '.join(known)}, received {getattr(self, field)!r}"
                raise DataError("simulate", field, problem)
        room = 16 if most <= 5 else 8 * int(np.ceil(np.sqrt(most)))
        if not room <= self.size <= 512:
            raise DataError("simulate", "size", f"expected {room} to 512 pixels, received {self.size}")
        if self.seed < 0:
            raise DataError("simulate", "seed", f"expected a number from 0, received {self.seed}")

    def start(self, number: int) -> tuple[np.random.Generator, int]:
        """Returns the random stream of scene `number` and the number of its sources, drawn from it first."""
        rng = np.random.default_rng([self.seed, number])
        return rng, int(rng.integers(*self.sources, endpoint=True))


@dataclass(frozen=True, eq=False)
class SimulatedScene:
    """Holds one blend of K sources in C bands, in electrons, and its truth."""

    config: SceneConfig
    number: int
    images: np.ndarray  # (C,H,W) float32, with noise
    weights: np.ndarray  # (C,H,W) float32, inverse of the true variance
    psfs: np.ndarray  # (C,43,43) float32
    truth: np.ndarray  # (K,C,H,W) float32, each source as observed, noiseless
    catalog: np.ndarray  # (K,) structured: x, y in pixels, is_star, true total fluxes, magnitudes, shapes
    truth_model: np.ndarray | None  # (K,C,H,W) float32, each source in the model frame

    @property
    def name(self) -> str:
        """Gives the name of the scene's file, by its number."""
        return f"scene_{self.number:06d}"

    @property
    def scene(self) -> Scene:
        """Makes what a deblender is given, the observation with the true positions."""
        survey = self.config.survey
        observation = Observation(
            self.images,
            self.weights,
            self.psfs,
            survey.bands,
            self.name,
            zeropoints=np.array(survey.flux_zeropoints),
            unit="electron",
            pixel_scale=survey.pixel_scale,
        )
        return Scene.from_catalog(observation, self.catalog)

    def arrays(self) -> dict[str, np.ndarray]:
        """Gives the arrays of the scene's NPZ file, see docs/formats.md."""
        return {**npz.scene_arrays(self.scene), **self.truth_arrays()}

    def truth_arrays(self) -> dict[str, np.ndarray]:
        """Gives what the scene's file holds beside the scene itself, the truth, see docs/formats.md."""
        arrays = {"catalog": self.catalog, "truth": self.truth}
        if self.truth_model is not None:
            arrays |= {"truth_model": self.truth_model, "model_sigma": np.array(self.config.model_sigma)}
        if self.config.noise == "correlated":
            arrays["noise_kernel"] = noise_kernel()
        return arrays


@dataclass(frozen=True, eq=False)
class Simulator:
    """Draws the scenes of one configuration; one simulator draws many, as it keeps the PSFs' transforms."""

    config: SceneConfig

    @cached_property
    def colors(self) -> Colors:
        """Gives the magnitudes of spectra in the survey's bands."""
        return Colors.of(self.config.survey.throughputs)

    @cached_property
    def camera(self) -> Camera:
        """Gives what draws through the survey's PSFs."""
        return Camera.of_survey(self.config.survey)

    @cached_property
    def model_camera(self) -> Camera | None:
        """Gives what draws through the model PSF alone, where the configuration asks for it."""
        sigma, scale = self.config.model_sigma, self.config.survey.pixel_scale
        return None if sigma is None else Camera.of_model(sigma, scale)

    @cached_property
    def psfs(self) -> np.ndarray:
        """Draws the PSFs (C,43,43), float32, each summing to 1."""
        import galsim

        point = Component(galsim.DeltaFunction(), np.ones(len(self.config.survey.bands)), 0.0)
        psfs = self.camera.draw([point], PSF_SIDE // 2, PSF_SIDE // 2, (PSF_SIDE, PSF_SIDE))
        return (psfs / psfs.sum((1, 2), keepdims=True)).astype(np.float32)

    def scene(self, number: int) -> SimulatedScene:
        """Draws scene `number`, from 0, which depends on the configuration and this number alone."""
        config = self.config
        survey, shape = config.survey, (config.size, config.size)
        rng, count = config.start(number)
        zeropoints = np.array(survey.flux_zeropoints)
        galaxies = config.population.draw(rng, count, self.colors, zeropoints, survey.bands)
        places = draw_positions(rng, count, config)
        parts = [galaxies.components(row) for row in range(count)]
        truth = _draw(self.camera, parts, places, shape)
        variance = np.array(survey.sky_variance)[:, None, None] + np.maximum(truth.sum(0), 0)
        noise = unit_noise(rng, variance.shape, config.noise) * np.sqrt(variance)
        return SimulatedScene(
            config,
            number,
            images=(truth.sum(0) + noise).astype(np.float32),
            weights=(1 / variance).astype(np.float32),
            psfs=self.psfs,
            truth=truth.astype(np.float32),
            catalog=with_centers(galaxies, survey.bands, places),
            truth_model=_draw(self.model_camera, parts, places, shape).astype("f4") if self.model_camera else None,
        )


def _draw(camera: Camera, parts: list[list[Component]], places: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draws noiseless images (K,C,H,W) of sources with their components and places."""
    return np.stack([camera.draw(part, y, x, shape) for part, (y, x) in zip(parts, places, strict=True)])


def draw_positions(rng: np.random.Generator, number: int, config: SceneConfig) -> np.ndarray:
    """Draws positions (number,2) of (y, x) in pixels, SEPARATION apart, over a range that widens to make room."""
    low, high = MARGIN * (config.size - 1), (1 - MARGIN) * (config.size - 1)
    center = (config.size - 1) / 2
    spread = 2.0 * max(config.survey.psf_fwhm) / config.survey.pixel_scale * np.sqrt(max(number, 3) / 3)
    found = np.empty((0, 2))
    while len(found) < number:
        if config.positions == "uniform":
            place = rng.uniform(low, high, 2)
        elif not len(found):
            place = np.clip(center + rng.normal(0, 2, 2), low, high)
        else:
            place = found[0] + rng.normal(0, spread, 2)
            spread = min(1.01 * spread, config.size / 2)
        inside = ((place >= low) & (place <= high)).all()
        if inside and (np.hypot(*(found - place).T) >= SEPARATION).all():
            found = np.vstack([found, place])
    return found


def noise_kernel() -> np.ndarray:
    """Returns a kernel (7,7) by which white noise of unit variance becomes correlated noise of unit variance."""
    t = np.arange(-NOISE_REACH, NOISE_REACH + 1)
    line = np.exp(-0.5 * (t / NOISE_SIGMA) ** 2)
    kernel = line[:, None] * line
    return kernel / np.sqrt((kernel**2).sum())


def unit_noise(rng: np.random.Generator, shape: tuple[int, ...], noise: str) -> np.ndarray:
    """Draws Gaussian noise (C,H,W) of unit variance, "white" or "correlated"."""
    if noise == "white":
        return rng.normal(size=shape)
    bands, height, width = shape
    return correlated(rng.normal(size=(bands, height + 2 * NOISE_REACH, width + 2 * NOISE_REACH)))


def correlated(white: np.ndarray) -> np.ndarray:
    """Smooths white noise (C, H + 6, W + 6) to correlated noise (C, H, W) of the same variance, see `noise_kernel`."""
    kernel, rows = noise_kernel(), range(2 * NOISE_REACH + 1)
    shape = (len(white), *(side - 2 * NOISE_REACH for side in white.shape[1:]))
    height, width = shape[1:]
    return sum((kernel[i, j] * white[:, i : i + height, j : j + width] for i in rows for j in rows), np.zeros(shape))
