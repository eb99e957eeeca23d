"""The bits of a catalogue's `flags`, and those that tell what the observations show of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.data.psf import fwhm

if TYPE_CHECKING:
    from tfdeblend.catalog.result import View

NOT_CONVERGED, TRUNCATED, EDGE, MASKED, BAD_FIT, UNDECLARED, BEYOND_PRIOR, UNSEEN, SATURATED = (
    2**bit for bit in range(9)
)
FLAG_NAMES = {
    NOT_CONVERGED: "the fit stopped before it converged",
    TRUNCATED: "more than 5% of the flux lies outside of the stamp",
    EDGE: "within a PSF's width of the image's edge",
    MASKED: "the central pixel is masked in some band",
    BAD_FIT: "chi-square per pixel above 2 where this source shines",
    UNDECLARED: "an undeclared source shines on this one's light",
    BEYOND_PRIOR: "larger than the learned prior's stamps, or without light: near the bulge-disk fit",
    UNSEEN: "all masked in some band: its flux there is NaN",
    SATURATED: "saturated pixels within a PSF's width of its centre",
}


def from_views(views: Sequence[View], bands: Sequence[str]) -> np.ndarray:
    """Raise (K,) the bits MASKED, UNDECLARED and SATURATED of each source.

    A source is masked if, in some band, all views that have the band mask it; it is saturated, or an undeclared source
    shines on it, if some view shows so.
    """
    count = len(views[0].positions)
    masked, undeclared, saturated = np.ones((count, len(bands)), bool), np.zeros(count, bool), np.zeros(count, bool)
    for number, view in enumerate(views):
        own, (_, height, width) = [bands.index(band) for band in view.observation.bands], view.observation.shape
        row, column = np.round(view.positions).astype(int).T
        beyond = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        masked[:, own] &= (view.observation.weights[:, row, column] <= 0).T | (beyond[:, None] & (number > 0))
        if view.observation.saturated is not None:
            radius = np.full(count, fwhm(view.observation.psf).max())
            saturated |= _near(view.positions, view.observation.saturated, radius).any(1)
        if view.undeclared is not None and len(view.undeclared):
            y = np.clip(np.round(np.asarray(view.undeclared["y"])).astype(int), 0, height - 1)
            x = np.clip(np.round(np.asarray(view.undeclared["x"])).astype(int), 0, width - 1)
            light = (np.maximum(view.sources, 0) * np.sqrt(view.observation.weights)).sum(1)[:, y, x]
            undeclared |= (light > 1).any(1)
    return np.where(masked.any(1), MASKED, 0) | np.where(undeclared, UNDECLARED, 0) | np.where(saturated, SATURATED, 0)


def unseen(views: Sequence[View], bands: Sequence[str], size: np.ndarray) -> np.ndarray:
    """Tell (K, C) which source has no unmasked pixel in which band within its half-light radius and a PSF's width.

    size: (K,) half-light radii in pixels of the first observation.
    """
    nowhere = np.ones((len(size), len(bands)), bool)
    for view in views:
        radius = np.nan_to_num(size) * view.scale + fwhm(view.observation.psf).max()
        own = [bands.index(band) for band in view.observation.bands]
        nowhere[:, own] &= ~_near(view.positions, view.observation.valid, radius)
    return nowhere


def _near(positions: np.ndarray, pixels: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Tell (K, C) whether some of `pixels` (C, H, W) bool is within `radius` (K,) pixels, at least 1, of a position."""
    y, x = np.indices(pixels.shape[1:])
    pairs = zip(positions, radius, strict=True)
    return np.array([pixels[:, np.hypot(y - row, x - column) < max(most, 1)].any(1) for (row, column), most in pairs])
