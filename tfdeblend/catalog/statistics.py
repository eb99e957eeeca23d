"""Keep what a scene's posterior samples tell together, as they come: means, spreads and covariances. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tfdeblend.catalog import measure
from tfdeblend.catalog.result import SampleCatalog
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.scene import Scene


class Sample(NamedTuple):
    """One posterior sample of a scene, in the scene's own units and cut to its size.

    models: E times (C_e,H,W), backgrounds included. sources: E times (K,C_e,H,W). backgrounds: E times (C_e,).
    stamps: (K,C,P,P). flux: (K,C). prior_variance: (K,C,P,P) of the stamps' pixels, 0 where there is no learned prior.
    beyond_prior: (K,) galaxies that the prior does not know. summary: (K,5) y and x from the stamps' pixel P // 2,
    size, e1, e2; None: these are measured on the stamps.
    """

    models: Sequence[np.ndarray]
    sources: Sequence[np.ndarray]
    backgrounds: Sequence[np.ndarray]
    stamps: np.ndarray
    flux: np.ndarray
    prior_variance: np.ndarray
    beyond_prior: np.ndarray
    summary: np.ndarray | None = None


class Sums:
    """Add up arrays and their squares, for means and standard deviations."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, np.array(0.0), np.array(0.0)

    def add(self, values: np.ndarray) -> None:
        values = np.asarray(values, float)
        self.count, self.total, self.squares = self.count + 1, self.total + values, self.squares + values**2

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviation; NaN of a single sample."""
        return np.sqrt(np.maximum(self.squares - self.total**2 / self.count, 0) / (self.count - 1 or np.nan))


@dataclass
class SampleStatistics:
    """The statistics of the samples of one scene; `add` each of them.

    scene: of E observations. corners: (K,2) of the stamps in the model frame. model_sigma: pixels of the model PSF.
    keep: whether the samples' stamps are kept themselves.
    """

    scene: Scene
    corners: np.ndarray
    model_sigma: float
    keep: bool = False
    models: list[Sums] = field(init=False)  # one of each observation, as are the next two
    sources: list[Sums] = field(init=False)
    backgrounds: list[Sums] = field(init=False)
    stamps: Sums = field(init=False, default_factory=Sums)
    prior_variance: Sums = field(init=False, default_factory=Sums)
    samples: list[np.ndarray] = field(init=False, default_factory=list)  # stamps
    flux: list[np.ndarray] = field(init=False, default_factory=list)  # (K,C) each
    shapes: list[np.ndarray] = field(init=False, default_factory=list)  # (5,K) each: y, x, size, e1, e2
    chi2: list[float] = field(init=False, default_factory=list)  # a pixel of the first observation
    local_chi2: list[np.ndarray] = field(init=False, default_factory=list)  # (K,) each, in the first observation
    beyond_prior: np.ndarray = field(init=False)  # (K,): in any sample

    def __post_init__(self) -> None:
        self.models, self.sources, self.backgrounds = ([Sums() for _ in self.scene.observations] for _ in range(3))
        self.beyond_prior = np.zeros(len(self.scene.sources), bool)

    def add(self, sample: Sample) -> None:
        """Take one more sample into account."""
        for every, values in (
            (self.models, sample.models),
            (self.sources, sample.sources),
            (self.backgrounds, sample.backgrounds),
        ):
            for sums, value in zip(every, values, strict=True):
                sums.add(value)
        self.stamps.add(sample.stamps)
        self.prior_variance.add(sample.prior_variance)
        self.flux.append(sample.flux)
        self.shapes.append(self._shapes(sample))
        observation = self.scene.observation
        residual = np.where(observation.valid, observation.images - sample.models[0], 0)
        whitened = np.sqrt(observation.weights) * residual
        self.chi2.append(float(np.sum(whitened**2) / max(observation.valid.sum(), 1)))
        self.local_chi2.append(measure.local_chi2(Windows.whole(sample.sources[0]), residual, observation.weights))
        self.beyond_prior |= sample.beyond_prior
        if self.keep:
            self.samples.append(sample.stamps.astype(np.float32))

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.flux)

    def flux_covariance(self) -> np.ndarray:
        """(C,K,K) covariance of all sources' fluxes, band by band."""
        flux = np.stack(self.flux)
        offset = flux - flux.mean(0)
        return np.einsum("skc,slc->ckl", offset, offset) / (self.count - 1 or np.nan)

    def mean_shapes(self) -> measure.Shapes:
        """The means over the samples, with their standard deviations as errors; positions in the model frame."""
        every = np.stack(self.shapes)
        y, x, size, e1, e2 = every.mean(0)
        errors = every.std(0, ddof=1).T if self.count > 1 else np.full((len(y), 5), np.nan)
        return measure.Shapes(y, x, size, e1, e2, errors)

    def catalog(self) -> SampleCatalog:
        """Gather the fluxes and shapes of every sample, positions in the model frame."""
        flux, shapes = np.stack(self.flux), np.stack(self.shapes).swapaxes(1, 2)
        return SampleCatalog(flux, shapes, np.zeros(flux.shape[1], int))

    def prior_share(self) -> np.ndarray:
        """(K,C,P,P): the samples' variance over the prior's, 0 where the data decide and 1 where the prior does.

        NaN where there is no learned prior.
        """
        prior = self.prior_variance.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(prior > 0, self.stamps.deviation**2 / prior, np.nan).astype(np.float32)

    def _shapes(self, sample: Sample) -> np.ndarray:
        """(5,K) y, x, size, e1, e2 of a sample, positions in the model frame."""
        if sample.summary is None:
            found = measure.stamp_shapes(sample.stamps, self.corners, self.model_sigma)
            return np.stack([found.y, found.x, found.size, found.e1, found.e2])
        shapes = sample.summary.T.astype(float)
        shapes[:2] += (self.corners + sample.stamps.shape[-1] // 2).T
        return shapes
