"""Priors of an unknown flux scale."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from simulations import simulate

from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.linear_gaussian import Normals
from tfdeblend.diffusion.unknown_scale import ScaledDenoiser, UnknownScale, amplitudes
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import scene_shape

SHAPE = (2, 8, 8)
FACTOR = 3.0


def test_scaled_is_the_prior_of_larger_images():
    rng = np.random.default_rng(0)
    mean, diagonal, factor = rng.standard_normal(SHAPE), rng.uniform(0.1, 1, SHAPE), rng.standard_normal((3, *SHAPE))
    scaled = ScaledDenoiser(GaussianDenoiser(mean, diagonal, factor), tf.constant(FACTOR, tf.float64))
    larger = GaussianDenoiser(FACTOR * mean, FACTOR**2 * diagonal, FACTOR * factor)
    x, sigma = tf.constant(rng.standard_normal(SHAPE)), tf.constant(0.7, tf.float64)
    (d, v), (expected, w) = scaled.posterior(x, sigma), larger.posterior(x, sigma)
    np.testing.assert_allclose(d, expected, rtol=1e-12)
    np.testing.assert_allclose(scaled.denoise(x, sigma), expected, rtol=1e-12)
    np.testing.assert_allclose(v.matvec(x), w.matvec(x), rtol=1e-10)
    np.testing.assert_allclose(scaled.prior_variance(sigma), larger.prior_variance(sigma), rtol=1e-12)


def test_an_unknown_scale_is_as_wide_as_the_noise():
    """Of galaxies that differ by nothing but their scale: x = r m, ln r of spread j; then x_t gives r to sigma."""
    jitter, sigma = 0.2, 0.7
    mean = np.zeros(SHAPE)
    mean[0, 4, 4] = 1
    prior = GaussianDenoiser(mean, np.full(SHAPE, 1e-12), jitter * mean[None], scale_jitter=jitter)
    x = 1.1 * mean + sigma * np.random.default_rng(1).standard_normal(SHAPE)  # a direction along x_t would not do
    widened = ScaledDenoiser(prior, tf.constant(1.0, tf.float64), True)
    d, v = widened.posterior(tf.constant(x), tf.constant(sigma, tf.float64))
    share = sigma**2 / np.hypot(sigma, jitter)
    expected = (jitter * sigma) ** 2 / (jitter**2 + sigma**2) * mean + (share * d.numpy()) ** 2
    np.testing.assert_allclose(v.variance, expected, atol=1e-9)
    one = widened.posterior(tf.constant(mean), tf.constant(sigma, tf.float64))[1]
    np.testing.assert_allclose(one.variance[0, 4, 4], sigma**2, rtol=1e-6)
    assert v.rank == widened.rank == 2


def test_scales_are_drawn_about_the_norm_and_no_smaller_than_least():
    x0 = tf.ones([1, 3, *SHAPE], tf.float64) * tf.constant([1e-3, 1.0, 1e4], tf.float64)[None, :, None, None, None]
    normals, least = tf.constant([[0.0, 1.0, 0.0]], tf.float64), tf.constant([[0.5, 0.0, 0.0]], tf.float64)
    drawn = UnknownScale().draw(x0, 0.2, normals, least)
    np.testing.assert_allclose(drawn, [[0.5, np.exp(0.2) * np.prod(SHAPE) ** 0.5, 100]], rtol=1e-12)


def test_amplitudes_are_those_of_a_linear_gaussian_problem():
    """In a band it is N(C (U^T y + 1 / w^2), C), C = (U^T U + 1 / w^2)^-1, given the shapes u."""
    scene, width, draws = simulate()[0], 0.3, 1000
    shape = scene_shape(scene, 48)._replace(blends=1)
    likelihood = Likelihood(Batch.build([scene], shape).tensors, shape)
    side = shape.exposures[0].side
    rng = np.random.default_rng(0)
    shapes = rng.exponential(0.01, (1, shape.sources, shape.bands, side, side)).astype(np.float32)
    shapes[:, len(scene.sources) :] = 0
    best = amplitudes(likelihood, (tf.constant(shapes),), width).numpy()[0]
    whiten = likelihood.exposures[0].noise.whiten.forward
    y = whiten(likelihood.exposures[0].images).numpy()[0]
    draw = tf.function(lambda *given: amplitudes(likelihood, (tf.constant(shapes),), width, Normals(*given)))
    drawn = []
    for _ in range(draws):
        normals = (rng.standard_normal((1, *size)).astype(np.float32) for size in (best.shape, [shape.bands * side**2]))
        drawn.append(draw(tf.zeros([]), tf.zeros([]), *(tf.constant(one) for one in normals)).numpy()[0])
    for band in range(shape.bands):
        columns = np.stack([whiten(tf.constant(shapes[:, k])).numpy()[0, band].ravel() for k in range(shape.sources)])
        covariance = np.linalg.inv(columns @ columns.T + np.eye(shape.sources) / width**2)
        expected = covariance @ (columns @ y[band].ravel() + 1 / width**2)
        np.testing.assert_allclose(best[:, band], expected, atol=1e-3 * np.sqrt(covariance.max()))
        scatter = np.cov(np.array(drawn)[:, :, band].T)
        np.testing.assert_allclose(scatter, covariance, atol=6 * covariance.max() / np.sqrt(draws))
