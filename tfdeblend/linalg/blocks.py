"""Vectors made of several blocks of images, each of some of the bands: to gather, scatter, flatten and split them."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def gather_bands(x: tf.Tensor, bands: tuple[int, ...]) -> tf.Tensor:
    """Takes the C_e `bands` of a block out of all: [B, C, ...] -> [B, C_e, ...]."""
    return x if bands == tuple(range(x.shape[1])) else tf.gather(x, bands, axis=1)


def scatter_bands(block: tf.Tensor, bands: tuple[int, ...], number: int) -> tf.Tensor:
    """Puts a block among all `number` bands, 0 in those that it lacks: [B, C_e, ...] -> [B, C, ...]."""
    if bands == tuple(range(number)):
        return block
    parts, nothing = dict(zip(bands, tf.unstack(block, axis=1), strict=True)), tf.zeros_like(block[:, 0])
    return tf.stack([parts.get(band, nothing) for band in range(number)], 1)


def flatten(images: Sequence[tf.Tensor]) -> tf.Tensor:
    """Joins the images [B, C_e, S_e, S_e] of all blocks to one vector [B, n]."""
    rows = [tf.reshape(one, [-1, one.shape[1] * one.shape[2] * one.shape[3]]) for one in images]
    return rows[0] if len(rows) == 1 else tf.concat(rows, 1)


def split(vector: tf.Tensor, shapes: Sequence[Sequence[int]]) -> list[tf.Tensor]:
    """Undoes `flatten`, for blocks of images of these shapes (C_e, S_e, S_e)."""
    parts = tf.split(vector, [c * height * width for c, height, width in shapes], 1) if len(shapes) > 1 else [vector]
    return [tf.reshape(part, [-1, *shape]) for part, shape in zip(parts, shapes, strict=True)]
