"""The linear Gaussian problem that a noise level poses: x ~ N(D, V), y = A x + n, n ~ N(0, I), for blends of K sources.

The unknowns are the sources' stamps and a background, coupled through A alone; y are the pixels of one exposure or of
several. V is a diagonal and a few directions for each galaxy, a free amplitude in each band for stars, and a variance
for the background: x = D + d^(1/2) a + L b with standard normals a, of the pixels, and b, of the directions. The few b
are eliminated exactly; what is left to conjugate gradients is well conditioned, since nearly all of the variance is
along the directions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfdeblend.forward.exposures import View, among_all, as_images, in_a_row
from tfdeblend.forward.operators import Place
from tfdeblend.linalg.low_rank import DiagonalLowRank


class Unknowns(NamedTuple):
    """Stamps at unit scale [B, K, C, P, P] and a background [B, C]."""

    stamps: tf.Tensor
    background: tf.Tensor

    def dot(self, other: Unknowns) -> tf.Tensor:
        """[B]: blend by blend, so that none depends on the others of its batch."""
        stamps = tf.reduce_sum(self.stamps * other.stamps, [1, 2, 3, 4])
        return stamps + tf.reduce_sum(self.background * other.background, 1)

    def __add__(self, other: Unknowns) -> Unknowns:  # type: ignore[override]
        return Unknowns(self.stamps + other.stamps, self.background + other.background)


class Normals(NamedTuple):
    """Standard normals of one draw: stamps [B, K, C, P, P], factor [B, K, R], amplitude [B, K, C], background [B, C]
    and data [B, n]."""

    stamps: tf.Tensor
    factor: tf.Tensor
    amplitude: tf.Tensor
    background: tf.Tensor
    data: tf.Tensor


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

    @property
    def diagonal(self) -> tf.Tensor:
        """d [B, K, C, P, P]. Raises: TypeError for a covariance that has none."""
        return self.galaxy * self._parts.diagonal + self.pixels

    @property
    def factor(self) -> tf.Tensor:
        """[B, K, R, C, P, P] of galaxies."""
        return self.galaxy[:, :, None] * self._parts.factor

    @property
    def _parts(self) -> DiagonalLowRank:
        if not isinstance(self.covariance, DiagonalLowRank):
            raise TypeError(f"expected a DiagonalLowRank covariance, received {type(self.covariance).__name__}")
        return self.covariance

    def combine(self, pixels: tf.Tensor, shared: tf.Tensor, own: tf.Tensor) -> Unknowns:
        """pixels + L b: pixels [B, K, C, P, P]; b of galaxies [B, K R], of stars and the background [B, C, K + 1]."""
        sources, rank = pixels.shape[1], self._parts.rank
        along = self._parts.expand(tf.reshape(shared, [tf.shape(pixels)[0], sources, rank]))
        stars = self.amplitude * tf.linalg.matrix_transpose(own[..., :sources])[..., None, None]
        stamps = pixels + self.galaxy * along + stars
        return Unknowns(stamps, tf.sqrt(self.background) * own[..., sources])

    def draw(self, normals: Normals) -> Unknowns:
        """N(0, V). Raises: TypeError for a covariance of which none can be drawn."""
        sources, rank = normals.stamps.shape[1], self._parts.rank
        shared = tf.reshape(normals.factor[..., :rank], [tf.shape(normals.factor)[0], sources * rank])
        own = [tf.linalg.matrix_transpose(normals.amplitude), normals.background[..., None]]
        return self.combine(tf.sqrt(self.diagonal) * normals.stamps, shared, tf.concat(own, 2))


class Blend:
    """A of a batch: stamps at unit scale and backgrounds -> whitened pixels [B, n], and back.

    Args:
      place: stamps -> frames. views: what sees the frames, at least one.
      scale: [B, K, C, 1, 1] or of every pixel: from unit scale to flux.
      amplitude, background: of `Spread`, whose images are made only once.
    """

    def __init__(
        self, place: Place, views: Sequence[View], scale: tf.Tensor, amplitude: tf.Tensor, background: tf.Tensor
    ):
        self.place, self.views, self.scale, self.bands = place, tuple(views), scale, background.shape[1]
        deviation = tf.sqrt(background)[:, :, None, None, None]
        self.own = [
            tf.concat([each, view.of(deviation) * view.constant[:, :, None]], 2)
            for view, each in zip(self.views, self.each(amplitude[:, :, None]), strict=True)
        ]

    def at(self, place: Place) -> Blend:
        """With stamps elsewhere. Those with an amplitude must stay: their images are not made anew."""
        moved = copy.copy(self)
        moved.place = place
        return moved

    def __call__(self, x: Unknowns) -> tf.Tensor:
        level = x.background[..., None, None]
        return self.see(self.place.forward(self.scale * x.stamps)) + in_a_row(
            [view.constant * view.of(level) for view in self.views]
        )

    def transpose(self, y: tf.Tensor) -> Unknowns:
        stamps = self.scale * self.place.transpose(self.unsee(y))
        pairs = zip(self.views, as_images(y, self.views), strict=True)
        levels = [among_all(tf.reduce_sum(view.constant * one, [2, 3]), view.bands, self.bands) for view, one in pairs]
        return Unknowns(stamps, tf.add_n(levels))

    def see(self, frames: tf.Tensor) -> tf.Tensor:
        """[B, C, F, F] -> [B, n]: frames as observed, whitened."""
        return in_a_row([view.observe.forward(view.of(frames)) for view in self.views])

    def unsee(self, y: tf.Tensor) -> tf.Tensor:
        """The adjoint of `see`."""
        pairs = zip(self.views, as_images(y, self.views), strict=True)
        return tf.add_n([among_all(view.observe.transpose(one), view.bands, self.bands) for view, one in pairs])

    def frame_variance(self, diagonal: tf.Tensor) -> tf.Tensor:
        """[B, C, F, F] of the sources' sum, for independent pixels of variances [B, K, C, P, P]."""
        return self.place.forward(self.scale**2 * diagonal)

    def each(self, stamps: tf.Tensor) -> list[tf.Tensor]:
        """[B, K, Q, C, P, P] -> [B, C_e, K Q, S_e, S_e] of each view: Q images of each source, each alone."""
        _, sources, number, bands, side, _ = stamps.shape
        flat = tf.reshape(self.scale[:, :, None] * stamps, [-1, sources, number * bands, side, side])
        frames = self.place.each(flat)
        frames = tf.reshape(frames, [-1, sources * number, bands, *frames.shape[-2:]])
        frames = tf.transpose(frames, [0, 2, 1, 3, 4])
        return [view.observe.forward(view.of(frames)) for view in self.views]

    def directions(self, spread: Spread) -> Directions:
        """U: V's directions as observed."""
        shared = self.each(spread.factor) if spread.factor.shape[2] else None
        return Directions(self.views, self.bands, self.own, shared)

    @property
    def own_directions(self) -> Directions:
        """U: those of stars and the background alone."""
        return Directions(self.views, self.bands, self.own)


