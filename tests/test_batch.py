"""Padding and buckets: what is padding never changes what is real, and no unit of the data matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from helpers import gaussian, make_scene

from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import pixels_per_arcsec
from tfdeblend.data.scene import Scene, Source
from tfdeblend.forward.batch import BlendBatch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import IMAGE_SIDES, SOURCE_COUNTS, BatchShape, fast_fourier_size, fit_size, scene_shape
from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.priors import Frame, SersicPrior
from tfdeblend.inference.map_fit import MapFit, MapOptions, MapResult

STAMP = 32
PSF_SIDE = 25  # wide enough for a margin at which nothing measurable is lost


def simulate(name: str = "blend", shape: tuple[int, int] = (26, 30), bands: str = "gr", seed: int = 0) -> Scene:
    """Two Gaussian galaxies of high signal-to-noise and a star, noise of another sigma in each band, masked pixels."""
    rng = np.random.default_rng(seed)
    height, width = shape
    positions = [(0.3 * height, 0.3 * width), (0.62 * height, 0.5 * width), (0.4 * height, 0.8 * width)]
    sigma = np.linspace(0.5, 2, len(bands))[:, None, None]
    images = sigma * rng.normal(size=(len(bands), *shape))
    for (y, x), size, flux in zip(positions, (2.6, 3.2, 1.6), (3000, 5000, 2000), strict=True):
        images += flux * np.linspace(1, 1.5, len(bands))[:, None, None] * gaussian(shape, y, x, size)
    weights = np.broadcast_to(sigma**-2.0, images.shape).copy()
    weights[:, :3, :5] = 0
    weights[0, 10, 12] = 0
    psf = gaussian((PSF_SIDE, PSF_SIDE), PSF_SIDE // 2, PSF_SIDE // 2, 1.6)
    kinds = ("galaxy", "galaxy", "point")
    offsets = rng.uniform(-0.3, 0.3, (3, 2))
    sources = tuple(
        Source(y + dy, x + dx, kind) for (y, x), (dy, dx), kind in zip(positions, offsets, kinds, strict=True)
    )
    return Scene(Observation(images, weights, psf, tuple(bands), name=name, pixel_scale=0.2), sources)


# -- sizes


def test_fit_size() -> None:
    assert [fit_size(n, (32, 48, 64)) for n in (1, 32, 33, 48, 64)] == [32, 32, 48, 48, 64]
    assert [fit_size(n, (32, 48, 64)) for n in (65, 128, 129)] == [128, 128, 192]


@pytest.mark.parametrize("sizes", [IMAGE_SIDES, SOURCE_COUNTS])
def test_buckets_hold_what_they_are_for_and_are_their_own(sizes: Sequence[int]) -> None:
    for number in range(1, 3 * sizes[-1]):
        size = fit_size(number, sizes)
        assert size >= number and fit_size(size, sizes) == size


def test_fast_fourier_sizes() -> None:
    regular = sorted({2**a * 3**b * 5**c for a in range(1, 11) for b in range(7) for c in range(5)})
    for number in range(1, 700):
        assert fast_fourier_size(number) == min(size for size in regular if size >= number)


@pytest.mark.parametrize("psf_side", [4, 15, 43, 101])
@pytest.mark.parametrize("image", [(5, 7), (32, 32), (33, 20), (150, 40), (200, 300)])
def test_scene_shape(image: tuple[int, int], psf_side: int) -> None:
    """Holds image and sources; frame and image, the PSF between them, have room on the Fourier grid."""
    psf = gaussian((psf_side, psf_side), (psf_side - 1) / 2, (psf_side - 1) / 2, 1.5)
    psf /= psf.sum()
    scene = Scene(Observation(np.ones((2, *image)), np.ones((2, *image)), psf), (Source(2, 2), Source(3, 4)))
    shape = scene_shape(scene, STAMP)
    assert (shape.blends, shape.bands, shape.stamp) == (1, 2, STAMP)
    assert shape.sources == fit_size(2, SOURCE_COUNTS)
    assert max(image) <= shape.side < 2 * max(image) or shape.side == IMAGE_SIDES[0]
    assert shape.frame == shape.side + 2 * shape.margin <= shape.fourier
    assert shape.fourier == fast_fourier_size(shape.fourier)
    half = min(psf_side // 2, shape.side)
    assert shape.margin + half <= shape.fourier - shape.side


def test_scale_of_the_prior_without_a_pixel_scale() -> None:
    """Seeing of 0.7 arcsec is assumed; with a pixel scale that is used."""
    scene = simulate()
    assert pixels_per_arcsec(scene) == 5
    bare = replace(scene, observation=replace(scene.observation, pixel_scale=None))
    fwhm = 2.3548 * 1.6
    assert pixels_per_arcsec(bare) == pytest.approx(fwhm / 0.7, rel=0.01)


def test_batch_holds_the_scene() -> None:
    """Images come back in their own units; positions, kinds and padding are where they should be."""
    scene = simulate()
    shape = scene_shape(scene, STAMP)._replace(blends=2)
    batch = BlendBatch.build([scene], shape, tf.float64)
    height, width = scene.observation.shape[1:]
    scale = batch.band_scale[0][:, None, None]
    valid = scene.observation.valid
    np.testing.assert_allclose(batch.images[0, :, :height, :width] * scale * valid, scene.observation.images * valid)
    np.testing.assert_allclose(batch.weights[0, :, :height, :width] / scale**2, scene.observation.weights)
    np.testing.assert_allclose(np.median(batch.weights[0].numpy()[:, :height, :width][valid]), 1)
    real = np.zeros((2, 2, shape.side, shape.side), bool)
    real[0, :, :height, :width] = valid
    assert not batch.weights.numpy()[~real].any() and not batch.images.numpy()[~real].any()
    places = batch.corners.numpy() + shape.stamp // 2 - shape.margin + batch.centers.numpy()
    np.testing.assert_allclose(places[0, :3], scene.positions)
    centers, corners = batch.centers.numpy()[0, :3], batch.corners.numpy()[0, :3] - shape.margin
    assert ((centers >= -0.5) & (centers < 1.5)).all() and (corners % 2 == 0).all()
    first = np.arange(2 * shape.sources).reshape(2, -1)
    np.testing.assert_array_equal(batch.is_source, first < 3)
    np.testing.assert_array_equal(batch.is_point, first == 2)


# -- the law of padding: the same blend alone, among others, and in a larger bucket


def larger(shape: BatchShape) -> BatchShape:
    """The next buckets of image and sources, and room for more blends."""
    side = fit_size(shape.side + 1, IMAGE_SIDES)
    return shape._replace(
        blends=3, sources=2 * shape.sources, side=side, fourier=fast_fourier_size(shape.fourier + side - shape.side)
    )


def settings() -> dict[str, tuple[list[Scene], int, BatchShape]]:
    """Batches that hold the scene: its scenes, its row, the shape."""
    scene, others = simulate(), [simulate(shape=(31, 22), seed=1), simulate(shape=(18, 18), seed=2)]
    alone = scene_shape(scene, STAMP)
    return {
        "alone": ([scene], 0, alone),
        "among others": ([others[0], scene, others[1]], 1, alone._replace(blends=3)),
        "in a larger bucket": ([others[0], scene], 1, larger(alone)),
    }


def loss(
    batch: BlendBatch, prior: SersicPrior, latent: tf.Tensor, flux: tf.Tensor, background: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(loss [B], model images): half of chi-square and of |z|^2."""
    like = tf.ones_like(batch.is_point)
    frame = Frame(batch.centers, batch.arcsec[:, None] * like, batch.is_point, batch.shape.model_sigma * like)
    unit = profiles.render(prior.mixture(latent, frame), batch.shape.stamp)
    likelihood = Likelihood(batch.tensors, batch.shape)
    model = likelihood.render(unit, flux * batch.is_source[..., None], background)
    return 0.5 * (likelihood.chi2(model) + tf.reduce_sum(latent**2, [1, 2])), model


