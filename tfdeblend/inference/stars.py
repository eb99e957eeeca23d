"""Stars that nobody declared: bright compact sources are fitted again as points, and stay so where that is likelier.

No galaxy profile is as narrow as a point, and its prior makes it wider still. Whether a source is a point is told by
the ratio of the two evidences, each by Laplace's approximation,

    log p(y) = -loss + log det(covariance) / 2,

source by source: the covariance is that of its own latents, whose prior has curvature one, and what a pixel's
chi-square falls is shared out among the sources on trial by their light. A point has errors of the PSF for latents
(`GalaxyPrior.point`), so that a PSF that is off by some percent makes no galaxy of a star.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import Tensors
from tfdeblend.inference.map_fit import MapFit, MapResult, alone, of_rows
from tfdeblend.linalg.operator import shape_of

BRIGHT = 50.0  # signal-to-noise, of all bands together: of fainter ones the data do not tell
COMPACT, MISFIT_COMPACT = 0.3, 0.5  # half-light radius over the PSF's full width; where the chi-square is too large
MISFIT = 2.0  # chi-square per pixel where a source shines
OBVIOUS = 100.0  # nats: at most so many more are asked, however far from its maximum the fit as galaxies is
CERTAIN = 3.0  # nats: of the same evidence a galaxy taken for a point is worse than a point taken for a galaxy


class Looks(NamedTuple):
    """What a fit shows of B blends of K sources: signal-to-noise and chi-square per pixel where each shines, [B, K]."""

    snr: tf.Tensor
    chi2: tf.Tensor


class StarTrial:
    """The compiled trial of a batch's sources as points; fits are those of `fit`, or of one of the same graph."""

    def __init__(self, fit: MapFit):
        self.fit = fit
        self._looks = tf.function(self._shown, autograph=False, reduce_retracing=True)
        self._gain = tf.function(self._gained, autograph=False, reduce_retracing=True)

    def of(self, fit: MapFit) -> StarTrial:
        """Make the trial by another fit of the same graph."""
        other = copy.copy(self)
        other.fit = fit
        return other

    def __call__(
        self, tensors: Tensors, galaxies: MapResult, unknown: np.ndarray, width: np.ndarray, rounds: int
    ) -> tuple[MapResult, Tensors, np.ndarray]:
        """The fit in which what is a point is one, its tensors, and [B, K] which sources were taken as points.

        Args:
          tensors: of the batch. galaxies: what the fit found, sources of unknown kind as galaxies.
          unknown: [B, K] which those are. width: [B] the PSF's full width at half maximum in pixels. rounds: of each
          fit, at most.
        """
        trial = self.candidates(tensors, galaxies, unknown, width)
        found, taken = galaxies, np.zeros_like(trial)
        left = np.minimum(galaxies.distance.numpy().astype(float) ** 2 / 2, OBVIOUS)  # nats that the fit may gain yet
        left = np.where(galaxies.stiffness.numpy() > 1, OBVIOUS, left)
        least = CERTAIN + np.where(galaxies.unfinished.numpy(), left, 0)
        while (rows := np.any(trial, 1)).any():  # fewer are on trial each time, until all stay
            start = found.state.latent * (1 - tf.cast(trial, tensors.is_point.dtype))[..., None]  # PSFs as given
            points = self.fit(alone(with_points(tensors, trial), rows), start, galaxies.stiffness, rounds)
            gain = self._gain(tensors, self.fit.sides, galaxies, points, tf.constant(trial)).numpy()
            kept = trial & (gain > least[:, None])
            settled = rows & np.all(kept == trial, 1)
            taken[settled] = trial[settled]
            found = of_rows(settled, points, found)
            trial = np.where(settled[:, None], False, kept)
        return found, with_points(tensors, taken), taken

    def candidates(self, tensors: Tensors, found: MapResult, unknown: np.ndarray, width: np.ndarray) -> np.ndarray:
        """[B, K] bright sources of unknown kind that were found to be compact."""
        if not unknown.any():
            return unknown
        looks, size = self._looks(tensors, found), found.summary[..., 2].numpy() / width[:, None]
        most = np.where(looks.chi2.numpy() > MISFIT, MISFIT_COMPACT, COMPACT)
        light = found.state.flux.numpy().sum(2) > 0
        return unknown & light & (looks.snr.numpy() > BRIGHT) & (size < most)

    def _shown(self, tensors: Tensors, found: MapResult) -> Looks:
        power, total, count = 0.0, 0.0, 1e-6
        for one, model, sources in zip(tensors.exposures, found.models, found.sources, strict=True):
            own = one.weights[:, None] * sources**2
            share = own / (own + 1)
            residual = one.weights * (one.images - model) ** 2
            power += tf.reduce_sum(own, [2, 3, 4])
            total += tf.reduce_sum(share * residual[:, None], [2, 3, 4])
            count += tf.reduce_sum(share, [2, 3, 4])
        return Looks(tf.sqrt(power), total / count)

    def _gained(
        self, tensors: Tensors, sides: tf.Tensor, galaxies: MapResult, points: MapResult, trial: tf.Tensor
    ) -> tf.Tensor:
        """[B, K] by how much the log evidence rises as each source on trial becomes a point.

        What the chi-square falls in a pixel is shared out among the sources on trial as their light there is.
        """
        exact = self.fit.posterior(tensors, sides)
        posterior = self.fit.tolerant(exact, exact.model(galaxies.state))
        tried = tf.cast(trial, self.fit.prior.dtype)
        gain = tf.reduce_sum(galaxies.state.latent**2 - points.state.latent**2, 2)
        sights = zip(posterior.likelihood.exposures, galaxies.models, points.models, galaxies.sources, strict=True)
        for exposure, before, after, sources in sights:
            fall = exposure.whitened(before) ** 2 - exposure.whitened(after) ** 2
            light = tf.abs(sources) * tried[..., None, None, None]
            share = tf.math.divide_no_nan(light, tf.reduce_sum(light, 1, keepdims=True))
            gain += tf.reduce_sum(share * fall[:, None], [2, 3, 4])
        volume = self._log_volume(points) - self._log_volume(galaxies)
        return 0.5 * (tf.cast(gain, tf.float64) + volume)

    def _log_volume(self, found: MapResult) -> tf.Tensor:
        """[B, K]: log det of the covariance of each source's latents."""
        sources, size = shape_of(found.beyond_prior)[1], self.fit.prior.size
        blocks = tf.reshape(found.covariance.latent, [-1, sources, size, sources, size])
        return tf.linalg.slogdet(tf.einsum("bksku->bksu", blocks)).log_abs_determinant


def with_points(tensors: Tensors, points: np.ndarray) -> Tensors:
    """The tensors with more points [B, K]."""
    return tensors._replace(is_point=tf.maximum(tensors.is_point, tf.cast(points, tensors.is_point.dtype)))
