"""Fits the Gaussian mixtures that represent Sersic profiles, and prints the tables of `tfdeblend.galaxies.profiles`.

A mixture of J Gaussians, sigma_j(n) spaced geometrically between lo(n) and hi(n) half-light radii, with amplitudes that
are Chebyshev polynomials of log n: once the spacing is given, the amplitudes are one linear least-squares problem. What
is fitted is what is used: the profile convolved with a Gaussian of q half-light radii, q = 0.025 ... 2.5, relative to
its peak. The spacing is found by Nelder-Mead on the largest error. For the exponential and De Vaucouleurs' profile,
whose index is fixed, fewer Gaussians do, whose widths are all free.

Needs SciPy. Run: python -m tfdeblend.training.fit_sersic_mixture
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import gamma, gammaincinv, ive

COMPONENTS, DEGREE = 10, 8
INDEX_RANGE = (0.5, 6.2)
WIDTHS = np.geomspace(0.025, 2.5, 8)


def convolved_sersic(n: float, q: float, radii: np.ndarray) -> np.ndarray:
    """Computes a unit-flux Sersic profile of half-light radius 1 convolved with a Gaussian of sigma q at radii."""
    b = gammaincinv(2 * n, 0.5)
    r = np.geomspace(1e-6, 60, 3000)
    dr = np.gradient(np.log(r)) * r
    intensity = np.exp(-b * r ** (1 / n)) / (2 * np.pi * n * b ** (-2 * n) * gamma(2 * n))
    bessel = np.exp(-((radii[:, None] - r) ** 2) / (2 * q**2)) * ive(0, radii[:, None] * r / q**2) / q**2
    return (bessel * (intensity * r * dr)).sum(axis=1)


def sigmas(n: float, spacing: np.ndarray) -> np.ndarray:
    """Returns the mixture's widths [J] at Sersic index n; spacing: two quadratics in log n, of log lo and log hi."""
    powers = np.log(n) ** np.arange(3)
    lo, hi = np.exp(spacing[:3] @ powers), np.exp(spacing[3:] @ powers)
    return lo * (hi / lo) ** (np.arange(COMPONENTS) / (COMPONENTS - 1))


class Targets:
    """The convolved profiles on a grid of indices, widths and radii, computed once."""

    def __init__(self, nodes: int):
        self.x = np.cos(np.pi * (np.arange(nodes) + 0.5) / nodes)
        lo, hi = np.log(INDEX_RANGE)
        self.indices = np.exp(lo + (self.x + 1) / 2 * (hi - lo))
        self.grid = [(q, np.append(0, np.geomspace(0.3 * q, min(12, 8 + 6 * q), 24))) for q in WIDTHS]
        self.profiles = [[convolved_sersic(n, q, r) for q, r in self.grid] for n in self.indices]

    def fit(self, spacing: np.ndarray) -> tuple[np.ndarray, float]:
        """Fits amplitudes [J, DEGREE + 1]; returns them and the largest error relative to a profile's peak."""
        basis = np.polynomial.chebyshev.chebvander(self.x, DEGREE)
        rows, values = [], []
        for node, n in enumerate(self.indices):
            s = sigmas(n, spacing)
            for (q, r), profile in zip(self.grid, self.profiles[node], strict=True):
                v = s**2 + q**2
                gauss = np.exp(-(r[:, None] ** 2) / (2 * v)) / (2 * np.pi * v) / profile[0]
                rows.append((gauss[:, :, None] * basis[node]).reshape(len(r), -1))
                values.append(profile / profile[0])
            rows.append(3 * np.tile(basis[node], COMPONENTS)[None])  # unit flux
            values.append(np.array([3.0]))
        a, y = np.concatenate(rows), np.concatenate(values)
        normal = a.T @ a
        ridge = 1e-11 * np.trace(normal) / len(normal) * np.eye(len(normal))
        amplitudes = np.linalg.solve(normal + ridge, a.T @ y)
        return amplitudes.reshape(COMPONENTS, -1), float(np.abs(a @ amplitudes - y).max())


def fit_fixed(n: float, sigma: np.ndarray) -> tuple[np.ndarray, float]:
    """Fits amplitudes and sigmas [2, J] of a profile of index n, from first sigmas; also returns the largest error.

    Least squares, repeated with more weight where the error is largest.
    """
    count = len(sigma)
    grid = [(q, np.append(0, np.geomspace(0.3 * q, min(12, 8 + 6 * q), 40))) for q in np.geomspace(0.025, 2.5, 10)]
    profiles = [convolved_sersic(n, q, r) for q, r in grid]

    def misfit(x: np.ndarray) -> np.ndarray:
        amplitude, errors = x[count:], [np.array([3 * (x[count:].sum() - 1)])]
        for (q, r), profile in zip(grid, profiles, strict=True):
            v = np.exp(2 * x[:count]) + q**2
            gauss = np.exp(-(r[:, None] ** 2) / (2 * v)) / (2 * np.pi * v)
            errors.append((gauss @ amplitude - profile) / profile[0])
        return np.concatenate(errors)

    x = np.concatenate([np.log(sigma), np.full(count, 1 / count)])
    unit = np.repeat([0.1, 0.05], count)
    weight, best = np.ones(len(misfit(x))), (np.inf, x)
    for _ in range(26):
        x = least_squares(lambda x, w=weight: w * misfit(x), x, x_scale=unit, max_nfev=400).x
        error = np.abs(misfit(x))
        best = min(best, (error.max(), x), key=lambda pair: pair[0])
        weight *= 1 + 3 * error / error.max()
        weight /= weight.mean()
    return np.stack([best[1][count:], np.exp(best[1][:count])]), best[0]


def main() -> None:
    start = np.array([-3.29, -1.24, 0.30, 0.62, 0.80, 0.22])
    targets = Targets(nodes=16)
    search = minimize(lambda p: np.log(targets.fit(p)[1]), start, method="Nelder-Mead", options={"maxfev": 300})
    amplitudes, error = Targets(nodes=28).fit(search.x)
    np.set_printoptions(precision=7, suppress=True, linewidth=115)
    print(f"largest error relative to the peak: {error:.1e}")
    print("LOG_SIGMA_RANGE =", repr(search.x.reshape(2, 3)))
    print("AMPLITUDES =", repr(amplitudes))
    for name, n, first in (
        ("EXPONENTIAL", 1, np.geomspace(0.06, 1.9, 6)),
        ("DE_VAUCOULEURS", 4, np.geomspace(0.015, 8, 8)),
    ):
        table, error = fit_fixed(n, first)
        print(f"{name} = {table!r}  # largest error {error:.1e}")


if __name__ == "__main__":
    main()
