"""A point source whose flux differs from epoch to epoch, and the galaxies around it, fitted to all exposures at once.

    y_e = R_e (sum_k s_k u_k(z_k) + f_e v(z)) + n_e

Galaxies u_k are constant, the point source v has a flux f_e in each band of each epoch e, 0 in those where it is off;
R_e is `Resample` through the epoch's PSF. Fluxes s and f enter linearly; positions and profiles z are found by
Gauss-Newton, with the fluxes always at their best. The inverse of the curvature of all of these together is their
covariance, so that a flux's error has what host and position leave open.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.scene import Scene
from tfdeblend.forward.field import Exposures, JointShape, places
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Place
from tfdeblend.forward.resample import Resample
from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.posterior import slopes
from tfdeblend.galaxies.priors import PRIORS, Frame

STIFFNESS = (900.0, 30.0, 1.0)  # by which the latents' prior is multiplied, in turn: see `mapfit`
ROUNDS = 30  # steps at most, of each
CLOSE = 0.01  # standard deviations to the maximum, where steps end
LONGEST = 1.0  # step of a latent
UNSEEN = 1e-6  # pixels' worth of a source's light below which nothing is said of its flux


class Normal(NamedTuple):
    """-log posterior and its derivatives at one point, by latents (L) and fluxes (Q) together.

    loss: at it. slope: (L + Q,), uphill. curvature: (L + Q, L + Q), Gauss-Newton's.
    """

    loss: float
    slope: np.ndarray
    curvature: np.ndarray


class Columns:
    """Compiled for all fields of a shape: what epochs see of each source, and of its derivatives by each latent."""

    def __init__(self, prior: str, shape: JointShape, position_sigma: float):
        self.prior, self.shape = PRIORS[prior](shape.bands, position_sigma), shape
        self.frames = tf.function(self._frames, autograph=False)
        self.products = tf.function(self._products, autograph=False)

    def frame(self, tensors: dict) -> Frame:
        """Of the sources, for one more axis: that of copies."""
        like = tf.ones_like(tensors["is_point"])
        parts = tensors["centers"], tensors["arcsec"] * like, tensors["is_point"], tensors["model_sigma"] * like
        return Frame(*(tf.expand_dims(part, 2) for part in parts))

    def _frames(self, latent: tf.Tensor, tensors: dict) -> tf.Tensor:
        """[1, C or 1, K (S + 1), F, F]: of each source its S derivatives, and last itself, at unit flux."""
        frame, side = self.frame(tensors), self.shape.stamp
        (unit,), (by_latent,) = slopes(
            lambda z: profiles.render(self.prior.mixture(z, frame), side), latent, self.prior.size
        )
        images = tf.concat([by_latent, unit[:, :, None]], 2)
        _, sources, count, bands, _, _ = images.shape
        place = Place(tensors["corners"], side, self.shape.frame, images.dtype)
        placed = place.each(tf.reshape(images, [1, sources, count * bands, side, side]))
        placed = tf.reshape(placed, [1, sources * count, bands, *placed.shape[-2:]])
        return tf.transpose(placed, [0, 2, 1, 3, 4])

    def _products(self, frames: tf.Tensor, epoch: dict) -> tuple[tf.Tensor, tf.Tensor]:
        """[C_e, N + 1, N + 1] float64: scalar products of an epoch's whitened columns and, last, data. The columns
        [C_e, N, S, S] themselves."""
        own = frames if frames.shape[1] == 1 else tf.gather(frames, epoch["bands"], axis=1)
        seen = Resample(epoch["kernel"], epoch["points"], self.shape.fourier, self.shape.frame).forward(own)
        whiten = GaussianNoise(epoch["weights"], epoch["whitening"]).whiten
        both = tf.concat([seen, epoch["images"][:, :, None]], 2)
        # In float64, so that what is nearly as large as the data's own square can be taken from it.
        flat = tf.cast(tf.reshape(whiten.forward(both), [*both.shape[1:3], -1]), tf.float64)
        return tf.matmul(flat, flat, transpose_b=True), seen[0]


@lru_cache(maxsize=8)
def compiled(prior: str, shape: JointShape, position_sigma: float) -> Columns:
    return Columns(prior, shape, position_sigma)


class TransientFit:
    """The maximum of the posterior, and the curvature there. The transient is the last of K + 1 sources.

    Unknowns are ordered: latents of each source, L = (K + 1) S; hosts' fluxes (K, C); the transient's (E, C).

    Args:
      columns: of the shape. exposures: E, of the hosts. transient: a scene of it alone. on: (E,) bool.
    """

    def __init__(self, columns: Columns, exposures: Exposures, transient: Scene, on: np.ndarray):
        shape = columns.shape
        self.columns, self.hosts, self.bands = columns, shape.sources - 1, shape.bands
        own = exposures.shape(shape.stamp)
        tensors = exposures.tensors(own._replace(sources=self.hosts))
        point = places(transient, shape, 1)
        self.tensors = {name: tf.concat([tensors[name], last], 1) for name, last in point.items()}
        self.tensors |= {"arcsec": tensors["arcsec"], "model_sigma": tf.constant(own.model_sigma)}
        self.epochs = [
            {name: tensors[name][e] for name in ("images", "weights", "whitening", "kernel", "points")}
            | {"bands": tf.constant(exposure.bands)}
            for e, exposure in enumerate(own.exposures)
        ]
        self.latents = shape.sources * columns.prior.size
        flux = np.arange((self.hosts + len(self.epochs)) * self.bands).reshape(-1, self.bands) + self.latents
        self.host_flux, self.epoch_flux = np.split(flux, [self.hosts])  # where among the unknowns
        self.on, self.free = on, np.ones(self.latents + flux.size, bool)
        self.products: list[np.ndarray] = []

    def look(self, latent: np.ndarray) -> None:
        """Takes the products at latents (L,)."""
        start = tf.constant(latent.reshape(1, self.hosts + 1, -1), tf.float32)
        frames = self.columns.frames(start, self.tensors)
        self.seen, self.products = [], []
        for epoch in self.epochs:
            products, seen = self.columns.products(frames, epoch)
            self.seen.append(seen)
            self.products.append(products.numpy())

    def choose_free(self) -> None:
        """Leaves out the fluxes that the data say nothing of, or that are off."""
        seen = np.zeros(len(self.free))
        for e, (epoch, products) in enumerate(zip(self.epochs, self.products, strict=True)):
            for row, band in enumerate(epoch["bands"].numpy()):
                units = self._local(e, band)[0][:, -1]
                deepest = max(float(tf.reduce_max(epoch["weights"][0, row])), 1e-30)
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
        for e, (epoch, products) in enumerate(zip(self.epochs, self.products, strict=True)):
            for gram, band in zip(products, epoch["bands"].numpy(), strict=True):
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


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """matrix^-1 right of a positive matrix, whatever the units of its rows."""
    root = np.sqrt(np.diag(matrix))
    scaled = matrix / np.outer(root, root) + 1e-12 * np.eye(len(root))
    return (np.linalg.solve(scaled, (right.T / root).T).T / root).T
