"""Galaxies in several observations of one field together, without coadding or resampling any of them: the MAP, and
samples about it.

Where each observation really looks, and how bright, is fitted too: a shift of each, and a gain of each of its bands,
under Gaussian priors. Equal priors leave their means at 0 and 1, which the sources' own positions and fluxes take up;
so galaxies and calibrations are fitted in turn, and each changes nothing that the other had found.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tfdeblend.catalog.builder import Facts
from tfdeblend.catalog.joint_result import Calibration, JointDeblended, assembled, assembled_samples
from tfdeblend.data.joint_detection import detect_together
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import LARGEST_GAIN
from tfdeblend.data.scene import Scene
from tfdeblend.data.validation import sky_level
from tfdeblend.deblender import LARGEST_RHAT, METHODS, SEED, first_latents
from tfdeblend.diffusion import registry
from tfdeblend.errors import DataError
from tfdeblend.forward.field import Exposures, JointShape
from tfdeblend.forward.joint_likelihood import JointLikelihood
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import BatchShape, stamp_side
from tfdeblend.galaxies import moments
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.inference.joint_sampling import drawn_by_chains, drawn_by_diffusion
from tfdeblend.inference.map_fit import MapFit, MapResult
from tfdeblend.inference.nuts import NutsOptions

SAMPLING, NUTS = SampleOptions(), NutsOptions()
CALIBRATIONS = 2  # times that shifts and gains are fitted, between fits of the galaxies
STEP = 0.05  # pixels: of the difference that tells how an image changes with its shift


@dataclass(frozen=True)
class CalibrationOptions:
    """Standard deviations that shifts (pixels of the model frame) and gains are expected to have; 0: they have none."""

    shift: float = 0.3
    gain: float = 0.03


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
        self.constants = tf.function(self._best_constants, autograph=False)

    def __call__(self, tensors: dict, start: np.ndarray) -> tuple[MapResult, Calibration, dict]:
        """Galaxies and calibration together, and the tensors with the calibration. start: [1, K, S] latents."""
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
        return self.map.fit(tensors, latent), Calibration(shift, tuple(gain), error), tensors

    def _best_constants(self, tensors: dict, found: MapResult) -> tuple[tf.Tensor, ...]:
        """[1, C_e] of each exposure, by the weights of the fit."""
        likelihood = self.map.tolerant(self.map.posterior(tensors), found.state.background).likelihood
        constants = cast(JointLikelihood, likelihood).constants(found.model)
        return tuple(float(self.shape.background) * each for each in constants)

    def _normal_equations(self, tensors: dict, state: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Curvature and slope of each exposure's log-likelihood by its shift and gains, by the weights of the fit."""
        posterior = self.map.tolerant(self.map.posterior(tensors), state.background)
        likelihood = cast(JointLikelihood, posterior.likelihood)
        unit = posterior.unit(state.latent)
        stamps = state.flux[..., None, None] * unit * tensors["is_source"][..., None, None, None]
        frame, systems = likelihood.place(stamps), []
        for e, own in enumerate(self.shape.exposures):
            seen = tf.gather(frame, own.bands, axis=1)
            points, kernel, gain = tensors["points"][e], tensors["kernel"][e], tensors["gain"][e][..., None, None]

            def at(move: np.ndarray, own=own, points=points, kernel=kernel, seen=seen) -> tf.Tensor:
                moved = points + tf.constant(move, points.dtype)
                return own.resample(kernel, moved, self.shape.fourier, self.shape.frame).forward(seen)

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
    stamp: int | None = None,
    position_sigma: float = 0.5,
    calibration: CalibrationOptions = CalibrationOptions(),
    background: bool = False,
    method: str = "map",
    samples: int = 16,
    keep_samples: bool = False,
    seed: int = 0,
    sampling: SampleOptions = SAMPLING,
    nuts: NutsOptions = NUTS,
) -> JointDeblended:
    """One result for several observations of one field.

    Args:
      observations: the finest first, each with a WCS and a name of its own. Without zero points, fluxes are taken to be
        in one unit.
      catalog: of sources in the first's pixels or on the sky, see `Scene.from_catalog`; None: see `detect_together`.
      prior: "exponential", "sersic" or "bulge-disk"; with method "sample" also a learned one of the same bands, in
        their order, and of the first's pixels: a shipped prior, or a file of one (see `registry.find`).
      stamp: pixels a side, of the first, that hold a galaxy; None: `stamp_side`.
      position_sigma: expected error of the positions, in pixels of the first.
      background: fit a constant in each band of each observation.
      method: "map", or "sample": samples of all galaxies about the fitted calibration.
      samples, keep_samples, seed, sampling, nuts: see `Deblender`.

    Raises: DataError for observations that cannot be joined, or that the prior is not for; ValueError for an unknown
      prior or method.
    """
    closed = prior in PRIORS
    if not closed and (method == "map" or not registry.is_learned(prior)):
        expected = ", ".join(PRIORS) + (" or a learned prior" if method == "sample" else "")
        raise ValueError(f"prior: expected one of {expected}, received {prior!r}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {method!r}")
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, received {samples}")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed: expected 0 to {2**31 - 1}, received {seed}")
    if not observations:
        raise DataError("observations", "expected at least one, received none")
    began = time.perf_counter()
    levels = [_levels(one) if background else np.zeros(one.shape[0]) for one in observations]
    pairs = zip(observations, levels, strict=True)
    first, *others = (replace(one, images=one.images - level[:, None, None]) for one, level in pairs)
    scene = Scene.from_catalog(first, detect_together([first, *others]) if catalog is None else catalog)
    exposures = Exposures(scene, tuple(others))
    known = None if closed else _checked(registry.find(prior), exposures)
    least, sigma = (0, None) if known is None else (known.side + 2, known.model_sigma)
    if stamp is not None and stamp < least:
        raise ValueError(f"stamp: expected at least {least} pixels for prior {prior}, received {stamp}")
    shape = exposures.shape(stamp or stamp_side(scene, least), background, sigma)
    fit = compiled(prior if closed else SEED, shape, position_sigma, calibration)
    start = first_latents(fit.map.prior, cast(BatchShape, shape), [moments.moments(scene)])
    found, calibrated, tensors = fit(exposures.tensors(shape), start)
    whole = Exposures(replace(scene, observation=observations[0]), tuple(observations[1:]))
    facts: Facts = {"method": method, "prior": prior if known is None else known.name, "seed": seed}
    if method == "sample":
        if known is None:
            drawn, own = drawn_by_chains(exposures, fit.map, tensors, found, nuts, samples, seed)
        else:
            drawn, own = drawn_by_diffusion(exposures, shape, tensors, found, known, sampling, samples, seed)
        facts |= own | {"walltime": time.perf_counter() - began}
        mixed = not float(facts.get("rhat", 1)) > LARGEST_RHAT
        return assembled_samples(whole, shape, drawn, calibrated, levels, facts, keep_samples, mixed)
    arrays, constants = tf.nest.map_structure(np.asarray, (found, fit.constants(tensors, found)))
    backgrounds = [
        level + constant[0] * whole.band_scale[list(own.bands)] * whole.unit(one)
        for level, constant, own, one in zip(levels, constants, shape.exposures, observations, strict=True)
    ]
    facts |= {"walltime": time.perf_counter() - began}
    return assembled(whole, shape, arrays, calibrated, backgrounds, facts)


