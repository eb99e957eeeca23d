"""The light curve of a transient, by scene modelling: no template is subtracted and no image convolved or resampled.

A point source whose flux differs from epoch to epoch, and the galaxies around it, are fitted to all exposures at once,

    y_e = R_e (sum_k s_k u_k(z_k) + f_e v(z)) + n_e,

as Astier et al. (2013) and Ward et al. (2025) do, with hosts of closed-form profiles. Galaxies u_k are constant, the
point source v has a flux f_e in each band of each epoch e, 0 in those where it is off; R_e is what the epoch's PSF and
pixels make of the model's frame. Fluxes s and f enter linearly; positions and profiles z are found by Gauss-Newton,
with the fluxes always at their best. The inverse of the curvature of all of these together is their covariance, so that
a flux's error has what host and position leave open.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.astrometry import WITHOUT_WCS
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError, expect
from tfdeblend.forward.batch import Batch, ExposureTensors, Tensors
from tfdeblend.forward.likelihood import Exposure
from tfdeblend.forward.operators import Place
from tfdeblend.forward.shapes import BatchShape, ExposureShape, scene_shape
from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.moments import moments
from tfdeblend.galaxies.posterior import slopes
from tfdeblend.galaxies.priors import PRIORS, Frame

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.table import Table

CONVERGED = 0.3  # standard deviations to the maximum
STIFFNESS = (1024.0, 32.0, 1.0)  # by which the latents' prior is multiplied, in turn: see `map_fit.STIFFEST`
ROUNDS = 30  # steps at most, of each
CLOSE = 0.01  # standard deviations to the maximum, where steps end
LONGEST = 1.0  # step of a latent
UNSEEN = 1e-6  # pixels' worth of a source's light below which nothing is said of its flux


@dataclass(frozen=True, eq=False)
class LightCurve:
    """Holds E epochs of a transient in C bands, and its K hosts. Fluxes are in the unit of the first observation that
    has the band.

    Args:
        times: (E,), as given.
        flux, flux_err: (E, C), NaN in bands that an epoch has not or has masked; where off, 0.
        flux_cov: (E, C, E, C).
        position: (y, x) in pixels of the first observation.
        position_cov: (2, 2) pixel^2.
        catalog: a row a host, with id, ra, dec, y, x, size, e1, e2, their errors, and flux_*, flux_err_*.
        models, hosts: E times (C_e, H_e, W_e), everything and the hosts alone: an observation less its `hosts` is its
            difference image, at its own PSF.
    """

    scene: Scene
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
        """Give sum(weights * residual^2) of each observation over the number of pixels that were fitted."""
        chi2 = []
        for number, model in enumerate(self.models):
            one = self.scene.fitted(number)
            residual = ((np.sqrt(one.weights) * (one.images - model)) ** 2)[one.valid]
            chi2.append(float(residual.sum() / max(one.valid.sum(), 1)))
        return tuple(chi2)

    @property
    def sky(self) -> SkyCoord:
        """Give where the transient is on the sky; the error is `position_cov`."""
        return self.scene.observation.sky(*self.position)

    @property
    def table(self) -> Table:
        """List the measurements, a row each of time, name (of the observation), band, flux and flux_err."""
        from astropy.table import Table

        e, c = np.nonzero(np.isfinite(self.flux))
        names = [self.scene.observations[epoch].name for epoch in e]
        columns = {"time": self.times[e], "name": names, "band": np.array(self.scene.bands)[c]}
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
    """Fit the fluxes of a transient in every epoch, and its hosts.

    Args:
      observations: E, the finest pixels first, each with a WCS and a name of its own. Where they look and how bright
        they are is taken to be right: align and calibrate them before. Without zero points, fluxes are taken to be in
        one unit.
      catalog: of the hosts and whatever else is constant, in the first's pixels or on the sky: `Scene.from_catalog`.
        Those of which nothing is seen are left out, with a note on the first observation.
      transient: (y, x) in pixels of the first, or a SkyCoord.
      off: numbers of the observations in which the transient has no flux, such as templates. Without any, a transient
        in a core is distinguished from its host by the profile alone.
      times: (E,) of the observations, in any unit; None: their numbers.
      prior: of the hosts, "exponential", "sersic" or "bulge-disk". stamp: pixels a side, of the first, that hold one.
      position_sigma: expected error of all positions, in pixels of the first; 0: they are right.

    Raises: DataError for observations that cannot be joined, and for a transient, epochs or times that do not belong to
      them; ValueError for an unknown prior.
    """
    expect("prior", prior, str)
    expect("observations", observations, list, tuple)
    for one in observations:
        expect("observations", one, Observation, remedy="Observation.read reads files")
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {', '.join(PRIORS)}, received {prior!r}")
    if not observations:
        raise DataError("observations", None, "expected at least one, received none")
    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
    began, first = time.perf_counter(), observations[0]
    scene = Scene.from_catalog(observations, catalog).kept
    point = _point(first, transient)
    on, when = _epochs(first.name, len(observations), off, times)
    fit = TransientFit(scene, point, on, prior, stamp, position_sigma)
    return _result(fit, scene, when, *fit(fit.start()), began)


def _point(first: Observation, transient: Any) -> Source:
    """The transient as a point source in pixels of the first observation."""
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
    point = Source(y, x, "point", "transient")
    return Scene((first,), (point,)).sources[0]  # which checks that it lies in the image


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
    scene: Scene,
    when: np.ndarray,
    x: np.ndarray,
    covariance: np.ndarray,
    distance: float,
    began: float,
) -> LightCurve:
    """Puts the unknowns into the observations' units and pixels."""
    from astropy.table import Table

    scale, epochs = fit.batch.band_scale[0], fit.epoch_flux
    known = fit.free[epochs] | ~fit.on[:, None]
    for e, own in enumerate(fit.exposures):
        known[e, np.setdiff1d(np.arange(fit.bands), own.bands)] = False
    missing = np.where(known, 1.0, np.nan) * scale
    flux_cov = covariance[np.ix_(epochs.ravel(), epochs.ravel())] * np.outer(missing, missing)
    flux, error = x[epochs] * missing, np.sqrt(np.diag(flux_cov)).reshape(epochs.shape)

    latent = tf.constant(x[: fit.latents].reshape(1, fit.hosts + 1, -1), tf.float32)
    frame = fit.columns.frame(fit.tensors, fit.model_sigma)
    (summary,), (by_latent,) = slopes(lambda z: fit.columns.prior.summary(z, frame), latent, latent.shape[-1])
    blocks = covariance[: fit.latents, : fit.latents].reshape(*latent.shape[1:], *latent.shape[1:])
    by_latent = by_latent[0].numpy().astype(float)
    spread = np.einsum("ksi,kskt,ktj->kij", by_latent, blocks, by_latent)
    summary = summary[0].numpy().astype(float)
    summary[:, :2] += fit.batch.first_pixels(0) + fit.columns.shape.stamp // 2

    sky = scene.observation.sky(*summary[:-1, :2].T)
    table = Table({"id": [source.id for source in scene.sources], "ra": sky.ra.deg, "dec": sky.dec.deg})
    for column, name in enumerate(("y", "x", "size", "e1", "e2")):
        table[name], table[f"{name}_err"] = summary[:-1, column], np.sqrt(spread[:-1, column, column])
    for b, band in enumerate(scene.bands):
        rows = fit.host_flux[:, b]
        table[f"flux_{band}"] = np.where(fit.free[rows], x[rows], np.nan) * scale[b]
        table[f"flux_err_{band}"] = np.where(fit.free[rows], np.sqrt(covariance[rows, rows]), np.nan) * scale[b]

    models, hosts = [], []
    for e, (one, own) in enumerate(zip(scene.observations, fit.exposures, strict=True)):
        (_, height, width), bands = one.shape, list(own.bands)
        seen = fit.seen[e].numpy()[:, fit._units, :height, :width]
        unit = fit.batch.flux_unit(0, scene, e)[:, None, None]
        parts = [np.einsum("kc,ckyx->cyx", x[rows][:, bands], part) for rows, part in
                 ((fit.host_flux, seen[:, :-1]), (epochs[e : e + 1], seen[:, -1:]))]  # fmt: skip
        hosts.append(unit * parts[0])
        models.append(unit * (parts[0] + parts[1]))
    place = summary[-1, :2], spread[-1, :2, :2]
    done = distance < CONVERGED, time.perf_counter() - began
    cov = flux_cov.reshape(*epochs.shape, *epochs.shape)
    return LightCurve(scene, when, flux, error, cov, *place, table, tuple(models), tuple(hosts), *done)


