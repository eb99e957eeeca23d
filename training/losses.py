"""Covariance losses: the likelihoods of pixels, and of sums of them, that train a denoiser's covariance head."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfdeblend.diffusion.denoisers import NeuralDenoiser, Tensor
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.networks.layers import register


@register
class HeadTraining(keras.Model):
    """Trains the covariance head of a denoiser, whose mean is frozen, by `head_loss`.

    It packs D, the diagonal and the factor of V: (x_t, sigma) -> [B, 2 + rank, C, P, P].
    """

    def __init__(self, denoiser: NeuralDenoiser, **kwargs: Any):
        super().__init__(**kwargs)
        if denoiser.head is None:
            raise ValueError("expected a denoiser with a covariance head, received one without")
        self.denoiser = denoiser
        denoiser.network.trainable, denoiser.head.trainable = False, True
        self.built = True

    def call(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        x, sigma = inputs
        denoised = ops.stop_gradient(self.denoiser(inputs))
        v = self.denoiser.covariance(x, denoised, sigma)
        return ops.concatenate([denoised[:, None], v.diagonal[:, None], v.factor], 1)

    def get_config(self) -> dict[str, Any]:
        return {"denoiser": keras.saving.serialize_keras_object(self.denoiser), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> HeadTraining:
        return cls(**{**config, "denoiser": keras.saving.deserialize_keras_object(config["denoiser"])})


def negative_log_likelihood(x: Tensor, packed: Tensor) -> Tensor:
    """Gives -log N(x; D, V) [B] in nats a pixel, of what `HeadTraining` packs."""
    v = DiagonalPlusLowRank(packed[:, 1], packed[:, 2:])
    return -v.log_prob(x - packed[:, 0]) / int(np.prod(x.shape[1:]))


def apertures(side: int) -> np.ndarray:
    """Gives rows w (Q, P) of windows w w^T: Gaussians about pixel P // 2, each twice as wide as the one before, and the
    whole stamp, whose sum is the flux."""
    widths = 2.0 ** np.arange(int(np.log2(side / 4)) + 1)
    offset = np.arange(side) - side // 2
    return np.concatenate([np.exp(-0.5 * (offset / widths[:, None]) ** 2), np.ones((1, side))])


def aperture_unlikelihood(x: Tensor, packed: Tensor) -> Tensor:
    """Gives -log N(w.x; w.D, w.V w) [B], the mean over windows w of `apertures`, in each band and in all together.

    The likelihood of thousands of pixels hardly cares how large the few directions of L are, only where they point: 20
    times too large costs 20 nats of 10^4. What depends on their size is the error of a sum of pixels.
    """
    w = ops.convert_to_tensor(apertures(x.shape[-1]), x.dtype)

    def sums(images: Tensor) -> Tensor:
        """Adds up windows: [B, N, C, P, P] -> [B, N, Q, C + 1]."""
        each = ops.einsum("qy,qx,bncyx->bnqc", w, w, images)
        return ops.concatenate([each, ops.sum(each, -1, keepdims=True)], -1)

    error = sums((x - packed[:, 0])[:, None])[:, 0]
    squares = ops.einsum("qy,qx,bcyx->bqc", w**2, w**2, packed[:, 1])
    squares = ops.concatenate([squares, ops.sum(squares, -1, keepdims=True)], -1)
    variance = squares + ops.sum(ops.square(sums(packed[:, 2:])), 1)
    return 0.5 * ops.mean(ops.square(error) / variance + ops.log(2 * np.pi * variance), (1, 2))


def head_loss(x: Tensor, packed: Tensor) -> Tensor:
    """Adds both losses [B]. Each is proper: the covariance that is right minimises it."""
    return negative_log_likelihood(x, packed) + aperture_unlikelihood(x, packed)
