"""Denoisers: the mean and the covariance of what a noised image was, x_t = x + sigma n, n ~ N(0, I).

x is a stamp at unit scale: a source's image over its `flux_scale`. A denoiser is a prior in disguise: its score is
grad log p(x_t) = (D - x_t) / sigma^2 with D = E[x | x_t] (Tweedie), and Cov[x | x_t] = V = sigma^2 dD/dx_t.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdeblend.linalg.low_rank import DiagonalLowRank
from tfdeblend.networks.layers import register

Tensor = Any  # of the Keras backend
FAINTEST = 0.01  # of a pixel's variance: brightness squared that the covariance head takes every pixel to have
LOG_DIAGONAL = (-8.0, 6.0)  # bounds of the head's diagonal over what it starts from, in log; the lower of a base's
LAW = 2  # of what a head's numbers mean: in files, lest those of another be misread
LEAST_OPEN = 0.02, 3e-4  # of V0, that a pixel keeps to itself where x_t tells nothing of it, and where it does
LEAST_REST = 1e-5  # of a pixel's variance, that a base's directions leave to itself: rounding may not


def flux_scale(images: Any) -> Any:
    """s = sqrt(sum of x^2 over bands and pixels): [..., C, P, P] -> [...], in flux.

    The scale by which a stamp is divided. White noise of sigma a pixel on x is then noise of sigma / s on u = x / s,
    which is one over the signal-to-noise of the source: levels of noise mean the same for compact and extended,
    bright and faint galaxies.
    """
    if isinstance(images, np.ndarray):
        return np.sqrt(np.einsum("...cyx,...cyx->...", images, images))
    return ops.sqrt(ops.sum(ops.square(images), (-3, -2, -1)))


class Denoiser(abc.ABC):
    """E[x | x_t] and Cov[x | x_t] of stamps at unit scale.

    stamp_shape: (C, P, P). bands: C names, or none. rank: R, directions of the covariance. variance: [C, P, P] of the
    prior's pixels. pixel_scale: arcsec. model_sigma: pixels, of the Gaussian PSF in the stamps. scale_jitter: how wrong
    a flux scale may be, in natural log.
    """

    stamp_shape: tuple[int, int, int]
    bands: tuple[str, ...]
    variance: Tensor
    pixel_scale: float
    model_sigma: float
    scale_jitter: float

    @property
    @abc.abstractmethod
    def rank(self) -> int: ...

    @abc.abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D = E[x | x_t]: x_t [..., C, P, P], sigma [...] -> [..., C, P, P]."""

    @abc.abstractmethod
    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalLowRank]:
        """(D, V): the mean as `denoise`, and the covariance."""

    @abc.abstractmethod
    def prior_variance(self, sigma: Tensor) -> Tensor:
        """[..., C, P, P]: each pixel's variance given x_t, if pixels were independent and Gaussian."""

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """grad log p(x_t) = (D - x_t) / sigma^2."""
        return (self.denoise(x, sigma) - x) / pixels(sigma) ** 2


def pixels(sigma: Tensor) -> Tensor:
    """[...] -> [..., 1, 1, 1], to multiply images with."""
    return ops.reshape(sigma, (*ops.shape(sigma), 1, 1, 1))


