"""Closed-form priors of galaxies, as TFP joint distributions whose parameters are bijections of standard normals.

Every parameter is theta = b(z), z ~ N(0, 1): one object is value, bijector and prior. The fits work on z, whose prior
has curvature one whatever the data's units; -log p(z) is half a square, so the MAP is the mode of p(z | y). Fluxes
are no part of these distributions: they enter the image linearly, and `fluxes` leaves them flat where positive.

Radii are in arcsec. The hyperparameters are round numbers chosen by hand to be broad for the faint galaxies of deep
ground-based surveys (half-light radii about 0.4 arcsec within a factor of 2, disks more often than bulges). They are
fitted to no catalogue, and they do pull: a compact galaxy that is mostly bulge comes out some 10% faint under
`BulgeDiskPrior`.
"""

from __future__ import annotations

import abc
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.profiles import Mixture

FARTHEST = 3.0  # times the expected error of a position: no source moves further, or it would mend a bright neighbour
# How well PSFs are known: the variance of the model PSF to a tenth, which is 2% of the width of a PSF of 3.5 pixels,
# and 3% of the light, which may lie in wings of six times its variance. No PSF is off by more than so many times that.
PSF_VARIANCE, PSF_WINGS, WING_VARIANCE, WORST_PSF = 0.1, 0.03, 6.0, 4.0
THINNEST = 0.75  # ellipticity of an edge-on disk, b / a = 1 / 7; thinner ones only mend the misfit of bright neighbours


class Disc(tfb.Bijector):
    """R^2 -> open unit disc: x / sqrt(1 + |x|^2). log|det J| = -2 log(1 + |x|^2)."""

    def __init__(self, name: str = "disc"):
        super().__init__(forward_min_event_ndims=1, name=name)

    def _forward(self, x):
        return x / tf.sqrt(1 + tf.reduce_sum(x**2, -1, keepdims=True))

    def _inverse(self, y):
        return y / tf.sqrt(1 - tf.reduce_sum(y**2, -1, keepdims=True))

    def _forward_log_det_jacobian(self, x):
        return -2 * tf.math.log1p(tf.reduce_sum(x**2, -1))


class Frame(NamedTuple):
    """Where and how finely sources are drawn; each [...] as the latents' leading shape.

    center: [..., 2] the given position (y, x) relative to stamp pixel (P // 2, P // 2). arcsec: pixels in an arcsec.
    is_point: 1 for point sources, whose only extent is the PSF's errors. model_sigma: the model PSF's sigma in pixels.
    """

    center: tf.Tensor
    arcsec: tf.Tensor
    is_point: tf.Tensor
    model_sigma: tf.Tensor


def draw(shape: tf.Tensor, frame: Frame, table: np.ndarray | None = None) -> Mixture:
    """A component of unit flux in one band. shape: [..., 5 or 6] as in `Anatomy`; table: of a profile without index."""
    amplitude, variance = profiles.sersic(shape[..., 5]) if table is None else profiles.fixed(table, shape.dtype)
    galaxy = 1 - frame.is_point
    extent = (frame.arcsec * galaxy * shape[..., 2]) ** 2
    spread = extent[..., None] * variance
    spread = spread[..., None] * profiles.ellipse(galaxy[..., None] * shape[..., 3:5])[..., None, :]
    resolution = (frame.model_sigma**2)[..., None] * psf_error(frame.is_point[..., None] * shape[..., 2:5])
    return Mixture(amplitude[..., None, :], spread + resolution[..., None, :], shape[..., :2])


def psf_error(moments: tf.Tensor) -> tf.Tensor:
    """[..., 3] (yy, yx, xx): the variance of a point's PSF over the model's, from how far its second moments are off.

    moments: [..., 3] log of the area and two ellipticities; all 0 for a PSF that is as given.
    """
    stretch = moments[..., 1:]
    ellipticity = stretch / tf.sqrt(4 + tf.reduce_sum(stretch**2, -1, keepdims=True))
    return tf.exp(moments[..., :1]) * profiles.ellipse(ellipticity)


def bounded(error: tf.Tensor) -> tf.Tensor:
    """An error in units of its deviation, which is at most WORST_PSF."""
    return WORST_PSF * tf.tanh(error / WORST_PSF)


