"""A linear operator that knows its adjoint, whose gradient is that adjoint, and the compositions of such operators."""

from __future__ import annotations

import abc

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
