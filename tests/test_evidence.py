"""Evidence of blends of Gaussian sources, whose closed form is N(y; A mu, A C A^T + 1), in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import multivariate_normal
from test_posterior import IMAGE, RANK, STAMP, World

from tfdeblend.diffusion.random import KeyedNormals, keys
from tfdeblend.diffusion.schedules import noise_levels
from tfdeblend.diffusion.steps import bridge, moment_matched
from tfdeblend.inference.evidence import Path, combine, over_scales


def paths(world: World, steps: int, number: int) -> np.ndarray:
    """(number,) estimates of log p(y)."""
    posterior = world.posterior(number, iterations=40)
    draws = KeyedNormals(
        tf.constant(keys(0, ["evidence"], number)), (number, world.sources, *STAMP), [IMAGE[:2]], RANK, tf.float64
    )

    @tf.function(autograph=False)
    def advance(x, sigma, after, count, path, last):
        here, there = (tf.fill([number, world.sources], level) for level in (sigma, after))
        mean, gain = posterior.denoise_with_gain(x, here)
        moved, x0 = moment_matched(posterior, x, here, there, draws.normals(count))
        expected = tf.where(last, mean + gain, bridge(x, mean + gain, here, there, 0.0))
        moved = tf.where(last, x0, moved)
        return moved, path.step(gain, moved - expected, here, there, count == 0)

    levels = noise_levels(30.0, 0.05, steps)
    x = world.stamps(np.tile(world.m, (number, 1))) + 30.0 * draws.normals(tf.constant(999))[1]
    path = Path.above(tf.fill([number, world.sources], tf.constant(levels[0], tf.float64)))
    for count, (sigma, after) in enumerate([*pairwise(levels), (levels[-1], levels[-1])]):
        ends = (tf.constant(level, tf.float64) for level in (sigma, after))
        x, path = advance(x, *ends, tf.constant(count), path, tf.constant(count == len(levels) - 1))
    residual = world.y - x.numpy().reshape(number, -1) @ world.a.T
    likelihood = -0.5 * (residual**2).sum(1) - 0.5 * len(world.y) * np.log(2 * np.pi)
    return likelihood - path.end().numpy()


@pytest.mark.parametrize("sources", [1, 2])
def test_paths_tell_the_evidence(sources: int):
    world = World(sources)
    law = multivariate_normal(world.a @ world.mu, world.a @ world.c @ world.a.T + np.eye(len(world.y)))
    exact = law.logpdf(world.y)
    found = paths(world, 32, 400)
    assert found.mean() == pytest.approx(exact, abs=0.1 + 3 * found.std() / 20)
    assert found.std() < 3
    assert combine(found, np.zeros((len(found), 0)), 0.2) == pytest.approx((found.mean(), found.std() / 20), rel=1e-2)


def test_scales_integrate_as_gaussians():
    """One number, its prior N(ln s, j^2), data N(f, e^2): the integral over ln s is 1 times the data's at its best."""
    jitter, error, f, s = 0.2, 0.1, 0.3, 0.15
    weight = jitter**2 / (jitter**2 + error**2)
    posterior = s + weight * (f - s), jitter * (1 - weight) ** 0.5
    at_fit = np.exp(-0.5 * (f - s) ** 2 / (jitter**2 + error**2)) / np.sqrt(2 * np.pi * (jitter**2 + error**2))
    samples = np.random.default_rng(0).normal(*posterior, 100000)[:, None] - s
    assert over_scales(samples, jitter) == pytest.approx(-np.log(at_fit), abs=0.02)
