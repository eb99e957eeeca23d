"""p(y | sources): the forward operator of a batch of blends, and Gaussian noise of known variance a pixel."""

from __future__ import annotations

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfdeblend.batch import BatchShape
from tfdeblend.operators import Convolve, LinearOperator, Place, Scale


class Likelihood:
    """y = M (P sum_i T_i s_i u_i + background) + n, n ~ N(0, 1 / weights), of B blends; padding, masks weigh 0.

    Args:
      tensors: `BlendBatch.tensors`. shape: the batch's.
    """

    def __init__(self, tensors: dict[str, tf.Tensor], shape: BatchShape):
        self.images, self.weights = tensors["images"], tensors["weights"]
        self.root_weights = tf.sqrt(self.weights)
        self.place = Place(tensors["corners"], shape.stamp, shape.frame, self.images.dtype)
        self.convolve = Convolve(tensors["kernel"], shape.fourier, shape.margin, (shape.side, shape.side))

    @property
    def operator(self) -> LinearOperator:
        """Stamps s_i u_i [B, K, C, P, P] -> whitened images sqrt(w) P sum_i T_i s_i u_i [B, C, S, S]."""
        return Scale(self.root_weights) @ self.convolve @ self.place

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
        batch, sources, images, bands, side, _ = stamps.shape
        placed = self.place.each(tf.reshape(stamps, [batch, sources, images * bands, side, side]))
        placed = tf.reshape(placed, [batch, sources * images, bands, *placed.shape[-2:]])
        return self.convolve.forward(tf.stop_gradient(tf.transpose(placed, [0, 2, 1, 3, 4])))

    def normal(self, stamps: tf.Tensor, residual: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Products J^T J [B, C, N, N] and J^T residual [B, C, N] of whitened images, N = K Q + 1.

        The columns of J are the stamps [B, K, Q, C or 1, P, P] as observed, every one alone, and last the constant 1,
        all times sqrt(w); the residual [B, C, S, S] is whitened already. One band is in memory at a time.
        """
        batch, sources, images, bands, side, _ = stamps.shape
        placed = self.place.each(tf.reshape(stamps, [batch, sources, images * bands, side, side]))
        placed = tf.reshape(placed, [batch, sources * images, bands, *placed.shape[-2:]])
        spectra = [self.convolve.spectrum(placed[:, :, band]) for band in range(bands)]
        grams: list[tf.Tensor] = []
        rights: list[tf.Tensor] = []
        for band in range(residual.shape[1]):
            # Each band waits for the one before it: run side by side they would need five times the memory.
            with tf.control_dependencies(grams[-1:]):
                seen = self.convolve.observe(spectra[min(band, bands - 1)], band)
            root = self.root_weights[:, band, None]
            columns = tf.reshape(tf.concat([seen * root, root], 1), [batch, sources * images + 1, -1])
            grams.append(tf.matmul(columns, columns, transpose_b=True))
            rights.append(tf.linalg.matvec(columns, tf.reshape(residual[:, band], [batch, -1])))
        return tf.stack(grams, 1), tf.stack(rights, 1)

    def chi2(self, model: tf.Tensor) -> tf.Tensor:
        """[B]: sum of w (y - model)^2."""
        return tf.reduce_sum(self.weights * (self.images - model) ** 2, [1, 2, 3])

    def distribution(self, model: tf.Tensor) -> tfd.Distribution:
        """p(y | model) over the unmasked pixels, to sample from and to evaluate: event [C, S, S], masked pixels 0."""
        valid = self.weights > 0
        sigma = 1 / tf.where(valid, self.root_weights, tf.ones_like(self.weights))
        normal = tfd.Normal(tf.where(valid, model, tf.zeros_like(model)), sigma)
        return tfd.Independent(tfd.Masked(normal, valid), 3)