class Normal(NamedTuple):
    """-log posterior and its derivatives at one point, by latents (L) and fluxes (Q) together.

    loss: at it. slope: (L + Q,), uphill. curvature: (L + Q, L + Q), Gauss-Newton's.
    """

    loss: float
    slope: np.ndarray
    curvature: np.ndarray


class Columns:
    """Compiled for all fields of a shape: what epochs see of each source, and of its derivatives by each latent."""

    def __init__(self, prior: str, shape: BatchShape, position_sigma: float):
        self.prior, self.shape = PRIORS[prior](shape.bands, position_sigma, psf_error=0.0), shape
        self.frames = tf.function(self._frames, autograph=False)
        self.products = tf.function(self._products, autograph=False)

    def frame(self, tensors: Tensors, model_sigma: tf.Tensor) -> Frame:
        """Where and how finely the sources are drawn, for one more axis: that of copies."""
        like = tf.ones_like(tensors.is_point)
        parts = tensors.centers, tensors.arcsec * like, tensors.is_point, model_sigma * like
        return Frame(*(tf.expand_dims(part, 2) for part in parts))

    def _frames(self, latent: tf.Tensor, tensors: Tensors, model_sigma: tf.Tensor) -> tf.Tensor:
        """[1, C or 1, K (S + 1), F, F]: of each source its S derivatives, and last itself, at unit flux."""
        frame, side = self.frame(tensors, model_sigma), self.shape.stamp
        (unit,), (by_latent,) = slopes(
            lambda z: profiles.render(self.prior.mixture(z, frame), side), latent, self.prior.size
        )
        images = tf.concat([by_latent, unit[:, :, None]], 2)
        _, sources, count, bands, _, _ = images.shape
        place = Place(tensors.corners, side, self.shape.frame, images.dtype)
        placed = place.each(tf.reshape(images, [1, sources, count * bands, side, side]))
        placed = tf.reshape(placed, [1, sources * count, bands, *placed.shape[-2:]])
        return tf.transpose(placed, [0, 2, 1, 3, 4])

    def _products(self, frames: tf.Tensor, tensors: ExposureTensors, own: ExposureShape) -> tuple[tf.Tensor, tf.Tensor]:
        """[C_e, N + 1, N + 1] float64: scalar products of an epoch's whitened columns and, last, data. The columns
        [C_e, N, S, S] themselves."""
        epoch = Exposure(tensors, self.shape._replace(exposures=(own,)), 0)
        seen = epoch.project.forward(epoch.of(frames))
        both = tf.concat([seen, epoch.images[:, :, None]], 2)
        # In float64, so that what is nearly as large as the data's own square can be taken from it.
        flat = tf.cast(tf.reshape(epoch.noise.whiten.forward(both), [*both.shape[1:3], -1]), tf.float64)
        return tf.matmul(flat, flat, transpose_b=True), seen[0]


