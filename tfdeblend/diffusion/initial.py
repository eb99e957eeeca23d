"""A batch of blends as a learned prior sees it, seeded by a closed-form fit: A, y, and what the prior does not know.

From the seed come where the stamps lie at first, the flux scales, the stars, and galaxies larger than the prior's
stamps. These stay near the seed, within `SeedOptions.large` inside the stamps, exactly beyond them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from tfdeblend.diffusion.denoisers import Denoiser, flux_scale
from tfdeblend.diffusion.linear_gaussian import Blend, Covariance, Spread, Unknowns
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.operators import Place
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference.map_fit import MapResult
from tfdeblend.linalg.operator import LinearOperator

# A galaxy is larger than the prior's stamps where more than this share of its light lies beyond them, and that light's
# norm is more than so many times the noise: the first fit's wings of a faint galaxy say nothing.
LARGE_SHARE, LARGE_NORM = 0.05, 3.0


@dataclass(frozen=True)
class SeedOptions:
    """How far from the seed what the prior does not know may be.

    least_norm: of a galaxy, in units of the noise, below which its scale is not the seed's; above 0, galaxies to which
    the seed gave no light are known to the prior, too.

    fit_background: whether a background is fitted. background: its standard deviation, in units of a pixel's noise.
    point: that of a star's fluxes, in units of the brightest over its noise. large: of the pixels of a galaxy larger
    than the prior's stamps, in units of their own; amplitude: of its flux in each band, likewise.
    """

    fit_background: bool = False
    least_norm: float = 0.0
    background: float = 1.0
    point: float = 0.3
    large: float = 0.1
    amplitude: float = 0.1


class Seed(NamedTuple):
    """What is taken over of a closed-form fit, in whitened units: stamps [B, K, C, Q, Q], flux [B, K, C] with what lies
    beyond them, background [B, C], offset [B, K, 2] of the sources from their stamps' middle and its covariance."""

    stamps: tf.Tensor
    flux: tf.Tensor
    background: tf.Tensor
    offset: tf.Tensor
    offset_covariance: tf.Tensor

    @classmethod
    def of(cls, fit: MapResult) -> Seed:
        covariance = tf.cast(fit.summary_covariance[..., :2, :2], fit.stamps.dtype)
        return cls(fit.stamps, fit.state.flux, fit.state.background, fit.summary[..., :2], covariance)

    def first(self, sources: int) -> Seed:
        """Of the first `sources` of each blend, where the others are padding."""
        per_source = ("stamps", "flux", "offset", "offset_covariance")
        return self._replace(**{name: getattr(self, name)[:, :sources] for name in per_source})


