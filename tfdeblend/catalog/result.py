"""Deblended: the result for one scene. NumPy and tables only, so that it can be read, measured and plotted anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.data.scene import Scene

if TYPE_CHECKING:
    from astropy.table import Table


@dataclass(frozen=True, eq=False)
class Deblended:
    """K sources taken apart in C bands; fluxes in the observation's unit.

    Args:
        scene: the observation, and the sources as they were declared or detected.
        model: (C,H,W) the rendered scene, background included.
        sources: (K,C,H,W) each source as observed (PSF-convolved) on the image's grid.
        stamps: (K,C,P,P) each source in the model frame, zero-padded to the largest P.
        corners: (K,2) integers: (y, x) of the image pixel under pixel [0, 0] of the stamp.
        background: (C,) a constant per pixel.
        flux_cov: (C,K,K) covariance of the fluxes of all sources, band by band.
        catalog: a row a source.
        header: method, prior, version, seed and the like, by FITS keyword.
        undeclared: detections on the residual that no source accounts for: x, y, snr.
        samples: (S,K,C,P,P) posterior samples in the model frame, where they were to be kept.
        sources_std: (K,C,H,W) posterior standard deviation of `sources`, where sampled.
        prior_share: (K,C,P,P) posterior variance of the stamps' pixels over the prior's, where sampled.
    """

    scene: Scene
    model: np.ndarray
    sources: np.ndarray
    stamps: np.ndarray
    corners: np.ndarray
    background: np.ndarray
    flux_cov: np.ndarray
    catalog: Table
    header: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    undeclared: Table | None = None
    samples: np.ndarray | None = None
    sources_std: np.ndarray | None = None
    prior_share: np.ndarray | None = None

    @property
    def residual(self) -> np.ndarray:
        """(C,H,W): images - model, NaN where masked."""
        observation = self.scene.observation
        return np.where(observation.valid, observation.images - self.model, np.nan)

    @property
    def chi2(self) -> float:
        """sum(weights * residual^2) over the number of unmasked pixels."""
        observation = self.scene.observation
        return float(np.sum(observation.weights * (observation.images - self.model) ** 2.0) / observation.valid.sum())

    @property
    def reapportioned(self) -> np.ndarray:
        """(K,C,H,W): the data less the background, shared out in proportion to the sources' models.

        data * source / sum of sources where that sum is positive and the pixel is unmasked, 0 elsewhere; sources are
        taken as zero where negative, so that every share lies between 0 and 1.
        """
        observation = self.scene.observation
        positive = np.maximum(self.sources, 0)
        total = positive.sum(axis=0)
        shared = observation.valid & (total > 0)
        data = observation.images - self.background[:, np.newaxis, np.newaxis]
        return np.where(shared, data * positive / np.where(total > 0, total, 1), 0).astype(np.float32)
