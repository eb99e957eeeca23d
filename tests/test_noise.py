"""Laws of correlated noise: the dense covariance, white noise as its special case, chi-square, draws, estimates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import gaussian, make_deblended, make_scene, smooth_correlation, smooth_noise, with_view
from scipy.linalg import solve_triangular
from simulations import BLEND, simulate

from tfdeblend.catalog.result import Deblended
from tfdeblend.data import noise_correlation as correlated
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.inference.map_fit import MapOptions

WHITE = np.ones((1, 1))


def noise_of(
    correlation: np.ndarray, weights: np.ndarray, reach: int | None = None, on_constant: bool = False
) -> GaussianNoise:
    """One blend's, in float64. correlation: (C, h, w). weights: (C, S, S). reach: None: as is chosen for it."""
    reach = correlated.reach_of(correlation) if reach is None else reach
    rows = correlated.whitening(correlation, weights > 0, reach)
    return GaussianNoise(tf.constant(weights[None]), tf.constant(rows[None]), on_constant)


def holes(shape: tuple[int, ...], share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=shape) > share


def dense(correlation: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n, n) covariance of the unmasked pixels of one band (H, W)."""
    place = np.argwhere(weights > 0)
    half = len(correlation) // 2
    offsets = place[:, None] - place + half
    inside = ((offsets >= 0) & (offsets < len(correlation))).all(-1)
    y, x = np.moveaxis(np.where(inside[..., None], offsets, half), -1, 0)
    root = weights[weights > 0] ** -0.5
    return np.where(inside, correlation[y, x], 0) * root[:, None] * root


def test_agrees_with_the_dense_covariance() -> None:
    """Within one reach nothing is approximated: chi-square, solve and determinant are those of the matrix."""
    rng = np.random.default_rng(1)
    weights = rng.lognormal(size=(2, 7, 7)) * holes((2, 7, 7), 0.2)
    rho = np.stack([smooth_correlation(0.6), smooth_correlation(0.4)])
    noise, residual = noise_of(rho, weights, reach=6), rng.normal(size=(2, 7, 7))
    chi2, logdet, log_p, solved = 0.0, 0.0, 0.0, noise.solve(tf.constant(residual[None])).numpy()[0]
    for band in range(2):
        covariance, seen = dense(rho[band], weights[band]), weights[band] > 0
        expected = np.linalg.solve(covariance, residual[band][seen])
        np.testing.assert_allclose(solved[band][seen], expected, rtol=1e-8)
        assert (solved[band][~seen] == 0).all()
        chi2 += residual[band][seen] @ expected
        logdet += np.linalg.slogdet(covariance)[1]
        log_p -= 0.5 * seen.sum() * np.log(2 * np.pi)
    np.testing.assert_allclose(noise.chi2(tf.constant(residual[None])), [chi2], rtol=1e-10)
    np.testing.assert_allclose(noise.logdet(), [logdet], rtol=1e-10)
    np.testing.assert_allclose(noise.log_prob(tf.constant(residual[None])), [log_p - 0.5 * (chi2 + logdet)], rtol=1e-10)


def test_a_constant_that_nothing_is_known_of() -> None:
    """Chi-square at the best constant, which is that of generalised least squares; a band all masked has none."""
    rng = np.random.default_rng(2)
    weights, rho = rng.lognormal(size=(2, 7, 7)) * holes((2, 7, 7), 0.2), np.stack([smooth_correlation(0.6)] * 2)
    weights[1] = 0
    noise, residual = noise_of(rho, weights, reach=6, on_constant=True), rng.normal(40, 1, size=(2, 7, 7))
    seen = weights[0] > 0
    precision, data = np.linalg.inv(dense(rho[0], weights[0])), residual[0][seen]
    best = (precision @ data).sum() / precision.sum()
    images = tf.constant(residual[None])
    np.testing.assert_allclose(noise.best_constant(images), [[best, 0]], rtol=1e-9)
    np.testing.assert_allclose(noise.chi2(images), [(data - best) @ precision @ (data - best)], rtol=1e-8)
    solved = noise.solve(images).numpy()[0]
    np.testing.assert_allclose(solved[0][seen], precision @ (data - best), atol=1e-8 * np.abs(solved).max())


@pytest.mark.parametrize("reach", [2, 4, 6])
@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.0])
def test_every_pixel_has_variance_one(sigma: float, reach: int) -> None:
    """Of the whitened noise, whatever the reach, at edges and beside masked pixels; and none is left out."""
    weights = 1.0 * holes((1, 14, 14), 0.15)
    rho, side = smooth_correlation(sigma), 14
    noise = noise_of(rho[None], weights, reach)
    eye = np.eye(side * side).reshape(1, 1, -1, side, side)
    columns = noise.whiten.forward(tf.constant(eye)).numpy().reshape(side * side, side * side)
    seen = weights.ravel() > 0
    whiten = columns.T[seen][:, seen]
    variance = np.einsum("ij,jk,ik->i", whiten, dense(rho, weights[0]), whiten)
    np.testing.assert_allclose(variance, 1, atol=5e-3)
    assert (columns.T[~seen] == 0).all()


@pytest.mark.parametrize(("sigma", "flux", "background"), [(0.5, 0.02, 0.08), (0.7, 0.02, 0.1), (1.0, 0.06, 0.2)])
def test_errors_are_those_of_the_dense_covariance(sigma: float, flux: float, background: float) -> None:
    """The true scatter of fluxes of two blended sources and of a constant, over the errors from the curvature."""
    side, rho = 26, smooth_correlation(sigma)
    columns = np.stack([gaussian((side, side), 12, x, 1.8) for x in (11, 14.5)] + [np.ones((side, side))])
    noise = noise_of(rho[None], np.ones((1, side, side)))
    seen = noise.whiten.forward(tf.constant(columns[None, None])).numpy()[0, 0].reshape(3, -1)
    claimed = np.linalg.inv(seen @ seen.T)
    estimator = claimed @ np.stack([noise.solve(tf.constant(c[None, None])).numpy().ravel() for c in columns])
    true = estimator @ dense(rho, np.ones((side, side))) @ estimator.T
    ratio = np.sqrt(np.diag(true) / np.diag(claimed))
    np.testing.assert_allclose(ratio[:2], 1, atol=flux)
    np.testing.assert_allclose(ratio[2], 1, atol=background)


@pytest.mark.parametrize("bands", [1, 5])
def test_white_noise_is_the_special_case(bands: int) -> None:
    """Noise correlated with nothing is no other noise, however far it is looked for."""
    rng = np.random.default_rng(0)
    weights = rng.lognormal(size=(bands, 20, 20)) * holes((bands, 20, 20), 0.1)
    residual, seen = rng.normal(size=weights.shape), weights > 0
    log_p = -0.5 * (weights * residual**2 + np.log(2 * np.pi / np.where(seen, weights, 1)))[seen].sum()
    rho = np.stack([smooth_correlation(0)] * bands)
    assert correlated.reach_of(rho) == 0
    for reach in (0, 2):
        noise = noise_of(rho, weights, reach)
        np.testing.assert_allclose(noise.solve(tf.constant(residual[None]))[0], weights * residual, atol=1e-12)
        np.testing.assert_allclose(noise.log_prob(tf.constant(residual[None])), [log_p], rtol=1e-12)


@pytest.mark.parametrize("how", ["given", "estimated"])
@pytest.mark.parametrize("bands", [1, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 0.7, 1.0])
def test_chi_square_of_smoothed_noise(sigma: float, bands: int, how: str) -> None:
    """1 a pixel to within 0.02 with masks and unequal depth, variance and correlation given or both from other sky."""
    side, rho, variance = 224 if bands == 1 else 112, smooth_correlation(sigma), 1.0
    if how == "estimated":
        sky = smooth_noise((256, 256), sigma, seed=1)
        rho, variance = correlated.from_sky(sky, np.ones(sky.shape, bool)), sky.var()
    depth = np.random.default_rng(2).uniform(0.5, 2, (bands, side, side)) * (smooth_noise((side, side), 4, 3) < 1)
    noise = noise_of(np.stack([rho] * bands), depth / variance)
    residual = smooth_noise((bands, side, side), sigma, seed=4) / np.sqrt(np.where(depth > 0, depth, 1))
    chi2 = noise.chi2(tf.constant(residual[None])).numpy()[0] / (depth > 0).sum()
    assert abs(chi2 - 1) < 0.02


def test_draws_have_the_correlation_that_they_were_given() -> None:
    rho = np.stack([smooth_correlation(0.7), smooth_correlation(1.0)])
    weights = np.full((2, 400, 400), 4.0)
    weights[:, :50] = 0
    drawn = correlated.draw(rho, weights, seed=0)
    assert (drawn[:, :50] == 0).all()
    assert not np.array_equal(drawn, correlated.draw(rho, weights, seed=1))
    np.testing.assert_array_equal(drawn, correlated.draw(rho, weights, seed=0))
    np.testing.assert_allclose(drawn[:, 50:].std((1, 2)), 0.5, rtol=0.02)
    for band, own in zip(drawn, rho, strict=True):
        np.testing.assert_allclose(correlated.from_sky(band, weights[0] > 0), own, atol=0.03)


def test_power_spectrum_of_smoothing() -> None:
    kernel = np.fft.ifftshift(gaussian((64, 64), 32, 32, 1.2))
    power = 7 * np.abs(np.fft.fft2(kernel)) ** 2
    squared = np.arange(-12, 13)[:, None] ** 2 + np.arange(-12, 13) ** 2
    found = correlated.from_power(np.stack([power] * 2))
    np.testing.assert_allclose(found, [np.exp(-squared / (4 * 1.2**2))] * 2, atol=1e-5)


def test_sky_is_found_and_estimated_between_sources() -> None:
    """Of a scene with sources: the correlation is that of its noise, to the scatter of so many pixels."""
    scene, truth = make_scene(bands="gr", shape=(160, 160), sources=6)
    noise = smooth_noise((2, 160, 160), 0.7, seed=0)
    given = scene.observation
    observation = Observation(truth.sum(0) + noise, given.weights, given.psf, given.bands, name="field")
    found = observation.with_sky_correlation().noise_correlation
    assert found is not None
    np.testing.assert_allclose(found[:, 10:15, 10:15], [smooth_correlation(0.7)[10:15, 10:15]] * 2, atol=0.05)
    with pytest.raises(
        DataError, match="field: noise_correlation: expected at least 400 pixels of empty sky, received 9"
    ):
        observation.with_sky_correlation(np.pad(np.ones((3, 3), bool), ((80, 77), (80, 77))))


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (np.ones((2, 3)), r"expected shape \(1, height, width\) or \(height, width\), odd, received \(1, 2, 3\)"),
        (np.full((3, 3), 0.5), "expected 1 in the middle, received 0.5"),
        (np.array([[0, 0, 0], [0, 1, 0.3], [0, 0, 0]]), "expected the same for opposite offsets"),
        (np.array([[0, np.nan, 0], [0, 1, 0], [0, 0, 0]]), "expected values from -1 to 1, received nan"),
        (smooth_correlation(1.0, 2), "expected a correlation without negative power, .* in band i"),
        ("white", "expected an array of numbers"),
    ],
)
def test_refuses(correlation: object, message: str) -> None:
    with pytest.raises(DataError, match="dark: noise_correlation: " + message):
        Observation(np.ones((1, 9, 9)), np.ones((1, 9, 9)), WHITE, "i", "dark", noise_correlation=correlation)


def test_likelihood_of_a_scene_in_correlated_noise() -> None:
    """Padding tells nothing, units do not matter, and the noise is that of the scene's own pixels."""
    scene, _ = make_scene(bands="gr", shape=(20, 24))
    given, rho = scene.observation, np.stack([smooth_correlation(0.5), smooth_correlation(0.7)])
    observation = Observation(given.images * 10, given.weights / 100, given.psf, given.bands, noise_correlation=rho)
    scene = type(scene)(observation, scene.sources)
    shape = scene_shape(scene, 16)
    assert shape.exposures[0].reach == 4
    likelihood = Likelihood(Batch.build([scene], shape, tf.float64).tensors, shape)
    own = noise_of(rho, np.pad(observation.weights, ((0, 0), (0, 4), (0, 0))))
    residual = np.pad(np.where(observation.valid, observation.images, 0), ((0, 0), (0, 4), (0, 0))).astype(float)
    (exposure,) = likelihood.exposures
    model = tf.zeros_like(exposure.images)
    np.testing.assert_allclose(likelihood.chi2((model,)), own.chi2(tf.constant(residual[None])), rtol=1e-6)
    seen = int(observation.valid.sum())
    np.testing.assert_allclose(exposure.noise.logdet(), own.logdet() - 2 * np.log(10) * seen, rtol=1e-9)


