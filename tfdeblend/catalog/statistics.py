"""What is kept of one scene's posterior samples: means, spreads and covariances, as the samples come.

NumPy only. Images are in the scene's own units, cut to its size; samples themselves are kept where asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tfdeblend.catalog import measure
from tfdeblend.data.scene import Scene


@dataclass
class Tally:
    """Of one scene of K sources. corners: (K, 2) of the stamps in the image. model_sigma: pixels of the model PSF.
    shift: (2,) pixels by which the stamps' are off the image's."""

    scene: Scene
    corners: np.ndarray
    model_sigma: float
    keep: bool = False
    shift: np.ndarray | float = 0.0
    flux: list[np.ndarray] = field(default_factory=list)  # (K, C) each
    shapes: list[np.ndarray] = field(default_factory=list)  # (5, K) each: y, x, size, e1, e2
    background: list[np.ndarray] = field(default_factory=list)
    chi2: list[float] = field(default_factory=list)  # a pixel, of each sample
    local_chi2: list[np.ndarray] = field(default_factory=list)  # (K,) each
    samples: list[np.ndarray] = field(default_factory=list)
    sources: np.ndarray | float = 0.0  # sums
    sources2: np.ndarray | float = 0.0
    stamps: np.ndarray | float = 0.0
    stamps2: np.ndarray | float = 0.0
    prior_variance: np.ndarray | float = 0.0
    model: np.ndarray | float = 0.0

    def add(
        self,
        stamps: np.ndarray,
        sources: np.ndarray,
        flux: np.ndarray,
        background: np.ndarray,
        model: np.ndarray,
        prior_variance: np.ndarray,
        summary: np.ndarray,
    ) -> None:
        """One sample: stamps (K, C, P, P), sources (K, C, H, W), flux (K, C), background (C,), model (C, H, W).

        summary: (K, 5) y, x from the stamps' pixel P // 2, size, e1, e2; (K, 0): these are measured on the stamps.
        """
        observation = self.scene.observation
        residual = np.where(observation.valid, observation.images - model, 0)
        self.chi2.append(float(np.sum(observation.weights * residual**2.0) / max(observation.valid.sum(), 1)))
        self.local_chi2.append(measure.local_chi2(sources, residual, observation.weights))
        if summary.shape[1]:
            shapes = summary.T.astype(float)
            shapes[:2] += (self.corners + stamps.shape[-1] // 2).T
        else:
            found = measure.stamp_shapes(stamps, self.corners, self.model_sigma)
            shapes = np.stack([found.y, found.x, found.size, found.e1, found.e2])
        shapes[:2] -= np.reshape(self.shift, (-1, 1))
        self.shapes.append(shapes)
        self.flux.append(flux)
        self.background.append(background)
        if self.keep:
            self.samples.append(stamps.astype(np.float32))
        self.sources, self.sources2 = self.sources + sources, self.sources2 + sources.astype(float) ** 2
        self.stamps, self.stamps2 = self.stamps + stamps, self.stamps2 + stamps.astype(float) ** 2
        self.prior_variance, self.model = self.prior_variance + prior_variance, self.model + model

    @property
    def count(self) -> int:
        return len(self.flux)

    def mean(self, name: str) -> np.ndarray:
        """Of "sources", "stamps" or "model"."""
        return (getattr(self, name) / self.count).astype(np.float32)

    def deviation(self, name: str) -> np.ndarray:
        """Standard deviation of "sources" or "stamps"; NaN of a single sample."""
        square = getattr(self, name + "2") - np.asarray(getattr(self, name), float) ** 2 / self.count
        return np.sqrt(np.maximum(square, 0) / (self.count - 1 or np.nan)).astype(np.float32)

    def flux_covariance(self) -> np.ndarray:
        """(C, K, K) of all sources' fluxes, band by band."""
        flux = np.stack(self.flux)
        offset = flux - flux.mean(0)
        return np.einsum("skc,slc->ckl", offset, offset) / (self.count - 1 or np.nan)

    def mean_shapes(self) -> measure.Shapes:
        """Means over the samples, with their standard deviations as errors."""
        every = np.stack(self.shapes)
        y, x, size, e1, e2 = every.mean(0)
        errors = every.std(0, ddof=1).T if self.count > 1 else np.full((len(y), 5), np.nan)
        return measure.Shapes(y, x, size, e1, e2, errors)

    def prior_share(self) -> np.ndarray:
        """(K, C, P, P): the samples' variance over the prior's, 0 where the data decide and 1 where the prior does; NaN
        where there is no learned prior."""
        prior = np.asarray(self.prior_variance, float) / self.count
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(prior > 0, self.deviation("stamps").astype(float) ** 2 / prior, np.nan).astype(np.float32)
