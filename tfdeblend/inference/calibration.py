"""Where each of several observations really looks, and how bright: shifts and gains fitted with the galaxies.

Each observation has a shift, and a gain of each of its bands, under Gaussian priors. Equal priors leave their means at
0 and 1, which the sources' own positions and fluxes take up; so galaxies and calibrations are fitted in turn, and each
changes nothing that the other had found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies.posterior import MapState
from tfdeblend.inference.map_fit import MapFit, MapResult

ROUNDS = 2  # times that shifts and gains are fitted, between fits of the galaxies
STEP = 0.05  # pixels: of the difference that tells how an image changes with its shift


@dataclass(frozen=True)
class CalibrationOptions:
    """Says how far observations may be off, in standard deviations.

    Args:
        shift: in pixels of the model frame.
        gain: relative. 0: they are taken as right.
    """

    shift: float = 0.3
    gain: float = 0.03


class Calibrations(NamedTuple):
    """The calibrations of B blends of E exposures.

    shift: [B, E, 2] (y, x) pixels of the model frame, to be added to where an observation's WCS says that it looks.
    gain: E times [B, C_e]. shift_error: [B, E, 2].
    """

    shift: np.ndarray
    gain: tuple[np.ndarray, ...]
    shift_error: np.ndarray


class CalibratedFit:
    """A MAP fit of galaxies in several exposures together with the calibration of these."""

    def __init__(self, fit: MapFit, options: CalibrationOptions = CalibrationOptions()):
        self.fit, self.shape, self.options = fit, fit.shape, options
        self._systems = tf.function(self._normal_equations, autograph=False)

    def __call__(self, tensors: Tensors, start: np.ndarray) -> tuple[MapResult, Calibrations, Tensors]:
        """Fits galaxies and calibration, and gives the tensors with that calibration. start: [B, K, S] latents."""
        shape, given, latent = self.shape, tensors, tf.constant(start)
        shift = np.zeros((shape.blends, len(shape.exposures), 2))
        gain = [np.ones((shape.blends, len(own.bands))) for own in shape.exposures]
        error = np.zeros_like(shift)
        stiffness = None
        for _ in range(ROUNDS):
            found = self.fit(tensors, latent, stiffness)
            for e, (curvature, slope) in enumerate(self._systems(tensors, found.state)):
                for row, (matrix, vector) in enumerate(zip(curvature.numpy(), slope.numpy(), strict=True)):
                    now = np.concatenate([shift[row, e], gain[e][row] - 1])
                    move, deviation = self._solve(matrix, vector, now)
                    shift[row, e], gain[e][row] = now[:2] + move[:2], 1 + now[2:] + move[2:]
                    error[row, e] = deviation
            shift -= shift.mean(1, keepdims=True)
            gain = gains_about_one(gain, shape)
            tensors = calibrated(given, shift, gain)
            latent, stiffness = found.state.latent, found.stiffness  # the maximum moves little from here on
        return self.fit(tensors, latent, stiffness), Calibrations(shift, tuple(gain), error), tensors

    def _normal_equations(self, tensors: Tensors, state: MapState) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Curvature [B, n, n] and slope [B, n] of each exposure's log-likelihood by its shift and gains, with the
        weights of the fit."""
        exact = self.fit.posterior(tensors)
        posterior = self.fit.tolerant(exact, exact.model(state))
        likelihood, systems = posterior.likelihood, []
        frame = likelihood.place(posterior.stamps(state))
        for exposure in likelihood.exposures:
            seen, points, bands = exposure.of(frame), exposure.tensors.points, len(exposure.bands)

            def at(move: np.ndarray, exposure=exposure, points=points, seen=seen) -> tf.Tensor:
                return exposure.projection(points + tf.constant(move, points.dtype)).forward(seen)

            here = at(np.zeros(2))
            sides = [(at(step) - at(-step)) / (2 * STEP) for step in STEP * np.eye(2)]
            bare = tf.math.divide_no_nan(here, exposure.tensors.gain[..., None, None])
            each = [bare * band[:, None, None] for band in np.eye(bands, dtype=np.float32)]
            whiten = exposure.noise.whiten
            columns = tf.stack([_flat(whiten.forward(column)) for column in sides + each], 1)
            residual = _flat(exposure.whitened(here))
            systems.append((tf.matmul(columns, columns, transpose_b=True), tf.linalg.matvec(columns, residual)))
        return systems

    def _solve(self, curvature: np.ndarray, slope: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The step to the maximum from `now`, and the errors of the shift."""
        sigma = np.repeat([self.options.shift, self.options.gain], [2, len(now) - 2])
        free = sigma > 0
        precision = np.diag(sigma[free] ** -2.0)
        covariance = np.linalg.inv(curvature[np.ix_(free, free)].astype(float) + precision)
        move, error = np.zeros(len(now)), np.zeros(len(now))
        move[free], error[free] = covariance @ (slope[free] - precision @ now[free]), np.sqrt(np.diag(covariance))
        return move, error[:2]


def calibrated(tensors: Tensors, shift: np.ndarray, gain: Sequence[np.ndarray]) -> Tensors:
    """Tensors with shifts [B, E, 2] and gains, E times [B, C_e], in the place of those given."""
    exposures = []
    for e, one in enumerate(tensors.exposures):
        points = one.points + tf.constant(shift[:, e, None, None], one.points.dtype)
        exposures.append(one._replace(points=points, gain=tf.constant(gain[e], one.gain.dtype)))
    return tensors._replace(exposures=tuple(exposures))


def gains_about_one(gain: Sequence[np.ndarray], shape: BatchShape) -> list[np.ndarray]:
    """Gains [B, C_e] moved so that the mean over the exposures of each band is 1."""
    total, count = np.zeros((shape.blends, shape.bands)), np.zeros(shape.bands)
    for values, own in zip(gain, shape.exposures, strict=True):
        total[:, own.bands] += values
        count[list(own.bands)] += 1
    return [values - (total / count)[:, own.bands] + 1 for values, own in zip(gain, shape.exposures, strict=True)]


def _flat(images: tf.Tensor) -> tf.Tensor:
    """[B, C, S, S] -> [B, C S S]."""
    return tf.reshape(images, [-1, images.shape[1] * images.shape[2] * images.shape[3]])
