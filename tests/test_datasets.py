"""Pipelines: what a step sees is a pure function of seed and step; augmentations keep what they should."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.diffusion.schedules import LogNormalNoise
from tfdeblend.io import npz, tfrecords
from tfdeblend.training.datasets import (
    Augmentation,
    augment,
    batch_indices,
    moments,
    noised_batches,
    norm_jitter,
    read_stamps,
)

NOISE = LogNormalNoise(0.1, 1.0)


def stamps(number: int = 40, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(number, 2, side, side)).astype("float32")


def batches(first_step: int, count: int, seed: int = 3) -> list:
    data = noised_batches(stamps(), NOISE, lambda sigma: 1 / sigma**2, 4, seed, first_step=first_step)
    return list(data.take(count).as_numpy_iterator())


def test_each_iteration_is_a_permutation():
    steps = [batch_indices(tf.constant(i, tf.int64), 6, 15, seed=7).numpy() for i in range(10)]
    iterations = np.concatenate(steps).reshape(4, 15)
    np.testing.assert_array_equal(np.sort(iterations, 1), [np.arange(15)] * 4)
    assert len({tuple(iteration) for iteration in iterations}) == 4


def test_a_resumed_run_sees_the_same_data():
    whole, rest = batches(0, 8), batches(5, 3)
    for one, two in zip(whole[5:], rest, strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(two), strict=True):
            np.testing.assert_array_equal(a, b)
    other = batches(0, 1, seed=4)
    assert np.abs(other[0][1] - whole[0][1]).max() > 0.1


def test_first_step_may_be_set_before_the_first_batch():
    first = tf.Variable(0, dtype=tf.int64)
    data = noised_batches(stamps(), NOISE, tf.ones_like, 4, 3, first_step=first)
    first.assign(5)
    np.testing.assert_array_equal(next(iter(data))[1], batches(5, 1)[0][1])


def test_noised_batches_are_what_fit_takes():
    (x_t, sigma), x, weight = batches(0, 1)[0]
    assert x_t.shape == x.shape == (4, 2, 8, 8)
    assert weight.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(weight[:, 0, 0, 0], 1 / sigma**2, rtol=1e-5)
    normal = np.concatenate([((b[0][0] - b[1]) / b[0][1][:, None, None, None]).ravel() for b in batches(0, 20)])
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=0.04)


def test_flips_keep_the_centre_and_the_flux():
    """Of an even-sided stamp, pixel P // 2 is the centre; a point there must stay."""
    image = np.zeros((64, 1, 8, 8), "float32")
    image[:, 0, 4, 4] = 1
    flipped = augment(tf.constant(image), tf.constant([1, 2]), Augmentation(scale_jitter=0))
    np.testing.assert_array_equal(flipped, image)
    image[:, 0, 5, 2] = 2  # (1, -2) from the centre
    flipped = augment(tf.constant(image), tf.constant([1, 2]), Augmentation(scale_jitter=0)).numpy()
    places = {(int(y) - 4, int(x) - 4) for y, x in np.argwhere(flipped[:, 0] == 2)[:, 1:]}
    assert places == {(s * a, t * b) for a, b in [(1, 2), (2, 1)] for s in (1, -1) for t in (1, -1)}


def test_scale_jitter_is_one_factor_a_stamp():
    x = tf.constant(stamps(64))
    ratio = augment(x, tf.constant([1, 2]), Augmentation(flips=False, scale_jitter=0.2)).numpy() / x.numpy()
    np.testing.assert_allclose(ratio.std((1, 2, 3)), 0, atol=1e-5)
    assert 0.15 < np.log(ratio[:, 0, 0, 0]).std() < 0.25


def test_band_jitter_is_a_factor_for_each_band():
    """Beside the common one, independent of it and of the other bands'."""
    x = tf.constant(stamps(4000))
    ratio = augment(x, tf.constant([1, 2]), Augmentation(False, 0, 0.2, 0.3)).numpy() / x.numpy()
    np.testing.assert_allclose(ratio.std((2, 3)), 0, atol=1e-5)
    covariance = np.cov(np.log(ratio[:, :, 0, 0]), rowvar=False)
    np.testing.assert_allclose(covariance, [[0.13, 0.04], [0.04, 0.13]], atol=0.01)


