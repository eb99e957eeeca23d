"""Defines the one shape of blends that an exported model takes, and the names and shapes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfdeblend.data.psf import MODEL_SIGMA
from tfdeblend.diffusion import registry
from tfdeblend.forward.shapes import (
    IMAGE_SIDES,
    SMALLEST_REACH,
    SOURCE_COUNTS,
    BatchShape,
    ExposureShape,
    fast_fourier_size,
)
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.transport import SAMPLES, STEPS

__all__ = ["PSF_SIDE", "SAMPLES", "STEPS", "Bucket", "blend_specs"]
PSF_SIDE = 43  # pixels: what a frame of the usual width can hold
STAMPS = ((32, 48), (64, 64), (80, 80))  # image side, stamp side of closed-form galaxies


@dataclass(frozen=True)
class Bucket:
    """Holds blends of up to `sources` sources on images of up to `side` pixels a side.

    Args:
      prior: a closed-form or a learned one. bands: C names; None: the learned prior's, else grizy.
      psf: pixels a side of the PSFs' images; smaller ones are padded.

    Raises: ValueError for a prior, side or bands that there are none of.
    """

    prior: str
    side: int = 64
    sources: int = 4
    psf: int = PSF_SIDE
    bands: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        known = [*PRIORS, *registry.shipped(), f"a {registry.SUFFIX} file"]
        if self.prior not in known and not self.prior.endswith(registry.SUFFIX):
            raise ValueError(f"prior: expected one of {', '.join(known)}, received {self.prior!r}")
        for name, sizes in (("side", IMAGE_SIDES), ("sources", SOURCE_COUNTS)):
            if getattr(self, name) not in sizes:
                expected = ", ".join(map(str, sizes))
                raise ValueError(f"{name}: expected one of {expected}, received {getattr(self, name)}")
        if self.psf < 3:
            raise ValueError(f"psf: expected at least 3 pixels, received {self.psf}")
        own = registry.find(self.prior).bands if self.is_learned else None
        bands = self.bands or own or tuple("grizy")
        if own and bands != own:
            raise ValueError(f"bands: expected those of {self.prior}, {','.join(own)}, received {','.join(bands)}")
        if not all(bands) or len(set(bands)) < len(bands):
            raise ValueError(f"bands: expected names that differ, received {','.join(bands)!r}")
        object.__setattr__(self, "bands", bands)

    @property
    def is_learned(self) -> bool:
        return registry.is_learned(self.prior)

    @property
    def name(self) -> str:
        """The name of the model: prior, image side, sources."""
        stem = registry.find(self.prior).name if self.is_learned else self.prior
        return f"{stem}_{self.side}x{self.sources}"

    @property
    def channels(self) -> int:
        """C, the number of bands."""
        return len(self.bands or ())

    @property
    def shape(self) -> BatchShape:
        """The shape of one blend, as `Deblender` takes it for scenes of these sides."""
        half = min(self.psf // 2 + 1, self.side)
        reach = 16 * int(np.ceil(max(1.45 * half, SMALLEST_REACH) / 16))
        stamp = next((stamp for most, stamp in STAMPS if self.side <= most), 96)
        sigma = MODEL_SIGMA
        if self.is_learned:
            prior = registry.find(self.prior)
            stamp, sigma = max(stamp, 16 * int(np.ceil((prior.side + 2) / 16))), prior.model_sigma
        margin = reach * 5 // 16
        exposure = ExposureShape(tuple(range(self.channels)), self.side, kept=0, reach=0, aligned=True)
        return BatchShape(
            blends=1,
            sources=self.sources,
            bands=self.channels,
            frame=self.side + 2 * margin,
            margin=margin,
            fourier=fast_fourier_size(self.side + reach),
            stamp=stamp,
            model_sigma=sigma,
            exposures=(exposure,),
        )


def blend_specs(bucket: Bucket) -> dict[str, tf.TensorSpec]:
    """Returns the inputs of a signature: B blends.

    images, weights [B, C, S, S] in the image's unit and its inverse square, weight 0 = masked or padding; psfs
    [B, C, Q, Q] of sum 1, their origin at pixel (y, x) psf_center [B, 2]; positions [B, K, 2] of (y, x) in pixels;
    is_source, is_point [B, K], false for places that hold none; pixel_scale [B] in arcsec; zeropoints [B, C] in AB
    magnitudes, all the same where they are not known.
    """
    c, s, q, k = bucket.channels, bucket.side, bucket.psf, bucket.sources
    shapes = {
        "images": ([c, s, s], tf.float32),
        "weights": ([c, s, s], tf.float32),
        "psfs": ([c, q, q], tf.float32),
        "psf_center": ([2], tf.float32),
        "positions": ([k, 2], tf.float64),
        "is_source": ([k], tf.bool),
        "is_point": ([k], tf.bool),
        "pixel_scale": ([], tf.float32),
        "zeropoints": ([c], tf.float32),
    }
    return {name: tf.TensorSpec([None, *shape], dtype, name) for name, (shape, dtype) in shapes.items()}
