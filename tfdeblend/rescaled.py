"""A prior of another flux scale, or of one that is but a guess."""

from __future__ import annotations

from keras import ops

from tfdeblend.covariance import DiagonalLowRank
from tfdeblend.denoisers import Denoiser, Tensor, flux_scale, pixels


class Rescaled(Denoiser):
    """The prior of r x, where x has that of `denoiser`: D = r D(x_t / r, sigma / r), V = r^2 V(x_t / r, sigma / r).

    With a `width`, r is but a guess. V then has one more direction, D's own, along which lies what x_t leaves open of
    an amplitude known beforehand to `width` in place of r times the denoiser's `scale_jitter`.

    Args:
      factor: r > 0 [...]. width: a standard deviation [...], at unit scale; None: r is known.
    """

    def __init__(self, denoiser: Denoiser, factor: Tensor, width: Tensor | None = None):
        self.denoiser, self.factor, self.width = denoiser, factor, width

    @property
    def rank(self) -> int:
        return self.denoiser.rank + (self.width is not None)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        r = pixels(self.factor)
        return r * self.denoiser.denoise(x / r, sigma / self.factor)

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalLowRank]:
        r = pixels(self.factor)
        mean, v = self.denoiser.posterior(x / r, sigma / self.factor)
        factor = ops.expand_dims(r, -4) * v.factor
        if self.width is not None:
            known = _seen(self.denoiser.scale_jitter * self.factor, sigma)
            more = ops.sqrt(ops.maximum(_seen(self.width, sigma) - known, 0.0))
            factor = ops.concatenate([factor, ops.expand_dims(pixels(more / flux_scale(mean)) * mean, -4)], -4)
        return r * mean, DiagonalLowRank(r**2 * v.diagonal, factor)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        return pixels(self.factor) ** 2 * self.denoiser.prior_variance(sigma / self.factor)


def _seen(width: Tensor, sigma: Tensor) -> Tensor:
    """The variance of an amplitude of N(0, width^2) once it has been seen in noise of sigma."""
    return (width * sigma) ** 2 / (width**2 + sigma**2)
