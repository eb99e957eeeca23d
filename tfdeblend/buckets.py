"""Which scenes share a compiled graph: those of one shape, and some others that fit into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from tfdeblend import measure
from tfdeblend.batch import BatchShape, fit_size
from tfdeblend.scene import Scene

SAMPLED_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of sources: a sampler's work goes with them, padding included
LARGER_STAMPS = (96, 128, 160, 192)  # pixels a side, where a galaxy needs them; what is larger still is cut
VISIBLE = 3.0  # signal-to-noise of a galaxy's light on its stamp's outermost pixels, above which a cut shows
FEW = 3  # scenes of one shape are not worth a compilation of their own


def stamp_side(scene: Scene, least: int = 0) -> int:
    """P to begin with: for galaxies as large as the image, up to 96 pixels; larger only if `least` is."""
    _, height, width = scene.observation.shape
    side = max(height, width)
    fit = next((stamp for most, stamp in ((32, 48), (64, 64), (80, 80)) if side <= most), 96)
    return max(fit, 16 * int(np.ceil(least / 16)))


def side_wanted(scene: Scene, stamps: np.ndarray, corners: np.ndarray, flux: np.ndarray) -> int:
    """P that would hold what a fit lost at its stamps' edges: up to twice as many, as far as the image shows it.

    Only where the data see the cut: in 21 of 97 real HSC blends some galaxy is flagged, most of them faint ones with a
    broad fit; larger stamps then change the image by less than a tenth of its noise (rms), for three times the time.

    Args: stamps (K, C, P, P), corners (K, 2), flux (K, C), as of `Deblended`.
    """
    side, (_, height, width) = stamps.shape[-1], scene.observation.shape
    cut = measure.is_truncated(stamps, flux)
    if not cut.any() or measure.border_snr(scene.observation, stamps[cut], corners[cut]).max() <= VISIBLE:
        return side
    wanted = min(2 * side, 2 * max(height, width), LARGER_STAMPS[-1])
    return fit_size(wanted, LARGER_STAMPS) if wanted > side else side


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