def test_band_jitter_is_pure_in_the_seed():
    x, augmentation = tf.constant(stamps(20)), Augmentation(band_jitter=0.3)
    one, two, other = (augment(x, tf.constant(seed), augmentation).numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(one, two)
    assert np.abs(np.log(other / one)).max() > 0.3


def test_band_jitter_leaves_all_else_as_it_was():
    """Flips and common factors are those of the same seed without it: none at all is what there was before."""
    x, seed = tf.constant(stamps(20)), tf.constant([1, 2])
    without = augment(x, seed, Augmentation()).numpy()
    np.testing.assert_array_equal(augment(x, seed, Augmentation(band_jitter=0.0)), without)
    ratio = augment(x, seed, Augmentation(band_jitter=0.3)).numpy() / without
    np.testing.assert_allclose(ratio.std((2, 3)), 0, atol=1e-5)
    assert 0.2 < np.log(ratio[:, :, 0, 0]).std() < 0.4


def test_shifts_keep_flux_and_move_the_centroid():
    y, x = np.indices((16, 16)) - 8.0
    image = np.tile(np.exp(-(y**2 + x**2) / 8).astype("float32"), (200, 2, 1, 1))
    moved = augment(tf.constant(image), tf.constant([1, 2]), Augmentation(False, 0.5, 0)).numpy()
    np.testing.assert_allclose(moved.sum((2, 3)), image.sum((2, 3)), rtol=1e-5)
    centroids = np.stack([(moved * axis).sum((2, 3)) / moved.sum((2, 3)) for axis in (y, x)])
    np.testing.assert_allclose(centroids[:, :, 0], centroids[:, :, 1], atol=1e-5)  # all bands alike
    assert 0.45 < np.abs(centroids).max() < 0.51
    assert abs(centroids.std() - 1 / np.sqrt(12)) < 0.02


@pytest.mark.parametrize("band_jitter", [0.0, 0.3])
def test_moments_are_those_of_augmented_stamps(band_jitter: float):
    x = stamps(5)
    augmentation = Augmentation(scale_jitter=0.2, band_jitter=band_jitter)
    mean, variance = moments(x, augmentation)
    repeated = tf.constant(np.tile(x, (2000, 1, 1, 1)))
    drawn = augment(repeated, tf.constant([5, 6]), augmentation).numpy()
    np.testing.assert_allclose(mean, drawn.mean(0), atol=0.03)
    np.testing.assert_allclose(variance, drawn.var(0), atol=0.02)


@pytest.mark.parametrize("band_jitter", [0.0, 0.3])
def test_norm_jitter_is_that_of_augmented_stamps(band_jitter: float):
    x, augmentation = stamps(5), Augmentation(scale_jitter=0.2, band_jitter=band_jitter)
    drawn = augment(tf.constant(np.tile(x, (2000, 1, 1, 1))), tf.constant([5, 6]), augmentation).numpy()
    logs = np.log(np.sqrt(np.square(drawn).sum((1, 2, 3)))).reshape(2000, 5)
    np.testing.assert_allclose(norm_jitter(x, augmentation), np.sqrt(logs.var(0).mean()), rtol=0.03)


def test_reads_every_kind_of_file(tmp_path):
    x = stamps(6)
    np.save(tmp_path / "a.npy", x[:2])
    npz.write(tmp_path / "b.npz", {"stamps": x[2:4]})
    tfrecords.write(tmp_path / "c.tfrecord", iter({"stamp": image} for image in x[4:]))
    np.testing.assert_array_equal(read_stamps(tmp_path), x)
    with pytest.raises(FileNotFoundError, match=r"expected stamps d\* .* found none"):
        read_stamps(tmp_path, "d*")
    np.save(tmp_path / "d.npy", x[:1, :, :4])
    with pytest.raises(ValueError, match=r"expected stamps of shape \(2, 8, 8\), received \(2, 4, 8\) in .*d.npy"):
        read_stamps(tmp_path)
