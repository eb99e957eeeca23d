"""Galaxies behind dust: a product of two components, each with a prior of its own.

    y_c = P (s_c u(z) exp(-k_c t(w)) + neighbours) + n

u is a galaxy of a closed-form prior, t >= 0 the optical depth of a screen in front of it, an elongated Gaussian or
exponential, and k_c the attenuation curve over its value at the wavelength where t is given. Both live at the model
PSF's resolution, about a pixel: a lane that is thinner comes out wider and shallower, by as much as it takes away.

The image is not linear in the screen. The MAP of all latents is found by L-BFGS (TFP), with the fluxes s at their best
in each step, from several directions of the lane at once; the best of them is taken. There are no errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability import bijectors as tfb

from tfdeblend.data.scene import READS, Scene
from tfdeblend.data.validation import numbers
from tfdeblend.errors import DataError, expect
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import BatchShape, scene_shape
from tfdeblend.galaxies import moments, normal_equations, profiles
from tfdeblend.galaxies.priors import PRIORS, Disc, Frame, Prior

DIRECTIONS = 4  # of the lane, that the fit starts from
ITERATIONS = 300
TOLERANCE = 0.02  # of the gradient by a latent, where the prior's curvature is 1
FARTHEST = 6.0  # that a latent is followed, in standard deviations of its prior: a line search tries any
DTYPE = tf.float64  # a line search compares chi-squares, whose float32 rounding is larger than their last steps


def calzetti(wavelengths: Any) -> np.ndarray:
    """Give A(lambda) / A(V), (C,), of wavelengths in micrometres, 0.12 to 2.2 (Calzetti et al. 2000)."""
    inverse = 1 / np.asarray(wavelengths, float)
    blue = 2.659 * (-2.156 + 1.509 * inverse - 0.198 * inverse**2 + 0.011 * inverse**3)
    return np.where(inverse > 1 / 0.63, blue, 2.659 * (-1.857 + 1.040 * inverse)) / 4.05 + 1


class DustPrior(Prior):
    """Describes a screen of dust by where it is, how large, how elongated and how deep.

    offset: (y, x) from the galaxy's centre, in arcsec. radius: that of the circle of equal area, in arcsec, where the
    optical depth has fallen to exp(-1/2) ("gaussian") or exp(-1) ("exponential"). ellipticity: up to an axis ratio of
    1 / 19. depth: the largest optical depth, where k = 1. Chosen by hand, and broad.
    """

    def parameters(self) -> dict[str, tuple[int, tfb.Bijector]]:
        thinnest, spread = (tf.constant(value, self.dtype) for value in (0.9, 0.7 / 0.9))
        return {
            "offset": (2, tfb.Scale(tf.constant(0.3, self.dtype))),
            "radius": (1, self._lognormal(0.4, 0.5)),
            "ellipticity": (2, tfb.Chain([tfb.Scale(thinnest), Disc(), tfb.Scale(spread)])),
            "depth": (1, self._lognormal(0.5, 1.0)),
        }

    def optical_depth(self, latent: tf.Tensor, center: tf.Tensor, arcsec: tf.Tensor, side: int, law: str) -> tf.Tensor:
        """Draw the depth [B, P, P] where k = 1, of latents [B, S].

        center: [B, 2] the galaxy's, relative to stamp pixel P // 2, in pixels. arcsec: [B] pixels in one.
        """
        theta = self.unpack(latent)
        y0, x0 = tf.unstack((center + arcsec[:, None] * theta["offset"])[..., None], axis=1)
        t = tf.range(side, dtype=self.dtype) - side // 2
        y, x = t[:, None] - y0[..., None], t[None, :] - x0[..., None]
        yy, yx, xx = tf.unstack(profiles.ellipse(theta["ellipticity"])[..., None, None], axis=1)
        square = (xx * y**2 - 2 * yx * y * x + yy * x**2) / (arcsec[:, None] * theta["radius"])[..., None] ** 2
        fall = 0.5 * square if law == "gaussian" else tf.sqrt(square + 1e-6)
        return theta["depth"][..., None] * tf.exp(-fall)


class Found(NamedTuple):
    """The best of the starts. latent: [K S + W]. loss: -log posterior. converged. flux: [K, C], whitened.

    intrinsic, attenuated: [C, S, S] the dusty galaxy's image; model: with its neighbours. depth: [P, P] where k = 1.
    """

    latent: tf.Tensor
    loss: tf.Tensor
    converged: tf.Tensor
    flux: tf.Tensor
    intrinsic: tf.Tensor
    attenuated: tf.Tensor
    model: tf.Tensor
    depth: tf.Tensor


class DustFit:
    """The compiled fit of one shape. The dusty galaxy is the first of the sources."""

    def __init__(self, prior: str, shape: BatchShape, position_sigma: float, law: str):
        self.galaxies = PRIORS[prior](shape.bands, position_sigma, DTYPE)
        self.dust, self.shape, self.law = DustPrior(DTYPE), shape, law
        self.number = shape.sources * self.galaxies.size  # of the galaxies' latents
        self.run = tf.function(self._run, autograph=False)

    def stamps(self, latent: tf.Tensor, tensors: Tensors, curve: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Unit-flux sources without and with dust [B, K, C, P, P], and the depth [B, P, P]. curve: [C]."""
        latent = tf.clip_by_value(latent, -FARTHEST, FARTHEST)
        shape, (galaxies, dust) = self.shape, tf.split(latent, [self.number, self.dust.size], 1)
        galaxies = tf.reshape(galaxies, [-1, shape.sources, self.galaxies.size])
        like, arcsec = tf.ones_like(tensors.is_point), tensors.arcsec
        frame = Frame(tensors.centers, arcsec[:, None] * like, tensors.is_point, shape.model_sigma * like)
        mixture = self.galaxies.mixture(galaxies, frame)
        bare = profiles.render(mixture, shape.stamp)
        bare = tf.repeat(bare, shape.bands // bare.shape[2], 2)
        depth = self.dust.optical_depth(dust, mixture.center[:, 0], arcsec, shape.stamp, self.law)
        through = tf.exp(-curve[:, None, None] * depth[:, None])
        return bare, tf.concat([bare[:, :1] * through[:, None], bare[:, 1:]], 1), depth

    def best_fluxes(self, likelihood: Likelihood, seen: tf.Tensor) -> tf.Tensor:
        """[B, K, C] of unit-flux stamps [B, K, C, P, P]: those of least squares."""
        (exposure,), whiten = likelihood.exposures, likelihood.exposures[0].noise.whiten.forward
        images = whiten(likelihood.render_each(seen[:, :, None])[0])
        columns = tf.reshape(images, [*images.shape[:3], -1])
        data = tf.reshape(whiten(exposure.images), [*images.shape[:2], -1, 1])
        gram = normal_equations.regular(tf.matmul(columns, columns, transpose_b=True), tf.ones_like(columns[..., 0]))
        return tf.linalg.matrix_transpose(tf.linalg.solve(gram, tf.matmul(columns, data))[..., 0])

    def _run(self, tensors: Tensors, curve: tf.Tensor, start: tf.Tensor) -> Found:
        """tensors: of one scene. curve: [C] the attenuation. start: [B, K S + W]."""
        tensors = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, start.shape[0], 0), tensors)
        likelihood = Likelihood(tensors, self.shape)

        def loss(latent: tf.Tensor) -> tf.Tensor:
            _, seen, _ = self.stamps(latent, tensors, curve)
            # At their best the loss does not change with the fluxes: their own derivatives are not needed.
            flux = tf.stop_gradient(self.best_fluxes(likelihood, seen))
            return 0.5 * (likelihood.chi2(likelihood.render(seen, flux)) + tf.reduce_sum(latent**2, 1))

        # A function of its own: the line search calls it in a dozen places, which would each be compiled.
        value_and_gradient = tf.function(lambda latent: tfp.math.value_and_gradient(loss, latent), autograph=False)
        end = tfp.optimizer.lbfgs_minimize(
            value_and_gradient, start, max_iterations=ITERATIONS, tolerance=TOLERANCE, parallel_iterations=1
        )
        best = tf.argmin(end.objective_value)
        bare, seen, depth = self.stamps(end.position, tensors, curve)
        flux = self.best_fluxes(likelihood, seen)
        alone = flux * tf.one_hot([[0]], self.shape.sources, axis=1, dtype=DTYPE)
        bare, attenuated, model = (
            likelihood.render(*part)[0][best] for part in ((bare, alone), (seen, alone), (seen, flux))
        )
        whole = end.position[best], end.objective_value[best], end.converged[best], flux[best]
        return Found(*whole, bare, attenuated, model, depth[best])


