"""Scenes of any size and any number of sources, padded into a batch of a fixed shape.

What is padding has weight 0 (pixels), mask 0 (sources) or is
empty (blends), and never changes what is real. Images are divided by the typical noise of their bands, so that
everything behind is free of the data's units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.noise_correlation import whitening, whitening_transfer
from tfdeblend.data.observation import Observation, band_scales
from tfdeblend.data.psf import gaussian_psf, pixels_per_arcsec, transfer_function
from tfdeblend.data.scene import Scene
from tfdeblend.forward.shapes import BatchShape, ExposureShape, resampled_transfer

OF_SOURCES = ("corners", "centers", "is_source", "is_point")  # tensors [B, K, ...]
OF_PIXELS = ("images", "weights", "kernel", "coarse_kernel")  # tensors [B, C, pixels, pixels] of an exposure
SHARED = ("kernel", "coarse_kernel", "points", "gain")  # tensors that samples of one scene need only once


class ExposureTensors(NamedTuple):
    """One exposure of B blends: C_e bands of S_e x S_e pixels, in units of the bands' noise.

    images: [B, C_e, S_e, S_e]. weights: likewise, 0 = masked or padding. whitening: [B, C_e, M, S_e, S_e], see
    `noise_correlation.whitening`; M = 0 for white noise. kernel: [B, C_e, L, L // 2 + 1] complex, observed PSF over
    model PSF: of N x N frequencies on the model's own pixels, else of those kept. coarse_kernel: the same at every
    second pixel, whitened, on the model's own pixels in the window of one stamp [B, C_e, W // 2, W // 4 + 1]. points:
    [B, S_e, S_e, 2] of the pixels in the model's frame (y, x); [B, 0, 0, 2] on the model's own pixels. gain: [B, C_e].
    """

    images: tf.Tensor
    weights: tf.Tensor
    whitening: tf.Tensor
    kernel: tf.Tensor
    coarse_kernel: tf.Tensor
    points: tf.Tensor
    gain: tf.Tensor


class Tensors(NamedTuple):
    """What a compiled graph takes of B blends of K sources in C bands.

    corners: [B, K, 2] integer, the frame pixel under the first pixel of each stamp, which is an even one of the image.
    centers: [B, K, 2] the given position relative to stamp pixel P // 2, between -0.5 and 1.5. is_source: [B, K] 1 for
    a source, 0 for padding. is_point: [B, K] 1 for a point source, 0 for a galaxy. arcsec: [B] pixels in an arcsec.
    band_unit: [B, C] what one flux in AB is in the units of each band, their geometric mean being 1.
    """

    exposures: tuple[ExposureTensors, ...]
    corners: tf.Tensor
    centers: tf.Tensor
    is_source: tf.Tensor
    is_point: tf.Tensor
    arcsec: tf.Tensor
    band_unit: tf.Tensor

    def first_sources(self, number: int) -> Tensors:
        """The first `number` sources of each blend, where the others are padding."""
        return self._replace(**{name: getattr(self, name)[:, :number] for name in OF_SOURCES})

    def take(self, rows: np.ndarray) -> Tensors:
        """The tensors of some blends, by their row.

        Rows of several exposures must be those of one blend: what its samples share is then taken once, with a batch
        axis of 1.
        """
        several = len(self.exposures) > 1
        if several and len(set(rows)) > 1:
            raise ValueError(f"expected rows of one blend of several exposures, received {rows}")

        def taken(one: ExposureTensors) -> ExposureTensors:
            return ExposureTensors(
                *(
                    tf.gather(tensor, rows[:1] if several and name in SHARED else rows)
                    for name, tensor in zip(one._fields, one, strict=True)
                )
            )

        rest = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), self._replace(exposures=()))
        return rest._replace(exposures=tuple(taken(one) for one in self.exposures))

    def reweighted(self, weights: Sequence[tf.Tensor]) -> Tensors:
        """The same with other weights of each exposure."""
        pairs = zip(self.exposures, weights, strict=True)
        return self._replace(exposures=tuple(one._replace(weights=new) for one, new in pairs))


@dataclass(frozen=True, eq=False)
class Batch:
    """At most `shape.blends` scenes as tensors. band_scale: [B, C] float64, the noise by which bands were divided."""

    shape: BatchShape
    tensors: Tensors
    band_scale: np.ndarray

    @classmethod
    def build(cls, scenes: Sequence[Scene], shape: BatchShape, dtype: tf.DType = tf.float32) -> Batch:
        """Pads `scenes` into one batch of tensors of `dtype`."""
        rows = [_arrays(scene, shape) for scene in scenes]
        rows += [_empty(shape)] * (shape.blends - len(rows))
        stacked: Tensors = tf.nest.map_structure(lambda *parts: np.stack(parts), *(row for row, _ in rows))
        return cls(shape, _as_tensors(stacked, dtype), np.stack([scale for _, scale in rows]))

    def first_pixels(self, row: int) -> np.ndarray:
        """(K, 2) the pixel (y, x) of the first image under the first pixel of each stamp of a blend."""
        return self.tensors.corners[row].numpy() - self.shape.margin

    def flux_unit(self, row: int, scene: Scene, number: int) -> np.ndarray:
        """(C_e,) one unit of the images of an exposure, by its number, in the unit of its observation."""
        one = scene.observations[number]
        return self.band_scale[row][list(scene.band_indices(one))] * observed_flux(scene, one)


def _as_tensors(arrays: Tensors, dtype: tf.DType) -> Tensors:
    complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64

    def convert(array: np.ndarray) -> tf.Tensor:
        kinds = {"c": complex_dtype, "i": tf.int32}
        return tf.constant(array, kinds.get(array.dtype.kind, dtype))

    return tf.nest.map_structure(convert, arrays)


def scene_scales(scene: Scene) -> np.ndarray:
    """(C,) the noise of each band in the first observation that has it, in the unit of its fluxes."""
    if len(scene.observations) == 1:
        return band_scales(scene.observation)
    first = scene.first_with_band
    return np.array([(band_scales(one) / observed_flux(scene, one))[one.bands.index(band)] for band, one in first])


def observed_flux(scene: Scene, observation: Observation) -> np.ndarray:
    """(C_e,) what a flux of 1 of the scene is in an observation's unit, in each of its bands."""
    if scene.zeropoints is None or observation.zeropoints is None:
        return np.ones(observation.shape[0])
    return 10 ** (0.4 * (observation.zeropoints - scene.zeropoints[list(scene.band_indices(observation))]))


def stamp_corners(scene: Scene, stamp: int) -> np.ndarray:
    """(K, 2) the pixel (y, x) of the first image under the first pixel, an even one, of each stamp of P pixels."""
    return (2 * np.floor((np.floor(scene.positions + 0.5) - stamp // 2) / 2)).astype(int)


def _arrays(scene: Scene, shape: BatchShape) -> tuple[Tensors, np.ndarray]:
    """One blend's padded arrays, in float64, and its band scales."""
    scale = scene_scales(scene)
    band_unit = (
        np.ones(shape.bands) if scene.zeropoints is None else 10 ** (0.4 * (scene.zeropoints - scene.zeropoints.max()))
    )
    band_unit = band_unit / scale
    corners = stamp_corners(scene, shape.stamp)
    missing = ((0, shape.sources - len(corners)), (0, 0))
    is_point = np.array([source.kind == "point" for source in scene.sources], float)
    arrays = Tensors(
        exposures=tuple(_exposure_arrays(scene, number, shape, scale) for number in range(len(shape.exposures))),
        corners=np.pad(corners, missing, constant_values=0) + shape.margin,
        centers=np.pad(scene.positions - corners - shape.stamp // 2, missing),
        is_source=(np.arange(shape.sources) < len(corners)).astype(float),
        is_point=np.pad(is_point, missing[0]),
        arcsec=np.array(pixels_per_arcsec(scene)),
        band_unit=band_unit / np.exp(np.mean(np.log(band_unit))),
    )
    return arrays, scale


def _exposure_arrays(scene: Scene, number: int, shape: BatchShape, scale: np.ndarray) -> ExposureTensors:
    """One exposure's padded arrays, in float64."""
    own, one, pixels = shape.exposures[number], scene.observations[number], scene.maps[number]
    bands, height, width = one.shape
    unit = (scale[list(own.bands)] * observed_flux(scene, one))[:, None, None]
    seen = scene.covered(number)
    images, weights = np.zeros((2, bands, own.side, own.side))
    images[:, :height, :width] = np.where(one.valid & seen, one.images / unit, 0)
    weights[:, :height, :width] = np.where(seen, one.weights * unit**2, 0)
    kernels = _own_kernels if own.on_model_pixels else _resampling_kernels
    kernel, coarse_kernel, points = kernels(one, pixels, own, shape)
    return ExposureTensors(
        images=images,
        weights=weights,
        whitening=whitening(one.noise_correlation, weights > 0, own.reach),
        kernel=kernel,
        coarse_kernel=coarse_kernel,
        points=points,
        gain=np.ones(bands),
    )


def _own_kernels(
    one: Observation, pixels: AffineMap, own: ExposureShape, shape: BatchShape
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel, coarse kernel and no points of an exposure on the model's own pixels."""
    psf, sigma = one.psf.astype(float), shape.model_sigma
    fy, fx = np.fft.fftfreq(shape.window)[:, None], np.fft.rfftfreq(shape.window)
    coarse = transfer_function(psf, sigma, shape.window)
    coarse = coarse * whitening_transfer(one.noise_correlation, own.reach, 2 * np.pi * fy, 2 * np.pi * fx)
    quarter = shape.window // 4  # the frequencies that every second pixel can tell
    rows = np.concatenate([coarse[:, :quarter], coarse[:, -quarter:]], 1)
    return transfer_function(psf, sigma, shape.fourier), rows[:, :, : quarter + 1] / 4, np.zeros((0, 0, 2))


def _resampling_kernels(
    one: Observation, pixels: AffineMap, own: ExposureShape, shape: BatchShape
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel, coarse kernel and points of an exposure on other pixels, or shifted ones."""
    psf, model_psf = one.psf.astype(float), gaussian_psf(shape.model_sigma)
    half = own.kept // 2
    n = 2 * np.pi / shape.fourier * np.fft.fftfreq(half, 1 / half)
    k = np.stack(np.meshgrid(n, np.abs(n[: half // 2 + 1]), indexing="ij"), -1) @ pixels.matrix
    coarse = resampled_transfer(psf, model_psf, pixels, shape.fourier, half)
    coarse = coarse * whitening_transfer(one.noise_correlation, own.reach, k[..., 0], k[..., 1])
    kernel = resampled_transfer(psf, model_psf, pixels, shape.fourier, own.kept)
    return kernel, coarse, pixels.points((own.side, own.side)) + shape.margin


def _empty(shape: BatchShape) -> tuple[Tensors, np.ndarray]:
    """A blend that is all padding."""
    sources = np.zeros(shape.sources)
    arrays = Tensors(
        exposures=tuple(_empty_exposure(own, shape) for own in shape.exposures),
        corners=np.full((shape.sources, 2), shape.margin),
        centers=np.zeros((shape.sources, 2)),
        is_source=sources,
        is_point=sources,
        arcsec=np.array(1.0),
        band_unit=np.ones(shape.bands),
    )
    return arrays, np.ones(shape.bands)


def _empty_exposure(own: ExposureShape, shape: BatchShape) -> ExposureTensors:
    bands, nothing = len(own.bands), np.zeros((len(own.bands), own.side, own.side))
    fine, coarse = (shape.fourier, shape.window // 2) if own.on_model_pixels else (own.kept, own.kept // 2)
    points = np.zeros((0, 0, 2)) if own.on_model_pixels else np.moveaxis(np.indices(nothing.shape[1:]), 0, -1) * 1.0
    return ExposureTensors(
        images=nothing,
        weights=nothing,
        whitening=whitening(None, nothing > 0, own.reach),
        kernel=np.ones((bands, fine, fine // 2 + 1), complex),
        coarse_kernel=np.ones((bands, coarse, coarse // 2 + 1), complex),
        points=points + shape.margin,
        gain=np.ones(bands),
    )
