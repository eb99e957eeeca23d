"""BlendBatch: scenes of any size and any number of sources, padded into a few fixed shapes.

One compiled graph then serves all scenes of a shape. What is padding has weight 0 (pixels), mask 0 (sources) or is
empty (blends), and never changes what is real. Images are whitened on the way in: each band is divided by its typical
noise, so that everything behind is free of the data's units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.correlation import reach_of, whitening, whitening_transfer
from tfdeblend.errors import DataError
from tfdeblend.observation import Observation
from tfdeblend.scene import Scene
from tfdeblend.stamps import COADD_ZEROPOINT

IMAGE_SIDES = (32, 48, 64, 80, 96, 128, 192)
SOURCE_COUNTS = (4, 8, 16, 24, 32)
PER_SOURCE = ("corners", "centers", "is_source", "is_point")  # tensors [B, K, ...] of a batch
MODEL_SIGMA = 1.0  # pixels: the model PSF's sigma, wherever the observed PSFs allow it; wider ones alias less
NARROWEST_MODEL_SIGMA = 0.45  # below, a stamp sampled at whole pixels no longer represents its profile
LARGEST_GAIN = 1.02  # of PSF over model PSF in Fourier space: the sigma that just obeys it has the least aliasing
SMALLEST_REACH = 17  # pixels of frame and padding beside an image, however small its PSF
WINGS = 16  # pixels beside a stamp where the PSF scatters light that the curvature of a fit should see; even
TYPICAL_SEEING = 0.7  # arcsec: the assumed FWHM where no pixel scale is known, only to scale the prior's radii


class BatchShape(NamedTuple):
    """What a compiled graph is fixed to. side, frame, fourier and stamp are numbers of pixels."""

    blends: int
    sources: int
    bands: int
    side: int  # of the images
    margin: int  # of the frame around the image, where light outside of the image is kept that the PSF scatters in
    fourier: int  # of the FFTs
    stamp: int
    model_sigma: float  # pixels
    reach: int = 0  # pixels over which noise is correlated; see `correlation.reach_of`

    @property
    def frame(self) -> int:
        return self.side + 2 * self.margin

    @property
    def images(self) -> tuple[tuple[int, int], ...]:
        """Bands and side of the images of each exposure, of which there is one."""
        return ((self.bands, self.side),)

    @property
    def window(self) -> int:
        """Pixels a side of one stamp seen through the PSF."""
        return self.stamp + 2 * WINGS


@dataclass(frozen=True, eq=False)
class BlendBatch:
    """B blends of at most K sources in C bands. Tensors of the batch's dtype, images in units of `band_scale`."""

    shape: BatchShape
    images: tf.Tensor  # [B, C, S, S]
    weights: tf.Tensor  # [B, C, S, S], 0 = masked or padding
    whitening: tf.Tensor  # [B, C, M, S, S] see `correlation.whitening`; M = 0 for white noise
    kernel: tf.Tensor  # [B, C, N, N // 2 + 1] complex: observed PSF over model PSF
    stamp_kernel: tf.Tensor  # [B, C, W // 2, W // 4 + 1] complex: the same, whitened, for a stamp's window, coarsely
    corners: tf.Tensor  # [B, K, 2] integer, frame pixel of the stamps' first pixel, which is an even one of the image
    centers: tf.Tensor  # [B, K, 2] given position relative to stamp pixel P // 2, between -0.5 and 1.5
    is_source: tf.Tensor  # [B, K] 1 real, 0 padding
    is_point: tf.Tensor  # [B, K] 1 point source, 0 galaxy
    arcsec: tf.Tensor  # [B] pixels in an arcsec
    band_unit: tf.Tensor  # [B, C] what one flux in AB is in each band's whitened units, their geometric mean being 1
    band_scale: np.ndarray  # [B, C] float64: the noise by which each band was divided

    @classmethod
    def build(cls, scenes: Sequence[Scene], shape: BatchShape, dtype: tf.DType = tf.float32) -> BlendBatch:
        """Pads `scenes`, at most `shape.blends` of them, into one batch."""
        rows = [_arrays(scene, shape) for scene in scenes]
        rows += [_empty(shape)] * (shape.blends - len(rows))
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
        kinds = {"kernel": complex_dtype, "stamp_kernel": complex_dtype, "corners": tf.int32}
        tensors = {
            name: tf.constant(value, kinds.get(name, dtype)) for name, value in stacked.items() if name != "band_scale"
        }
        return cls(shape=shape, band_scale=stacked["band_scale"], **tensors)

    def first_pixels(self, row: int) -> np.ndarray:
        """(K, 2) the pixel of the image under the first one of each stamp."""
        return self.corners[row].numpy() - self.shape.margin

    @property
    def tensors(self) -> dict[str, tf.Tensor]:
        """What a compiled graph takes, by name."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("shape", "band_scale")}


def fit_size(number: float, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` that holds `number`; beyond the last, whole multiples of it."""
    for size in sizes:
        if number <= size:
            return size
    return int(np.ceil(number / sizes[-1])) * sizes[-1]


