"""The MAP of closed-form galaxies for a batch of blends: Adam from a rough start, Gauss-Newton to the end, curvature for the errors."""

from __future__ import annotations

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


@dataclass(frozen=True)
class MapOptions:
    """Settings of the fit.

    adam_steps: of Adam, whose first step moves a latent by `learning_rate` standard deviations of its prior.
    newton_steps: at most so many Gauss-Newton steps. tolerance: a blend has converged when the next undamped step would
    be shorter than this many posterior standard deviations, over all its parameters together.
    background: fit a constant in each band.
    """

    adam_steps: int = 40
    learning_rate: float = 0.1
    newton_steps: int = 12
    tolerance: float = 0.03
    background: bool = False


class MapState(NamedTuple):
    """Where a fit stands, in whitened units. latent [B, K, S], flux [B, K, C], background [B, C]."""

    latent: tf.Tensor
    flux: tf.Tensor
    background: tf.Tensor


class MapResult(NamedTuple):
    """What a fit found, as tensors, in whitened units.

    state: see MapState. model [B, C, S, S]; sources [B, K, C, S, S] as observed; stamps [B, K, C, P, P]; chi2 [B];
    distance [B] to the maximum in standard deviations; steps [B]; covariance: the Laplace approximation.
    """

    state: MapState
    model: tf.Tensor
    sources: tf.Tensor
    stamps: tf.Tensor
    chi2: tf.Tensor
    distance: tf.Tensor
    steps: tf.Tensor
    covariance: Laplace


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
        self._run = tf.function(self._fit, autograph=True)

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

    def _mixture(self, latent: tf.Tensor, tensors: dict[str, tf.Tensor]) -> profiles.Mixture:
        like = tf.ones_like(tensors["is_point"])
        arcsec, model_sigma = (tensors[name][:, None] * like for name in ("arcsec", "model_sigma"))
        return self.prior.mixture(latent, Frame(tensors["centers"], arcsec, tensors["is_point"], model_sigma))

    def _stamps(self, state: MapState, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B, K, C, P, P] in flux."""
        unit = profiles.render(self._mixture(state.latent, tensors), self.shape.stamp)
        return (state.flux * tensors["is_source"][..., None])[..., None, None] * unit

    def _loss(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        """[B]: -log posterior up to a constant."""
        model = likelihood.render(self._stamps(state, tensors), state.background)
        return 0.5 * (likelihood.chi2(model) + tf.reduce_sum(state.latent**2, [1, 2]))

    # -- the fit

    def _fit(self, tensors: dict[str, tf.Tensor], first: tf.Tensor) -> MapResult:
        likelihood = Likelihood(tensors, self.shape)
        state = self._solve_fluxes(first, likelihood, tensors)
        state, adam_steps = self._adam(state, likelihood, tensors)
        state, distance, newton_steps = self._newton(state, likelihood, tensors)
        stamps = self._stamps(state, tensors)
        model = likelihood.render(stamps, state.background)
        sources = likelihood.render_each(stamps[:, :, None])[:, :, 0]
        covariance = gauss_newton.laplace(self._equations(state, likelihood, tensors))
        steps = adam_steps + newton_steps
        return MapResult(state, model, sources, stamps, likelihood.chi2(model), distance, steps, covariance)

    def _adam(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]):
        # A flux's natural unit: its size, but never less than its error, so that a flux that starts at zero can move.
        power = tf.reduce_sum(likelihood.weights, [2, 3])[:, None]
        error = 1 / tf.sqrt(tf.maximum(power / self.shape.side**2, 1e-6)) * 10
        unit = tf.sqrt(state.flux**2 + error**2)

        def state_of(values: list[tf.Tensor]) -> MapState:
            return MapState(values[0], values[1] * unit, values[2] * float(self.options.background))

        def objective(values: list[tf.Tensor], _: tf.Tensor) -> tf.Tensor:
            return self._loss(state_of(values), likelihood, tensors)

        best, steps = self.adam.minimize(objective, [state.latent, state.flux / unit, state.background])
        return state_of(best), steps

    def _newton(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]):
        """Levenberg-Marquardt: steps that do not lower the loss are taken back, and the damping raised."""
        batch = self.shape.blends
        loss = self._loss(state, likelihood, tensors)
        damping = tf.fill([batch], tf.constant(1e-3, tf.float64))
        distance = tf.fill([batch], tf.constant(float("inf"), tf.float64))
        steps, active = tf.zeros([batch], tf.int32), tf.fill([batch], True)
        for _ in tf.range(self.options.newton_steps):
            if not tf.reduce_any(active):
                break
            trial, distance_now = self._newton_step(state, damping, likelihood, tensors)
            distance = tf.where(active, distance_now, distance)
            trial_loss = self._loss(trial, likelihood, tensors)
            better = active & (trial_loss <= loss)
            state = MapState(*(tf.where(_expand(better, old), new, old) for new, old in zip(trial, state, strict=True)))
            loss = tf.where(better, trial_loss, loss)
            damping = tf.clip_by_value(tf.where(better, damping / 8, damping * 8), 1e-7, 1e6)
            steps += tf.cast(active, tf.int32)
            active &= distance > self.options.tolerance
        return state, distance, steps

    def _newton_step(self, state: MapState, damping: tf.Tensor, likelihood: Likelihood, tensors: dict[str, tf.Tensor]):
        system = self._equations(state, likelihood, tensors)
        latent_step, linear_step, distance = gauss_newton.solve(system, damping)
        dtype, sources = self.prior.dtype, self.shape.sources
        linear = tf.cast(linear_step, dtype)
        trial = MapState(
            state.latent + tf.reshape(tf.cast(latent_step, dtype), state.latent.shape),
            state.flux + tf.linalg.matrix_transpose(linear[..., :sources]),
            state.background + linear[..., sources],
        )
        return trial, distance

    def _solve_fluxes(self, latent: tf.Tensor, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> MapState:
        """The best fluxes and background for the shapes given."""
        zero = tf.zeros([self.shape.blends, self.shape.sources, self.shape.bands], self.prior.dtype)
        state = MapState(latent, zero, zero[:, 0])
        system = self._equations(state, likelihood, tensors)
        root = tf.linalg.cholesky(system.linear)
        best = tf.cast(-tf.linalg.cholesky_solve(root, system.linear_gradient[..., None])[..., 0], self.prior.dtype)
        sources = self.shape.sources
        return MapState(latent, tf.linalg.matrix_transpose(best[..., :sources]), best[..., sources])

    def _equations(self, state: MapState, likelihood: Likelihood, tensors: dict[str, tf.Tensor]) -> NormalEquations:
        batch, sources, bands, side = self.shape.blends, self.shape.sources, self.shape.bands, self.shape.side
        mixture = self._mixture(state.latent, tensors)
        directions = self._directions(state.latent, tensors)
        stamp = self.shape.stamp
        images = tf.concat(
            [
                profiles.render_tangents(mixture, directions, stamp),
                profiles.render(mixture, stamp)[:, :, None],
            ],
            2,
        )
        rendered = likelihood.render_each(images * tensors["is_source"][..., None, None, None, None])
        whitened = rendered * likelihood.root_weights[:, None, None]  # [B, K, S + 1, C, side, side]
        tangents = whitened[:, :, :-1] * state.flux[:, :, None, :, None, None]
        tangents = tf.reshape(tangents, [batch, sources * self.prior.size, bands, side, side])
        constant = likelihood.root_weights[:, :, None]
        templates = tf.concat([tf.transpose(whitened[:, :, -1], [0, 2, 1, 3, 4]), constant], 2)
        model = likelihood.render(self._stamps(state, tensors), state.background)
        residual = likelihood.root_weights * (likelihood.images - model)
        free = tf.fill([batch, 1], tf.constant(float(self.options.background), self.prior.dtype))
        return gauss_newton.assemble(
            tf.transpose(tangents, [0, 2, 1, 3, 4]),
            templates,
            residual,
            tf.reshape(state.latent, [batch, -1]),
            tf.concat([tensors["is_source"], free], 1),
        )

    def _directions(self, latent: tf.Tensor, tensors: dict[str, tf.Tensor]) -> list[profiles.Mixture]:
        """The mixtures' derivatives by each latent; a source depends on its own latents only, so one sweep serves all."""
        directions = []
        for axis in range(self.prior.size):
            ones = tf.broadcast_to(tf.one_hot(axis, self.prior.size, dtype=latent.dtype), latent.shape)
            with tf.autodiff.ForwardAccumulator(latent, ones) as forward:
                mixture = self._mixture(latent, tensors)
            directions.append(
                profiles.Mixture(
                    *(
                        forward.jvp(part, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                        for part in mixture
                    )
                )
            )
        return directions


def _expand(flag: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(flag, [-1] + [1] * (len(like.shape) - 1))
