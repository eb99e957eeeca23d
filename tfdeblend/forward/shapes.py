"""Which scenes share a compiled graph: those of one shape, and some others that fit into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tfdeblend.data.noise_correlation import reach_of
from tfdeblend.data.psf import choose_model_sigma
from tfdeblend.data.scene import Scene

SAMPLED_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of sources: a sampler's work goes with them, padding included
FEW = 3  # scenes of one shape are not worth a compilation of their own


def stamp_side(scene: Scene, least: int = 0) -> int:
    """P to begin with: for galaxies as large as the image, up to 96 pixels; larger only if `least` is."""
    _, height, width = scene.observation.shape
    side = max(height, width)
    fit = next((stamp for most, stamp in ((32, 48), (64, 64), (80, 80)) if side <= most), 96)
    return max(fit, 16 * int(np.ceil(least / 16)))


def merge_buckets(buckets: dict[BatchShape, list[int]]) -> dict[BatchShape, list[int]]:
    """The same scenes in fewer shapes: those of a bucket of FEW or less join the smallest other one that holds them.

    A new shape takes as long to compile as several scenes take to fit. No scene is put into one of more than four
    times its pixels times sources.
    """

    def cost(shape: BatchShape) -> int:
        return shape.side**2 * shape.sources

    def holds(large: BatchShape, small: BatchShape) -> bool:
        same = all(getattr(large, name) == getattr(small, name) for name in ("bands", "margin", "model_sigma", "reach"))
        fits = large.sources >= small.sources and large.side >= small.side
        return same and fits and cost(large) <= 4 * cost(small)

    merged = dict(buckets)
    for shape in sorted(buckets, key=cost, reverse=True):  # so that a host has been settled before
        hosts = [other for other in merged if other != shape and holds(other, shape)]
        if len(merged[shape]) <= FEW and hosts:
            host = min(hosts, key=cost)
            merged[host] = merged[host] + merged.pop(shape)
    return merged


def by_count(shape: BatchShape, scenes: Sequence[Scene], chosen: Iterable[int]) -> dict[BatchShape, list[int]]:
    """The `chosen` of scenes of one shape, by index, in the shapes that samplers are compiled for.

    Scenes with about as many sources share a graph, which knows no others.
    """
    exact: dict[BatchShape, list[int]] = defaultdict(list)
    for row in chosen:
        exact[shape._replace(sources=fit_size(len(scenes[row].sources), SAMPLED_COUNTS))].append(row)
    return {shape: sorted(members) for shape, members in sorted(merge_buckets(exact).items())}


def brightness(scene: Scene) -> float:
    """The brightest pixel in sigma. A batch lasts as long as its slowest blend, and bright ones take the most steps."""
    observation = scene.observation
    return float((observation.images * np.sqrt(observation.weights)).max())


IMAGE_SIDES = (32, 48, 64, 80, 96, 128, 192)


SOURCE_COUNTS = (4, 8, 16, 24, 32)


SMALLEST_REACH = 17  # pixels of frame and padding beside an image, however small its PSF


WINGS = 16  # pixels beside a stamp where the PSF scatters light that the curvature of a fit should see; even


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
    background: bool = False  # whether the images lie on an unknown constant in each band

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
