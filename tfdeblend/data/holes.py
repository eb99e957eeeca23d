"""Holes: masked pixels amid light, such as the middle of a saturated star or a dead column through a galaxy.

A source is searched for as if they were not there: in each band the light around a hole is extended into it linearly.
What is masked in empty sky, and what lies beyond the edge of what is seen, stays unknown; so do holes so wide that a
source in the middle could not be fitted.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, label, maximum

from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import REACH, fwhm

FARTHEST = 32  # pixels from a hole's pixel within which there is light
AXES = np.array([(0, 1), (1, 0), (1, 1), (1, -1)])
LIT_AXES = 3  # of these, along which there is light on either side: a trail of saturation takes away one
STEP = 2.0  # pixels over which the slope of the light is taken


def filled(observation: Observation, bright: np.ndarray, kernel: np.ndarray) -> Observation:
    """Fill the holes of each band with the light around them, and with the weight of the nearest pixel that is seen.

    Args:
        bright: (H,W) bool, where light is seen.
        kernel: (n,n) of sum 1, through which the light beside a hole is measured.
    """
    images, weights = observation.images.copy(), observation.weights.copy()
    deepest = REACH * float(fwhm(observation.psf).max())
    for image, weight in zip(images, weights, strict=True):
        seen = weight > 0
        if seen.all() or not (lit := bright & seen).any():
            continue
        nearest = np.stack(distance_transform_edt(~seen, return_distances=False, return_indices=True))
        place = np.stack(np.nonzero(~seen & lit[tuple(nearest)]))
        place = place[:, _amid(place, lit, seen)]
        if not place.size:
            continue
        place = place[:, _shallow(place, np.hypot(*(place - nearest[:, *place])), deepest, seen.shape)]
        beside = nearest[:, *place]
        depth = np.hypot(*(place - beside))
        away = np.round(beside + STEP * (beside - place) / depth).astype(int)
        away = np.clip(away, 0, np.array(image.shape)[:, None] - 1)
        smooth = convolved(np.where(seen, image, 0), kernel) / np.maximum(convolved(seen.astype(float), kernel), 1e-6)
        slope = np.where(seen[*away], smooth[*beside] - smooth[*away], 0) / STEP
        image[*place] = np.maximum(smooth[*beside] + slope * depth, 0)
        weight[*place] = weight[*beside]
    return observation.derived(images=images, weights=weights)


def _amid(place: np.ndarray, lit: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(n,) bool: whether masked pixels (2,n) have light on either side along LIT_AXES."""
    return sum(_meets(place, axis, lit, seen) & _meets(place, -axis, lit, seen) for axis in AXES) >= LIT_AXES


def _shallow(place: np.ndarray, depth: np.ndarray, deepest: float, shape: tuple[int, int]) -> np.ndarray:
    """(n,) bool: whether masked pixels (2,n) are of holes of which none is deeper than `deepest`; depth: (n,)."""
    holes = np.zeros(shape, bool)
    holes[*place] = True
    number, count = label(holes, np.ones((3, 3)))
    number = number[*place]
    return np.asarray(maximum(depth, number, np.arange(count + 1)) <= deepest)[number]


def _meets(place: np.ndarray, step: np.ndarray, lit: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the first pixel that is seen from places (2,n), step by step within FARTHEST, is lit."""
    found, left = np.zeros(place.shape[1], bool), np.arange(place.shape[1])
    for number in range(1, FARTHEST + 1):
        at = place[:, left] + number * step[:, None]
        inside = ((at >= 0) & (at < np.array(lit.shape)[:, None])).all(0)
        left, at = left[inside], at[:, inside]
        met = seen[*at]
        found[left[met]] = lit[*at[:, met]]
        left = left[~met]
    return found
