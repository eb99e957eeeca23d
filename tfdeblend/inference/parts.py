"""Parts: the cut-outs that a large field is fitted in, each with some of its sources and their neighbours.

A field is a graph: sources are tied where the visible light of one reaches the body of the other. A part fits its own
sources together with those that are tied to them, its guests, which shield it from what lies beyond; of the guests
nothing is kept. The cost then grows linearly with the number of sources.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import REACH, fwhm, pixels_per_arcsec
from tfdeblend.data.scene import Scene
from tfdeblend.data.sky import detection_image
from tfdeblend.forward.shapes import IMAGE_SIDES, fit_size
from tfdeblend.galaxies.moments import moments

WHOLE = (32, 192)  # the most sources, and pixels a side, of a scene that is fitted as one
MOST = 16  # sources of a part, guests included
OWN = 8  # of these at most are its own where the guests that are tied to them would be more than the rest
SPAN = 96  # pixels: the longer side of the box around the centres of a part's own sources
FAINT = 0.03  # sigma a pixel, all bands together, where a galaxy's light is taken to end
EXPONENTIAL = 1.678  # of a disk: half-light radii over scale lengths
FARTHEST = 64.0  # pixels from a source that its part must show
NARROWEST = 48  # pixels a side of a part, as stamps have: what a stamp cuts off then shows in it


@dataclass(frozen=True, eq=False)
class Part:
    """A cut-out of a scene of one observation.

    scene: the cut-out with its sources, named as in the whole. own: (K,) bool, which of them are kept. rows: (K,) their
    numbers in the whole. corner: (y, x) of its first pixel in the whole. foreign: (h,w) bool, where sources shine that
    the part does not have.
    """

    scene: Scene
    own: np.ndarray
    rows: np.ndarray
    corner: np.ndarray
    foreign: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns in the images of the whole."""
        sides = self.scene.observation.shape[1:]
        return tuple(slice(first, first + side) for first, side in zip(self.corner.tolist(), sides, strict=True))  # type: ignore[return-value]

    @property
    def masked(self) -> Part:
        """The part without the pixels where foreign sources shine."""
        one = self.scene.observation
        return self._of(one.derived(weights=np.where(self.foreign, 0, one.weights)))

    def less(self, light: np.ndarray) -> Part:
        """The part with light (C,h,w) taken off its images."""
        one = self.scene.observation
        return self._of(one.derived(images=one.images - light))

    def _of(self, one: Observation) -> Part:
        return replace(self, scene=replace(self.scene, observations=(one,)))


def is_large(scene: Scene) -> bool:
    """Tell whether a scene is fitted in parts. One of several observations is not: its calibration is the whole's."""
    most, side = WHOLE
    return len(scene.observations) == 1 and (len(scene.sources) > most or max(scene.observation.shape[1:]) > side)


def split(scene: Scene) -> list[Part]:
    """Cut a scene of one observation into parts; each source is one part's own."""
    half, reach = found = extents(scene)
    groups = _groups(scene, _ties(scene.positions, half, reach), half)
    return [_cut(scene, np.array(own), np.array(guests), found) for own, guests in groups]


