"""Solvers of many problems at once, of which none sees its neighbours: Krylov methods, a trust region, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

Apply = Callable[[tf.Tensor], tf.Tensor]
TINY = 1e-30
EQUAL = 1e-3  # nats: single precision does not tell losses of a bright galaxy's images apart that differ by less


def dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Multiplies system by system: [B, ...] -> [B, 1, ...], to scale vectors with."""
    return tf.reduce_sum(a * b, list(range(1, len(a.shape))), keepdims=True)


class Solver(Protocol):
    """Solves S x = b for x [B, ...], of which S is given by the function that multiplies by it."""

    def solve(self, apply: Apply, right: tf.Tensor) -> tf.Tensor: ...


@dataclass(frozen=True)
class ConjugateGradients:
    """Solves S x = b for symmetric S > 0.

    Each iteration lowers x^T S x / 2 - b^T x, so that a solve may be cut short. A system is done when its residual has
    fallen to `rtol` of b, or to rounding, whatever the others of its batch do; at the latest after `max_steps`.
    """

    rtol: float = 0.0
    max_steps: int = 80

    def solve(self, apply: Apply, right: tf.Tensor) -> tf.Tensor:
        """Gives x, like b = `right` [B, ...]; `apply` multiplies by S."""
        power = dot(right, right)
        least = max(self.rtol, float(np.finfo(power.dtype.as_numpy_dtype).eps))
        done = least**2 * power

        def iterate(count, x, residual, direction, power):
            image = apply(direction)
            length = tf.where(power > done, power / tf.maximum(dot(direction, image), TINY), tf.zeros_like(power))
            residual -= length * image
            after = dot(residual, residual)
            turn = tf.where(power > done, after / tf.maximum(power, TINY), tf.zeros_like(power))
            return count + 1, x + length * direction, residual, residual + turn * direction, after

        def unfinished(count, x, residual, direction, power):
            return (count < self.max_steps) & tf.reduce_any(power > done)

        start = [tf.constant(0), tf.zeros_like(right), right, right, power]
        return tf.while_loop(unfinished, iterate, start)[1]


@dataclass(frozen=True)
class GMRES:
    """Solves S x = b for any S, by the x with the smallest residual in the Krylov space of `max_steps` dimensions."""

    max_steps: int = 10

    def solve(self, apply: Apply, right: tf.Tensor) -> tf.Tensor:
        """Gives x, like b = `right` [B, n]; `apply` multiplies by S."""
        basis, images = [right / tf.maximum(tf.sqrt(dot(right, right)), TINY)], []
        for _ in range(self.max_steps):
            image = apply(basis[-1])
            images.append(image)
            following = image
            for vector in basis:  # modified Gram and Schmidt
                following -= dot(following, vector) * vector
            basis.append(following / tf.maximum(tf.sqrt(dot(following, following)), TINY))
        columns = tf.stack(images, 2)
        # The least-squares fit goes by an orthogonal decomposition, since columns may be dependent.
        weights = tf.linalg.lstsq(columns, right[..., None], fast=False)
        return tf.add_n([w * b for w, b in zip(tf.unstack(weights, axis=1), basis[:-1], strict=True)])


FLATTEST = 0.03  # flatter directions are walked as if they were so much curved; a prior's own curvature is 1
BISECTIONS = 20


