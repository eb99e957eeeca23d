"""Posterior denoisers and samplers against the closed forms of Gaussian priors, in float64.

With x ~ N(mu, C) and y = A x + n all is Gaussian: D_y(x_t) = m + S (S + sigma^2)^-1 (x_t - m), where m and S are the
posterior's mean and covariance. Every step is affine in x_t and its normals, so that what it does to a mean and a
covariance is read off unit vectors, without Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from likelihoods import Seen

from tfdeblend.diffusion import steps
from tfdeblend.diffusion.conditioning import (
    MMPS,
    ConvolvedLikelihood,
    GaussianConditioning,
    PosteriorDenoiser,
)
from tfdeblend.diffusion.denoisers import pixels
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.linear_gaussian import Normals, SourceCovariance, SourceOperator
from tfdeblend.diffusion.random import KeyedNormals, StepNormals, keys
from tfdeblend.diffusion.schedules import noise_levels
from tfdeblend.diffusion.steps import Step
from tfdeblend.forward.operators import Place
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.linalg.operator import LinearOperator
from tfdeblend.linalg.solvers import GMRES, ConjugateGradients

STAMP, RANK, IMAGE = (1, 4, 4), 3, (1, 6, 6)
PIXELS, SEEN = 16, 36


class Matrix(LinearOperator):
    """Any matrix as A, of stamps that lie side by side in a frame: [B, C, ..., F, F] -> [B, C, ..., S, S]."""

    def __init__(self, matrix: np.ndarray, sources: int):
        by_row = matrix.reshape(SEEN, sources, *STAMP[1:]).transpose(0, 2, 1, 3)
        self.matrix, self.side = tf.constant(by_row.reshape(SEEN, -1)), STAMP[1] * sources

    def forward(self, x):
        flat = tf.reshape(x[..., : STAMP[1], :], [-1, self.matrix.shape[1]])
        return tf.reshape(flat @ tf.transpose(self.matrix), [-1, *x.shape[1:-2], *IMAGE[1:]])

    def transpose(self, y):
        flat = tf.reshape(tf.reshape(y, [-1, SEEN]) @ self.matrix, [-1, 1, STAMP[1], self.side])
        return tf.pad(flat, [[0, 0], [0, 0], [0, self.side - STAMP[1]], [0, 0]])


class Problem(NamedTuple):
    """What a posterior denoiser asks of `BlendProblem`, of galaxies alone."""

    operator: SourceOperator
    data: tf.Tensor
    mean: Callable
    covariance: Callable


@dataclass
class World:
    """K Gaussian sources, one image, and the posterior in closed form."""

    sources: int
    strength: float = 1.5
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        mean, diagonal = rng.standard_normal(STAMP), np.exp(0.5 * rng.standard_normal(STAMP))
        factor = rng.standard_normal((RANK, *STAMP))
        self.denoiser = GaussianDenoiser(mean, diagonal, factor)
        rows = factor.reshape(RANK, -1)
        one = np.diag(diagonal.ravel()) + rows.T @ rows
        self.size = PIXELS * self.sources
        self.c = np.kron(np.eye(self.sources), one)
        self.mu = np.tile(mean.ravel(), self.sources)
        self.a = self.strength * rng.standard_normal((SEEN, self.size)) / np.sqrt(self.size)
        truth = self.mu + np.linalg.cholesky(self.c) @ rng.standard_normal(self.size)
        self.y = self.a @ truth + rng.standard_normal(SEEN)
        self.s = np.linalg.inv(np.linalg.inv(self.c) + self.a.T @ self.a)
        self.m = self.s @ (np.linalg.solve(self.c, self.mu) + self.a.T @ self.y)

    def posterior(
        self, batch: int = 1, conditioning: type[PosteriorDenoiser] = GaussianConditioning, iterations: int = 40
    ) -> PosteriorDenoiser:
        shape = [batch, self.sources, *STAMP]
        ones, none = tf.ones([batch, self.sources, 1, 1, 1], tf.float64), tf.zeros(shape, tf.float64)
        corners = tf.constant([[[0, STAMP[2] * i] for i in range(self.sources)]] * batch)
        place = Place(corners, STAMP[1], STAMP[1] * self.sources, tf.float64)
        exposure = Seen((0,), Matrix(self.a, self.sources), IMAGE, 1)
        operator = SourceOperator(place, [exposure], ones, none)
        data = tf.constant(np.broadcast_to(self.y, (batch, SEEN)))
        problem = Problem(operator, data, lambda x: x, lambda v: SourceCovariance(v, ones, none, none))
        solver = GMRES(iterations) if conditioning is MMPS else ConjugateGradients(max_steps=iterations)
        return conditioning(self.denoiser, problem, solver)

    def denoised(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """D_y."""
        return self.m + self.s @ np.linalg.solve(self.s + sigma**2 * np.eye(self.size), x - self.m)

    def stamps(self, flat: np.ndarray) -> tf.Tensor:
        return tf.constant(flat.reshape(-1, self.sources, *STAMP))

    def step(self, step: Step):
        """sigma, after -> (F, b, Q): one step takes N(mean, cov) to N(F mean + b, F cov F^T + Q)."""
        size, extra = self.size, RANK * self.sources
        number = 1 + size + size + extra + SEEN + size  # of zero, and unit vectors of all that goes in
        parts = np.split(np.eye(number)[:, 1:], np.cumsum([size, size, extra, SEEN]), 1)
        x, stamps, factor, images, back = (tf.constant(p) for p in parts)
        shape = [number, self.sources, *STAMP]
        normals = Normals(
            tf.reshape(stamps, shape),
            tf.reshape(factor, [number, self.sources, RANK]),
            tf.zeros([number, self.sources, 1], tf.float64),
            images,
        )
        noise = StepNormals(normals, tf.reshape(back, shape), tf.zeros([number, self.sources], tf.float64))
        posterior = self.posterior(number)

        @tf.function(autograph=False)
        def columns(sigma, after):
            levels = (tf.fill([number, self.sources], level) for level in (sigma, after))
            after_step, _ = step(posterior, tf.reshape(x, shape), *levels, noise)
            return tf.reshape(after_step, [number, size])

        def affine(sigma: float, after: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            out = columns(tf.constant(sigma, tf.float64), tf.constant(after, tf.float64)).numpy()
            moved = (out[1:] - out[0]).T
            return moved[:, :size], out[0], moved[:, size:] @ moved[:, size:].T

        return affine

    def chain(self, step: Step, steps: int, largest: float = 20.0, smallest: float = 0.02):
        """The distribution at `smallest`, from the exact one at `largest`: mean and covariance."""
        mean, cov = self.m, self.s + largest**2 * np.eye(self.size)
        levels, move = noise_levels(largest, smallest, steps), self.step(step)
        for sigma, after in pairwise(levels):
            f, b, q = move(sigma, after)
            mean, cov = f @ mean + b, f @ cov @ f.T + q
        return mean, cov, self.s + smallest**2 * np.eye(self.size)


@pytest.mark.parametrize("sources", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 30.0])
@pytest.mark.parametrize("conditioning", [GaussianConditioning, MMPS])
def test_posterior_denoiser_is_exact(sources: int, sigma: float, conditioning: type[PosteriorDenoiser]):
    world = World(sources)
    x = np.random.default_rng(1).standard_normal((2, world.size)) * sigma + world.m
    levels = tf.fill([2, sources], tf.constant(sigma, tf.float64))
    found = world.posterior(2, conditioning, 36).denoise(world.stamps(x), levels).numpy().reshape(2, -1)
    np.testing.assert_allclose(found, np.stack([world.denoised(row, sigma) for row in x]), atol=1e-6)


def test_the_score_is_that_of_the_posterior():
    """x_t given y is N(m, S + sigma^2)."""
    world, sigma = World(2), 0.5
    x = np.random.default_rng(1).standard_normal(world.size) + world.m
    levels = tf.fill([1, 2], tf.constant(sigma, tf.float64))
    expected = np.linalg.solve(world.s + sigma**2 * np.eye(world.size), world.m - x)
    np.testing.assert_allclose(np.ravel(world.posterior().score(world.stamps(x), levels)), expected, atol=1e-8)


def test_convolved_likelihood_is_exact_under_a_flat_prior():
    """D of a flat prior is x_t itself, and then the likelihood of x_t is N(y; A x_t, 1 + sigma^2 A A^T)."""
    world = World(2)
    wide = GaussianDenoiser(np.zeros(STAMP), np.full(STAMP, 1e12), np.zeros((1, *STAMP)))
    world.denoiser, sigma = wide, 0.7
    x = np.random.default_rng(2).standard_normal(world.size)
    levels = tf.fill([1, 2], tf.constant(sigma, tf.float64))
    found = world.posterior(1, ConvolvedLikelihood).denoise(world.stamps(x), levels).numpy().ravel()
    inner = np.eye(SEEN) + sigma**2 * world.a @ world.a.T
    expected = x + sigma**2 * world.a.T @ np.linalg.solve(inner, world.y - world.a @ x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_convolved_likelihood_goes_towards_the_data():
    """It is not exact here, but lowers the misfit of the prior's own mean."""
    world, sigma = World(2), 0.5
    x = world.stamps(np.random.default_rng(3).standard_normal(world.size) * sigma + world.mu)
    levels = tf.fill([1, 2], tf.constant(sigma, tf.float64))
    posterior = world.posterior(1, ConvolvedLikelihood)
    misfit = [
        float(tf.reduce_sum((posterior.data - posterior.operator.forward(mean)) ** 2))
        for mean in (posterior.denoise(x, levels), world.denoiser.denoise(x, levels))
    ]
    assert misfit[0] < misfit[1]


