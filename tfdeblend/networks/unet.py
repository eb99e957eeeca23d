"""A U-Net of residual blocks, conditioned on one number an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from tfdeblend.networks.layers import Coordinates, Fourier, Modulation, ToPixels, register

MOST_NUMBERS, MOST_BLOCKS = 2**26, 256  # of a network's weights, and of an image: 256 MiB in float32


@register
class UNet(keras.Model):
    """Turns images [B, P, P, channels] and a number each [B] into images [B, P, P, outputs], channels last.

    The input is patched: an overlapping strided convolution leads to P / patch pixels a side, a convolution and a
    depth-to-space lead back. One architecture thus serves stamps of any side at a cost of choice. The finest level has
    no blocks on the way down, only on the way up: it is the dearest.

    Args:
      side: P, a multiple of patch * 2^(levels - 1).
      channels: of the input. outputs: channels of the output.
      widths: channels at each level, from fine to coarse. blocks: residual blocks at each level, on either way.
      patch: pixels a side that become one. embedding: width of the embedding of the number.
      head_kernel: side of the last convolution, 1 where there are many outputs.
      gated: the output is a + g * image, with both a and g from the network (`outputs` then equals `channels`), so that
        noise of full resolution is kept or removed pixel by pixel and need not pass through the narrow finest level.
      output_scale: of the last convolution's initial weights; 0 starts from a zero output.

    Products are taken in the precision of Keras' dtype policy at the time of making; it is not part of what is saved.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        outputs: int,
        widths: Sequence[int] = (24, 48, 96, 160),
        blocks: Sequence[int] = (1, 1, 1, 1),
        patch: int = 2,
        embedding: int = 64,
        head_kernel: int = 3,
        gated: bool = False,
        output_scale: float = 0.0,
        **kwargs: Any,
    ):
        coarsest = patch * 2 ** (len(widths) - 1)
        if side % coarsest:
            raise ValueError(f"expected a side that is a multiple of {coarsest}, received {side}")
        if len(blocks) != len(widths):
            raise ValueError(f"expected as many blocks as widths ({len(widths)}), received {len(blocks)}")
        if gated and outputs != channels:
            raise ValueError(f"expected as many outputs as channels ({channels}) of a gated U-Net, received {outputs}")
        if sum(blocks) > MOST_BLOCKS:
            raise ValueError(f"expected at most {MOST_BLOCKS} blocks, received {sum(blocks)}")
        if (pixels := side**2 * max(channels, outputs)) > MOST_NUMBERS:
            raise ValueError(f"expected images of at most {MOST_NUMBERS} numbers, received {pixels:g}")
        depth = outputs * patch**2 * (2 if gated else 1)
        if (number := _weights(channels, widths, blocks, patch, embedding, head_kernel, depth)) > MOST_NUMBERS:
            raise ValueError(f"expected a network of at most {MOST_NUMBERS} weights, received one of {number:g}")
        self._arguments: dict[str, Any] = {
            "side": side,
            "channels": channels,
            "outputs": outputs,
            "widths": list(widths),
            "blocks": list(blocks),
            "patch": patch,
            "embedding": embedding,
            "head_kernel": head_kernel,
            "gated": gated,
            "output_scale": output_scale,
        }
        image = keras.Input((side, side, channels), name="image")
        number = keras.Input((), name="number")
        super().__init__(inputs=(image, number), outputs=self._graph(image, number), **kwargs)

    def _graph(self, image: Any, number: Any) -> Any:
        arg = self._arguments
        widths, patch = arg["widths"], arg["patch"]
        full = keras.config.floatx()  # where products are of lower precision, the number and the last sums are not
        vector = layers.Dense(arg["embedding"], "silu")(Fourier(dtype=full)(number))
        vector = layers.Dense(arg["embedding"], "silu")(vector)
        x = layers.Conv2D(widths[0], max(3, 2 * patch), patch, "same", name="stem")(image)
        x = layers.Conv2D(widths[0], 1, name="place")(Coordinates()(x))
        skips = [x]
        for level, width in enumerate(widths[1:], 1):
            x = layers.Conv2D(width, 2, 2, name=f"down{level}")(x)
            for i in range(arg["blocks"][level]):
                x = self._block(x, vector, f"down{level}_{i}")
            skips.append(x)
        x = skips.pop()
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                x = layers.UpSampling2D(2)(layers.Conv2D(widths[level], 1, name=f"up{level}")(x))
                x = layers.add([x, skips.pop()])
            for i in range(arg["blocks"][level]):
                x = self._block(x, vector, f"up{level}_{i}")
        x = layers.Activation("silu")(x)
        start = keras.initializers.VarianceScaling(max(arg["output_scale"], 1e-10) ** 2)
        depth = arg["outputs"] * patch**2 * (2 if arg["gated"] else 1)
        x = layers.Conv2D(depth, arg["head_kernel"], padding="same", kernel_initializer=start, name="head")(x)
        x = ToPixels(patch, dtype=full)(x)
        if not arg["gated"]:
            return x
        addition, gate = ops.split(x, 2, -1)
        return addition + gate * image

    def _block(self, x: Any, vector: Any, name: str) -> Any:
        """x + conv(silu(modulate(conv(silu(normalize(x)))))), whose last convolution starts at zero."""
        width = x.shape[-1]
        h = layers.RMSNormalization(name=f"{name}_norm")(x)
        h = layers.Activation("silu")(h)
        h = layers.Conv2D(width, 3, padding="same", name=f"{name}_first")(h)
        h = layers.Activation("silu")(Modulation(name=f"{name}_modulation")([h, vector]))
        h = layers.Conv2D(width, 3, padding="same", kernel_initializer="zeros", name=f"{name}_second")(h)
        return layers.add([x, h])

    def get_config(self) -> dict[str, Any]:
        return {**self._arguments, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> UNet:
        """Makes the network that `get_config` describes."""
        return cls(**config)


def _weights(
    channels: int, widths: Sequence[int], blocks: Sequence[int], patch: int, embedding: int, kernel: int, depth: int
) -> int:
    """Counts a network's weights before any memory is taken for them. depth: of the last convolution's output."""

    def affine(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    finest = widths[0]
    number = affine(32, embedding) + affine(embedding, embedding)
    number += affine(max(3, 2 * patch) ** 2 * channels, finest) + affine(finest + 3, finest)
    number += affine(kernel**2 * finest, depth)
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        block = width + 2 * affine(9 * width, width) + affine(embedding, 2 * width)
        number += count * block * (2 if level else 1)
        if level:
            number += affine(4 * widths[level - 1], width) + affine(width, widths[level - 1])
    return number
