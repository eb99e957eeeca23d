"""A Newton step that stays within a trust region, from the eigenvectors of a curvature that may be indefinite."""

from __future__ import annotations

import tensorflow as tf

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