@lru_cache(maxsize=8)
def compiled(prior: str, shape: BatchShape, position_sigma: float, law: str) -> DustFit:
    return DustFit(prior, shape, position_sigma, law)


@dataclass(frozen=True, eq=False)
class DustyGalaxy:
    """Holds a galaxy and the dust in front of it, in the observation's unit.

    Args:
        flux: (C,) without dust.
        transmitted: (C,) what share of it arrives.
        intrinsic, attenuated: (C, H, W) the galaxy through the PSF, without and with dust.
        model: (C, H, W) with its neighbours.
        optical_depth: (H, W) of the screen, where the attenuation is 1, not convolved.
        dust: its parameters, see `DustPrior`.
        galaxy: the galaxy's.
        log_posterior: at the maximum, up to a constant that models of the same data share.
        chi2: a pixel.
    """

    scene: Scene
    flux: np.ndarray
    transmitted: np.ndarray
    intrinsic: np.ndarray
    attenuated: np.ndarray
    model: np.ndarray
    optical_depth: np.ndarray
    dust: dict[str, np.ndarray]
    galaxy: dict[str, np.ndarray]
    log_posterior: float
    chi2: float
    converged: bool


def fit_dust(
    scene: Scene,
    attenuation: Any,
    source: int = 0,
    prior: str = "sersic",
    law: str = "gaussian",
    stamp: int = 64,
    position_sigma: float = 0.5,
) -> DustyGalaxy:
    """Find the MAP of a galaxy behind a screen of dust, and of its neighbours without any.

    Args:
      scene: with its sources. attenuation: (C,) of the bands, relative to where optical depths are given: `calzetti`.
        With one band, or equal values, dust is distinguished from a galaxy's own shape by the priors alone.
      source: which one is dusty, by its number.
      prior: of the galaxies, "exponential", "sersic" or "bulge-disk". law: of the dust, "gaussian" or "exponential".
      stamp: pixels a side that hold a galaxy. position_sigma: expected error of positions, in pixels.

    Raises: DataError for values that do not belong to the scene; ValueError for an unknown prior or law.
    """
    expect("scene", scene, Scene, remedy=READS)
    for name, value, kind in (("source", source, int), ("prior", prior, str), ("law", law, str)):
        expect(name, value, kind)
    if prior not in PRIORS:
        raise ValueError(f"prior: expected one of {', '.join(PRIORS)}, received {prior!r}")
    if law not in ("gaussian", "exponential"):
        raise ValueError(f"law: expected gaussian or exponential, received {law!r}")
    one, count = scene.observation, len(scene.sources)
    if len(scene.observations) > 1:
        raise DataError(scene.name, "observations", f"expected one observation, received {len(scene.observations)}")
    curve = numbers(scene.name, "attenuation", attenuation).astype(float)
    if curve.shape != (len(one.bands),) or not (np.isfinite(curve) & (curve >= 0)).all():
        expected = f"expected {len(one.bands)} finite values that are not negative, one a band"
        raise DataError(scene.name, "attenuation", f"{expected}, received {attenuation}")
    if source not in range(count) or scene.sources[source].kind == "point":
        raise DataError(scene.name, "source", f"expected the number of a galaxy, 0 to {count - 1}, received {source}")
    if scene.left_out[source]:
        raise DataError(scene.name, "source", f"expected one with unmasked pixels near it, received {source}")
    order = [source, *(k for k in range(count) if k != source and not scene.left_out[k])]
    ordered = Scene((one,), tuple(scene.sources[k] for k in order))
    shape = scene_shape(ordered, stamp)._replace(sources=len(order))
    fit = compiled(prior, shape._replace(blends=DIRECTIONS), position_sigma, law)
    batch = Batch.build([ordered], shape, DTYPE)
    guess = fit.galaxies.start(*(tf.constant(part, DTYPE) for part in moments.moments(ordered))).numpy()
    start = np.zeros((DIRECTIONS, fit.number + fit.dust.size))
    start[:, : fit.number] = np.where(np.isfinite(guess), guess, 0).ravel()
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    along = fit.dust.unpack(tf.zeros([DIRECTIONS, fit.dust.size], DTYPE))
    along["ellipticity"] = tf.constant(0.6 * np.stack([np.cos(angle), np.sin(angle)], 1), DTYPE)
    start[:, fit.number :] = fit.dust.pack(along).numpy()
    found = fit.run(batch.tensors, tf.constant(curve, DTYPE), tf.constant(start))
    return _result(scene, ordered, fit, batch, Found(*(part.numpy() for part in found)))


