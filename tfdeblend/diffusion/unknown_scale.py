"""Unknown flux scales: of a whole galaxy along the way, and of each of its bands at the end.

In flux, the prior of a galaxy is that of r x, with r > 0 unknown and evenly in ln r. A sampler keeps an r for each
galaxy and draws it from p(r | x_0) whenever it has drawn x_0 (a Gibbs step).

A network is never as sure of colours as the data of a bright galaxy are, nor are zero points. So amplitudes a of each
galaxy in each band end every fit and every sample: given the galaxies' shapes u they are a linear Gaussian problem,

    y = sum_i a_i A u_i + n,   a_i ~ N(1, width^2),

which is solved exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf
from keras import ops

from tfdeblend.diffusion.denoisers import PriorDenoiser, Tensor, flux_scale, pixels
from tfdeblend.diffusion.linear_gaussian import Normals
from tfdeblend.forward.likelihood import Images, Likelihood
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank, LowRankUpdate

LARGEST = 100.0  # of r, and of 1 / r
WIDTH = 0.3  # of a galaxy's amplitude in a band about 1, where a prior has said what it looks like


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
    """Says how flux scales r are drawn along with the galaxies, given each x_0 on the way.

    Args:
        widened: whether V leaves r as open as the noise does, see `ScaledDenoiser`; without, r moves by the denoiser's
            `scale_jitter` a step.
        amplitude_width: of each band's amplitude at the end; 0: none is drawn.
        recentre: whether the pixels of galaxies' centres are drawn, too.
    """

    widened: bool = True
    amplitude_width: float = WIDTH
    recentre: bool = True

    def draw(self, x0: tf.Tensor, jitter: float, normals: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
        """Draws r ~ p(r | x_0) [B, K], a log-normal of the jitter about |x_0|, not below `least`."""
        scale = flux_scale(x0) * tf.exp(jitter * normals)
        return tf.clip_by_value(scale, tf.maximum(least, 1 / LARGEST), LARGEST)


def amplitudes(
    likelihood: Likelihood, sources: Images, width: float = WIDTH, normals: Normals | None = None
) -> tf.Tensor:
    """Gives the amplitudes [B, K, C] of sources whose shapes are given: the best ones, or a draw.

    A draw perturbs the prior and the data by normals, and solves. These may be the ones that the shapes were drawn by:
    of the data's, it then explains what the shapes have left.

    Args:
      sources: each as each exposure observes it [B, K, C_e, S_e, S_e]. width: of the amplitudes' prior.
    """
    bands, count = [one.bands for one in likelihood.exposures], likelihood.shape.bands
    residual = likelihood.data(tuple(tf.reduce_sum(each, 1) for each in sources))
    pairs = zip(likelihood.exposures, sources, strict=True)
    columns = [one.noise.whiten.forward(width * tf.transpose(each, [0, 2, 1, 3, 4])) for one, each in pairs]
    update = LowRankUpdate(bands, count, columns)
    unit = tf.zeros([tf.shape(residual)[0], 0], residual.dtype)
    if normals is None:
        return 1 + width * tf.linalg.matrix_transpose(update.coefficients(residual)[1])
    prior = tf.linalg.matrix_transpose(normals.amplitude)
    _, moved = update.coefficients(residual - update.combine((unit, prior)) - normals.data)
    return 1 + width * tf.linalg.matrix_transpose(prior + moved)
