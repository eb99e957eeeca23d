"""The light curve of a transient, by scene modelling: no template is subtracted and no image convolved or resampled.

As Astier et al. (2013) and Ward et al. (2025) do, with hosts of closed-form profiles: see `transient_fit`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError
from tfdeblend.forward.field import Exposures
from tfdeblend.galaxies import moments
from tfdeblend.galaxies.posterior import slopes
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.transient_fit import TransientFit, compiled

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.table import Table

CONVERGED = 0.3  # standard deviations to the maximum


@dataclass(frozen=True, eq=False)
class LightCurve:
    """E epochs of a transient in C bands, and its K hosts. Fluxes are in the unit of the first observation that has the
    band.

    times: (E,), as given. flux, flux_err: (E, C), NaN in bands that an epoch has not or has masked; where off, 0.
    flux_cov: (E, C, E, C). position: (y, x) in pixels of the first observation; position_cov: (2, 2) pixel^2.
    catalog: a row a host, with id, ra, dec, y, x, size, e1, e2, their errors, and flux_*, flux_err_*. models, hosts: E
    times (C_e, H_e, W_e), everything and the hosts alone: an observation less its `hosts` is its difference image, at
    its own PSF. chi2: (E,) a pixel.
    """

    exposures: Exposures
    times: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    flux_cov: np.ndarray
    position: np.ndarray
    position_cov: np.ndarray
    catalog: Table
    models: tuple[np.ndarray, ...]
    hosts: tuple[np.ndarray, ...]
    converged: bool
    seconds: float

    @property
    def chi2(self) -> tuple[float, ...]:
        """Of each observation: sum(weights * residual^2) over the number of pixels that were fitted."""
        return self.exposures.chi2(self.models)

    @property
    def sky(self) -> SkyCoord:
        """Where the transient is; the error is `position_cov`."""
        return self.exposures.observations[0].sky(*self.position)

    @property
    def table(self) -> Table:
        """A row a measurement: time, name (of the observation), band, flux, flux_err."""
        from astropy.table import Table

        e, c = np.nonzero(np.isfinite(self.flux))
        names = [self.exposures.observations[epoch].name for epoch in e]
        columns = {"time": self.times[e], "name": names, "band": np.array(self.exposures.bands)[c]}
        return Table(columns | {"flux": self.flux[e, c], "flux_err": self.flux_err[e, c]})


def light_curve(
    observations: Sequence[Observation],
    catalog: Any,
    transient: Any,
    off: Sequence[int] = (),
    times: Sequence[float] | None = None,
    prior: str = "sersic",
    stamp: int = 64,
    position_sigma: float = 0.5,
) -> LightCurve:
    """The fluxes of a transient in every epoch, and its hosts.

    Args:
      observations: E, the finest pixels first, each with a WCS and a name of its own. Where they look and how bright
        they are is taken to be right: align and calibrate them before. Without zero points, fluxes are taken to be in
        one unit.
      catalog: of the hosts and whatever else is constant, in the first's pixels or on the sky: `Scene.from_catalog`.
      transient: (y, x) in pixels of the first, or a SkyCoord.
      off: numbers of the observations in which the transient has no flux, such as templates. Without any, a transient
        in a core is told from its host by the profile alone.
      times: (E,) of the observations, in any unit; None: their numbers.
      prior: of the hosts, "exponential", "sersic" or "bulge-disk". stamp: pixels a side, of the first, that hold one.
      position_sigma: expected error of all positions, in pixels of the first; 0: they are right.

    Raises: DataError for observations that cannot be joined, and for a transient, epochs or times that do not belong to
      them; ValueError for an unknown prior.
    """
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {', '.join(PRIORS)}, received {prior!r}")
    if not observations:
        raise DataError("observations", None, "expected at least one, received none")
    began, first = time.perf_counter(), observations[0]
    scene = Scene.from_catalog(first, catalog)
    point = _point(first, transient)
    exposures = Exposures(scene, tuple(observations[1:]))
    on, when = _epochs(first.name, len(observations), off, times)
    shape = exposures.shape(stamp)
    # What the compiled columns do not depend on is left out, so that more fields share them.
    key = shape._replace(sources=len(scene.sources) + 1, model_sigma=0.0, exposures=())
    fit = TransientFit(compiled(prior, key, position_sigma), exposures, point, on)
    size = fit.columns.prior.size
    start = np.zeros((key.sources, size))
    guess = fit.columns.prior.start(*(tf.constant(part, tf.float32) for part in moments.moments(scene))).numpy()
    start[:-1] = np.where(np.isfinite(guess), guess, 0)
    x, covariance, distance = fit(start.ravel())
    return _result(fit, exposures, point, when, x, covariance, distance, began)


def _point(first: Observation, transient: Any) -> Scene:
    """The scene of the transient alone."""
    try:
        if hasattr(transient, "to_pixel"):  # SkyCoord
            (source,) = Scene.from_catalog(first, transient).sources
            y, x = source.y, source.x
        else:
            y, x = (float(value) for value in transient)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        expected = "expected one position (y, x) in pixels or a SkyCoord"
        raise DataError(first.name, "transient", f"{expected}, received {transient!r}") from error
    return Scene(first, (Source(y, x, "point", "transient"),))


def _epochs(where: str, count: int, off: Sequence[int], times: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Which epochs are on (E,), and when they were (E,)."""
    numbers = np.atleast_1d(np.asarray(off))
    if numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= count):
        raise DataError(where, "off", f"expected numbers of observations, 0 to {count - 1}, received {list(off)}")
    on = ~np.isin(np.arange(count), numbers)
    if not on.any():
        raise DataError(where, "off", f"expected fewer than all {count} observations, received all")
    when = np.arange(float(count)) if times is None else np.asarray(times, float)
    if when.shape != (count,):
        raise DataError(where, "times", f"expected one for each of {count} observations, received shape {when.shape}")
    return on, when


