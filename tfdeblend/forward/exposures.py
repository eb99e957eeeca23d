"""One exposure of a batch: how it shows the model's frame on its own pixels, and its noise."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import ExposureTensors
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Convolve, Place
from tfdeblend.forward.resample import Resample, Shifted
from tfdeblend.forward.shapes import WINGS, BatchShape
from tfdeblend.linalg.blocks import gather_bands, scatter_bands
from tfdeblend.linalg.operator import LinearOperator


class Exposure:
    """y = g M R x + b + n of one exposure: g its gains, R convolution and resampling, M its mask, b a constant a band.

    A constant, where there is one, has a flat prior and is eliminated exactly: whitened images are without it.

    Args:
      tensors: of the exposure. shape: of the batch. number: of the exposure in it.

    Attributes:
      bands: its C_e bands, by their number among the model's. project: frames [B, C_e, ..., F, F] -> images
      [B, C_e, ..., S_e, S_e], gain included. noise: n. observe: the same, whitened.
    """

    def __init__(self, tensors: ExposureTensors, shape: BatchShape, number: int):
        self.tensors, self.shape, self.own = tensors, shape, shape.exposures[number]
        self.bands, self.images, self.weights = self.own.bands, tensors.images, tensors.weights
        self.noise = GaussianNoise(tensors.weights, tensors.whitening, on_constant=shape.background)
        self.project = self.projection(tensors.points)
        self.observe = self.noise.whiten @ self.project

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C_e, S_e, S_e)."""
        return len(self.bands), self.own.side, self.own.side

    @property
    def constant_norm(self) -> tf.Tensor:
        """[B, C_e]: one over the standard deviation of its constants."""
        return tf.sqrt(tf.reduce_sum(self.noise.constant**2, [2, 3]))

    def of(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ...] -> [B, C_e, ...]: its own bands; one band that stands for all stays one."""
        return x if x.shape[1] == 1 < self.shape.bands else gather_bands(x, self.bands)

    def among_all(self, own: tf.Tensor) -> tf.Tensor:
        """[B, C_e, ...] -> [B, C, ...], 0 in the bands that it lacks."""
        return scatter_bands(own, self.bands, self.shape.bands)

    def projection(self, points: tf.Tensor, kernel: tf.Tensor | None = None, step: int = 1) -> LinearOperator:
        """Frames -> images at `points` or every `step`-th of them, through `kernel` or its own, with its gain."""
        kernel = self.tensors.kernel if kernel is None else kernel
        own, fourier, frame = self.own, self.shape.fourier, self.shape.frame
        if own.on_model_pixels:
            return Convolve(kernel, fourier, self.shape.margin, (own.side, own.side))
        kernel = kernel * tf.cast(self.tensors.gain[..., None, None], kernel.dtype)
        if own.aligned:
            return Shifted(kernel, points, fourier, frame, step)
        return Resample(kernel, points, fourier, frame)

    def whitened(self, model: tf.Tensor) -> tf.Tensor:
        """[B, C_e, S_e, S_e]: y - model, whitened."""
        return self.noise.whiten(self.images - model)

    def tolerant(self, error: float, constant: tf.Tensor) -> tf.Tensor:
        """Weights [B, C_e, S_e, S_e] with an error of the model added, a fraction of the data's light.

        constant: [B, C_e] of the images, which is not light.
        """
        light = tf.nn.relu(self.images - constant[..., None, None])
        return self.weights / (1 + self.weights * (error * light) ** 2)

    # -- curvature

    def gram(self, stamps: tf.Tensor, frames: tf.Tensor | None, corners: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C_e, N, N] of whitened images, N = K Q, float64.

        The columns of J are the stamps [B, K, Q, C or 1, P, P] as observed, every one alone, whitened; where noise is
        correlated, the stamps as if no pixel were masked. It is taken at every second pixel, for about a fifth of the
        time: through a PSF that is sampled well, images and weights need no more, and a curvature is good to 1%, to 2%
        for galaxies that fill their stamp.

        Args:
          frames: [B, C or 1, N, F, F] the stamps in the frame; unused on the model's own pixels. corners: [B, K, 2].
        """
        halved = every_second(tf.stack([self.weights, self.noise.constant**2], 2))
        if self.own.on_model_pixels:
            whole = self._windowed_products(stamps, corners, halved)
        else:
            points = self.tensors.points[:, ::2, ::2]
            coarse = self.projection(points, self.tensors.coarse_kernel, 2)
            whole = _products(coarse.forward(self.of(frames)), halved)
        own, across, square = whole[..., :-1, :-1], whole[..., :-1, -1:], whole[..., -1:, -1:]
        if self.shape.background:
            own -= tf.math.divide_no_nan(across * tf.linalg.matrix_transpose(across), square)
        return own

    def _windowed_products(self, stamps: tf.Tensor, corners: tf.Tensor, halved: tf.Tensor) -> tf.Tensor:
        """[B, C_e, N + 1, N + 1]: each stamp is seen in a window of its own; one band is in memory at a time."""
        _, sources, images, bands, side, _ = stamps.shape
        half = self.shape.window // 2
        flat = tf.reshape(tf.transpose(stamps, [3, 0, 1, 2, 4, 5]), [bands, -1, sources * images, side, side])
        wings = [[0, 0]] * 3 + [[WINGS, WINGS]] * 2
        spectra = [self._low(tf.signal.rfft2d(one)) for one in tf.unstack(tf.pad(flat, wings))]
        place = Place((corners - self.shape.margin - WINGS) // 2, half, self.own.side // 2, stamps.dtype)
        products: list[tf.Tensor] = []
        for band in range(len(self.bands)):
            # Each band waits for the one before it: run side by side they would need five times the memory.
            with tf.control_dependencies(products[-1:]):
                spectrum = spectra[min(band, bands - 1)] * self.tensors.coarse_kernel[:, band, None]
            seen = tf.signal.irfft2d(spectrum, fft_length=[half, half])
            placed = place.each(tf.reshape(seen, [-1, sources, images, half, half]))
            placed = tf.reshape(placed, [-1, 1, sources * images, *placed.shape[-2:]])
            products.append(_products(placed, halved[:, band : band + 1]))
        return tf.concat(products, 1)

    def _low(self, spectrum: tf.Tensor) -> tf.Tensor:
        """[..., W, W // 2 + 1] -> [..., W // 2, W // 4 + 1]: the frequencies that every second pixel can tell."""
        quarter = self.shape.window // 4
        return tf.concat([spectrum[..., :quarter, :], spectrum[..., -quarter:, :]], -2)[..., : quarter + 1]


def _products(images: tf.Tensor, halved: tf.Tensor) -> tf.Tensor:
    """[B, C, N + 1, N + 1] float64: products of images [B, C, N, S, S] and the constant 1, all whitened.

    halved: [B, C, 2, S, S] what whitens the images and the constant, squared.
    """
    root, constant = tf.split(tf.sqrt(halved), 2, axis=2)
    columns = tf.concat([images * root, constant], 2)
    columns = tf.reshape(columns, [-1, *columns.shape[1:3], columns.shape[3] * columns.shape[4]])
    return tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64)


def every_second(weights: tf.Tensor) -> tf.Tensor:
    """[B, C, Q, S, S] -> [B, C, Q, S // 2, S // 2]: every second pixel takes half the weight of either neighbour, along
    both axes; the last pixel, whose other neighbour is outside, gives all of it."""
    side = weights.shape[-1]
    share = np.zeros((side // 2, side))
    t = np.arange(side // 2)
    share[t, 2 * t], share[t, 2 * t + 1], share[t[1:], 2 * t[1:] - 1], share[-1, -1] = 1, 0.5, 0.5, 1
    matrix = tf.constant(share, weights.dtype)
    return tf.einsum("iy,jx,bcqyx->bcqij", matrix, matrix, weights)