class Directions:
    """U: V's directions as observed, and C = I + U^T U.

    Those of galaxies are of all bands together; those of stars and the background are of a band each. Coefficients are
    a pair of those [B, N] and these [B, C, M].

    Args:
      own, shared: [B, C_e, M, S_e, S_e] and [B, C_e, N, S_e, S_e] of each view; shared None for N = 0. bands: C.
    """

    def __init__(
        self, views: Sequence[View], bands: int, own: Sequence[tf.Tensor], shared: Sequence[tf.Tensor] | None = None
    ):
        self.views, self.bands, self.number = views, bands, shared[0].shape[2] if shared else 0
        every = [tf.concat([a, b], 2) for a, b in zip(shared, own, strict=True)] if shared else own
        self.columns = [tf.reshape(one, [-1, one.shape[1], one.shape[2], one.shape[3] * one.shape[4]]) for one in every]
        products = [tf.cast(tf.matmul(c, c, transpose_b=True), tf.float64) for c in self.columns]
        pairs = zip(products, views, strict=True)
        gram = tf.add_n([among_all(product, view.bands, bands) for product, view in pairs])
        n, number = self.number, every[0].shape[2]
        unit = np.eye(number)
        # Rounding of products in single precision must not make C indefinite: each is off by its columns' norms.
        gram += number * np.finfo(own[0].dtype.as_numpy_dtype).eps * gram * unit
        self._across, self._among_own = gram[:, :, :n, n:], gram[:, :, n:, n:] + unit[n:, n:]
        self._own = tf.linalg.inv(self._among_own)
        reduced = gram[:, :, :n, :n] - self._across @ self._own @ tf.linalg.matrix_transpose(self._across)
        self._among_shared = tf.reduce_sum(reduced, 1) + unit[:n, :n]
        self._shared = tf.linalg.inv(self._among_shared)

    def __call__(self, z: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """U z: -> [B, n]."""
        shared, own = z
        rows = []
        for view, columns in zip(self.views, self.columns, strict=True):
            bands = tf.tile(shared[:, None], [1, len(view.bands), 1])
            image = tf.matmul(tf.concat([bands, view.of(own)], 2)[:, :, None], columns)
            rows.append(tf.reshape(image, [-1, columns.shape[1] * columns.shape[3]]))
        return rows[0] if len(rows) == 1 else tf.concat(rows, 1)

    def transpose(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """U^T y."""
        along = []
        for view, columns, one in zip(self.views, self.columns, as_images(y, self.views), strict=True):
            flat = tf.reshape(one, [-1, columns.shape[1], columns.shape[3], 1])
            along.append(among_all(tf.matmul(columns, flat)[..., 0], view.bands, self.bands))
        total = tf.add_n(along)
        return tf.reduce_sum(total[..., : self.number], 1), total[..., self.number :]

    def solve(self, z: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """C^-1 z, those of a band eliminated first."""
        shared, own = (tf.cast(part, tf.float64)[..., None] for part in z)
        inner = self._own @ own
        shared = self._shared @ (shared - tf.reduce_sum(self._across @ inner, 1))
        own = inner - self._own @ tf.matmul(self._across, shared[:, None], transpose_a=True)
        return tf.cast(shared[..., 0], z[0].dtype), tf.cast(own[..., 0], z[1].dtype)

    def remove(self, y: tf.Tensor) -> tf.Tensor:
        """(I + U U^T)^-1 y = y - U C^-1 U^T y."""
        return y - self(self.solve(self.transpose(y)))

    def logdet(self) -> tf.Tensor:
        """[B]: log det (I + U U^T) = log det C, float64."""
        return tf.reduce_sum(tf.linalg.logdet(self._among_own), 1) + tf.linalg.logdet(self._among_shared)


def gaussian_step(
    blend: Blend, spread: Spread, residual: tf.Tensor, iterations: int, tolerance: float = 0.0
) -> Unknowns:
    """V A^T (I + A V A^T)^-1 residual: the maximum of the posterior of d^(1/2) a + L b.

    The data see the pixels of all sources only as their sum in the frame, g^(1/2) a with g the sum of their variances,
    of which each source has the share of its own. Given a, b = C^-1 U^T (residual - A g^(1/2) a); so a minimises
    |residual - A g^(1/2) a|^2, measured by (I + U U^T)^-1, + |a|^2. Every iteration of conjugate gradients lowers that:
    a solve may be cut short.

    Args:
      residual: y - A D, whitened [B, n]. iterations: at most so many. tolerance: a blend is done when its
      gradient has fallen to this fraction, whatever the others of its batch do.
    """
    directions, variance = blend.directions(spread), blend.frame_variance(spread.diagonal)
    root = tf.sqrt(variance)

    def pull(y: tf.Tensor) -> tf.Tensor:
        return root * blend.unsee(directions.remove(y))

    def push(a: tf.Tensor) -> tf.Tensor:
        return blend.see(root * a)

    def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(a * b, [1, 2, 3], keepdims=True)  # blend by blend: none depends on its batch

    gradient = pull(residual)
    power = dot(gradient, gradient)
    least = max(tolerance, float(np.finfo(power.dtype.as_numpy_dtype).eps))
    done = least**2 * power  # what is below is rounding, or good enough

    def iterate(count, a, gradient, direction, power):
        curved = direction + pull(push(direction))
        length = tf.where(power > done, power / tf.maximum(dot(direction, curved), 1e-30), tf.zeros_like(power))
        gradient -= length * curved
        after = dot(gradient, gradient)
        turn = tf.where(power > done, after / tf.maximum(power, 1e-30), tf.zeros_like(power))
        return count + 1, a + length * direction, gradient, gradient + turn * direction, after

    def unfinished(count, a, gradient, direction, power):
        return (count < iterations) & tf.reduce_any(power > done)

    start = [tf.constant(0), tf.zeros_like(gradient), gradient, gradient, power]
    a = tf.while_loop(unfinished, iterate, start)[1]
    shares = blend.scale * blend.place.transpose(tf.where(variance > 0, a / root, tf.zeros_like(a)))
    return spread.combine(spread.diagonal * shares, *directions.solve(directions.transpose(residual - push(a))))