@lru_cache(maxsize=8)
def compiled(prior: str, shape: BatchShape, position_sigma: float) -> Columns:
    """The columns that serve all fields of a shape."""
    return Columns(prior, shape, position_sigma)


class TransientFit:
    """The maximum of the posterior, and the curvature there. The transient is the last of K + 1 sources.

    Unknowns are ordered: latents of each source, L = (K + 1) S; hosts' fluxes (K, C); the transient's (E, C).

    Args:
      scene: the E observations with the hosts. transient: its position (y, x) in pixels of the first. on: (E,) bool.
      prior: of the hosts. stamp: P. position_sigma: in pixels.
    """

    def __init__(self, scene: Scene, transient: Source, on: np.ndarray, prior: str, stamp: int, position_sigma: float):
        self.scene = scene
        shape = scene_shape(scene, stamp)._replace(sources=len(scene.sources) + 1)
        self.exposures = shape.exposures
        # What the compiled columns do not depend on is left out, so that more fields share them.
        self.columns = compiled(prior, shape._replace(model_sigma=0.0, exposures=()), position_sigma)
        self.batch = _with_transient(scene, transient, shape)
        self.tensors = self.batch.tensors._replace(exposures=())
        self.epochs, self.model_sigma = self.batch.tensors.exposures, tf.constant(shape.model_sigma)
        self.hosts, self.bands = len(scene.sources), shape.bands
        self.latents = shape.sources * self.columns.prior.size
        flux = np.arange((self.hosts + len(self.epochs)) * self.bands).reshape(-1, self.bands) + self.latents
        self.host_flux, self.epoch_flux = np.split(flux, [self.hosts])  # where among the unknowns
        self.on, self.free = on, np.ones(self.latents + flux.size, bool)
        self.products: list[np.ndarray] = []

    def start(self) -> np.ndarray:
        """(L,) latents to start from: hosts by their moments, the transient at its position."""
        start = np.zeros((self.hosts + 1, self.columns.prior.size))
        radius, ellipticity = moments(self.scene)
        guess = self.columns.prior.start(tf.constant(radius, tf.float32), tf.constant(ellipticity, tf.float32)).numpy()
        start[:-1] = np.where(np.isfinite(guess), guess, 0)
        return start.ravel()

    def look(self, latent: np.ndarray) -> None:
        """Takes the products at latents (L,)."""
        start = tf.constant(latent.reshape(1, self.hosts + 1, -1), tf.float32)
        frames = self.columns.frames(start, self.tensors, self.model_sigma)
        self.seen, self.products = [], []
        for epoch, own in zip(self.epochs, self.exposures, strict=True):
            products, seen = self.columns.products(frames, epoch, own)
            self.seen.append(seen)
            self.products.append(products.numpy())

    def choose_free(self) -> None:
        """Leaves out the fluxes that the data say nothing of, or that are off."""
        seen = np.zeros(len(self.free))
        for e, (epoch, products) in enumerate(zip(self.epochs, self.products, strict=True)):
            for row, band in enumerate(self.exposures[e].bands):
                units = self._local(e, band)[0][:, -1]
                deepest = max(float(tf.reduce_max(epoch.weights[0, row])), 1e-30)
                seen[units] += np.diag(products[row])[self._units] / deepest
        self.free[self.latents :] = seen[self.latents :] > UNSEEN
        self.free[self.epoch_flux[~self.on]] = False

    @property
    def _units(self) -> np.ndarray:
        """(K + 1,) which columns are the sources themselves."""
        return np.arange(1, self.hosts + 2) * (self.columns.prior.size + 1) - 1

    def _local(self, epoch: int, band: int) -> tuple[np.ndarray, np.ndarray]:
        """(K + 1, S + 1) which unknowns an epoch's columns belong to, and (K + 1,) its fluxes alone."""
        flux = np.append(self.host_flux[:, band], self.epoch_flux[epoch, band])
        return np.column_stack([np.arange(self.latents).reshape(len(flux), -1), flux]), flux

    def normal(self, x: np.ndarray, stiffness: float = 1.0) -> Normal:
        """At x (L + Q,), whose latents must be those last looked at."""
        latent, number, units = x[: self.latents], len(x), self._units
        prior = np.where(np.arange(number) < self.latents, stiffness, 0)
        loss, slope, curvature = 0.5 * stiffness * float(latent @ latent), prior * x, np.diag(prior)
        for e, products in enumerate(self.products):
            for gram, band in zip(products, self.exposures[e].bands, strict=True):
                which, own = self._local(e, band)
                flux = x[own]
                scale = np.column_stack([np.repeat(flux[:, None], which.shape[1] - 1, 1), np.ones_like(flux)]).ravel()
                model = gram[:, units] @ flux - gram[:, -1]  # every column with model - data
                loss += 0.5 * float(model[units] @ flux - model[-1])
                slope[which.ravel()] += scale * model[:-1]
                curvature[np.ix_(which.ravel(), which.ravel())] += np.outer(scale, scale) * gram[:-1, :-1]
        return Normal(loss, slope, curvature)

    def at(self, latent: np.ndarray, stiffness: float) -> tuple[np.ndarray, Normal]:
        """The unknowns with fluxes at their best, and what holds there."""
        self.look(latent)
        x = np.concatenate([latent, np.zeros(len(self.free) - self.latents)])
        start, rows = self.normal(x, stiffness), self.free & (np.arange(len(x)) >= self.latents)
        x[rows] = -_solve(start.curvature[np.ix_(rows, rows)], start.slope[rows])
        return x, self.normal(x, stiffness)

    def step(self, now: Normal, damping: float) -> tuple[np.ndarray, float]:
        """Of the latents, and its length in standard deviations."""
        rows, linear = np.arange(self.latents), np.flatnonzero(self.free)[self.latents :]
        mixed = now.curvature[np.ix_(rows, linear)]
        schur = now.curvature[np.ix_(rows, rows)] - mixed @ _solve(now.curvature[np.ix_(linear, linear)], mixed.T)
        move = -np.linalg.solve(schur + damping * np.eye(len(rows)), now.slope[rows])
        return move, float(np.sqrt(abs(now.slope[rows] @ np.linalg.solve(schur, now.slope[rows]))))

    def __call__(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """From latents (L,): the unknowns (L + Q,) at the maximum, their covariance, 0 where not free, and the
        distance to the maximum that was left, in standard deviations."""
        self.look(latent)
        self.choose_free()
        for stiffness in STIFFNESS:
            x, now = self.at(latent, stiffness)
            damping = stiffness
            for _ in range(ROUNDS):
                move, distance = self.step(now, damping)
                if distance < CLOSE:
                    break
                move *= min(1, LONGEST / np.abs(move).max())
                trial, there = self.at(x[: self.latents] + move, stiffness)
                better = there.loss < now.loss
                damping = damping / 10 if better else max(4 * damping, 1e-2 * stiffness)
                if better:
                    x, now = trial, there
            latent = x[: self.latents]
        x, now = self.at(latent, 1.0)
        covariance, rows = np.zeros_like(now.curvature), np.ix_(self.free, self.free)
        covariance[rows] = _solve(now.curvature[rows], np.eye(int(self.free.sum())))
        return x, covariance, self.step(now, 0)[1]


def _with_transient(scene: Scene, transient: Source, shape: BatchShape) -> Batch:
    """The batch of a scene with the transient as its last source, which may lie where another one does."""
    hosts = Batch.build([scene], shape._replace(sources=len(scene.sources)))
    alone = Batch.build([Scene(scene.observations, (transient,))], shape._replace(sources=1, exposures=())).tensors
    names = ("corners", "centers", "is_source", "is_point")
    joined = {name: tf.concat([getattr(hosts.tensors, name), getattr(alone, name)], 1) for name in names}
    return Batch(shape, hosts.tensors._replace(**joined), hosts.band_scale)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """matrix^-1 right of a positive matrix, whatever the units of its rows."""
    root = np.sqrt(np.diag(matrix))
    scaled = matrix / np.outer(root, root) + 1e-12 * np.eye(len(root))
    return (np.linalg.solve(scaled, (right.T / root).T).T / root).T
