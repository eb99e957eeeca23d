"""Denoisers: the mean and the covariance of what a noisy image was, x_t = x + sigma n, n ~ N(0, I).

x is a stamp at unit scale: a source's image over its `flux_scale`. A denoiser is a prior in disguise: its score is
grad log p(x_t) = (D - x_t) / sigma^2 with D = E[x | x_t] (Tweedie), and Cov[x | x_t] = V = sigma^2 dD/dx_t.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.networks.layers import register
from tfdeblend.networks.unet import MOST_NUMBERS

Tensor = Any  # of the Keras backend
FAINTEST = 0.01  # of a pixel's variance: brightness squared that the covariance head takes every pixel to have
LOG_DIAGONAL = (-8.0, 6.0)  # bounds of the head's diagonal over what it starts from, in log; the lower of a residual's
LAW = 2  # of what a head's numbers mean: kept in files, so that those of another are not misread
LEAST_OPEN = 0.02, 3e-4  # of V0, that a pixel keeps to itself where x_t says nothing of it, and where it does
LEAST_REST = 1e-5  # of a pixel's variance, that a Gaussian's directions leave to itself: rounding may not


def flux_scale(images: Any) -> Any:
    """Gives s = sqrt(sum of x^2 over bands and pixels), by which a stamp is divided: [..., C, P, P] -> [...], in flux.

    White noise of sigma a pixel on x is then noise of sigma / s on u = x / s,
    which is one over the signal-to-noise of the source: levels of noise mean the same for compact and extended,
    bright and faint galaxies.
    """
    if isinstance(images, np.ndarray):
        return np.sqrt(np.einsum("...cyx,...cyx->...", images, images))
    return ops.sqrt(ops.sum(ops.square(images), (-3, -2, -1)))


class Denoiser(abc.ABC):
    """Gives the mean E[x | x_t] of stamps at unit scale, and with it the score of their distribution."""

    @abc.abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gives D = E[x | x_t]: x_t [..., C, P, P], sigma [...] -> [..., C, P, P]."""

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Gives grad log p(x_t) = (D - x_t) / sigma^2."""
        return (self.denoise(x, sigma) - x) / pixels(sigma) ** 2


class PriorDenoiser(Denoiser):
    """Stands for a prior of stamps at unit scale, by E[x | x_t] and Cov[x | x_t].

    Args:
        stamp_shape: (C, P, P).
        bands: C names, or none.
        rank: R, directions of the covariance.
        mean, variance: [C, P, P] of the prior's pixels.
        pixel_scale: arcsec.
        model_sigma: pixels, of the Gaussian PSF in the stamps.
        scale_jitter: how wrong a flux scale may be, in natural log.
    """

    stamp_shape: tuple[int, int, int]
    bands: tuple[str, ...]
    mean: Tensor
    variance: Tensor
    pixel_scale: float
    model_sigma: float
    scale_jitter: float

    @property
    @abc.abstractmethod
    def rank(self) -> int:
        """Counts the directions of the covariance."""

    @abc.abstractmethod
    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalPlusLowRank]:
        """Gives (D, V), the mean as `denoise` does, and the covariance."""

    @abc.abstractmethod
    def prior_variance(self, sigma: Tensor) -> Tensor:
        """Gives each pixel's variance given x_t, if pixels were independent and Gaussian: [..., C, P, P]."""


def pixels(sigma: Tensor) -> Tensor:
    """Adds axes to multiply images with: [...] -> [..., 1, 1, 1]."""
    return ops.reshape(sigma, (*ops.shape(sigma), 1, 1, 1))


