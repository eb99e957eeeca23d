"""Non-parametric galaxies: a non-negative image that falls monotonically from its centre, times a spectrum.

Where scarlet projects onto that set after every step, here it is built in. Any star-shaped, monotonic image is a sum of
sectors of discs with coefficients c >= 0, u = sum_ja c_ja D_ja, so the set is a cone and needs no projection. The
coefficients are log-normal around those of a closed-form fit, c = c_fit exp(tau z), z ~ N(0, 1): a faint source stays
what that fit says, a bright one follows its pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.operators import Shift
from tfdeblend.galaxies import fluxes, profiles
from tfdeblend.galaxies.posterior import MapState
from tfdeblend.inference.map_fit import MapFit, MapResult, seen
from tfdeblend.linalg.solvers import BatchedAdam

ANGLES = 8
GROWTH = 1.35  # of the discs' radii from one to the next
INNERMOST = 0.6  # pixels
OVERSAMPLING = 5
SMOOTHING = 0.3  # pixels: where a Sersic profile diverges, its coefficients are those of its core seen this finely


@dataclass(frozen=True)
class NonparametricOptions:
    """Sets how non-parametric images are fitted.

    Args:
        steps: of Adam.
        learning_rate: of them.
        scatter: tau, of the coefficients in natural log.
    """

    steps: int = 60
    learning_rate: float = 0.1
    scatter: float = 0.5


def radii(side: int) -> np.ndarray:
    """(R,) radii of the discs in pixels, up to half of the stamp."""
    count = int(np.log(side / 2 / INNERMOST) / np.log(GROWTH)) + 1
    return INNERMOST * GROWTH ** np.arange(count)


@functools.cache
def sectors(side: int, sigma: float) -> np.ndarray:
    """(R * ANGLES, P * P): the discs' sectors around pixel P // 2, seen through the model PSF.

    Sector (j, a) is 1 within radius j and falls linearly to 0 from its own angle to its neighbours'.
    """
    n, half = side * OVERSAMPLING, (OVERSAMPLING - 1) / 2
    t = (np.arange(n) - half) / OVERSAMPLING - side // 2
    y, x = t[:, None], t[None]
    r, angle = np.hypot(y, x), np.arctan2(y, x) / (2 * np.pi) * ANGLES
    frequency = np.fft.fftfreq(n) * OVERSAMPLING
    gauss = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    transfer = gauss[:, None] * gauss[None, : n // 2 + 1]
    # Pixels of the fine grid whose centres are those of the stamp's.
    middle = slice(int(half), None, OVERSAMPLING)
    rows = []
    for radius in radii(side):
        inside = np.clip((radius - r) * OVERSAMPLING + 0.5, 0, 1)
        for a in range(ANGLES):
            away = np.abs((angle - a + ANGLES / 2) % ANGLES - ANGLES / 2)
            image = inside * np.maximum(1 - away, 0)
            seen = np.fft.irfft2(np.fft.rfft2(image) * transfer, s=(n, n))
            rows.append(seen[middle, middle].ravel())
    return np.maximum(np.stack(rows), 0)


class NonparametricFit:
    """The compiled fit for one batch shape, which starts from a closed-form fit of the same batch."""

    def __init__(self, initial: MapFit, options: NonparametricOptions = NonparametricOptions()):
        self.initial, self.shape, self.options = initial, initial.shape, options
        self.dtype = initial.prior.dtype
        self.basis = tf.constant(sectors(self.shape.stamp, self.shape.model_sigma), self.dtype)
        blends, sources, bands = self.shape.blends, self.shape.sources, self.shape.bands
        shapes = [[blends, sources, len(self.basis)], [blends, sources, bands]]
        self.adam = BatchedAdam(shapes, options.steps, options.learning_rate, dtype=self.dtype)
        self._run = tf.function(self._fit, autograph=False)

    def __call__(self, tensors: Tensors, initial: MapResult) -> MapResult:
        """Fits blends from the closed-form result `initial`; errors remain those of the closed-form fit."""
        return self._run(tensors, initial)

    def coefficients(self, latent: tf.Tensor, tensors: Tensors) -> tf.Tensor:
        """[B, K, R * ANGLES] the sectors' coefficients of the closed-form galaxies of `latent`, averaged over bands."""
        mixture = self.initial.posterior(tensors).mixture(latent)
        excess = (self.shape.model_sigma**2 - SMOOTHING**2) * tf.constant([1, 0, 1], self.dtype)
        core = SMOOTHING**2 * tf.constant([1, 0, 1], self.dtype)
        point = tensors.is_point[..., None, None] > 0  # which may be narrower than the model PSF: no coefficients of it
        covariance = tf.where(point, core, mixture.covariance - excess)
        centered = mixture._replace(center=tf.zeros_like(mixture.center), covariance=covariance)
        edges = radii(self.shape.stamp)
        middles = np.append(0.5 * INNERMOST, np.sqrt(edges[1:] * edges[:-1]))
        angles = 2 * np.pi * np.arange(ANGLES) / ANGLES
        y, x = (np.outer(middles, f(angles)).ravel() for f in (np.sin, np.cos))
        points = tf.constant(np.stack([np.ones_like(y), y, x, y * y, y * x, x * x]), self.dtype)
        light = tf.reduce_mean(profiles.evaluate(*profiles.coefficients(centered), points), 2)
        light = tf.reshape(light, [*light.shape[:2], len(edges), ANGLES])
        outer = tf.concat([light[:, :, 1:], tf.zeros_like(light[:, :, :1])], 2)
        fall = tf.maximum(light - outer, 1e-7 * tf.reduce_max(light, [2, 3], keepdims=True))
        return tf.reshape(fall, [*light.shape[:2], -1])

    def _unit(self, z: tf.Tensor, start: tf.Tensor, profile: tf.Tensor, shift: Shift, is_point: tf.Tensor) -> tf.Tensor:
        """[B, K, 1, P, P] of unit flux: the monotonic image of coefficients z, or the profile of a point source."""
        side = self.shape.stamp
        stamps = tf.reshape(tf.matmul(start * tf.exp(self.options.scatter * z), self.basis), [*z.shape[:2], side, side])
        stamps /= tf.reduce_sum(stamps, [2, 3], keepdims=True)
        return tf.where(is_point[..., None, None] > 0, profile, shift(stamps))[:, :, None]

    def _fit(self, tensors: Tensors, initial: MapResult) -> MapResult:
        posterior = self.initial.posterior(tensors)
        likelihood = posterior.likelihood
        state, is_source = initial.state, tensors.is_source[..., None]
        mixture = posterior.mixture(state.latent)
        unit_of = functools.partial(
            self._unit,
            start=self.coefficients(state.latent, tensors),
            profile=tf.reduce_mean(profiles.render(mixture, self.shape.stamp), 2),
            shift=Shift(mixture.center, self.shape.stamp),
            is_point=tensors.is_point,
        )
        flux_unit = tf.abs(state.flux) + 1

        def objective(values: list[tf.Tensor]) -> tf.Tensor:
            z, flux = values
            flux = flux * flux_unit * is_source
            chi2 = likelihood.chi2(likelihood.render(unit_of(z), flux))
            return 0.5 * (chi2 + tf.reduce_sum(z**2, [1, 2]) + fluxes.penalty(flux))

        zero = tf.zeros([*state.latent.shape[:2], len(self.basis)], self.dtype)
        (z, _), steps = self.adam.minimize(objective, [zero, state.flux / flux_unit])
        unit = unit_of(z)
        flux = posterior.solve_fluxes(unit) * is_source
        found = seen(likelihood, flux[..., None, None] * unit, likelihood.render(unit, flux))
        return initial._replace(state=MapState(state.latent, flux), steps=initial.steps + steps, **found)
