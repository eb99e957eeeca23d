"""Gaussian noise of a batch's images: of known variance a pixel, white or correlated between neighbours."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.data.noise_correlation import stencil
from tfdeblend.linalg.operator import LinearOperator, shape_of


class Whiten(LinearOperator):
    """L sqrt(w): images over their noise, less what their neighbours predict; row by row L is lower triangular.

    (L x)_p = sum_i rows_i x_(p + stencil_i), without what lies outside of the image.

    Args:
      weights: [B, C, S, S] w. rows: [B, C, M, S, S], M = 1 + 2 reach (reach + 1), see `noise_correlation.whitening`;
        or M = 0 for L = 1.
    """

    def __init__(self, weights: tf.Tensor, rows: tf.Tensor):
        self.root, self.rows, self.side = tf.sqrt(weights), tf.unstack(rows, axis=2), shape_of(weights)[-1]
        self.reach = round((np.sqrt(max(2 * len(self.rows) - 1, 1)) - 1) / 2)
        self.offsets = stencil(self.reach).tolist() if self.rows else []

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., S, S] -> [B, C, ..., S, S]; any number of images a band."""
        x, r = _with_axes(self.root, x) * x, self.reach
        if not self.rows:
            return x
        around = tf.pad(x, _sides(x, [r, 0], [r, r]))
        terms = zip(self.rows, self.offsets, strict=True)
        return tf.add_n([_with_axes(row, x) * self._cut(around, r + dy, r + dx) for row, (dy, dx) in terms])

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        if self.rows:
            around = _sides(y, [0, self.reach], [self.reach, self.reach])
            terms = zip(self.rows, self.offsets, strict=True)
            moved = ((tf.pad(_with_axes(row, y) * y, around), offset) for row, offset in terms)
            y = tf.add_n([self._cut(image, -dy, self.reach - dx) for image, (dy, dx) in moved])
        return _with_axes(self.root, y) * y

    def _cut(self, x: tf.Tensor, top: int, left: int) -> tf.Tensor:
        return x[..., top : top + self.side, left : left + self.side]


class WithoutConstant(Whiten):
    """(1 - q q^T) L sqrt(w) of each band, q the direction of its whitened constant.

    In the place of L sqrt(w) it makes of a chi-square that at the best constant, and of a curvature that with the
    constant left free: a constant under a flat prior is done with, exactly.
    """

    def __init__(self, weights: tf.Tensor, rows: tf.Tensor):
        super().__init__(weights, rows)
        constant = super().forward(tf.ones_like(weights))
        square = tf.reduce_sum(constant**2, [2, 3], keepdims=True)
        self.direction = constant * tf.where(square > 0, tf.math.rsqrt(square), tf.zeros_like(square))

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self._without(super().forward(x))

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return super().transpose(self._without(y))

    def _without(self, x: tf.Tensor) -> tf.Tensor:
        q = _with_axes(self.direction, x)
        return x - q * tf.reduce_sum(q * x, [-2, -1], keepdims=True)


def _with_axes(factor: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """[B, C, S, S] with as many axes as x [B, C, ..., S, S]."""
    extra = len(x.shape) - 4
    return tf.reshape(factor, [-1, factor.shape[1], *[1] * extra, *shape_of(factor)[2:]]) if extra else factor


def _sides(x: tf.Tensor, rows: list[int], columns: list[int]) -> list[list[int]]:
    """Paddings of the last two axes."""
    return [[0, 0]] * (len(x.shape) - 2) + [rows, columns]


class GaussianNoise:
    """n ~ N(0, Sigma), Sigma^-1 = sqrt(w) L^T L sqrt(w) where w > 0; masked pixels tell nothing.

    Args:
      weights: [B, C, S, S] w, the inverse variance a pixel.
      rows: [B, C, M, S, S] of L; M = 0 for white noise, L = 1.
      on_constant: whether the noise lies on a constant in each band of which nothing is known; it has no density then.

    Attributes:
      whiten: L sqrt(w), from images to white noise of variance 1; or `WithoutConstant`. constant: [B, C, S, S] what
        L sqrt(w) makes of the image 1.
    """

    def __init__(self, weights: tf.Tensor, rows: tf.Tensor, on_constant: bool = False):
        white = Whiten(weights, rows)
        self.weights, self.constant = weights, white.forward(tf.ones_like(weights))
        self.white, self.whiten = white, WithoutConstant(weights, rows) if on_constant else white

    def best_constant(self, residual: tf.Tensor) -> tf.Tensor:
        """[B, C]: the constant of least chi-square in each band; 0 in one that is all masked."""
        along = tf.reduce_sum(self.constant * self.white.forward(residual), [2, 3])
        return tf.math.divide_no_nan(along, tf.reduce_sum(self.constant**2, [2, 3]))

    def solve(self, residual: tf.Tensor) -> tf.Tensor:
        """Sigma^-1 residual."""
        return self.whiten.adjoint(self.whiten(residual))

    def chi2(self, residual: tf.Tensor) -> tf.Tensor:
        """[B]: residual^T Sigma^-1 residual."""
        return tf.reduce_sum(self.whiten(residual) ** 2, [1, 2, 3])

    def logdet(self) -> tf.Tensor:
        """[B]: log det Sigma, of the pixels that are not masked."""
        seen = self.weights > 0
        diagonal = tf.where(seen, self.weights, tf.ones_like(self.weights))
        for row in self.whiten.rows[:1]:
            diagonal *= tf.where(seen, row, tf.ones_like(row)) ** 2
        return -tf.reduce_sum(tf.math.log(diagonal), [1, 2, 3])

    def log_prob(self, residual: tf.Tensor) -> tf.Tensor:
        """[B]: log N(residual; 0, Sigma), in nats."""
        return self.log_normalisation() - 0.5 * self.chi2(residual)

    def log_normalisation(self) -> tf.Tensor:
        """[B]: log N(0; 0, Sigma)."""
        count = tf.reduce_sum(tf.cast(self.weights > 0, self.weights.dtype), [1, 2, 3])
        return -0.5 * (self.logdet() + count * float(np.log(2 * np.pi)))
