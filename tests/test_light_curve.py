"""Laws of light curves: closed forms where all is linear, Fisher's matrix where it is not, exact zeros where off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from epochs import FLUXES, HOST, NOISE, OFF, PLACE, SEEING, SIDE, catalog, disk_epochs, host_image, observe, wcs
from helpers import gaussian

from tfdeblend.errors import DataError
from tfdeblend.transients import LightCurve, light_curve


@pytest.fixture(scope="module")
def curve() -> LightCurve:
    return light_curve(disk_epochs(), catalog(), PLACE, OFF, times=[59000, 59010, 59020, 59030], prior="exponential")


def test_linear_case_is_generalised_least_squares() -> None:
    """A star beside, all positions known, two bands, masked columns: closed form in each band."""
    star = HOST["y"], HOST["x"]
    shapes = [[gaussian((SIDE, SIDE), *at, seeing) for at in (star, PLACE)] for seeing in SEEING]
    colour = np.array([1.0, 1.5])[:, None, None]
    light = [colour * (800 * host + flux * point) for (host, point), flux in zip(shapes, FLUXES, strict=True)]
    epochs = [observe(image, e, "gr", slice(16, 18) if e == 2 else None) for e, image in enumerate(light)]
    found = light_curve(epochs, catalog("point"), PLACE, OFF, prior="exponential", position_sigma=0)
    for band in range(2):
        columns = np.zeros((3, 4, SIDE, SIDE))  # host, epochs 2 and 3
        columns[0] = [host for host, _ in shapes]
        columns[1, 2], columns[2, 3] = shapes[2][1], shapes[3][1]
        whitened = (columns * np.sqrt([one.weights[band] for one in epochs])).reshape(3, -1)
        data = np.stack([one.images[band] * np.sqrt(one.weights[band]) for one in epochs]).ravel()
        covariance = np.linalg.inv(whitened @ whitened.T)
        best, error = covariance @ (whitened @ data), np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(found.flux_cov[2:, band, 2:, band], covariance[1:, 1:], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose((found.flux[2:, band] - best[1:]) / error[1:], 0, atol=0.01)
        name = found.scene.bands[band]
        np.testing.assert_allclose(found.catalog[f"flux_{name}"][0], best[0], atol=0.01 * error[0])
        np.testing.assert_allclose(found.catalog[f"flux_err_{name}"][0], error[0], rtol=1e-3)
    np.testing.assert_allclose(found.flux_cov[:, 0, :, 1], 0, atol=1e-6)


def test_covariance_is_that_of_the_inverse_fisher_matrix(curve: LightCurve) -> None:
    """Of host, positions and fluxes together, by GalSim and differences; the priors are far wider."""
    names = list(HOST)

    def images(x: np.ndarray) -> np.ndarray:
        host, place, fluxes = dict(zip(names, x[:6], strict=True)), x[6:8], [0, 0, *x[8:]]
        epochs = zip(SEEING, fluxes, NOISE, strict=True)
        return np.ravel([(host_image(s, **host) + f * gaussian((SIDE, SIDE), *place, s)) / n for s, f, n in epochs])

    x = np.array([*HOST.values(), *PLACE, *FLUXES[2:]])
    steps = np.where(np.arange(len(x)) < 8, 0.02, 1.0)
    steps[5] = 10
    slopes = [(images(x + step) - images(x - step)) / (2 * step.max()) for step in np.diag(steps)]
    covariance = np.linalg.inv(np.array(slopes) @ np.transpose(slopes))
    np.testing.assert_allclose(curve.flux_cov[2:, 0, 2:, 0], covariance[8:, 8:], rtol=0.06)
    np.testing.assert_allclose(np.diag(curve.position_cov), np.diag(covariance)[6:8], rtol=0.1)
    errors = [curve.catalog[name][0] for name in ("y_err", "x_err", "size_err", "flux_err_r")]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(covariance))[[0, 1, 2, 5]], rtol=0.05)


def test_fluxes_positions_and_host_are_found(curve: LightCurve) -> None:
    assert curve.converged
    np.testing.assert_array_less(np.abs(curve.flux[2:, 0] - FLUXES[2:]), 3 * curve.flux_err[2:, 0])
    np.testing.assert_array_less(np.abs(curve.position - PLACE), 3.5 * np.sqrt(np.diag(curve.position_cov)))
    row = curve.catalog[0]
    host, own = SkyCoord(row["ra"], row["dec"], unit="deg"), curve.sky
    np.testing.assert_allclose(host.to_pixel(wcs()), (row["x"], row["y"]), atol=1e-6)
    np.testing.assert_allclose(own.to_pixel(wcs()), curve.position[::-1], atol=1e-6)
    for name, column in (("y", "y"), ("x", "x"), ("radius", "size"), ("e1", "e1"), ("e2", "e2")):
        assert abs(row[column] - HOST[name]) < 3.5 * row[f"{column}_err"]
    assert abs(row["flux_r"] - HOST["flux"]) < 3.5 * row["flux_err_r"]
    np.testing.assert_allclose(curve.chi2, 1, atol=0.15)
    for one, model, host, flux in zip(curve.scene.observations, curve.models, curve.hosts, curve.flux, strict=True):
        assert model.shape == host.shape == one.shape
        np.testing.assert_allclose((model - host).sum(), flux[0], atol=0.02 * FLUXES[2])


def test_exactly_nothing_where_off(curve: LightCurve) -> None:
    assert (curve.flux[OFF] == 0).all() and (curve.flux_err[OFF] == 0).all()
    assert (curve.flux_cov[OFF] == 0).all() and (curve.flux_cov[:, :, OFF] == 0).all()
    np.testing.assert_array_equal(curve.models[0], curve.hosts[0])
    np.testing.assert_array_equal(curve.table["time"], [59000, 59010, 59020, 59030])
    assert set(curve.table.colnames) == {"time", "name", "band", "flux", "flux_err"}


def test_transient_in_the_nucleus_by_its_sky_position() -> None:
    """Declared at the very place of its host."""
    place = HOST["y"], HOST["x"]
    sky = SkyCoord.from_pixel(HOST["x"], HOST["y"], wcs())
    found = light_curve(disk_epochs(place), catalog(), sky, OFF, prior="exponential")
    assert found.converged
    np.testing.assert_array_less(np.abs(found.flux[2:, 0] - FLUXES[2:]), 3 * found.flux_err[2:, 0])


def test_unknown_where_masked_or_without_the_band() -> None:
    epochs = disk_epochs()
    seen = light_curve(epochs, catalog(), PLACE, OFF, prior="exponential")
    blind = replace(epochs[3], weights=epochs[3].weights * (np.arange(SIDE) < 4)[:, None])
    other = replace(epochs[3], bands=("g",), name="green")
    found = light_curve([*epochs[:3], blind, other], catalog(), PLACE, OFF, prior="exponential")
    assert np.isnan(found.flux[3]).all() and np.isnan(found.flux_err[3]).all()
    assert np.isnan(found.flux[4, 0]) and np.isnan(found.flux[:4, 1]).all() and np.isfinite(found.flux[4, 1])
    assert abs(found.flux[2, 0] - seen.flux[2, 0]) < seen.flux_err[2, 0]
    assert len(found.table) == 4


def test_units_are_those_of_the_first(curve: LightCurve) -> None:
    epochs = [replace(one, zeropoints=27.0) for one in disk_epochs()]
    epochs[3] = replace(epochs[3], images=10 * epochs[3].images, weights=epochs[3].weights / 100, zeropoints=29.5)
    found = light_curve(epochs, catalog(), PLACE, OFF, prior="exponential")
    np.testing.assert_allclose(found.flux[2:], curve.flux[2:], atol=0.03 * curve.flux_err[2:].max())
    np.testing.assert_allclose(found.flux_err[2:], curve.flux_err[2:], rtol=0.01)
    np.testing.assert_allclose(found.models[3], 10 * curve.models[3], rtol=0.02, atol=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"off": [4]}, "epoch 0: off: expected numbers of observations, 0 to 3, received"),
        ({"off": [-1]}, "off: expected numbers of observations"),
        ({"off": ["a"]}, "off: expected numbers of observations"),
        ({"off": range(4)}, "off: expected fewer than all 4"),
        ({"times": [1.0]}, "times: expected one for each of 4 observations, received shape"),
        ({"transient": (1.0, 2.0, 3.0)}, "transient: expected one position"),
        ({"transient": ("here", "there")}, "transient: expected one position"),
        ({"transient": (99.0, 3.0)}, "expected sources inside the image"),
        ({"observations": []}, "observations: expected at least one"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    given = {"observations": disk_epochs(), "catalog": catalog(), "transient": PLACE, "off": OFF} | change
    with pytest.raises(DataError, match=message):
        light_curve(**given)


def test_refuses_one_observation_without_a_wcs() -> None:
    with pytest.raises(DataError, match="epoch 0: wcs: expected a WCS"):
        light_curve([replace(disk_epochs()[0], wcs=None)], catalog(), PLACE)


def test_refuses_an_unknown_prior() -> None:
    with pytest.raises(ValueError, match="prior: expected one of"):
        light_curve(disk_epochs(), catalog(), PLACE, prior="hsc-grizy-64")
