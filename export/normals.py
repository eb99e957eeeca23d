"""The sampler's random numbers as one tensor, so that a graph can take them as an input and hold no random op."""

from __future__ import annotations

import tensorflow as tf

from tfdeblend.diffusion.linear_gaussian import Normals
from tfdeblend.diffusion.random import KeyedNormals, StepNormals


class GivenNormals:
    """Standard normals cut out of one tensor, as `random.KeyedNormals` would give them.

    Args:
      eps: [N, E], E = `size(...)`, step after step. stamps: (N, K, C, P, P). side: S, of the images. rank: R.
      steps: T.
    """

    def __init__(self, eps: tf.Tensor, stamps: tuple[int, ...], side: int, rank: int, steps: int):
        self.stamps, self.side, self.rank = stamps, side, rank
        self._steps = tf.reshape(eps, [stamps[0], steps, -1])

    def positions(self, step: tf.Tensor) -> tf.Tensor:
        """[N, K, 2]."""
        number, sources = self.stamps[:2]
        return tf.reshape(self._of(step)[-1], [number, sources, 2])

    def normals(self, step: tf.Tensor) -> StepNormals:
        number, sources, bands, *_ = self.stamps
        one, two, factor, amplitude, scale, images, _ = self._of(step)
        drawn = Normals(
            tf.reshape(one, self.stamps),
            tf.reshape(factor, [number, sources, self.rank]),
            tf.reshape(amplitude, [number, sources, bands]),
            images,
        )
        return StepNormals(drawn, tf.reshape(two, self.stamps), tf.reshape(scale, [number, sources]))

    def _of(self, step: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(tf.gather(self._steps, step, axis=1), step_sizes(self.stamps, self.side, self.rank), 1)


def step_sizes(stamps: tuple[int, ...], side: int, rank: int) -> list[int]:
    """Numbers of one step: stamps, stamps, factors, amplitudes, scales, images, positions."""
    _, sources, bands, pixels, _ = stamps
    whole = sources * bands * pixels**2
    return [whole, whole, sources * rank, sources * bands, sources, bands * side**2, 2 * sources]


def size(stamps: tuple[int, ...], side: int, rank: int, steps: int) -> int:
    """E."""
    return steps * sum(step_sizes(stamps, side, rank))


def flatten(made: KeyedNormals, steps: int) -> tf.Tensor:
    """[N, E]: what `GivenNormals` needs to give the same numbers."""
    rows, parts = made.stamps[0], []
    for step in range(steps):
        drawn, back, scale = made.normals(tf.constant(step))
        parts += [drawn.stamps, back, drawn.factor, drawn.amplitude, scale, drawn.data]
        parts.append(made.positions(tf.constant(step)))
    return tf.concat([tf.reshape(part, [rows, -1]) for part in parts], 1)