@pytest.mark.parametrize("number", [1, 4, 16, 64])
def test_moment_matched_steps_are_exact(number: int):
    mean, cov, expected = (world := World(2)).chain(steps.moment_matched, number)
    np.testing.assert_allclose(mean, world.m, atol=1e-8)
    np.testing.assert_allclose(cov, expected, atol=1e-8)


@pytest.mark.parametrize("step", [steps.ancestral, steps.euler_maruyama, steps.euler_maruyama_vp])
def test_other_steps_converge_at_first_order(step: Step):
    """Twice the steps: the error of the covariance falls by 2."""
    errors = []
    for number in (64, 128):
        _mean, cov, expected = World(1).chain(step, number)
        errors.append(np.abs(cov - expected).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.3)


def test_what_has_no_covariance_has_no_draws():
    world = World(1)
    x, levels = world.stamps(world.m), tf.ones([1, 1], tf.float64)
    with pytest.raises(TypeError, match="expected a conditioning that has draws, received MMPS"):
        world.posterior(1, MMPS).draw(x, levels, None)


class MixtureDenoiser(GaussianDenoiser):
    """Of N(m, d) / 2 + N(-m, d) / 2, independent pixels: two Gaussians, whose posterior is two Gaussians again."""

    def __init__(self, mean: np.ndarray, diagonal: np.ndarray):
        super().__init__(mean, diagonal, np.zeros((1, *mean.shape)))

    def posterior(self, x, sigma):
        noise, d = pixels(sigma) ** 2, self.prior.diagonal
        odds = tf.reduce_sum(2 * x * self.mean / (d + noise), [-3, -2, -1])
        share = pixels(tf.sigmoid(odds))
        means = [(noise * sign * self.mean + d * x) / (d + noise) for sign in (1, -1)]
        between = tf.sqrt(share * (1 - share)) * (means[0] - means[1])
        variance = noise * d / (d + noise) + tf.zeros_like(x)
        return share * means[0] + (1 - share) * means[1], DiagonalPlusLowRank(variance, between[..., None, :, :, :])


