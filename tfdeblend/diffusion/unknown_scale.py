"""Priors of another flux scale, and of an open one."""

from __future__ import annotations

from keras import ops

from tfdeblend.diffusion.denoisers import Denoiser, Tensor, pixels
from tfdeblend.linalg.low_rank import DiagonalLowRank


class Rescaled(Denoiser):
    """The prior of r x, where x has that of `denoiser`: D = r D(x_t / r, sigma / r), V = r^2 V(x_t / r, sigma / r).

    Args:
      factor: r > 0 [...].
    """

    def __init__(self, denoiser: Denoiser, factor: Tensor):
        self.denoiser, self.factor = denoiser, factor

    @property
    def rank(self) -> int:
        return self.denoiser.rank

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        r = pixels(self.factor)
        return r * self.denoiser.denoise(x / r, sigma / self.factor)

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalLowRank]:
        r = pixels(self.factor)
        mean, v = self.denoiser.posterior(x / r, sigma / self.factor)
        return r * mean, DiagonalLowRank(r**2 * v.diagonal, ops.expand_dims(r, -4) * v.factor)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return pixels(self.factor) ** 2 * self.denoiser.prior_variance(sigma / self.factor)


class OpenScale(Denoiser):
    """The prior of r x with ln r flat, near r = 1, where x has that of `denoiser`.

    x_t tells ln r to sigma, where the prior, whose norms scatter by j (`scale_jitter`), takes it to be known to
    (1 / j^2 + 1 / sigma^2)^(-1/2). So V gets the direction s D besides, s^2 = sigma^4 / (sigma^2 + j^2) the difference.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser, self.jitter = denoiser, denoiser.scale_jitter

    @property
    def rank(self) -> int:
        return self.denoiser.rank + 1

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser.denoise(x, sigma)

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalLowRank]:
        mean, v = self.denoiser.posterior(x, sigma)
        share = ops.square(sigma) / ops.sqrt(ops.square(sigma) + self.jitter**2)
        along = ops.expand_dims(pixels(share) * mean, -4)
        return mean, DiagonalLowRank(v.diagonal, ops.concatenate([v.factor, along], -4))

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return self.denoiser.prior_variance(sigma)
