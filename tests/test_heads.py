"""The covariance head: what it converges to, and what its losses are likelihoods of."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tests.test_denoisers import PIXELS, SHAPE, dense, network, parts
from tfdeblend.diffusion.denoisers import LEAST_OPEN, NeuralDenoiser
from tfdeblend.diffusion.gaussian import GaussianDenoiser, factor_analysis_step
from tfdeblend.training.losses import HeadTraining, aperture_unlikelihood, apertures, negative_log_likelihood


def best_kl(covariance: np.ndarray, rank: int, iterations: int = 3000) -> float:
    """Nats a pixel of N(0, covariance) under its best diagonal + rank-r approximation: factor analysis on a matrix."""
    root = np.linalg.cholesky(covariance).T * np.sqrt(len(covariance))  # "data" whose covariance is exact
    values, vectors = np.linalg.eigh(covariance)
    factor = (np.sqrt(values) * vectors).T[-rank:]
    variance = np.diag(covariance)
    diagonal = np.maximum(variance - (factor**2).sum(0), 1e-3)
    for _ in range(iterations):
        factor, diagonal = factor_analysis_step(root, variance, factor, diagonal, 1e-9)
    return expected_nats(covariance, np.diag(diagonal) + factor.T @ factor)


def expected_nats(true: np.ndarray, model: np.ndarray) -> float:
    """E[-log N(e; 0, model)] a pixel, e ~ N(0, true)."""
    n = len(true)
    return 0.5 * (np.trace(np.linalg.solve(model, true)) + np.linalg.slogdet(model)[1] + n * np.log(2 * np.pi)) / n


class Map(keras.layers.Layer):
    """A map of free numbers, the same for every image."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.map = self.add_weight(shape, keras.initializers.RandomNormal(stddev=0.3, seed=0))

    def call(self, x):
        return keras.ops.broadcast_to(self.map, (keras.ops.shape(x)[0], *self.map.shape))


def test_head_converges_to_the_best_diagonal_and_rank():
    """On Gaussian data V is known; a head of rank 2 must come to the nearest covariance of rank 2, in KL.

    Pixels are far brighter than they err, so that brightness bounds nothing.
    """
    rng = np.random.default_rng(10)
    _, diagonal, factor = parts(rng, rank=4)
    factor *= 2
    bright = np.full(SHAPE, 300, "float32")
    prior = GaussianDenoiser(bright, diagonal.astype("float32"), factor.astype("float32"))
    sigma, rank = 1.0, 2

    class Exact(NeuralDenoiser):
        def call(self, inputs):
            return prior.denoise(*inputs)

    image, number = keras.Input((4, 4, 4)), keras.Input(())
    denoiser = Exact(network(side=4, patch=1), keras.Model((image, number), Map((4, 4, 2 * (1 + rank)))(image)))
    denoiser.set_moments(bright, np.diag(dense(diagonal, factor)).reshape(SHAPE))

    x = rng.standard_normal((20_000, PIXELS)) @ np.linalg.cholesky(dense(diagonal, factor)).T
    x = bright + x.reshape(-1, *SHAPE).astype("float32")
    x_t = x + sigma * rng.standard_normal(x.shape).astype("float32")
    training = HeadTraining(denoiser)
    keras.utils.set_random_seed(0)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 6 * 80)
    training.compile(keras.optimizers.Adam(rate), negative_log_likelihood)
    training.fit((x_t, np.full(len(x), sigma, "float32")), x, batch_size=250, epochs=6, verbose=0)

    v = prior.covariance(tf.constant(sigma))
    true = dense(v.diagonal.numpy().astype(float), v.factor.numpy().astype(float))
    found = denoiser.posterior(tf.constant(x_t[0]), tf.constant(sigma))[1]
    nats = expected_nats(true, dense(found.diagonal.numpy().astype(float), found.factor.numpy().astype(float)))
    best, plain = best_kl(true, rank), expected_nats(true, np.diag(np.diag(true)))
    assert best - 1e-6 < nats < best + 0.02 * (plain - best)


def test_nothing_errs_by_more_than_it_is_bright():
    """Before the head has learned: what D^2 and sigma^2 leave open, whichever is less, and a little of V0."""
    v, sigma = 1e-4, 0.1
    denoiser = NeuralDenoiser(network(scale=0), network(channels=4, outputs=6, scale=0))
    denoiser.set_moments(np.zeros((2, 16, 16)), np.full((2, 16, 16), v))
    v0 = v * sigma**2 / (v + sigma**2)
    least = (LEAST_OPEN[0] * v0 / v + LEAST_OPEN[1]) * v0
    x, level = tf.zeros([1, 2, 16, 16]), tf.constant([sigma])
    for brightness, scale in ((1000.0, v0), (0.0, 0.01 * v), (0.03 * v**0.5, 0.0109 * v)):
        found = denoiser.covariance(x, tf.fill([1, 2, 16, 16], brightness), level)
        np.testing.assert_allclose(found.diagonal, least + scale, rtol=0.02)
        assert np.abs(found.factor).max() < 1e-3 * v0**0.5
    found = denoiser.covariance(x, tf.fill([1, 2, 16, 16], 1000.0), tf.constant([1e-5]))  # far below v
    np.testing.assert_allclose(found.diagonal, (1 + LEAST_OPEN[1]) * 1e-10, rtol=1e-5)


def test_aperture_loss_is_the_likelihood_of_sums():
    """Against the dense covariance of windowed sums; and the factor's true size is the best one."""
    rng = np.random.default_rng(3)
    side, bands, rank = 8, 2, 1
    np.testing.assert_array_equal(apertures(side)[-1], 1)  # the whole stamp: its flux
    window = np.einsum("qy,qx->qyx", apertures(side), apertures(side)).reshape(-1, side * side)
    sums = np.stack([np.kron(c, w) for w in window for c in (*np.eye(bands), np.ones(bands))])
    diagonal = rng.uniform(0.5, 2, (1, bands, side, side))
    factor = rng.standard_normal((1, rank, bands, side, side))
    v = np.diag(diagonal.ravel()) + factor.reshape(rank, -1).T @ factor.reshape(rank, -1)
    error = np.linalg.cholesky(v) @ rng.standard_normal((len(v), 4000))
    variance = np.einsum("sn,nm,sm->s", sums, v, sums)
    expected = 0.5 * np.mean((sums @ error[:, 0]) ** 2 / variance + np.log(2 * np.pi * variance))
    x = error.T.reshape(-1, bands, side, side)

    def loss(size: float) -> np.ndarray:
        parts = np.concatenate([0 * x[:1, None], diagonal[:, None], size * factor], 1)
        return aperture_unlikelihood(x, np.repeat(parts, len(x), 0)).numpy()

    np.testing.assert_allclose(loss(1)[0], expected)
    assert loss(1).mean() < min(loss(0.5).mean(), loss(2).mean()) < loss(20).mean()
