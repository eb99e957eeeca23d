"""Priors: bijections of standard normals, with the densities, medians and slopes that they claim."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.galaxies.priors import PRIORS, Disc, Frame, GalaxyPrior

F64 = tf.float64
MEDIANS = {"radius": 0.4, "disk_radius": 0.45, "bulge_ratio": 0.4, "index": 1.2, "fraction": 0.15}

every_prior = pytest.mark.parametrize("name", PRIORS)


def make(name: str, **options: float) -> GalaxyPrior:
    return PRIORS[name](3, dtype=F64, **options)


def draw(prior: GalaxyPrior, *shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=(*shape, prior.size)), F64)


def standard_frame(sigma: float = 0.8, is_point: float = 0.0) -> Frame:
    arcsec, point, width = (tf.constant([[value]], F64) for value in (5.0, is_point, sigma))
    return Frame(tf.zeros([1, 1, 2], F64), arcsec, point, width)


@every_prior
def test_pack_is_the_inverse_of_unpack(name: str) -> None:
    prior = make(name)
    latent = draw(prior, 4, 5)
    theta = prior.unpack(latent)
    assert {key: value.shape[-1] for key, value in theta.items()} == {k: size for k, (size, _) in prior.parts.items()}
    assert all(value.shape[:2] == (4, 5) for value in theta.values())
    np.testing.assert_allclose(prior.pack(theta), latent, atol=1e-9)
    for key, value in prior.unpack(prior.pack(theta)).items():
        np.testing.assert_allclose(value, theta[key], rtol=1e-9)


@every_prior
def test_samples_have_the_documented_medians(name: str) -> None:
    sample = make(name, position_sigma=0.3).distribution.sample(40_000, seed=(1, 2))
    assert sample["offset"].shape == (40_000, 2)
    # The Gaussian's share within r, where |offset| = sigma r / sqrt(1 + r^2 / 9) is one sigma.
    within = np.linalg.norm(sample["offset"], axis=-1) < 0.3
    np.testing.assert_allclose(within.mean(), 1 - np.exp(-0.5 * (1 / (1 - 1 / 9))), rtol=0.02)
    for key, median in MEDIANS.items():
        if key in sample:
            np.testing.assert_allclose(np.median(sample[key]), median, rtol=0.03)
    for key in sample:
        if key.endswith("ellipticity"):
            assert np.linalg.norm(sample[key], axis=-1).max() < 1
            np.testing.assert_allclose(np.median(sample[key], axis=0), 0, atol=0.01)


@every_prior
def test_latents_of_samples_are_standard_normal(name: str) -> None:
    prior = make(name)
    latent = prior.pack(prior.distribution.sample(40_000, seed=(3, 4))).numpy()
    np.testing.assert_allclose(latent.mean(0), 0, atol=0.025)
    np.testing.assert_allclose(np.cov(latent.T), np.eye(prior.size), atol=0.04)


@every_prior
def test_density_is_the_normal_one_less_the_bijectors_volume(name: str) -> None:
    """log p(theta) = sum log N(z; 0, 1) - log|det d theta / d z|, the determinant by automatic differentiation."""
    prior = make(name)
    latent = draw(prior, 6)
    with tf.GradientTape() as tape:
        tape.watch(latent)
        flat = tf.concat(list(prior.unpack(latent).values()), -1)
    jacobian = tape.batch_jacobian(flat, latent)
    volume = tf.linalg.slogdet(jacobian).log_abs_determinant
    normal = -0.5 * tf.reduce_sum(latent**2, -1) - 0.5 * prior.size * np.log(2 * np.pi)
    np.testing.assert_allclose(prior.distribution.log_prob(prior.unpack(latent)), normal - volume, rtol=1e-9)


def test_disc() -> None:
    """Onto the open unit disc, radially; inverse and log|det J| as automatic differentiation finds them."""
    x = tf.constant(np.random.default_rng(0).normal(scale=2, size=(50, 2)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Disc().forward(x)
    assert np.linalg.norm(y, axis=-1).max() < 1
    np.testing.assert_allclose(y[:, 0] * x[:, 1], y[:, 1] * x[:, 0], atol=1e-12)
    np.testing.assert_allclose(Disc().inverse(tf.identity(y)), x, rtol=1e-9)
    volume = tf.linalg.slogdet(tape.batch_jacobian(y, x)).log_abs_determinant
    np.testing.assert_allclose(Disc().forward_log_det_jacobian(x, event_ndims=1), volume, rtol=1e-10)
    np.testing.assert_allclose(Disc().inverse_log_det_jacobian(tf.identity(y), event_ndims=1), -volume, rtol=1e-9)


@every_prior
def test_positions_end_at_three_sigma(name: str) -> None:
    """A faint source must not walk to a bright neighbour to mend its misfit; near its place it is free."""
    prior = make(name, position_sigma=0.5)
    latent = tf.constant(np.random.default_rng(0).normal(scale=[[0.1], [1e3]], size=(2, prior.size)), F64)
    near, far = prior.unpack(latent)["offset"].numpy()
    np.testing.assert_allclose(near, 0.5 * latent[0, :2], rtol=2e-2)
    assert 1.49 < np.linalg.norm(far) < 1.5


@every_prior
def test_start_keeps_to_the_prior(name: str) -> None:
    """Sizes and shapes as asked for within two sigma of the prior's centre, and clipped beyond."""
    prior = make(name)
    radius = tf.constant([0.3, 1e-9, 1e9, 0.4], F64)
    shape = tf.constant([[0.2, -0.1], [0, 0], [0.999, 0], [0, -0.8]], F64)
    latent = prior.start(radius, shape).numpy()
    assert latent.shape == (4, prior.size)
    assert np.abs(latent).max() <= 2 and np.isfinite(latent).all()
    theta = prior.unpack(tf.constant(latent))
    for key in ("radius", "disk_radius"):
        if key in theta:
            np.testing.assert_allclose(theta[key][0, 0], 0.3)
            assert theta[key][1, 0] < 0.2 and theta[key][2, 0] > 1.2
    for key in ("ellipticity", "disk_ellipticity"):
        if key in theta:
            np.testing.assert_allclose(theta[key][0], shape[0])