def evaluate(scenes: list[Scene], row: int, shape: BatchShape, dtype: tf.DType) -> dict[str, np.ndarray]:
    """Loss, image and gradients of one scene at fixed parameters, everything else in its batch at random ones."""
    prior = SersicPrior(shape.bands, dtype=dtype)
    batch = BlendBatch.build(scenes, shape, dtype)
    fixed, free = np.random.default_rng(1), np.random.default_rng(2)
    latent = free.normal(size=(shape.blends, shape.sources, prior.size))
    flux = free.uniform(100, 1000, (shape.blends, shape.sources, shape.bands))
    background = free.normal(size=(shape.blends, shape.bands))
    latent[row] = 0
    latent[row, :3], flux[row, :3] = fixed.normal(size=(3, prior.size)), fixed.uniform(1000, 3000, (3, shape.bands))
    background[row] = 0.1
    values = [tf.constant(value, dtype) for value in (latent, flux, background)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total, model = loss(batch, prior, *values)
    d_latent, d_flux, d_background = tape.gradient(total, values)
    height, width = scenes[row].observation.shape[1:]
    np.testing.assert_array_equal(d_flux[row, 3:], 0)
    np.testing.assert_array_equal(d_latent[row, 3:], latent[row, 3:].astype(d_latent.dtype.as_numpy_dtype))
    return {
        "loss": total[row].numpy(),
        "model": model[row, :, :height, :width].numpy(),
        "latent": d_latent[row, :3].numpy(),
        "flux": d_flux[row, :3].numpy(),
        "background": d_background[row].numpy(),
    }


@pytest.mark.parametrize("setting", ["among others", "in a larger bucket"])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_padding_changes_neither_images_nor_gradients(setting: str, dtype: tf.DType) -> None:
    cases = settings()
    alone, padded = (evaluate(*cases[name], dtype) for name in ("alone", setting))
    for name, value in alone.items():
        np.testing.assert_allclose(padded[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


OPTIONS = MapOptions(rounds=20, tolerance=1e-6)


def fit(scenes: list[Scene], row: int, shape: BatchShape) -> dict[str, np.ndarray]:
    """One scene's fit in float64, cut out of its batch, in whitened units."""
    batch = BlendBatch.build(scenes, shape, tf.float64)
    result: MapResult = MapFit(SersicPrior(shape.bands, dtype=tf.float64), shape, OPTIONS)(batch)
    count, (bands, height, width) = len(scenes[row].sources), scenes[row].observation.shape
    size = result.state.latent.shape[-1]
    number = shape.sources * size
    covariance = result.covariance.latent[row].numpy().reshape(shape.sources, size, shape.sources, size)
    linear = result.covariance.linear[row].numpy()[:, :count]
    assert covariance.size == number**2
    return {
        "flux": result.state.flux[row, :count].numpy(),
        "latent": result.state.latent[row, :count].numpy(),
        "model": result.model[row, :, :height, :width].numpy(),
        "sources": result.sources[row, :count, :, :height, :width].numpy(),
        "stamps": result.stamps[row, :count].numpy(),
        "chi2": result.chi2[row].numpy(),
        "covariance": covariance[:count, :, :count],
        "flux covariance": np.stack([linear[b, :, b, :count] for b in range(bands)]),
        "summary": result.summary[row, :count].numpy(),
        "summary covariance": result.summary_covariance[row, :count].numpy(),
        "distance": result.distance[row].numpy(),
    }


def assert_same_fit(one: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float) -> None:
    for name, value in one.items():
        if name != "distance":
            np.testing.assert_allclose(other[name], value, atol=tolerance * np.abs(value).max(), err_msg=name)


@pytest.mark.slow
def test_padding_does_not_change_the_fit() -> None:
    cases = settings()
    alone = fit(*cases["alone"])
    assert alone["distance"] < 1e-5
    for name in ("among others", "in a larger bucket"):
        assert_same_fit(alone, fit(*cases[name]), 1e-5)


def in_units(scene: Scene, factor: float) -> Scene:
    """The same data with another unit of flux."""
    seen = scene.observation
    images, weights = seen.images.astype(float) * factor, seen.weights.astype(float) / factor**2
    return replace(scene, observation=replace(seen, images=images, weights=weights))


@pytest.mark.parametrize("factor", [1e-9, 1e9, 1e-14, 1e18])
def test_units_of_flux_stay_outside_of_a_batch(factor: float) -> None:
    """Whitened images, weights and operators are the same; only the scale of the bands carries the unit."""
    scene = simulate()
    shape = scene_shape(scene, STAMP)
    one, other = (BlendBatch.build([s], shape, tf.float64) for s in (scene, in_units(scene, factor)))
    np.testing.assert_allclose(other.band_scale, one.band_scale * factor, rtol=1e-5)
    for name, value in one.tensors.items():
        largest = float(np.abs(value).max(initial=0))
        np.testing.assert_allclose(other.tensors[name], value, atol=1e-6 * largest, err_msg=name)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_units_of_flux_do_not_matter_to_the_fit(factor: float) -> None:
    scene = simulate()
    shape = scene_shape(scene, STAMP)
    one, other = (fit([s], 0, shape) for s in (scene, in_units(scene, factor)))
    assert_same_fit(one, other, 1e-4)


def test_an_all_masked_band_is_no_obstacle() -> None:
    scene, _ = make_scene(bands="gr", shape=(24, 24))
    weights = scene.observation.weights.copy()
    weights[1] = 0
    scene = replace(scene, observation=replace(scene.observation, weights=weights))
    shape = scene_shape(scene, STAMP)
    batch = BlendBatch.build([scene], shape)
    assert all(np.isfinite(tensor).all() for tensor in batch.tensors.values())
    assert batch.band_scale[0, 1] == 1


@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_units_of_flux_do_not_matter_where_a_band_is_masked(factor: float) -> None:
    """Its noise is taken to be the other bands' in AB, whatever the unit and zero points."""
    scene, _ = make_scene(bands="gri", shape=(24, 24))
    weights = scene.observation.weights * np.array([1, 4, 1])[:, None, None]
    weights[2] = 0
    observation = replace(scene.observation, weights=weights, zeropoints=np.array([27.0, 27.0, 25.0]))
    magnitudes = observation.zeropoints + 2.5 * np.log10(factor)
    other = replace(in_units(replace(scene, observation=observation), factor).observation, zeropoints=magnitudes)
    one, two = (
        BlendBatch.build([replace(scene, observation=o)], scene_shape(scene, STAMP)) for o in (observation, other)
    )
    np.testing.assert_allclose(one.band_scale[0], [1, 0.5, 0.5**0.5 * 10**-0.8])
    np.testing.assert_allclose(two.band_scale, factor * one.band_scale, rtol=1e-6)
    np.testing.assert_allclose(two.band_unit, one.band_unit, rtol=1e-6)
    np.testing.assert_allclose(one.band_unit[0, 2], 1, rtol=1e-6)