def fast_fourier_size(number: int) -> int:
    """The smallest even product of 2, 3 and 5 that is at least `number`."""
    size = number + number % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def scene_shape(scene: Scene, stamp: int, model_sigma: float | None = None) -> BatchShape:
    """The bucket of a scene, for one blend: sides and counts rounded up to the few that are compiled.

    Args:
      stamp: P. model_sigma: pixels; None: `choose_model_sigma`.

    Raises: DataError for an undersampled PSF.
    """
    bands, height, width = scene.observation.shape
    side = fit_size(max(height, width), IMAGE_SIDES)
    half = min(max(scene.observation.psf.shape[1:]) // 2 + 1, side)
    reach = 16 * int(np.ceil(max(1.45 * half, SMALLEST_REACH) / 16))
    return BatchShape(
        blends=1,
        sources=fit_size(len(scene.sources), SOURCE_COUNTS),
        bands=bands,
        side=side,
        margin=reach * 5 // 16,
        fourier=fast_fourier_size(side + reach),
        stamp=stamp,
        model_sigma=model_sigma or choose_model_sigma(scene),
        reach=reach_of(scene.observation.noise_correlation),
    )


def transfer_function(psf: np.ndarray, model_sigma: float, side: int) -> np.ndarray:
    """F[PSF] / F[model PSF] on a side x side Fourier grid.

    The model PSF is a Gaussian sampled at whole pixels, as stamps are. An even-sided PSF is centred either on the
    corner between its four middle pixels (as GalSim draws it) or on pixel side / 2 (as an FFT shift leaves it): the one
    nearer to its centroid is meant.

    Args:
      psf: (C, h, w), summing to 1. model_sigma: pixels.
    Returns:
      (C, side, side // 2 + 1) complex.
    """
    bands, height, width = psf.shape
    reach = min(side // 2, max(height, width))
    y0, x0 = psf_center(psf)
    rows, columns = (np.arange(n) - int(np.floor(c)) for n, c in ((height, y0), (width, x0)))
    keep_y, keep_x = np.abs(rows) < reach, np.abs(columns) < reach
    padded = np.zeros((bands, side, side))
    padded[:, (rows[keep_y] % side)[:, None], columns[keep_x] % side] = psf[:, keep_y][:, :, keep_x]
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    phase = np.exp(2j * np.pi * (fy * (y0 % 1) + fx * (x0 % 1)))
    t = np.minimum(np.arange(side), side - np.arange(side))
    gauss = np.exp(-0.5 * (t / model_sigma) ** 2)
    model = np.fft.fft(gauss / gauss.sum()).real
    return np.fft.rfft2(padded) * phase / (model[:, None] * model[None, : side // 2 + 1])


def psf_center(psf: np.ndarray) -> tuple[float, float]:
    """(y, x) pixel coordinates of the origin of a PSF (C, h, w)."""
    y, x = (_psf_center(psf.sum(0).sum(1 - axis), psf.shape[1 + axis]) for axis in (0, 1))
    return y, x


def _psf_center(profile: np.ndarray, size: int) -> float:
    """Pixel coordinate of the PSF's origin along one axis, by its size, and for even sizes by its centroid."""
    if size % 2:
        return (size - 1) / 2
    centroid = float(profile @ np.arange(size) / profile.sum())
    return min(((size - 1) / 2, size / 2), key=lambda c: abs(c - centroid))


def psf_fwhm(psf: np.ndarray) -> np.ndarray:
    """(C,) full width at half maximum in pixels: the mean along the brightest pixel's row and column, interpolated."""
    widths = []
    for band in psf:
        row, column = np.unravel_index(np.argmax(band), band.shape)
        widths.append(np.mean([_full_width(band[row]), _full_width(band[:, column])]))
    return np.array(widths)


def _full_width(profile: np.ndarray) -> float:
    fine = np.linspace(0, len(profile) - 1, 50 * len(profile))
    return float((np.interp(fine, np.arange(len(profile)), profile) > 0.5 * profile.max()).mean() * len(profile))


def choose_model_sigma(scene: Scene) -> float:
    """The widest model PSF, up to MODEL_SIGMA, whose transfer functions do not amplify.

    Raises: DataError if even the narrowest does: the observation is undersampled.
    """
    psf = scene.observation.psf
    for sigma in np.linspace(MODEL_SIGMA, NARROWEST_MODEL_SIGMA, 8):
        if np.abs(transfer_function(psf, sigma, 64)).max() <= LARGEST_GAIN:
            return float(sigma)
    widths = ", ".join(f"{width:.2f}" for width in psf_fwhm(psf))
    expected = f"expected a PSF wider than a Gaussian of sigma {NARROWEST_MODEL_SIGMA} pixel"
    raise DataError(scene.name, "psf", f"{expected}, received FWHM {widths} pixels (undersampled)")


def allows_model_sigma(scene: Scene, sigma: float) -> bool:
    """Whether a model PSF of `sigma` pixels is narrower than the scene's PSFs, as far as these tell.

    Only frequencies below Nyquist's along any direction are asked: in the corners beyond, both PSFs are some 1e-4, and
    the noise of a measured one may well be the larger.
    """
    side = 64
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    gain = np.abs(transfer_function(scene.observation.psf, sigma, side))
    return bool(gain[:, radius <= 0.5].max() <= LARGEST_GAIN)


def band_scales(observation: Observation) -> np.ndarray:
    """(C,) each band's typical noise: the median of 1 / sqrt(weights) over its valid pixels.

    Of one that is all masked, the same in AB as the other bands' geometric mean; 1 if all are masked.
    """
    weights, reference = observation.weights.astype(float), reference_flux(observation)
    seen = np.array([bool((band > 0).any()) for band in weights])
    if not seen.any():
        return np.ones(len(weights))
    noise = np.array([np.sqrt(1 / np.median(w[w > 0])) if (w > 0).any() else 1.0 for w in weights])
    typical = np.exp(np.log(noise / reference)[seen].mean())
    return np.where(seen, noise, typical * reference)


def reference_flux(observation: Observation) -> np.ndarray:
    """(C,) of AB magnitude COADD_ZEROPOINT, in the observation's unit; 1 where its zero points are not known."""
    zeropoints = observation.zeropoints
    return np.ones(observation.shape[0]) if zeropoints is None else 10 ** (0.4 * (zeropoints - COADD_ZEROPOINT))


def pixels_per_arcsec(scene: Scene) -> float:
    """From the observation's pixel scale, else from its PSF, taken to be TYPICAL_SEEING wide."""
    scale = scene.observation.pixel_scale
    return 1 / scale if scale else float(np.median(psf_fwhm(scene.observation.psf))) / TYPICAL_SEEING


def _arrays(scene: Scene, shape: BatchShape) -> dict[str, np.ndarray]:
    """One blend's padded arrays, in float64."""
    observation = scene.observation
    bands, height, width = observation.shape
    scale = band_scales(observation)
    correlation, psf = observation.noise_correlation, observation.psf.astype(float)
    fy, fx = np.fft.fftfreq(shape.window)[:, None], np.fft.rfftfreq(shape.window)
    images = np.zeros((bands, shape.side, shape.side))
    weights = np.zeros_like(images)
    weights[:, :height, :width] = observation.weights * scale[:, None, None] ** 2
    images[:, :height, :width] = np.where(observation.valid, observation.images / scale[:, None, None], 0)
    band_unit = reference_flux(observation) / scale
    band_unit /= np.exp(np.mean(np.log(band_unit)))
    positions = np.zeros((shape.sources, 2))
    positions[: len(scene.sources)] = scene.positions
    first = 2 * np.floor((np.floor(positions + 0.5) - shape.stamp // 2) / 2)
    is_source, is_point = np.zeros(shape.sources), np.zeros(shape.sources)
    is_source[: len(scene.sources)] = 1
    is_point[: len(scene.sources)] = [source.kind == "point" for source in scene.sources]
    return {
        "images": images,
        "weights": weights,
        "whitening": whitening(correlation, weights > 0, shape.reach),
        "kernel": transfer_function(psf, shape.model_sigma, shape.fourier),
        "stamp_kernel": _low(
            transfer_function(psf, shape.model_sigma, shape.window)
            * whitening_transfer(correlation, shape.reach, 2 * np.pi * fy, 2 * np.pi * fx)
        ),
        "corners": (first + shape.margin).astype(np.int32),
        "centers": positions - first - shape.stamp // 2,
        "is_source": is_source,
        "is_point": is_point,
        "arcsec": np.array(pixels_per_arcsec(scene)),
        "band_unit": band_unit,
        "band_scale": scale,
    }


def _low(transfer: np.ndarray) -> np.ndarray:
    """(C, W, W // 2 + 1) -> (C, W // 2, W // 4 + 1): the frequencies that every second pixel can tell."""
    quarter = transfer.shape[1] // 4
    rows = np.concatenate([transfer[:, :quarter], transfer[:, -quarter:]], 1)
    return rows[:, :, : quarter + 1] / 4


def _empty(shape: BatchShape) -> dict[str, np.ndarray]:
    """A blend that is all padding."""
    images = np.zeros((shape.bands, shape.side, shape.side))
    sources = np.zeros(shape.sources)
    return {
        "images": images,
        "weights": images,
        "whitening": whitening(None, images > 0, shape.reach),
        "kernel": np.ones((shape.bands, shape.fourier, shape.fourier // 2 + 1), complex),
        "stamp_kernel": np.ones((shape.bands, shape.window // 2, shape.window // 4 + 1), complex),
        "corners": np.full((shape.sources, 2), shape.margin, np.int32),
        "centers": np.zeros((shape.sources, 2)),
        "is_source": sources,
        "is_point": sources,
        "arcsec": np.array(1.0),
        "band_unit": np.ones(shape.bands),
        "band_scale": np.ones(shape.bands),
    }
