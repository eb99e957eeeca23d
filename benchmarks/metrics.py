"""Whether posterior samples are calibrated: coverage, ranks, z-scores, TARP. NumPy only.

Each holds for any number of samples: a calibrated posterior gives uniform ranks, the nominal coverage and z-scores of
spread 1 with 8 samples as with 800.
"""

from __future__ import annotations

import numpy as np


def ranks(truth: np.ndarray, samples: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) where each truth (N,) lies among its samples (N, S), in (0, 1), ties broken evenly: uniform if calibrated.

    Simulation-based calibration (Talts et al. 2018): the number of samples below the truth is uniform over 0 to S.
    """
    below = (samples < truth[:, None]).sum(1) + np.random.default_rng(seed).uniform(size=len(truth))
    return below / (samples.shape[1] + 1)


def covered(rank: np.ndarray, level: float) -> np.ndarray:
    """(N,) whether the truth lies in the central interval of probability `level`."""
    return np.abs(rank - 0.5) < level / 2


def z_scores(truth: np.ndarray, mean: np.ndarray, deviation: np.ndarray, samples: int) -> np.ndarray:
    """(mean - truth) / deviation of `samples` draws, over what spread that has if calibrated: Student's.

    Raises: ValueError for fewer than 4 samples, whose z-scores have no variance.
    """
    if samples < 4:
        raise ValueError(f"expected at least 4 samples, received {samples}")
    spread = np.sqrt((1 + 1 / samples) * (samples - 1) / (samples - 3))
    return (mean - truth) / deviation / spread


def crps(truth: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(...) the continuous ranked probability score of samples (..., S), in units of the truth (...): lower is better.

    E|x - truth| - E|x - x'| / 2, without bias for any S (Gneiting & Raftery 2007).
    """
    number = samples.shape[-1]
    ordered = np.sort(samples, -1)
    weights = 2 * np.arange(number) - number + 1  # sum of |x - x'| over pairs, from what is ordered
    apart = (ordered * weights).sum(-1) * 2 / (number * (number - 1))
    return np.abs(samples - truth[..., None]).mean(-1) - apart / 2


def tarp(truth: np.ndarray, samples: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) the posterior's mass nearer to a random point than the truth (N, D) is: uniform if calibrated.

    "Tests of accuracy with random points" (Lemos et al. 2023); points are drawn evenly over the truths' range, all
    dimensions over their spread.
    """
    rng = np.random.default_rng(seed)
    low, high = truth.min(0), truth.max(0)
    point = rng.uniform(low, high, truth.shape)
    scale = np.maximum(high - low, 1e-30)
    near = np.linalg.norm((truth - point) / scale, axis=1)
    distances = np.linalg.norm((samples - point[:, None]) / scale, axis=2)
    return ((distances < near[:, None]).sum(1) + rng.uniform(size=len(truth))) / (samples.shape[1] + 1)


def uniform_distance(values: np.ndarray, seed: int = 0, draws: int = 1000, level: float = 0.95) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of values (N,) from uniform, and what so many uniform ones stay below."""
    rng = np.random.default_rng(seed)
    drawn = [_distance(rng.uniform(size=len(values))) for _ in range(draws)]
    return _distance(values), float(np.quantile(drawn, level))


def _distance(values: np.ndarray) -> float:
    ordered, number = np.sort(values), len(values)
    steps = np.arange(number + 1) / number
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
