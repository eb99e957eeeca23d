"""Tests whether two sets of stamps have one distribution: of measured properties, and of all pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

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
    """Returns Kolmogorov and Smirnov's distance of the distributions, its level (asymptotic), and the medians."""
    one, two = np.sort(one[np.isfinite(one)]), np.sort(two[np.isfinite(two)])
    every = np.concatenate([one, two])
    steps = [np.searchsorted(part, every, "right") / len(part) for part in (one, two)]
    distance = float(np.abs(steps[0] - steps[1]).max())
    scaled = np.sqrt(len(one) * len(two) / len(every)) * distance
    level = 2 * sum((-1) ** (k - 1) * np.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    medians = {"data": float(np.median(one)), "samples": float(np.median(two))}
    return {"distance": distance, "level": float(np.clip(level, 0, 1)) if scaled > 0.2 else 1.0, **medians}


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
        values.append(_chi2(counts[:, counts.sum(0) > 0]))
    return float(np.mean(values))


def _chi2(counts: np.ndarray) -> float:
    """Returns chi-square a degree of freedom of counts (2, M) whose rows should be alike."""
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    return float(((counts - expected) ** 2 / expected).sum() / (counts.shape[1] - 1))
