"""EXPERIMENTAL: the evidence log p(y) of a blend from the paths of posterior samples, for comparing models of it.

    log p(y) = E[log p(y | x)] - KL(p(x | y) || p(x)),  x ~ p(x | y)

The divergence follows from how far the data pull the denoiser at every noise level sigma of the way,

    KL = 1/2 int E |D_y(x_t) - D(x_t)|^2 d(1 / sigma^2),

which is what Girsanov's theorem says of the two reverse diffusions (and Guo, Shamai & Verdu 2005 of Gaussian channels).
Nothing has to be normalised, and a step costs one more solve. Of a single path the terms scatter by the square root
of the number of modes that the data determine; most of that is the noise which the path itself was driven by, and is
taken off: its mean is zero whatever the factor. With learned priors its errors are not honest yet: docs/sampling.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.conditioning import GaussianConditioning
from tfdeblend.diffusion.denoisers import PriorDenoiser, flux_scale
from tfdeblend.diffusion.initial import BlendProblem, InitialFit
from tfdeblend.diffusion.schedules import BlendSchedule
from tfdeblend.diffusion.steps import bridge, moment_matched
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference import sample_batches
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions
from tfdeblend.linalg.solvers import ConjugateGradients

WIDEST = 0.9  # of the prior's variance of a log flux scale: beyond it, the posterior's cannot be distinguished from it
STEPS = 24
LEVELS = BlendSchedule(largest=1.0, smallest=0.1)  # they reach further: what they leave out the divergence lacks
SOLVER = ConjugateGradients(rtol=1e-5, max_steps=300)


class Path(NamedTuple):
    """log p(path | y) / p(path) of B paths down to the noise levels sigma [B, K].

    divergence: [B] its mean, the integral so far. driven: [B] the rest, of mean zero. pull: [B, K], at sigma:
    |D_y - D|^2 / sigma^2.
    """

    divergence: tf.Tensor
    driven: tf.Tensor
    pull: tf.Tensor
    sigma: tf.Tensor

    @classmethod
    def above(cls, sigma: tf.Tensor) -> Path:
        """Starts at the first level [B, K], before its denoiser is known."""
        return cls(0 * sigma[:, 0], 0 * sigma[:, 0], 0 * sigma, sigma)

    def step(self, gain: tf.Tensor, move: tf.Tensor, sigma: tf.Tensor, after: tf.Tensor, first: tf.Tensor) -> Path:
        """Goes from the level before to sigma, by the trapezoidal rule in log sigma; and adds the noise of the step to
        `after`.

        Above the first level D_y - D is taken to be constant. The driven part's scale lies between both levels': of
        what the data leave open a step moves by sigma, of what they settle by `after`.

        Args:
          gain: D_y - D at x_t. move: x_s - E[x_s | x_t, y]. Both [B, K, C, P, P]; levels [B, K].
        """
        pull = tf.reduce_sum(gain**2, [2, 3, 4]) / sigma**2
        area = tf.where(first, 0.5 * pull, 0.5 * (self.pull + pull) * tf.math.log(self.sigma / sigma))
        driven = tf.reduce_sum(gain * move, [2, 3, 4]) / (sigma * after)
        return Path(self.divergence + tf.reduce_sum(area, 1), self.driven + tf.reduce_sum(driven, 1), pull, sigma)

    def end(self) -> tf.Tensor:
        """Gives all of it [B]. Below the last level |D_y - D| goes with sigma^2."""
        return self.divergence + self.driven + 0.5 * tf.reduce_sum(self.pull, 1)


class PathEvidence(NamedTuple):
    """What one path a row says.

    log_evidence: [N] of whitened data, NaN where a galaxy is beyond the prior. log_scale: [N, K] of the sample's norms
    at unit scale.
    """

    log_evidence: tf.Tensor
    log_scale: tf.Tensor


class EvidenceSampler:
    """Follows paths of posterior samples whose flux scales and positions are the initial fit's; compiled for one shape.

    Args:
      shape, denoiser: as of `PosteriorSampler`. steps: of a path.
    """

    def __init__(self, shape: BatchShape, denoiser: PriorDenoiser, steps: int = STEPS):
        options = SampleOptions(steps, LEVELS, solver=SOLVER, unknown_scale=None)
        self.sampler, self.shape, self.denoiser = PosteriorSampler(shape, denoiser, options), shape, denoiser
        self._run = tf.function(self._follow, autograph=False)

    def __call__(self, tensors: Tensors, fit: InitialFit, keys: tf.Tensor) -> PathEvidence:
        """Follows one path a row: a pure function of the row and its key ([N] int64, see `random.keys`)."""
        return self._run(tensors, fit, keys)

    def _follow(self, tensors: Tensors, fit: InitialFit, keys: tf.Tensor) -> PathEvidence:
        sampler, random, steps = self.sampler, self.sampler.normals(keys), self.sampler.options.steps
        problem = BlendProblem(tensors, self.shape, fit, self.denoiser.stamp_shape[1], sampler.least_norm)
        first = random.normals(tf.constant(0))
        start = sampler.start(problem, first.back, first.scale)
        posterior = sampler.posterior(problem, start)
        assert isinstance(posterior, GaussianConditioning)
        levels = [sampler.level(problem, index, start.scale) for index in range(steps)]
        sigmas = tf.stack([*levels, levels[-1]])

        def advance(count: tf.Tensor, x: tf.Tensor, path: Path) -> tuple[tf.Tensor, tf.Tensor, Path]:
            sigma, after, normals = sigmas[count], sigmas[count + 1], random.normals(count + 1)
            mean, gain = posterior.denoise_with_gain(x, sigma)
            moved, _ = moment_matched(posterior, x, sigma, after, normals)
            driven = moved - bridge(x, mean + gain, sigma, after, 0.0)
            return count + 1, moved, path.step(problem.galaxy * gain, driven, sigma, after, count == 0)

        loop = [tf.constant(0), start.x, Path.above(levels[0])]
        _, x, path = tf.while_loop(lambda count, *_: count < steps - 1, advance, loop)
        mean, gain = posterior.denoise_with_gain(x, levels[-1])
        x0 = posterior.draw(x, levels[-1], first.draw)
        end = tf.constant(steps == 1)
        path = path.step(problem.galaxy * gain, x0 - (mean + gain), levels[-1], levels[-1], end)
        log_evidence = log_likelihood(problem, x0) - path.end()
        beyond, scale = tf.reduce_any(problem.large[:, :, 0, 0, 0] > 0, 1), flux_scale(x0)
        return PathEvidence(
            tf.where(beyond, np.nan * log_evidence, log_evidence),
            tf.where(scale > 0, tf.math.log(tf.maximum(scale, 1e-30)), tf.zeros_like(scale)),
        )


def log_likelihood(problem: BlendProblem, x: tf.Tensor) -> tf.Tensor:
    """Gives log p(y | galaxies x) [B] in nats, y in whitened units; fluxes of stars are integrated out."""
    residual, update = problem.data - problem.operator.forward(problem.mean(x)), problem.operator.update()
    chi2 = tf.reduce_sum(residual * update.solve(residual), 1)
    logdet = tf.cast(update.logdet(), chi2.dtype)
    return problem.likelihood.log_normalisation() - 0.5 * (chi2 + logdet)


def estimate(
    sampler: EvidenceSampler, scenes: Sequence[Scene], batch: Batch, fit: InitialFit, samples: int, seed: int = 0
) -> list[tuple[float, float]]:
    """Gives log p(y) of each scene in nats, y in the scene's units, and its standard error over the samples.

    Raises: ValueError for scenes of several observations.

    Args:
      scenes: of `batch`, in its order. fit: their initial fit. samples: paths of each, better 8 or more.
    """
    if len(sampler.shape.exposures) > 1:
        raise ValueError(f"expected scenes of one observation, received {len(sampler.shape.exposures)}")
    names = [scene.name for scene in scenes]
    draw = sample_batches.by_diffusion(sampler, batch.tensors, fit, names, samples, seed)
    paths: list[list[float]] = [[] for _ in scenes]
    scales: list[list[np.ndarray]] = [[] for _ in scenes]
    for blends, found in sample_batches.in_turn(draw, sampler.shape, range(len(scenes)), samples):
        for row, blend in enumerate(blends):
            paths[blend].append(float(found.log_evidence[row]))
            scales[blend].append(found.log_scale[row, : len(scenes[blend].sources)])
    values = []
    for scene, scale, path, log_scale in zip(scenes, batch.band_scale, paths, scales, strict=False):
        galaxies = [source.kind != "point" for source in scene.sources]
        unit = float(scene.observation.valid.sum((1, 2)) @ np.log(scale))
        value, error = combine(np.array(path), np.stack(log_scale)[:, galaxies], sampler.denoiser.scale_jitter)
        values.append((value - unit, error))
    return values


def over_scales(log_scale: np.ndarray, jitter: float) -> float:
    """Integrates p(y | s) over ln s: its log in units of p(y | the fit's s), for flux scales s of K galaxies.

    The prior knows a galaxy's log flux to `jitter` J about ln s, so that p(y | s) is a Gaussian in ln s about what the
    data say. It is read off the samples' log scales (S, K) under the fit's s, of mean o and covariance V, by Bayes'
    theorem for Gaussians: o^T (J^2 - V)^-1 o / 2 + log det(2 pi J^4 (J^2 - V)^-1) / 2. Neighbours' scales are
    anticorrelated, as V shows.
    """
    count = log_scale.shape[1]
    if count == 0 or jitter == 0:
        return 0.0
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(log_scale.T)))
    left = jitter**2 - np.clip(values, 0, WIDEST * jitter**2)
    along = vectors.T @ log_scale.mean(0)
    return float(0.5 * np.sum(along**2 / left) + 0.5 * np.sum(np.log(2 * np.pi * jitter**4 / left)))


def combine(paths: np.ndarray, log_scale: np.ndarray, jitter: float) -> tuple[float, float]:
    """Gives log p(y) in nats and its standard error by the jackknife, from S paths (S,), their log scales (S, K)."""
    number = len(paths)

    def value(rows: np.ndarray) -> float:
        return float(paths[rows].mean()) + over_scales(log_scale[rows], jitter)

    every = np.arange(number)
    if number < 3:
        return value(every), float("nan")
    left_out = np.array([value(every != row) for row in every])
    return value(every), float(np.sqrt((number - 1) * left_out.var()))