@register
class NeuralDenoiser(keras.Model, PriorDenoiser):
    """A network as a denoiser (Karras et al. 2022), with a covariance head; all that belongs to it in one .keras file.

    With m and v the mean and variance of each pixel and band over the training set,

        D = m + c_skip (x_t - m) + c_out F(c_in (x_t - m), c_noise),
        c_skip = v / (v + sigma^2),  c_out = sqrt(V0),  c_in = 1 / sqrt(v + sigma^2),  c_noise = log(sigma) / 4,
        V0 = sigma^2 v / (sigma^2 + v),

    which is EDM's preconditioning with sigma_data^2 = v for each pixel: without the network F it is the best denoiser
    that sees one pixel at a time. The head gives

        V = diag(S exp(a)) + L L^T,  L = sqrt(S) b,  1 / S = 1 / V0 + 1 / (D^2 + v / 100),

    a and b from a network that sees x_t and D. S is what the noise or a pixel's brightness leaves open, whichever is
    less, so that thousands of empty pixels need not learn to add nothing to the error of a flux. A little of V0 is
    always added, for the rare galaxy that is larger than most: without, V calls it impossible.

    Args:
      network: ([B, P, P, C], [B]) -> [B, P, P, C].
      head: ([B, P, P, 2 C], [B]) -> [B, P, P, (1 + rank) C]; None: V is that without the networks.
      bands: C names. pixel_scale: arcsec. model_sigma: pixels, of the Gaussian PSF in the stamps.
      sigma_data: root mean square of the stamps' pixels at unit scale. scale_jitter: spread of the log of the scales
        seen in training: how wrong a flux scale may be.
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
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", keras.config.floatx())  # under a policy of mixed precision too
        super().__init__(**kwargs)
        _, side, _, channels = network.input_shape[0]
        self.network, self.head = network, head
        self.bands, self.pixel_scale, self.model_sigma = tuple(bands), pixel_scale, model_sigma
        self.sigma_data, self.scale_jitter = sigma_data, scale_jitter
        self.stamp_shape = (channels, side, side)
        if bands and len(bands) != channels:
            raise ValueError(f"expected {channels} bands, as the network has channels, received {len(bands)}")
        start = keras.initializers.Constant(sigma_data**2)
        self.mean = self.add_weight(self.stamp_shape, "zeros", trainable=False, name="mean")
        self.variance = self.add_weight(self.stamp_shape, start, trainable=False, name="variance")
        self.built = True

    @property
    def rank(self) -> int:
        """Counts the directions of the covariance."""
        return max(self.head_rank, 1)

    @property
    def head_rank(self) -> int:
        """Counts the directions that the head gives."""
        return 0 if self.head is None else self.head.output_shape[-1] // self.stamp_shape[0] - 1

    def set_moments(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Takes over the training set's mean and variance, (C, P, P) each, at unit scale."""
        self.mean.assign(mean)
        self.variance.assign(variance)

    def prior_variance(self, sigma: Tensor) -> Tensor:
        """Gives each pixel's variance given x_t, V0, from which the head starts."""
        return pixels(sigma) ** 2 * self.variance / self._total_variance(sigma)

    def _total_variance(self, sigma: Tensor) -> Tensor:
        """Gives v + sigma^2 [..., C, P, P]. Noise first: Keras takes a summand [B, 1, 1, 1] for a bias if B = P."""
        return pixels(sigma) ** 2 + self.variance

    def call(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Gives D [B, C, P, P] of (x_t [B, C, P, P], sigma [B])."""
        x, sigma = inputs
        offset = x - self.mean
        c_in, c_noise = 1 / ops.sqrt(self._total_variance(sigma)), ops.log(sigma) / 4
        c_out = ops.sqrt(self.prior_variance(sigma))
        f = _bands_first(self.network((_bands_last(c_in * offset), c_noise)))
        return self.mean + self._linear(offset, sigma) + c_out * f

    def _linear(self, offset: Tensor, sigma: Tensor) -> Tensor:
        """Gives what D - m is without the network, of x_t - m [B, C, P, P]."""
        c_skip = self.variance / self._total_variance(sigma)
        return c_skip * offset

    def covariance(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> DiagonalPlusLowRank:
        """Gives V of x_t, D [B, C, P, P] and sigma [B]."""
        v0 = self.prior_variance(sigma)
        if self.head is None:
            return DiagonalPlusLowRank(v0, 0 * v0[:, None])
        a, b = self._head(x, denoised, sigma)
        square = ops.square(denoised) + FAINTEST * self.variance
        scale = v0 * square / (v0 + square)  # S
        unknown, known = LEAST_OPEN
        least = (unknown * v0 / self.variance + known) * v0
        diagonal = least + scale * ops.exp(ops.minimum(a, LOG_DIAGONAL[1]))
        return DiagonalPlusLowRank(diagonal, ops.sqrt(scale)[:, None] * b)

    def _head(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the head's a [B, C, P, P] and b [B, R, C, P, P]."""
        seen = (x - self.mean) / ops.sqrt(self._total_variance(sigma))
        found = (denoised - self.mean) / ops.sqrt(self.variance)
        both = _bands_last(ops.concatenate([seen, found], 1))
        assert self.head is not None
        out = _bands_first(self.head((both, ops.log(sigma) / 4)))
        out = ops.reshape(out, (-1, 1 + self.head_rank, *self.stamp_shape))
        return out[:, 0], out[:, 1:]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        flat, levels = self._flatten(x, sigma)
        return ops.reshape(self((flat, levels)), ops.shape(x))

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, DiagonalPlusLowRank]:
        flat, levels = self._flatten(x, sigma)
        denoised = self((flat, levels))
        v = self.covariance(flat, denoised, levels)
        shape = ops.shape(x)
        factor = ops.reshape(v.factor, (*shape[:-3], v.rank, *self.stamp_shape))
        return ops.reshape(denoised, shape), DiagonalPlusLowRank(ops.reshape(v.diagonal, shape), factor)

    def _flatten(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Joins leading axes to one: [B, C, P, P], [B]."""
        if tuple(x.shape[-3:]) != self.stamp_shape:
            expected = ", ".join(map(str, self.stamp_shape))
            raise ValueError(f"expected stamps of shape (..., {expected}), received {tuple(x.shape)}")
        sigma = ops.broadcast_to(sigma, ops.shape(x)[:-3])
        return ops.reshape(x, (-1, *self.stamp_shape)), ops.reshape(sigma, (-1,))

    def assign(self, other: NeuralDenoiser) -> None:
        """Takes over the weights of another of the same networks."""
        self.set_weights(other.get_weights())

    def without_optimizer(self) -> NeuralDenoiser:
        """Makes a copy that holds nothing of training, to be saved."""
        copy = type(self).from_config(self.get_config())
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
            "law": LAW,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NeuralDenoiser:
        """Makes the denoiser that `get_config` describes. Raises: ValueError for a head of another law."""
        law, rest = config.get("law", 1), {key: value for key, value in config.items() if key != "law"}
        if law != LAW and config["head"]:
            raise ValueError(f"expected a covariance head of law {LAW}, received one of law {law}: train it again")
        parts = {key: keras.saving.deserialize_keras_object(config[key]) for key in ("network", "head") if config[key]}
        if cls is NeuralDenoiser:
            rest.pop("base_rank", None)  # older files say that there is none
        return cls(**{**rest, **parts})


@register
class ResidualDenoiser(NeuralDenoiser):
    """Networks that correct the best denoiser of a Gaussian N(m, C), C = diag(d) + F^T F, by what is left to it.

        D = D_C + c_out F(c_in (x_t - m), c_noise),  V = diag(d' exp(a)) + L' L'^T + L L^T,  L = sqrt(V0) b,

    with D_C, diag(d') + L' L'^T the Gaussian's own mean and covariance given x_t. So what has hardly been fitted is
    that Gaussian. V's directions are those of the Gaussian, then those of the head.

    Args:
      base_rank: directions of C. The rest: see `NeuralDenoiser`.
    """

    def __init__(self, network: keras.Model, head: keras.Model | None = None, *, base_rank: int, **kwargs: Any):
        super().__init__(network, head, **kwargs)
        self.base_rank = base_rank
        if base_rank * math.prod(self.stamp_shape) > MOST_NUMBERS:
            raise ValueError(f"base_rank: expected directions of at most {MOST_NUMBERS} numbers, received {base_rank}")
        self.directions = self.add_weight((base_rank, *self.stamp_shape), "zeros", trainable=False, name="directions")

    @property
    def rank(self) -> int:
        """Counts the directions of the covariance, those of the base among them."""
        return self.base_rank + self.head_rank

    def set_gaussian(self, mean: np.ndarray, variance: np.ndarray, factor: np.ndarray) -> None:
        """Takes over m, the diagonal of C, (C, P, P) each, and F (base_rank, C, P, P)."""
        self.set_moments(mean, variance)
        self.directions.assign(factor)

    def _gaussian(self) -> DiagonalPlusLowRank:
        """Gives C."""
        directions = ops.convert_to_tensor(self.directions)
        rest = self.variance - ops.sum(ops.square(directions), 0)
        return DiagonalPlusLowRank(ops.maximum(rest, LEAST_REST * self.variance), directions)

    def _linear(self, offset: Tensor, sigma: Tensor) -> Tensor:
        return self._gaussian().smooth(pixels(sigma) ** 2, offset)

    def covariance(self, x: Tensor, denoised: Tensor, sigma: Tensor) -> DiagonalPlusLowRank:
        base = self._gaussian().given(pixels(sigma) ** 2)
        if self.head is None:
            return base
        a, b = self._head(x, denoised, sigma)
        factor = ops.sqrt(self.prior_variance(sigma))[:, None] * b
        diagonal = base.diagonal * ops.exp(ops.clip(a, *LOG_DIAGONAL))
        return DiagonalPlusLowRank(diagonal, ops.concatenate([base.factor, factor], 1))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base_rank": self.base_rank}


def _bands_last(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, 2, 3, 1))


def _bands_first(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, 3, 1, 2))
