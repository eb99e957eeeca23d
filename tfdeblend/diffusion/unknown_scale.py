"""The unknown flux scale: in flux, the prior of a galaxy is that of r x, with r > 0 unknown and evenly in ln r.

A sampler keeps an r for each galaxy and draws it from p(r | x_0) whenever it has drawn x_0 (a Gibbs step).
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf
from keras import ops

from tfdeblend.diffusion.denoisers import PriorDenoiser, Tensor, flux_scale, pixels
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank

LARGEST = 100.0  # of r, and of 1 / r


class ScaledDenoiser(PriorDenoiser):
    """The prior of r x, where x has that of `denoiser`: D = r D(x_t / r, sigma / r), V = r^2 V(x_t / r, sigma / r).

    x_t says ln r to sigma / r, where the prior, whose norms scatter by j (`scale_jitter`), takes it to be known to
    (1 / j^2 + 1 / sigma^2)^(-1/2). `widened`, V has one more direction, s D with s^2 = sigma^4 / (sigma^2 + j^2) the
    difference: it is that of an r which is open near its value.

    Args:
      factor: r > 0 [...].
    """

    def __init__(self, denoiser: PriorDenoiser, factor: Tensor, widened: bool = False):
        self.denoiser, self.factor, self.widened, self.jitter = denoiser, factor, widened, denoiser.scale_jitter

    @property
    def rank(self) -> int:
        return self.denoiser.rank + self.widened

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        r = pixels(self.factor)
        return r * self.denoiser.denoise(x / r, sigma / self.factor)

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalPlusLowRank]:
        r, sigma = pixels(self.factor), sigma / self.factor
        mean, v = self.denoiser.posterior(x / r, sigma)
        factor = v.factor
        if self.widened:
            share = ops.square(sigma) / ops.sqrt(ops.square(sigma) + self.jitter**2)
            factor = ops.concatenate([factor, ops.expand_dims(pixels(share) * mean, -4)], -4)
        return r * mean, DiagonalPlusLowRank(r**2 * v.diagonal, ops.expand_dims(r, -4) * factor)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return pixels(self.factor) ** 2 * self.denoiser.prior_variance(sigma / self.factor)


@dataclass(frozen=True)
class UnknownScale:
    """How flux scales r are drawn along with the galaxies, given each x_0 on the way.

    widened: whether V leaves r as open as the noise does, see `ScaledDenoiser`; without, r moves by the denoiser's
    `scale_jitter` a step.
    """

    widened: bool = True

    def draw(self, x0: tf.Tensor, jitter: float, normals: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
        """Draws r ~ p(r | x_0) [B, K], a log-normal of the jitter about |x_0|, not below `least`."""
        scale = flux_scale(x0) * tf.exp(jitter * normals)
        return tf.clip_by_value(scale, tf.maximum(least, 1 / LARGEST), LARGEST)