@register
class NeuralDenoiser(keras.Model, Denoiser):
    """A network as a denoiser (Karras et al. 2022), with a covariance head; all that belongs to it in one .keras file.

    With m and v the mean and variance of each pixel and band over the training set,

        D = m + v / (v + sigma^2) (x_t - m) + sqrt(V0) F((x_t - m) / sqrt(v + sigma^2), log(sigma) / 4),
        V0 = sigma^2 v / (sigma^2 + v),

    which is EDM's preconditioning with sigma_data^2 = v for each pixel: without the network F it is the best denoiser
    that sees one pixel at a time. The head gives

        V = diag(S exp(a)) + L L^T,  L = sqrt(S) b,  1 / S = 1 / V0 + 1 / (D^2 + v / 100),

    a and b from a network that sees x_t and D. S is what the noise or a pixel's brightness leaves open, whichever is
    less, so that thousands of empty pixels need not be told to add nothing to the error of a flux. A little of V0 stays
    besides, for the rare galaxy that is larger than most: without, V calls it impossible.

    With a `base_rank`, what the networks correct is the best denoiser of a Gaussian whose covariance has that many
    directions: its mean takes the place of the first two terms of D; its covariance's diagonal takes that of V0 in the
    first term of V, and its directions stand beside the head's; S is V0, and nothing stays besides. So what has hardly
    been fitted is that Gaussian.

    Args:
      network: ([B, P, P, C], [B]) -> [B, P, P, C].
      head: ([B, P, P, 2 C], [B]) -> [B, P, P, (1 + rank) C]; None: the covariance is the Gaussian's.
      bands: C names. pixel_scale: arcsec. model_sigma: pixels, of the Gaussian PSF in the stamps.
      sigma_data: root mean square of the stamps' pixels at unit scale. scale_jitter: spread of the log of the scales
        seen in training: how wrong a flux scale may be.
      base_rank: directions of the Gaussian that the networks correct.
    """

    def __init__(
        self,
        network: keras.Model,
        head: keras.Model | None = None,
        bands: Sequence[str] = (),
        pixel_scale: float = 1.0,
        model_sigma: float = 1.0,
        sigma_data: float = 1.0,
        scale_jitter: float = 0.0,
        base_rank: int = 0,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", keras.config.floatx())  # under a policy of mixed precision too
        super().__init__(**kwargs)
        _, side, _, channels = network.input_shape[0]
        self.network, self.head = network, head
        self.bands, self.pixel_scale, self.model_sigma = tuple(bands), pixel_scale, model_sigma
        self.sigma_data, self.scale_jitter, self.base_rank = sigma_data, scale_jitter, base_rank
        self.stamp_shape = (channels, side, side)
        if bands and len(bands) != channels:
            raise ValueError(f"expected {channels} bands, as the network has channels, received {len(bands)}")
        start = keras.initializers.Constant(sigma_data**2)
        self.mean = self.add_weight(self.stamp_shape, "zeros", trainable=False, name="mean")
        self.variance = self.add_weight(self.stamp_shape, start, trainable=False, name="variance")
        if base_rank:
            shape = (base_rank, *self.stamp_shape)
            self.directions = self.add_weight(shape, "zeros", trainable=False, name="directions")
        self.built = True

    @property
    def rank(self) -> int:
        """Directions of the covariance."""
        if self.head is None:
            return max(self.base_rank, 1)
        return self.base_rank + self.head.output_shape[-1] // self.stamp_shape[0] - 1

    def set_moments(self, mean: np.ndarray, variance: np.ndarray, directions: np.ndarray | None = None) -> None:
        """Takes over the training set's mean and variance, (C, P, P) each, at unit scale; with a base, the factor
        (base_rank, C, P, P) of its covariance too."""
        if (directions is not None) != (self.base_rank > 0):
            raise ValueError(f"expected directions for a base, of rank {self.base_rank}, and for nothing else")
        self.mean.assign(mean)
        self.variance.assign(variance)
        if directions is not None:
            self.directions.assign(directions)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        """V0."""
        return pixels(sigma) ** 2 * self.variance / self._total_variance(sigma)

    def _total_variance(self, sigma: Tensor) -> Tensor:
        """v + sigma^2 [..., C, P, P]. Noise first: Keras takes a second summand [B, 1, 1, 1] for a bias if B = P."""
        return pixels(sigma) ** 2 + self.variance

    def _base(self) -> DiagonalLowRank:
        """The covariance of the Gaussian that the networks correct."""
        directions = ops.convert_to_tensor(self.directions)
        rest = self.variance - ops.sum(ops.square(directions), 0)
        return DiagonalLowRank(ops.maximum(rest, LEAST_REST * self.variance), directions)

    def call(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """(x_t [B, C, P, P], sigma [B]) -> D [B, C, P, P]."""
        x, sigma = inputs
        total = self._total_variance(sigma)
        offset = x - self.mean
        if self.base_rank:
            linear = self._base().smooth(pixels(sigma) ** 2, offset)
        else:
            linear = self.variance / total * offset
        f = _bands_first(self.network((_bands_last(offset / ops.sqrt(total)), ops.log(sigma) / 4)))
        return self.mean + linear + ops.sqrt(self.prior_variance(sigma)) * f

    def covariance(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> DiagonalLowRank:
        """V from x_t, D [B, C, P, P] and sigma [B]."""
        v0 = self.prior_variance(sigma)
        if self.base_rank:
            base, scale = self._base().given(pixels(sigma) ** 2), v0
        else:
            base, scale = DiagonalLowRank(v0, 0 * v0[:, None]), self._bounded(v0, denoised)
        if self.head is None:
            return base
        seen = (x - self.mean) / ops.sqrt(self._total_variance(sigma))
        found = (denoised - self.mean) / ops.sqrt(self.variance)
        both = _bands_last(ops.concatenate([seen, found], 1))
        out = _bands_first(self.head((both, ops.log(sigma) / 4)))
        out = ops.reshape(out, (-1, out.shape[1] // self.stamp_shape[0], *self.stamp_shape))
        factor = ops.sqrt(scale)[:, None] * out[:, 1:]
        if self.base_rank:
            diagonal = base.diagonal * ops.exp(ops.clip(out[:, 0], *LOG_DIAGONAL))
            return DiagonalLowRank(diagonal, ops.concatenate([base.factor, factor], 1))
        unknown, known = LEAST_OPEN
        least = (unknown * v0 / self.variance + known) * v0
        return DiagonalLowRank(least + scale * ops.exp(ops.minimum(out[:, 0], LOG_DIAGONAL[1])), factor)

    def _bounded(self, v0: Tensor, denoised: Tensor) -> Tensor:
        """S."""
        square = ops.square(denoised) + FAINTEST * self.variance
        return v0 * square / (v0 + square)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        flat, levels = self._flatten(x, sigma)
        return ops.reshape(self((flat, levels)), ops.shape(x))

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalLowRank]:
        flat, levels = self._flatten(x, sigma)
        denoised = self((flat, levels))
        v = self.covariance(flat, denoised, levels)
        shape = ops.shape(x)
        factor = ops.reshape(v.factor, (*shape[:-3], v.rank, *self.stamp_shape))
        return ops.reshape(denoised, shape), DiagonalLowRank(ops.reshape(v.diagonal, shape), factor)

    def _flatten(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Leading axes as one: [B, C, P, P], [B]."""
        if tuple(x.shape[-3:]) != self.stamp_shape:
            expected = ", ".join(map(str, self.stamp_shape))
            raise ValueError(f"expected stamps of shape (..., {expected}), received {tuple(x.shape)}")
        sigma = ops.broadcast_to(sigma, ops.shape(x)[:-3])
        return ops.reshape(x, (-1, *self.stamp_shape)), ops.reshape(sigma, (-1,))

    def assign(self, other: NeuralDenoiser) -> None:
        """Takes over another one's weights, of the same networks."""
        self.set_weights(other.get_weights())

    def without_optimizer(self) -> NeuralDenoiser:
        """A copy that holds nothing of training, to be saved."""
        copy = NeuralDenoiser.from_config(self.get_config())
        copy.set_weights(self.get_weights())
        return copy

    def get_config(self) -> dict[str, Any]:
        return {
            "network": keras.saving.serialize_keras_object(self.network),
            "head": None if self.head is None else keras.saving.serialize_keras_object(self.head),
            "bands": list(self.bands),
            "pixel_scale": self.pixel_scale,
            "model_sigma": self.model_sigma,
            "sigma_data": self.sigma_data,
            "scale_jitter": self.scale_jitter,
            "base_rank": self.base_rank,
            "law": LAW,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NeuralDenoiser:
        law, rest = config.get("law", 1), {key: value for key, value in config.items() if key != "law"}
        if law != LAW and config["head"] and not config.get("base_rank"):
            raise ValueError(f"expected a covariance head of law {LAW}, received one of law {law}: train it anew")
        parts = {key: keras.saving.deserialize_keras_object(config[key]) for key in ("network", "head") if config[key]}
        return cls(**{**rest, **parts})


def _bands_last(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, 2, 3, 1))


def _bands_first(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, 3, 1, 2))
