"""Galaxies of a learned prior: the maximum of the posterior by annealing, an exact Gaussian step at each noise level.

At level sigma the denoiser says that x, given x_t, has the mean D and, pixel by pixel, the variance V (V0 of
`NeuralDenoiser`). With the data this is a linear Gaussian problem for all sources of a blend together,

    x = argmin |sqrt(w) (y - A x)|^2 + (x - D)^T V^-1 (x - D),

whose answer is the next, less noisy x_t: one network call a level. It starts from a closed-form fit, at a level as low
as that fit's errors: annealed from higher ones, overlapping galaxies first share their light pixel by pixel, and keep
that. The step is solved by conjugate gradients that are preconditioned by V, in which V is never inverted; every
iteration lowers the objective, so that a step may be cut short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.batch import BlendBatch
from tfdeblend.denoisers import NeuralDenoiser, flux_scale
from tfdeblend.galaxy_posterior import MapState
from tfdeblend.likelihood import Likelihood
from tfdeblend.mapfit import MapFit, MapResult
from tfdeblend.operators import LinearOperator, Place, Scale

LARGE_SHARE = 0.05  # of a galaxy's light beyond the prior's stamps: above, the prior does not know it


@dataclass(frozen=True)
class ScoreOptions:
    """levels: how many, from `largest` to `smallest` sigma; iterations: of conjugate gradients at each.

    faintest: for bright galaxies, whose pixels' noise is below `smallest` in units of their norm, the last level is
    that noise, down to this.

    background: standard deviation of a fitted background around the first fit's, in units of a pixel's noise.
    point: that of a star's fluxes around the first fit's, in units of the brightest over its noise.
    large: of the pixels of a galaxy larger than the prior's stamps around the first fit's, in units of their own.
    """

    levels: int = 3
    largest: float = 0.01
    smallest: float = 0.001
    faintest: float = 1e-4
    iterations: int = 25
    background: float = 1.0
    point: float = 0.3
    large: float = 0.1


class Scaled(NamedTuple):
    """Unknowns: stamps at unit scale [B, K, C, P, P] and a background [B, C]."""

    stamps: tf.Tensor
    background: tf.Tensor

    def dot(self, other: Scaled) -> tf.Tensor:
        """[B]."""
        stamps = tf.reduce_sum(self.stamps * other.stamps, [1, 2, 3, 4])
        return stamps + tf.reduce_sum(self.background * other.background, 1)

    def plus(self, factor: tf.Tensor, other: Scaled) -> Scaled:
        """self + factor [B] other."""
        stamps = self.stamps + factor[:, None, None, None, None] * other.stamps
        return Scaled(stamps, self.background + factor[:, None] * other.background)


class Spread:
    """The prior's covariance V at one level: independent pixels of galaxies, the fluxes of stars, and a background.

    Args:
      pixels: [B, K, C, P, P] variances of galaxies, 0 where there is a star or padding.
      star: [B, K, C, P, P] one standard deviation of a star's flux in each band, as an image; 0 for galaxies.
      background: variance of it.
    """

    def __init__(self, pixels: tf.Tensor, star: tf.Tensor, background: float):
        self.pixels, self.star, self.background = pixels, star, background

    def __call__(self, x: Scaled) -> Scaled:
        """V x."""
        along = tf.reduce_sum(self.star * x.stamps, [3, 4], keepdims=True)
        return Scaled(self.pixels * x.stamps + self.star * along, self.background * x.background)


class Blend:
    """A of a batch: stamps at unit scale and backgrounds -> whitened images, and back."""

    def __init__(self, stamps: LinearOperator, root_weights: tf.Tensor):
        self.stamps, self.root_weights = stamps, root_weights

    def __call__(self, x: Scaled) -> tf.Tensor:
        return self.stamps.forward(x.stamps) + self.root_weights * x.background[..., None, None]

    def transpose(self, y: tf.Tensor) -> Scaled:
        return Scaled(self.stamps.transpose(y), tf.reduce_sum(self.root_weights * y, [2, 3]))


def gaussian_step(blend: Blend, spread: Spread, residual: tf.Tensor, iterations: int) -> Scaled:
    """V A^T (I + A V A^T)^-1 residual, by `iterations` of conjugate gradients on V^-1 + A^T A preconditioned by V.

    Beside each direction p = V q its q is kept, so that V^-1 p costs nothing.

    Args:
      residual: y - A D, whitened [B, C, S, S].
    """
    gradient = blend.transpose(residual)
    direction = spread(gradient)
    power = gradient.dot(direction)
    tiny = np.finfo(power.dtype.as_numpy_dtype).eps ** 2 * power  # converged: what is left is rounding

    def iterate(count, step, gradient, direction, inverse, power):
        curved = blend.transpose(blend(direction)).plus(tf.ones_like(power), inverse)
        length = tf.where(power > tiny, power / tf.maximum(direction.dot(curved), 1e-30), tf.zeros_like(power))
        step = step.plus(length, direction)
        gradient = gradient.plus(-length, curved)
        fresh = spread(gradient)
        after = gradient.dot(fresh)
        turn = tf.where(power > tiny, after / tf.maximum(power, 1e-30), tf.zeros_like(power))
        return count + 1, step, gradient, fresh.plus(turn, direction), gradient.plus(turn, inverse), after

    zero = Scaled(*(tf.zeros_like(part) for part in gradient))
    start = [tf.constant(0), zero, gradient, direction, gradient, power]
    return tf.while_loop(lambda count, *_: count < iterations, iterate, start)[1]


class ScoreFit:
    """The compiled fit for one batch shape, seeded by a closed-form fit of the same batch.

    From the seed come where to start, the flux scales, the stars, and galaxies larger than the prior's stamps, of which
    it knows nothing: these stay near the seed, within `ScoreOptions.large` inside the stamps, exactly beyond them.

    Args:
      denoiser: of stamps of at most the seed's side, with its model PSF.
    """

    def __init__(self, seed: MapFit, denoiser: NeuralDenoiser, options: ScoreOptions = ScoreOptions()):
        self.seed, self.shape, self.denoiser, self.options = seed, seed.shape, denoiser, options
        bands, self.side, _ = denoiser.stamp_shape
        expected = bands, denoiser.model_sigma
        if (self.shape.bands, self.shape.model_sigma) != expected or self.shape.stamp < self.side + 2:
            raise ValueError(f"expected bands, model PSF {expected} and larger stamps, received {self.shape}")
        self._run = tf.function(self._fit, autograph=False)

    def __call__(self, batch: BlendBatch, seed: MapResult) -> MapResult:
        """Fits `batch` from the closed-form result `seed`; errors remain those of the seed."""
        if batch.shape != self.shape:
            raise ValueError(f"expected a batch of {self.shape}, received {batch.shape}")
        return self._run(batch.tensors, seed)

    def window(self, summary: tf.Tensor) -> tf.Tensor:
        """[B, K, 2] integer: where in the seed's stamp the prior's begins, whose middle is the pixel of the source."""
        middle = self.shape.stamp // 2 - self.side // 2
        moved = tf.cast(tf.floor(summary[..., :2] + 0.5), tf.int32)
        return tf.clip_by_value(middle + moved, 0, self.shape.stamp - self.side)

    def _fit(self, tensors: dict[str, tf.Tensor], seed: MapResult) -> MapResult:
        shape, options, side = self.shape, self.options, self.side
        galaxy = (tensors["is_source"] * (1 - tensors["is_point"]))[:, :, None, None, None]
        star = (tensors["is_source"] * tensors["is_point"])[:, :, None, None, None]
        window = self.window(seed.summary)
        cut = Window(window, side, shape.stamp)
        inside = cut.transpose(seed.stamps) * (galaxy + star)
        unit = tensors["band_unit"][:, None, :, None, None]
        scale = flux_scale(inside / unit)[:, :, None, None, None]
        scale = unit * tf.where(scale > 0, scale, tf.ones_like(scale))

        likelihood = Likelihood(tensors, shape)
        place = Place(tensors["corners"] + window, side, shape.frame)
        blend = Blend(
            Scale(likelihood.root_weights) @ likelihood.convolve @ place @ Scale(scale), likelihood.root_weights
        )
        galaxy, large = self._by_size(galaxy, inside, seed.state.flux)
        wings = seed.stamps - cut.forward(inside)  # beyond the prior's stamps, the seed's light stays
        beyond = likelihood.render(wings, tf.ones_like(seed.state.flux), tf.zeros_like(seed.state.background))
        data = likelihood.root_weights * (likelihood.images - beyond)

        known = (star + large) * inside / scale
        wide = large * (options.large * inside / scale) ** 2
        flux = tf.reduce_sum(inside, [3, 4], keepdims=True)
        profile = inside / tf.where(tf.abs(flux) > 0, flux, tf.ones_like(flux)) / scale
        deviation = options.point * star * profile * tf.reduce_max(tf.abs(flux), 2, keepdims=True)
        norm = tf.sqrt(tf.reduce_sum(inside**2, [2, 3, 4]))
        last = tf.clip_by_value(1 / tf.maximum(norm, 1), options.faintest, options.smallest)
        background = options.background**2 * float(self.seed.options.background)

        def anneal(count: tf.Tensor, x: Scaled) -> tuple[tf.Tensor, Scaled]:
            sigma = options.largest * (last / options.largest) ** (
                tf.cast(count, last.dtype) / max(options.levels - 1, 1)
            )
            denoised = galaxy * self.denoiser.denoise(x.stamps, sigma) + known
            mean = Scaled(denoised, seed.state.background)
            variance = self.denoiser.prior_variance(tf.reshape(sigma, [-1]))
            pixels = galaxy * tf.reshape(variance, x.stamps.shape) + wide
            spread = Spread(pixels, deviation, background)
            step = gaussian_step(blend, spread, data - blend(mean), options.iterations)
            return count + 1, mean.plus(tf.ones_like(sigma[:, 0]), step)

        start = Scaled(inside / scale, seed.state.background)
        _, end = tf.while_loop(lambda count, _: count < options.levels, anneal, [tf.constant(0), start])
        stamps = cut.forward(scale * end.stamps) + wings
        sources = tf.transpose(likelihood.render_each(stamps[:, :, None]), [0, 2, 1, 3, 4])
        model = tf.reduce_sum(sources, 1) + end.background[..., None, None]
        outside = seed.state.flux - tf.reduce_sum(seed.stamps, [3, 4])  # of all stamps
        flux = (tf.reduce_sum(stamps, [3, 4]) + outside) * tensors["is_source"][..., None]
        state = MapState(seed.state.latent, flux, end.background)
        return seed._replace(
            state=state,
            model=model,
            sources=sources,
            stamps=stamps,
            chi2=likelihood.chi2(model),
            steps=seed.steps + options.levels,
            beyond_prior=large[:, :, 0, 0, 0] > 0,
        )

    def _by_size(self, galaxy: tf.Tensor, inside: tf.Tensor, flux: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[B, K, 1, 1, 1] each: which galaxies the prior knows; which are larger than its stamps, or have no light."""
        inner, whole = tf.reduce_sum(inside, [3, 4]), flux
        fits = tf.reduce_sum(tf.abs(inner), 2) >= (1 - LARGE_SHARE) * tf.reduce_sum(tf.abs(whole), 2)
        fits &= tf.reduce_sum(inner, 2) > 0
        known = galaxy * tf.cast(fits, galaxy.dtype)[:, :, None, None, None]
        return known, galaxy - known


class Window(LinearOperator):
    """Stamps [B, K, C, P, P] into larger ones [B, K, C, Q, Q], zero elsewhere; its adjoint cuts them out.

    Args:
      begin: [B, K, 2] integer. side: P. larger: Q.
    """

    def __init__(self, begin: tf.Tensor, side: int, larger: int):
        self.place = Place(tf.reshape(begin, [-1, 1, 2]), side, larger)

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        placed = self.place.forward(tf.reshape(x, [-1, 1, *x.shape[2:]]))
        return tf.reshape(placed, [*x.shape[:3], *placed.shape[2:]])

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        taken = self.place.transpose(tf.reshape(y, [-1, *y.shape[2:]]))
        return tf.reshape(taken, [*y.shape[:3], *taken.shape[3:]])
