"""A prior of another flux scale."""

from __future__ import annotations

from keras import ops

from tfdeblend.covariance import DiagonalLowRank
from tfdeblend.denoisers import Denoiser, Tensor, pixels


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
