"""JointDeblended: the result for several observations of one field, whose catalogue is one for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfdeblend.catalog import builder, flags, measure
from tfdeblend.catalog.builder import Facts
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.statistics import Tally
from tfdeblend.data.detection import residual_detections
from tfdeblend.forward.field import Exposures, JointShape, stamp_corners
from tfdeblend.inference.joint_sampling import FieldSamples
from tfdeblend.inference.map_fit import MapResult

if TYPE_CHECKING:
    from astropy.table import Table

CONVERGED = 0.3  # standard deviations to the maximum


class Calibration(NamedTuple):
    """shift: [E, 2] (y, x) pixels of the model frame, to be added to where an observation's WCS says that it looks.
    gain: E times [C_e]. shift_error: [E, 2]."""

    shift: np.ndarray
    gain: tuple[np.ndarray, ...]
    shift_error: np.ndarray


@dataclass(frozen=True, eq=False)
class JointDeblended:
    """K sources taken apart in E observations; see `Deblended`. Fluxes are in the unit of the first that has the band.

    first: the result as the first observation has it, but for the catalogue, which is of all. models: E times
    (C_e, H_e, W_e), backgrounds included. backgrounds: E times (C_e,), a constant per pixel. sources: E times
    (K, C_e, H_e, W_e). stamps: (K, C, P, P) in pixels of the first. flux_cov: (C, K, K). Errors take the calibration
    as known.

    Where sampled, these are means over the samples; sources_std: E times (K, C_e, H_e, W_e) their standard deviation.
    samples: (S, K, C, P, P) of the stamps, where they were to be kept.
    """

    exposures: Exposures
    first: Deblended
    models: tuple[np.ndarray, ...]
    backgrounds: tuple[np.ndarray, ...]
    sources: tuple[np.ndarray, ...]
    stamps: np.ndarray
    flux_cov: np.ndarray
    calibration: Calibration
    converged: bool
    seconds: float
    sources_std: tuple[np.ndarray, ...] | None = None
    samples: np.ndarray | None = None

    @property
    def catalog(self) -> Table:
        """A row a source, positions in pixels of the first observation."""
        return self.first.catalog

    @property
    def chi2(self) -> tuple[float, ...]:
        """Of each observation: sum(weights * residual^2) over the number of pixels that were fitted."""
        return self.exposures.chi2(self.models)

    @property
    def calibration_table(self) -> Table:
        """A row a band of an observation: its shift (pixels of the first) and errors, gain, background, chi2."""
        from astropy.table import Table

        rows = []
        for e, one in enumerate(self.exposures.observations):
            moved = *self.calibration.shift[e], *self.calibration.shift_error[e]
            for band, gain, background in zip(one.bands, self.calibration.gain[e], self.backgrounds[e], strict=True):
                rows.append((one.name, band, *moved, gain, background, self.chi2[e]))
        names = "observation", "band", "shift_y", "shift_x", "shift_y_err", "shift_x_err", "gain", "background", "chi2"
        return Table(rows=rows, names=names)


def assembled(
    exposures: Exposures,
    shape: JointShape,
    found: MapResult,
    calibration: Calibration,
    backgrounds: Sequence[np.ndarray],
    facts: Facts,
) -> JointDeblended:
    """Cuts a fit, as arrays, to the observations' sizes and puts it into their units. facts: see `builder.fitted`."""
    scene, count, bands = exposures.scene, len(exposures.scene.sources), len(exposures.bands)
    models, sources = [], []
    for e, one in enumerate(exposures.observations):
        _, height, width = one.shape
        unit = (exposures.band_scale[list(shape.exposures[e].bands)] * exposures.unit(one))[:, None, None]
        models.append(found.model[e][0, :, :height, :width] * unit + backgrounds[e][:, None, None])
        sources.append(found.sources[e][0, :count, :, :height, :width] * unit)
    scale, terms = exposures.band_scale, found.covariance.linear[0]
    stamps = found.stamps[0, :count] * scale[:, None, None]
    flux = found.state.flux[0, :count].astype(float) * scale
    flux_cov = np.stack([terms[b, :count, b, :count] * scale[b] ** 2 for b in range(bands)])
    y, x, size, e1, e2 = found.summary[0, :count].T.astype(float)
    errors = np.sqrt(np.maximum(np.diagonal(found.summary_covariance[0, :count], axis1=1, axis2=2), 0))
    corners = stamp_corners(exposures.scene, shape.stamp)
    center = corners + shape.stamp // 2
    places = center + np.stack([y, x], 1)
    row, column = (places - calibration.shift[0]).T  # where the first one shows them
    shapes = measure.Shapes(row, column, size, e1, e2, errors)
    own, converged = list(shape.exposures[0].bands), bool(found.distance[0] <= CONVERGED)
    alone = builder.Fitted(
        model=models[0],
        sources=sources[0],
        stamps=stamps[:, own],
        corners=corners,
        background=backgrounds[0],
        flux=flux[:, own],
        flux_cov=flux_cov[own],
        shapes=shapes,
        converged=converged,
        beyond_prior=np.zeros(count, bool),
    )
    photometry = measure.Photometry(
        exposures.bands, flux, measure.flux_errors(flux_cov), exposures.flux_units, exposures.zeropoints
    )
    others = _views(exposures, models, sources, places, calibration)
    facts = facts | {"steps": int(found.steps[0]), "distance": float(found.distance[0]), "modelsig": shape.model_sigma}
    first = builder.fitted(scene, alone, facts, others, photometry)
    seconds = float(facts["walltime"])
    return JointDeblended(
        exposures,
        first,
        tuple(models),
        tuple(backgrounds),
        tuple(sources),
        stamps,
        flux_cov,
        calibration,
        converged,
        seconds,
    )


