"""p(y | sources): the forward operator of a batch of blends, and their noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdeblend.forward.exposures import View, in_a_row
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Convolve, Place
from tfdeblend.forward.shapes import WINGS, BatchShape
from tfdeblend.linalg.operator import LinearOperator


class Likelihood:
    """y = M (P sum_i T_i s_i u_i + background) + n, n Gaussian, of B blends; padding, masks weigh 0.

    Args:
      tensors: `BlendBatch.tensors`. shape: the batch's.
    """

    def __init__(self, tensors: dict[str, tf.Tensor], shape: BatchShape):
        self.images, self.weights = tensors["images"], tensors["weights"]
        self.noise = GaussianNoise(self.weights, tensors["whitening"])
        self.place = Place(tensors["corners"], shape.stamp, shape.frame, self.images.dtype)
        self.shape, self.corners, self.stamp_kernel = shape, tensors["corners"], tensors["stamp_kernel"]
        self.convolve = Convolve(tensors["kernel"], shape.fourier, shape.margin, (shape.side, shape.side))

    @property
    def operator(self) -> LinearOperator:
        """Stamps s_i u_i [B, K, C, P, P] -> whitened images Sigma^-1/2 P sum_i T_i s_i u_i [B, C, S, S]."""
        return self.noise.whiten @ self.convolve @ self.place

    def render(self, unit: tf.Tensor, flux: tf.Tensor, background: tf.Tensor) -> tf.Tensor:
        """Stamps of unit flux [B, K, C or 1, P, P], fluxes [B, K, C], background [B, C] -> images [B, C, S, S]."""
        if unit.shape[2] == 1:  # one shape in all bands is placed once, and coloured then
            frame = tf.einsum("bkyx,bkc->bcyx", self.place.each(unit)[:, :, 0], flux)
        else:
            frame = self.place(flux[..., None, None] * unit)
        return self.convolve(frame) + background[..., None, None]

    def render_each(self, stamps: tf.Tensor) -> tf.Tensor:
        """[B, K, Q, C or 1, P, P] -> [B, C, K Q, S, S]: Q images of each source, each alone; one band is seen in all.

        Not differentiable: one band's transform is shared by all, which the operators' adjoints do not know of.
        """
        _, sources, images, bands, side, _ = stamps.shape
        placed = self.place.each(tf.reshape(stamps, [-1, sources, images * bands, side, side]))
        placed = tf.reshape(placed, [-1, sources * images, bands, *placed.shape[-2:]])
        return self.convolve.forward(tf.stop_gradient(tf.transpose(placed, [0, 2, 1, 3, 4])))

    def gram(self, stamps: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C, N, N] of whitened images, N = K Q + 1, float64.

        The columns of J are the stamps [B, K, Q, C or 1, P, P] as observed, every one alone, and last the constant 1,
        all whitened; where noise is correlated, the stamps as if no pixel were masked. Taken at every second pixel, for
        about a fifth of the time: through a PSF that is sampled well, images and weights need no more, and a curvature
        is good to 1%, to 2% for galaxies that fill their stamp. One band is in memory at a time.
        """
        _, sources, images, bands, side, _ = stamps.shape
        window, half = self.shape.window, self.shape.window // 2
        flat = tf.reshape(tf.transpose(stamps, [3, 0, 1, 2, 4, 5]), [bands, -1, sources * images, side, side])
        wide = tf.unstack(_centred(flat, window))
        spectra = [self._low(tf.signal.rfft2d(one, fft_length=[window, window])) for one in wide]
        corners = (self.corners - self.shape.margin - WINGS) // 2
        place = Place(corners, half, self.shape.side // 2, stamps.dtype)
        grams: list[tf.Tensor] = []
        halved = tf.unstack(every_second(tf.stack([self.weights, self.noise.constant**2], 2)), axis=1)
        for band, weights in enumerate(halved):
            # Each band waits for the one before it: run side by side they would need five times the memory.
            with tf.control_dependencies(grams[-1:]):
                spectrum = spectra[min(band, bands - 1)] * self.stamp_kernel[:, band, None]
            seen = tf.signal.irfft2d(spectrum, fft_length=[half, half])
            seen = tf.reshape(seen, [-1, sources, images, half, half])
            root, constant = tf.split(tf.sqrt(weights), 2, axis=1)
            placed = tf.reshape(place.each(seen), [-1, sources * images, *root.shape[-2:]])
            whole = tf.concat([placed * root, constant], 1)
            columns = tf.reshape(whole, [-1, sources * images + 1, root.shape[-2] * root.shape[-1]])
            grams.append(tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64))
        return tf.stack(grams, 1)

    def pull(self, model: tf.Tensor) -> tf.Tensor:
        """A^T Sigma^-1 (y - model) [B, K, C, P, P]: what each pixel of each stamp gains by growing."""
        return self.operator.adjoint(self.whitened(model))

    def project(self, unit: tf.Tensor, model: tf.Tensor) -> tf.Tensor:
        """J^T Sigma^-1 (y - model) [B, C, K + 1] of one stamp a source [B, K, C or 1, P, P] and the constant. Exact."""
        residual = self.whitened(model)
        pulled = self.operator.adjoint(residual)
        stamps = tf.linalg.matrix_transpose(tf.reduce_sum(pulled * unit, [3, 4]))
        constant = tf.reduce_sum(self.noise.constant * residual, [2, 3])
        return tf.concat([stamps, constant[..., None]], -1)

    def _low(self, spectrum: tf.Tensor) -> tf.Tensor:
        """[..., W, W // 2 + 1] -> [..., W // 2, W // 4 + 1]: see `batch`."""
        quarter = self.shape.window // 4
        return tf.concat([spectrum[..., :quarter, :], spectrum[..., -quarter:, :]], -2)[..., : quarter + 1]

    def chi2(self, model: tf.Tensor) -> tf.Tensor:
        """[B]: (y - model)^T Sigma^-1 (y - model)."""
        return self.noise.chi2(self.images - model)

    def rise(self, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """[B]: chi2(new) - chi2(old), free of the cancellation in a difference of two large sums."""
        return tf.reduce_sum(self.noise.whiten(new - old) * self.noise.whiten(old + new - 2 * self.images), [1, 2, 3])

    def tolerant(self, error: float, background: tf.Tensor) -> tf.Tensor:
        """[B, C, S, S]: the weights with an error of the model added, a fraction of the data's light."""
        light = tf.nn.relu(self.images - background[..., None, None])
        return self.weights / (1 + self.weights * (error * light) ** 2)

    def log_prob(self, model: tf.Tensor) -> tf.Tensor:
        """[B]: log p(y | model) of the unmasked pixels, in nats."""
        return self.noise.log_prob(self.images - model)

    def whitened(self, model: tf.Tensor) -> tf.Tensor:
        """[B, C, S, S]: y - model, whitened."""
        return self.noise.whiten(self.images - model)

    @property
    def views(self) -> tuple[View, ...]:
        """The one exposure, as `linear_gaussian` sees it."""
        return (View(tuple(range(self.shape.bands)), self.noise.whiten @ self.convolve, self.noise.constant),)

    def data(self, model: tf.Tensor) -> tf.Tensor:
        """[B, n]: y - model, whitened, in a row."""
        return in_a_row([self.whitened(model)])

    def log_normalisation(self) -> tf.Tensor:
        """[B]: log p(y | model) were y the model."""
        return self.noise.log_normalisation()

    def on_background(self, model: tf.Tensor, background: tf.Tensor, normals: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """The model of sources with a sampled background [B, C], and that; no more normals are needed."""
        return model + background[..., None, None], background

    def left_over(self, normals: tf.Tensor) -> tf.Tensor:
        """[B, 0]: of the normals [B, n] that a draw takes, nothing is."""
        return normals[:, :0]


def _centred(stamps: tf.Tensor, window: int) -> tf.Tensor:
    """[..., P, P] -> [..., W, W] with zeros around."""
    wings = (window - stamps.shape[-1]) // 2
    return tf.pad(stamps, [[0, 0]] * (len(stamps.shape) - 2) + [[wings, wings]] * 2)


def every_second(weights: tf.Tensor) -> tf.Tensor:
    """[B, C, Q, S, S] -> [B, C, Q, S // 2, S // 2]: every second pixel takes half the weight of either neighbour, along
    both axes; the last pixel, whose other neighbour is outside, gives all of it."""
    side = weights.shape[-1]
    share = np.zeros((side // 2, side))
    t = np.arange(side // 2)
    share[t, 2 * t], share[t, 2 * t + 1], share[t[1:], 2 * t[1:] - 1], share[-1, -1] = 1, 0.5, 0.5, 1
    matrix = tf.constant(share, weights.dtype)
    return tf.einsum("iy,jx,bcqyx->bcqij", matrix, matrix, weights)
