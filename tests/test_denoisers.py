"""Denoisers against closed forms: Gaussians in float64, limits of the preconditioning."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.diffusion.denoisers import NeuralDenoiser, ResidualDenoiser, flux_scale
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.schedules import BlendSchedule, LogNormalNoise, noise_levels
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.networks import UNet
from tfdeblend.training.generation import Generator

SHAPE, RANK = (2, 4, 4), 3
PIXELS = 32


def parts(rng: np.random.Generator, rank: int = RANK) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """mean, diagonal, factor of a Gaussian, in float64."""
    mean, diagonal = rng.standard_normal(SHAPE), np.exp(rng.standard_normal(SHAPE))
    return mean, diagonal, rng.standard_normal((rank, *SHAPE))


def dense(diagonal: np.ndarray, factor: np.ndarray) -> np.ndarray:
    rows = factor.reshape(len(factor), -1)
    return np.diag(diagonal.ravel()) + rows.T @ rows


def network(side: int = 16, channels: int = 2, outputs: int = 2, scale: float = 0.3, patch: int = 2) -> UNet:
    return UNet(side, channels, outputs, widths=(8, 16), blocks=(1, 1), output_scale=scale, patch=patch)


# -- covariances


def test_covariance_against_dense_matrices():
    rng = np.random.default_rng(0)
    _, diagonal, factor = parts(rng)
    v, matrix = DiagonalPlusLowRank(tf.constant(diagonal), tf.constant(factor)), dense(diagonal, factor)
    e = rng.standard_normal(SHAPE)
    np.testing.assert_allclose(v.matvec(e), (matrix @ e.ravel()).reshape(SHAPE), rtol=1e-12)
    np.testing.assert_allclose(v.solve(e), np.linalg.solve(matrix, e.ravel()).reshape(SHAPE), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(v.variance), np.diag(matrix), rtol=1e-12)
    noise = np.array([1e-6, 0.3, 1e6])[:, None, None, None]
    smooth, given = v.smooth(tf.constant(noise), tf.constant(e)), v.given(tf.constant(noise))
    for i, level in enumerate(noise.ravel()):
        inverse = np.linalg.inv(np.linalg.inv(matrix) + np.eye(PIXELS) / level)
        np.testing.assert_allclose(np.ravel(given.matvec(tf.constant(e))[i]), inverse @ e.ravel(), rtol=1e-6)
        np.testing.assert_allclose(np.ravel(smooth[i]), inverse @ e.ravel() / level, rtol=1e-6)
    chi2 = e.ravel() @ np.linalg.solve(matrix, e.ravel())
    expected = -0.5 * (chi2 + np.linalg.slogdet(matrix)[1] + PIXELS * np.log(2 * np.pi))
    np.testing.assert_allclose(v.log_prob(tf.constant(e)), expected, rtol=1e-12)


def test_draws_have_the_covariance():
    """A draw is linear in its normals, so its covariance is that of the unit vectors' images: no Monte Carlo."""
    _, diagonal, factor = parts(np.random.default_rng(1))
    unit = np.eye(PIXELS + RANK)
    v = DiagonalPlusLowRank(*(tf.constant(np.broadcast_to(a, (len(unit), *a.shape))) for a in (diagonal, factor)))
    drawn = v.draw(tf.constant(unit[:, :PIXELS].reshape(-1, *SHAPE)), tf.constant(unit[:, PIXELS:]))
    columns = drawn.numpy().reshape(len(unit), -1)
    np.testing.assert_allclose(columns.T @ columns, dense(diagonal, factor), rtol=1e-12)


# -- the Gaussian denoiser


