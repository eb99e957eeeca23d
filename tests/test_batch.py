"""Padding and buckets: what is padding never changes what is real, and no unit of the data matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from fields import two_observations
from helpers import gaussian, make_scene, smooth_correlation

from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import pixels_per_arcsec
from tfdeblend.data.scene import Scene, Source
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.shapes import IMAGE_SIDES, SOURCE_COUNTS, BatchShape, fast_fourier_size, fit_size, scene_shape
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import SersicPrior
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
    bare = Scene(replace(scene.observation, pixel_scale=None), scene.sources)
    fwhm = 2.3548 * 1.6
    assert pixels_per_arcsec(bare) == pytest.approx(fwhm / 0.7, rel=0.01)


def test_batch_holds_the_scene() -> None:
    """Images come back in their own units; positions, kinds and padding are where they should be."""
    scene = simulate()
    shape = scene_shape(scene, STAMP)._replace(blends=2)
    batch = Batch.build([scene], shape, tf.float64)
    tensors, height, width = batch.tensors, *scene.observation.shape[1:]
    images, weights = (tensor.numpy() for tensor in tensors.exposures[0][:2])
    scale = batch.band_scale[0][:, None, None]
    np.testing.assert_allclose(batch.flux_unit(0, scene, 0), batch.band_scale[0])
    valid = scene.observation.valid
    np.testing.assert_allclose(images[0, :, :height, :width] * scale * valid, scene.observation.images * valid)
    np.testing.assert_allclose(weights[0, :, :height, :width] / scale**2, scene.observation.weights)
    np.testing.assert_allclose(np.median(weights[0, :, :height, :width][valid]), 1)
    real = np.zeros((2, 2, shape.side, shape.side), bool)
    real[0, :, :height, :width] = valid
    assert not weights[~real].any() and not images[~real].any()
    places = tensors.corners.numpy() + shape.stamp // 2 - shape.margin + tensors.centers.numpy()
    np.testing.assert_allclose(places[0, :3], scene.positions)
    centers, corners = tensors.centers.numpy()[0, :3], batch.first_pixels(0)[:3]
    assert ((centers >= -0.5) & (centers < 1.5)).all() and (corners % 2 == 0).all()
    first = np.arange(2 * shape.sources).reshape(2, -1)
    np.testing.assert_array_equal(tensors.is_source, first < 3)
    np.testing.assert_array_equal(tensors.is_point, first == 2)


# -- the law of padding: the same blend alone, among others, and in a larger bucket


def larger(shape: BatchShape) -> BatchShape:
    """The next buckets of image and sources, and room for more blends."""
    side = fit_size(shape.side + 1, IMAGE_SIDES)
    return shape._replace(
        blends=3,
        sources=2 * shape.sources,
        frame=side + 2 * shape.margin,
        fourier=fast_fourier_size(shape.fourier + side - shape.side),
        exposures=(shape.exposures[0]._replace(side=side),),
    )


def settings(background: bool = False) -> dict[str, tuple[list[Scene], int, BatchShape]]:
    """Batches that hold the scene: its scenes, its row, the shape."""
    scene, others = simulate(), [simulate(shape=(31, 22), seed=1), simulate(shape=(18, 18), seed=2)]
    alone = scene_shape(scene, STAMP, background=background)
    return {
        "alone": ([scene], 0, alone),
        "among others": ([others[0], scene, others[1]], 1, alone._replace(blends=3)),
        "in a larger bucket": ([others[0], scene], 1, larger(alone)),
    }


def fields(background: bool = False) -> dict[str, tuple[list[Scene], int, BatchShape]]:
    """The same of fields of two observations, turned differently in each."""
    one, two, three = (
        two_observations(f"field{seed}", seed, degrees, smooth_correlation(0.5))
        for seed, degrees in enumerate((30.0, 50.0, -40.0))
    )
    alone = scene_shape(one, STAMP, 1.0, background)
    assert alone == scene_shape(two, STAMP, 1.0, background) == scene_shape(three, STAMP, 1.0, background)
    return {
        "alone": ([one], 0, alone),
        "first of two": ([one, two], 0, alone._replace(blends=2)),
        "last of two": ([two, one], 1, alone._replace(blends=2)),
        "with more sources": ([three, one], 1, alone._replace(blends=3, sources=8)),
    }


def evaluate(scenes: list[Scene], row: int, shape: BatchShape, dtype: tf.DType) -> dict[str, np.ndarray]:
    """Loss, images, constants and gradients of one scene at fixed parameters, all else in its batch at random ones."""
    prior = SersicPrior(shape.bands, dtype=dtype)
    posterior = GalaxyPosterior(prior, shape, Batch.build(scenes, shape, dtype).tensors)
    fixed, free = np.random.default_rng(1), np.random.default_rng(2)
    latent = free.normal(size=(shape.blends, shape.sources, prior.size))
    flux = free.uniform(100, 1000, (shape.blends, shape.sources, shape.bands))
    latent[row] = 0
    latent[row, :3], flux[row, :3] = fixed.normal(size=(3, prior.size)), fixed.uniform(1000, 3000, (3, shape.bands))
    state = MapState(tf.constant(latent, dtype), tf.constant(flux, dtype))
    with tf.GradientTape() as tape:
        tape.watch(state)
        model = posterior.model(state)
        total = posterior.loss(state)
    d_latent, d_flux = tape.gradient(total, state)
    np.testing.assert_array_equal(d_flux[row, 3:], 0)
    np.testing.assert_array_equal(d_latent[row, 3:], latent[row, 3:].astype(d_latent.dtype.as_numpy_dtype))
    observations = enumerate(scenes[row].observations)
    images = {f"model {e}": model[e][row, :, : one.shape[1], : one.shape[2]].numpy() for e, one in observations}
    constants = posterior.likelihood.constants(model)
    return images | {
        "loss": total[row].numpy(),
        "latent": d_latent[row, :3].numpy(),
        "flux": d_flux[row, :3].numpy(),
        "constants": np.concatenate([each[row] for each in constants]),
    }


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
@pytest.mark.parametrize("setting", ["among others", "in a larger bucket"])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_padding_changes_neither_images_nor_gradients(setting: str, dtype: tf.DType, background: bool) -> None:
    cases = settings(background)
    alone, padded = (evaluate(*cases[name], dtype) for name in ("alone", setting))
    for name, value in alone.items():
        np.testing.assert_allclose(padded[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
@pytest.mark.parametrize("setting", ["first of two", "last of two", "with more sources"])
def test_fields_in_a_batch_do_not_see_each_other(setting: str, background: bool) -> None:
    """Two fields of two observations together give what each gives alone."""
    cases = fields(background)
    alone, together = (evaluate(*cases[name], tf.float64) for name in ("alone", setting))
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=1e-9 * np.abs(value).max(), err_msg=name)


OPTIONS = MapOptions(rounds=20, tolerance=1e-6)


def fit(scenes: list[Scene], row: int, shape: BatchShape) -> dict[str, np.ndarray]:
    """One scene's fit in float64, cut out of its batch, in whitened units."""
    batch = Batch.build(scenes, shape, tf.float64)
    result: MapResult = MapFit(SersicPrior(shape.bands, dtype=tf.float64), shape, OPTIONS)(batch.tensors)
    count, bands = len(scenes[row].sources), shape.bands
    size = result.state.latent.shape[-1]
    number = shape.sources * size
    covariance = result.covariance.latent[row].numpy().reshape(shape.sources, size, shape.sources, size)
    linear = result.covariance.linear[row].numpy()[:, :count]
    assert covariance.size == number**2
    found = {
        "flux": result.state.flux[row, :count].numpy(),
        "latent": result.state.latent[row, :count].numpy(),
        "stamps": result.stamps[row, :count].numpy(),
        "chi2": result.chi2[row].numpy(),
        "covariance": covariance[:count, :, :count],
        "flux covariance": np.stack([linear[b, :, b, :count] for b in range(bands)]),
        "summary": result.summary[row, :count].numpy(),
        "summary covariance": result.summary_covariance[row, :count].numpy(),
        "distance": result.distance[row].numpy(),
    }
    for e, one in enumerate(scenes[row].observations):
        cut = np.s_[..., : one.shape[1], : one.shape[2]]
        found[f"model {e}"] = result.models[e][row].numpy()[cut]
        found[f"sources {e}"] = result.sources[e][row, :count].numpy()[cut]
        found[f"constants {e}"] = result.constants[e][row].numpy()
    return found


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