def assembled_samples(
    exposures: Exposures,
    shape: JointShape,
    drawn: FieldSamples,
    calibration: Calibration,
    levels: Sequence[np.ndarray],
    facts: Facts,
    keep: bool,
    mixed: bool,
) -> JointDeblended:
    """The result of samples. levels: E times (C_e,) what was taken off each observation before. keep: the samples.
    mixed: whether chains have."""
    scale, corners = exposures.band_scale, stamp_corners(exposures.scene, shape.stamp)
    own = list(shape.exposures[0].bands)
    models, sources, backgrounds = [], [], []
    for e, one in enumerate(exposures.observations):
        unit = (exposures.band_scale[list(shape.exposures[e].bands)] * exposures.unit(one))[:, None, None]
        models.append(drawn.models[e] * unit + levels[e][:, None, None])
        sources.append(drawn.sources[e] * unit.astype(np.float32))
        backgrounds.append(drawn.constants[e] * unit[:, 0, 0] + levels[e])
    stamps, flux = drawn.stamps * scale[:, None, None], drawn.flux * scale
    variance = drawn.prior_variance * scale[:, None, None] ** 2
    # Stamps are on the model's pixels; catalogues have the first one's.
    tally = Tally(exposures.scene, corners, shape.model_sigma, keep, calibration.shift[0])
    for s in range(len(flux)):
        seen = backgrounds[0][s], models[0][s], variance[s][:, own], drawn.summary[s]
        tally.add(stamps[s][:, own], sources[0][s], flux[s][:, own], *seen)
    offset = flux - flux.mean(0)
    flux_cov = np.einsum("skc,slc->ckl", offset, offset) / (len(flux) - 1)
    photometry = measure.Photometry(
        exposures.bands, flux.mean(0), measure.flux_errors(flux_cov), exposures.flux_units, exposures.zeropoints
    )
    means, each = [model.mean(0) for model in models], [part.mean(0) for part in sources]
    shapes = tally.mean_shapes()
    places = np.stack([shapes.y, shapes.x], 1) + calibration.shift[0]
    others = _views(exposures, means, each, places, calibration)
    first = builder.sampled(tally, np.any(drawn.large, 0), facts, mixed, others, photometry)
    return JointDeblended(
        exposures,
        first,
        tuple(means),
        tuple(background.mean(0) for background in backgrounds),
        tuple(each),
        stamps.mean(0),
        flux_cov,
        calibration,
        mixed,
        float(facts["walltime"]),
        tuple(part.std(0, ddof=1) for part in sources),
        stamps.astype(np.float32) if keep else None,
    )


def _views(
    exposures: Exposures,
    models: Sequence[np.ndarray],
    sources: Sequence[np.ndarray],
    positions: np.ndarray,
    calibration: Calibration,
) -> list[flags.View]:
    """All observations but the first. positions: (K, 2) in pixels of the model."""
    views = []
    for e, (one, pixels) in list(enumerate(zip(exposures.observations, exposures.maps, strict=True)))[1:]:
        place = np.linalg.solve(pixels.matrix, (positions - pixels.offset - calibration.shift[e]).T).T
        left = residual_detections(exposures.fitted(one, pixels), models[e], place)
        scale = pixels.area**-0.5
        views.append(flags.View(exposures.fitted(one, pixels), sources[e], models[e], place, scale, left))
    return views
