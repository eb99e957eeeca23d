"""Posterior denoisers: the mean of, and draws from, p(x | x_t, y), for all sources of a blend together.

A denoiser tells D = E[x | x_t]; with a covariance V = Cov[x | x_t] of all unknowns (block by block, a source each)

    D_y = D + V A^T (I + A V A^T)^-1 (y - A D),

y whitened. Sources couple through the shared data alone. What is chosen is V, or what stands in for the rest:

=============  ======================================================================================================
"head"         the covariance head: a diagonal and a few directions for each galaxy; needs no network gradient
"pixel"        each pixel's variance given x_t, if pixels were independent and Gaussian
"pigdm"        sigma^2 / (1 + sigma^2) I (Song et al. 2023)
"tmpd"         the row sums of V = sigma^2 J, J = dD / dx_t, as a diagonal (Boys et al. 2023)
"mmps"         V = sigma^2 J^T itself by vector-Jacobian products (Rozet et al. 2024). A learned J is neither symmetric
               nor positive, so that the solve is GMRES, whose residual cannot grow, instead of conjugate gradients
"convolved"    the likelihood of x_t itself: D + sigma^2 A^T (I + sigma^2 A A^T)^-1 (y - A x_t) (Barco et al. 2024)
"dps"          D - sigma^2 grad |y - A D| (Chung et al. 2023): no covariance
=============  ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfdeblend.diffusion.denoisers import Denoiser, pixels
from tfdeblend.diffusion.linear_gaussian import Blend, Normals, Spread, Unknowns, gaussian_step
from tfdeblend.linalg.low_rank import diagonal_only

METHODS = ("head", "pixel", "pigdm", "tmpd", "mmps", "convolved", "dps")
DRAWABLE = ("head", "pixel", "pigdm", "tmpd")  # those with a covariance of which draws can be made
SMALLEST_ROW_SUM = 1e-3  # of sigma^2: TMPD's diagonal may be negative where J is a learned one


@dataclass(frozen=True)
class Prior:
    """What stands before the data: a denoiser for galaxies, and Gaussians for all else.

    mean: D of galaxies [B, K, C, P, P] -> of all unknowns. spread: V of galaxies -> of all unknowns.
    """

    denoiser: Denoiser
    mean: Callable[[tf.Tensor], Unknowns]
    spread: Callable[[Any], Spread]


class Jacobian:
    """V = sigma^2 J^T at x_t, as a covariance that can only be applied."""

    def __init__(self, prior: Prior, x: tf.Tensor, sigma: tf.Tensor):
        self.prior, self.x, self.sigma = prior, x, sigma

    def matvec(self, v: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(self.x)
            product = tf.reduce_sum(self.prior.denoiser.denoise(self.x, self.sigma) * v)
        return pixels(self.sigma) ** 2 * tape.gradient(product, self.x)


class PosteriorDenoiser:
    """p(x | x_t, y) of B blends.

    Args:
      prior: see `Prior`. blend: A. data: y, whitened [B, n]. method: one of `METHODS`.
      iterations, tolerance: of the solve, see `gaussian_step`.
    """

    def __init__(
        self,
        prior: Prior,
        blend: Blend,
        data: tf.Tensor,
        method: str = "head",
        iterations: int = 10,
        tolerance: float = 0.0,
    ):
        if method not in METHODS:
            raise ValueError(f"covariance: expected one of {', '.join(METHODS)}, received {method!r}")
        self.prior, self.blend, self.data = prior, blend, data
        self.method, self.iterations, self.tolerance = method, iterations, tolerance

    def mean(self, x: tf.Tensor, sigma: tf.Tensor) -> Unknowns:
        """D_y: x_t [B, K, C, P, P], sigma [B, K]."""
        if self.method == "dps":
            return self._gradient_step(x, sigma)
        mean, spread = self._prior(x, sigma)
        seen = self.prior.mean(x) if self.method == "convolved" else mean
        residual = self.data - self.blend(seen)
        if self.method == "mmps":
            return mean + generalised_step(self.blend, spread, residual, self.iterations)
        return mean + gaussian_step(self.blend, spread, residual, self.iterations, self.tolerance)

    def mean_and_gain(self, x: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """D_y, and D_y - D, of the stamps [B, K, C, P, P]; with a symmetric V."""
        mean, spread = self._prior(x, sigma)
        gain = gaussian_step(self.blend, spread, self.data - self.blend(mean), self.iterations, self.tolerance)
        return (mean + gain).stamps, gain.stamps

    def draw(self, x: tf.Tensor, sigma: tf.Tensor, normals: Normals) -> Unknowns:
        """One draw, if p(x | x_t) were N(D, V): one of N(D, V), moved by what the data, noised anew, say of it."""
        if self.method not in DRAWABLE:
            raise ValueError(
                f"covariance: expected one of {', '.join(DRAWABLE)} to draw with, received {self.method!r}"
            )
        mean, spread = self._prior(x, sigma)
        drawn = mean + spread.draw(normals)
        residual = self.data + normals.data - self.blend(drawn)
        return drawn + gaussian_step(self.blend, spread, residual, self.iterations, self.tolerance)

    def _prior(self, x: tf.Tensor, sigma: tf.Tensor) -> tuple[Unknowns, Spread]:
        """D and V of all unknowns."""
        denoiser, variance = self.prior.denoiser, pixels(sigma) ** 2 * tf.ones_like(x)
        if self.method == "head":
            denoised, covariance = denoiser.posterior(x, sigma)
            return self.prior.mean(denoised), self.prior.spread(covariance)
        if self.method == "tmpd":
            jacobian = Jacobian(self.prior, x, sigma)
            covariance = tf.maximum(jacobian.matvec(tf.ones_like(x)), SMALLEST_ROW_SUM * variance)
        elif self.method == "mmps":
            return self.prior.mean(denoiser.denoise(x, sigma)), self.prior.spread(Jacobian(self.prior, x, sigma))
        elif self.method == "pixel":
            covariance = denoiser.prior_variance(sigma)
        else:
            covariance = variance / (1 + variance) if self.method == "pigdm" else variance
        return self.prior.mean(denoiser.denoise(x, sigma)), self.prior.spread(diagonal_only(covariance))

    def _gradient_step(self, x: tf.Tensor, sigma: tf.Tensor) -> Unknowns:
        with tf.GradientTape() as tape:
            tape.watch(x)
            mean = self.prior.mean(self.prior.denoiser.denoise(x, sigma))
            square = tf.reduce_sum((self.data - self.blend(mean)) ** 2, 1)
            norm = tf.sqrt(square)
        return mean + Unknowns(-(pixels(sigma) ** 2) * tape.gradient(norm, x), tf.zeros_like(mean.background))


def generalised_step(blend: Blend, spread: Spread, residual: tf.Tensor, iterations: int) -> Unknowns:
    """`gaussian_step` for a V that need not be symmetric: GMRES on (I + A V A^T) v = residual, in data space."""

    def apply(v: tf.Tensor) -> tf.Tensor:
        return v + blend(spread(blend.transpose(v)))

    def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(a * b, 1, keepdims=True)

    tiny = 1e-30
    length = tf.sqrt(dot(residual, residual))
    basis, images = [residual / tf.maximum(length, tiny)], []
    for _ in range(iterations):
        image = apply(basis[-1])
        images.append(image)
        following = image
        for vector in basis:  # modified Gram and Schmidt
            following -= dot(following, vector) * vector
        basis.append(following / tf.maximum(tf.sqrt(dot(following, following)), tiny))
    columns = tf.stack(images, 2)  # [B, n, iterations]
    # By its orthogonal decomposition: columns may be dependent.
    weights = tf.linalg.lstsq(columns, residual[..., None], fast=False)
    v = tf.add_n([w * b for w, b in zip(tf.unstack(weights, axis=1), basis[:-1], strict=True)])
    return spread(blend.transpose(v))
