"""Draws of the closed-form posterior, which samples of a learned prior may begin at.

At levels above the noise of the data, a Gaussian about the denoiser's mean shares the light of heavy blends as a broad
Gaussian prior would. Draws of the closed-form posterior share it as its galaxies do, and the learned prior changes
what it can from a low level on.
"""

from __future__ import annotations

import tensorflow as tf

from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.diffusion.random import KeyedNormals
from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import GalaxyPrior
from tfdeblend.inference.map_fit import MapResult

LARGEST_VARIANCE = 4.0  # of a latent along any direction, whose prior has 1
PIXEL = 1e-3  # of a draw's position, whose place is known


class ClosedFormDraws:
    """Draws initial fits from the Laplace approximation of a closed-form posterior, compiled for one shape of rows.

    Latents are drawn from their covariance, `width` times as wide; fluxes are the best ones of these shapes.
    """

    def __init__(self, prior: GalaxyPrior, shape: BatchShape, width: float):
        self.prior, self.shape, self.width = prior, shape, width
        self._run = tf.function(self._draw, autograph=False)

    def roots(self, found: MapResult) -> tuple[tf.Tensor, tf.Tensor]:
        """Give the latents [B, K, S] of the blends' maxima, and the symmetric roots [B, L, L] of their covariances."""
        sources, size = self.shape.sources, self.prior.size
        whole = found.state.latent.shape[1]
        covariance = tf.reshape(found.covariance.latent, [-1, whole, size, whole, size])[:, :sources, :, :sources]
        covariance = tf.reshape(covariance, [-1, sources * size, sources * size])
        values, vectors = tf.linalg.eigh(0.5 * (covariance + tf.linalg.matrix_transpose(covariance)))
        scaled = vectors * tf.sqrt(tf.clip_by_value(values, 0, LARGEST_VARIANCE))[:, None]
        root = tf.matmul(scaled, vectors, transpose_b=True)
        return found.state.latent[:, :sources], tf.cast(root, self.prior.dtype)

    def __call__(self, tensors: Tensors, latent: tf.Tensor, root: tf.Tensor, keys: tf.Tensor) -> InitialFit:
        """Draw one fit a row: a pure function of the row and its key ([N] int64, see `random.keys`)."""
        return self._run(tensors, latent, root, keys)

    def _draw(self, tensors: Tensors, latent: tf.Tensor, root: tf.Tensor, keys: tf.Tensor) -> InitialFit:
        rows, sources, size = self.shape.blends, self.shape.sources, self.prior.size
        normals = KeyedNormals(keys, (rows, sources), (), 0).latents(size)
        moved = tf.linalg.matvec(root, tf.reshape(normals, [rows, sources * size]))
        drawn = latent + self.width * tf.reshape(moved, [rows, sources, size])
        posterior = GalaxyPosterior(self.prior, self.shape, tensors)
        state = MapState(drawn, posterior.solve_fluxes(posterior.unit(drawn)))
        offset = self.prior.summary(drawn, posterior.frame)[..., :2]
        known = tf.tile(PIXEL**2 * tf.eye(2)[None, None], [rows, sources, 1, 1])
        return InitialFit(posterior.stamps(state), state.flux, offset, known)
