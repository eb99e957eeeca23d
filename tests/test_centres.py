"""Laws of drawing the pixel of a galaxy's centre anew."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend import centres
from tfdeblend.operators import Place

SIDE = 32


def blob(y: float, x: float) -> tf.Tensor:
    """[1, 1, 2, P, P]: round, so far from pixel P // 2."""
    t = np.arange(SIDE) - SIDE // 2
    image = np.exp(-((t[:, None] - y) ** 2 + (t - x) ** 2) / 8)
    return tf.constant(np.stack([image, 0.5 * image])[None, None], tf.float32)


def shares(centroid: float, stray: float = 0.0, variance: float = 0.0) -> np.ndarray:
    """How often it moves by -1, 0 and 1 pixel along y."""
    number = 4000
    normals = tf.math.ndtri((tf.range(number, dtype=tf.float32) + 0.5) / number)
    x = tf.repeat(blob(centroid, 0.0), number, 0)
    both = tf.repeat(tf.stack([normals, tf.zeros_like(normals)], -1)[:, None], 1, 1)
    stray, variance = (tf.constant([[[value, 0.0]]]) * tf.ones_like(both) for value in (stray, variance))
    move = centres.moves(x, stray, variance, both)
    return np.array([(move[:, 0, 0].numpy() == step).mean() for step in (-1, 0, 1)])


def test_the_centroid_is_that_of_the_light():
    np.testing.assert_allclose(centres.centroid(blob(0.3, -1.2)), [[[0.3, -1.2]]], atol=1e-5)


def test_a_stamp_about_another_pixel_is_the_same_image():
    x, begin, move = blob(0.3, -1.2), tf.constant([[[5, 6]]]), tf.constant([[[1, -1]]])
    before = Place(begin, SIDE, 48)(x)
    after = Place(begin + move, SIDE, 48)(centres.recentred(x, move))
    np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(centres.centroid(centres.recentred(x, move)), [[[-0.7, -0.2]]], atol=1e-5)


@pytest.mark.parametrize("centroid", [0.0, 0.2, 0.5])
def test_pixels_are_as_likely_as_their_centroids(centroid: float):
    step = np.array([-1, 0, 1])
    odds = np.exp(-0.5 * (((centroid - step) / centres.WITHIN) ** 2 + step**2 / centres.STRAY**2))
    np.testing.assert_allclose(shares(centroid), odds / odds.sum(), atol=1e-3)


def test_centres_stay_near_the_seed_as_far_as_its_error_allows():
    held, free = shares(0.5, stray=3.0)[2], shares(0.5, stray=3.0, variance=100.0)[2]
    assert held < 0.1 and abs(free - 0.5) < 0.1
    assert shares(2.0)[2] > 0.99
