"""Expectation-maximisation of the prior: posterior samples of all blends, and how well their prior predicts data.

An iteration takes the prior p_k(x) to the mean over the blends of p(x | y, p_k), whose fixed points maximise the
evidence of the blends (Rozet et al. 2024, arXiv:2405.13712). Here are the E-step, a pure function of prior, shard and
seed, the iterations of a Gaussian prior, whose M-step is closed, and held-out scores; `tfdeblend.training.train_em`
fits networks in between.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.denoisers import PriorDenoiser, flux_scale
from tfdeblend.diffusion.gaussian import STAMPS, GaussianDenoiser
from tfdeblend.diffusion.initial import LARGE_SHARE, InitialFit, StampWindow, stamp_begin
from tfdeblend.diffusion.schedules import BlendSchedule
from tfdeblend.diffusion.unknown_scale import UnknownScale
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import (
    SAMPLING_WORK,
    BatchShape,
    ExposureShape,
    brightness,
    by_count,
    merge_buckets,
    scene_shape,
    stamp_side,
)
from tfdeblend.galaxies import moments
from tfdeblend.galaxies.priors import BulgeDiskPrior
from tfdeblend.inference import sample_batches
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions, Samples
from tfdeblend.inference.map_fit import MapFit
from tfdeblend.inference.nonparametric import NonparametricFit
from tfdeblend.io import npz, tfrecords
from tfdeblend.io.atomic import sha256, written_whole

BLENDS = 16  # of a shard, at most
APERTURES = (1.5, 3.0, 6.0)  # pixels, of Gaussian windows about the sources
FACTOR_ITERATIONS = 8  # of factor analysis, in each iteration over blends
# Samples start at good fits, and those that stay near them are the better ones: hence these levels and scales.
SAMPLING = SampleOptions(schedule=BlendSchedule(vague=0.5), unknown_scale=UnknownScale(False, 0.0, recentre=False))


@dataclass(frozen=True, eq=False)
class Shard:
    """Blends of one shape, and the closed-form fit that their samples start from: what an E-step does at once.

    initial: `InitialFit` of NumPy arrays, a row for each scene.
    """

    scenes: tuple[Scene, ...]
    shape: BatchShape
    initial: InitialFit

    @property
    def names(self) -> list[str]:
        return [scene.name for scene in self.scenes]

    def batch(self) -> Batch:
        return Batch.build(self.scenes, self.shape._replace(blends=len(self.scenes)))

    def signal(self) -> np.ndarray:
        """(B, K): norms of the initial fits in units of the noise."""
        return flux_scale(self.initial.stamps)

    def write(self, path: Path) -> None:
        """As an .npz archive, without the scenes."""
        shape = json.dumps(self.shape._asdict())
        arrays = {"names": np.array(self.names), "shape": np.array(shape), **self.initial._asdict()}
        npz.write(path, arrays)

    @classmethod
    def read(cls, path: Path, scenes: Mapping[str, Scene]) -> Shard:
        """Reads what `write` wrote; scenes: by name."""
        with np.load(path) as archive:
            sizes = json.loads(str(archive["shape"]))
            exposures = tuple(ExposureShape(tuple(bands), *rest) for bands, *rest in sizes.pop("exposures"))
            initial = InitialFit(*(archive[name] for name in InitialFit._fields))
            scenes_of = tuple(scenes[name] for name in archive["names"].tolist())
            return cls(scenes_of, BatchShape(**sizes, exposures=exposures), initial)


def plan(scenes: Sequence[Scene], side: int, model_sigma: float) -> list[tuple[BatchShape, list[int]]]:
    """Returns which scenes go into which shard, by index. side, model_sigma: of the prior's stamps."""
    buckets: dict[BatchShape, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        shape = scene_shape(scene, stamp_side(scene, side + 2), model_sigma)
        buckets[shape._replace(blends=BLENDS)].append(index)
    found = []
    for shape, members in sorted(merge_buckets(buckets, SAMPLING_WORK).items()):
        members = sorted(members, key=lambda index: (len(scenes[index].sources), brightness(scenes[index])))
        found += [(shape, members[first : first + BLENDS]) for first in range(0, len(members), BLENDS)]
    return found


class InitialFits:
    """Fits shards' blends in closed form, or, after that, without a profile; each shape is compiled once."""

    def __init__(self, nonparametric: bool = False):
        self.nonparametric = nonparametric
        self.fits: dict[BatchShape, tuple[MapFit, NonparametricFit]] = {}

    def __call__(self, scenes: Sequence[Scene], shape: BatchShape) -> Shard:
        if shape not in self.fits:
            fit = MapFit(BulgeDiskPrior(shape.bands), shape)
            self.fits[shape] = fit, NonparametricFit(fit)
        fit, refine = self.fits[shape]
        tensors = Batch.build(scenes, shape).tensors
        result = fit(tensors, fit.first_latents([moments.moments(scene) for scene in scenes]))
        if self.nonparametric:
            result = refine(tensors, result)
        return Shard(tuple(scenes), shape, InitialFit(*(part.numpy()[: len(scenes)] for part in InitialFit.of(result))))


class Stamps(NamedTuple):
    """Sampled galaxies: images (N, C, P, P) at unit scale, the scene's name (N,) and the source's index there (N,)."""

    images: np.ndarray
    scene: np.ndarray
    source: np.ndarray

    def write(self, path: Path) -> None:
        """Writes a TFRecord file, which `datasets.read_stamps` reads, and last its checksum, for `is_whole`."""
        rows = ({"stamp": i, "scene": np.array([s]), "source": np.array(k)} for i, s, k in zip(*self, strict=True))
        tfrecords.write(path, rows)
        with written_whole(_checksum(path)) as temporary:
            temporary.write_text(sha256(path) + "\n")

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Whether a file is there, and the one that `write` wrote."""
        known = _checksum(path)
        return path.is_file() and known.is_file() and known.read_text().strip() == sha256(path)


def _checksum(path: Path) -> Path:
    """Returns where the checksum of a file of samples is kept: in a folder beside it."""
    return path.parent / "done" / f"{path.stem}.sha256"


class Expectation:
    """Samples the posterior of shards under one prior, whose weights may change: each shape is compiled once."""

    def __init__(self, denoiser: PriorDenoiser, options: SampleOptions):
        self.denoiser, self.options = denoiser, options
        self.samplers: dict[BatchShape, PosteriorSampler] = {}

    def use(self, prior: PriorDenoiser) -> None:
        """Takes over the weights of another prior of the same kind."""
        self.denoiser.assign(prior)  # type: ignore[attr-defined]

    def draw(self, shard: Shard, samples: int, seed: int) -> Iterator[tuple[list[int], Samples]]:
        """Yields all samples of all its blends, some rows at a time: the rows' blends, and NumPy arrays."""
        for shape, members in by_count(shard.shape, shard.scenes, range(len(shard.scenes))).items():
            scenes = [shard.scenes[row] for row in members]
            rows = sample_batches.rows_at_once(shape, shard.shape.blends, samples)
            if (shape := shape._replace(blends=rows)) not in self.samplers:
                self.samplers[shape] = PosteriorSampler(shape, self.denoiser, self.options)
            own = InitialFit(*(tf.constant(part[members]) for part in shard.initial))
            tensors = Batch.build(scenes, shard.shape._replace(blends=len(scenes))).tensors
            names = [scene.name for scene in scenes]
            draw = sample_batches.by_diffusion(self.samplers[shape], tensors, own, names, samples, seed)
            for row, drawn in sample_batches.in_turn(draw, shape, range(len(members)), samples):
                yield [members[i] for i in row], drawn

    def stamps(self, shard: Shard, samples: int, seed: int, least_signal: float = 0.0) -> Stamps:
        """Returns samples at unit norm of the galaxies whose initial fit has a signal-to-noise of `least_signal`."""
        bright = shard.signal() >= least_signal
        found: list[tuple[np.ndarray, str, int]] = []
        for blends, drawn in self.draw(shard, samples, seed):
            norm = flux_scale(drawn.unit)
            for row, blend in enumerate(blends):
                scene = shard.scenes[blend]
                for k in range(len(scene.sources)):
                    if bright[blend, k] and norm[row, k] > 0:
                        found.append((drawn.unit[row, k] / norm[row, k], scene.name, k))
        if not found:
            return Stamps(np.zeros((0, *self.denoiser.stamp_shape), np.float32), np.array([], str), np.array([], int))
        return Stamps(*(np.array(part) for part in zip(*found, strict=True)))


def iteration_seed(seed: int, iteration: int) -> int:
    """Returns the random seed of an iteration."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0] >> 1)


def initial_stamps(shard: Shard, side: int, least_signal: float = 0.0) -> np.ndarray:
    """Returns (N, C, side, side) the initial fits' galaxies at unit scale, cut as for sampling; no larger ones."""
    stamps = tf.constant(shard.initial.stamps)
    begin = stamp_begin(tf.constant(shard.initial.offset), shard.shape.stamp, side)
    cut = StampWindow(begin, side, shard.shape.stamp).transpose(stamps).numpy()
    norm, light = flux_scale(cut), np.abs(cut).sum((2, 3, 4))
    inside = light > (1 - LARGE_SHARE) * np.abs(shard.initial.flux).sum(2)
    galaxy = np.zeros(norm.shape, bool)
    for row, scene in enumerate(shard.scenes):
        galaxy[row, : len(scene.sources)] = [source.kind != "point" for source in scene.sources]
    keep = galaxy & inside & (norm >= max(least_signal, 1e-6))
    units = np.repeat(shard.batch().tensors.band_unit.numpy()[:, None], norm.shape[1], 1)[keep]
    unit = cut[keep] / units[:, :, None, None]
    return unit / flux_scale(unit)[:, None, None, None]


def gaussian_iteration(expectation: Expectation, found: Sequence[Shard], seed: int, least_signal: float = 0.0) -> None:
    """Runs one iteration of a Gaussian prior, the expectation's, which is changed in place.

    The M-step is factor analysis: it fits diagonal and directions together, where cutting a covariance to a rank
    may lower the evidence even of exact iterations.
    """
    prior = expectation.denoiser
    assert isinstance(prior, GaussianDenoiser)
    images = np.concatenate([expectation.stamps(shard, 1, seed, least_signal).images for shard in found])
    prior.assign(fit_gaussian(images, prior, seed, prior.rank))


def fit_gaussian(images: np.ndarray, like: Any, seed: int, rank: int) -> GaussianDenoiser:
    """Fits stamps (N, C, P, P) at unit norm, whose scales a prior such as `like` takes to be wrong by its jitter.

    Raises: DataError for too few stamps.
    """
    if len(images) < 2 * max(rank, 1):
        expected = f"expected at least {2 * max(rank, 1)} galaxies for a Gaussian prior of rank {rank}"
        raise DataError("blends", "galaxies", f"{expected}, received {len(images)}")
    scale = np.exp(like.scale_jitter * np.random.default_rng(seed).standard_normal(len(images))).astype(np.float32)
    kind = {name: getattr(like, name) for name in STAMPS}
    jittered = images.astype(np.float32) * scale[:, None, None, None]
    return GaussianDenoiser.fit(jittered, rank, FACTOR_ITERATIONS, **kind)


def dispersion(images: np.ndarray) -> float:
    """Returns the trace of the covariance of stamps (N, C, P, P) at unit norm, between 0 (all alike) and 1."""
    mean = images.mean(0, dtype=float)
    return float(np.mean(np.einsum("ncyx,ncyx->n", images, images, dtype=float)) - np.sum(mean**2))


# -- held-out scores


class Thinned(NamedTuple):
    """Two independent halves of an observation: a scene to sample, and images (C, H, W) to evaluate with."""

    scene: Scene
    images: np.ndarray


def thin(scene: Scene, seed: int) -> Thinned:
    """y + n' and y - n', where n' is noise of y's own variance: their noises are independent, of twice the variance."""
    observation = scene.observation
    rng = np.random.default_rng([seed, *scene.name.encode()])
    valid, weights = observation.valid, observation.weights
    noise = np.where(valid, rng.standard_normal(weights.shape) / np.sqrt(np.where(valid, weights, 1)), 0)
    images = observation.images.astype(float)
    seen = replace(observation, images=(images + noise).astype(np.float32), weights=weights / 2)
    return Thinned(replace(scene, observations=(seen,)), (images - noise).astype(np.float32))


class Score(NamedTuple):
    """How well samples predict one blend.

    log_predictive: the mean log p(t | y) in nats of the light t in apertures of the other half, less what it would be
    if the truth were known. error, spread: a pixel, the squared error of the samples' mean and their variance, both
    over the noise's variance and as of infinitely many samples: equal if calibrated. chi2: a pixel, of the half that
    was sampled, the mean over samples: 1 where only noise is left. model: the samples' mean.
    """

    log_predictive: float
    error: float
    spread: float
    chi2: float
    model: np.ndarray


def score(
    expectation: Expectation, shard: Shard, halves: Mapping[str, np.ndarray], samples: int, seed: int
) -> Iterator[tuple[Scene, Score]]:
    """Scores each blend of a shard of thinned scenes with at least 4 samples.

    halves: the other halves' images (C, H, W), by name.
    """
    models: dict[int, list[np.ndarray]] = defaultdict(list)
    scales = shard.batch().band_scale
    for blends, drawn in expectation.draw(shard, samples, seed):
        for row, blend in enumerate(blends):
            _, height, width = shard.scenes[blend].observation.shape
            models[blend].append(drawn.models[0][row, :, :height, :width] * scales[blend][:, None, None])
    for blend, scene in enumerate(shard.scenes):
        yield scene, evaluate(scene, halves[scene.name], np.stack(models[blend]), seed)


def evaluate(scene: Scene, images: np.ndarray, models: np.ndarray, seed: int) -> Score:
    """Compares samples' models (S, C, H, W) with images (C, H, W) that they have not seen.

    The likelihood of thousands of pixels under a few samples is that of the best of them, and higher where samples
    scatter too little; that of a few numbers is not, once it is corrected for S (`log_gaussian`).
    """
    weights, number = scene.observation.weights.astype(float), max(int(scene.observation.valid.sum()), 1)
    mean, count, inverse = models.mean(0, dtype=float), len(models), np.sqrt(weights)
    variance = float(np.sum((inverse * models).var(0, ddof=1)) / number)
    error = float(np.sum((inverse * (images - mean)) ** 2) / number) - 1 - variance / count
    chi2 = float(np.sum(np.mean((inverse * (scene.observation.images - models)) ** 2, 0)) / number)
    y, x = np.indices(mean.shape[1:])
    light, noise = [], []
    for source in scene.sources:
        for width in APERTURES:
            w = np.exp(-0.5 * ((y - source.y) ** 2 + (x - source.x) ** 2) / width**2) * weights
            light.append(np.concatenate([[(w * images).sum((1, 2))], np.einsum("cyx,scyx->sc", w, models)]))
            noise.append(np.sum(w**2 / np.where(weights > 0, weights, 1), axis=(1, 2)))
    apertures, deviation = np.moveaxis(np.array(light), 1, 0), np.sqrt(np.array(noise))  # [1 + S, N, C], [N, C]
    seen = deviation > 0
    normal = np.random.default_rng([seed, *scene.name.encode()]).standard_normal(apertures[1:].shape)
    predicted = (apertures[1:] + deviation * normal)[:, seen] / deviation[seen]
    known = -0.5 * np.log(2 * np.pi) - 0.5
    logs = log_gaussian(apertures[0][seen] / deviation[seen], predicted) - known
    # A blend that is masked about all its sources has no score, in every iteration alike.
    return Score(float(logs.mean()) if seen.any() else 0.0, error, variance, chi2, mean.astype(np.float32))


def log_gaussian(truth: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(N,) log p of truth (N,) under the Gaussian that samples (S, N) are of, without bias by their finite number:
    the ensemble-adjusted ignorance score (Siegert et al. 2019, Q. J. R. Meteorol. Soc. 145, 129), in nats.

    Raises: ValueError for fewer than 4 samples.
    """
    n = len(samples)
    if n < 4:
        raise ValueError(f"expected at least 4 samples, received {n}")
    mean, variance = samples.mean(0), samples.var(0, ddof=1)
    half = (n - 1) / 2
    finite = float(tf.math.digamma(half)) - np.log(half) + 1 / n
    return -0.5 * (np.log(2 * np.pi * variance) + (n - 3) / (n - 1) * (truth - mean) ** 2 / variance - finite)