def _result(scene: Scene, ordered: Scene, fit: DustFit, batch: Batch, found: Found) -> DustyGalaxy:
    """Cut to the observation's size and in its unit."""
    one, scale = ordered.observation, batch.band_scale[0]
    _, height, width = one.shape
    intrinsic, attenuated, model = (
        scale[:, None, None] * image[:, :height, :width] for image in (found.intrinsic, found.attenuated, found.model)
    )
    top, left = batch.first_pixels(0)[0]
    wide = np.pad(found.depth, ((max(top, 0), height), (max(left, 0), width)))[max(-top, 0) :, max(-left, 0) :]
    galaxies, dust = np.split(found.latent, [fit.number])
    mine = fit.galaxies.unpack(tf.constant(galaxies[: fit.galaxies.size], DTYPE))
    residual = (np.sqrt(one.weights) * (one.images - model)) ** 2
    return DustyGalaxy(
        scene=scene,
        flux=found.flux[0] * scale,
        transmitted=attenuated.sum((1, 2)) / intrinsic.sum((1, 2)),
        intrinsic=intrinsic,
        attenuated=attenuated,
        model=model,
        optical_depth=wide[:height, :width],
        dust={name: value.numpy() for name, value in fit.dust.unpack(tf.constant(dust, DTYPE)).items()},
        galaxy={name: value.numpy() for name, value in mine.items()},
        log_posterior=-float(found.loss),
        chi2=float(residual[one.valid].sum() / one.valid.sum()),
        converged=bool(found.converged),
    )