def _checked(prior: registry.LearnedPrior, exposures: Exposures) -> registry.LearnedPrior:
    """Raises: DataError where a learned prior is not for these observations."""
    first, bands = exposures.scene.observation, exposures.bands
    problem = None
    if bands != prior.bands:
        problem = f"expected bands {', '.join(prior.bands)}, in this order, received {', '.join(bands)}"
    elif first.pixel_scale and abs(first.pixel_scale / prior.pixel_scale - 1) > registry.SCALE_TOLERANCE:
        problem = f"expected finest pixels of {prior.pixel_scale:g} arcsec, received {first.pixel_scale:.4g}"
    elif max(gains := exposures.gains(prior.model_sigma)) > LARGEST_GAIN:
        first = exposures.observations[int(np.argmax(gains))]
        wide = f"a Gaussian of sigma {prior.model_sigma:g} of the finest pixels"
        problem = f"expected PSFs wider than {wide}, received a narrower one"
    if problem:
        raise DataError(first.name, f"prior {prior.name}", problem)
    prior.load()  # so that a damaged file is told before the work
    return prior


def _levels(observation: Observation) -> np.ndarray:
    """(C,) of the sky, about: so that what is fitted, detected and taken for light is small beside it."""
    return np.array([sky_level(i[v]) for i, v in zip(observation.images, observation.valid, strict=True)])
