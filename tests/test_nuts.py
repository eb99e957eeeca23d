"""Samples with closed-form priors: where the posterior is nearly Gaussian they agree with its curvature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulations import BLEND, Galaxy, simulate

from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.inference.map_fit import MapOptions
from tfdeblend.inference.nuts import NutsOptions

STAR = Galaxy(18.4, 21.7, (2000, 3000), radius=0)
CHAINS = NutsOptions(draws=200)


@pytest.fixture(scope="module")
def sampler() -> Deblender:
    """Shared, so that its graphs are compiled once."""
    return Deblender("sersic", "sample", samples=200, nuts=CHAINS, background=True)


@pytest.fixture(scope="module")
def sampled(sampler: Deblender) -> list[Deblended]:
    """Bright galaxies, and two of them with a star and a background."""
    return sampler.deblend([simulate()[0], simulate([*BLEND[:2], STAR])[0]])


@pytest.mark.slow
def test_bright_galaxies_are_as_their_curvature_says(sampled: list[Deblended]):
    scenes = [result.scene for result in sampled]
    curvature = Deblender("sersic", background=True, options=MapOptions(profile_error=0))
    for found, fitted in zip(sampled, curvature.deblend(scenes), strict=True):
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


@pytest.mark.slow
def test_one_chain_cannot_be_compared_with_others():
    few = NutsOptions(chains=1, warmup=5, draws=4, depth=2)
    found = Deblender("exponential", "sample", samples=2, nuts=few).deblend(simulate(BLEND[:1], (32, 32))[0])
    assert np.isnan(found.header["rhat"]) and found.header["ess"] > 0


@pytest.mark.slow
def test_a_scene_has_the_samples_that_it_has_alone():
    """Whatever is sampled with it, of however many sources, in chains too short to magnify the rounding of batches."""
    few = NutsOptions(warmup=4, draws=2, depth=3)
    deblender = Deblender("exponential", "sample", samples=8, nuts=few)
    one, two = simulate()[0], simulate(BLEND[:1], seed=1)[0]
    alone = deblender.deblend(one)
    for found in (deblender.deblend([one, two])[0], deblender.deblend([two, one])[1]):
        apart = np.array(found.catalog["flux_g"] - alone.catalog["flux_g"])
        assert (np.abs(apart) < 0.01 * np.array(alone.catalog["flux_err_g"])).all()


@pytest.mark.slow
def test_a_band_without_data_tells_nothing(sampler: Deblender, sampled: list[Deblended]):
    """Its fluxes are not known, and chains do not drift along them."""
    scene = sampled[0].scene
    weights = scene.observation.weights.copy()
    weights[1] = 0
    masked = Scene(replace(scene.observation, weights=weights), scene.sources)
    result = sampler.deblend([masked, sampled[1].scene])[0]
    bands = scene.observation.bands
    assert np.isnan(result.catalog[f"flux_{bands[1]}"]).all()
    assert result.header["rhat"] < 1.1 and np.isfinite(result.sources).all()
    offset = np.array(result.catalog[f"flux_{bands[0]}"]) - np.array(sampled[0].catalog[f"flux_{bands[0]}"])
    assert (np.abs(offset) < 3 * np.array(sampled[0].catalog[f"flux_err_{bands[0]}"])).all()
