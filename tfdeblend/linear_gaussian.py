"""The linear Gaussian problem that a noise level poses: x ~ N(D, V), y = A x + n, n ~ N(0, I), for blends of K sources.

The unknowns are the sources' stamps and a background, coupled through A alone. V is a diagonal and a few directions for
each galaxy, a free amplitude in each band for stars, and a variance for the background.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfdeblend.covariance import DiagonalLowRank
from tfdeblend.operators import LinearOperator


class Unknowns(NamedTuple):
    """Stamps at unit scale [B, K, C, P, P] and a background [B, C]."""

    stamps: tf.Tensor
    background: tf.Tensor

    def dot(self, other: Unknowns) -> tf.Tensor:
        """[B]: blend by blend, so that none depends on the others of its batch."""
        stamps = tf.reduce_sum(self.stamps * other.stamps, [1, 2, 3, 4])
        return stamps + tf.reduce_sum(self.background * other.background, 1)

    def plus(self, factor: tf.Tensor, other: Unknowns) -> Unknowns:
        """self + factor [B] other."""
        stamps = self.stamps + factor[:, None, None, None, None] * other.stamps
        return Unknowns(stamps, self.background + factor[:, None] * other.background)

    def __add__(self, other: Unknowns) -> Unknowns:  # type: ignore[override]
        return Unknowns(self.stamps + other.stamps, self.background + other.background)


class Normals(NamedTuple):
    """Standard normals of one draw: stamps [B, K, C, P, P], factor [B, K, R], amplitude [B, K, C], background [B, C]
    and images [B, C, S, S]."""

    stamps: tf.Tensor
    factor: tf.Tensor
    amplitude: tf.Tensor
    background: tf.Tensor
    images: tf.Tensor


class Covariance(Protocol):
    """Of stamps [B, K, C, P, P]."""

    def matvec(self, v: tf.Tensor) -> tf.Tensor: ...


class Spread:
    """The covariance V of the unknowns at one noise level.

    Args:
      covariance: of galaxies. galaxy: [B, K, 1, 1, 1] 1 where there is one that it holds for.
      pixels: [B, K, C, P, P] variances of independent pixels besides, or 0.
      amplitude: [B, K, C, P, P] one standard deviation of a known shape's flux in each band, as an image.
      background: [B, C] variance of it.
    """

    def __init__(
        self,
        covariance: Covariance,
        galaxy: tf.Tensor,
        pixels: tf.Tensor,
        amplitude: tf.Tensor,
        background: tf.Tensor,
    ):
        self.covariance, self.galaxy, self.pixels = covariance, galaxy, pixels
        self.amplitude, self.background = amplitude, background

    def __call__(self, x: Unknowns) -> Unknowns:
        """V x."""
        stamps = self.galaxy * self.covariance.matvec(self.galaxy * x.stamps) + self.pixels * x.stamps
        stamps += self.amplitude * tf.reduce_sum(self.amplitude * x.stamps, [3, 4], keepdims=True)
        return Unknowns(stamps, self.background * x.background)

    def draw(self, normals: Normals) -> Unknowns:
        """N(0, V). Raises: TypeError for a covariance of which none can be drawn."""
        if not isinstance(self.covariance, DiagonalLowRank):
            raise TypeError(f"expected a DiagonalLowRank covariance, received {type(self.covariance).__name__}")
        stamps = self.galaxy * self.covariance.draw(normals.stamps, normals.factor[..., : self.covariance.rank])
        stamps += tf.sqrt(self.pixels) * normals.stamps + self.amplitude * normals.amplitude[..., None, None]
        return Unknowns(stamps, tf.sqrt(self.background) * normals.background)


class Blend:
    """A of a batch: stamps at unit scale and backgrounds -> whitened images, and back.

    stamps: the operator of the stamps. constant: [B, C, S, S] the whitened image of a background of 1.
    """

    def __init__(self, stamps: LinearOperator, constant: tf.Tensor):
        self.stamps, self.constant = stamps, constant

    def __call__(self, x: Unknowns) -> tf.Tensor:
        return self.stamps.forward(x.stamps) + self.constant * x.background[..., None, None]

    def transpose(self, y: tf.Tensor) -> Unknowns:
        return Unknowns(self.stamps.transpose(y), tf.reduce_sum(self.constant * y, [2, 3]))


def gaussian_step(
    blend: Blend, spread: Spread, residual: tf.Tensor, iterations: int, tolerance: float | tf.Tensor = 0.0
) -> Unknowns:
    """V A^T (I + A V A^T)^-1 residual, by conjugate gradients on V^-1 + A^T A preconditioned by V.

    Beside each direction p = V q its q is kept, so that V^-1 p costs nothing. Every iteration lowers the objective:
    a solve may be cut short.

    Args:
      residual: y - A D, whitened [B, C, S, S]. iterations: at most so many. tolerance: a blend is done when its
      gradient, measured by V, has fallen to this fraction, whatever the others of its batch do.
    """
    gradient = blend.transpose(residual)
    direction = spread(gradient)
    power = gradient.dot(direction)
    least = tf.maximum(tf.cast(tolerance, power.dtype), np.finfo(power.dtype.as_numpy_dtype).eps)
    done = least**2 * power  # what is below is rounding, or good enough

    def iterate(count, step, gradient, direction, inverse, power):
        curved = blend.transpose(blend(direction)).plus(tf.ones_like(power), inverse)
        length = tf.where(power > done, power / tf.maximum(direction.dot(curved), 1e-30), tf.zeros_like(power))
        step = step.plus(length, direction)
        gradient = gradient.plus(-length, curved)
        fresh = spread(gradient)
        after = gradient.dot(fresh)
        turn = tf.where(power > done, after / tf.maximum(power, 1e-30), tf.zeros_like(power))
        return count + 1, step, gradient, fresh.plus(turn, direction), gradient.plus(turn, inverse), after

    zero = Unknowns(*(tf.zeros_like(part) for part in gradient))
    start = [tf.constant(0), zero, gradient, direction, gradient, power]

    def unfinished(count, step, gradient, direction, inverse, power):
        return (count < iterations) & tf.reduce_any(power > done)

    return tf.while_loop(unfinished, iterate, start)[1]
