"""A prior of another scale, and of one that is hardly known."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.denoisers import flux_scale
from tfdeblend.gaussian import GaussianDenoiser
from tfdeblend.rescaled import Rescaled

SHAPE = (2, 8, 8)
JITTER, FACTOR = 0.2, 3.0


def shape_of_one_kind(rng: np.random.Generator, width: float) -> tuple[np.ndarray, GaussianDenoiser]:
    """u of norm 1, and the prior of a u with a ~ N(1, width^2), next to nothing besides."""
    u = rng.standard_normal(SHAPE)
    u /= flux_scale(u)
    return u, GaussianDenoiser(u, np.full(SHAPE, 1e-12), width * u[None], scale_jitter=JITTER)


def test_rescaled_is_the_prior_of_larger_images():
    rng = np.random.default_rng(0)
    mean, diagonal, factor = rng.standard_normal(SHAPE), rng.uniform(0.1, 1, SHAPE), rng.standard_normal((3, *SHAPE))
    rescaled = Rescaled(GaussianDenoiser(mean, diagonal, factor), tf.constant(FACTOR, tf.float64))
    larger = GaussianDenoiser(FACTOR * mean, FACTOR**2 * diagonal, FACTOR * factor)
    x, sigma = tf.constant(rng.standard_normal(SHAPE)), tf.constant(0.7, tf.float64)
    (d, v), (expected, w) = rescaled.posterior(x, sigma), larger.posterior(x, sigma)
    np.testing.assert_allclose(d, expected, rtol=1e-12)
    np.testing.assert_allclose(rescaled.denoise(x, sigma), expected, rtol=1e-12)
    np.testing.assert_allclose(v.matvec(x), w.matvec(x), rtol=1e-10)
    np.testing.assert_allclose(rescaled.prior_variance(sigma), larger.prior_variance(sigma), rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
def test_an_amplitude_is_as_wide_as_noise_leaves_it(sigma: float):
    """V of images a u is that of a ~ N(r, width^2), though the denoiser has a known to r `scale_jitter`."""
    u, denoiser = shape_of_one_kind(np.random.default_rng(1), JITTER)
    width = 8.0
    rescaled = Rescaled(denoiser, tf.constant(FACTOR, tf.float64), tf.constant(width, tf.float64))
    assert rescaled.rank == denoiser.rank + 1
    d, v = rescaled.posterior(tf.constant(FACTOR * u), tf.constant(sigma, tf.float64))
    expected = 1 / (1 / width**2 + 1 / sigma**2)
    np.testing.assert_allclose(d, FACTOR * u, rtol=1e-9)
    np.testing.assert_allclose(tf.reduce_sum(u * v.matvec(tf.constant(u))), expected, rtol=1e-6)
    assert v.factor.shape[0] == rescaled.rank
