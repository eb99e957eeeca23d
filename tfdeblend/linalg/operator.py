"""Linear operators that know their adjoints, their compositions, and the block vectors that they act on.

An operator is called like a function; its gradient is its adjoint. A vector may be made of several blocks of
images, each of some of the bands.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import tensorflow as tf


class LinearOperator(abc.ABC):
    """A linear map between batches of real tensors. Subclasses give `forward` and `transpose`; gradients follow."""

    @abc.abstractmethod
    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """A x."""

    @abc.abstractmethod
    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """A^T y."""

    @property
    def adjoint(self) -> LinearOperator:
        """The operator A^T; its adjoint is this operator again."""
        return Adjoint(self)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def apply(x: tf.Tensor):
            return self.forward(x), lambda dy: self.adjoint(dy)

        return apply(x)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)


class Adjoint(LinearOperator):
    """A^T as an operator of its own."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.operator.transpose(x)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return self.operator.forward(y)

    @property
    def adjoint(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """A B: first B, then A."""

    def __init__(self, last: LinearOperator, first: LinearOperator):
        self.last, self.first = last, first

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.last.forward(self.first.forward(x))

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return self.first.transpose(self.last.transpose(y))


def shape_of(x: tf.Tensor) -> list[int | tf.Tensor]:
    """List the lengths of x's axes: numbers where the graph fixes them, else tensors."""
    known, seen = x.shape.as_list(), tf.shape(x)
    return [seen[axis] if length is None else length for axis, length in enumerate(known)]


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
