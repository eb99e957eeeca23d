"""Likelihoods of small batches, of one and of several exposures."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
from fields import two_observations
from helpers import make_scene, smooth_correlation

from tfdeblend.data.scene import Scene
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import BatchShape, scene_shape
from tfdeblend.linalg.operator import LinearOperator, gather_bands, scatter_bands


class Seen(NamedTuple):
    """An exposure of which the operator that observes it is given, as a `ForwardOperator` asks for it.

    bands: its own. observe: frames [B, C_e, F, F] -> whitened images of image_shape (C_e, S_e, S_e). number: C.
    """

    bands: tuple[int, ...]
    observe: LinearOperator
    image_shape: tuple[int, int, int]
    number: int

    def of(self, x: tf.Tensor) -> tf.Tensor:
        return gather_bands(x, self.bands)

    def among_all(self, own: tf.Tensor) -> tf.Tensor:
        return scatter_bands(own, self.bands, self.number)


def one_exposure(dtype: tf.DType, background: bool = False) -> Likelihood:
    """The likelihood of two scenes of different sizes, with masked pixels, padding and an empty blend."""
    scenes = [make_scene(bands="gr", shape=(20, 24))[0], make_scene(bands="gr", shape=(32, 17), sources=2, seed=1)[0]]
    return likelihood_of(scenes, scene_shape(scenes[0], 16, background=background)._replace(blends=3), dtype)


def several_exposures(dtype: tf.DType, background: bool = False) -> Likelihood:
    """Of two fields and an empty one: one exposure on the model's pixels but for a shift, one on coarser, turned ones
    in correlated noise, which lacks a band; each with a gain."""
    scenes = [two_observations(seed=seed, correlation=smooth_correlation(0.5)) for seed in range(2)]
    return likelihood_of(scenes, scene_shape(scenes[0], 16, background=background)._replace(blends=3), dtype)


def mixed_exposures(dtype: tf.DType) -> Likelihood:
    """As `several_exposures` with a background, the first exposure on the model's own pixels."""
    scene = two_observations()
    return likelihood_of([scene], on_model_pixels(scene_shape(scene, 16, background=True)), dtype)


def on_model_pixels(shape: BatchShape) -> BatchShape:
    """The same with the first exposure on the model's own pixels."""
    return shape._replace(exposures=(shape.exposures[0]._replace(kept=0), *shape.exposures[1:]))


def likelihood_of(scenes: list[Scene], shape: BatchShape, dtype: tf.DType) -> Likelihood:
    """Several exposures, whose gains are 0.9 and 1.1."""
    tensors = Batch.build(scenes, shape, dtype).tensors
    if len(shape.exposures) > 1:
        gains = zip(tensors.exposures, (0.9, 1.1), strict=True)
        tensors = tensors._replace(
            exposures=tuple(
                one if own.on_model_pixels else one._replace(gain=gain * one.gain)
                for own, (one, gain) in zip(shape.exposures, gains, strict=True)
            )
        )
    return Likelihood(tensors, shape)
