"""Which scenes are done in one batch: those of one shape, and some others that fit into it.

Sides and numbers are rounded up to a few, for which graphs may have to be compiled. numpy only: no TensorFlow is loaded
to choose a shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.noise_correlation import reach_of
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import (
    LARGEST_GAIN,
    MODEL_SIGMA,
    NARROWEST_MODEL_SIGMA,
    choose_model_sigma,
    gaussian_psf,
    psf_spectrum,
)
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError

IMAGE_SIDES = (32, 48, 64, 80, 96, 112, 128, 160, 192)
SOURCE_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)
ROUND_COUNTS = (4, 8, 16, 24, 32)  # those that are compiled for few scenes, too
FEW_COUNTS = (1, 2, 4, 8, 16, 32)  # of runs that meet scenes of all sizes
# Pixels a side of image and stamp of runs that meet scenes of all sizes: each takes the first that holds it, so that a
# process compiles few; from the cheapest on.
FEW_SIDES = ((64, 64), (96, 96), (128, 96), (192, 96), (192, 192))
SMALLEST_REACH = 17  # pixels of frame and padding beside an image, however small its PSF
WINGS = 16  # pixels beside a stamp where the PSF scatters light that the curvature of a fit should see; even
ALIGNED = 1e-3  # pixels, over an image, by which the pixels of an aligned exposure may differ from a shift
# CPU-seconds: to compile a shape; and to fit, or to draw 16 samples, for each source, band and pixel of the image.
COMPILATION, FIT_WORK, SAMPLING_WORK = 10.0, 5e-6, 1.5e-4


class ExposureShape(NamedTuple):
    """The fixed sizes of one exposure.

    bands: its bands, by their number among all. side: pixels of the padded image. kept: L, the lowest frequencies a
    side that it samples (see `Resample`), 0 on the model's own pixels. reach: pixels over which its noise is
    correlated. aligned: whether its pixels are the model's, but for a shift.
    """

    bands: tuple[int, ...]
    side: int
    kept: int
    reach: int
    aligned: bool

    @property
    def on_model_pixels(self) -> bool:
        """Whether its pixels are the model's own, unshifted: the one exposure of a scene of one observation.

        Then it is a convolution without phases on a tight Fourier grid, and the curvature is taken in windows around
        the stamps, which is 1.4 to 2.4 times faster than through `Resample` and `Shifted`.
        """
        return self.kept == 0


class BatchShape(NamedTuple):
    """The sizes of a batch, which a compiled graph may be fixed to.

    blends: B. sources: K. bands: C, of all exposures together. frame: pixels a side of the model's frame, which has
    `margin` pixels around the first image, where light outside of it is kept that the PSF scatters in. fourier: pixels
    of the FFTs. stamp: P. model_sigma: of the model PSF, in pixels. background: whether each band of each exposure has
    a free constant.
    """

    blends: int
    sources: int
    bands: int
    frame: int
    margin: int
    fourier: int
    stamp: int
    model_sigma: float
    exposures: tuple[ExposureShape, ...]
    background: bool = False

    @property
    def side(self) -> int:
        """Pixels a side of the first image, padded."""
        return self.frame - 2 * self.margin

    @property
    def images(self) -> tuple[tuple[int, int], ...]:
        """Bands and side of the images of each exposure."""
        return tuple((len(one.bands), one.side) for one in self.exposures)

    @property
    def window(self) -> int:
        """Pixels a side of one stamp seen through the PSF."""
        return self.stamp + 2 * WINGS


def memory(shape: BatchShape, latents: int) -> float:
    """About how many bytes the fit of one scene of a shape takes, with so many latents a source.

    Good to a factor of 1.6, as measured on scenes of 16 to 128 sources and 64 to 400 pixels: five times the derivatives
    on stamps, ten times the images of all sources, and twice the normal equations.
    """
    derivatives = shape.sources * (latents + 1)
    images = sum(bands * side**2 for bands, side in shape.images) * shape.sources
    stamps = derivatives * shape.bands * shape.stamp**2
    return 20.0 * stamps + 40.0 * images + 16.0 * (shape.bands + 2) * derivatives**2


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


def stamp_side(scene: Scene, least: int = 0) -> int:
    """P to begin with: for galaxies as large as the image, up to 96 pixels; larger only if `least` is."""
    _, height, width = scene.observation.shape
    side = max(height, width)
    fit = next((stamp for most, stamp in ((48, 48), (64, 64), (80, 80)) if side <= most), 96)
    return max(fit, 16 * int(np.ceil(least / 16)))


def scene_shape(
    scene: Scene, stamp: int, model_sigma: float | None = None, background: bool = False, few: bool = False
) -> BatchShape:
    """The shape of a batch of this one scene.

    Args:
      stamp: P. model_sigma: pixels; None: the widest one that `amplification` allows. background: whether each band of
        each observation has a free constant. few: whether it is one of few shapes.

    Raises: DataError for an undersampled PSF.
    """
    _, height, width = scene.observation.shape
    side, sources = fit_size(max(height, width), IMAGE_SIDES), fit_size(len(scene.sources), SOURCE_COUNTS)
    if few:
        sources = fit_size(len(scene.sources), FEW_COUNTS)
        holding = [each for each in FEW_SIDES if side <= each[0] and stamp <= each[1]]
        side, stamp = holding[0] if holding else (side, stamp)
    sigma = model_sigma or widest_model_sigma(scene)
    if len(scene.observations) == 1:
        half = min(max(scene.observation.psf.shape[1:]) // 2 + 1, side)
        reach = 16 * int(np.ceil(max(1.45 * half, SMALLEST_REACH) / 16))
        margin, fourier = reach * 5 // 16, fast_fourier_size(side + reach)
    else:
        pairs = zip(scene.observations, scene.maps, strict=True)
        widths = [pixels.area**0.5 * max(one.psf.shape[1:]) / 2 for one, pixels in pairs]
        reach = 16 * int(np.ceil(max(*widths, SMALLEST_REACH) / 16))
        margin = reach // 2
        fourier = fast_fourier_size(side + 2 * margin + reach)
    return BatchShape(
        blends=1,
        sources=sources,
        bands=len(scene.bands),
        frame=side + 2 * margin,
        margin=margin,
        fourier=fourier,
        stamp=stamp,
        model_sigma=sigma,
        exposures=tuple(_exposure_shape(scene, number, fourier, side) for number in range(len(scene.observations))),
        background=background,
    )


def _exposure_shape(scene: Scene, number: int, fourier: int, first: int) -> ExposureShape:
    """first: pixels a side of the first observation's padded image."""
    one, pixels = scene.observations[number], scene.maps[number]
    side, kept = first if number == 0 else fit_size(max(one.shape[1:]), IMAGE_SIDES), 0
    misfit = np.abs(pixels.matrix - np.eye(2)).max() * max(one.shape[1:])
    if len(scene.observations) > 1:
        kept = min(16 * int(np.ceil(kept_frequencies(pixels, fourier) / 16)), 4 * (fourier // 4))
    return ExposureShape(
        bands=scene.band_indices(one),
        side=side,
        kept=kept,
        reach=reach_of(one.noise_correlation),
        aligned=bool(misfit < ALIGNED) and side <= fourier,
    )


def kept_frequencies(pixels: AffineMap, side: int) -> int:
    """L: the even number of lowest frequencies a side, of a side x side grid, that an observation samples."""
    corners = np.pi * np.array([[1, 1], [1, -1]]) @ np.linalg.inv(pixels.matrix)
    highest = np.abs(corners).max() * side / (2 * np.pi)
    return min(2 * int(np.ceil(highest) + 1), side - side % 2)


def resampled_transfer(psf: np.ndarray, model_psf: np.ndarray, pixels: AffineMap, side: int, kept: int) -> np.ndarray:
    """|det M| P_obs(M^T k) / P_model(k) at the lowest frequencies of a side x side grid.

    Args:
      psf: (C, h, w), sampled at the observation's pixels. model_psf: (C or 1, h, w), at the model's; both sum to 1.
      kept: L, even (see `kept_frequencies`).
    Returns:
      (C, L, L // 2 + 1) complex; 0 beyond the Nyquist frequency of either, and at that of L.
    """
    n = np.fft.fftfreq(kept, 1 / kept)
    ky, kx = np.meshgrid(n, np.arange(kept // 2 + 1), indexing="ij")
    k = 2 * np.pi / side * np.stack([ky.ravel(), kx.ravel()], 1)
    observed = k @ pixels.matrix
    inside = (np.abs(observed) <= np.pi * (1 + 1e-9)).all(1) & (np.abs(k) < np.pi * kept / side).all(1)
    transfer = np.zeros((len(psf), len(k)), complex)
    ratio = psf_spectrum(psf, observed[inside]) / psf_spectrum(model_psf, k[inside])
    transfer[:, inside] = pixels.area * ratio
    return transfer.reshape(len(psf), kept, kept // 2 + 1)


def amplification(observation: Observation, pixels: AffineMap, sigma: float) -> float:
    """The most by which a model PSF of `sigma` of the model's pixels amplifies a frequency of an observation.

    It is at most `LARGEST_GAIN` where the model PSF is narrower than the observation's. Only frequencies below
    Nyquist's along any direction count: in the corners beyond, both PSFs are some 1e-4, and the noise of a measured one
    may well be the larger. pixels: the map from the observation's pixels to the model's.
    """
    side = 64
    kept = kept_frequencies(pixels, side)
    transfer = np.abs(resampled_transfer(observation.psf.astype(float), gaussian_psf(sigma), pixels, side, kept))
    n = np.fft.fftfreq(kept, 1 / kept)
    k = np.stack(np.meshgrid(n, np.arange(kept // 2 + 1), indexing="ij"), -1) @ pixels.matrix / side
    return float((transfer / pixels.area)[:, np.hypot(k[..., 0], k[..., 1]) <= 0.5].max())


def amplifications(scene: Scene, sigma: float) -> list[float]:
    """The `amplification` of each observation of a scene."""
    return [amplification(one, pixels, sigma) for one, pixels in zip(scene.observations, scene.maps, strict=True)]


def widest_model_sigma(scene: Scene) -> float:
    """The widest model PSF, up to `MODEL_SIGMA` pixels, that is narrower than the PSFs of all observations.

    Raises: DataError if even the narrowest is not: an observation is undersampled.
    """
    if len(scene.observations) == 1:
        return choose_model_sigma(scene)
    for sigma in np.linspace(MODEL_SIGMA, NARROWEST_MODEL_SIGMA, 8):
        gains = amplifications(scene, sigma)
        if max(gains) <= LARGEST_GAIN:
            return float(sigma)
    worst = scene.observations[int(np.argmax(gains))]
    expected = f"expected a PSF wider than a Gaussian of sigma {NARROWEST_MODEL_SIGMA} pixel of the finest observation"
    raise DataError(worst.name, "psf", f"{expected}, received a narrower one (undersampled)")


def cost(shape: BatchShape, work: float) -> float:
    """CPU-seconds that a scene of a shape takes. work: of each source, band and pixel."""
    return work * shape.bands * max(shape.side, shape.stamp) ** 2 * shape.sources


def round_buckets(buckets: dict[BatchShape, list[int]]) -> dict[BatchShape, list[int]]:
    """The same scenes in shapes of a round number of sources, but for those so many that a shape of their own pays.

    Scenes that come one by one then share a shape with earlier ones.
    """
    rounded: dict[BatchShape, list[int]] = defaultdict(list)
    for shape, members in buckets.items():
        larger = shape._replace(sources=fit_size(shape.sources, ROUND_COUNTS))
        pays = len(members) * (cost(larger, FIT_WORK) - cost(shape, FIT_WORK)) > COMPILATION
        rounded[shape if pays else larger] += members
    return {shape: sorted(members) for shape, members in rounded.items()}


def merge_buckets(buckets: dict[BatchShape, list[int]], work: float = FIT_WORK) -> dict[BatchShape, list[int]]:
    """The same scenes in fewer shapes: they join another one that holds them where that costs less than a compilation.

    Scenes of several observations join only shapes of the same images. work: see `cost`.
    """

    def holds(large: BatchShape, small: BatchShape) -> bool:
        if len(small.exposures) > 1:
            return large.sources >= small.sources and large == small._replace(sources=large.sources)
        own, other = large.exposures[0], small.exposures[0]
        fixed = "bands", "margin", "model_sigma", "background"
        same = len(large.exposures) == 1 and own.reach == other.reach
        same = same and all(getattr(large, name) == getattr(small, name) for name in fixed)
        return same and all(getattr(large, name) >= getattr(small, name) for name in ("sources", "side", "stamp"))

    merged = {shape: list(members) for shape, members in buckets.items()}
    joins = [(a, b) for a in merged for b in merged if a != b and holds(b, a)]

    def saved(join: tuple[BatchShape, BatchShape]) -> float:
        small, large = join
        return COMPILATION - len(merged[small]) * (cost(large, work) - cost(small, work))

    while joins := [join for join in joins if join[0] in merged and join[1] in merged and saved(join) > 0]:
        small, large = max(joins, key=lambda join: (saved(join), join))
        merged[large] = sorted(merged[large] + merged.pop(small))
    return merged


def by_count(
    shape: BatchShape, scenes: Sequence[Scene], chosen: Iterable[int], fewer: bool = True
) -> dict[BatchShape, list[int]]:
    """The `chosen` of scenes of one shape, by index, in the shapes that samplers are compiled for.

    Scenes with about as many sources share a graph, which knows no others. fewer: those of small groups join another
    one, on which their shape then depends.
    """
    exact: dict[BatchShape, list[int]] = defaultdict(list)
    for row in chosen:
        exact[shape._replace(sources=fit_size(len(scenes[row].sources), SOURCE_COUNTS))].append(row)
    return {
        shape: sorted(members)
        for shape, members in sorted((merge_buckets(exact, SAMPLING_WORK) if fewer else exact).items())
    }


def brightness(scene: Scene) -> float:
    """The brightest pixel in sigma. A batch lasts as long as its slowest blend, and bright ones take the most steps."""
    return max(float((one.images * np.sqrt(one.weights)).max()) for one in scene.observations)