def test_whitening_is_triangular() -> None:
    """Row by row each pixel is predicted from those before it: L is lower triangular with a positive diagonal."""
    rho, side = smooth_correlation(0.7), 8
    noise = noise_of(rho[None], np.ones((1, side, side)), 4)
    eye = np.eye(side * side).reshape(1, 1, -1, side, side)
    matrix = noise.whiten.forward(tf.constant(eye)).numpy().reshape(side * side, side * side).T
    assert (np.diag(matrix) > 0).all()
    np.testing.assert_allclose(solve_triangular(matrix, matrix @ np.arange(64.0), lower=True), np.arange(64), atol=1e-9)


@pytest.mark.slow
def test_errors_of_fluxes_in_correlated_noise() -> None:
    """They are as large as fluxes scatter; taken as white, the same noise scatters them by 1.6 of theirs."""
    faint = [galaxy._replace(flux=tuple(0.3 * flux for flux in galaxy.flux)) for galaxy in BLEND]
    scene, truth = simulate(faint)
    scenes = [
        Scene(
            replace(
                scene.observation,
                images=truth.sum(0) + smooth_noise((2, 32, 32), 0.5, seed),
                noise_correlation=smooth_correlation(0.5),
                name=f"draw{seed}",
            ),
            scene.sources,
        )
        for seed in range(24)
    ]
    results = Deblender("sersic", options=MapOptions(profile_error=0)).deblend(scenes)
    flux, error = (
        np.stack([[r.catalog[f"{column}_{band}"] for band in "gr"] for r in results]) for column in ("flux", "flux_err")
    )
    expected = np.transpose([galaxy.flux for galaxy in faint])
    assert 0.8 < np.sqrt(np.mean(((flux - expected) / error) ** 2)) < 1.25
    assert all(result.header["converged"] for result in results)


def test_a_result_keeps_its_noise(tmp_path: Path) -> None:
    result = make_deblended(bands="gr")
    correlation = np.stack([smooth_correlation(0.5, 4)] * 2)
    observation = replace(result.scene.observation, noise_correlation=correlation)
    with_view(result, observation=observation).write(tmp_path / "result.fits")
    kept = Deblended.read(tmp_path / "result.fits").scene.observation.noise_correlation
    np.testing.assert_allclose(kept, correlation)
    chosen = observation.select("r").noise_correlation
    np.testing.assert_array_equal(chosen, correlation[1:])
