"""Matrices of a diagonal and a few directions: covariances V = diag(d) + L L^T of images, and I + U U^T of data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from tfdeblend.linalg.operator import gather_bands, scatter_bands, split

Tensor = Any  # of the Keras backend


class DiagonalPlusLowRank:
    """V = diag(d) + L L^T over the pixels of images, positive definite by construction.

    What needs an inverse uses Woodbury's identity, with matrices of R x R only: V^-1 = d^-1 - d^-1 L M^-1 L^T d^-1 and
    det V = det M prod d, where M = I + L^T d^-1 L.

    Args:
      diagonal: d > 0, [..., C, P, P].
      factor: L, [..., R, C, P, P].
    """

    def __init__(self, diagonal: Tensor, factor: Tensor):
        self.diagonal, self.factor = diagonal, factor

    @classmethod
    def of_diagonal(cls, diagonal: Tensor) -> DiagonalPlusLowRank:
        """Makes diag(d), d [..., C, P, P], with no directions."""
        return cls(diagonal, ops.zeros((*diagonal.shape[:-3], 0, *diagonal.shape[-3:]), diagonal.dtype))

    @property
    def rank(self) -> int:
        """Counts the directions R."""
        return self.factor.shape[-4]

    @property
    def variance(self) -> Tensor:
        """Gives the diagonal of V, [..., C, P, P]."""
        return self.diagonal + ops.sum(ops.square(self.factor), -4)

    def matvec(self, v: Tensor) -> Tensor:
        """Multiplies by V: [..., C, P, P] -> [..., C, P, P]."""
        return self.diagonal * v + self.expand(self._project(v))

    def given(self, noise: Tensor) -> DiagonalPlusLowRank:
        """Gives (V^-1 + 1 / noise)^-1, the covariance once a noised image has been seen.

        With A = d + noise and M = I + L^T A^-1 L, Woodbury's identity gives it as a diagonal and a factor of L's rank,
        without a difference of large numbers: noise d / A + G G^T, G = noise A^-1 L M^(-1/2).

        Args:
          noise: the variance of white noise [..., 1, 1, 1], which may have axes before those of V.
        """
        total = noise + self.diagonal
        root = ops.cholesky(DiagonalPlusLowRank(total, self.factor).capacitance())
        scaled = self.factor / ops.expand_dims(total, -4)
        rows = ops.reshape(ops.solve_triangular(root, self._rows(scaled), lower=True), ops.shape(scaled))
        return DiagonalPlusLowRank(noise * self.diagonal / total, ops.expand_dims(noise, -4) * rows)

    def smooth(self, noise: Tensor, v: Tensor) -> Tensor:
        """Gives V (V + noise)^-1 v, the best guess of a draw v of N(0, V) that is seen in noise.

        It is cheaper than products with what `given` returns, and free of a difference of large numbers.
        """
        total = DiagonalPlusLowRank(noise + self.diagonal, self.factor)
        root = ops.cholesky(total.capacitance())
        along = self._project(v / total.diagonal)[..., None]
        inner = ops.solve_triangular(root, along, lower=True)
        z = ops.solve_triangular(ops.swapaxes(root, -1, -2), inner, lower=False)[..., 0]
        return (self.diagonal * v + noise * self.expand(z)) / total.diagonal

    def draw(self, eps: Tensor, eps_factor: Tensor) -> Tensor:
        """Draws sqrt(d) eps + L eps_factor ~ N(0, V) from standard normals [..., C, P, P] and [..., R]."""
        return ops.sqrt(self.diagonal) * eps + self.expand(eps_factor)

    def solve(self, v: Tensor) -> Tensor:
        """Multiplies by V^-1."""
        scaled = v / self.diagonal
        inner = ops.linalg.solve(self.capacitance(), self._project(scaled)[..., None])[..., 0]
        return scaled - self.expand(inner) / self.diagonal

    def log_prob(self, v: Tensor) -> Tensor:
        """Gives log N(v; 0, V) [...] in nats."""
        root = ops.cholesky(self.capacitance())
        scaled = v / self.diagonal
        inner = ops.solve_triangular(root, self._project(scaled)[..., None], lower=True)[..., 0]
        chi2 = ops.sum(v * scaled, (-3, -2, -1)) - ops.sum(ops.square(inner), -1)
        logdet = ops.sum(ops.log(self.diagonal), (-3, -2, -1)) + 2 * ops.sum(
            ops.log(ops.diagonal(root, axis1=-2, axis2=-1)), -1
        )
        pixels = int(np.prod(self.diagonal.shape[-3:]))
        return -0.5 * (chi2 + logdet + pixels * float(np.log(2 * np.pi)))

    def capacitance(self) -> Tensor:
        """Gives M = I + L^T d^-1 L, [..., R, R]."""
        factor = self._rows(self.factor)
        scaled = self._rows(self.factor / ops.expand_dims(self.diagonal, -4))
        return ops.eye(self.rank, dtype=factor.dtype) + ops.matmul(scaled, ops.swapaxes(factor, -1, -2))

    def _project(self, v: Tensor) -> Tensor:
        """Multiplies by L^T: [..., C, P, P] -> [..., R]."""
        flat = ops.reshape(v, (*ops.shape(v)[:-3], int(np.prod(v.shape[-3:])), 1))
        return ops.matmul(self._rows(self.factor), flat)[..., 0]

    def expand(self, z: Tensor) -> Tensor:
        """Multiplies by L: [..., R] -> [..., C, P, P]."""
        flat = ops.matmul(ops.expand_dims(z, -2), self._rows(self.factor))
        return ops.reshape(flat, (*ops.shape(flat)[:-2], *self.diagonal.shape[-3:]))

    def _rows(self, factor: Tensor) -> Tensor:
        """Joins the axes of a pixel: [..., R, C, P, P] -> [..., R, C P P]."""
        return ops.reshape(factor, (*ops.shape(factor)[:-3], int(np.prod(factor.shape[-3:]))))


class LowRankUpdate:
    """I + U U^T over vectors of several blocks, and C = I + U^T U, by which it is inverted (Woodbury).

    A block shows some of C bands. N columns of U are shared by all bands, M are of each band alone; coefficients are a
    pair of those [B, N] and these [B, C, M], of which these are eliminated first.

    Args:
      bands: the bands of each block, by number. number: C.
      own, shared: the columns as images of each block, [B, C_e, M, S_e, S_e] and [B, C_e, N, S_e, S_e]; shared None for
        N = 0.
    """

    def __init__(
        self,
        bands: Sequence[tuple[int, ...]],
        number: int,
        own: Sequence[tf.Tensor],
        shared: Sequence[tf.Tensor] | None = None,
    ):
        self.bands, self.number, self.shared = tuple(bands), number, shared[0].shape[2] if shared else 0
        self.shapes = [(one.shape[1], *one.shape[3:]) for one in own]
        every = [tf.concat([a, b], 2) for a, b in zip(shared, own, strict=True)] if shared else own
        self.columns = [tf.reshape(one, [-1, one.shape[1], one.shape[2], one.shape[3] * one.shape[4]]) for one in every]
        products = [tf.cast(tf.matmul(c, c, transpose_b=True), tf.float64) for c in self.columns]
        gram = tf.add_n([scatter_bands(p, of, number) for p, of in zip(products, self.bands, strict=True)])
        n, total = self.shared, every[0].shape[2]
        unit = np.eye(total)
        # Rounding of products in single precision must not make C indefinite: each is off by its columns' norms.
        gram += total * np.finfo(own[0].dtype.as_numpy_dtype).eps * gram * unit
        self._across, self._among_own = gram[:, :, :n, n:], gram[:, :, n:, n:] + unit[n:, n:]
        self._own = tf.linalg.inv(self._among_own)
        if not n:
            return
        reduced = gram[:, :, :n, :n] - self._across @ self._own @ tf.linalg.matrix_transpose(self._across)
        self._among_shared = tf.reduce_sum(reduced, 1) + unit[:n, :n]
        self._shared = tf.linalg.inv(self._among_shared)

    def combine(self, z: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Multiplies by U: coefficients -> [B, n]."""
        shared, own = z
        rows = []
        for of, columns in zip(self.bands, self.columns, strict=True):
            every = gather_bands(own, of)
            if self.shared:
                every = tf.concat([tf.tile(shared[:, None], [1, len(of), 1]), every], 2)
            image = tf.matmul(every[:, :, None], columns)
            rows.append(tf.reshape(image, [-1, columns.shape[1] * columns.shape[3]]))
        return rows[0] if len(rows) == 1 else tf.concat(rows, 1)

    def project(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Multiplies by U^T: [B, n] -> coefficients."""
        along = []
        for of, columns, one in zip(self.bands, self.columns, split(y, self.shapes), strict=True):
            flat = tf.reshape(one, [-1, columns.shape[1], columns.shape[3], 1])
            along.append(scatter_bands(tf.matmul(columns, flat)[..., 0], of, self.number))
        total = tf.add_n(along)
        return tf.reduce_sum(total[..., : self.shared], 1), total[..., self.shared :]

    def coefficients(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives C^-1 U^T y, the best coefficients for y = U z + n under standard normals z and n."""
        projected = self.project(y)
        shared, own = (tf.cast(part, tf.float64)[..., None] for part in projected)
        inner = self._own @ own
        if not self.shared:
            return projected[0], tf.cast(inner[..., 0], projected[1].dtype)
        shared = self._shared @ (shared - tf.reduce_sum(self._across @ inner, 1))
        own = inner - self._own @ tf.matmul(self._across, shared[:, None], transpose_a=True)
        return tf.cast(shared[..., 0], projected[0].dtype), tf.cast(own[..., 0], projected[1].dtype)

    def solve(self, y: tf.Tensor) -> tf.Tensor:
        """Gives (I + U U^T)^-1 y = y - U C^-1 U^T y."""
        return y - self.combine(self.coefficients(y))

    def logdet(self) -> tf.Tensor:
        """Gives log det (I + U U^T) = log det C [B], float64."""
        own = tf.reduce_sum(tf.linalg.logdet(self._among_own), 1)
        return own + tf.linalg.logdet(self._among_shared) if self.shared else own