class Component(NamedTuple):
    """One component of a source: its share of the flux in each band [..., C or 1], half-light radius in arcsec [...]
    (of the circle of equal area), ellipticity [..., 2], and Sersic index [...] unless its profile is fixed."""

    fraction: tf.Tensor
    radius: tf.Tensor
    ellipticity: tf.Tensor
    sersic_index: tf.Tensor | None = None


class Anatomy(NamedTuple):
    """D components of a source. shape: [..., D, 5 or 6] centre (y, x) in stamp pixels, half-light radius in arcsec, e1,
    e2, and the index where it is free; of points in place of radius and ellipticity the moments of `psf_error`. share:
    [..., D, C] of the flux in each band."""

    shape: tf.Tensor
    share: tf.Tensor


class Prior(abc.ABC):
    """Named parameters with bijectors from N(0, 1).

    Args:
      dtype: of latents and images.
    """

    def __init__(self, dtype: tf.DType = tf.float32):
        self.dtype = dtype
        self.parts: dict[str, tuple[int, tfb.Bijector]] = self.parameters()

    @abc.abstractmethod
    def parameters(self) -> dict[str, tuple[int, tfb.Bijector]]:
        """Give name -> (size, bijector) of every parameter."""

    @property
    def size(self) -> int:
        """S, the number of latents of a source."""
        return sum(size for size, _ in self.parts.values())

    @cached_property
    def distribution(self) -> tfd.JointDistribution:
        """The prior of one source's parameters, to sample from and to evaluate."""
        standard = tfd.Normal(tf.constant(0, self.dtype), tf.constant(1, self.dtype))
        return tfd.JointDistributionNamed(
            {
                name: tfd.TransformedDistribution(tfd.Sample(standard, size), bijector)
                for name, (size, bijector) in self.parts.items()
            }
        )

    def unpack(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        """Latents [..., S] -> parameters, each [..., size]."""
        pieces = tf.split(latent, [size for size, _ in self.parts.values()], axis=-1)
        return {name: bijector.forward(z) for (name, (_, bijector)), z in zip(self.parts.items(), pieces, strict=True)}

    def pack(self, theta: dict[str, tf.Tensor]) -> tf.Tensor:
        """Parameters, each [..., size] -> latents [..., S]; the inverse of `unpack`."""
        return tf.concat([bijector.inverse(theta[name]) for name, (_, bijector) in self.parts.items()], -1)

    def _lognormal(self, median: float, sigma: float) -> tfb.Bijector:
        """N(0, 1) -> log-normal: median, and scatter in natural log."""
        shift, scale = tf.constant(np.log(median), self.dtype), tf.constant(sigma, self.dtype)
        return tfb.Chain([tfb.Exp(), tfb.Shift(shift), tfb.Scale(scale)])

    def _between(self, low: float, high: float, median: float, sigma: float) -> tfb.Bijector:
        """N(0, 1) -> (low, high) through a logistic curve: median, and scatter in logit."""
        shift, scale = tf.constant(np.log((median - low) / (high - median)), self.dtype), tf.constant(sigma, self.dtype)
        return tfb.Chain(
            [
                tfb.Shift(tf.constant(low, self.dtype)),
                tfb.Scale(tf.constant(high - low, self.dtype)),
                tfb.Sigmoid(),
                tfb.Shift(shift),
                tfb.Scale(scale),
            ]
        )


class GalaxyPrior(Prior):
    """A galaxy model: named parameters with bijectors from N(0, 1), and the components that they describe.

    Args:
      bands: C, the number of bands.
      position_sigma: expected error of the given positions, in pixels.
      dtype: of latents and images.
      psf_error: how far PSFs may be off, in units of what the constants above say; at 0 a point is exactly the PSF.
    """

    name: str
    tables: tuple[np.ndarray | None, ...]  # of `profiles`, for each component; None: a Sersic profile of free index

    def __init__(self, bands: int, position_sigma: float = 0.5, dtype: tf.DType = tf.float32, psf_error: float = 1.0):
        self.bands, self.psf_error = bands, psf_error
        super().__init__(dtype)
        reach, unit = (tf.constant(value, dtype) for value in (FARTHEST * position_sigma, 1 / FARTHEST))
        offset = tfb.Chain([tfb.Scale(reach), Disc(), tfb.Scale(unit)])
        self.parts = {"offset": (2, offset)} | self.parts

    @abc.abstractmethod
    def parameters(self) -> dict[str, tuple[int, tfb.Bijector]]:
        """Give name -> (size, bijector) of every parameter but `offset`, the shift (y, x) from the given position."""

    @abc.abstractmethod
    def components(self, theta: dict[str, tf.Tensor]) -> list[Component]:
        """What the parameters describe. The fractions sum to 1 in every band."""

    def start(self, radius: tf.Tensor, ellipticity: tf.Tensor) -> tf.Tensor:
        """Latents [..., S] of a rough size [...] in arcsec and ellipticity [..., 2]; at most two sigma from 0."""
        theta = self.unpack(tf.zeros([*radius.shape, self.size], self.dtype))
        length = tf.norm(ellipticity, axis=-1, keepdims=True)
        ellipticity *= tf.minimum(0.9 * THINNEST / tf.maximum(length, 1e-6), 1)
        theta |= {name: radius[..., None] for name in theta if name in ("radius", "disk_radius")}
        theta |= {name: ellipticity for name in theta if name in ("ellipticity", "disk_ellipticity")}
        return tf.clip_by_value(self.pack(theta), -2, 2)

    def anatomy(self, latent: tf.Tensor, frame: Frame) -> Anatomy:
        """The D components that latents [..., S] describe."""
        galaxy = 1 - frame.is_point[..., None]
        theta = self.unpack(tf.concat([latent[..., :2], galaxy * latent[..., 2:]], -1))  # others are errors of the PSF
        center = frame.center + theta["offset"]
        point, shapes, shares = galaxy == 0, [], []
        for part, (moments, share) in zip(self.components(theta), self.point(latent), strict=True):
            index = [] if part.sersic_index is None else [part.sersic_index[..., None]]
            extent = tf.where(point, moments, tf.concat([part.radius[..., None], part.ellipticity], -1))
            shapes.append(tf.concat([center, extent, *index], -1))
            shares.append(tf.where(point, share, part.fraction * tf.ones([self.bands], self.dtype)))
        return Anatomy(tf.stack(shapes, -2), tf.stack(shares, -2))

    def point(self, latent: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Moments [..., 3] of `psf_error` and share of the flux [..., C] of each component of a point.

        A PSF is known to some percent. The latents of a galaxy's size and shape are a point's errors of the PSF, which
        its neighbours would mend without them.
        """
        moments = self.psf_error * PSF_VARIANCE * bounded(latent[..., 2:5])
        return [(moments, tf.ones_like(latent[..., :1]) * tf.ones([self.bands], self.dtype))]

    def mixture(self, latent: tf.Tensor, frame: Frame) -> Mixture:
        """The unit-flux sources of latents [..., S], ready to render; one band where all are alike."""
        shape, share = self.anatomy(latent, frame)
        each = zip(tf.unstack(shape, axis=-2), self.tables, strict=True)
        parts = [draw(one, frame, table) for one, table in each]
        share = tf.unstack(share if len(parts) > 1 else share[..., :1], axis=-2)  # D times [..., C or 1]
        amplitude = [own[..., None] * part.amplitude for own, part in zip(share, parts, strict=True)]
        covariance = [part.covariance for part in parts]
        return Mixture(tf.concat(amplitude, -1), tf.concat(covariance, -2), parts[0].center)

    def summary(self, latent: tf.Tensor, frame: Frame) -> tf.Tensor:
        """[..., 5]: (y, x) relative to stamp pixel P // 2 and half-light radius, in pixels, and e1, e2; model PSF taken
        off.

        The radius is that of the circle which holds half of the light after averaging over bands, and over angles at
        equal area.
        """
        mixture = self.mixture(latent, frame._replace(model_sigma=tf.zeros_like(frame.model_sigma)))
        share = tf.reduce_mean(mixture.amplitude, -2)
        yy, yx, xx = tf.unstack(mixture.covariance, axis=-1)
        area = tf.sqrt(tf.maximum(yy * xx - yx**2, 1e-12))
        radius = profiles.half_light_radius(share, area)
        moments = tf.reduce_sum(share[..., None] * mixture.covariance, -2)
        yy, yx, xx = tf.unstack(moments, axis=-1)
        size = yy + xx + 2 * tf.sqrt(tf.maximum(yy * xx - yx**2, 1e-12))
        shape = tf.stack([radius, (xx - yy) / size, 2 * yx / size], -1)
        return tf.concat([mixture.center, shape], -1)

    def _ellipticity(self, sigma: float) -> tfb.Bijector:
        """N(0, 1)^2 -> ellipticities up to THINNEST, about `sigma` a component."""
        reach, unit = (tf.constant(value, self.dtype) for value in (THINNEST, sigma / THINNEST))
        return tfb.Chain([tfb.Scale(reach), Disc(), tfb.Scale(unit)])


class ExponentialPrior(GalaxyPrior):
    """Takes galaxies for disks of Sersic index 1, with one shape in all bands."""

    name = "exponential"
    tables = (profiles.EXPONENTIAL,)

    def parameters(self):
        return {"radius": (1, self._lognormal(0.4, 0.7)), "ellipticity": (2, self._ellipticity(0.35))}

    def components(self, theta):
        radius = theta["radius"][..., 0]
        return [Component(tf.ones_like(radius)[..., None], radius, theta["ellipticity"])]


class SersicPrior(GalaxyPrior):
    """Takes galaxies for Sersic profiles, 0.5 < n < 6.2, with one shape in all bands."""

    name = "sersic"
    tables = (None,)

    def parameters(self):
        return {
            "radius": (1, self._lognormal(0.4, 0.7)),
            "ellipticity": (2, self._ellipticity(0.35)),
            "index": (1, self._between(*profiles.SERSIC_INDEX_RANGE, median=1.2, sigma=0.9)),
        }

    def components(self, theta):
        radius = theta["radius"][..., 0]
        return [Component(tf.ones_like(radius)[..., None], radius, theta["ellipticity"], theta["index"][..., 0])]


class BulgeDiskPrior(GalaxyPrior):
    """Takes galaxies for a de Vaucouleurs bulge (n = 4) and an exponential disk around one centre.

    Each has its own radius, shape and colours.

    `fraction` is the bulge's share of the flux when bands are alike, `tilt` each band's departure from it in logit.
    """

    name = "bulge-disk"
    tables = (profiles.EXPONENTIAL, profiles.DE_VAUCOULEURS)

    def parameters(self):
        return {
            "disk_radius": (1, self._lognormal(0.45, 0.6)),
            "disk_ellipticity": (2, self._ellipticity(0.35)),
            "bulge_ratio": (1, self._lognormal(0.4, 0.4)),
            "bulge_ellipticity": (2, self._ellipticity(0.2)),
            "fraction": (1, self._between(0.0, 1.0, median=0.15, sigma=1.3)),
            "tilt": (self.bands, tfb.Scale(tf.constant(0.5, self.dtype))),
        }

    def point(self, latent):
        ((moments, share),) = super().point(latent)
        common, own = latent[..., -self.bands - 1 : -self.bands], latent[..., -self.bands :]  # of fraction and tilt
        wings = self.psf_error * PSF_WINGS * bounded((common + own) / np.sqrt(2))
        wide = tf.zeros_like(moments) + tf.constant([np.log(WING_VARIANCE), 0, 0], self.dtype)
        return [(moments, share - wings), (wide, wings)]

    def components(self, theta):
        radius = theta["disk_radius"][..., 0]
        fraction = tf.sigmoid(tf.math.log(theta["fraction"]) - tf.math.log1p(-theta["fraction"]) + theta["tilt"])
        return [
            Component(1 - fraction, radius, theta["disk_ellipticity"]),
            Component(fraction, radius * theta["bulge_ratio"][..., 0], theta["bulge_ellipticity"]),
        ]


PRIORS: dict[str, type[GalaxyPrior]] = {kind.name: kind for kind in (ExponentialPrior, SersicPrior, BulgeDiskPrior)}
