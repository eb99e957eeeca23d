"""Posterior denoisers: the mean D_y of p(x | x_t, y), and draws from it, for all sources of a blend together.

A denoiser gives D = E[x | x_t]; with a covariance V = Cov[x | x_t] of all unknowns (block by block, a source each)

    D_y = D + V A^T (I + A V A^T)^-1 (y - A D),

y whitened. Sources couple through the shared data alone. A conditioning is a choice of V, or of what stands for it.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import tensorflow as tf

from tfdeblend.diffusion.denoisers import Denoiser, PriorDenoiser, pixels
from tfdeblend.diffusion.linear_gaussian import (
    Covariance,
    ForwardOperator,
    Normals,
    SourceCovariance,
    gaussian_step,
    general_step,
)
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.linalg.solvers import GMRES, ConjugateGradients, Solver

TO_THE_END = ConjugateGradients(rtol=1e-5, max_steps=80)
FEW_STEPS = GMRES(max_steps=5)


class Problem(Protocol):
    """y = A x + n, and what is known of all sources but for the galaxies; see `BlendProblem`."""

    operator: ForwardOperator
    data: tf.Tensor

    def mean(self, denoised: tf.Tensor) -> tf.Tensor: ...

    def covariance(self, galaxies: Covariance) -> SourceCovariance: ...


class PosteriorDenoiser(Denoiser):
    """Denoises all sources of B blends given x_t and the data: x_t [B, K, C, P, P], sigma [B, K].

    Its score is that of the posterior, grad log p(x_t | y).

    Args:
      denoiser: the prior of the galaxies. problem: A, y, and other sources. solver: of the linear system; None: the
        class's own, `default_solver`.
    """

    default_solver: ClassVar[Solver] = TO_THE_END
    has_draws: ClassVar[bool] = False

    def __init__(self, denoiser: PriorDenoiser, problem: Problem, solver: Solver | None = None):
        self.denoiser, self.problem, self.operator, self.data = denoiser, problem, problem.operator, problem.data
        self.solver = solver or self.default_solver

    def draw(self, x: tf.Tensor, sigma: tf.Tensor, normals: Normals) -> tf.Tensor:
        """Draws from p(x | x_t, y). Raises: TypeError for a conditioning that has no draws."""
        raise TypeError(f"expected a conditioning that has draws, received {type(self).__name__}")


class GaussianConditioning(PosteriorDenoiser):
    """Takes p(x | x_t) for N(D, V) with V of the covariance head; needs no gradient of a network."""

    has_draws = True

    def denoise(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        mean, gain = self.denoise_with_gain(x, sigma)
        return mean + gain

    def denoise_with_gain(self, x: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives D, and D_y - D."""
        mean, covariance = self._gaussian(x, sigma)
        return mean, gaussian_step(self.operator, covariance, self.data - self.operator.forward(mean), self.solver)

    def draw(self, x: tf.Tensor, sigma: tf.Tensor, normals: Normals) -> tf.Tensor:
        """Draws from N(D, V), and moves the draw by what the data, with noise added once more, say of it."""
        mean, covariance = self._gaussian(x, sigma)
        drawn = mean + covariance.draw(normals)
        residual = self.data + normals.data - self.operator.forward(drawn)
        return drawn + gaussian_step(self.operator, covariance, residual, self.solver)

    def _gaussian(self, x: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, SourceCovariance]:
        mean, covariance = self.denoiser.posterior(x, sigma)
        return self.problem.mean(mean), self.problem.covariance(covariance)


class Jacobian:
    """The covariance V = sigma^2 J^T at x_t, J = dD / dx_t (Tweedie), which can only be multiplied by."""

    def __init__(self, denoiser: Denoiser, x: tf.Tensor, sigma: tf.Tensor):
        self.denoiser, self.x, self.sigma = denoiser, x, sigma

    def matvec(self, v: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(self.x)
            product = tf.reduce_sum(self.denoiser.denoise(self.x, self.sigma) * v)
        return pixels(self.sigma) ** 2 * tape.gradient(product, self.x)


class MMPS(PosteriorDenoiser):
    """Takes V = sigma^2 J^T by vector-Jacobian products (moment matching, Rozet et al. 2024, arXiv:2405.13712).

    A learned J is neither symmetric nor positive, so that the solver is GMRES, whose residual cannot grow.
    """

    default_solver = FEW_STEPS

    def denoise(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        mean = self.problem.mean(self.denoiser.denoise(x, sigma))
        covariance = self.problem.covariance(Jacobian(self.denoiser, x, sigma))
        return mean + general_step(self.operator, covariance, self.data - self.operator.forward(mean), self.solver)


class ConvolvedLikelihood(PosteriorDenoiser):
    """Takes the likelihood of x_t itself, N(y; A x_t, I + sigma^2 A A^T) (Barco et al. 2024):

    D_y = D + sigma^2 A^T (I + sigma^2 A A^T)^-1 (y - A x_t).
    """

    def denoise(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        mean = self.problem.mean(self.denoiser.denoise(x, sigma))
        noise = DiagonalPlusLowRank.of_diagonal(pixels(sigma) ** 2 * tf.ones_like(x))
        residual = self.data - self.operator.forward(self.problem.mean(x))
        return mean + gaussian_step(self.operator, self.problem.covariance(noise), residual, self.solver)


# By the names that files and command lines know them by.
CONDITIONINGS: dict[str, type[PosteriorDenoiser]] = {
    "head": GaussianConditioning,
    "mmps": MMPS,
    "convolved": ConvolvedLikelihood,
}