@pytest.mark.slow
def test_fields_are_fitted_in_a_batch_as_alone() -> None:
    cases = fields(background=True)
    alone = fit(*cases["alone"])
    assert alone["distance"] < 1e-5
    assert_same_fit(alone, fit(*cases["last of two"]), 1e-5)


def in_units(scene: Scene, factor: float) -> Scene:
    """The same data with another unit of flux."""
    return Scene(tuple(rescaled(one, factor) for one in scene.observations), scene.sources)


def rescaled(one: Observation, factor: float) -> Observation:
    return replace(one, images=one.images.astype(float) * factor, weights=one.weights.astype(float) / factor**2)


@pytest.mark.parametrize("factor", [1e-9, 1e9, 1e-14, 1e18])
def test_units_of_flux_stay_outside_of_a_batch(factor: float) -> None:
    """Whitened images, weights and operators are the same; only the scale of the bands carries the unit."""
    for scene in (simulate(), two_observations()):
        shape = scene_shape(scene, STAMP)
        one, other = (Batch.build([s], shape, tf.float64) for s in (scene, in_units(scene, factor)))
        np.testing.assert_allclose(other.band_scale, one.band_scale * factor, rtol=1e-5)
        assert_same_tensors(other.tensors, one.tensors, 1e-6)


def assert_same_tensors(found: Tensors, expected: Tensors, tolerance: float) -> None:
    tf.nest.assert_same_structure(found, expected)
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * float(np.abs(other).max(initial=0)))