def blends(positions: np.ndarray, half: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Number (K,) the blends that sources belong to: those that ties join, whatever lies between.

    positions: (K,2) of (y, x). half, reach: see `extents`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    tree = cKDTree(positions)
    near = tree.query_ball_point(positions, reach + half.max(initial=0))
    first = np.repeat(np.arange(len(positions)), [len(others) for others in near])
    second = np.array([other for others in near for other in others], int)
    apart = np.maximum(np.hypot(*(positions[first] - positions[second]).T), 1.0)
    tied = reach[first] + half[second] >= apart
    graph = coo_array((np.ones(int(tied.sum())), (first[tied], second[tied])), shape=(len(positions),) * 2)
    return connected_components(graph, directed=False)[1]


def extents(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Estimate (K,) half-light radii as observed, and (K,) distances at which light ends, in pixels."""
    one = scene.observation.less(scene.observation.sky_levels())
    image, valid = detection_image(one.images, one.weights)[0], np.any(one.valid, 0)
    radius = moments(replace(scene, observations=(one,)))[0] * pixels_per_arcsec(scene)
    half = np.hypot(radius, fwhm(one.psf).max() / 2)
    seen = [_brightest(image, valid, place) for place in scene.positions]
    distance, peak = np.array(seen).T
    return half, distance + half * (1 + np.log(np.maximum(peak / FAINT, 1)) / EXPONENTIAL)


def _brightest(image: np.ndarray, valid: np.ndarray, place: np.ndarray) -> tuple[float, float]:
    """Find how far masked pixels reach from a place, and the brightest value among the nearest unmasked ones."""
    side = int(FARTHEST) // 2
    first = np.maximum(np.floor(place).astype(int) - side, 0)
    window = tuple(slice(a, a + 2 * side) for a in first)
    y, x = np.nonzero(valid[window])
    if not len(y):
        return 0.0, 0.0
    distance = np.hypot(y + first[0] - place[0], x + first[1] - place[1])
    nearest = distance.min()
    return max(nearest - 1, 0.0), image[window][y, x][distance < nearest + 1.5].max()


def _ties(positions: np.ndarray, half: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Give (K,K) how firmly sources are tied: at 1 the light of one just reaches the body of the other."""
    apart = np.maximum(np.hypot(*(positions[:, None] - positions[None]).T), 1.0)
    touch = reach[:, None] + half[None]
    ties = np.maximum(touch, touch.T) / apart
    np.fill_diagonal(ties, 0)
    return ties


def _groups(scene: Scene, ties: np.ndarray, half: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Gather own sources and guests of each part, from the largest sources on."""
    positions, groups = scene.positions, []
    left = np.ones(len(ties), bool)
    for first in np.argsort(-half, kind="stable").tolist():
        if not left[first]:
            continue
        own, guests = [first], _guests(ties, [first])
        left[first] = False
        while True:
            nearest = np.where(left, ties[own].max(0), 0)
            best = int(np.argmax(nearest))
            grown = [*own, best]
            others = _guests(ties, grown)
            crowded = len(grown) > OWN and len(grown) + len(others) > MOST
            if nearest[best] < 1 or crowded or np.ptp(positions[grown], 0).max() > SPAN:
                break
            own, guests, left[best] = grown, others, False
        firmest = sorted(guests, key=lambda k: -ties[own, k].max())
        groups.append((own, firmest[: max(MOST - len(own), 0)]))
    return groups


def _guests(ties: np.ndarray, own: list[int]) -> list[int]:
    """List the sources that are tied to some of `own` and are none of them."""
    tied = ties[own].max(0) >= 1
    tied[own] = False
    return np.flatnonzero(tied).tolist()


def _cut(scene: Scene, own: np.ndarray, guests: np.ndarray, extents: tuple[np.ndarray, np.ndarray]) -> Part:
    """Cut the part of some sources, and their guests, out of a scene."""
    one, positions, (half, reach) = scene.observation, scene.positions, extents
    every = np.concatenate([own, guests]).astype(int)
    near = REACH * fwhm(one.psf).max()
    around = np.concatenate([np.clip(reach[own], near, FARTHEST), np.full(len(guests), near)])
    first = np.floor((positions[every] - around[:, None]).min(0)).astype(int)
    last = np.ceil((positions[every] + around[:, None]).max(0)).astype(int) + 1
    corner, sides = np.zeros(2, int), np.array(one.shape[1:])
    side = fit_size(max(int((last - first).max()), NARROWEST), IMAGE_SIDES)
    for axis in (0, 1):  # the side of a compiled shape, inside of the image
        length = min(side, sides[axis])
        corner[axis] = np.clip((first[axis] + last[axis] - length) // 2, 0, sides[axis] - length)
        sides[axis] = length
    cut = replace(_cutout(one, corner, sides), name=f"{scene.name}, source {scene.sources[own[0]].id}")
    sources = [replace(scene.sources[k], y=positions[k][0] - corner[0], x=positions[k][1] - corner[1]) for k in every]
    part = Scene((cut,), tuple(sources))
    kept = ~part.left_out
    others = np.setdiff1d(np.arange(len(positions)), every)
    places, radius, valid = positions[every] - corner, half[every], cut.valid.any(0)
    shown = [(valid & within(places[k : k + 1], radius[k : k + 1], valid.shape)).any() for k in range(len(every))]
    body = within(places, np.where(shown, radius, near), valid.shape)  # a pixel of each source at least stays
    foreign = within(positions[others] - corner, reach[others], valid.shape) & ~body
    return Part(part.kept, np.isin(every, own)[kept], every[kept], corner, foreign)


def within(places: np.ndarray, radius: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Tell (h,w) which pixels lie within `radius` (K,) of some of `places` (K,2)."""
    found = np.zeros(shape, bool)
    y, x = np.indices(shape)
    near = np.all((places > -radius[:, None]) & (places < np.array(shape) + radius[:, None]), 1)
    for (row, column), most in zip(places[near], radius[near], strict=True):
        found |= np.hypot(y - row, x - column) < most
    return found


def _cutout(one: Observation, corner: np.ndarray, sides: np.ndarray) -> Observation:
    """Cut `sides` pixels from `corner` on out of an observation, which then needs no WCS."""
    rows, columns = (slice(a, a + n) for a, n in zip(corner.tolist(), sides.tolist(), strict=True))
    return one.derived(wcs=None, notes=()).cut(rows, columns)
