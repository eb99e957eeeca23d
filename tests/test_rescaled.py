"""Priors of another flux scale, and of an open one."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.unknown_scale import OpenScale, Rescaled

SHAPE = (2, 8, 8)
FACTOR = 3.0


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


def test_an_open_scale_is_as_wide_as_the_noise():
    """Of galaxies that differ by nothing but their scale: x = r m, ln r of spread j; then x_t tells r to sigma."""
    jitter, sigma = 0.2, 0.7
    mean = np.zeros(SHAPE)
    mean[0, 4, 4] = 1
    prior = GaussianDenoiser(mean, np.full(SHAPE, 1e-12), jitter * mean[None], scale_jitter=jitter)
    x = 1.1 * mean + sigma * np.random.default_rng(1).standard_normal(SHAPE)  # a direction along x_t would not do
    d, v = OpenScale(prior).posterior(tf.constant(x), tf.constant(sigma, tf.float64))
    share = sigma**2 / np.hypot(sigma, jitter)
    expected = (jitter * sigma) ** 2 / (jitter**2 + sigma**2) * mean + (share * d.numpy()) ** 2
    np.testing.assert_allclose(v.variance, expected, atol=1e-9)
    one = OpenScale(prior).posterior(tf.constant(mean), tf.constant(sigma, tf.float64))[1]
    np.testing.assert_allclose(one.variance[0, 4, 4], sigma**2, rtol=1e-6)
    assert v.rank == OpenScale(prior).rank == 2
