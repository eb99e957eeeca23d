"""Gives both of today's likelihoods the names and tuples that samplers use; goes once `Likelihood` has them itself."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfdeblend.forward.exposures import View
from tfdeblend.forward.field import JointShape
from tfdeblend.forward.joint_likelihood import Images, JointLikelihood
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.noise import GaussianNoise


class Adapted(JointLikelihood):
    """Several exposures."""

    @property
    def exposures(self) -> tuple[View, ...]:
        return self.views

    def render(self, unit: tf.Tensor, flux: tf.Tensor) -> Images:  # type: ignore[override]
        return super().render(unit, flux, tf.zeros([]))

    def with_constants(self, model: Images, normals: Images) -> tuple[Images, Images]:
        return self.on_background(model, tf.zeros([]), normals)

    def unused_normals(self, normals: tf.Tensor) -> Images:
        return self.left_over(normals)


class AdaptedSingle(Adapted):
    """One exposure on the model's own pixels."""

    def __init__(self, tensors: dict, shape: Any):
        self.one, self.shape = Likelihood(tensors, shape), shape
        self.one.noise = GaussianNoise(self.one.weights, tensors["whitening"], on_constant=shape.background)
        self.images, self.noises, self.place = (self.one.images,), [self.one.noise], self.one.place

    @property
    def views(self) -> tuple[View, ...]:
        return self.one.views

    def render(self, unit: tf.Tensor, flux: tf.Tensor) -> Images:  # type: ignore[override]
        return (self.one.render(unit, flux, tf.zeros_like(flux[:, 0])),)

    def render_each(self, stamps: tf.Tensor) -> Images:
        return (self.one.render_each(stamps),)

    def log_normalisation(self) -> tf.Tensor:
        return self.one.log_normalisation()


def likelihood(tensors: dict, shape: Any) -> Any:
    return (Adapted if isinstance(shape, JointShape) else AdaptedSingle)(tensors, shape)
