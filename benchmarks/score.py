"""What a deblender's answer is worth, given the truth: per-source errors, and their medians with bootstrap intervals.

Letters: K sources, C bands, H, W pixels; `truth` t and `model` m (K,C,H,W) are each source alone as observed
(PSF-convolved), in the same flux units; `weights` w (C,H,W) is the inverse variance, 0 = masked. Plain NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np

BINS = {
    "snr": (5, 10, 20, 50, 100, np.inf),
    "blendedness": (0, 0.01, 0.1, 0.3, 0.6, 1),
    "number": (1, 2, 3, 4, 5, 8, 20, np.inf),
}
MIN_SNR = 5.0


def signal_to_noise(truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(K,) sqrt(sum w t^2) over all bands and pixels: that of a matched filter on the isolated source."""
    return np.sqrt(np.einsum("chw,kchw,kchw->k", weights, truth, truth, optimize=True))


def blendedness(truth: np.ndarray) -> np.ndarray:
    """(K,) 1 - <t,t> / <t, sum of all>: 0 for an isolated source, near 1 for one under a far brighter neighbour."""
    own = np.einsum("kchw,kchw->k", truth, truth)
    return 1 - _ratio(own, np.einsum("kchw,chw->k", truth, truth.sum(0)))


def flux_error(truth: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(K,C) sum(m) / sum(t) - 1; NaN where the truth has no flux."""
    return _ratio(model.sum((2, 3)), truth.sum((2, 3))) - 1


def colour_error(truth: np.ndarray, model: np.ndarray, bands: Sequence[str], blue="g", red="r") -> np.ndarray:
    """(K,) |delta(blue - red)| in magnitudes; infinite where the model has no positive flux, NaN without both bands."""
    if blue not in bands or red not in bands:
        return np.full(len(truth), np.nan)
    pair = [list(bands).index(blue), list(bands).index(red)]
    true, ours = truth.sum((2, 3))[:, pair], model.sum((2, 3))[:, pair]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (ours[:, 0] / ours[:, 1]) / (true[:, 0] / true[:, 1])
        error = np.abs(2.5 * np.log10(ratio))
    return np.where((true <= 0).any(1), np.nan, np.where((ours <= 0).any(1), np.inf, error))


def relative_l2(truth: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(K,) ||m - t|| / ||t|| over all bands and pixels."""
    return _ratio(np.linalg.norm(_flat(model - truth), axis=1), np.linalg.norm(_flat(truth), axis=1))


def cosine(truth: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(K,) <m,t> / (||m|| ||t||), which no rescaling changes; 0 for an empty model."""
    norms = np.linalg.norm(_flat(model), axis=1) * np.linalg.norm(_flat(truth), axis=1)
    return np.where(norms > 0, _ratio((_flat(model) * _flat(truth)).sum(1), norms), 0.0)


def chi2_per_pixel(images: np.ndarray, weights: np.ndarray, model: np.ndarray) -> float:
    """sum(w (y - model)^2) / count(w > 0) of the summed model (C,H,W)."""
    return float((weights * (images - model) ** 2).sum() / (weights > 0).sum())


def bound(images: np.ndarray, weights: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K,C,H,W) the truth, each source rescaled in each band by the least-squares fit to the noisy images.

    Every source's shape is known here and only its flux is not, so that no deblender does better on average.
    """
    model = np.empty_like(truth)
    for band in range(truth.shape[1]):
        root = np.sqrt(weights[band].ravel())
        shapes = _flat(truth[:, band])
        scale = np.linalg.lstsq((root * shapes).T, root * images[band].ravel(), rcond=None)[0]
        model[:, band] = scale[:, None, None] * truth[:, band]
    return model


@dataclass
class Scores:
    """One row a source, over all the blends of one method; `flux` has a column a band."""

    bands: tuple[str, ...]
    blend: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    snr: np.ndarray = field(default_factory=lambda: np.empty(0))
    blendedness: np.ndarray = field(default_factory=lambda: np.empty(0))
    number: np.ndarray = field(default_factory=lambda: np.empty(0))
    flux: np.ndarray | None = None
    colour: np.ndarray = field(default_factory=lambda: np.empty(0))
    l2: np.ndarray = field(default_factory=lambda: np.empty(0))
    cosine: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, blend: int, truth: np.ndarray, model: np.ndarray, weights: np.ndarray) -> None:
        """Append the sources of one blend; `blend` numbers it."""
        count = len(truth)
        rows = {
            "blend": np.full(count, blend),
            "snr": signal_to_noise(truth, weights),
            "blendedness": blendedness(truth),
            "number": np.full(count, float(count)),
            "flux": flux_error(truth, model),
            "colour": colour_error(truth, model, self.bands),
            "l2": relative_l2(truth, model),
            "cosine": cosine(truth, model),
        }
        for name, values in rows.items():
            before = getattr(self, name)
            setattr(self, name, values if before is None else np.concatenate([before, values]))

    def select(self, rows: np.ndarray) -> Scores:
        """The scores of some sources; `rows` a mask or indices into the sources."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "bands"}
        return Scores(self.bands, **columns)

    def bin(self, by: str, low: float, high: float) -> Scores:
        """The sources with low <= `by` < high, `by` one of BINS; the last bin of the blendedness includes its end."""
        value = getattr(self, by)
        at_end = (value == high) & (high == BINS[by][-1])
        return self.select((value >= low) & ((value < high) | at_end))


def summary(scores: Scores, band: str = "i", resamples: int = 500, seed: int = 0) -> dict:
    """Medians over the sources with signal-to-noise above 5, each {"median", "low", "high"}, low and high the 16th
    and 84th percentile over bootstrap samples of the blends. `flux` is of the absolute error in `band`, `bias` signed.
    """
    bright = scores.select(scores.snr > MIN_SNR)
    flux = np.empty((0, len(scores.bands))) if bright.flux is None else bright.flux
    index = scores.bands.index(band) if band in scores.bands else len(scores.bands) // 2
    picks = _resampled_rows(bright.blend, resamples, seed)
    columns = {
        "flux": np.abs(flux[:, index]),
        "bias": flux[:, index],
        "colour": bright.colour,
        "l2": bright.l2,
        "cosine": bright.cosine,
    }
    columns |= {f"flux_{name}": np.abs(flux[:, c]) for c, name in enumerate(scores.bands)}
    result: dict = {name: interval(values, picks) for name, values in columns.items()}
    return {"sources": len(bright.snr), "blends": len(np.unique(bright.blend)), "band": scores.bands[index]} | result


def interval(values: np.ndarray, picks: Sequence[np.ndarray]) -> dict[str, float | None]:
    """The median of (N,) values and the 16th and 84th percentile of the medians of the resamples `picks`."""
    if not np.any(~np.isnan(values)):
        return {"median": None, "low": None, "high": None}
    medians = [_median(values[rows]) for rows in picks]
    low, high = np.nanpercentile(medians, [16, 84], method="nearest")
    return {"median": _median(values), "low": float(low), "high": float(high)}


def binned(scores: Scores, band: str = "i") -> dict[str, list[dict]]:
    """`summary` in each bin of BINS that holds sources, with the bin's "low" and "high" edge under "bin"."""
    result: dict[str, list[dict]] = {}
    for by, edges in BINS.items():
        parts = [((low, high), scores.bin(by, low, high)) for low, high in pairwise(edges)]
        result[by] = [{"bin": edge} | summary(part, band) for edge, part in parts if (part.snr > MIN_SNR).any()]
    return result


def _resampled_rows(blend: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """For each bootstrap sample of the blends, the rows of their sources."""
    names = np.unique(blend)
    rows = {name: np.flatnonzero(blend == name) for name in names}
    rng = np.random.default_rng(seed)
    return [np.concatenate([rows[n] for n in rng.choice(names, len(names))]) for _ in range(resamples) if len(names)]


def _median(values: np.ndarray) -> float:
    """The median without NaN; infinities count as large (and never meet each other's sign)."""
    kept = values[~np.isnan(values)]
    return float(np.percentile(kept, 50, method="lower" if np.isinf(kept).any() else "linear")) if len(kept) else np.nan


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
