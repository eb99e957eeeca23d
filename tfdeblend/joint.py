"""The MAP of galaxies in several observations of one field together, without coadding or resampling any of them.

Where each observation really looks, and how bright, is fitted too: a shift of each, and a gain of each of its bands,
under Gaussian priors. Equal priors leave their means at 0 and 1, which the sources' own positions and fluxes take up;
so galaxies and calibrations are fitted in turn, and each changes nothing that the other had found.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from tfdeblend import initialize
from tfdeblend.batch import BatchShape
from tfdeblend.errors import DataError
from tfdeblend.exposures import Exposures, JointShape
from tfdeblend.joint_likelihood import JointLikelihood
from tfdeblend.likelihood import Likelihood
from tfdeblend.mapfit import MapFit, MapResult
from tfdeblend.observation import Observation
from tfdeblend.priors import PRIORS
from tfdeblend.resample import Resample
from tfdeblend.scene import Scene

if TYPE_CHECKING:
    from astropy.table import Table

CALIBRATIONS = 2  # times that shifts and gains are fitted, between fits of the galaxies
CONVERGED = 0.3  # standard deviations to the maximum
STEP = 0.05  # pixels: of the difference that tells how an image changes with its shift


@dataclass(frozen=True)
class CalibrationOptions:
    """Standard deviations that shifts (pixels of the model frame) and gains are expected to have; 0: they have none."""

    shift: float = 0.3
    gain: float = 0.03


class Calibration(NamedTuple):
    """shift: [E, 2] (y, x) pixels of the model frame, to be added to where an observation's WCS says that it looks.
    gain: E times [C_e]. shift_error: [E, 2]."""

    shift: np.ndarray
    gain: tuple[np.ndarray, ...]
    shift_error: np.ndarray


@dataclass(frozen=True, eq=False)
class JointDeblended:
    """K sources taken apart in E observations; see `Deblended`. Fluxes are in the unit of the first that has the band.

    models: E times (C_e, H_e, W_e). sources: E times (K, C_e, H_e, W_e). catalog: a row a source, positions in pixels
    of the first observation. flux_cov: (C, K, K). Errors take the calibration as known.
    """

    exposures: Exposures
    models: tuple[np.ndarray, ...]
    sources: tuple[np.ndarray, ...]
    catalog: Table
    flux_cov: np.ndarray
    calibration: Calibration
    converged: bool
    seconds: float

    @property
    def chi2(self) -> tuple[float, ...]:
        """Of each observation: sum(weights * residual^2) over the number of pixels that were fitted."""
        return self.exposures.chi2(self.models)


class JointFit:
    """The compiled fit of one `JointShape`."""

    def __init__(
        self,
        prior: str,
        shape: JointShape,
        position_sigma: float = 0.5,
        calibration: CalibrationOptions = CalibrationOptions(),
    ):
        self.shape, self.priors = shape, calibration
        # A joint likelihood and its shape answer to the names by which a fit asks single ones.
        kind, bucket = cast(type[Likelihood], JointLikelihood), cast(BatchShape, shape)
        self.map = MapFit(PRIORS[prior](shape.bands, position_sigma), bucket, likelihood=kind)
        self._slopes = tf.function(self._normal_equations, autograph=False)

    def __call__(self, tensors: dict, start: np.ndarray) -> tuple[MapResult, Calibration]:
        """Galaxies and calibration together. start: [1, K, S] latents."""
        given, latent = tensors, tf.constant(start)
        shift = np.zeros((len(self.shape.exposures), 2))
        gain = [np.ones(len(own.bands)) for own in self.shape.exposures]
        error = np.zeros_like(shift)
        for _ in range(CALIBRATIONS):
            found = self.map.fit(tensors, latent)
            systems = self._slopes(tensors, found.state)
            for e, (curvature, slope) in enumerate(systems):
                now = np.concatenate([shift[e], gain[e] - 1])
                move, covariance = self._solve(curvature.numpy(), slope.numpy(), now)
                shift[e], gain[e], error[e] = now[:2] + move[:2], 1 + now[2:] + move[2:], covariance
            shift -= shift.mean(0)
            gain = self._about_one(gain)
            tensors = given | {
                "points": tuple(p + tf.constant(s, p.dtype) for p, s in zip(given["points"], shift, strict=True)),
                "gain": tuple(tf.constant(g[None], tf.float32) for g in gain),
            }
            latent = found.state.latent
        return self.map.fit(tensors, latent), Calibration(shift, tuple(gain), error)

    def _normal_equations(self, tensors: dict, state: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Curvature and slope of each exposure's log-likelihood by its shift and gains."""
        posterior = self.map.posterior(tensors)
        likelihood = cast(JointLikelihood, posterior.likelihood)
        unit = posterior.unit(state.latent)
        stamps = state.flux[..., None, None] * unit * tensors["is_source"][..., None, None, None]
        frame, systems = likelihood.place(stamps), []
        for e, own in enumerate(self.shape.exposures):
            seen = tf.gather(frame, own.bands, axis=1)
            points, kernel, gain = tensors["points"][e], tensors["kernel"][e], tensors["gain"][e][..., None, None]

            def at(move: np.ndarray, points=points, kernel=kernel, seen=seen) -> tf.Tensor:
                moved = points + tf.constant(move, points.dtype)
                return Resample(kernel, moved, self.shape.fourier, self.shape.frame).forward(seen)

            here = at(np.zeros(2))
            sides = [gain * (at(step) - at(-step)) / (2 * STEP) for step in STEP * np.eye(2)]
            each = [here * band[:, None, None] for band in np.eye(len(own.bands), dtype=np.float32)]
            whiten, data = likelihood.noises[e].whiten, likelihood.images[e]
            columns = tf.stack([tf.reshape(whiten.forward(column), [-1]) for column in sides + each])
            residual = tf.reshape(whiten.forward(data - gain * here), [-1])
            systems.append((tf.matmul(columns, columns, transpose_b=True), tf.linalg.matvec(columns, residual)))
        return systems

    def _solve(self, curvature: np.ndarray, slope: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The step to the maximum from `now`, and the errors of the shift."""
        sigma = np.repeat([self.priors.shift, self.priors.gain], [2, len(now) - 2])
        free = sigma > 0
        precision = np.diag(sigma[free] ** -2.0)
        covariance = np.linalg.inv(curvature[np.ix_(free, free)].astype(float) + precision)
        move, error = np.zeros(len(now)), np.zeros(len(now))
        move[free], error[free] = covariance @ (slope[free] - precision @ now[free]), np.sqrt(np.diag(covariance))
        return move, error[:2]

    def _about_one(self, gain: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Gains whose mean over the exposures of each band is 1."""
        exposures = self.shape.exposures
        every = [[g[own.bands.index(band)] for g, own in zip(gain, exposures, strict=True) if band in own.bands]
                 for band in range(self.shape.bands)]  # fmt: skip
        mean = np.array([np.mean(values) for values in every])
        return [g - mean[list(own.bands)] + 1 for g, own in zip(gain, exposures, strict=True)]


@lru_cache(maxsize=8)
def compiled(prior: str, shape: JointShape, position_sigma: float, calibration: CalibrationOptions) -> JointFit:
    """The fit that serves all fields of a shape."""
    return JointFit(prior, shape, position_sigma, calibration)


def deblend_together(
    observations: Sequence[Observation],
    catalog: Any = None,
    prior: str = "bulge-disk",
    stamp: int = 64,
    position_sigma: float = 0.5,
    calibration: CalibrationOptions = CalibrationOptions(),
) -> JointDeblended:
    """One result for several observations of one field.

    Args:
      observations: the finest first, each with a WCS and a name of its own. Without zero points, fluxes are taken to be
        in one unit.
      catalog: of sources in the first's pixels or on the sky, see `Scene.from_catalog`; None: detected in the first.
      prior: "exponential", "sersic" or "bulge-disk". stamp: pixels a side, of the first, that hold a galaxy.
      position_sigma: expected error of the positions, in pixels of the first.

    Raises: DataError for observations that cannot be joined; ValueError for an unknown prior.
    """
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {', '.join(PRIORS)}, received {prior!r}")
    if not observations:
        raise DataError("observations", "expected at least one, received none")
    began, first = time.perf_counter(), observations[0]
    scene = Scene.detect(first) if catalog is None else Scene.from_catalog(first, catalog)
    exposures = Exposures(scene, tuple(observations[1:]))
    shape = exposures.shape(stamp)
    fit = compiled(prior, shape, position_sigma, calibration)
    start = np.zeros((1, shape.sources, fit.map.prior.size), np.float32)
    guess = fit.map.prior.start(*(tf.constant(part, tf.float32) for part in initialize.moments(scene))).numpy()
    start[0, : len(scene.sources)] = np.where(np.isfinite(guess), guess, 0)
    found, calibrated = fit(exposures.tensors(shape), start)
    return _result(exposures, shape, tf.nest.map_structure(np.asarray, found), calibrated, time.perf_counter() - began)


def _result(
    exposures: Exposures, shape: JointShape, found: MapResult, calibration: Calibration, seconds: float
) -> JointDeblended:
    """Cuts the fit to the observations' sizes and puts it into their units."""
    from astropy.table import Table

    scene, count, bands = exposures.scene, len(exposures.scene.sources), exposures.bands
    models, sources = [], []
    for e, one in enumerate(exposures.observations):
        _, height, width = one.shape
        unit = (exposures.band_scale[list(shape.exposures[e].bands)] * exposures.unit(one))[:, None, None]
        models.append(found.model[e][0, :, :height, :width] * unit)
        sources.append(found.sources[e][0, :count, :, :height, :width] * unit)
    scale = exposures.band_scale
    terms = found.covariance.linear[0]
    flux_cov = np.stack([terms[b, :count, b, :count] * scale[b] ** 2 for b in range(len(bands))])
    flux, error = found.state.flux[0, :count] * scale, np.sqrt(np.diagonal(flux_cov, axis1=1, axis2=2)).T
    y, x, size, e1, e2 = found.summary[0, :count].T.astype(float)
    spread = np.sqrt(np.maximum(np.diagonal(found.summary_covariance[0, :count], axis1=1, axis2=2), 0)).T
    middle = np.floor((np.floor(scene.positions + 0.5) - shape.stamp // 2) / 2) * 2 + shape.stamp // 2
    table = Table({"id": [source.id for source in scene.sources], "x": middle[:, 1] + x, "y": middle[:, 0] + y})
    for name, values, errors in zip(("y", "x", "size", "e1", "e2"), (y, x, size, e1, e2), spread, strict=True):
        if name not in ("y", "x"):
            table[name] = values
        table[f"{name}_err"] = errors
    for b, band in enumerate(bands):
        table[f"flux_{band}"], table[f"flux_err_{band}"] = flux[:, b], error[:, b]
        if exposures.zeropoints is not None:
            positive = np.where(flux[:, b] > 0, flux[:, b], np.nan)
            table[f"mag_{band}"] = exposures.zeropoints[b] - 2.5 * np.log10(positive)
    converged = bool(found.distance[0] <= CONVERGED)
    return JointDeblended(exposures, tuple(models), tuple(sources), table, flux_cov, calibration, converged, seconds)