@pytest.mark.parametrize("sigma", [1e-4, 0.3, 1.0, 1e4])
def test_gaussian_denoiser_is_exact(sigma: float):
    """D = m + C (C + s^2 I)^-1 (x - m), J = C (C + s^2 I)^-1, V = s^2 J."""
    rng = np.random.default_rng(2)
    mean, diagonal, factor = parts(rng)
    denoiser = GaussianDenoiser(mean, diagonal, factor)
    c = dense(diagonal, factor)
    j = np.linalg.solve(c + sigma**2 * np.eye(PIXELS), c).T
    x, e = (mean + sigma * rng.standard_normal(SHAPE) for _ in range(2))
    level = tf.constant(sigma, tf.float64)
    d, v = denoiser.posterior(tf.constant(x), level)
    expected = mean + (j @ (x - mean).ravel()).reshape(SHAPE)
    np.testing.assert_allclose(d, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(denoiser.denoise(tf.constant(x), level), d)
    np.testing.assert_allclose(np.ravel(v.matvec(tf.constant(e))), sigma**2 * j @ e.ravel(), rtol=1e-8)
    score = np.linalg.solve(c + sigma**2 * np.eye(PIXELS), (mean - x).ravel())  # of N(m, C + s^2 I)
    np.testing.assert_allclose(np.ravel(denoiser.score(tf.constant(x), level)), score, rtol=1e-6, atol=1e-12)


def test_gaussian_covariance_is_the_jacobian():
    """Tweedie: V = sigma^2 dD/dx_t, by automatic differentiation; a batch with levels of its own."""
    rng = np.random.default_rng(3)
    denoiser = GaussianDenoiser(*parts(rng))
    x, sigma = tf.constant(rng.standard_normal((2, *SHAPE))), tf.constant([0.4, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        d = denoiser.denoise(x, sigma)
    jacobian = tape.batch_jacobian(d, x).numpy().reshape(2, PIXELS, PIXELS)
    v = denoiser.covariance(sigma)
    for i in range(2):
        expected = dense(v.diagonal[i].numpy(), v.factor[i].numpy())
        np.testing.assert_allclose(sigma[i] ** 2 * jacobian[i], expected, atol=1e-12)


def test_factor_analysis_finds_the_covariance():
    rng = np.random.default_rng(4)
    mean, diagonal, factor = parts(rng)
    root = np.linalg.cholesky(dense(diagonal, factor))
    x = mean + (rng.standard_normal((20_000, PIXELS)) @ root.T).reshape(-1, *SHAPE)
    fitted = GaussianDenoiser.fit(x, RANK, iterations=100)
    c = dense(fitted.prior.diagonal.numpy(), fitted.prior.factor.numpy())
    ratio = np.linalg.solve(dense(diagonal, factor), c)
    kl = 0.5 * (np.trace(ratio) - PIXELS - np.linalg.slogdet(ratio)[1])
    free = PIXELS * (RANK + 1)  # parameters, each of which costs 1 / (2 N) nats on average
    assert kl < 1.5 * free / 2 / len(x)
    np.testing.assert_allclose(fitted.mean, mean, atol=0.15)


def test_gaussian_round_trip(tmp_path):
    denoiser = GaussianDenoiser(*parts(np.random.default_rng(5)))
    denoiser.save(tmp_path / "gaussian.npz")
    again = GaussianDenoiser.load(tmp_path / "gaussian.npz")
    x, sigma = tf.ones(SHAPE, tf.float64), tf.constant(0.5, tf.float64)
    np.testing.assert_array_equal(again.denoise(x, sigma), denoiser.denoise(x, sigma))


# -- the neural denoiser


def test_preconditioning_without_network_is_the_pixelwise_gaussian():
    rng = np.random.default_rng(6)
    net = network(scale=0.0)
    denoiser = NeuralDenoiser(net)
    mean, variance = rng.standard_normal((2, 16, 16)), np.exp(rng.standard_normal((2, 16, 16)))
    denoiser.set_moments(mean, variance)
    x, sigma = rng.standard_normal((3, 2, 16, 16)).astype("float32"), np.array([0.01, 1, 100], "float32")
    exact = GaussianDenoiser(mean, variance, np.zeros((1, 2, 16, 16)))
    expected, v = exact.posterior(tf.constant(x, tf.float64), tf.constant(sigma, tf.float64))
    found, w = denoiser.posterior(tf.constant(x), tf.constant(sigma))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(w.diagonal, v.diagonal, rtol=1e-5)


def test_a_residual_without_networks_is_its_gaussian():
    rng = np.random.default_rng(12)
    mean, diagonal = rng.standard_normal((2, 16, 16)), np.exp(rng.standard_normal((2, 16, 16)))
    factor = rng.standard_normal((5, 2, 16, 16)) * np.array([3, 2, 1, 0.5, 0.2])[:, None, None, None]
    silent = network(channels=4, outputs=6, scale=0.0)
    denoiser = ResidualDenoiser(network(scale=0.0), silent, base_rank=5)
    denoiser.set_gaussian(mean, diagonal + (factor**2).sum(0), factor)
    x, sigma = rng.standard_normal((3, 2, 16, 16)).astype("float32"), np.array([0.01, 1, 100], "float32")
    exact = GaussianDenoiser(mean, diagonal, factor)
    expected, v = exact.posterior(tf.constant(x, tf.float64), tf.constant(sigma, tf.float64))
    found, w = denoiser.posterior(tf.constant(x), tf.constant(sigma))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert w.rank == denoiser.rank == 5 + 2
    np.testing.assert_allclose(w.diagonal, v.diagonal, rtol=1e-3)
    np.testing.assert_allclose(w.factor[:, :5], v.factor, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(w.factor[:, 5:], 0, atol=1e-6)
    alone = ResidualDenoiser(network(scale=0.0), base_rank=5)
    alone.set_gaussian(mean, diagonal + (factor**2).sum(0), factor)
    whole = alone.posterior(tf.constant(x), tf.constant(sigma))[1]
    np.testing.assert_allclose(whole.factor, v.factor, rtol=1e-3, atol=1e-4)


def test_preconditioning_limits():
    """sigma -> 0: D = x_t; sigma -> infinity: D is the prior's, of unit size, whatever x_t."""
    denoiser = NeuralDenoiser(network(), sigma_data=0.5)
    x = tf.random.stateless_normal([2, 2, 16, 16], (0, 0))
    small = denoiser.denoise(x, tf.fill([2], 1e-5))
    np.testing.assert_allclose(small, x, atol=1e-4)
    large = denoiser.denoise(1e4 * x, tf.fill([2], 1e4))
    assert np.abs(large).max() < 20 * 0.5


def test_flux_scale_and_equivariance():
    """Data, noise and scale times one factor leave u, sigma / s and so D / s as they are."""
    rng = np.random.default_rng(7)
    denoiser = NeuralDenoiser(network())
    image = rng.uniform(size=(2, 16, 16)).astype("float32")
    np.testing.assert_allclose(flux_scale(image), np.sqrt((image**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(flux_scale(tf.constant(image)), flux_scale(image), rtol=1e-6)

    def denoised(factor: float) -> np.ndarray:
        s, sigma = flux_scale(factor * image), factor * 0.3
        x_t = factor * image + sigma * np.random.default_rng(8).standard_normal(image.shape).astype("float32")
        return (s * denoiser.denoise(tf.constant(x_t / s), tf.constant(sigma / s, tf.float32)) / factor).numpy()

    np.testing.assert_allclose(denoised(1000.0), denoised(1.0), rtol=1e-4, atol=1e-4)


def test_batch_as_large_as_the_side():
    """Keras takes a summand [B, 1, 1, 1] for a bias of [C, P, P] where B = P; the denoiser must not."""
    denoiser = NeuralDenoiser(network(), sigma_data=0.5)
    x, sigma = tf.random.stateless_normal([16, 2, 16, 16], (0, 0)), tf.exp(tf.linspace(-3.0, 1.0, 16))
    np.testing.assert_allclose(denoiser.denoise(x, sigma)[5:6], denoiser.denoise(x[5:6], sigma[5:6]), atol=1e-4)


def test_leading_axes():
    head = network(channels=4, outputs=6)
    denoiser = NeuralDenoiser(network(), head)
    x = tf.random.stateless_normal([2, 3, 2, 16, 16], (0, 0))
    d, v = denoiser.posterior(x, tf.constant([[0.5, 1, 2]] * 2))
    one, w = denoiser.posterior(x[1, 2], tf.constant(2.0))
    assert v.factor.shape == (2, 3, 2, 2, 16, 16)
    np.testing.assert_allclose(d[1, 2], one, atol=1e-5)
    np.testing.assert_allclose(v.factor[1, 2], w.factor, atol=1e-5)
    np.testing.assert_allclose(v.diagonal[1, 2], w.diagonal, atol=1e-5)


@pytest.mark.parametrize("base_rank", [0, 3])
def test_keras_file_holds_all(tmp_path, base_rank: int):
    settings = {"bands": ("g", "r"), "pixel_scale": 0.168, "model_sigma": 1.0, "sigma_data": 0.02, "scale_jitter": 0.2}
    kind = NeuralDenoiser
    if base_rank:
        kind, settings = ResidualDenoiser, settings | {"base_rank": base_rank}
    denoiser = kind(network(), network(channels=4, outputs=6), **settings)
    rng = np.random.default_rng(9)
    factor = 0.3 * rng.standard_normal((base_rank, 2, 16, 16))
    moments = rng.standard_normal((2, 16, 16)), rng.uniform(1, 2, (2, 16, 16))
    if base_rank:
        denoiser.set_gaussian(*moments, factor)
    else:
        denoiser.set_moments(*moments)
    denoiser.save(tmp_path / "prior.keras")
    again = keras.saving.load_model(tmp_path / "prior.keras")
    assert type(again) is kind
    assert {name: getattr(again, name) for name in settings} == settings
    x, sigma = tf.random.stateless_normal([2, 2, 16, 16], (0, 0)), tf.constant([0.1, 1.0])
    for one, two in zip(denoiser.posterior(x, sigma), again.posterior(x, sigma), strict=True):
        first, second = (a if tf.is_tensor(a) else a.factor for a in (one, two))
        np.testing.assert_array_equal(first, second)


def test_refuses_a_head_of_another_law():
    config = NeuralDenoiser(network(), network(channels=4, outputs=6)).get_config()
    with pytest.raises(ValueError, match="expected a covariance head of law 2, received one of law 1: train it again"):
        NeuralDenoiser.from_config({key: value for key, value in config.items() if key != "law"})


def test_refuses_other_stamps():
    with pytest.raises(ValueError, match=r"expected stamps of shape \(..., 2, 16, 16\), received \(5, 16, 16\)"):
        NeuralDenoiser(network()).denoise(tf.zeros([5, 16, 16]), tf.constant(1.0))
    with pytest.raises(ValueError, match="expected 2 bands, as the network has channels, received 1"):
        NeuralDenoiser(network(), bands=("g",))


# -- schedules and generation


def test_noise_levels_are_edm_s():
    levels = noise_levels(80, 0.002, 17)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(levels, expected)
    with pytest.raises(ValueError, match="0 < smallest <= largest, received 2 and 1"):
        noise_levels(1, 2, 4)


def test_training_levels():
    drawn = np.log(LogNormalNoise(0.1, 1.5).sample(tf.constant([1, 2]), 20_000))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [np.log(0.1), 1.5], atol=0.04)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("vague", [None, 1.5])
def test_levels_fall_and_faint_galaxies_wait(steps: int, vague: float | None):
    """Of a galaxy of norm 100 beside one of 10, both given right by the first draw."""
    schedule, norm = BlendSchedule(vague=vague), np.array([[100.0, 10.0]])
    levels = [schedule.level(tf.constant(i), steps, tf.constant(norm), tf.ones_like(norm)) for i in range(steps)]
    levels = np.concatenate(levels)
    assert (np.diff(levels, axis=0) <= 0).all()
    if steps > 2 or (steps == 2 and vague is None):
        np.testing.assert_allclose(levels[-1] * norm[0], schedule.smallest)
    if vague is None:
        np.testing.assert_allclose(levels[0], schedule.largest)
    elif steps > 2:
        np.testing.assert_allclose(levels[0], vague)
        np.testing.assert_allclose(levels[1], [schedule.largest, vague])


def test_generated_stamps_have_the_prior_s_moments():
    """Heun's step is affine for a Gaussian: what comes of each normal is linear, so moments follow without sampling."""
    rng = np.random.default_rng(11)
    mean, diagonal, factor = (a.astype("float32") for a in parts(rng))
    levels = noise_levels(50.0, 1e-2, 60)
    stamps = Generator(GaussianDenoiser(mean, diagonal, factor), SHAPE, levels)(4000, (0, 1)).numpy()
    c = dense(diagonal, factor)
    np.testing.assert_allclose(stamps.mean(0), mean, atol=5 * np.sqrt(c.max() / 4000))
    found = np.cov(stamps.reshape(4000, -1).T)
    ratio = np.linalg.solve(np.linalg.cholesky(c), np.linalg.solve(np.linalg.cholesky(c), found).T)
    assert np.abs(np.linalg.eigvalsh(ratio) - 1).max() < 0.3
    again = Generator(GaussianDenoiser(mean, diagonal, factor), SHAPE, levels)(4000, (0, 1)).numpy()
    np.testing.assert_array_equal(again, stamps)