def trust_region_step(
    values: tf.Tensor, vectors: tf.Tensor, gradient: tf.Tensor, radius: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The step [B, L] down a gradient [B, L], and the squared length g^T |H|^-1 g [B] of the full step.

    Directions that curve downwards are taken as if they curved upwards (saddle-free Newton, Dauphin et al. 2014). No
    component is longer than `radius` [B]: where the full step's would be, all directions are damped by the same
    addition to the curvature, which holds back the flat ones most.

    Args:
      values: [B, L] eigenvalues of the curvature H. vectors: [B, L, L] its eigenvectors, as columns.
    """
    along = tf.linalg.matvec(vectors, gradient, transpose_a=True)
    upwards = tf.maximum(tf.abs(values), FLATTEST)
    damping = _damping(vectors, along, upwards, radius)
    step = -tf.linalg.matvec(vectors, along / (upwards + damping[:, None]))
    return step, tf.reduce_sum(along**2 / upwards, -1)


def _damping(vectors: tf.Tensor, along: tf.Tensor, upwards: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """[B]: what to add to the curvature so that the step's largest component is `radius`; 0 where it is less anyway."""

    def short(damping: tf.Tensor) -> tf.Tensor:
        step = tf.linalg.matvec(vectors, along / (upwards + damping[:, None]))
        return tf.reduce_max(tf.abs(step), -1) <= radius

    none = tf.zeros_like(radius)
    low = none + 1e-9
    high = tf.norm(along, axis=-1) / radius + low  # is enough: no step is longer than |along| / damping
    for _ in range(BISECTIONS):
        middle = tf.sqrt(low * high)
        enough = short(middle)
        low, high = tf.where(enough, low, middle), tf.where(enough, middle, high)
    return tf.where(short(none), none, high)


Objective = Callable[[list[tf.Tensor]], tf.Tensor]


class BatchedAdam:
    """Minimises B objectives side by side; none sees its neighbours.

    Every variable has the batch as its first axis and a natural scale of one, so that one learning rate, in the
    same units, serves all. The rate falls to a fiftieth along a cosine. A problem whose largest gradient component is
    below `tolerance` is frozen. Of each, the last iterate is kept whose objective is the lowest, to within EQUAL: a
    step that leads to a worse or non-finite objective is never returned.

    Args:
      shapes: of the variables, batch first.
      steps: at most this many.
      learning_rate: the first step's length in a variable's natural unit.
      tolerance: of the gradient, where the objective is half a chi-square.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        steps: int,
        learning_rate: float = 0.1,
        tolerance: float = 1e-2,
        dtype: tf.DType = tf.float32,
    ):
        self.steps, self.tolerance, self.dtype = steps, tolerance, dtype
        name = tf.as_dtype(dtype).name
        self.variables = [keras.Variable(tf.zeros(list(shape), dtype), dtype=name) for shape in shapes]
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, max(steps, 1), alpha=0.02)
        self.optimizer = keras.optimizers.Adam(rate, beta_2=0.99)
        self.optimizer.build(self.variables)

    def minimize(
        self, objective: Objective, start: Sequence[tf.Tensor], tolerance: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """From `start`, the best variables found and the steps that each problem took [B]. Call inside a tf.function.

        Args:
          objective: variables -> [B]. tolerance: [B] of each problem, in place of the one for all.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        for variable in self.optimizer.variables:
            if variable is not self.optimizer._learning_rate:
                variable.assign(tf.zeros_like(variable))
        for variable, value in zip(self.variables, start, strict=True):
            variable.assign(value)
        batch = self.variables[0].shape[0]
        best = [tf.convert_to_tensor(v) for v in start]
        lowest = tf.fill([batch], tf.constant(float("inf"), self.dtype))
        active, taken = tf.fill([batch], True), tf.zeros([batch], tf.int32)

        def advance(step, best, lowest, active, taken):
            values = [tf.convert_to_tensor(v.value) for v in self.variables]
            with tf.GradientTape() as tape:
                tape.watch(values)
                value = objective(values)
            gradients = tape.gradient(value, values)
            better = active & tf.math.is_finite(value) & (value < lowest + EQUAL)
            best = [tf.where(_expand(better, v), v, b) for v, b in zip(values, best, strict=True)]
            lowest = tf.where(better, tf.minimum(value, lowest), lowest)
            largest = [tf.reduce_max(tf.reshape(tf.abs(g), [batch, -1]), 1) for g in gradients]
            active &= (tf.reduce_max(tf.stack(largest), 0) > tolerance) & tf.math.is_finite(value)
            taken += tf.cast(active, tf.int32)
            safe = [tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)) for g in gradients]
            self.optimizer.apply(safe, self.variables)
            for variable, before in zip(self.variables, values, strict=True):
                variable.assign(tf.where(_expand(active, before), variable.value, before))
            return step + 1, best, lowest, active, taken

        def unfinished(step, best, lowest, active, taken):
            return (step < self.steps) & tf.reduce_any(active)

        _, best, _, _, taken = tf.while_loop(unfinished, advance, [0, best, lowest, active, taken])
        return best, taken


class AdamSolver:
    """Solves S x = b for symmetric S > 0 by Adam on x^T S x / 2 - b^T x; x has a natural scale of one.

    Args:
      shape: of b, batch first. steps, learning_rate: see `BatchedAdam`.
    """

    def __init__(
        self, shape: Sequence[int], steps: int = 400, learning_rate: float = 0.5, dtype: tf.DType = tf.float32
    ):
        self.adam = BatchedAdam([shape], steps, learning_rate, tolerance=1e-3, dtype=dtype)

    def solve(self, apply: Apply, right: tf.Tensor) -> tf.Tensor:
        """Gives x, like b = `right` [B, ...]; `apply` multiplies by S."""

        @tf.custom_gradient
        def height(x: tf.Tensor) -> tuple[tf.Tensor, Apply]:
            image = apply(x)
            value = tf.reshape(dot(x, image / 2 - right), [-1])
            return value, lambda upstream: _expand(upstream, x) * (image - right)

        return self.adam.minimize(lambda values: height(values[0]), [tf.zeros_like(right)])[0][0]


def _expand(flag: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(flag, [-1] + [1] * (len(like.shape) - 1))
