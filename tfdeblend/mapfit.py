"""The MAP of closed-form galaxies for a batch of blends: Adam, then Gauss-Newton, whose curvature gives errors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend import gauss_newton, profiles
from tfdeblend.batch import BatchShape, BlendBatch
from tfdeblend.gauss_newton import Laplace, NormalEquations
from tfdeblend.likelihood import Likelihood
from tfdeblend.optimize import BatchedAdam
from tfdeblend.priors import Frame, GalaxyPrior

# Fluxes are flat where positive, and half a Gaussian of this width where negative, in units of a pixel's noise: about
# the error of the flux in 25 pixels. Without it a faint source turns negative to mend the misfit of a bright neighbour.
NEGATIVE_FLUX = 5.0
FLUX_SOLVES = 4


@dataclass(frozen=True)
class MapOptions:
    """Settings of the fit.

    adam_steps: of Adam, whose first step moves a latent by `learning_rate` standard deviations of its prior.
    newton_rounds: at most so many times the curvature is computed, and `newton_steps` steps are taken with it.
    tolerance: a blend has converged when its next step would be shorter than this many posterior standard deviations,
    over all its parameters together. background: fit a constant in each band.
    model_error: of every model's brightness, as a fraction: no galaxy is a Sersic profile to the precision of a bright
    one's pixels, and without it the misfit of a bright galaxy outweighs the faint neighbour. Part of the weights that
    the fit and its errors use.
    """

    adam_steps: int = 20
    learning_rate: float = 0.1
    newton_rounds: int = 6
    newton_steps: int = 8
    tolerance: float = 0.03
    background: bool = False
    model_error: float = 0.01


class MapState(NamedTuple):
    """Where a fit stands, in whitened units. latent [B, K, S], flux [B, K, C], background [B, C]."""

    latent: tf.Tensor
    flux: tf.Tensor
    background: tf.Tensor


class MapResult(NamedTuple):
    """What a fit found, as tensors, in whitened units.

    state: see MapState. model [B, C, S, S]; sources [B, K, C, S, S] as observed; stamps [B, K, C, P, P]; chi2 [B];
    distance [B] to the maximum in standard deviations; steps [B]; covariance: the Laplace approximation;
    summary [B, K, 5] and its covariance [B, K, 5, 5]: see `GalaxyPrior.summary`.
    """

    state: MapState
    model: tf.Tensor
    sources: tf.Tensor
    stamps: tf.Tensor
    chi2: tf.Tensor
    distance: tf.Tensor
    steps: tf.Tensor
    covariance: Laplace
    summary: tf.Tensor
    summary_covariance: tf.Tensor


class MapFit:
    """The compiled fit for one batch shape. Make it once, call it for every batch of that shape.

    Maximises log p(y | z, flux) + log p(z). The loss is half a chi-square and z ~ N(0, 1), so no setting carries units.
    """

    def __init__(self, prior: GalaxyPrior, shape: BatchShape, options: MapOptions = MapOptions()):
        self.prior, self.shape, self.options = prior, shape, options
        latent = [shape.blends, shape.sources, prior.size]
        flux = [shape.blends, shape.sources, shape.bands]
        self.adam = BatchedAdam(
            [latent, flux, flux[:1] + flux[2:]], options.adam_steps, options.learning_rate, dtype=prior.dtype
        )
        self._equations = tf.function(self._normal_equations, autograph=False)
        self._run = tf.function(self._fit, autograph=False)

    def __call__(self, batch: BlendBatch, start: np.ndarray | None = None) -> MapResult:
        """Fits `batch`, whose shape must be this fit's.

        Args:
          start: latents [B, K, S] to start from; None: the prior's centre. Fluxes need no start: they are linear.
        """
        if batch.shape != self.shape:
            raise ValueError(f"expected a batch of {self.shape}, received {batch.shape}")
        latent = [self.shape.blends, self.shape.sources, self.prior.size]
        first = tf.zeros(latent, self.prior.dtype) if start is None else tf.constant(start, self.prior.dtype)
        return self._run(batch.tensors, first)

    # -- the forward model of latents and fluxes

    def _frame(self, tensors: dict[str, tf.Tensor]) -> Frame:
        like = tf.ones_like(tensors["is_point"])
        arcsec = tensors["arcsec"][:, None] * like
        return Frame(tensors["centers"], arcsec, tensors["is_point"], self.shape.model_sigma * like)

    def mixture(self, latent: tf.Tensor, tensors: dict[str, tf.Tensor]) -> profiles.Mixture:
        """The unit-flux sources of latents [B, K, S], around their stamps' centres."""
        return self.prior.mixture(latent, self._frame(tensors))

    def _stamps(self, state: MapState, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, K, C, P, P] in flux."""
        unit = profiles.render(self.mixture(state.latent, tensors), self.shape.stamp)
        return (state.flux * tensors["is_source"][..., None])[..., None, None] * unit

    def _model(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, C, S, S]: the rendered scenes."""
        unit = profiles.render(self.mixture(state.latent, tensors), self.shape.stamp)
        return likelihood.render(unit, state.flux * tensors["is_source"][..., None], state.background)

    def _loss(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B]: -log posterior up to a constant."""
        model = self._model(state, likelihood, tensors)
        return 0.5 * (likelihood.chi2(model) + tf.reduce_sum(state.latent**2, [1, 2]) + negative(state.flux))

    # -- the fit

    def _fit(self, tensors: dict[str, tf.Tensor], first: tf.Tensor) -> MapResult:
        exact = Likelihood(tensors, self.shape)
        unit = profiles.render(self.mixture(first, tensors), self.shape.stamp)
        state = self.solve_fluxes(unit, exact, tensors)._replace(latent=first)
        state, adam_steps = self._adam(state, self._tolerant(state, exact, tensors), tensors)
        state, distance, newton_steps = self._newton(state, exact, tensors)
        likelihood = self._tolerant(state, exact, tensors)
        stamps = self._stamps(state, tensors)
        model = self._model(state, likelihood, tensors)
        sources = tf.transpose(likelihood.render_each(stamps[:, :, None]), [0, 2, 1, 3, 4])
        covariance = gauss_newton.laplace(self._equations(state, model, likelihood.weights, tensors))
        summary, spread = self._summary(state, covariance.latent, tensors)
        steps = adam_steps + newton_steps
        chi2 = exact.chi2(model)
        return MapResult(state, model, sources, stamps, chi2, distance, steps, covariance, summary, spread)

    def _tolerant(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> Likelihood:
        """The likelihood with the model's own error added to the noise's variance, at its present brightness."""
        model = self._model(state._replace(background=tf.zeros_like(state.background)), likelihood, tensors)
        weights = likelihood.weights / (1 + likelihood.weights * (self.options.model_error * model) ** 2)
        return Likelihood(tensors | {"weights": weights}, self.shape)

    def _adam(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]):
        # A flux's natural unit: its size, but never less than its error, so that a flux that starts at zero can move.
        # Images are whitened, so that ten is about the error of a flux that spreads over a hundred pixels.
        unit = tf.sqrt(state.flux**2 + 10.0**2)

        def state_of(values: list[tf.Tensor]) -> MapState:
            return MapState(values[0], values[1] * unit, values[2] * float(self.options.background))

        def objective(values: list[tf.Tensor], _: tf.Tensor) -> tf.Tensor:
            return self._loss(state_of(values), likelihood, tensors)

        best, steps = self.adam.minimize(objective, [state.latent, state.flux / unit, state.background])
        return state_of(best), steps

    def _newton(self, state: MapState, exact: Likelihood, tensors: dict[str, tf.Tensor]):
        """Damped Gauss-Newton: rounds of several steps with one curvature, which costs as much as ten gradients.

        Each round begins with the model's error taken at its present brightness; a blend is done when a round finds it
        converged at once, so that where it ends does not depend on how it came there.
        """
        batch = self.shape.blends
        damping = tf.fill([batch], tf.constant(1e-4, tf.float64))
        distance = tf.fill([batch], tf.constant(float("inf"), tf.float64))
        steps, active = tf.zeros([batch], tf.int32), tf.fill([batch], True)

        def advance(count, state, damping, distance, steps, active):
            likelihood = self._tolerant(state, exact, tensors)
            model = self._model(state, likelihood, tensors)
            factors = gauss_newton.factorise(self._equations(state, model, likelihood.weights, tensors), damping)
            inner = [0, state, model, distance, active, tf.zeros([batch], tf.int32), tf.zeros([batch], tf.int32)]
            step = functools.partial(self._newton_step, factors, likelihood, tensors)
            inner = tf.while_loop(
                lambda i, *rest: (i < self.options.newton_steps) & tf.reduce_any(rest[3]), step, inner
            )
            _, state, _, distance, _, tried, taken = inner
            worked = 2 * taken >= tried
            damping = tf.clip_by_value(tf.where(worked, damping / 30, damping * 30), 1e-8, 1e3)
            return count + 1, state, damping, distance, steps + tried, active & (tried > 0)

        def unfinished(count, *rest):
            return (count < self.options.newton_rounds) & tf.reduce_any(rest[-1])

        start = [0, state, damping, distance, steps, active]
        _, state, _, distance, steps, _ = tf.while_loop(unfinished, advance, start)
        return state, distance, steps

    def _newton_step(self, factors, likelihood, tensors, count, state, model, distance, active, tried, taken):
        """One step down the gradient in the metric of `factors`, then to the minimum of the parabola through the step's
        start, slope and end (Gauss-Newton may underestimate the curvature and overshoot); not taken if the loss
        rises."""
        gradient = self._gradient(state, likelihood, tensors)
        latent, linear, distance_now = gauss_newton.solve(factors, *gradient)
        slope = tf.reduce_sum(latent * gradient[0], 1) + tf.reduce_sum(linear * gradient[1], [1, 2])
        slope = tf.cast(slope, self.prior.dtype)
        distance = tf.where(active, distance_now, distance)
        active &= distance > self.options.tolerance
        step = self._state_of(latent, linear)
        full = MapState(*(old + move for old, move in zip(state, step, strict=True)))
        rise = self._rise(state, model, full, self._model(full, likelihood, tensors), likelihood)
        length = tf.clip_by_value(-slope / tf.maximum(2 * (rise - slope), 1e-20), 0.05, 1.5)
        trial = MapState(*(old + _expand(length, old) * move for old, move in zip(state, step, strict=True)))
        trial_model = self._model(trial, likelihood, tensors)
        better = active & (self._rise(state, model, trial, trial_model, likelihood) <= 0)
        state = MapState(*(tf.where(_expand(better, old), new, old) for new, old in zip(trial, state, strict=True)))
        model = tf.where(_expand(better, model), trial_model, model)
        tried, taken = tried + tf.cast(active, tf.int32), taken + tf.cast(better, tf.int32)
        return count + 1, state, model, distance, active, tried, taken

    def _gradient(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]):
        """Of the loss, float64: by the latents [B, L] and the linear terms [B, C, Q], as NormalEquations order them."""
        with tf.GradientTape() as tape:
            tape.watch(state)
            loss = self._loss(state, likelihood, tensors)
        by_latent, by_flux, by_background = (tf.cast(g, tf.float64) for g in tape.gradient(loss, state))
        if not self.options.background:
            by_background = tf.zeros_like(by_background)
        linear = tf.concat([tf.linalg.matrix_transpose(by_flux), by_background[..., None]], -1)
        return tf.reshape(by_latent, [self.shape.blends, -1]), linear

    def _state_of(self, latent: tf.Tensor, linear: tf.Tensor) -> MapState:
        """Latents [B, L] and linear terms [B, C, Q], as the normal equations order them, as a state."""
        latent, linear = tf.cast(latent, self.prior.dtype), tf.cast(linear, self.prior.dtype)
        fluxes = tf.linalg.matrix_transpose(linear[..., : self.shape.sources])
        shape = [self.shape.blends, self.shape.sources, self.prior.size]
        return MapState(tf.reshape(latent, shape), fluxes, linear[..., self.shape.sources])

    def _rise(self, old: MapState, old_model: tf.Tensor, new: MapState, new_model: tf.Tensor, likelihood: Likelihood):
        """[B]: how much the loss rises from old to new, free of the cancellation in a difference of two large sums."""
        both = old_model + new_model - 2 * likelihood.images
        data = tf.reduce_sum(likelihood.weights * (new_model - old_model) * both, [1, 2, 3])
        prior = tf.reduce_sum((new.latent - old.latent) * (new.latent + old.latent), [1, 2])
        return 0.5 * (data + prior + negative(new.flux) - negative(old.flux))

    def solve_fluxes(self, unit: tf.Tensor, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> MapState:
        """The best fluxes and background for stamps of unit flux [B, K, C or 1, P, P]; latents zero."""
        gram, right = likelihood.normal(
            self._real(unit[:, :, None], tensors), likelihood.root_weights * likelihood.images
        )
        used = tf.cast(self._used(tensors), tf.float64)[:, None]
        gram, right = gauss_newton.regular(tf.cast(gram, tf.float64), used), tf.cast(right, tf.float64) * used
        best = tf.zeros_like(right)
        for _ in range(FLUX_SOLVES):  # which fluxes are negative settles after a few
            held = tf.linalg.diag(self._held(tf.linalg.matrix_transpose(best[..., :-1])))
            best = tf.linalg.cholesky_solve(tf.linalg.cholesky(gram + held), right[..., None])[..., 0]
        latent = tf.zeros([self.shape.blends, self.shape.sources * self.prior.size], tf.float64)
        return self._state_of(latent, best)

    def _normal_equations(
        self, state: MapState, model: tf.Tensor, weights: tf.Tensor, tensors: dict[str, tf.Tensor]
    ) -> NormalEquations:
        likelihood = Likelihood(tensors | {"weights": weights}, self.shape)
        mixture = self.mixture(state.latent, tensors)
        weight, exponent = self._jacobian(
            lambda z, frame: profiles.coefficients(self.prior.mixture(z, frame)), state, tensors
        )
        stamp = self.shape.stamp
        tangents = profiles.render_tangents(mixture, weight, exponent, stamp)
        images = tf.concat([tangents, profiles.render(mixture, stamp)[:, :, None]], 2)
        return gauss_newton.assemble(
            *likelihood.normal(self._real(images, tensors), likelihood.root_weights * (likelihood.images - model)),
            state.flux,
            state.latent,
            self.prior.bend(state.latent),
            self._used(tensors),
            self._held(state.flux),
        )

    def _held(self, flux: tf.Tensor) -> tf.Tensor:
        """[B, C, K + 1]: the prior's curvature in the linear terms, which is there where a flux is negative."""
        held = tf.cast(tf.linalg.matrix_transpose(flux) < 0, tf.float64) / NEGATIVE_FLUX**2
        return tf.pad(held, [[0, 0], [0, 0], [0, 1]])

    def _real(self, stamps: tf.Tensor, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """Stamps [B, K, Q, C or 1, P, P], zero where the source is padding."""
        return stamps * tensors["is_source"][..., None, None, None, None]

    def _used(self, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, K + 1]: 1 for the fluxes of real sources, and for the background where it is fitted."""
        free = tf.fill([self.shape.blends, 1], tf.constant(float(self.options.background), self.prior.dtype))
        return tf.concat([tensors["is_source"], free], 1)

    def _jacobian(self, function, state: MapState, tensors: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Derivatives [B, K, S, ...] of function(latent, frame) by each latent. A source depends on its own latents
        only, so one forward sweep over S copies of every source, each pushed along another axis, gives them all."""
        size = self.prior.size
        latent = tf.tile(state.latent[:, :, None], [1, 1, size, 1])
        frame = Frame(*(tf.stack([part] * size, 2) for part in self._frame(tensors)))
        axes = tf.broadcast_to(tf.eye(size, dtype=latent.dtype), latent.shape)
        with tf.autodiff.ForwardAccumulator(latent, axes) as forward:
            outputs = function(latent, frame)
        zero = tf.UnconnectedGradients.ZERO
        return [forward.jvp(output, unconnected_gradients=zero) for output in tf.nest.flatten(outputs)]

    def _summary(self, state: MapState, covariance: tf.Tensor, tensors: dict[str, tf.Tensor]):
        """Shapes of all sources and their covariance, by linear propagation."""
        batch, sources, size = self.shape.blends, self.shape.sources, self.prior.size
        (slopes,) = self._jacobian(self.prior.summary, state, tensors)  # [B, K, S, 5]
        blocks = tf.reshape(covariance, [batch, sources, size, sources, size])
        own = tf.einsum("bksku->bksu", blocks)
        slopes = tf.cast(slopes, tf.float64)
        spread = tf.matmul(tf.matmul(slopes, own, transpose_a=True), slopes)
        return self.prior.summary(state.latent, self._frame(tensors)), spread


def negative(flux: tf.Tensor) -> tf.Tensor:
    """[B]: twice the penalty of negative fluxes [B, K, C]."""
    return tf.reduce_sum((tf.nn.relu(-flux) / NEGATIVE_FLUX) ** 2, [1, 2])


def _expand(flag: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(flag, [-1] + [1] * (len(like.shape) - 1))
