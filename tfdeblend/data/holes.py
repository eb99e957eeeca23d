"""Holes: masked pixels amid light, such as the middle of a saturated star or a dead column through a galaxy.

A source is searched for as if they were not there: in each band the light around a hole goes on into it as straight as
it comes. What is masked in empty sky, and what lies beyond the edge of what is seen, stays unknown.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, grey_closing

from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.observation import Observation

WIDEST = 65  # pixels: a hole has light on either side within
STEP = 2.0  # pixels over which the slope of the light is taken


def filled(observation: Observation, bright: np.ndarray, kernel: np.ndarray) -> Observation:
    """Fill the holes of each band with light as it would go on, and with the weight of the nearest pixel that is seen.

    Args:
        bright: (H,W) bool, where light is seen.
        kernel: (n,n) of sum 1, through which the light beside a hole is measured.
    """
    if observation.valid.all():
        return observation
    images, weights = observation.images.copy(), observation.weights.copy()
    for image, weight in zip(images, weights, strict=True):
        seen = weight > 0
        lit = bright & seen
        hole = ~seen & (grey_closing(lit.astype(np.uint8), size=(WIDEST, WIDEST), mode="constant") > 0)
        if not hole.any():
            continue
        smooth = convolved(np.where(seen, image, 0), kernel) / np.maximum(convolved(seen.astype(float), kernel), 1e-6)
        nearest = np.stack(distance_transform_edt(~seen, return_distances=False, return_indices=True))
        hole &= lit[tuple(nearest)]
        place, beside = np.stack(np.nonzero(hole)), nearest[:, hole]
        depth = np.hypot(*(place - beside))
        away = np.round(beside + STEP * (beside - place) / depth).astype(int)
        away = np.clip(away, 0, np.array(image.shape)[:, None] - 1)
        slope = np.where(seen[tuple(away)], smooth[tuple(beside)] - smooth[tuple(away)], 0) / STEP
        image[hole] = np.maximum(smooth[tuple(beside)] + slope * depth, 0)
        weight[hole] = weight[tuple(beside)]
    return observation.derived(images=images, weights=weights)
