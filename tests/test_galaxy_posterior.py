"""The curvature of a fit against automatic differentiation of its loss and of what the residual sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from fields import expose, positions, two_observations
from helpers import smooth_correlation
from simulations import BLEND, simulate

from tfdeblend.data.scene import Scene
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import placed_each
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.galaxies import normal_equations
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import PRIORS

F64 = tf.float64


def posterior_of(name: str, stiffness: float = 1.0, scene: Scene | None = None) -> GalaxyPosterior:
    """Of one blend of three galaxies, on stamps of 48 pixels; in one observation, or those of `scene`."""
    scene = scene or simulate()[0]
    shape = scene_shape(scene, 48, background=True)._replace(sources=3)
    tensors = Batch.build([scene], shape, F64).tensors
    return GalaxyPosterior(PRIORS[name](shape.bands, dtype=F64), shape, tensors, tf.constant([stiffness], F64))


def state_of(posterior: GalaxyPosterior, seed: int = 0) -> MapState:
    rng, shape = np.random.default_rng(seed), posterior.shape
    latent = tf.constant(rng.normal(scale=0.7, size=(1, shape.sources, posterior.prior.size)))
    return MapState(latent, tf.constant(rng.uniform(500, 4000, (1, shape.sources, shape.bands))))


SCENES = [None, two_observations(correlation=smooth_correlation(0.5))]


@pytest.mark.parametrize(("name", "scene"), [*((name, None) for name in PRIORS), ("sersic", SCENES[1])])
def test_second_order_terms_are_what_gauss_newton_leaves_out(name: str, scene: Scene | None) -> None:
    """-<residual, d^2 model>: by latents of a source, and by its latents and fluxes."""
    posterior = posterior_of(name, scene=scene)
    prior, likelihood, bands = posterior.prior, posterior.likelihood, posterior.shape.bands
    state = state_of(posterior)
    latent, flux = state
    model = posterior.model(state)
    _, second = posterior.normal_equations(state, model)
    pulled = likelihood.operator.adjoint(likelihood.data(model))

    def slopes(z: tf.Tensor) -> list[np.ndarray]:
        """Of -<pulled, stamps> by latents, and of the same by band of unit flux."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(z)
            seen = tf.reduce_sum(pulled * posterior.unit(z), [3, 4])
            whole, each = -tf.reduce_sum(flux * seen), [-tf.reduce_sum(seen[..., c]) for c in range(bands)]
        return [tape.gradient(value, z).numpy() for value in (whole, *each)]

    np.testing.assert_allclose(second.mixed, np.stack(slopes(latent)[1:], -1), atol=1e-7 * np.abs(second.mixed).max())
    step = 1e-4
    moves = step * np.eye(prior.size)
    rows = [(slopes(latent + move)[0] - slopes(latent - move)[0]) / (2 * step) for move in moves]
    np.testing.assert_allclose(second.latent, np.stack(rows, 2), atol=1e-6 * np.abs(second.latent).max())


@pytest.mark.parametrize("scene", SCENES, ids=["one", "several"])
def test_the_gradient_is_that_of_the_loss(scene: Scene | None) -> None:
    """By latents all of it, by fluxes the data's part, as the normal equations order them."""
    posterior = posterior_of("exponential", stiffness=30.0, scene=scene)
    state = state_of(posterior)
    with tf.GradientTape() as tape:
        tape.watch(state)
        loss = posterior.loss(state)
    by_latent, by_flux = (part.numpy() for part in tape.gradient(loss, state))
    latent, flux, now = posterior.gradient(state, posterior.model(state))
    np.testing.assert_allclose(latent, by_latent.reshape(1, -1), rtol=1e-9, atol=1e-9 * np.abs(by_latent).max())
    np.testing.assert_allclose(flux, by_flux.swapaxes(1, 2), rtol=1e-9, atol=1e-9 * np.abs(by_flux).max())
    back = posterior.state_of(latent, now)
    np.testing.assert_array_equal(back.flux, state.flux)
    np.testing.assert_array_equal(tf.reshape(back.latent, [1, -1]), latent)


