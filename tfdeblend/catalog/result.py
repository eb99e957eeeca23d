"""The result for one scene: what each of its observations shows of the sources, their stamps and their catalogue.

NumPy and tables only, so that results can be read, measured and plotted where there is no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene

if TYPE_CHECKING:
    from astropy.table import Table
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class View:
    """Shows what one observation sees of the K sources, on its own pixels and in its own unit.

    Args:
        observation: the data, with weight 0 in all pixels that were not fitted.
        model: (C_e,H,W) the rendered scene, background included.
        light: of each source as observed, convolved with the PSF.
        background: (C_e,) a constant per pixel.
        positions: (K,2) of (y, x): where this observation shows the sources, in its pixels.
        scale: how many of its pixels lie along one of the first observation's.
        light_std: its posterior standard deviation in the same windows, where sampled.
        undeclared: detections on the residual that no source accounts for: x, y, snr.
    """

    observation: Observation
    model: np.ndarray
    light: Windows
    background: np.ndarray
    positions: np.ndarray
    scale: float = 1.0
    light_std: Windows | None = None
    undeclared: Table | None = None

    @property
    def sources(self) -> np.ndarray:
        """Make `light` over the whole image, (K,C_e,H,W), at each use. Of large fields take `light`, which is small."""
        return self.light.dense

    @property
    def sources_std(self) -> np.ndarray | None:
        """Make `light_std` over the whole image, (K,C_e,H,W), at each use."""
        return None if self.light_std is None else self.light_std.dense

    @property
    def residual(self) -> np.ndarray:
        """Give images - model, (C_e,H,W), NaN where masked or not fitted."""
        return np.where(self.observation.valid, self.observation.images - self.model.astype(float), np.nan)

    @property
    def above_background(self) -> Observation:
        """Give the observation less the fitted background."""
        return self.observation.less(self.background)

    @property
    def chi2(self) -> float:
        """Give sum(weights * residual^2) over the number of unmasked pixels."""
        return self._chi2_sum / max(self._pixels, 1)

    @property
    def shares(self) -> Windows:
        """Share the data less the background out in proportion to the sources' models, in the windows of `light`.

        data * source / sum of sources where that sum is positive and the pixel is unmasked, 0 elsewhere; sources are
        taken as zero where negative, so that every share lies between 0 and 1.
        """
        positive = self.light.map(lambda here, pixels: np.maximum(pixels, 0))
        total = positive.total()
        shared = self.observation.valid & (total > 0)
        data = self.observation.images - self.background[:, np.newaxis, np.newaxis]
        each = np.where(shared, data / np.where(shared, total, 1), 0)  # of the sources' models
        return positive.map(lambda here, pixels: (each[here] * pixels).astype(np.float32))

    @property
    def reapportioned(self) -> np.ndarray:
        """Make `shares` over the whole image, (K,C_e,H,W), at each use."""
        return self.shares.dense

    def __repr__(self) -> str:
        """Tell in one line which observation, bands and pixels it is of, and how well the model describes it."""
        height, width = self.model.shape[1:]
        undeclared = "" if self.undeclared is None else f", {len(self.undeclared)} undeclared"
        what = f"{' '.join(self.observation.bands)}, {height} x {width} pixels"
        return f"View of {self.observation.name}: {what}, chi2/pixel {self.chi2:.2f}{undeclared}"

    @property
    def _chi2_sum(self) -> float:
        return float(np.nansum((np.sqrt(self.observation.weights) * self.residual) ** 2))

    @property
    def _pixels(self) -> int:
        return int(self.observation.valid.sum())


class Calibration(NamedTuple):
    """Says where each of E observations really looks, and how bright it really is.

    Args:
        shift: (E,2) pixels (y, x) of the model frame, to be added to where an observation's WCS says that it looks.
        gain: E times (C_e,), by which the sources' fluxes are multiplied.
        shift_error: (E,2) standard deviations.
    """

    shift: np.ndarray
    gain: tuple[np.ndarray, ...]
    shift_error: np.ndarray


@dataclass(frozen=True, eq=False)
class SampleCatalog:
    """Holds what S posterior samples say of K sources.

    Args:
        flux: (S,K,C) total fluxes, in the unit of the first observation that has the band.
        shapes: (S,K,5) y and x in the model frame, size (pixels), e1 and e2, as of the catalogue's columns.
        group: (K,) integers. Sources of one number were drawn together: sample s of one belongs with sample s of
            another. Those of different numbers, which are of different parts of a large scene, are independent. Sources
            that were not fitted have -1, and NaN in place of fluxes and shapes.
    """

    flux: np.ndarray
    shapes: np.ndarray
    group: np.ndarray


def positions_in_views(scene: Scene, positions: np.ndarray, calibration: Calibration | None) -> list[np.ndarray]:
    """Return (K,2) for each observation: its pixels that show what is at `positions` (K,2) of the model frame."""
    shifts = np.zeros((len(scene.observations), 2)) if calibration is None else calibration.shift
    pairs = zip(scene.maps, shifts, strict=True)
    return [np.linalg.solve(pixels.matrix, (positions - pixels.offset - shift).T).T for pixels, shift in pairs]


@dataclass(frozen=True, eq=False)
class Deblended:
    """Holds K sources taken apart in a scene of E >= 1 observations and C bands.

    Fluxes are in the unit of the first observation that has the band. The model frame has the first observation's
    pixels; where shifts of the observations are fitted, the first is off it by `calibration.shift[0]`. Errors take the
    calibration as known.

    Args:
        scene: the observations, and the sources as they were declared or detected.
        views: E of them, what each observation shows.
        stamps: (K,C,P,P) each source in the model frame, zero-padded to the largest P; means where sampled.
        corners: (K,2) integers: (y, x) of the pixel of the model frame under pixel [0, 0] of the stamp.
        flux_cov: (C,K,K) covariance of the fluxes of all sources, band by band.
        catalog: a row a source, positions in pixels of the first observation.
        header: method, prior, version, seed and the like, by FITS keyword.
        calibration: shifts and gains of the observations, where they were fitted.
        samples: (S,K,C,P,P) posterior samples in the model frame, where they were to be kept.
        sample_catalog: fluxes and shapes of each sample, where sampled.
        prior_share: (K,C,P,P) posterior variance of the stamps' pixels over the prior's, where sampled.
    """

    scene: Scene
    views: tuple[View, ...]
    stamps: np.ndarray
    corners: np.ndarray
    flux_cov: np.ndarray
    catalog: Table
    header: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    calibration: Calibration | None = None
    samples: np.ndarray | None = None
    sample_catalog: SampleCatalog | None = None
    prior_share: np.ndarray | None = None

    @classmethod
    def read(cls, path: str | Path) -> Deblended:
        """Read a result that `write` wrote. Raises: DataError by file and extension, see `catalog.files.read`."""
        from tfdeblend.catalog import files

        return files.read(path)

    def write(self, path: str | Path) -> None:
        """Write the result as FITS, whole or not at all, over any file of that name; see `catalog.files`."""
        from tfdeblend.catalog import files

        files.write(self, path)

    def plot(self, path: str | Path | None = None) -> Image:
        """Draw observations, models, residuals and sources, and write the picture to `path`, where given, as a PNG."""
        from tfdeblend.plots import bitmap

        return bitmap.plot(self, path)

    @property
    def model(self) -> np.ndarray:
        """Give the rendered scene as the first observation shows it, (C_1,H,W), background included."""
        return self.views[0].model

    @property
    def light(self) -> Windows:
        """Give each source as the first observation shows it, in windows that hold its light."""
        return self.views[0].light

    @property
    def sources(self) -> np.ndarray:
        """Make each source as the first observation shows it, (K,C_1,H,W), at each use."""
        return self.views[0].sources

    @property
    def sources_std(self) -> np.ndarray | None:
        """Make the standard deviations of `sources`, (K,C_1,H,W), at each use; None where nothing was sampled."""
        return self.views[0].sources_std

    @property
    def background(self) -> np.ndarray:
        """Give the constant in each band of the first observation, (C_1,)."""
        return self.views[0].background

    @property
    def residual(self) -> np.ndarray:
        """Give images - model of the first observation, (C_1,H,W), NaN where masked."""
        return self.views[0].residual

    @property
    def undeclared(self) -> Table | None:
        """List what is left on the first observation's residual and no source accounts for, as x, y, snr."""
        return self.views[0].undeclared

    @property
    def reapportioned(self) -> np.ndarray:
        """Share the first observation's data out in proportion to the sources' models, (K,C_1,H,W)."""
        return self.views[0].reapportioned

    @property
    def chi2(self) -> float:
        """Give sum(weights * residual^2) over the number of unmasked pixels, of all observations together."""
        return sum(view._chi2_sum for view in self.views) / max(sum(view._pixels for view in self.views), 1)

    @property
    def flux(self) -> np.ndarray:
        """Give the total fluxes (K,C), as in the catalogue."""
        return np.stack([np.asarray(self.catalog[f"flux_{band}"], float) for band in self.scene.bands], 1)

    @property
    def flux_err(self) -> np.ndarray:
        """Give the standard deviations (K,C) of `flux`, as in the catalogue."""
        return np.stack([np.asarray(self.catalog[f"flux_err_{band}"], float) for band in self.scene.bands], 1)

    @property
    def calibration_table(self) -> Table:
        """List for each band of an observation its shift (pixels of the first) and errors, gain, background, chi2.

        Raises: ValueError where no calibration was fitted.
        """
        from astropy.table import Table

        if self.calibration is None:
            raise ValueError("expected a result with a fitted calibration, received one without")
        rows = []
        for view, shift, gains, error in zip(self.views, *self.calibration, strict=True):
            for band, gain, background in zip(view.observation.bands, gains, view.background, strict=True):
                rows.append((view.observation.name, band, *shift, *error, gain, background, view.chi2))
        names = "observation", "band", "shift_y", "shift_x", "shift_y_err", "shift_x_err", "gain", "background", "chi2"
        return Table(rows=rows, names=names)

    def __repr__(self) -> str:
        """Tell in a few lines which scene it is, what its observations show, how it was deblended and how well."""
        count, header = len(self.stamps), self.header
        title = f"Deblended {self.scene.name}: {count} source{'s' * (count != 1)} in {' '.join(self.scene.bands)}"
        lines = [title, *(f"  {view!r}" for view in self.views)]
        facts = [f"{key} {header[key]}" for key in ("method", "prior", "samples", "converged") if key in header]
        if "walltime" in header:
            facts.append(f"{float(header['walltime']):.3g} s")
        return "\n".join([*lines, "  " + ", ".join(facts)] if facts else lines)

    def _repr_html_(self) -> str:
        """Show the text of `repr` and the catalogue, as notebooks do."""
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>{self.catalog._repr_html_()}"
