"""Galaxies of a learned prior: the maximum of the posterior by annealing, an exact Gaussian step at each noise level.

At level sigma the denoiser says that x, given x_t, has the mean D and, pixel by pixel, the variance V (V0 of
`NeuralDenoiser`). With the data this is a linear Gaussian problem for all sources of a blend together,

    x = argmin |y - A x|^2 + (x - D)^T V^-1 (x - D),   y and A whitened,

whose answer is the next, less noisy x_t: one network call a level. It starts from a closed-form fit, at a level as low
as that fit's errors: annealed from higher ones, overlapping galaxies first share their light pixel by pixel, and keep
that. It ends with the best amplitudes in each band, see `unknown_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tfdeblend.diffusion.denoisers import PriorDenoiser
from tfdeblend.diffusion.initial import BlendProblem, InitialFit, check_fits
from tfdeblend.diffusion.linear_gaussian import gaussian_step
from tfdeblend.diffusion.schedules import FAINTEST
from tfdeblend.diffusion.unknown_scale import WIDTH, amplitudes
from tfdeblend.forward.batch import Tensors
from tfdeblend.galaxies.posterior import MapState
from tfdeblend.inference.map_fit import MapFit, MapResult, seen
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.linalg.solvers import AdamSolver, ConjugateGradients, Solver


@dataclass(frozen=True)
class AnnealingOptions:
    """Says how the noise level falls, in so many levels from `largest` to `smallest`, in units of a galaxy's norm.

    For bright galaxies, whose pixels' noise is below `smallest` in units of their norm, the last level is that noise.

    Args:
        solver: of the linear problem at each level; None: conjugate gradients, or Adam where that is the initial fit's
            optimizer.
        amplitude_width: see `UnknownScale`.
    """

    levels: int = 3
    largest: float = 0.01
    smallest: float = 0.001
    solver: Solver | None = None
    amplitude_width: float = WIDTH


class AnnealedFit:
    """The compiled fit for one batch shape, which starts from a closed-form fit of the same batch.

    Args:
      denoiser: of stamps of at most the closed-form fit's side, with its model PSF.
    """

    def __init__(self, initial: MapFit, denoiser: PriorDenoiser, options: AnnealingOptions = AnnealingOptions()):
        check_fits(initial.shape, denoiser)
        self.shape, self.denoiser, self.options = initial.shape, denoiser, options
        self.solver = options.solver or _solver(initial)
        self._run = tf.function(self._fit, autograph=False)

    def __call__(self, tensors: Tensors, initial: MapResult) -> MapResult:
        """Fits blends from the closed-form result `initial`; errors remain those of the closed-form fit."""
        return self._run(tensors, initial)

    def _fit(self, tensors: Tensors, initial: MapResult) -> MapResult:
        options = self.options
        problem = BlendProblem(tensors, self.shape, InitialFit.of(initial), self.denoiser.stamp_shape[1])
        last = tf.clip_by_value(1 / tf.maximum(problem.norm, 1), FAINTEST, options.smallest)

        def anneal(count: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            fraction = tf.cast(count, last.dtype) / max(options.levels - 1, 1)
            sigma = options.largest * (last / options.largest) ** fraction
            mean = problem.mean(self.denoiser.denoise(x, sigma))
            variance = tf.reshape(self.denoiser.prior_variance(tf.reshape(sigma, [-1])), x.shape)
            covariance = problem.covariance(DiagonalPlusLowRank.of_diagonal(variance))
            residual = problem.data - problem.operator.forward(mean)
            return count + 1, mean + gaussian_step(problem.operator, covariance, residual, self.solver)

        _, end = tf.while_loop(lambda count, _: count < options.levels, anneal, [tf.constant(0), problem.start])
        stamps = problem.stamps(end)
        if options.amplitude_width:
            best = amplitudes(problem.likelihood, problem.sources(stamps), options.amplitude_width)
            stamps *= best[..., None, None]
        model = tuple(tf.reduce_sum(images, 1) for images in problem.sources(stamps))
        found = seen(problem.likelihood, stamps, model)
        return initial._replace(
            state=MapState(initial.state.latent, problem.flux(stamps)),
            steps=initial.steps + options.levels,
            beyond_prior=problem.large[:, :, 0, 0, 0] > 0,
            **found,
        )


def _solver(initial: MapFit) -> Solver:
    """For the linear problem of a level, whose unknowns are the frame's pixels: see `gaussian_step`."""
    shape = initial.shape
    if initial.options.optimizer == "adam":
        return AdamSolver([shape.blends, shape.bands, shape.frame, shape.frame], dtype=initial.prior.dtype)
    return ConjugateGradients(rtol=0.0, max_steps=25)
