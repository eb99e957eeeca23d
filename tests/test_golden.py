"""Fits of two small scenes do not change unnoticed: the values come from an earlier arrangement of this code."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from fields import expose, positions
from simulations import simulate

from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.inference.map_fit import OPTIMIZERS, MapOptions

SINGLE = {
    "flux": [[4009.228, 2971.6458, 1540.5151], [6045.394, 2460.8379, 1515.3508]],
    "flux_err": [[23.15, 35.1884, 19.8416], [28.434, 35.0068, 20.7284]],
    "x": [12.20332, 20.42092, 13.72699],
    "size": [2.51598, 2.00115, 1.99095],
}
JOINT = {
    "flux": [
        [7995.8198, 4856.8354, 3019.3035],
        [10426.1348, 6295.9673, 3909.3799],
        [12827.7676, 7777.2402, 4841.6904],
    ],
    "flux_err": [
        [22.2996, 17.9236, 14.2416],
        [23.8579, 18.5184, 13.8654],
        [34.0724, 24.5218, 18.3224],
    ],
    "x": [19.45841, 25.98782, 14.50029],
    "size": [2.51462, 2.03232, 1.95865],
}
AS_WELL = 0.05  # of an error: a fit ends within 0.03 standard deviations of its maximum


def assert_as(catalog: Table, bands: str, golden: dict[str, list]) -> None:
    for band, flux, error in zip(bands, golden["flux"], golden["flux_err"], strict=True):
        assert (np.abs(catalog[f"flux_{band}"] - flux) < AS_WELL * np.array(error)).all()
        np.testing.assert_allclose(catalog[f"flux_err_{band}"], error, rtol=0.01)
    for name in ("x", "size"):
        assert (np.abs(catalog[name] - golden[name]) < AS_WELL * np.asarray(catalog[f"{name}_err"])).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_observation(optimizer: str) -> None:
    options = MapOptions(optimizer=optimizer, profile_error=0)
    assert_as(Deblender("bulge-disk", options=options).deblend(simulate()[0]).catalog, "gr", SINGLE)


@pytest.mark.slow
def test_two_observations() -> None:
    fine, coarse = expose("fine"), expose("coarse", 0.3, (30, 30), 40, seeing=0.9, bands="ri", seed=1)
    scene = Scene.from_catalog([fine, coarse], positions(fine))
    options = MapOptions(profile_error=0)
    assert_as(Deblender("exponential", options=options).deblend(scene).catalog, "gri", JOINT)
