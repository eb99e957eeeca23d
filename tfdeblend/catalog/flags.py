"""The bits of a catalogue's `flags`, and those that what observations show of the sources raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.data.psf import psf_fwhm

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.data.observation import Observation

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


@dataclass(frozen=True, eq=False)
class View:
    """The sources (K, C, H, W) and their model as one observation shows them, at `positions` (K, 2) of (y, x).

    scale: its pixels along one of those that catalogues count in. undeclared: as of `Deblended`.
    """

    observation: Observation
    sources: np.ndarray
    model: np.ndarray
    positions: np.ndarray
    scale: float = 1.0
    undeclared: Table | None = None

    @property
    def residual(self) -> np.ndarray:
        """(C, H, W), 0 where masked."""
        return np.where(self.observation.valid, self.observation.images - self.model.astype(float), 0)

    def near(self, pixels: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """(K, C): whether some of `pixels` (C, H, W) bool lies within `radius` (K,) pixels, at least 1, of a source."""
        y, x = np.indices(pixels.shape[1:])
        pairs = zip(self.positions, radius, strict=True)
        return np.array(
            [pixels[:, np.hypot(y - row, x - column) < max(most, 1)].any(1) for (row, column), most in pairs]
        )


def of_views(views: Sequence[View], bands: Sequence[str]) -> np.ndarray:
    """(K,) of what is masked in some band in all views that have it, and of what is saturated or undeclared in any."""
    count = len(views[0].positions)
    masked, undeclared, saturated = np.ones((count, len(bands)), bool), np.zeros(count, bool), np.zeros(count, bool)
    for number, view in enumerate(views):
        own, (_, height, width) = [bands.index(band) for band in view.observation.bands], view.observation.shape
        row, column = np.round(view.positions).astype(int).T
        beyond = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        masked[:, own] &= (view.observation.weights[:, row, column] <= 0).T | (beyond[:, None] & (number > 0))
        if view.observation.saturated is not None:
            reach = np.full(count, psf_fwhm(view.observation.psf).max())
            saturated |= view.near(view.observation.saturated, reach).any(1)
        if view.undeclared is not None and len(view.undeclared):
            y = np.clip(np.round(np.asarray(view.undeclared["y"])).astype(int), 0, height - 1)
            x = np.clip(np.round(np.asarray(view.undeclared["x"])).astype(int), 0, width - 1)
            light = (np.maximum(view.sources, 0) * np.sqrt(view.observation.weights)).sum(1)[:, y, x]
            undeclared |= (light > 1).any(1)
    return np.where(masked.any(1), MASKED, 0) | np.where(undeclared, UNDECLARED, 0) | np.where(saturated, SATURATED, 0)


def unseen(views: Sequence[View], bands: Sequence[str], size: np.ndarray) -> np.ndarray:
    """(K, C): which source has no unmasked pixel, within its half-light radius and a PSF's width, in which band."""
    nowhere = np.ones((len(size), len(bands)), bool)
    for view in views:
        reach = np.nan_to_num(size) * view.scale + psf_fwhm(view.observation.psf).max()
        own = [bands.index(band) for band in view.observation.bands]
        nowhere[:, own] &= ~view.near(view.observation.valid, reach)
    return nowhere
