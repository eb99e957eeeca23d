"""The prior of fluxes, and the best fluxes of given shapes.

Fluxes are flat where positive, and half a Gaussian where negative: about the error of the flux in 25 pixels wide, in
units of a pixel's noise. Without it a faint source turns negative to mend the misfit of a bright neighbour.
"""

from __future__ import annotations

import tensorflow as tf

NEGATIVE_FLUX = 5.0
SOLVES = 4  # which fluxes are negative settles after a few


def penalty(flux: tf.Tensor) -> tf.Tensor:
    """[B]: -2 log prior of fluxes [B, K, C]."""
    return tf.reduce_sum((tf.nn.relu(-flux) / NEGATIVE_FLUX) ** 2, [1, 2])


def curvature(flux: tf.Tensor) -> tf.Tensor:
    """The curvature of -log prior at any fluxes."""
    return tf.cast(flux < 0, flux.dtype) / NEGATIVE_FLUX**2


def solve(gram: tf.Tensor, right: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
    """Fluxes x [B, C, K] that minimise x^T gram x / 2 - right^T x - log prior(x), starting from `now`."""
    best = now
    for _ in range(SOLVES):
        root = tf.linalg.cholesky(gram + tf.linalg.diag(curvature(best)))
        best = tf.linalg.cholesky_solve(root, right[..., None])[..., 0]
    return best