def mixture_samples(number_of_steps: int, strength: float = 0.2, number: int = 3000) -> tuple[np.ndarray, float]:
    """Where along m samples lie, over |m|^2; and the exact weight of the component at 1."""
    world = World(1, strength=strength, seed=1)
    rng = np.random.default_rng(6)
    mean, diagonal = 0.6 * rng.standard_normal(STAMP), np.full(STAMP, 0.05)
    world.denoiser = MixtureDenoiser(mean, diagonal)
    m = mean.ravel()
    world.y = world.a @ m + rng.standard_normal(SEEN)
    total = np.linalg.inv(0.05 * world.a @ world.a.T + np.eye(SEEN))
    exact = 1 / (1 + np.exp(-2 * world.y @ total @ world.a @ m))
    posterior = world.posterior(number, iterations=20)
    draws = KeyedNormals(tf.constant(keys(0, ["mixture"], number)), (number, 1, *STAMP), [IMAGE[:2]], 1, tf.float64)

    @tf.function(autograph=False)
    def advance(x, sigma, after, count):
        levels = (tf.fill([number, 1], level) for level in (sigma, after))
        return steps.moment_matched(posterior, x, *levels, draws.normals(count))[0]

    x = 20 * draws.normals(tf.constant(999))[1]
    for count, (sigma, after) in enumerate(pairwise(noise_levels(20.0, 0.02, number_of_steps))):
        x = advance(x, tf.constant(sigma, tf.float64), tf.constant(after, tf.float64), tf.constant(count))
    return x.numpy().reshape(number, -1) @ m / (m @ m), exact


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.1, 0.2, 0.8])
def test_a_mixture_of_two_is_sampled_with_its_weights(strength: float):
    """Beyond Gaussians p(x | x_t, y) is taken for one all the same, which leaves the less likely component up to a
    twentieth too much (of 0.13: 0.17), whatever the number of steps; nothing is left between the two."""
    along, exact = mixture_samples(16, strength, 1000)
    assert (along > 0).mean() == pytest.approx(exact, abs=0.05 + 3 * np.sqrt(exact * (1 - exact) / 1000))
    assert np.abs(along[along > 0]).mean() == pytest.approx(1, abs=0.1)
    assert (np.abs(along) < 0.3).mean() < 0.01


