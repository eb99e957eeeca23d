"""A batch of blends as a learned prior sees it, about an initial fit: A, y, and what the prior does not know.

From the closed-form initial fit come where the stamps lie at first, the flux scales, the stars, and galaxies larger
than the prior's stamps. These stay near the fit, within `LARGE_PIXELS` inside the stamps, exactly beyond them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from tfdeblend.diffusion import adapter
from tfdeblend.diffusion.denoisers import PriorDenoiser, flux_scale
from tfdeblend.diffusion.linear_gaussian import Covariance, ForwardOperator, SourceCovariance
from tfdeblend.forward.operators import Place
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.linalg.operator import LinearOperator

if TYPE_CHECKING:
    from tfdeblend.inference.map_fit import MapResult

# A galaxy is larger than the prior's stamps where more than this share of its light lies beyond them, and that light's
# norm is more than so many times the noise: the initial fit's wings of a faint galaxy say nothing.
LARGE_SHARE, LARGE_NORM = 0.05, 3.0
POINT_FLUX = 0.3  # standard deviation of a star's flux in a band, in units of its brightest band's
LARGE_PIXELS, LARGE_FLUX = 0.1, 0.1  # of a large galaxy's pixels, in units of their own, and of its flux in a band


class InitialFit(NamedTuple):
    """What is taken over of a closed-form fit, in whitened units.

    stamps: [B, K, C, Q, Q]. flux: [B, K, C], with the light beyond the stamps. offset: [B, K, 2] of the sources from
    their stamps' middle. offset_covariance: [B, K, 2, 2] of its errors.
    """

    stamps: tf.Tensor
    flux: tf.Tensor
    offset: tf.Tensor
    offset_covariance: tf.Tensor

    @classmethod
    def of(cls, fit: MapResult) -> InitialFit:
        """Takes it over from the MAP."""
        covariance = tf.cast(fit.summary_covariance[..., :2, :2], fit.stamps.dtype)
        return cls(fit.stamps, fit.state.flux, fit.summary[..., :2], covariance)

    def first(self, sources: int) -> InitialFit:
        """Keeps the first `sources` of each blend, where the others are padding."""
        return InitialFit(*(part[:, :sources] for part in self))


class BlendProblem:
    """A, y and the Gaussian parts of B blends, K sources each, at unit scale.

    Args:
      tensors, shape: of the batch. side: P, of the prior's stamps, at most the fit's.
      least_norm: of a galaxy, in units of the noise, below which its scale is not the fit's; above 0, galaxies to which
        the fit gave no light are known to the prior, too.
      shift: [B, K, 2] pixels by which the fit's positions are taken to be wrong.

    Attributes:
      galaxy: [B, K, 1, 1, 1] 1 for what the prior knows. large: likewise, what it does not. scale: [B, K, C, 1, 1] from
      unit scale to flux. operator: A. data: y [B, n], whitened, less what lies beyond the stamps. start: [B, K, C, P,
      P] the initial fit. norm: [B, K] of the fitted sources in units of the noise, their signal-to-noise if all were
      seen.
    """

    def __init__(
        self,
        tensors: dict[str, tf.Tensor],
        shape: BatchShape,
        fit: InitialFit,
        side: int,
        least_norm: float = 0.0,
        shift: tf.Tensor | float = 0.0,
    ):
        galaxy = (tensors["is_source"] * (1 - tensors["is_point"]))[:, :, None, None, None]
        star = (tensors["is_source"] * tensors["is_point"])[:, :, None, None, None]
        self.tensors, self.fit, self.shape, self.side = tensors, fit, shape, side
        self.begin = stamp_begin(fit.offset + shift, shape.stamp, side)
        self.cut = StampWindow(self.begin, side, shape.stamp)
        inside = self.cut.transpose(fit.stamps) * (galaxy + star)
        unit = tensors["band_unit"][:, None, :, None, None]
        scale = tf.maximum(flux_scale(inside / unit)[:, :, None, None, None], least_norm)
        self.scale = unit * tf.where(scale > 0, scale, tf.ones_like(scale))
        self.norm = tf.maximum(tf.sqrt(tf.reduce_sum(inside**2, [2, 3, 4])), least_norm)

        self.likelihood = adapter.likelihood(tensors, shape)
        self.wings = fit.stamps - self.cut.forward(inside)  # beyond the prior's stamps, the fit's light stays
        self.data = self.likelihood.data(self.likelihood.render(self.wings, tf.ones_like(fit.flux)))

        bright = tf.reduce_sum(inside, [2, 3, 4], keepdims=True) > 0
        self.large = self._beyond(galaxy, inside, fit.flux)
        if least_norm == 0:
            self.large = tf.where(bright, self.large, galaxy)
        self.galaxy = galaxy - self.large
        lit = inside if least_norm == 0 else inside * tf.cast(bright, inside.dtype)
        self.start = lit / self.scale
        self._known = (star + self.large) * self.start
        self._pixels = self.large * (LARGE_PIXELS * self.start) ** 2
        flux = tf.reduce_sum(inside, [3, 4], keepdims=True)
        profile = inside / tf.where(tf.abs(flux) > 0, flux, tf.ones_like(flux)) / self.scale
        deviation = POINT_FLUX * star * profile * tf.reduce_max(tf.abs(flux), 2, keepdims=True)
        self._amplitude = deviation + LARGE_FLUX * self.large * self.start
        place = self._place(self.begin)
        self.operator = ForwardOperator(place, self.likelihood.exposures, self.scale, self._amplitude)

    def _place(self, begin: tf.Tensor) -> Place:
        return Place(self.tensors["corners"] + begin, self.side, self.shape.frame)

    def at(self, begin: tf.Tensor) -> BlendProblem:
        """Gives the problem with galaxies' stamps that begin elsewhere.

        What the prior does not know stays in place, as do the wings: of stamps as they lay at first, they are too faint
        to matter a pixel or two further.
        """
        moved = copy.copy(self)
        moved.begin, moved.cut = begin, StampWindow(begin, self.side, self.shape.stamp)
        moved.operator = self.operator.at(self._place(begin))
        return moved

    def clipped_begin(self, begin: tf.Tensor) -> tf.Tensor:
        """Gives the nearest pixels [B, K, 2] where galaxies' stamps may begin; other sources' stay."""
        known = self.galaxy[:, :, 0, 0] > 0
        return tf.where(known, tf.clip_by_value(begin, 0, self.shape.stamp - self.side), self.begin)

    def offset_from_fit(self, begin: tf.Tensor) -> tf.Tensor:
        """Gives how far the middle of stamps that begin there is from the fit's position, in pixels [B, K, 2]."""
        return tf.cast(begin - (self.shape.stamp // 2 - self.side // 2), self.fit.offset.dtype) - self.fit.offset

    def mean(self, denoised: tf.Tensor) -> tf.Tensor:
        """Extends D of the galaxies [B, K, C, P, P] to all sources."""
        return tf.where(self.galaxy > 0, denoised, self._known)

    def covariance(self, galaxies: Covariance) -> SourceCovariance:
        """Extends V of the galaxies to all sources."""
        return SourceCovariance(galaxies, self.galaxy, self._pixels, self._amplitude)

    def stamps(self, x: tf.Tensor) -> tf.Tensor:
        """Gives stamps of the fit's side in flux [B, K, C, Q, Q], light beyond the prior's stamps included."""
        return self.cut.forward(self.scale * x) + self.wings

    def flux(self, stamps: tf.Tensor) -> tf.Tensor:
        """Gives the flux [B, K, C] of what `stamps` gives, with the fit's light beyond them."""
        outside = self.fit.flux - tf.reduce_sum(self.fit.stamps, [3, 4])
        return (tf.reduce_sum(stamps, [3, 4]) + outside) * self.tensors["is_source"][..., None]

    def sources(self, stamps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Shows each source as each exposure observes it: [B, K, C_e, S_e, S_e]."""
        each = self.likelihood.render_each(stamps[:, :, None])
        return tuple(tf.transpose(images, [0, 2, 1, 3, 4]) for images in each)

    def _beyond(self, galaxy: tf.Tensor, inside: tf.Tensor, flux: tf.Tensor) -> tf.Tensor:
        """Marks galaxies larger than the prior's stamps, [B, K, 1, 1, 1]."""
        inner, whole = tf.reduce_sum(inside, [3, 4]), flux
        beyond = tf.reduce_sum(tf.abs(inner), 2) < (1 - LARGE_SHARE) * tf.reduce_sum(tf.abs(whole), 2)
        beyond &= tf.reduce_sum(self.wings**2, [2, 3, 4]) > LARGE_NORM**2
        return galaxy * tf.cast(beyond, galaxy.dtype)[:, :, None, None, None]


def check_fits(shape: BatchShape, denoiser: PriorDenoiser) -> None:
    """Raises: ValueError where the batch is not what the denoiser's stamps are for."""
    bands, side, _ = denoiser.stamp_shape
    expected = bands, denoiser.model_sigma
    if (shape.bands, shape.model_sigma) != expected or shape.stamp < side + 2:
        raise ValueError(f"expected bands, model PSF {expected} and larger stamps, received {shape}")


def stamp_begin(offset: tf.Tensor, larger: int, side: int) -> tf.Tensor:
    """Gives where in the fit's stamp the prior's begins [B, K, 2] integer, whose middle is the pixel of the source.

    offset: [B, K, 2] of the source from the middle of the fit's stamp.
    """
    nearest = tf.cast(tf.floor(offset + 0.5), tf.int32)
    return tf.clip_by_value(larger // 2 - side // 2 + nearest, 0, larger - side)


class StampWindow(LinearOperator):
    """Puts stamps [B, K, C, P, P] into larger ones [B, K, C, Q, Q], zero elsewhere; its adjoint cuts them out.

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