@every_prior
def test_fluxes_are_shared_out_completely(name: str) -> None:
    prior = make(name)
    latent = draw(prior, 4, 5)
    parts = prior.components(prior.unpack(latent))
    total = tf.add_n([tf.broadcast_to(part.fraction, [4, 5, 3]) for part in parts])
    np.testing.assert_allclose(total, 1, atol=1e-12)
    amplitude = prior.mixture(latent, standard_frame()).amplitude
    np.testing.assert_allclose(tf.reduce_sum(amplitude, -1), 1, atol=1e-12)


@every_prior
def test_point_sources_are_the_model_psf(name: str) -> None:
    """But for the errors of the PSF, of which those at 0 are none, and all keep the flux."""
    prior = make(name)
    known = prior.mixture(tf.zeros([1, 1, prior.size], F64), standard_frame(is_point=1.0))
    lit = np.abs(known.amplitude[0, 0, 0]) > 0
    np.testing.assert_allclose(known.covariance[0, 0][lit], np.tile([0.64, 0, 0.64], (lit.sum(), 1)), atol=1e-12)
    far = 300 * draw(prior, 1, 1)
    with tf.GradientTape() as tape:
        tape.watch(far)
        wild = prior.mixture(far, standard_frame(is_point=1.0))
    assert np.isfinite(tape.gradient(wild, far)).all()
    np.testing.assert_allclose(tf.reduce_sum(wild.amplitude, -1), 1, atol=1e-12)
    yy, yx, xx = np.moveaxis(wild.covariance.numpy(), -1, 0)
    assert (yy * xx - yx**2 > 0).all() and (np.abs(np.log((yy + xx) / 1.28)) < np.log(6) + 0.5).all()


@pytest.mark.parametrize("name", ["sersic", "exponential"])
def test_summary_of_one_component_is_its_parameters(name: str) -> None:
    """Position, half-light radius in pixels to 1%, and ellipticity; the model PSF's width does not matter."""
    prior = make(name)
    latent = draw(prior, 1, 7)
    theta = prior.unpack(latent)
    narrow, wide = (prior.summary(latent, standard_frame(sigma)).numpy() for sigma in (0.5, 0.9))
    np.testing.assert_array_equal(narrow, wide)
    np.testing.assert_allclose(narrow[..., :2], theta["offset"], atol=1e-12)
    np.testing.assert_allclose(narrow[..., 2], 5 * theta["radius"][..., 0], rtol=0.01)
    np.testing.assert_allclose(narrow[..., 3:], theta["ellipticity"], atol=1e-9)


def test_summary_of_bulge_and_disk_lies_between_its_parts() -> None:
    prior = make("bulge-disk")
    latent = draw(prior, 1, 9)
    theta = prior.unpack(latent)
    radius = prior.summary(latent, standard_frame())[..., 2].numpy() / 5
    disk = theta["disk_radius"].numpy()[..., 0]
    bulge = disk * theta["bulge_ratio"].numpy()[..., 0]
    assert (radius > 0.99 * np.minimum(disk, bulge)).all() and (radius < 1.01 * np.maximum(disk, bulge)).all()


@every_prior
def test_positions_that_are_held_stay_finite(name: str) -> None:
    """position_sigma = 0 keeps sources where they are given."""
    prior = make(name, position_sigma=0.0)
    latent = prior.start(tf.constant([0.3], F64), tf.zeros([1, 2], F64))
    assert np.isfinite(latent).all()
    np.testing.assert_array_equal(prior.unpack(latent + 1)["offset"], 0)


@pytest.mark.parametrize("name", list(PRIORS))
def test_every_measured_shape_is_a_start(name: str) -> None:
    """Also ellipticities beyond those that the prior knows; at most two sigma from its centre."""
    prior = PRIORS[name](2, dtype=tf.float64)
    length, angle = np.meshgrid([0.0, 0.3, 0.75, 0.8, 0.99], np.linspace(0, 6, 7))
    shape = np.stack([length * np.cos(angle), length * np.sin(angle)], -1)
    for radius in (1e-3, 0.4, 50.0):
        latent = prior.start(tf.fill(length.shape, tf.constant(radius, tf.float64)), tf.constant(shape)).numpy()
        assert np.isfinite(latent).all() and np.abs(latent).max() <= 2
