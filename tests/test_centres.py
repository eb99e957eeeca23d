"""Laws of drawing the pixel of a galaxy's centre."""

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.diffusion import centres
from tfdeblend.forward.operators import Place

SIDE = 32


def blob(y: float, x: float, sigma: float = 2.0) -> np.ndarray:
    """[2, P, P]: round, so far from pixel P // 2."""
    t = np.arange(SIDE) - SIDE // 2
    image = np.exp(-((t[:, None] - y) ** 2 + (t - x) ** 2) / (2 * sigma**2))
    return np.stack([image, 0.5 * image])


def blobs(*places: tuple[float, float]) -> tf.Tensor:
    """[2, 2, 2, P, P] of four places."""
    return tf.reshape(tf.constant(np.stack([blob(*place) for place in places]), tf.float32), [2, 2, 2, SIDE, SIDE])


PLACES = (0.3, -1.2), (-0.4, 0.1), (0.0, 0.5), (2.0, 1.0)


def shares(centroid: tuple[float, float], axis: int, from_fit: float = 0.0, variance: float = 0.0) -> np.ndarray:
    """How often it moves by -1, 0 and 1 pixel along an axis, when it is off along that."""
    number = 2000
    normals = tf.math.ndtri((tf.range(number, dtype=tf.float32) + 0.5) / number)
    x = tf.repeat(tf.constant(blob(*centroid), tf.float32)[None, None], number, 0)
    one = tf.one_hot(axis, 2)
    move = centres.pixel_shift(x, from_fit * one[None, None], variance * one[None, None], normals[:, None, None] * one)
    return np.array([(move[:, 0, axis].numpy() == step).mean() for step in (-1, 0, 1)])


def test_the_centroid_is_that_of_the_light():
    """Of squares, a Gaussian's variance is half its own."""
    middle, variance = centres.centroid(blobs(*PLACES))
    np.testing.assert_allclose(middle, np.reshape(PLACES, (2, 2, 2)), atol=1e-5)
    np.testing.assert_allclose(variance, np.full((2, 2), 2.0), rtol=1e-4)


def test_faint_noise_hardly_moves_the_centroid():
    """Of a twentieth of the light's energy."""
    image = blob(0.3, -1.2)
    noise = np.random.default_rng(0).standard_normal((50, 1, 2, SIDE, SIDE))
    noise *= (0.05 * np.sum(image**2) / image.size) ** 0.5
    middle, _ = centres.centroid(tf.constant(image + noise))
    np.testing.assert_array_less(np.abs(middle.numpy().mean((0, 1)) - [0.3, -1.2]), 0.1)


def test_a_stamp_about_another_pixel_is_the_same_image():
    x, begin = blobs(*PLACES), tf.constant([[[5, 6], [7, 5]], [[6, 6], [4, 8]]])
    move = tf.constant([[[1, -1], [0, 1]], [[-1, 0], [1, 1]]])
    before, moved = Place(begin, SIDE, 48)(x), centres.recentred(x, move)
    np.testing.assert_allclose(Place(begin + move, SIDE, 48)(moved), before, atol=1e-4)
    middle = np.reshape(PLACES, (2, 2, 2)) - move.numpy()
    np.testing.assert_allclose(centres.centroid(moved)[0], middle, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_half_way_between_two_pixels_both_are_as_likely(axis: int):
    place = (0.5, 0.0) if axis == 0 else (0.0, 0.5)
    below, stays, above = shares(place, axis, from_fit=-0.5)
    assert below == 0
    np.testing.assert_allclose([stays, above], 0.5, atol=1e-3)


def test_centres_stay_near_the_fit_as_far_as_its_error_allows():
    """A centroid half a pixel off is no reason to go further, one of two pixels is, until it is too far away."""
    place = (0.5, 0.0)
    assert shares(place, 0, from_fit=1.0)[2] < 0.25 < shares(place, 0, from_fit=1.0, variance=100.0)[2]
    assert shares((2.0, 0.0), 0)[2] > 0.99
    assert shares((2.0, 0.0), 0, from_fit=1.5, variance=100.0)[2] == 0
    assert shares((-2.0, 0.0), 0, from_fit=4.0)[0] > 0.99