# -- random numbers


def test_draws_know_neither_batch_nor_bucket():
    small = KeyedNormals(tf.constant(keys(3, ["a", "b"], 2)), (4, 2, 1, 8, 8), [(1, 48), (2, 32)], 3)
    large = KeyedNormals(tf.constant(keys(3, ["c", "b"], 2)), (4, 5, 1, 8, 8), [(1, 96)], 3)
    (one, *rest), (two, *others) = (draws.normals(tf.constant(2)) for draws in (small, large))
    first = tf.reshape(one.data[:, : 48**2], [4, 48, 48]), tf.reshape(two.data, [4, 96, 96])
    pairs = [first, *zip([*one[:-1], *rest], [*two[:-1], *others], strict=True)]
    for few, many in pairs:
        few, many = few.numpy()[2:], many.numpy()[2:]
        np.testing.assert_array_equal(few, many[tuple(slice(n) for n in few.shape)])


def test_draws_are_independent_standard_normals():
    draws = KeyedNormals(tf.constant(keys(0, [str(i) for i in range(64)], 2)), (128, 2, 2, 8, 8), [(2, 32), (1, 24)], 3)
    parts = [tf.reshape(p, [128, -1]) for step in (0, 1) for p in tf.nest.flatten(draws.normals(tf.constant(step)))]
    flat = tf.concat(parts, 1).numpy()
    assert flat.mean() == pytest.approx(0, abs=4 / np.sqrt(flat.size))
    assert flat.var() == pytest.approx(1, abs=6 / np.sqrt(flat.size))
    correlation = flat.T @ flat / len(flat)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 7 / np.sqrt(len(flat))  # 6 million pairs
