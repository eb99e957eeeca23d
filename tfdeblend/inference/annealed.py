"""Galaxies of a learned prior: the maximum of the posterior by annealing, an exact Gaussian step at each noise level.

At level sigma the denoiser says that x, given x_t, has the mean D and, pixel by pixel, the variance V (V0 of
`NeuralDenoiser`). With the data this is a linear Gaussian problem for all sources of a blend together,

    x = argmin |sqrt(w) (y - A x)|^2 + (x - D)^T V^-1 (x - D),

whose answer is the next, less noisy x_t: one network call a level. It starts from a closed-form fit, at a level as low
as that fit's errors: annealed from higher ones, overlapping galaxies first share their light pixel by pixel, and keep
that.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from tfdeblend.diffusion.denoisers import NeuralDenoiser
from tfdeblend.diffusion.initial import BlendProblem, InitialFit, check_fits
from tfdeblend.diffusion.linear_gaussian import gaussian_step
from tfdeblend.forward.batch import BlendBatch
from tfdeblend.galaxies.posterior import MapState
from tfdeblend.inference.map_fit import MapFit, MapResult
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.linalg.solvers import ConjugateGradients


@dataclass(frozen=True)
class ScoreOptions:
    """levels: how many, from `largest` to `smallest` sigma; iterations: of conjugate gradients at each.

    faintest: for bright galaxies, whose pixels' noise is below `smallest` in units of their norm, the last level is
    that noise, down to this.
    """

    levels: int = 3
    largest: float = 0.01
    smallest: float = 0.001
    faintest: float = 1e-4
    iterations: int = 25


class ScoreFit:
    """The compiled fit for one batch shape, seeded by a closed-form fit of the same batch.

    Args:
      denoiser: of stamps of at most the seed's side, with its model PSF.
    """

    def __init__(self, seed: MapFit, denoiser: NeuralDenoiser, options: ScoreOptions = ScoreOptions()):
        check_fits(seed.shape, denoiser)
        self.shape, self.denoiser, self.options = seed.shape, denoiser, options
        self.exact = seed.shape._replace(background=seed.options.background)
        self._run = tf.function(self._fit, autograph=False)

    def __call__(self, batch: BlendBatch, seed: MapResult) -> MapResult:
        """Fits `batch` from the closed-form result `seed`; errors remain those of the seed."""
        if batch.shape != self.shape:
            raise ValueError(f"expected a batch of {self.shape}, received {batch.shape}")
        return self._run(batch.tensors, seed)

    def _fit(self, tensors: dict[str, tf.Tensor], seed: MapResult) -> MapResult:
        options = self.options
        blends = BlendProblem(tensors, self.exact, InitialFit.of(seed), self.denoiser.stamp_shape[1])
        solver = ConjugateGradients(max_steps=options.iterations)
        last = tf.clip_by_value(1 / tf.maximum(blends.norm, 1), options.faintest, options.smallest)

        def anneal(count: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            fraction = tf.cast(count, last.dtype) / max(options.levels - 1, 1)
            sigma = options.largest * (last / options.largest) ** fraction
            mean = blends.mean(self.denoiser.denoise(x, sigma))
            variance = self.denoiser.prior_variance(tf.reshape(sigma, [-1]))
            covariance = blends.covariance(DiagonalPlusLowRank.of_diagonal(tf.reshape(variance, x.shape)))
            residual = blends.data - blends.operator.forward(mean)
            return count + 1, mean + gaussian_step(blends.operator, covariance, residual, solver)

        _, end = tf.while_loop(lambda count, _: count < options.levels, anneal, [tf.constant(0), blends.start])
        stamps = blends.stamps(end)
        sources = blends.sources(stamps)
        light = tuple(tf.reduce_sum(each, 1) for each in sources)
        background = float(self.exact.background) * blends.likelihood.constants(light)[0]
        model = light[0] + background[..., None, None]
        return seed._replace(
            state=MapState(seed.state.latent, blends.flux(stamps), background),
            model=model,
            sources=sources[0],
            stamps=stamps,
            chi2=blends.likelihood.chi2((model,)),
            steps=seed.steps + options.levels,
            beyond_prior=blends.large[:, :, 0, 0, 0] > 0,
        )