def test_zero_points_bring_observations_to_one_unit() -> None:
    """Two observations in different units give the same fit, each result in its own unit."""
    scene = two_observations()
    first, second = (replace(one, zeropoints=27.0) for one in scene.observations)
    faint = replace(rescaled(second, 10), zeropoints=29.5)
    one, same = (Scene((first, other), scene.sources) for other in (second, faint))
    shape = scene_shape(one, STAMP)
    built, again = (Batch.build([each], shape) for each in (one, same))
    for found, expected in zip(again.tensors.exposures, built.tensors.exposures, strict=True):
        np.testing.assert_allclose(found.images, expected.images, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-5)
    np.testing.assert_allclose(again.flux_unit(0, same, 1), 10 * built.flux_unit(0, one, 1))


def test_one_observation_in_a_tuple_is_the_same_as_alone() -> None:
    """Shape and tensors, bit by bit."""
    scene = simulate()
    same = Scene((scene.observation,), scene.sources)
    shape = scene_shape(scene, STAMP)
    assert scene_shape(same, STAMP) == shape
    one, other = (Batch.build([each], shape) for each in (scene, same))
    assert_same_tensors(other.tensors, one.tensors, 0.0)


def test_rows_of_a_batch_are_taken() -> None:
    """Of one exposure any; of several those of one blend, which then share what they see by; no more sources than are
    wanted."""
    scenes, _, shape = settings()["among others"]
    tensors = Batch.build(scenes, shape).tensors
    some = tensors.take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(some.corners, tensors.corners.numpy()[[2, 0, 2]])
    np.testing.assert_array_equal(some.exposures[0].images, tensors.exposures[0].images.numpy()[[2, 0, 2]])
    assert some.exposures[0].kernel.shape[0] == 3
    assert tensors.first_sources(2).centers.shape == (3, 2, 2)
    scenes, _, shape = fields()["first of two"]
    tensors = Batch.build(scenes, shape).tensors
    some = tensors.take(np.array([1, 1, 1]))
    for one, given in zip(some.exposures, tensors.exposures, strict=True):
        assert (one.images.shape[0], one.points.shape[0], one.kernel.shape[0]) == (3, 1, 1)
        np.testing.assert_array_equal(one.points[0], given.points[1])
    with pytest.raises(ValueError, match="expected rows of one blend of several exposures"):
        tensors.take(np.array([0, 1]))


@pytest.mark.slow
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
    scene = Scene(replace(scene.observation, weights=weights), scene.sources)
    shape = scene_shape(scene, STAMP)
    batch = Batch.build([scene], shape)
    assert all(np.isfinite(tensor).all() for tensor in tf.nest.flatten(batch.tensors))
    assert batch.band_scale[0, 1] == 1


@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_units_of_flux_do_not_matter_where_a_band_is_masked(factor: float) -> None:
    """Its noise is taken to be the other bands' in AB, whatever the unit and zero points."""
    scene, _ = make_scene(bands="gri", shape=(24, 24))
    weights = scene.observation.weights * np.array([1, 4, 1])[:, None, None]
    weights[2] = 0
    observation = replace(scene.observation, weights=weights, zeropoints=np.array([27.0, 27.0, 25.0]))
    magnitudes = observation.zeropoints + 2.5 * np.log10(factor)
    other = replace(rescaled(observation, factor), zeropoints=magnitudes)
    one, two = (Batch.build([Scene(o, scene.sources)], scene_shape(scene, STAMP)) for o in (observation, other))
    np.testing.assert_allclose(one.band_scale[0], [1, 0.5, 0.5**0.5 * 10**-0.8])
    np.testing.assert_allclose(two.band_scale, factor * one.band_scale, rtol=1e-6)
    np.testing.assert_allclose(two.tensors.band_unit, one.tensors.band_unit, rtol=1e-6)
    np.testing.assert_allclose(one.tensors.band_unit[0, 2], 1, rtol=1e-6)
