"""Adam on the latents and fluxes of closed-form galaxies, in coordinates in which the posterior is about round.

Parameters of a bright galaxy are known a thousand times better than those of a faint one, and are correlated: in their
own units Adam would creep. So every round of steps has coordinates u of its own, about the state x0 where it begins,

    x = x0 + s H^-1/2 u,   H the curvature at x0, s the root mean square of the gradient H^-1/2 g,

in which the maximum is expected about one away along each axis. What H leaves out is left to Adam, and the next round.
The length of H^-1/2 g is the distance to the maximum in standard deviations, of which Newton's rounds judge, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies import normal_equations
from tfdeblend.galaxies.normal_equations import NormalEquations
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import GalaxyPrior
from tfdeblend.linalg.solvers import EQUAL, FLATTEST, BatchedAdam


@dataclass(frozen=True)
class AdamOptions:
    """Sets how Adam climbs to the maximum.

    Args:
        steps: with one curvature, at most.
        learning_rate: of the first of them, in the coordinates of a round.
    """

    steps: int = 40
    learning_rate: float = 0.3


class Coordinates(NamedTuple):
    """H^-1/2 of B blends in blocks: latents by `latent` a, fluxes by `linear` b less what the latents take with them.

    latent: [B, L, L]. linear: [B, C, K, K]. gain: [B, C, K, L].
    """

    latent: tf.Tensor
    linear: tf.Tensor
    gain: tf.Tensor

    @classmethod
    def of(cls, system: NormalEquations, dtype: tf.DType) -> Coordinates:
        """Makes them from a curvature, which is taken as if it curved upwards where it curves downwards."""
        curvature, gain, linear = normal_equations.eliminate(system)
        values, vectors = tf.linalg.eigh(0.5 * (curvature + tf.linalg.matrix_transpose(curvature)))
        latent = vectors / tf.sqrt(tf.maximum(tf.abs(values), FLATTEST))[:, None]
        root = tf.linalg.matrix_transpose(tf.linalg.inv(tf.linalg.cholesky(linear)))
        return cls(*(tf.cast(part, dtype) for part in (latent, root, gain)))

    def scaled(self, unit: tf.Tensor) -> Coordinates:
        """Gives coordinates of which one is so many standard deviations [B]."""
        return self._replace(latent=self.latent * unit[:, None, None], linear=self.linear * unit[:, None, None, None])

    def move(self, a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Latents [B, L] and fluxes [B, C, K] of coordinates a [B, L] and b [B, C, K]."""
        latent = tf.linalg.matvec(self.latent, a)
        return latent, tf.linalg.matvec(self.linear, b) - tf.linalg.matvec(self.gain, latent[:, None])


class AdamSteps:
    """Rounds of Adam for one batch shape. Make it once, outside of the graph that takes steps."""

    def __init__(self, prior: GalaxyPrior, shape: BatchShape, options: AdamOptions):
        self.prior, self.shape = prior, shape
        shapes = [[shape.blends, shape.sources * prior.size], [shape.blends, shape.bands, shape.sources]]
        self.adam = BatchedAdam(shapes, options.steps, options.learning_rate, dtype=prior.dtype)

    def round(
        self, posterior: GalaxyPosterior, system: NormalEquations, state: MapState, rows: tf.Tensor, enough: tf.Tensor
    ) -> tuple[MapState, tf.Tensor, tf.Tensor]:
        """Gives the state that one round of steps from `state` finds, its distance to the maximum in standard
        deviations [b] by the curvature of where the round began, and the steps taken [b].

        A blend takes no step where it begins nearer than `enough`, and none counts where none led lower or nearer.

        Args:
          posterior: of b of the batch's blends, those in `rows`. system: its exact curvature at `state`. enough: [b].
        """
        batch, dtype = self.shape.blends, self.prior.dtype
        model, coordinates = posterior.model(state), Coordinates.of(system, dtype)

        def at(coordinates: Coordinates, values: list[tf.Tensor]) -> MapState:
            step = posterior.state_of(*coordinates.move(*values))
            return MapState(*(old + move for old, move in zip(state, step, strict=True)))

        def rise(coordinates: Coordinates, values: list[tf.Tensor]) -> tf.Tensor:
            trial = at(coordinates, values)
            return posterior.rise(state, model, trial, posterior.model(trial))

        def distance(values: list[tf.Tensor]) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(values)
                value = rise(coordinates, values)
            a, b = tape.gradient(value, values)
            return tf.sqrt(tf.reduce_sum(a**2, 1) + tf.reduce_sum(b**2, [1, 2]))

        def own(values: list[tf.Tensor]) -> list[tf.Tensor]:
            return [tf.gather(value, rows) for value in values]

        zero = [tf.zeros(variable.shape, dtype) for variable in self.adam.variables]
        before = distance(own(zero))
        sources = tf.maximum(tf.reduce_sum(posterior.tensors.is_source, 1), 1)  # an empty row has none
        number = sources * (self.prior.size + self.shape.bands)
        unit = before / tf.sqrt(number)
        scaled = coordinates.scaled(unit)
        # Where no component of the gradient is longer, all together are near enough.
        flat = tf.where(before > enough, unit * enough / tf.sqrt(number), np.inf)
        values, taken = self.adam.minimize(
            lambda values: tf.scatter_nd(rows[:, None], rise(scaled, own(values)), [batch]),
            zero,
            tf.tensor_scatter_nd_update(tf.fill([batch], tf.constant(np.inf, dtype)), rows[:, None], flat),
        )
        found = own(values)
        a, b = (part * tf.reshape(unit, [-1] + [1] * (len(part.shape) - 1)) for part in found)
        after = distance([a, b])
        gained = (after < before) | (rise(coordinates, [a, b]) < -EQUAL)
        steps = tf.where(gained, tf.gather(taken, rows), 0)
        kept = [tf.where(tf.reshape(gained, [-1] + [1] * (len(v.shape) - 1)), v, 0) for v in found]
        return at(scaled, kept), tf.cast(tf.where(gained, after, before), tf.float64), steps
