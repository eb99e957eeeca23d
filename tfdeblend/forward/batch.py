"""BlendBatch: scenes of any size and any number of sources, padded into a few fixed shapes.

One compiled graph then serves all scenes of a shape. What is padding has weight 0 (pixels), mask 0 (sources) or is
empty (blends), and never changes what is real. Images are whitened on the way in: each band is divided by its typical
noise, so that everything behind is free of the data's units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import tensorflow as tf

from tfdeblend.data.noise_correlation import whitening, whitening_transfer
from tfdeblend.data.photometry import band_scales, reference_flux
from tfdeblend.data.psf import pixels_per_arcsec, transfer_function
from tfdeblend.data.scene import Scene
from tfdeblend.forward.shapes import BatchShape

PER_SOURCE = ("corners", "centers", "is_source", "is_point")  # tensors [B, K, ...] of a batch


@dataclass(frozen=True, eq=False)
class BlendBatch:
    """B blends of at most K sources in C bands. Tensors of the batch's dtype, images in units of `band_scale`."""

    shape: BatchShape
    images: tf.Tensor  # [B, C, S, S]
    weights: tf.Tensor  # [B, C, S, S], 0 = masked or padding
    whitening: tf.Tensor  # [B, C, M, S, S] see `correlation.whitening`; M = 0 for white noise
    kernel: tf.Tensor  # [B, C, N, N // 2 + 1] complex: observed PSF over model PSF
    stamp_kernel: tf.Tensor  # [B, C, W // 2, W // 4 + 1] complex: the same, whitened, for a stamp's window, coarsely
    corners: tf.Tensor  # [B, K, 2] integer, frame pixel of the stamps' first pixel, which is an even one of the image
    centers: tf.Tensor  # [B, K, 2] given position relative to stamp pixel P // 2, between -0.5 and 1.5
    is_source: tf.Tensor  # [B, K] 1 real, 0 padding
    is_point: tf.Tensor  # [B, K] 1 point source, 0 galaxy
    arcsec: tf.Tensor  # [B] pixels in an arcsec
    band_unit: tf.Tensor  # [B, C] what one flux in AB is in each band's whitened units, their geometric mean being 1
    band_scale: np.ndarray  # [B, C] float64: the noise by which each band was divided

    @classmethod
    def build(cls, scenes: Sequence[Scene], shape: BatchShape, dtype: tf.DType = tf.float32) -> BlendBatch:
        """Pads `scenes`, at most `shape.blends` of them, into one batch."""
        rows = [_arrays(scene, shape) for scene in scenes]
        rows += [_empty(shape)] * (shape.blends - len(rows))
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
        kinds = {"kernel": complex_dtype, "stamp_kernel": complex_dtype, "corners": tf.int32}
        tensors = {
            name: tf.constant(value, kinds.get(name, dtype)) for name, value in stacked.items() if name != "band_scale"
        }
        return cls(shape=shape, band_scale=stacked["band_scale"], **tensors)

    def first_pixels(self, row: int) -> np.ndarray:
        """(K, 2) the pixel of the image under the first one of each stamp."""
        return self.corners[row].numpy() - self.shape.margin

    @property
    def tensors(self) -> dict[str, tf.Tensor]:
        """What a compiled graph takes, by name."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("shape", "band_scale")}


def _arrays(scene: Scene, shape: BatchShape) -> dict[str, np.ndarray]:
    """One blend's padded arrays, in float64."""
    observation = scene.observation
    bands, height, width = observation.shape
    scale = band_scales(observation)
    correlation, psf = observation.noise_correlation, observation.psf.astype(float)
    fy, fx = np.fft.fftfreq(shape.window)[:, None], np.fft.rfftfreq(shape.window)
    images = np.zeros((bands, shape.side, shape.side))
    weights = np.zeros_like(images)
    weights[:, :height, :width] = observation.weights * scale[:, None, None] ** 2
    images[:, :height, :width] = np.where(observation.valid, observation.images / scale[:, None, None], 0)
    band_unit = reference_flux(observation) / scale
    band_unit /= np.exp(np.mean(np.log(band_unit)))
    positions = np.zeros((shape.sources, 2))
    positions[: len(scene.sources)] = scene.positions
    first = 2 * np.floor((np.floor(positions + 0.5) - shape.stamp // 2) / 2)
    is_source, is_point = np.zeros(shape.sources), np.zeros(shape.sources)
    is_source[: len(scene.sources)] = 1
    is_point[: len(scene.sources)] = [source.kind == "point" for source in scene.sources]
    return {
        "images": images,
        "weights": weights,
        "whitening": whitening(correlation, weights > 0, shape.reach),
        "kernel": transfer_function(psf, shape.model_sigma, shape.fourier),
        "stamp_kernel": _low(
            transfer_function(psf, shape.model_sigma, shape.window)
            * whitening_transfer(correlation, shape.reach, 2 * np.pi * fy, 2 * np.pi * fx)
        ),
        "corners": (first + shape.margin).astype(np.int32),
        "centers": positions - first - shape.stamp // 2,
        "is_source": is_source,
        "is_point": is_point,
        "arcsec": np.array(pixels_per_arcsec(scene)),
        "band_unit": band_unit,
        "band_scale": scale,
    }


def _low(transfer: np.ndarray) -> np.ndarray:
    """(C, W, W // 2 + 1) -> (C, W // 2, W // 4 + 1): the frequencies that every second pixel can tell."""
    quarter = transfer.shape[1] // 4
    rows = np.concatenate([transfer[:, :quarter], transfer[:, -quarter:]], 1)
    return rows[:, :, : quarter + 1] / 4


def _empty(shape: BatchShape) -> dict[str, np.ndarray]:
    """A blend that is all padding."""
    images = np.zeros((shape.bands, shape.side, shape.side))
    sources = np.zeros(shape.sources)
    return {
        "images": images,
        "weights": images,
        "whitening": whitening(None, images > 0, shape.reach),
        "kernel": np.ones((shape.bands, shape.fourier, shape.fourier // 2 + 1), complex),
        "stamp_kernel": np.ones((shape.bands, shape.window // 2, shape.window // 4 + 1), complex),
        "corners": np.full((shape.sources, 2), shape.margin, np.int32),
        "centers": np.zeros((shape.sources, 2)),
        "is_source": sources,
        "is_point": sources,
        "arcsec": np.array(1.0),
        "band_unit": np.ones(shape.bands),
        "band_scale": np.ones(shape.bands),
    }
