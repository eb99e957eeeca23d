"""Solves the linear Gaussian problem of a noise level, x ~ N(D, V), y = A x + n, n ~ N(0, I), for blends of K sources.

The unknowns x are the sources' stamps at unit scale [B, K, C, P, P], coupled through A alone; y are the whitened pixels
[B, n] of all exposures. V is a diagonal and a few directions for each galaxy, and a free amplitude in each band for
stars: x = D + d^(1/2) a + L b with standard normals a, of the pixels, and b, of the directions. The few b are
eliminated exactly; what is left to conjugate gradients is well conditioned, since nearly all of the variance is along
the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from tfdeblend.forward.likelihood import Exposure, ForwardOperator
from tfdeblend.forward.operators import Place
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank, LowRankUpdate
from tfdeblend.linalg.solvers import Solver


class Normals(NamedTuple):
    """Standard normals of one draw of the unknowns and the data's noise.

    stamps: [B, K, C, P, P]. factor: [B, K, R]. amplitude: [B, K, C]. data: [B, n].
    """

    stamps: tf.Tensor
    factor: tf.Tensor
    amplitude: tf.Tensor
    data: tf.Tensor


class Covariance(Protocol):
    """A covariance of stamps [B, K, C, P, P] that can at least be multiplied by."""

    def matvec(self, v: tf.Tensor) -> tf.Tensor: ...


class SourceCovariance:
    """The covariance V of all sources' stamps at one noise level.

    Args:
      galaxies: V of the galaxies that the prior knows. known: [B, K, 1, 1, 1] 1 where there is one.
      pixels: [B, K, C, P, P] variances of other sources' independent pixels, or 0.
      amplitude: [B, K, C, P, P] one standard deviation of a known shape's flux in each band, as an image.
    """

    def __init__(self, galaxies: Covariance, known: tf.Tensor, pixels: tf.Tensor, amplitude: tf.Tensor):
        self.galaxies, self.known, self.pixels, self.amplitude = galaxies, known, pixels, amplitude

    def matvec(self, x: tf.Tensor) -> tf.Tensor:
        """Multiplies by V."""
        stamps = self.known * self.galaxies.matvec(self.known * x) + self.pixels * x
        return stamps + self.amplitude * tf.reduce_sum(self.amplitude * x, [3, 4], keepdims=True)

    @property
    def diagonal(self) -> tf.Tensor:
        """Gives d [B, K, C, P, P]. Raises: TypeError for galaxies whose covariance has none."""
        return self.known * self._parts.diagonal + self.pixels

    @property
    def factor(self) -> tf.Tensor:
        """Gives the galaxies' directions [B, K, R, C, P, P]."""
        return self.known[:, :, None] * self._parts.factor

    @property
    def _parts(self) -> DiagonalPlusLowRank:
        if not isinstance(self.galaxies, DiagonalPlusLowRank):
            raise TypeError(f"expected a DiagonalPlusLowRank covariance, received {type(self.galaxies).__name__}")
        return self.galaxies

    def combine(self, pixels: tf.Tensor, shared: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
        """Gives pixels + L b: pixels [B, K, C, P, P]; b of galaxies [B, K R], of stars [B, C, K]."""
        sources, rank = pixels.shape[1], self._parts.rank
        along = self._parts.expand(tf.reshape(shared, [tf.shape(pixels)[0], sources, rank]))
        stars = self.amplitude * tf.linalg.matrix_transpose(own)[..., None, None]
        return pixels + self.known * along + stars

    def draw(self, normals: Normals) -> tf.Tensor:
        """Draws from N(0, V). Raises: TypeError for galaxies whose covariance cannot be drawn from."""
        sources, rank = normals.stamps.shape[1], self._parts.rank
        shared = tf.reshape(normals.factor[..., :rank], [tf.shape(normals.factor)[0], sources * rank])
        own = tf.linalg.matrix_transpose(normals.amplitude)
        return self.combine(tf.sqrt(self.diagonal) * normals.stamps, shared, own)


class SourceOperator(ForwardOperator):
    """A of sources at unit scale, of which some have a known shape and an unknown amplitude.

    Args:
      place, exposures, scale: see `ForwardOperator`. amplitude: of `SourceCovariance`, whose images are made only once:
        sources with an amplitude must stay where they are.
    """

    def __init__(self, place: Place, exposures: Sequence[Exposure], scale: tf.Tensor, amplitude: tf.Tensor):
        super().__init__(place, exposures, scale)
        self.bands = amplitude.shape[2]
        self._own = self.images(amplitude[:, :, None])

    def frame_variance(self, diagonal: tf.Tensor) -> tf.Tensor:
        """Gives the variance of the sources' sum [B, C, F, F], of independent pixels' [B, K, C, P, P]."""
        return self.place.forward(self.scale**2 * diagonal)

    def update(self, covariance: SourceCovariance | None = None) -> LowRankUpdate:
        """Gives I + U U^T, where U are V's directions as observed; without a covariance, those of stars alone."""
        bands = [one.bands for one in self.exposures]
        factor = None if covariance is None else covariance.factor
        shared = None if factor is None or factor.shape[2] == 0 else self.images(factor)
        return LowRankUpdate(bands, self.bands, self._own, shared)


def gaussian_step(
    operator: SourceOperator, covariance: SourceCovariance, residual: tf.Tensor, solver: Solver
) -> tf.Tensor:
    """Gives V A^T (I + A V A^T)^-1 residual [B, K, C, P, P], by which the data move D to the posterior's maximum.

    The data see the pixels of all sources only as their sum in the frame, g^(1/2) a with g the sum of their variances,
    of which each source has the share of its own. Given a, b = C^-1 U^T (residual - A g^(1/2) a); so a minimises
    |residual - A g^(1/2) a|^2, measured by (I + U U^T)^-1, + |a|^2. A solve may be cut short: each of its iterations
    lowers that.

    Args:
      residual: y - A D, whitened [B, n].
    """
    update, variance = operator.update(covariance), operator.frame_variance(covariance.diagonal)
    root = tf.sqrt(variance)

    def pull(y: tf.Tensor) -> tf.Tensor:
        return root * operator.observe_transpose(update.solve(y))

    def push(a: tf.Tensor) -> tf.Tensor:
        return operator.observe(root * a)

    a = solver.solve(lambda a: a + pull(push(a)), pull(residual))
    shares = operator.scale * operator.place.transpose(tf.where(variance > 0, a / root, tf.zeros_like(a)))
    return covariance.combine(covariance.diagonal * shares, *update.coefficients(residual - push(a)))


def general_step(
    operator: SourceOperator, covariance: SourceCovariance, residual: tf.Tensor, solver: Solver
) -> tf.Tensor:
    """Gives the same as `gaussian_step` for a V that need not be symmetric: solves (I + A V A^T) v = residual."""

    def apply(v: tf.Tensor) -> tf.Tensor:
        return v + operator.forward(covariance.matvec(operator.transpose(v)))

    return covariance.matvec(operator.transpose(solver.solve(apply, residual)))
