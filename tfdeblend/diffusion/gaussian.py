"""The denoiser of a Gaussian prior, in closed form, and the fit of such a prior to stamps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdeblend.diffusion.denoisers import PriorDenoiser, Tensor, flux_scale, pixels
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank

STAMPS = ("bands", "pixel_scale", "model_sigma", "scale_jitter")  # what the file says beside the arrays


class GaussianDenoiser(PriorDenoiser):
    """The prior N(m, C), C = diag(d) + F^T F: D = m + V (x_t - m) / sigma^2 and V = sigma^2 C (C + sigma^2)^-1.

    Args:
      mean, diagonal: m, d, [C, P, P]; d > 0. factor: F, [R, C, P, P]. All of one dtype, in which all is computed.
      bands, pixel_scale, model_sigma, scale_jitter: of the stamps, as `NeuralDenoiser` has them.
    """

    def __init__(
        self,
        mean: Any,
        diagonal: Any,
        factor: Any,
        bands: Sequence[str] = (),
        pixel_scale: float = 1.0,
        model_sigma: float = 1.0,
        scale_jitter: float = 0.0,
    ):
        # Variables, so that graphs outlast an iteration of expectation-maximisation.
        self.mean, self._diagonal, self._factor = (_variable(a) for a in (mean, diagonal, factor))
        self.bands, self.pixel_scale, self.model_sigma = tuple(bands), pixel_scale, model_sigma
        self.scale_jitter, self.stamp_shape = scale_jitter, tuple(self.mean.shape)
        if self.mean.shape != self._diagonal.shape or self.mean.shape != self._factor.shape[1:]:
            shapes = [tuple(a.shape) for a in (self.mean, self._diagonal, self._factor)]
            raise ValueError(f"expected mean (C, P, P), diagonal (C, P, P) and factor (R, C, P, P), received {shapes}")

    @property
    def prior(self) -> DiagonalPlusLowRank:
        """Gives the covariance C of stamps at unit scale."""
        return DiagonalPlusLowRank(ops.convert_to_tensor(self._diagonal), ops.convert_to_tensor(self._factor))

    @property
    def rank(self) -> int:
        """Counts the directions of the covariance."""
        return self._factor.shape[0]

    @property
    def variance(self) -> Tensor:
        """Gives the diagonal of C."""
        return self.prior.variance

    def assign(self, other: GaussianDenoiser) -> None:
        """Takes over the mean and covariance of another of the same shape."""
        self.mean.assign(other.mean)
        self._diagonal.assign(other._diagonal)
        self._factor.assign(other._factor)

    def covariance(self, sigma: Tensor) -> DiagonalPlusLowRank:
        """Gives V, which depends on no image: sigma [...]."""
        return self.prior.given(pixels(sigma) ** 2)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        noise, variance = pixels(sigma) ** 2, self.prior.variance
        return noise * variance / (noise + variance)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.posterior(x, sigma)[0]

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalPlusLowRank]:
        sigma = ops.broadcast_to(sigma, ops.shape(x)[:-3])
        v = self.covariance(sigma)
        return self.mean + v.matvec(x - self.mean) / pixels(sigma) ** 2, v

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gives -(C + sigma^2)^-1 (x_t - m), which is (D - x_t) / sigma^2 without its cancellation at small sigma."""
        total = DiagonalPlusLowRank(pixels(sigma) ** 2 + self.prior.diagonal, self.prior.factor)
        return -total.solve(x - self.mean)

    def draw(self, number: int, seed: int) -> np.ndarray:
        """Draws x at unit norm (number, C, P, P)."""
        rng = np.random.default_rng(seed)
        mean, diagonal, factor = (
            ops.convert_to_numpy(part).astype(float) for part in (self.mean, self._diagonal, self._factor)
        )
        x = mean + np.sqrt(diagonal) * rng.standard_normal((number, *mean.shape))
        x += np.tensordot(rng.standard_normal((number, self.rank)), factor, 1)
        return x / flux_scale(x)[:, None, None, None]

    def save(self, path: Path) -> None:
        """Writes an .npz archive."""
        arrays = {"mean": self.mean, "diagonal": self._diagonal, "factor": self._factor}
        written = {name: ops.convert_to_numpy(value) for name, value in arrays.items()}
        written |= {name: np.array(getattr(self, name)) for name in STAMPS}
        np.savez(path, **written)

    @classmethod
    def load(cls, path: Path) -> GaussianDenoiser:
        """Reads what `save` wrote."""
        with np.load(path) as archive:
            stamps = {name: archive[name].tolist() for name in STAMPS}
            return cls(archive["mean"], archive["diagonal"], archive["factor"], **stamps)

    @classmethod
    def fit(
        cls, stamps: np.ndarray, rank: int, iterations: int = 16, seed: int = 0, floor: float = 1e-4, **kwargs: Any
    ) -> GaussianDenoiser:
        """Fits stamps (N, C, P, P) by expectation-maximisation (factor analysis, Rubin & Thayer 1982).

        Starts from principal components. The diagonal stays above `floor` times the mean variance: pixels without
        light would else have none. iterations: of EM. kwargs: what the stamps are, see the class.
        """
        x = stamps.reshape(len(stamps), -1)
        mean = x.mean(0)
        x = x - mean
        variance = np.einsum("ni,ni->i", x, x) / len(x)
        least = floor * variance.mean()
        factor = _principal(x, rank, seed)
        diagonal = np.maximum(variance - (factor**2).sum(0), least)
        for _ in range(iterations):
            factor, diagonal = factor_analysis_step(x, variance, factor, diagonal, least)
        shape = stamps.shape[1:]
        return cls(mean.reshape(shape), diagonal.reshape(shape), factor.reshape(rank, *shape), **kwargs)


def _variable(values: Any) -> keras.Variable:
    return keras.Variable(values, dtype=keras.backend.standardize_dtype(values.dtype), trainable=False)


def factor_analysis_step(
    x: np.ndarray, variance: np.ndarray, factor: np.ndarray, diagonal: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Takes one iteration of EM for x ~ N(0, diag(d) + F^T F): x (N, n), variance and d (n), F (R, n) -> F, d."""
    scaled = factor / diagonal
    covariance = np.linalg.inv(np.eye(len(factor), dtype=x.dtype) + scaled @ factor.T)  # of z | x
    z = (x @ scaled.T) @ covariance
    cross = z.T @ x
    factor = np.linalg.solve(len(x) * covariance + z.T @ z, cross)
    return factor, np.maximum(variance - (cross * factor).sum(0) / len(x), least)


def _principal(x: np.ndarray, rank: int, seed: int) -> np.ndarray:
    """Gives about the first R principal components (R, n) of x (N, n), rows times their standard deviation."""
    start = np.random.default_rng(seed).standard_normal((rank, x.shape[1])).astype(x.dtype)
    basis = np.linalg.qr(((start @ x.T) @ x).T)[0]  # one step of subspace iteration
    _, deviation, rows = np.linalg.svd((basis.T @ x.T @ x / len(x)) @ basis)
    return np.sqrt(deviation)[:, None] * (rows @ basis.T)
