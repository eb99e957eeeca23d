"""Adam (Keras) on many independent problems at once, inside of one compiled graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

Objective = Callable[[list[tf.Tensor]], tf.Tensor]


class BatchedAdam:
    """Minimises B objectives side by side; none sees its neighbours.

    Every variable has the batch as its first axis and a natural scale of one, so that one learning rate, in the
    same units, serves all. The rate falls to a fiftieth along a cosine. A problem whose largest gradient component is
    below `tolerance` is frozen. The best iterate of each is kept: a step that leads to a worse or non-finite objective
    is never returned.

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

    def minimize(self, objective: Objective, start: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """From `start`, the best variables found and the steps that each problem took [B]. Call inside a tf.function.

        Args:
          objective: variables -> [B].
        """
        for variable in self.optimizer.variables:
            if variable is not self.optimizer._learning_rate:
                variable.assign(tf.zeros_like(variable))
        for variable, value in zip(self.variables, start, strict=True):
            variable.assign(value)
        batch = self.variables[0].shape[0]
        best = [tf.convert_to_tensor(v) for v in start]
        best_value = tf.fill([batch], tf.constant(float("inf"), self.dtype))
        active, taken = tf.fill([batch], True), tf.zeros([batch], tf.int32)

        def advance(step, best, best_value, active, taken):
            values = [tf.convert_to_tensor(v.value) for v in self.variables]
            with tf.GradientTape() as tape:
                tape.watch(values)
                value = objective(values)
            gradients = tape.gradient(value, values)
            better = active & tf.math.is_finite(value) & (value < best_value)
            best = [tf.where(_expand(better, v), v, b) for v, b in zip(values, best, strict=True)]
            best_value = tf.where(better, value, best_value)
            largest = [tf.reduce_max(tf.reshape(tf.abs(g), [batch, -1]), 1) for g in gradients]
            active &= (tf.reduce_max(tf.stack(largest), 0) > self.tolerance) & tf.math.is_finite(value)
            taken += tf.cast(active, tf.int32)
            safe = [tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)) for g in gradients]
            self.optimizer.apply(safe, self.variables)
            for variable, before in zip(self.variables, values, strict=True):
                variable.assign(tf.where(_expand(active, before), variable.value, before))
            return step + 1, best, best_value, active, taken

        def unfinished(step, best, best_value, active, taken):
            return (step < self.steps) & tf.reduce_any(active)

        _, best, _, _, taken = tf.while_loop(unfinished, advance, [0, best, best_value, active, taken])
        return best, taken


def _expand(flag: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(flag, [-1] + [1] * (len(like.shape) - 1))
