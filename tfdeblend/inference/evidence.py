"""The evidence log p(y) of a blend from the path of a posterior sample, for comparing models of it.

    log p(y) = E[log p(y | x)] - KL(p(x | y) || p(x)),  x ~ p(x | y)

The divergence follows from how far the data pull the denoiser at every noise level sigma of the way,

    KL = 1/2 int E |D_y(x_t) - D(x_t)|^2 d(1 / sigma^2),

which is what Girsanov's theorem says of the two reverse diffusions (and Guo, Shamai & Verdu 2005 of Gaussian channels).
Nothing has to be normalised, and a step costs one more solve. Of a single path the two terms scatter by the square root
of the number of modes that the data tell of; most of that is the noise which the path itself was driven by, and is
taken off: its mean is zero whatever the factor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion.initial import SeededBlends

WIDEST = 0.9  # of the prior's variance of a log flux scale: the posterior's that is not told apart from it


class Path(NamedTuple):
    """log p(path | y) / p(path) of B paths down to the noise levels sigma [B, K].

    divergence: [B] its mean, the integral so far. driven: [B] the rest, of mean zero. pull: [B, K], at sigma:
    |D_y - D|^2 / sigma^2.
    """

    divergence: tf.Tensor
    driven: tf.Tensor
    pull: tf.Tensor
    sigma: tf.Tensor

    @classmethod
    def above(cls, sigma: tf.Tensor) -> Path:
        """The first level [B, K], before its denoiser is known."""
        return cls(0 * sigma[:, 0], 0 * sigma[:, 0], 0 * sigma, sigma)

    def step(self, gain: tf.Tensor, move: tf.Tensor, sigma: tf.Tensor, after: tf.Tensor, first: tf.Tensor) -> Path:
        """From the level before to sigma, by the trapezoidal rule in log sigma; and the noise of the step to `after`.

        Above the first level D_y - D is taken to be constant. The driven part's scale lies between both levels': of
        what the data leave open a step moves by sigma, of what they settle by `after`.

        Args:
          gain: D_y - D at x_t. move: x_s - E[x_s | x_t, y]. Both [B, K, C, P, P]; levels [B, K].
        """
        pull = tf.reduce_sum(gain**2, [2, 3, 4]) / sigma**2
        area = tf.where(first, 0.5 * pull, 0.5 * (self.pull + pull) * tf.math.log(self.sigma / sigma))
        driven = tf.reduce_sum(gain * move, [2, 3, 4]) / (sigma * after)
        return Path(self.divergence + tf.reduce_sum(area, 1), self.driven + tf.reduce_sum(driven, 1), pull, sigma)

    def end(self) -> tf.Tensor:
        """[B]: all of it. Below the last level |D_y - D| goes with sigma^2."""
        return self.divergence + self.driven + 0.5 * tf.reduce_sum(self.pull, 1)


def log_likelihood(blends: SeededBlends, x: tf.Tensor) -> tf.Tensor:
    """[B]: log p(y | galaxies x) in nats, y in whitened units; fluxes of stars and the background integrated out."""
    residual, directions = blends.data - blends.blend(blends.mean(x)), blends.blend.own_directions
    chi2 = tf.reduce_sum(residual * directions.remove(residual), 1)
    logdet = tf.cast(directions.logdet(), chi2.dtype)
    return blends.likelihood.log_normalisation() - 0.5 * (chi2 + logdet)


def over_scales(log_scale: np.ndarray, jitter: float) -> float:
    """log of the integral of p(y | s) over ln s, in units of p(y | the seed's s), for flux scales s of K galaxies.

    The prior knows a galaxy's log flux to `jitter` J about ln s, so that p(y | s) is a Gaussian in ln s about what the
    data say. It is read off the samples' log scales (S, K) under the seed's s, of mean o and covariance V, by Bayes'
    theorem for Gaussians: o^T (J^2 - V)^-1 o / 2 + log det(2 pi J^4 (J^2 - V)^-1) / 2. Neighbours' scales are
    anticorrelated, and V tells.
    """
    count = log_scale.shape[1]
    if count == 0 or jitter == 0:
        return 0.0
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(log_scale.T)))
    left = jitter**2 - np.clip(values, 0, WIDEST * jitter**2)
    along = vectors.T @ log_scale.mean(0)
    return float(0.5 * np.sum(along**2 / left) + 0.5 * np.sum(np.log(2 * np.pi * jitter**4 / left)))


def combine(paths: np.ndarray, log_scale: np.ndarray, jitter: float) -> tuple[float, float]:
    """log p(y) in nats and its standard error, from S paths (S,) and their log scales (S, K); by the jackknife."""
    number = len(paths)

    def value(rows: np.ndarray) -> float:
        return float(paths[rows].mean()) + over_scales(log_scale[rows], jitter)

    every = np.arange(number)
    if number < 3:
        return value(every), float("nan")
    left_out = np.array([value(every != row) for row in every])
    return value(every), float(np.sqrt((number - 1) * left_out.var()))
