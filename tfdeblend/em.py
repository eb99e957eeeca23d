"""Expectation-maximisation of the prior: posterior samples of all blends, and how well their prior foretells data.

A lap takes the prior p_k(x) to the mean over the blends of p(x | y, p_k), whose fixed points maximise the evidence of
the blends (Rozet et al. 2024, arXiv:2405.13712). Here are the E-step, a pure function of prior, shard and seed, the
laps of a Gaussian prior, whose M-step is closed, and held-out scores; `training.train_em` fits networks in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
import tensorflow as tf

from tfdeblend import initialize, sample_batches, shards
from tfdeblend.batch import BatchShape, BlendBatch, scene_shape
from tfdeblend.deblender import SEED, brightness, by_count, first_latents, merge_buckets, stamp_side
from tfdeblend.denoisers import Denoiser, flux_scale
from tfdeblend.gaussian import STAMPS, GaussianDenoiser
from tfdeblend.mapfit import MapFit
from tfdeblend.nonparametric import NonparametricFit
from tfdeblend.priors import PRIORS
from tfdeblend.sample_batches import STAMPS_AT_ONCE
from tfdeblend.sampling import NEAR, PosteriorSampler, SampleOptions, Samples
from tfdeblend.scene import Scene
from tfdeblend.seeded import Seed

BLENDS = 16  # of a shard, at most
LAPS_OF_FACTORS = 8  # of factor analysis in one of blends


@dataclass(frozen=True, eq=False)
class Shard:
    """Blends of one shape, and the closed-form fit that seeds their samples: what an E-step does at once.

    seed: `Seed` of NumPy arrays, a row for each scene.
    """

    scenes: tuple[Scene, ...]
    shape: BatchShape
    seed: Seed

    @property
    def names(self) -> list[str]:
        return [scene.name for scene in self.scenes]

    def batch(self) -> BlendBatch:
        return BlendBatch.build(self.scenes, self.shape._replace(blends=len(self.scenes)))

    def signal(self) -> np.ndarray:
        """(B, K): norms of the seeds in units of the noise."""
        return flux_scale(self.seed.stamps)

    def write(self, path: Path) -> None:
        """As an .npz archive, without the scenes."""
        arrays = {"names": np.array(self.names), "shape": np.array(self.shape, float), **self.seed._asdict()}
        shards.write_whole(path, lambda temporary: shards.write_npz(temporary, arrays))

    @classmethod
    def read(cls, path: Path, scenes: Mapping[str, Scene]) -> Shard:
        """What `write` wrote, with its scenes by name."""
        with np.load(path) as archive:
            sizes = dict(zip(BatchShape._fields, archive["shape"].tolist(), strict=True))
            shape = BatchShape(**{name: kind(sizes[name]) for name, kind in get_type_hints(BatchShape).items()})
            seed = Seed(*(archive[name] for name in Seed._fields))
            return cls(tuple(scenes[name] for name in archive["names"].tolist()), shape, seed)


def plan(scenes: Sequence[Scene], side: int, model_sigma: float) -> list[tuple[BatchShape, list[int]]]:
    """Which scenes go into which shard, by index. side, model_sigma: of the prior's stamps."""
    buckets: dict[BatchShape, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        shape = scene_shape(scene, stamp_side(scene, side + 2), model_sigma)
        buckets[shape._replace(blends=BLENDS)].append(index)
    found = []
    for shape, members in sorted(merge_buckets(buckets).items()):
        members = sorted(members, key=lambda index: (len(scenes[index].sources), brightness(scenes[index])))
        found += [(shape, members[first : first + BLENDS]) for first in range(0, len(members), BLENDS)]
    return found


class Seeding:
    """Fits shards' blends in closed form, or, after that, without a profile; each shape is compiled once."""

    def __init__(self, nonparametric: bool = False, position_sigma: float = 0.5):
        self.nonparametric, self.position_sigma = nonparametric, position_sigma
        self.fits: dict[BatchShape, tuple[MapFit, NonparametricFit]] = {}

    def __call__(self, scenes: Sequence[Scene], shape: BatchShape) -> Shard:
        if shape not in self.fits:
            fit = MapFit(PRIORS[SEED](shape.bands, self.position_sigma), shape)
            self.fits[shape] = fit, NonparametricFit(fit)
        fit, refine = self.fits[shape]
        batch = BlendBatch.build(scenes, shape)
        result = fit(batch, first_latents(fit.prior, shape, [initialize.moments(scene) for scene in scenes]))
        if self.nonparametric:
            result = refine(batch, result)
        return Shard(tuple(scenes), shape, Seed(*(part.numpy()[: len(scenes)] for part in Seed.of(result))))


class Stamps(NamedTuple):
    """Sampled galaxies: images (N, C, P, P) at unit scale, the scene's name (N,) and the source's index there (N,)."""

    images: np.ndarray
    scene: np.ndarray
    source: np.ndarray

    def write(self, path: Path) -> None:
        """As a TFRecord file, which `datasets.read_stamps` reads."""
        rows = ({"stamp": i, "scene": np.array([s]), "source": np.array(k)} for i, s, k in zip(*self, strict=True))
        shards.write_whole(path, lambda temporary: shards.write_records(temporary, rows))


class Expectation:
    """Posterior samples of shards under one prior, whose weights may change between laps: a shape is compiled once."""

    def __init__(self, denoiser: Denoiser, options: SampleOptions):
        self.denoiser, self.options = denoiser, options
        self.samplers: dict[BatchShape, PosteriorSampler] = {}

    def use(self, prior: Denoiser) -> None:
        """Takes over the weights of another prior of the same kind."""
        self.denoiser.assign(prior)  # type: ignore[attr-defined]

    def draw(self, shard: Shard, samples: int, seed: int) -> Iterator[tuple[list[int], Samples]]:
        """All samples of all its blends, some rows at a time: which blends these are of, and NumPy arrays."""
        for shape, members in by_count(shard.shape, shard.scenes).items():
            scenes = [shard.scenes[row] for row in members]
            rows = min(max(STAMPS_AT_ONCE // shape.sources, 1), shard.shape.blends * samples)
            if (shape := shape._replace(blends=rows)) not in self.samplers:
                self.samplers[shape] = PosteriorSampler(shape, self.denoiser, self.options, NEAR)
            own = Seed(*(tf.constant(part[members]) for part in shard.seed))
            batch = BlendBatch.build(scenes, shard.shape._replace(blends=len(scenes)))
            draw = sample_batches.learned(self.samplers[shape], batch, own, scenes, samples, seed)
            for row, drawn in sample_batches.in_turn(draw, rows, range(len(members)), samples):
                yield [members[i] for i in row], drawn

    def stamps(self, shard: Shard, samples: int, seed: int, least_signal: float = 0.0) -> Stamps:
        """Samples of the galaxies that the prior knows and whose seed has `least_signal`, each at unit norm."""
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


def lap_seed(seed: int, lap: int) -> int:
    """The seed of a lap's draws."""
    return int(np.random.SeedSequence([seed, lap]).generate_state(1)[0] >> 1)


def seed_stamps(shard: Shard, side: int, least_signal: float = 0.0) -> np.ndarray:
    """(N, C, side, side) the seeds' own galaxies at unit scale, cut about their stamps' middle."""
    stamps, first = shard.seed.stamps, shard.shape.stamp // 2 - side // 2
    cut = stamps[..., first : first + side, first : first + side]
    norm = flux_scale(cut)
    galaxy = np.zeros(norm.shape, bool)
    for row, scene in enumerate(shard.scenes):
        galaxy[row, : len(scene.sources)] = [source.kind == "galaxy" for source in scene.sources]
    keep = galaxy & (norm >= max(least_signal, 1e-6))
    unit = cut[keep] / norm[keep][:, None, None, None]
    units = np.repeat(shard.batch().band_unit.numpy()[:, None], norm.shape[1], 1)[keep]
    unit = unit / units[:, :, None, None]
    return unit / flux_scale(unit)[:, None, None, None]


def gaussian_lap(expectation: Expectation, found: Sequence[Shard], seed: int, least_signal: float = 0.0) -> Stamps:
    """One lap of a Gaussian prior, the expectation's, which is changed in place; gives the E-step's samples.

    The M-step is factor analysis: cutting a covariance to a rank may lower the evidence, this does not.
    """
    prior = expectation.denoiser
    assert isinstance(prior, GaussianDenoiser)
    parts = [expectation.stamps(shard, 1, seed, least_signal) for shard in found]
    every = Stamps(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    prior.assign(fit_gaussian(every.images, prior, seed))
    return every


def fit_gaussian(images: np.ndarray, like: Denoiser, seed: int, rank: int | None = None) -> GaussianDenoiser:
    """Of stamps (N, C, P, P) at unit norm, whose scales a prior `like` that one takes to be wrong by its jitter."""
    scale = np.exp(like.scale_jitter * np.random.default_rng(seed).standard_normal(len(images)))
    kind = {name: getattr(like, name) for name in STAMPS}
    jittered = (images * scale[:, None, None, None]).astype(np.float32)
    return GaussianDenoiser.fit(jittered, rank or like.rank, LAPS_OF_FACTORS, **kind)


def dispersion(images: np.ndarray) -> float:
    """Of stamps (N, C, P, P) at unit norm: the trace of their covariance, between 0 (all alike) and 1."""
    mean = images.mean(0, dtype=float)
    return float(np.mean(np.einsum("ncyx,ncyx->n", images, images, dtype=float)) - np.sum(mean**2))


# -- held-out scores


class Thinned(NamedTuple):
    """Two independent observations of half the depth, made of one: a scene to sample, images (C, H, W) to judge by."""

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
    return Thinned(replace(scene, observation=seen), (images - noise).astype(np.float32))


class Score(NamedTuple):
    """Of one blend. log_predictive: log p(y' | y) in nats above -N / 2 - log(sqrt(2 pi) sigma) of N pixels of pure
    noise, by S samples: the logarithm of their mean likelihood. chi2: a pixel, of their mean. model: it, (C, H, W)."""

    log_predictive: float
    chi2: float
    model: np.ndarray


def score(expectation: Expectation, shard: Shard, judged: Mapping[str, np.ndarray], samples: int, seed: int):
    """Yields (scene, Score) of a shard of thinned scenes; judged: their other images, by name."""
    models: dict[int, list[np.ndarray]] = defaultdict(list)
    scales = shard.batch().band_scale
    for blends, drawn in expectation.draw(shard, samples, seed):
        for row, blend in enumerate(blends):
            _, height, width = shard.scenes[blend].observation.shape
            models[blend].append(drawn.model[row, :, :height, :width] * scales[blend][:, None, None])
    for blend, scene in enumerate(shard.scenes):
        weights, images, number = scene.observation.weights, judged[scene.name], scene.observation.valid.sum()
        chi2 = np.array([np.sum(weights * (images - model) ** 2.0) for model in models[blend]])
        mean = np.mean(models[blend], 0)
        least = chi2.min()
        log_mean = np.log(np.mean(np.exp((least - chi2) / 2))) - least / 2
        left = float(np.sum(weights * (images - mean) ** 2.0) / max(number, 1))
        yield scene, Score(float(log_mean + number / 2), left, mean.astype(np.float32))
