"""The curvature of a fit against automatic differentiation of its loss and of what the residual sees."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from simulations import simulate

from tfdeblend.forward.batch import BlendBatch
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import PRIORS

F64 = tf.float64


def posterior_of(name: str, stiffness: float = 1.0) -> GalaxyPosterior:
    """Of one blend of three galaxies, on stamps of 48 pixels."""
    scene, _ = simulate()
    shape = scene_shape(scene, 48)._replace(sources=3)
    tensors = BlendBatch.build([scene], shape, F64).tensors
    return GalaxyPosterior(PRIORS[name](2, dtype=F64), shape, tensors, stiffness=tf.constant([stiffness], F64))


@pytest.mark.parametrize("name", list(PRIORS))
def test_bend_is_the_second_derivative_that_gauss_newton_leaves_out(name: str) -> None:
    """-<residual, d^2 model>: by latents of a source, and by its latents and fluxes."""
    posterior = posterior_of(name)
    prior = posterior.prior
    likelihood = posterior.likelihood
    rng = np.random.default_rng(0)
    latent = tf.constant(rng.normal(scale=0.7, size=(1, 3, prior.size)))
    flux = tf.constant(rng.uniform(500, 4000, (1, 3, 2)))
    state = MapState(latent, flux, tf.zeros([1, 2], F64))
    model = posterior.model(state)
    _, bend = posterior.normal_equations(state, model)
    pulled = likelihood.operator.adjoint(likelihood.whitened(model))

    def slopes(z: tf.Tensor) -> list[np.ndarray]:
        """Of -<pulled, stamps> by latents, and of the same by band of unit flux."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(z)
            seen = tf.reduce_sum(pulled * posterior.unit(z), [3, 4])
            whole, bands = -tf.reduce_sum(flux * seen), [-tf.reduce_sum(seen[..., c]) for c in range(2)]
        return [tape.gradient(value, z).numpy() for value in (whole, *bands)]

    np.testing.assert_allclose(bend.mixed, np.stack(slopes(latent)[1:], -1), atol=1e-7 * np.abs(bend.mixed).max())
    step = 1e-4
    moves = step * np.eye(prior.size)
    rows = [(slopes(latent + move)[0] - slopes(latent - move)[0]) / (2 * step) for move in moves]
    np.testing.assert_allclose(bend.latent, np.stack(rows, 2), atol=1e-6 * np.abs(bend.latent).max())


def test_curvature_at_every_second_pixel_is_that_of_all() -> None:
    posterior = posterior_of("sersic")
    prior, shape = posterior.prior, posterior.shape
    likelihood = posterior.likelihood
    state = MapState(tf.zeros([1, shape.sources, prior.size], F64), tf.ones([1, shape.sources, 2], F64), None)
    images = posterior.tangents(state.latent)[0]
    gram = likelihood.gram(images)[0].numpy()
    root = likelihood.noise.constant[0].numpy()
    every = np.concatenate([likelihood.render_each(images)[0].numpy() * root[:, None], root[:, None]], 1)
    exact = np.einsum("cnyx,cmyx->cnm", every, every)
    size = np.sqrt(np.maximum(np.einsum("cnn->cn", exact), 1e-30))
    error = np.abs(gram - exact) / np.maximum(size[:, :, None] * size[:, None], 1e-12)
    assert error.max() < 1e-2  # 7e-3, for seeing of 3.3 pixels and sources near the edge


@pytest.mark.parametrize("name", list(PRIORS))
def test_tangents_are_the_derivatives_of_the_stamps(name: str) -> None:
    """By every latent, in every band, and last the stamps of unit flux themselves."""
    posterior = posterior_of(name)
    prior = posterior.prior
    latent = tf.constant(np.random.default_rng(0).normal(scale=0.7, size=(1, 3, prior.size)))
    images, mixing = posterior.tangents(latent)
    found = np.einsum("bcksi,bkiyx->bkscyx", mixing, images[:, :, :, 0])

    def unit(z: tf.Tensor) -> np.ndarray:
        return np.broadcast_to(posterior.unit(z), (1, 3, 2, 48, 48))

    step = 1e-5
    moves = step * np.eye(prior.size)
    expected = np.stack([(unit(latent + move) - unit(latent - move)) / (2 * step) for move in moves], 2)
    np.testing.assert_allclose(found[:, :, :-1], expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(found[:, :, -1], unit(latent), atol=1e-12)


def test_rise_is_the_difference_of_the_losses() -> None:
    posterior = posterior_of("bulge-disk", stiffness=30.0)
    prior = posterior.prior
    rng = np.random.default_rng(0)
    old, new = (
        MapState(*(tf.constant(rng.normal(size=s)) for s in ([1, 3, prior.size], [1, 3, 2], [1, 2]))) for _ in range(2)
    )
    rise = posterior.rise(old, posterior.model(old), new, posterior.model(new))
    np.testing.assert_allclose(rise, posterior.loss(new) - posterior.loss(old), rtol=1e-8)
