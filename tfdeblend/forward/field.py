"""Several observations of one field, and their tensors: the model frame is that of the first, on its pixels.

Every exposure keeps its own pixels, PSF, depth, mask, bands and noise; a band is one band in all of them. What of an
exposure lies outside of the first one's image is masked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.noise_correlation import reach_of, whitening, whitening_transfer
from tfdeblend.data.observation import Observation
from tfdeblend.data.photometry import band_scales
from tfdeblend.data.psf import LARGEST_GAIN, MODEL_SIGMA, NARROWEST_MODEL_SIGMA, gaussian_psf, pixels_per_arcsec
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.forward.resample import Resample, Shifted, kept_frequencies, resampled_transfer
from tfdeblend.forward.shapes import IMAGE_SIDES, SOURCE_COUNTS, fast_fourier_size, fit_size

ALIGNED = 1e-3  # pixels over an image by which an aligned one's may stray
FINER = 1.02  # ratio of pixel scales that counts as equal
UNNAMED = re.compile(r"band\d+")  # what a band without a name is called
WITHOUT_WCS = "expected a WCS to join observations by, received none"


class ExposureShape(NamedTuple):
    """bands: its bands, by their number among all. side: of the padded image. kept: L, see `Resample`. reach: pixels
    over which its noise is correlated. aligned: whether its pixels are the model's, but for a shift."""

    bands: tuple[int, ...]
    side: int
    kept: int
    reach: int
    aligned: bool

    def resample(
        self, kernel: tf.Tensor, points: tf.Tensor, fourier: int, frame: int, step: int = 1
    ) -> Resample | Shifted:
        """The operator from frames to this exposure's pixels, or every `step`-th of them, at `points`."""
        if self.aligned:
            return Shifted(kernel, points, fourier, frame, step)
        return Resample(kernel, points, fourier, frame)


class JointShape(NamedTuple):
    """What a compiled graph of joint fits is fixed to; see `BatchShape`. bands: C, of all exposures together."""

    blends: int
    sources: int
    bands: int
    frame: int
    margin: int
    fourier: int
    stamp: int
    model_sigma: float
    exposures: tuple[ExposureShape, ...]
    background: bool = False  # a constant in each band of each exposure

    @property
    def images(self) -> tuple[tuple[int, int], ...]:
        """Bands and side of the images of each exposure."""
        return tuple((len(one.bands), one.side) for one in self.exposures)


