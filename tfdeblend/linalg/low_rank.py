"""Covariances of images as a diagonal and a few directions, V = diag(d) + L L^T."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

Tensor = Any  # of the Keras backend


class DiagonalLowRank:
    """V = diag(d) + L L^T over the pixels of images, positive definite by construction.

    What needs an inverse uses Woodbury's identity, with matrices of R x R only: V^-1 = d^-1 - d^-1 L M^-1 L^T d^-1 and
    det V = det M prod d, where M = I + L^T d^-1 L.

    Args:
      diagonal: d > 0, [..., C, P, P].
      factor: L, [..., R, C, P, P].
    """

    def __init__(self, diagonal: Tensor, factor: Tensor):
        self.diagonal, self.factor = diagonal, factor

    @property
    def rank(self) -> int:
        """R."""
        return self.factor.shape[-4]

    @property
    def variance(self) -> Tensor:
        """The diagonal of V, [..., C, P, P]."""
        return self.diagonal + ops.sum(ops.square(self.factor), -4)

    def matvec(self, v: Tensor) -> Tensor:
        """V v: [..., C, P, P] -> [..., C, P, P]."""
        return self.diagonal * v + self.expand(self._project(v))

    def given(self, noise: Tensor) -> DiagonalLowRank:
        """(V^-1 + 1 / noise)^-1: the covariance once a noised image has been seen.

        With A = d + noise and M = I + L^T A^-1 L, Woodbury's identity gives it as a diagonal and a factor of L's rank,
        without a difference of large numbers: noise d / A + G G^T, G = noise A^-1 L M^(-1/2).

        Args:
          noise: variance of white noise [..., 1, 1, 1], which may have axes before those of V.
        """
        total = noise + self.diagonal
        root = ops.cholesky(DiagonalLowRank(total, self.factor).capacitance())
        scaled = self.factor / ops.expand_dims(total, -4)
        rows = ops.reshape(ops.solve_triangular(root, self._rows(scaled), lower=True), ops.shape(scaled))
        return DiagonalLowRank(noise * self.diagonal / total, ops.expand_dims(noise, -4) * rows)

    def smooth(self, noise: Tensor, v: Tensor) -> Tensor:
        """V (V + noise)^-1 v: the best guess of a draw of N(0, V) that is seen in noise; cheaper than the products with
        what `given` returns, and without a difference of large numbers."""
        total = DiagonalLowRank(noise + self.diagonal, self.factor)
        root = ops.cholesky(total.capacitance())
        along = self._project(v / total.diagonal)[..., None]
        inner = ops.solve_triangular(root, along, lower=True)
        z = ops.solve_triangular(ops.swapaxes(root, -1, -2), inner, lower=False)[..., 0]
        return (self.diagonal * v + noise * self.expand(z)) / total.diagonal

    def draw(self, eps: Tensor, eps_factor: Tensor) -> Tensor:
        """N(0, V) from standard normals [..., C, P, P] and [..., R]: sqrt(d) eps + L eps_factor."""
        return ops.sqrt(self.diagonal) * eps + self.expand(eps_factor)

    def solve(self, v: Tensor) -> Tensor:
        """V^-1 v."""
        scaled = v / self.diagonal
        inner = ops.linalg.solve(self.capacitance(), self._project(scaled)[..., None])[..., 0]
        return scaled - self.expand(inner) / self.diagonal

    def logdet(self) -> Tensor:
        """[...]: log det V."""
        root = ops.cholesky(self.capacitance())
        return ops.sum(ops.log(self.diagonal), (-3, -2, -1)) + _logdet_root(root)

    def log_prob(self, v: Tensor) -> Tensor:
        """[...]: log N(v; 0, V), in nats."""
        root = ops.cholesky(self.capacitance())
        scaled = v / self.diagonal
        inner = ops.solve_triangular(root, self._project(scaled)[..., None], lower=True)[..., 0]
        chi2 = ops.sum(v * scaled, (-3, -2, -1)) - ops.sum(ops.square(inner), -1)
        logdet = ops.sum(ops.log(self.diagonal), (-3, -2, -1)) + _logdet_root(root)
        pixels = int(np.prod(self.diagonal.shape[-3:]))
        return -0.5 * (chi2 + logdet + pixels * float(np.log(2 * np.pi)))

    def capacitance(self) -> Tensor:
        """M = I + L^T d^-1 L, [..., R, R]."""
        factor = self._rows(self.factor)
        scaled = self._rows(self.factor / ops.expand_dims(self.diagonal, -4))
        return ops.eye(self.rank, dtype=factor.dtype) + ops.matmul(scaled, ops.swapaxes(factor, -1, -2))

    def _project(self, v: Tensor) -> Tensor:
        """L^T v: [..., C, P, P] -> [..., R]."""
        flat = ops.reshape(v, (*ops.shape(v)[:-3], int(np.prod(v.shape[-3:])), 1))
        return ops.matmul(self._rows(self.factor), flat)[..., 0]

    def expand(self, z: Tensor) -> Tensor:
        """L z: [..., R] -> [..., C, P, P]."""
        flat = ops.matmul(ops.expand_dims(z, -2), self._rows(self.factor))
        return ops.reshape(flat, (*ops.shape(flat)[:-2], *self.diagonal.shape[-3:]))

    def _rows(self, factor: Tensor) -> Tensor:
        """[..., R, C, P, P] -> [..., R, C P P]."""
        return ops.reshape(factor, (*ops.shape(factor)[:-3], int(np.prod(factor.shape[-3:]))))


def diagonal_only(diagonal: Tensor) -> DiagonalLowRank:
    """diag(d), d [..., C, P, P], with no directions."""
    return DiagonalLowRank(diagonal, ops.zeros((*diagonal.shape[:-3], 0, *diagonal.shape[-3:]), diagonal.dtype))


def _logdet_root(root: Tensor) -> Tensor:
    """log det M of M's Cholesky root."""
    return 2 * ops.sum(ops.log(ops.diagonal(root, axis1=-2, axis2=-1)), -1)
