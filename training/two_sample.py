"""Tests whether two sets of stamps have one distribution: of measured properties, and of all pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from tfdeblend.catalog import measure
from tfdeblend.diffusion.denoisers import flux_scale

CELLS, REPEATS = 50, 20  # of PQMass
COMPONENTS = 24  # directions that PQMass measures distances in


def properties(stamps: np.ndarray, bands: tuple[str, ...], model_sigma: float) -> dict[str, np.ndarray]:
    """Measures stamps, (N,) each: flux over the stamp's norm, half-light radius in pixels, ellipticity, concentration,
    share of power at high frequencies (above a quarter of the sampling), colours in magnitudes."""
    flux = stamps.sum((2, 3), dtype=float)
    shapes = measure.stamp_shapes(stamps, np.zeros((len(stamps), 2)), model_sigma)
    found = {
        "flux": flux.sum(1) / flux_scale(stamps),
        "size": shapes.size,
        "ellipticity": np.hypot(shapes.e1, shapes.e2),
        "concentration": _concentration(stamps),
        "power": _high_power(stamps),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        for b, (blue, red) in enumerate(pairwise(bands)):
            found[f"{blue}-{red}"] = -2.5 * np.log10(flux[:, b] / flux[:, b + 1])
    return found


def _concentration(stamps: np.ndarray) -> np.ndarray:
    """Returns the light (N,) within an eighth of the stamp's side of its middle, over that within a quarter."""
    side = stamps.shape[-1]
    t = np.arange(side) - side // 2
    radius = np.hypot(t[:, None], t)
    inner, outer = ((stamps * (radius <= side / share)).sum((1, 2, 3), dtype=float) for share in (8, 4))
    return inner / np.where(outer > 0, outer, np.nan)


def _high_power(stamps: np.ndarray) -> np.ndarray:
    """Returns log10 of the share (N,) of power above 1/4 a pixel in the image summed over bands."""
    power = np.abs(np.fft.rfft2(stamps.sum(1))) ** 2
    side = stamps.shape[-1]
    high = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) > 0.25
    return np.log10((power * high).sum((1, 2)) / power.sum((1, 2)))


def two_sample(one: np.ndarray, two: np.ndarray) -> dict[str, float]:
    """Returns Kolmogorov and Smirnov's distance of the distributions, its level (asymptotic), and the medians; NaN
    where one of the two has no finite number."""
    one, two = one[np.isfinite(one)], two[np.isfinite(two)]
    if not len(one) or not len(two):
        return dict.fromkeys(("distance", "level", "data", "samples"), np.nan)
    found = ks_2samp(one, two, method="asymp")
    medians = {"data": float(np.median(one)), "samples": float(np.median(two))}
    return {"distance": float(found.statistic), "level": float(found.pvalue), **medians}


def pqmass(data: np.ndarray, samples: np.ndarray, seed: int = 0) -> float:
    """Computes PQMass (Lemos et al. 2024, arXiv:2402.04355) of stamps (N, C, P, P): chi-square a degree of freedom,
    the mean over REPEATS tessellations; 1 if both have one distribution.

    Each cuts the space into the cells nearest to CELLS of the stamps, which are then left out, and compares how many of
    either set fall into each. Distances are along the first COMPONENTS principal components of both sets (of one
    alone they would follow its noise), in units of their square roots: else the brightest pixels would decide.
    """
    flat = np.concatenate([x.reshape(len(x), -1) for x in (data, samples)]).astype(np.float64)
    flat -= flat.mean(0)
    _, spread, axes = np.linalg.svd(flat, full_matrices=False)
    spread = spread[:COMPONENTS] / np.sqrt(len(flat))
    seen = flat @ axes[:COMPONENTS].T / np.sqrt(np.maximum(spread, 1e-12))
    first = np.arange(len(seen)) < len(data)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(REPEATS):
        order = rng.permutation(len(seen))
        centers, rest = seen[order[:CELLS]], order[CELLS:]
        distance = ((seen[rest, None] - centers) ** 2).sum(2)
        cell = distance.argmin(1)
        counts = np.stack([np.bincount(cell[first[rest] == which], minlength=CELLS) for which in (True, False)])
        found = chi2_contingency(counts[:, counts.sum(0) > 0], correction=False)
        values.append(found.statistic / found.dof)
    return float(np.mean(values))