@dataclass(frozen=True, eq=False)
class Exposures:
    """E observations of one field and its K sources, which are in pixels of the first, the finest.

    Raises:
        DataError: without a WCS, with finer pixels than the first's, with a PSF that no model PSF is narrower than, or
            with zero points of some alone.
    """

    scene: Scene
    others: tuple[Observation, ...]

    def __post_init__(self) -> None:
        first = self.scene.observation
        names = [one.name for one in self.observations]
        if len({name.encode("ascii", "replace").upper() for name in names}) < len(names):  # as FITS extensions
            raise DataError(first.name, "name", f"expected a name for each observation, received {', '.join(names)}")
        for number, one in enumerate(self.others):
            before = {band for other in self.observations[: number + 1] for band in other.bands}
            unnamed = [band for band in one.bands if UNNAMED.fullmatch(band) and band in before]
            if unnamed:
                expected = "expected names of bands, by which observations are joined"
                raise DataError(one.name, "bands", f"{expected}, received none: {', '.join(unnamed)}")
        for one in self.observations:
            if one.wcs is None:
                raise DataError(one.name, "wcs", WITHOUT_WCS)
            if (one.zeropoints is None) != (first.zeropoints is None):
                raise DataError(one.name, "zeropoints", "expected them of all observations or of none")
        for one, pixels in zip(self.observations, self.maps, strict=True):
            if pixels.area < FINER**-2:
                expected = f"expected pixels no finer than those of {first.name}, which comes first"
                raise DataError(one.name, "wcs", f"{expected}, received {pixels.area**0.5:.3g} of their side")
            if not (one.valid & self.covered(one, pixels)).any():
                raise DataError(
                    one.name, "wcs", f"expected unmasked pixels in the image of {first.name}, received none"
                )

    @property
    def observations(self) -> tuple[Observation, ...]:
        return self.scene.observation, *self.others

    @cached_property
    def maps(self) -> tuple[AffineMap, ...]:
        """From each observation's pixels to the first's."""
        wcs = self.scene.observation.wcs
        return tuple(AffineMap.between(one.name, one.wcs, wcs, one.shape[1:]) for one in self.observations)

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """C, in the order in which they first come."""
        return tuple(dict.fromkeys(band for one in self.observations for band in one.bands))

    @cached_property
    def band_scale(self) -> np.ndarray:
        """(C,) the noise of each band in the first observation that has it."""
        return np.array([band_scales(one)[one.bands.index(band)] for band, one in self._first])

    @cached_property
    def zeropoints(self) -> np.ndarray | None:
        """(C,) of the fluxes."""
        first = [(one.zeropoints, one.bands.index(band)) for band, one in self._first]
        return None if first[0][0] is None else np.array([points[row] for points, row in first if points is not None])

    @cached_property
    def flux_units(self) -> tuple[str | None, ...]:
        """C times: of the fluxes."""
        return tuple(one.unit for _, one in self._first)

    def fitted(self, one: Observation, pixels: AffineMap) -> Observation:
        """An observation with all of it masked that is not fitted."""
        return replace(one, weights=np.where(self.covered(one, pixels), one.weights, 0))

    def covered(self, one: Observation, pixels: AffineMap) -> np.ndarray:
        """(H, W) bool: which of an observation's pixels lie in the image of the first."""
        points, image = pixels.points(one.shape[1:]), np.array(self.scene.observation.shape[1:])
        return np.all((points > -0.5) & (points < image - 0.5), -1)

    def unit(self, observation: Observation) -> np.ndarray:
        """What a flux of 1 is in an observation's unit, in each of its bands."""
        if self.zeropoints is None or observation.zeropoints is None:
            return np.ones(observation.shape[0])
        own = self.zeropoints[[self.bands.index(band) for band in observation.bands]]
        return 10 ** (0.4 * (observation.zeropoints - own))

    def shape(self, stamp: int, background: bool = False, model_sigma: float | None = None) -> JointShape:
        """The bucket of a joint fit. stamp: P. background: whether each band of each has a constant. model_sigma: of
        the model PSF, in the first's pixels; None: `model_sigma`."""
        _, height, width = self.scene.observation.shape
        wide = [
            pixels.area**0.5 * max(one.psf.shape[1:]) / 2
            for one, pixels in zip(self.observations, self.maps, strict=True)
        ]
        side, reach = fit_size(max(height, width), IMAGE_SIDES), 16 * int(np.ceil(max(*wide, 17) / 16))
        margin, sigma = reach // 2, self.model_sigma if model_sigma is None else model_sigma
        fourier = fast_fourier_size(side + 2 * margin + reach)
        return JointShape(
            blends=1,
            sources=fit_size(len(self.scene.sources), SOURCE_COUNTS),
            bands=len(self.bands),
            frame=side + 2 * margin,
            margin=margin,
            fourier=fourier,
            stamp=stamp,
            model_sigma=sigma,
            exposures=tuple(
                ExposureShape(
                    bands=tuple(self.bands.index(band) for band in one.bands),
                    side=fit_size(max(one.shape[1:]), IMAGE_SIDES),
                    kept=min(16 * int(np.ceil(kept_frequencies(pixels, fourier) / 16)), 4 * (fourier // 4)),
                    reach=reach_of(one.noise_correlation),
                    aligned=_aligned(pixels, one.shape[1:], fourier),
                )
                for one, pixels in zip(self.observations, self.maps, strict=True)
            ),
            background=background,
        )

    @cached_property
    def model_sigma(self) -> float:
        """The widest model PSF, in the first's pixels, that is narrower than the PSFs of all."""
        for sigma in np.linspace(MODEL_SIGMA, NARROWEST_MODEL_SIGMA, 8):
            gains = self.gains(sigma)
            if max(gains) <= LARGEST_GAIN:
                return float(sigma)
        worst = self.observations[int(np.argmax(gains))]
        expected = (
            f"expected a PSF wider than a Gaussian of sigma {NARROWEST_MODEL_SIGMA} pixel of the finest observation"
        )
        raise DataError(worst.name, "psf", f"{expected}, received a narrower one (undersampled)")

    def gains(self, sigma: float) -> list[float]:
        """Of each observation: by how much a model PSF of `sigma` pixels of the first amplifies frequencies; up to
        `LARGEST_GAIN` where it is narrower than the observation's PSF."""
        return [self._gain(one, pixels, sigma) for one, pixels in zip(self.observations, self.maps, strict=True)]

    def tensors(self, shape: JointShape) -> dict:
        """What a joint fit takes: as `BlendBatch.tensors`, those of images a tuple, one an exposure."""
        parts = [
            self._arrays(one, pixels, shape, own)
            for one, pixels, own in zip(self.observations, self.maps, shape.exposures, strict=True)
        ]
        images = {name: tuple(tf.constant(part[name][None]) for part in parts) for name in parts[0]}
        arcsec = _float(pixels_per_arcsec(self.scene))
        unit = (
            np.ones(shape.bands) if self.zeropoints is None else 10 ** (0.4 * (self.zeropoints - self.zeropoints.max()))
        )
        unit = unit / self.band_scale  # what one flux in AB is, as in `BlendBatch`
        unit = _float(unit / np.exp(np.mean(np.log(unit))))
        return images | places(self.scene, shape, shape.sources) | {"arcsec": arcsec, "band_unit": unit}

    def chi2(self, models: Sequence[np.ndarray]) -> tuple[float, ...]:
        """Of each observation: sum(weights * residual^2) over the number of pixels that were fitted."""
        chi2 = []
        for one, pixels, model in zip(self.observations, self.maps, models, strict=True):
            seen = one.valid & self.covered(one, pixels)
            chi2.append(float((one.weights * (one.images - model) ** 2)[seen].sum() / max(seen.sum(), 1)))
        return tuple(chi2)

    @property
    def _first(self) -> Sequence[tuple[str, Observation]]:
        """Each band with the first observation that has it."""
        return [(band, next(one for one in self.observations if band in one.bands)) for band in self.bands]

    def _gain(self, one: Observation, pixels: AffineMap, sigma: float) -> float:
        """The largest amplification of a frequency below Nyquist's along any direction."""
        side = 64
        kept = kept_frequencies(pixels, side)
        transfer = np.abs(resampled_transfer(one.psf.astype(float), gaussian_psf(sigma), pixels, side, kept))
        n = np.fft.fftfreq(kept, 1 / kept)
        k = np.stack(np.meshgrid(n, np.arange(kept // 2 + 1), indexing="ij"), -1) @ pixels.matrix / side
        return float((transfer / pixels.area)[:, np.hypot(k[..., 0], k[..., 1]) <= 0.5].max())

    def _arrays(
        self, one: Observation, pixels: AffineMap, shape: JointShape, own: ExposureShape
    ) -> dict[str, np.ndarray]:
        """One exposure's padded arrays, in units of the bands' noise."""
        bands, height, width = one.shape
        unit = (self.band_scale[list(own.bands)] * self.unit(one))[:, None, None]
        points, seen = pixels.points((own.side, own.side)), self.covered(one, pixels)
        images, weights = np.zeros((2, bands, own.side, own.side))
        images[:, :height, :width] = np.where(one.valid & seen, one.images / unit, 0)
        weights[:, :height, :width] = np.where(seen, one.weights * unit**2, 0)
        psf, model_psf = one.psf.astype(float), gaussian_psf(shape.model_sigma)
        kernel = resampled_transfer(psf, model_psf, pixels, shape.fourier, own.kept)
        half = own.kept // 2
        n = 2 * np.pi / shape.fourier * np.fft.fftfreq(half, 1 / half)
        ky, kx = np.moveaxis(
            np.stack(np.meshgrid(n, np.abs(n[: half // 2 + 1]), indexing="ij"), -1) @ pixels.matrix, -1, 0
        )
        low = resampled_transfer(psf, model_psf, pixels, shape.fourier, half)
        low = low * whitening_transfer(one.noise_correlation, own.reach, ky, kx)
        return {
            "images": images.astype(np.float32),
            "weights": weights.astype(np.float32),
            "whitening": whitening(one.noise_correlation, weights > 0, own.reach).astype(np.float32),
            "kernel": kernel.astype(np.complex64),
            "low_kernel": low.astype(np.complex64),
            "points": (points + shape.margin).astype(np.float32),
            "gain": np.ones(bands, np.float32),
        }


def _aligned(pixels: AffineMap, image: tuple[int, ...], fourier: int) -> bool:
    """Whether an observation's pixels are the model's but for a shift, and no more than its Fourier grid holds."""
    stray = np.abs(pixels.matrix - np.eye(2)).max() * max(image)
    return bool(stray < ALIGNED) and fit_size(max(image), IMAGE_SIDES) <= fourier


def finest_first(observations: Sequence[Observation]) -> list[Observation]:
    """The first of those with the finest pixels, to `FINER`, by their WCS, and then the others as they come.

    Raises: DataError for one without a WCS.
    """
    from astropy.wcs.utils import proj_plane_pixel_area

    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
    areas = [proj_plane_pixel_area(one.wcs.celestial) for one in observations]
    finest = next(i for i, area in enumerate(areas) if area <= FINER**2 * min(areas))
    return [observations[finest], *observations[:finest], *observations[finest + 1 :]]


def stamp_corners(scene: Scene, stamp: int) -> np.ndarray:
    """(K, 2) the pixel of the scene's image under the first one, an even one, of each stamp."""
    return (2 * np.floor((np.floor(scene.positions + 0.5) - stamp // 2) / 2)).astype(int)


def places(scene: Scene, shape: JointShape, rows: int) -> dict[str, tf.Tensor]:
    """Where stamps of the scene's sources go, in so many rows: as `BlendBatch.tensors`."""
    first = stamp_corners(scene, shape.stamp)
    padding = ((0, rows - len(first)), (0, 0))
    is_point = [source.kind == "point" for source in scene.sources]
    return {
        "corners": tf.constant(np.pad(first + shape.margin, padding)[None], tf.int32),
        "centers": _float(np.pad(scene.positions - first - shape.stamp // 2, padding)),
        "is_source": _float(np.arange(rows) < len(first)),
        "is_point": _float(np.pad(is_point, padding[0])),
    }


def _float(values: np.ndarray | float) -> tf.Tensor:
    return tf.constant(np.asarray(values, float)[None], tf.float32)
