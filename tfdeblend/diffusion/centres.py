"""On which pixel a galaxy's stamp is centred, drawn again at each step.

A prior knows its galaxies within about half a pixel of pixel P // 2; where in the image that pixel lies is unknown. The
closed-form initial fit says it badly: its centroid is not the galaxy's centre, which is on another pixel for every
fourth galaxy of S/N above 100, and in a blend it is off by more than its errors say.
"""

from __future__ import annotations

import tensorflow as tf

WITHIN = 12**-0.5  # pixels, standard deviation of a prior's centres about pixel P // 2 along each axis: evenly in it
ASYMMETRY = 0.12  # of a galaxy's size, by which its centroid is off its centre: measured on samples of shipped priors
AT_FIRST = 0.25  # pixels, added to the initial fit's errors at the start: a centroid is not the centre
NEAR_FIT = 1.0  # pixels from the fit's position that a centre may well be, whatever the fit's error
FARTHEST = 2.0  # pixels from it beyond which none moves on: a faint galaxy must not become part of a bright one


def centroid(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Measures the centroid of the squares of stamps [B, K, C, P, P], to which wings and faint noise add little.

    Gives it in pixels from pixel P // 2 [B, K, 2], and the squares' variance about it along an axis [B, K].
    """
    light = tf.reduce_sum(x**2, 2)
    offset = tf.range(x.shape[-1], dtype=x.dtype) - x.shape[-1] // 2
    total = tf.maximum(tf.reduce_sum(light, [2, 3]), 1e-30)[..., None]
    along = tf.stack([tf.reduce_sum(light, axis) for axis in (3, 2)], 2) / total[..., None]
    middle = tf.reduce_sum(along * offset, -1)
    return middle, tf.reduce_mean(tf.reduce_sum(along * offset**2, -1) - middle**2, -1)


def pixel_shift(x0: tf.Tensor, from_fit: tf.Tensor, variance: tf.Tensor, normals: tf.Tensor) -> tf.Tensor:
    """Draws by how many pixels centres move, -1, 0 or 1 along each axis [B, K, 2] int32, given the galaxy's image.

    A shift is as likely as the galaxy's centroid and the distance from the initial fit are after it.

    Args:
      x0: [B, K, C, P, P]. from_fit: [B, K, 2] of the pixel that is now the centre, from the fit's position.
      variance: [B, K, 2] of the fit's position. normals: standard ones [B, K, 2].
    """
    step = tf.constant([-1, 0, 1], x0.dtype)
    middle, size2 = centroid(x0)
    from_centre, then = middle[..., None] - step, from_fit[..., None] + step
    within2 = WITHIN**2 + ASYMMETRY**2 * size2[..., None, None]
    log_odds = -0.5 * (from_centre**2 / within2 + then**2 / (NEAR_FIT**2 + variance[..., None]))
    log_odds -= 1e9 * tf.cast((tf.abs(then) > FARTHEST) & (tf.abs(then) > tf.abs(from_fit)[..., None]), x0.dtype)
    below = tf.cumsum(tf.nn.softmax(log_odds), -1)
    uniform = 0.5 * (1 + tf.math.erf(normals / 2**0.5))
    return tf.cast(uniform > below[..., 0], tf.int32) + tf.cast(uniform > below[..., 1], tf.int32) - 1


def recentred(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Makes the pixel `shift` [B, K, 2] away the centre of stamps [B, K, C, P, P].

    What leaves on one side enters on the other, where there is noise.
    """
    side = x.shape[-1]
    index = (tf.range(side) + shift[..., None]) % side
    for axis in (0, 1):
        x = tf.gather(x, index[:, :, axis], axis=3 + axis, batch_dims=2)
    return x
