"""What the sampling of one blend sees of it: one exposure or several, each on its own pixels.

All of their pixels, whitened, stand in one row [B, n]: the data y of the linear problems that a noise level poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfdeblend.linalg.operator import LinearOperator


class View(NamedTuple):
    """How one exposure shows the model frame.

    bands: its C_e bands, by their number among the frame's. observe: frames [B, C_e, ..., F, F] -> whitened images
    [B, C_e, ..., S_e, S_e]. constant: [B, C_e, S_e, S_e] the whitened image 1.
    """

    bands: tuple[int, ...]
    observe: LinearOperator
    constant: tf.Tensor

    def of(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ...] -> [B, C_e, ...]."""
        return x if self.bands == tuple(range(x.shape[1])) else tf.gather(x, self.bands, axis=1)


def among_all(own: tf.Tensor, bands: tuple[int, ...], number: int) -> tf.Tensor:
    """[B, C_e, ...] -> [B, C, ...], 0 in the bands that an exposure lacks."""
    if bands == tuple(range(number)):
        return own
    parts, nothing = dict(zip(bands, tf.unstack(own, axis=1), strict=True)), tf.zeros_like(own[:, 0])
    return tf.stack([parts.get(band, nothing) for band in range(number)], 1)


def in_a_row(images: Sequence[tf.Tensor]) -> tf.Tensor:
    """Images [B, C_e, S_e, S_e] of each exposure -> [B, n]."""
    rows = [tf.reshape(one, [-1, one.shape[1] * one.shape[2] * one.shape[3]]) for one in images]
    return rows[0] if len(rows) == 1 else tf.concat(rows, 1)


def as_images(row: tf.Tensor, views: Sequence[View]) -> list[tf.Tensor]:
    """The inverse of `in_a_row`."""
    shapes = [view.constant.shape[1:] for view in views]
    parts = tf.split(row, [c * height * width for c, height, width in shapes], 1) if len(shapes) > 1 else [row]
    return [tf.reshape(part, [-1, *shape]) for part, shape in zip(parts, shapes, strict=True)]
