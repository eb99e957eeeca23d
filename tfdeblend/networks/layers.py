"""The small layers of the U-Net that Keras does not have. Channels last."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

register = keras.saving.register_keras_serializable(package="tfdeblend")


@register
class Fourier(keras.layers.Layer):
    """A number as sines and cosines: [B] -> [B, 2 n], of frequencies from 1/4 to 4 a unit, evenly spaced in log."""

    def __init__(self, number: int = 16, **kwargs: Any):
        super().__init__(**kwargs)
        self.number = number

    def call(self, t: Any) -> Any:
        frequencies = ops.convert_to_tensor(2 * np.pi * np.geomspace(0.25, 4, self.number), t.dtype)
        angle = t[:, None] * frequencies
        return ops.concatenate([ops.sin(angle), ops.cos(angle)], -1)

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], 2 * self.number)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "number": self.number}


@register
class Coordinates(keras.layers.Layer):
    """Appends y, x and the radius from the image's centre, each from -1 to 1 along an axis, as three channels.

    Convolutions see no absolute position, and what images show is often centred.
    """

    def call(self, x: Any) -> Any:
        height, width = x.shape[1:3]
        y, z = (np.arange(n, dtype="float32") * 2 / n - 1 for n in (height, width))
        y, z = np.broadcast_arrays(y[:, None], z[None])
        grid = ops.convert_to_tensor(np.stack([y, z, np.hypot(y, z)], -1)[None], x.dtype)
        return ops.concatenate([x, ops.broadcast_to(grid, (ops.shape(x)[0], height, width, 3))], -1)

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], shape[-1] + 3)


@register
class Modulation(keras.layers.Layer):
    """x (1 + a) + b in each channel, where a and b are linear in a vector: [B, H, W, F], [B, E] -> [B, H, W, F]."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.affine: Any = None

    def build(self, shapes: Any) -> None:
        image, vector = shapes
        self.affine = keras.layers.Dense(2 * image[-1], name="affine")
        self.affine.build(vector)

    def call(self, inputs: Any) -> Any:
        x, vector = inputs
        scale, shift = ops.split(self.affine(vector)[:, None, None], 2, -1)
        return x * (1 + scale) + shift

    def compute_output_shape(self, shapes: Any) -> Any:
        return shapes[0]


@register
class ToPixels(keras.layers.Layer):
    """Channels as the pixels of a patch (depth to space): [B, H, W, n n C] -> [B, n H, n W, C]."""

    def __init__(self, patch: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.patch = patch

    def call(self, x: Any) -> Any:
        n, (height, width, depth) = self.patch, x.shape[1:]
        x = ops.reshape(x, (-1, height, width, n, n, depth // n**2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, n * height, n * width, depth // n**2))

    def compute_output_shape(self, shape: Any) -> Any:
        batch, height, width, depth = shape
        return (batch, height * self.patch, width * self.patch, depth // self.patch**2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "patch": self.patch}
