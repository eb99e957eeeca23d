"""Laws of the likelihood: one sum over exposures, whose noise, constants and gradients are those worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from fields import expose, two_observations
from likelihoods import on_model_pixels, one_exposure, several_exposures

from tfdeblend.data.scene import Scene
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import ForwardOperator, Likelihood, with_constants
from tfdeblend.forward.operators import Place
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.linalg.operator import flatten, split


def draw(shape: list[int], dtype: tf.DType, seed: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


every_likelihood = pytest.mark.parametrize("make", [one_exposure, several_exposures], ids=["one", "several"])


@every_likelihood
def test_renderings_of_a_likelihood_agree(make: Callable[[tf.DType], Likelihood]) -> None:
    """Stamps of one band seen in all, stamps band by band, source by source, and through the operator."""
    likelihood = make(tf.float64)
    shape, exposures = likelihood.shape, likelihood.exposures
    unit = draw([shape.blends, shape.sources, 1, 16, 16], tf.float64, 0)
    flux = draw([shape.blends, shape.sources, shape.bands], tf.float64, 1)
    each_band = tf.repeat(unit, shape.bands, 2)
    stamps = flux[..., None, None] * each_band
    expected = [one.project(one.of(likelihood.place(stamps))) for one in exposures]
    assert [image.shape[1:3].as_list() for image in expected] == [list(image) for image in shape.images]

    def assert_all_close(found: tuple[tf.Tensor, ...], images: list[tf.Tensor]) -> None:
        for one, image in zip(found, images, strict=True):
            np.testing.assert_allclose(one, image, atol=1e-12)

    for stamp in (unit, each_band):
        assert_all_close(likelihood.render(stamp, flux), expected)
    alone = likelihood.render_each(stamps[:, :, None])  # [B, C_e, K, S_e, S_e]
    assert_all_close(tuple(tf.reduce_sum(images, 2) for images in alone), expected)
    assert_all_close(likelihood.sources(stamps), [tf.transpose(images, [0, 2, 1, 3, 4]) for images in alone])
    colours = [one.of(tf.linalg.matrix_transpose(flux))[..., None, None] for one in exposures]
    of_one_band = zip(likelihood.render_each(unit[:, :, None]), colours, strict=True)
    assert_all_close(tuple(images * colour for images, colour in of_one_band), alone)
    twice = likelihood.render_each(tf.stack([stamps, 2 * stamps], 2))  # of each source one after the other
    assert_all_close(tuple(images[:, :, ::2] for images in twice), alone)
    assert_all_close(tuple(images[:, :, 1::2] for images in twice), [2 * images for images in alone])
    whitened = flatten([one.noise.whiten(image) for one, image in zip(exposures, expected, strict=True)])
    np.testing.assert_allclose(likelihood.operator(stamps), whitened, atol=1e-12)
    data = flatten([one.noise.whiten(one.images) for one in exposures])
    np.testing.assert_allclose(likelihood.data(tuple(expected)), data - whitened, atol=1e-11)


@every_likelihood
def test_noise_of_a_likelihood(make: Callable[[tf.DType], Likelihood]) -> None:
    """Chi-square is -2 log p up to a constant, and log p the sum over exposures of log N(y - model; 0, Sigma)."""
    likelihood = make(tf.float64)
    images = [one.images.shape.as_list() for one in likelihood.exposures]
    models = [tuple(draw(shape, tf.float64, seed) for shape in images) for seed in range(2)]
    log_p = [likelihood.log_prob(model).numpy() for model in models]
    chi2 = [likelihood.chi2(model).numpy() for model in models]
    np.testing.assert_allclose(chi2[1] - chi2[0], -2 * (log_p[1] - log_p[0]), rtol=1e-9)
    np.testing.assert_allclose(likelihood.rise(*models), chi2[1] - chi2[0], rtol=1e-9, atol=1e-9)
    pairs = zip(likelihood.exposures, models[0], strict=True)
    each = [one.noise.log_prob(one.images - model).numpy() for one, model in pairs]
    np.testing.assert_allclose(log_p[0], np.sum(each, 0), rtol=1e-12)
    np.testing.assert_allclose(likelihood.log_normalisation(), log_p[0] + 0.5 * chi2[0], rtol=1e-9)


def test_white_noise_of_a_likelihood_is_that_of_independent_pixels() -> None:
    """Masked ones are left out."""
    likelihood = one_exposure(tf.float64)
    (exposure,) = likelihood.exposures
    model = draw(exposure.images.shape.as_list(), tf.float64, 0)
    residual, weights = (exposure.images - model).numpy(), exposure.weights.numpy()
    each = weights * residual**2 + np.log(2 * np.pi / np.where(weights > 0, weights, 1))
    expected = -0.5 * np.where(weights > 0, each, 0).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.log_prob((model,)), expected, rtol=1e-9)


def test_own_pixels_are_the_shifted_ones_without_a_shift() -> None:
    """An exposure on the model's own pixels is seen as one that is aligned with them, but for frequencies at Nyquist's,
    and so is its curvature."""
    scene = two_observations()
    shape = scene_shape(scene, 16)
    aligned, own = (Likelihood(Batch.build([scene], s, tf.float64).tensors, s) for s in (shape, on_model_pixels(shape)))
    y, x = np.indices((16, 16)) - 8
    stamps = tf.constant(np.broadcast_to(np.exp(-(y**2 + x**2) / 8), (1, shape.sources, 3, 16, 16)))
    flux = tf.ones([1, shape.sources, 3], tf.float64)
    for one, other in zip(aligned.render(stamps, flux), own.render(stamps, flux), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
    one, other = (likelihood.gram(stamps[:, :, None]).numpy() for likelihood in (aligned, own))
    np.testing.assert_allclose(other, one, atol=0.02 * np.abs(one).max())


def test_images_in_a_row_come_back() -> None:
    exposures = several_exposures(tf.float64).exposures
    images = [draw(one.images.shape.as_list(), tf.float64, 0) for one in exposures]
    again = split(flatten(images), [one.image_shape for one in exposures])
    for one, other in zip(again, images, strict=True):
        np.testing.assert_array_equal(one, other)


@every_likelihood
def test_parts_of_the_operator_make_it_up(make: Callable[..., Likelihood]) -> None:
    """Of sources one by one; of their sum in the frame, with its adjoint; of stamps that lie elsewhere."""
    likelihood = make(tf.float64)
    shape, place = likelihood.shape, likelihood.place
    scale = draw([shape.blends, shape.sources, shape.bands, 1, 1], tf.float64, 1)
    operator = ForwardOperator(place, likelihood.exposures, scale)
    stamps = draw([shape.blends, shape.sources, shape.bands, 16, 16], tf.float64, 0)
    seen = operator.forward(stamps)
    each = operator.images(stamps[:, :, None])
    np.testing.assert_allclose(flatten([tf.reduce_sum(images, 2) for images in each]), seen, atol=1e-11)
    np.testing.assert_allclose(operator.observe(place(scale * stamps)), seen, atol=1e-11)
    np.testing.assert_allclose(scale * place.adjoint(operator.observe_transpose(seen)), operator.adjoint(seen))
    elsewhere = Place(place.corners + 2, 16, shape.frame, tf.float64)
    moved = operator.at(elsewhere)
    np.testing.assert_allclose(moved.forward(stamps), operator.observe(elsewhere(scale * stamps)), atol=1e-11)
    np.testing.assert_array_equal(operator.forward(stamps), seen)


def test_several_exposures_are_the_sum_of_each() -> None:
    """Chi-square, its gradient by the stamps and its curvature; bands that an exposure lacks get nothing of it."""
    whole = several_exposures(tf.float64)
    shape = whole.shape
    unit = draw([shape.blends, shape.sources, shape.bands, 16, 16], tf.float64, 0)
    flux = draw([shape.blends, shape.sources, shape.bands], tf.float64, 1)
    model = whole.render(unit, flux)
    chi2, pull, gram = [], [], []
    for e, exposure in enumerate(whole.exposures):
        part = Likelihood.__new__(Likelihood)
        part.shape, part.corners, part.place, part.exposures = shape, whole.corners, whole.place, (exposure,)
        chi2.append(part.chi2(model[e : e + 1]))
        pull.append(part.pull(model[e : e + 1]))
        gram.append(part.gram(unit[:, :, None]))
        missing = sorted(set(range(3)) - set(exposure.bands))
        assert not np.take(pull[-1].numpy(), missing, 2).any() and not np.take(gram[-1].numpy(), missing, 1).any()
    for found, parts in ((whole.chi2(model), chi2), (whole.pull(model), pull), (whole.gram(unit[:, :, None]), gram)):
        np.testing.assert_allclose(found, np.sum(parts, 0), atol=1e-10 * np.abs(found).max())


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
@every_likelihood
def test_pull_is_the_gradient_of_chi_square(make: Callable[..., Likelihood], background: bool) -> None:
    """By the stamps' pixels, through every exposure, the noise of one being correlated."""
    likelihood = make(tf.float64, background)
    shape = likelihood.shape
    stamps = draw([shape.blends, shape.sources, shape.bands, 16, 16], tf.float64, 0)
    ones = tf.ones([shape.blends, shape.sources, shape.bands], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(stamps)
        model = likelihood.render(stamps, ones)
        value = likelihood.chi2(model)
    gradient = tape.gradient(value, stamps).numpy()
    pull = likelihood.pull(model)
    np.testing.assert_allclose(-2 * pull.numpy(), gradient, atol=1e-9 * np.abs(gradient).max())
    np.testing.assert_allclose(
        likelihood.operator.adjoint(likelihood.data(model)), pull, atol=1e-9 * np.abs(pull).max()
    )
    slopes = np.einsum("bkcyx,bkcyx->bck", pull, stamps)
    np.testing.assert_allclose(likelihood.slopes(stamps, model), slopes, atol=1e-9 * np.abs(slopes).max())
    less = likelihood.render(0.9 * stamps, ones)
    np.testing.assert_allclose(likelihood.rise(less, model), value - likelihood.chi2(less), rtol=1e-9)


@every_likelihood
def test_misfit_is_the_rms_of_residuals_where_it_is_above_the_noise(make: Callable[..., Likelihood]) -> None:
    """Over the pixels that are seen of all exposures; noise is no misfit."""
    likelihood = make(tf.float64, False)
    pixels = sum(np.count_nonzero(one.weights[0]) for one in likelihood.exposures)
    for scale in (0.0, 1e3):
        model = [one.images * (1 - 1e-3) + scale for one in likelihood.exposures]
        expected = max(np.sqrt(likelihood.chi2(model)[0] / pixels), 1)
        np.testing.assert_allclose(likelihood.misfit(model)[0], expected, rtol=1e-9)
        assert (expected > 1) == (scale > 0)


@every_likelihood
def test_a_free_constant_is_eliminated_exactly(make: Callable[..., Likelihood]) -> None:
    """Chi-square is that at the best constant of each band of each exposure, and its curvature that with the constants
    left free, worked out by hand."""
    likelihood, without = make(tf.float64, True), make(tf.float64, False)
    shape = likelihood.shape
    stamps = tf.random.stateless_uniform([shape.blends, shape.sources, shape.bands, 16, 16], (0, 1), dtype=tf.float64)
    model = likelihood.render(stamps, tf.ones(stamps.shape[:3], tf.float64))
    constants = likelihood.constants(model)
    assert all(not constant.numpy().any() for constant in without.constants(model))
    total = 0.0
    for exposure, image, constant in zip(without.exposures, model, constants, strict=True):
        one = exposure.noise.whiten(tf.ones_like(image)).numpy()
        residual = exposure.whitened(image).numpy()
        along, square = (one * residual).sum((2, 3)), (one * one).sum((2, 3))
        best = np.divide(along, square, out=np.zeros_like(along), where=square > 0)
        np.testing.assert_allclose(constant, best, rtol=1e-9, atol=1e-12)
        total += ((residual - best[..., None, None] * one) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood.chi2(model), total, rtol=1e-9)
    np.testing.assert_allclose(without.chi2(with_constants(model, constants)), total, rtol=1e-9)
    gram, free = (each.gram(stamps[:, :, None]).numpy() for each in (likelihood, without))
    taken = (free - gram)[0]
    assert (np.linalg.eigvalsh(taken) > -1e-6 * free.max()).all()  # what constants take away is positive
    number = [sum(band in one.bands for one in likelihood.exposures) for band in range(shape.bands)]
    ranks = [np.linalg.matrix_rank(each, 1e-9 * free.max(), hermitian=True) for each in taken]
    assert (np.array(ranks) <= number).all() and min(ranks) >= 1


def test_noise_tolerates_an_error_of_the_light() -> None:
    """Weights fall where the data are bright above the constant, which is no light."""
    likelihood = several_exposures(tf.float64, background=True)
    model = tuple(tf.zeros_like(one.images) for one in likelihood.exposures)
    pairs = zip(likelihood.exposures, likelihood.tolerant(0.1, model), likelihood.constants(model), strict=True)
    for one, weights, constant in pairs:
        light = np.maximum(one.images - constant[..., None, None], 0)
        seen = one.weights.numpy() > 0
        expected = 1 / (1 / one.weights.numpy()[seen] + (0.1 * light[seen]) ** 2)
        np.testing.assert_allclose(weights.numpy()[seen], expected, rtol=1e-9)
        assert not weights.numpy()[~seen].any()


def test_constants_are_drawn_about_the_best() -> None:
    """With the variance of a weighted mean, from the part of the normals along them, in each exposure."""
    first, other = expose("one", shape=(24, 24)), expose("other", 0.3, (20, 20), 30, noise=2.0, seed=1)
    scene, number = Scene.from_catalog((first, other), [[12.0, 12.0]]), 400
    shape = scene_shape(scene, 16, background=True)
    likelihood = Likelihood(Batch.build([scene], shape, tf.float64).tensors, shape)
    nothing = tuple(tf.zeros_like(one.images) for one in likelihood.exposures)
    normals = draw([number, likelihood.data(nothing).shape[1]], tf.float64, 0)
    found = likelihood.drawn_constants(nothing, likelihood.unused_normals(normals))
    for one, constant, best in zip(likelihood.exposures, found, likelihood.constants(nothing), strict=True):
        error = one.weights[0].numpy().sum((1, 2)) ** -0.5
        assert constant.shape == (number, 2)
        np.testing.assert_allclose(constant.numpy().mean(0), best[0], atol=4 * error.max() / number**0.5)
        np.testing.assert_allclose(constant.numpy().std(0), error, rtol=0.15)