def _result(
    fit: TransientFit,
    exposures: Exposures,
    point: Scene,
    when: np.ndarray,
    x: np.ndarray,
    covariance: np.ndarray,
    distance: float,
    began: float,
) -> LightCurve:
    """Puts the unknowns into the observations' units and pixels."""
    from astropy.table import Table

    scale, epochs = exposures.band_scale, fit.epoch_flux
    known = fit.free[epochs] | ~fit.on[:, None]
    for e, own in enumerate(fit.epochs):
        known[e, np.setdiff1d(np.arange(fit.bands), own["bands"].numpy())] = False
    missing = np.where(known, 1.0, np.nan) * scale
    flux_cov = covariance[np.ix_(epochs.ravel(), epochs.ravel())] * np.outer(missing, missing)
    flux, error = x[epochs] * missing, np.sqrt(np.diag(flux_cov)).reshape(epochs.shape)

    latent = tf.constant(x[: fit.latents].reshape(1, fit.hosts + 1, -1), tf.float32)
    frame = fit.columns.frame(fit.tensors)
    (summary,), (by_latent,) = slopes(lambda z: fit.columns.prior.summary(z, frame), latent, latent.shape[-1])
    blocks = covariance[: fit.latents, : fit.latents].reshape(*latent.shape[1:], *latent.shape[1:])
    by_latent = by_latent[0].numpy().astype(float)
    spread = np.einsum("ksi,kskt,ktj->kij", by_latent, blocks, by_latent)
    summary = summary[0].numpy().astype(float)
    summary[:, :2] += fit.tensors["corners"][0].numpy() - fit.columns.shape.margin + fit.columns.shape.stamp // 2

    sky = exposures.observations[0].sky(*summary[:-1, :2].T)
    table = Table({"id": [source.id for source in exposures.scene.sources], "ra": sky.ra.deg, "dec": sky.dec.deg})
    for column, name in enumerate(("y", "x", "size", "e1", "e2")):
        table[name], table[f"{name}_err"] = summary[:-1, column], np.sqrt(spread[:-1, column, column])
    for b, band in enumerate(exposures.bands):
        rows = fit.host_flux[:, b]
        table[f"flux_{band}"] = np.where(fit.free[rows], x[rows], np.nan) * scale[b]
        table[f"flux_err_{band}"] = np.where(fit.free[rows], np.sqrt(covariance[rows, rows]), np.nan) * scale[b]

    models, hosts = [], []
    for e, (one, own) in enumerate(zip(exposures.observations, fit.epochs, strict=True)):
        (_, height, width), bands = one.shape, own["bands"].numpy()
        seen = fit.seen[e].numpy()[:, fit._units, :height, :width]
        unit = (scale[bands] * exposures.unit(one))[:, None, None]
        parts = [np.einsum("kc,ckyx->cyx", x[rows][:, bands], part) for rows, part in
                 ((fit.host_flux, seen[:, :-1]), (epochs[e : e + 1], seen[:, -1:]))]  # fmt: skip
        hosts.append(unit * parts[0])
        models.append(unit * (parts[0] + parts[1]))
    place = summary[-1, :2], spread[-1, :2, :2]
    done = distance < CONVERGED, time.perf_counter() - began
    cov = flux_cov.reshape(*epochs.shape, *epochs.shape)
    return LightCurve(exposures, when, flux, error, cov, *place, table, tuple(models), tuple(hosts), *done)