class SeededBlends:
    """A, y and the Gaussian parts of B blends, K sources each, at unit scale.

    Args:
      tensors, shape: of the batch. side: P, of the prior's stamps, at most the seed's.
      shift: [B, K, 2] pixels by which the seed's positions are taken to be wrong.
      kind: of the likelihood, which is made of the tensors and the shape.

    Attributes:
      galaxy: [B, K, 1, 1, 1] 1 for what the prior knows. large: likewise, what it does not. scale: [B, K, C, 1, 1] from
      unit scale to flux. blend: A. data: y [B, n], whitened, less what lies beyond the stamps. start: the seed.
      norm: [B, K] of the seeds in units of the noise, their signal-to-noise if all were seen.
    """

    def __init__(
        self,
        tensors: dict[str, tf.Tensor],
        shape: BatchShape,
        seed: Seed,
        side: int,
        options: SeedOptions,
        shift: tf.Tensor | float = 0.0,
        kind: type[Likelihood] = Likelihood,
    ):
        galaxy = (tensors["is_source"] * (1 - tensors["is_point"]))[:, :, None, None, None]
        star = (tensors["is_source"] * tensors["is_point"])[:, :, None, None, None]
        self.tensors, self.seed, self.shape, self.side = tensors, seed, shape, side
        self.begin = window(seed.offset + shift, shape.stamp, side)
        self.cut = Window(self.begin, side, shape.stamp)
        inside = self.cut.transpose(seed.stamps) * (galaxy + star)
        unit = tensors["band_unit"][:, None, :, None, None]
        scale = tf.maximum(flux_scale(inside / unit)[:, :, None, None, None], options.least_norm)
        self.scale = unit * tf.where(scale > 0, scale, tf.ones_like(scale))
        self.norm = tf.maximum(tf.sqrt(tf.reduce_sum(inside**2, [2, 3, 4])), options.least_norm)

        self.likelihood = likelihood = kind(tensors, shape)
        self.wings = seed.stamps - self.cut.forward(inside)  # beyond the prior's stamps, the seed's light stays
        ones, none = tf.ones_like(seed.flux), tf.zeros_like(seed.background)
        self.data = likelihood.data(likelihood.render(self.wings, ones, none))

        bright = tf.reduce_sum(inside, [2, 3, 4], keepdims=True) > 0
        self.large = self._beyond(galaxy, inside, seed.flux)
        if options.least_norm == 0:
            self.large = tf.where(bright, self.large, galaxy)
        self.galaxy = galaxy - self.large
        lit = inside if options.least_norm == 0 else inside * tf.cast(bright, inside.dtype)
        self.start = Unknowns(lit / self.scale, seed.background)
        self._known = (star + self.large) * self.start.stamps
        self._wide = self.large * (options.large * self.start.stamps) ** 2
        flux = tf.reduce_sum(inside, [3, 4], keepdims=True)
        profile = inside / tf.where(tf.abs(flux) > 0, flux, tf.ones_like(flux)) / self.scale
        deviation = options.point * star * profile * tf.reduce_max(tf.abs(flux), 2, keepdims=True)
        self._amplitude = deviation + options.amplitude * self.large * self.start.stamps
        variance = options.background**2 * float(options.fit_background)
        self._background = variance * tf.ones_like(seed.background)
        self.blend = Blend(self._place(self.begin), likelihood.views, self.scale, self._amplitude, self._background)

    def _place(self, begin: tf.Tensor) -> Place:
        return Place(self.tensors["corners"] + begin, self.side, self.shape.frame)

    def at(self, begin: tf.Tensor) -> SeededBlends:
        """With galaxies' stamps beginning elsewhere. What the prior does not know stays in place, as do the wings: of
        stamps as they lay at first, they are too faint to matter a pixel or two further."""
        moved = copy.copy(self)
        moved.begin, moved.cut = begin, Window(begin, self.side, self.shape.stamp)
        moved.blend = self.blend.at(self._place(begin))
        return moved

    def reachable(self, begin: tf.Tensor) -> tf.Tensor:
        """[B, K, 2]: the nearest beginnings that galaxies' stamps may have; others' are what they are."""
        known = self.galaxy[:, :, 0, 0] > 0
        return tf.where(known, tf.clip_by_value(begin, 0, self.shape.stamp - self.side), self.begin)

    def stray(self, begin: tf.Tensor) -> tf.Tensor:
        """[B, K, 2] pixels by which the middle of stamps that begin there is off the seed's position."""
        return tf.cast(begin - (self.shape.stamp // 2 - self.side // 2), self.seed.offset.dtype) - self.seed.offset

    def mean(self, denoised: tf.Tensor) -> Unknowns:
        """D of all unknowns, from that of the galaxies [B, K, C, P, P]."""
        return Unknowns(tf.where(self.galaxy > 0, denoised, self._known), self.seed.background)

    def spread(self, covariance: Covariance) -> Spread:
        """V of all unknowns, from that of the galaxies."""
        return Spread(covariance, self.galaxy, self._wide, self._amplitude, self._background)

    def stamps(self, unknowns: Unknowns) -> tf.Tensor:
        """[B, K, C, Q, Q] in flux, of the seed's side, light beyond the prior's stamps included."""
        return self.cut.forward(self.scale * unknowns.stamps) + self.wings

    def flux(self, stamps: tf.Tensor) -> tf.Tensor:
        """[B, K, C] of what `stamps` gives, with the seed's light beyond them."""
        outside = self.seed.flux - tf.reduce_sum(self.seed.stamps, [3, 4])
        return (tf.reduce_sum(stamps, [3, 4]) + outside) * self.tensors["is_source"][..., None]

    def sources(self, stamps: tf.Tensor) -> tf.Tensor:
        """[B, K, C, S, S] each source as observed; of a joint likelihood a tuple, one an exposure."""
        each = self.likelihood.render_each(stamps[:, :, None])
        return tf.nest.map_structure(lambda images: tf.transpose(images, [0, 2, 1, 3, 4]), each)

    def _beyond(self, galaxy: tf.Tensor, inside: tf.Tensor, flux: tf.Tensor) -> tf.Tensor:
        """[B, K, 1, 1, 1]: galaxies larger than the prior's stamps."""
        inner, whole = tf.reduce_sum(inside, [3, 4]), flux
        beyond = tf.reduce_sum(tf.abs(inner), 2) < (1 - LARGE_SHARE) * tf.reduce_sum(tf.abs(whole), 2)
        beyond &= tf.reduce_sum(self.wings**2, [2, 3, 4]) > LARGE_NORM**2
        return galaxy * tf.cast(beyond, galaxy.dtype)[:, :, None, None, None]


def check_fits(shape: BatchShape, denoiser: Denoiser) -> None:
    """Raises: ValueError where the batch is not what the denoiser's stamps are for."""
    bands, side, _ = denoiser.stamp_shape
    expected = bands, denoiser.model_sigma
    if (shape.bands, shape.model_sigma) != expected or shape.stamp < side + 2:
        raise ValueError(f"expected bands, model PSF {expected} and larger stamps, received {shape}")


def window(offset: tf.Tensor, larger: int, side: int) -> tf.Tensor:
    """[B, K, 2] integer: where in the seed's stamp the prior's begins, whose middle is the pixel of the source.

    offset: [B, K, 2] of the source from the seed's stamp's middle.
    """
    moved = tf.cast(tf.floor(offset + 0.5), tf.int32)
    return tf.clip_by_value(larger // 2 - side // 2 + moved, 0, larger - side)


class Window(LinearOperator):
    """Stamps [B, K, C, P, P] into larger ones [B, K, C, Q, Q], zero elsewhere; its adjoint cuts them out.

    Args:
      begin: [B, K, 2] integer. side: P. larger: Q.
    """

    def __init__(self, begin: tf.Tensor, side: int, larger: int):
        self.place = Place(tf.reshape(begin, [-1, 1, 2]), side, larger)

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        placed = self.place.forward(tf.reshape(x, [-1, 1, *x.shape[2:]]))
        return tf.reshape(placed, [*x.shape[:3], *placed.shape[2:]])

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        taken = self.place.transpose(tf.reshape(y, [-1, *y.shape[2:]]))
        return tf.reshape(taken, [*y.shape[:3], *taken.shape[3:]])
