"""Two-sample tests: they accept stamps of one distribution and find those of another."""

from __future__ import annotations

import numpy as np
import pytest

from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.training.two_sample import pqmass, properties, two_sample


def discs(number: int, size: float, seed: int) -> np.ndarray:
    """(N, 2, 32, 32) round Gaussians whose sizes scatter by a tenth, at unit norm."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((32, 32)) - 16.0
    sigma = size * np.exp(0.1 * rng.standard_normal((number, 1, 1, 1)))
    stamps = np.array([1.0, 2.0])[:, None, None] * np.exp(-(y**2 + x**2) / (2 * sigma**2))
    stamps += 1e-3 * rng.standard_normal(stamps.shape)
    return (stamps / np.sqrt((stamps**2).sum((1, 2, 3), keepdims=True))).astype(np.float32)


def test_pqmass_is_one_for_one_distribution_and_more_for_two():
    data = discs(500, 3.0, 0)
    assert pqmass(data, discs(500, 3.0, 1)) == pytest.approx(1, abs=0.15)
    assert pqmass(data, discs(500, 3.3, 1)) > 3


def test_properties_of_round_gaussians():
    """Half-light radius 1.18 sigma less the model PSF's share, colours as made, light within 4 and 8 pixels."""
    stamps = discs(200, 3.0, 2)
    found = properties(stamps, ("g", "r"), 1.0)
    assert np.median(found["g-r"]) == pytest.approx(2.5 * np.log10(2), abs=0.02)
    inside = 1 - np.exp(-(4**2) / (2 * 3.0**2))
    assert np.median(found["concentration"]) == pytest.approx(inside / (1 - np.exp(-(8**2) / (2 * 3.0**2))), abs=0.03)
    assert np.median(found["ellipticity"]) < 0.05
    small = properties(discs(200, 1.5, 3), ("g", "r"), 1.0)
    assert np.median(small["size"]) < np.median(found["size"])
    assert np.median(small["power"]) > np.median(found["power"])
    assert two_sample(found["size"], small["size"])["distance"] == 1


def test_levels_are_uniform_for_one_distribution():
    """Levels of samples of one distribution are uniform; without finite numbers there is none."""
    rng = np.random.default_rng(5)
    levels = [two_sample(*rng.standard_normal((2, 300)))["level"] for _ in range(300)]
    for p in (0.1, 0.5, 0.9):
        assert np.mean(np.array(levels) < p) == pytest.approx(p, abs=0.07)
    assert all(np.isnan(value) for value in two_sample(np.full(3, np.nan), np.ones(3)).values())


def test_draws_of_a_gaussian_have_unit_norm_and_its_directions():
    rng = np.random.default_rng(4)
    factor = rng.standard_normal((1, 1, 8, 8))
    prior = GaussianDenoiser(np.zeros((1, 8, 8)), np.full((1, 8, 8), 1e-8), factor)
    x = prior.draw(50, 0)
    np.testing.assert_allclose((x**2).sum((1, 2, 3)), 1, rtol=1e-9)
    along = np.abs(x.reshape(50, -1) @ factor.ravel()) / np.linalg.norm(factor)
    assert (along > 0.99).mean() > 0.9
