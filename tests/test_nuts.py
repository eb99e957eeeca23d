"""Samples with closed-form priors: where the posterior is nearly Gaussian they agree with its curvature."""

from __future__ import annotations

import numpy as np
import pytest
from simulations import BLEND, Galaxy, simulate

from tfdeblend.deblended import Deblended
from tfdeblend.deblender import Deblender
from tfdeblend.nuts import NutsOptions

STAR = Galaxy(18.4, 21.7, (2000, 3000), radius=0)
CHAINS = NutsOptions(draws=200)


@pytest.fixture(scope="module")
def sampled() -> list[Deblended]:
    """Bright galaxies, and two of them with a star and a background."""
    scenes = [simulate()[0], simulate([*BLEND[:2], STAR])[0]]
    return Deblender("sersic", "sample", samples=200, nuts=CHAINS, background=True).deblend(scenes)


def test_bright_galaxies_are_as_their_curvature_says(sampled: list[Deblended]):
    scenes = [result.scene for result in sampled]
    for found, fitted in zip(sampled, Deblender("sersic", background=True).deblend(scenes), strict=True):
        assert found.header["rhat"] < 1.1 and found.header["ess"] > 40
        assert found.header["ppchi2"] == pytest.approx(1, abs=0.1)
        for name in ("x", "y", "size", "e1", "e2", *(f"flux_{band}" for band in found.scene.observation.bands)):
            error = f"flux_err_{name[5:]}" if name.startswith("flux_") else f"{name}_err"
            np.testing.assert_allclose(found.catalog[error], fitted.catalog[error], rtol=0.3)
            offset = np.abs(np.array(found.catalog[name]) - np.array(fitted.catalog[name]))
            assert (offset <= 0.5 * np.array(fitted.catalog[error]) + 1e-9).all()
        bands = range(len(fitted.flux_cov))
        ratio = [np.linalg.slogdet(found.flux_cov[b])[1] - np.linalg.slogdet(fitted.flux_cov[b])[1] for b in bands]
        np.testing.assert_allclose(ratio, 0, atol=0.7)  # log det of 3 x 3 from 200 samples


def test_the_same_seed_gives_the_same_bytes(sampled: list[Deblended]):
    scenes = [result.scene for result in sampled]
    again = Deblender("sersic", "sample", samples=200, nuts=CHAINS, background=True).deblend(scenes)
    np.testing.assert_array_equal(again[0].sources, sampled[0].sources)