@pytest.mark.parametrize("scene", SCENES, ids=["one", "several"])
def test_solved_fluxes_are_at_the_minimum(scene: Scene | None) -> None:
    """Of chi-square with the flux prior, at fixed shapes: nothing is left to gain by any of them."""
    posterior = posterior_of("exponential", scene=scene)
    latent = tf.zeros([1, 3, posterior.prior.size], F64)
    flux = posterior.solve_fluxes(posterior.unit(latent))
    state = MapState(latent, flux)
    with tf.GradientTape() as tape:
        tape.watch(flux)
        loss = posterior.loss(MapState(latent, flux))
    slope = tf.linalg.matrix_transpose(tape.gradient(loss, flux))
    system, _ = posterior.normal_equations(state, posterior.model(state))
    error = np.sqrt(np.diagonal(np.linalg.inv(system.linear.numpy()), axis1=2, axis2=3))
    assert np.abs(slope.numpy() * error).max() < 0.01  # standard deviations


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
def test_curvature_at_every_second_pixel_is_that_of_all(background: bool) -> None:
    """In windows on the model's own pixels, and resampled: of what is observed, whitened, constants eliminated."""
    first = expose("first", seeing=0.8)
    coarse = expose("coarse", 0.3, (30, 30), 30, seeing=1.4, bands="ri")
    for scene in (simulate()[0], Scene.from_catalog((first, coarse), positions(first))):
        shape = scene_shape(scene, 48, background=background)._replace(sources=3)
        tensors = Batch.build([scene], shape, F64).tensors
        posterior = GalaxyPosterior(PRIORS["sersic"](shape.bands, dtype=F64), shape, tensors)
        images = posterior.tangents(tf.zeros([1, 3, posterior.prior.size], F64))[0]
        likelihood = posterior.likelihood
        for exposure, seen in zip(likelihood.exposures, likelihood.render_each(images), strict=True):
            frames = placed_each(likelihood.place, images)
            gram = exposure.gram(images, frames, likelihood.corners)[0].numpy()
            whitened = exposure.noise.whiten.forward(seen)[0].numpy()
            exact = np.einsum("cnyx,cmyx->cnm", whitened, whitened)
            size = np.sqrt(np.maximum(np.einsum("cnn->cn", exact), 1e-30))
            error = np.abs(gram - exact) / np.maximum(size[:, :, None] * size[:, None], 1e-12)
            assert error.max() < 1.5e-2  # 7e-3, for seeing of 3.3 pixels and sources near the edge; 0.1 for 2.5 pixels


def bright_beside_faint() -> tuple[Scene, np.ndarray]:
    """Where every second pixel is not enough: a galaxy of a signal-to-noise of some 10,000 beside faint ones."""
    first, *others = BLEND
    galaxies = [first._replace(flux=tuple(30 * each for each in first.flux)), *others]
    return simulate(galaxies)[0], np.array([one.flux for one in galaxies])


def test_curvature_is_exact_for_the_brightest_source_and_positive() -> None:
    """Also where it has a twin, a seventh of a pixel beside it."""
    scene, flux = bright_beside_faint()
    bright, *others = scene.sources
    for sources in (scene.sources, (bright, replace(bright, x=bright.x + 0.15, id="twin"), *others[1:])):
        shape = scene_shape(Scene(scene.observations, sources), 48)._replace(sources=3)
        tensors = Batch.build([Scene(scene.observations, sources)], shape, F64).tensors
        posterior = GalaxyPosterior(PRIORS["bulge-disk"](shape.bands, dtype=F64), shape, tensors)
        images, mixing = posterior.tangents(tf.zeros([1, 3, posterior.prior.size], F64))
        gram = posterior._gram(images, mixing, tf.constant(flux[None], F64))[0].numpy()
        count = images.shape[2]
        (seen,) = posterior.likelihood.operator.images(images)
        flat = seen[0, :, :count].numpy().reshape(shape.bands, count, -1)
        exact = np.einsum("cin,cjn->cij", flat, flat)
        size = np.sqrt(np.einsum("cii->ci", exact))
        scale = size[:, :, None] * size[:, None]
        np.testing.assert_allclose(gram[:, :count, :count] / scale, exact / scale, atol=1e-4)
        values = np.linalg.eigvalsh(gram)
        assert values.min() > -1e-9 * values.max()


def test_laplace_covariance_of_fluxes_takes_the_free_constants() -> None:
    """A free constant changes errors as one more column of least squares does, for each band of each exposure."""
    first, second = expose("first", shape=(24, 24)), expose("second", shape=(24, 24), degrees=20, seed=1)
    scene = Scene.from_catalog((first, second), positions(first)[:1])
    shape = scene_shape(scene, 48, background=True)._replace(sources=1)
    posterior = GalaxyPosterior(PRIORS["exponential"](2, dtype=F64), shape, Batch.build([scene], shape, F64).tensors)
    unit = posterior.unit(tf.zeros([1, 1, posterior.prior.size], F64))
    gram = posterior.likelihood.gram(unit[:, :, None])[0].numpy()
    seen = posterior.likelihood.render(unit, tf.ones([1, 1, 2], F64))
    for band in range(2):
        columns = np.zeros((3, 2, shape.side**2))
        for e, (image, exposure) in enumerate(zip(seen, posterior.likelihood.exposures, strict=True)):
            root = np.sqrt(exposure.weights[0, band].numpy()).ravel()
            columns[0, e], columns[1 + e, e] = image[0, band].numpy().ravel() * root, root
        dense = columns.reshape(3, -1) @ columns.reshape(3, -1).T
        np.testing.assert_allclose(1 / gram[band, 0, 0], np.linalg.inv(dense)[0, 0], rtol=0.02)
    system = normal_equations.regular(tf.constant(gram[None]), tf.ones([1, 1, 1], F64))
    np.testing.assert_allclose(system[0], gram, rtol=1e-5)


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


@pytest.mark.parametrize("scene", SCENES, ids=["one", "several"])
def test_rise_is_the_difference_of_the_losses(scene: Scene | None) -> None:
    posterior = posterior_of("bulge-disk", stiffness=30.0, scene=scene)
    old, new = (state_of(posterior, seed) for seed in range(2))
    old = old._replace(flux=-old.flux)  # where fluxes have a prior
    rise = posterior.rise(old, posterior.model(old), new, posterior.model(new))
    np.testing.assert_allclose(rise, posterior.loss(new) - posterior.loss(old), rtol=1e-8)
