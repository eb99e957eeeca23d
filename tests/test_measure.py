"""Measurements: closed forms of Gaussian stamps, definitions on hand-made arrays, flags, and agreement with a fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS
from helpers import elliptical, make_deblended, make_joint, on_sky, with_view
from simulations import simulate

from tfdeblend.catalog import measure
from tfdeblend.catalog.measure import (
    Shapes,
    border_snr,
    catalog,
    local_chi2,
    overlap,
    remeasure,
    stamp_shapes,
)
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.photometry import WAVELENGTHS
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.galaxies.moments import GAUSSIAN_HALF_LIGHT

MODEL_SIGMA = 0.9


def shapes_at(y: np.ndarray, x: np.ndarray) -> Shapes:
    one = np.ones(len(y))
    return Shapes(y, x, 3 * one, 0.1 * one, -0.2 * one, np.full((len(y), 5), 0.01))


def measured(result: Deblended, converged: bool = True) -> Table:
    """The catalogue of a result whose sources are where they were declared, fluxes as drawn."""
    y, x = result.scene.positions.T
    return catalog(result, shapes_at(y, x), result.sources.sum((2, 3), dtype=float), 30.0, converged)


def moved(result: Deblended, position: tuple[float, float]) -> Table:
    """The catalogue with the first source elsewhere."""
    positions = result.scene.positions.copy()
    positions[0] = position
    return measured(with_view(result, positions=positions))


# -- shapes


@pytest.mark.parametrize("covariance", [(4, 0, 4), (6, 1.5, 3), (2, -0.8, 5), (9, 0, 9)])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, -0.4)])
def test_gaussian_stamps(covariance: tuple[float, float, float], offset: tuple[float, float]) -> None:
    """Centroid, half-light radius of the circle of equal area, ellipticity |e| = (a - b) / (a + b)."""
    yy, yx, xx = covariance
    dy, dx = offset
    seen = (yy + MODEL_SIGMA**2, yx, xx + MODEL_SIGMA**2)
    image = elliptical(49, 24 + dy, 24 + dx, seen)
    stamps = np.stack([[3 * image, 5 * image]])
    shapes = stamp_shapes(stamps, np.array([[-4, 10]]), MODEL_SIGMA)
    assert (shapes.y[0], shapes.x[0]) == pytest.approx((20 + dy, 34 + dx), abs=1e-3)
    area = np.sqrt(yy * xx - yx**2)
    expected = np.array([xx - yy, 2 * yx]) / (xx + yy + 2 * area)
    np.testing.assert_allclose([shapes.e1[0], shapes.e2[0]], expected, atol=0.02)
    assert shapes.size[0] == pytest.approx(GAUSSIAN_HALF_LIGHT * np.sqrt(area), rel=0.05)
    assert np.isnan(shapes.errors).all()


def test_stamps_without_light_are_measured_as_nothing_infinite() -> None:
    shapes = stamp_shapes(np.zeros((2, 3, 21, 21)), np.zeros((2, 2), int), MODEL_SIGMA)
    for name in ("y", "x", "size", "e1", "e2"):
        assert np.isfinite(getattr(shapes, name)).all()


# -- definitions


def test_signal_to_noise_and_blendedness_by_hand() -> None:
    a, b, weights = np.zeros((1, 1, 4)), np.zeros((1, 1, 4)), np.array([[[4.0, 1.0, 0.0, 1.0]]])
    a[0, 0], b[0, 0] = [1, 2, 5, 0], [0, 2, 0, 3]
    signal, blendedness = overlap(Windows.whole(np.stack([a, b])), weights)
    np.testing.assert_allclose(signal, [np.sqrt(4 * 1 + 1 * 4), np.sqrt(4 + 9)])
    np.testing.assert_allclose(blendedness, [1 - 30 / 34, 1 - 13 / 17])


def test_sources_apart_are_not_blended_and_twins_are_by_half() -> None:
    apart = np.zeros((2, 1, 1, 4))
    apart[0, ..., 0] = apart[1, ..., 3] = 2
    np.testing.assert_allclose(overlap(Windows.whole(apart), np.ones((1, 1, 4)))[1], 0)
    twins = np.ones((2, 1, 3, 3))
    np.testing.assert_allclose(overlap(Windows.whole(twins), np.ones((1, 3, 3)))[1], 0.5)
    assert np.isfinite(overlap(Windows.whole(np.zeros((2, 1, 3, 3))), np.ones((1, 3, 3)))[1]).all()


def test_local_chi2_looks_where_the_source_shines() -> None:
    source = np.zeros((1, 1, 1, 4))
    source[0, 0, 0] = [1e4, 1e4, 0, 1e4]
    residual = np.array([[[1.0, 2.0, 100.0, 7.0]]])
    weights = np.array([[[1.0, 1.0, 1.0, 0.0]]])
    assert local_chi2(Windows.whole(source), residual, weights)[0] == pytest.approx((1 + 4) / 2, rel=1e-6)
    assert local_chi2(Windows.whole(0 * source), residual, weights)[0] == 0


@pytest.mark.parametrize("unit", [1e-30, 1e20])
def test_chi2_has_no_unit(unit: float) -> None:
    """Also where squares of fluxes are out of float32."""
    residual, weights = np.full((1, 4, 4), 2 * unit, np.float32), np.full((1, 4, 4), unit**-2.0)
    source = np.full((1, 1, 4, 4), 1e6 * unit, np.float32)
    assert local_chi2(Windows.whole(source), residual, weights)[0] == pytest.approx(4, rel=1e-5)


# -- catalogues


def test_catalog_of_a_perfect_result() -> None:
    result = make_deblended()
    table = measured(result)
    flux = result.sources.sum((2, 3), dtype=float)
    for c, band in enumerate(result.scene.observation.bands):
        np.testing.assert_allclose(table[f"flux_{band}"], flux[:, c])
        np.testing.assert_allclose(table[f"flux_err_{band}"], 5)
        np.testing.assert_allclose(table[f"mag_{band}"], 27 - 2.5 * np.log10(flux[:, c]))
        np.testing.assert_allclose(table[f"mag_err_{band}"], 2.5 / np.log(10) * 5 / flux[:, c])
    np.testing.assert_allclose(table["color_g_r"], table["mag_g"] - table["mag_r"])
    np.testing.assert_allclose(table["runtime_ms"], 10)
    assert list(table["id"]) == [source.id for source in result.scene.sources]
    assert "ra" not in table.colnames


def test_negative_fluxes_have_no_magnitude() -> None:
    result = make_deblended()
    y, x = result.scene.positions.T
    flux = result.sources.sum((2, 3), dtype=float)
    flux[0, 0] = -1
    table = catalog(result, shapes_at(y, x), flux, 1.0, True)
    assert np.isnan(table["mag_g"][0]) and np.isfinite(table["mag_g"][1:]).all()
    assert table["flux_g"][0] == -1


def test_sky_positions_need_a_wcs() -> None:
    result = make_deblended()
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150, 2], [-5e-5, 5e-5]
    table = measured(with_view(result, observation=replace(result.scene.observation, wcs=wcs)))
    ra, dec = wcs.wcs_pix2world(table["x"], table["y"], 0)
    np.testing.assert_allclose(table["ra"], ra)
    np.testing.assert_allclose(table["dec"], dec)


def flagged(table: Table, flag: int) -> list[bool]:
    return [bool(value & flag) for value in table["flags"]]


def test_flags() -> None:
    """Each flag is raised by what it is for, on the source that it concerns."""
    result = make_deblended(shape=(60, 60))
    result = with_view(result, undeclared=None)
    assert list(measure.FLAG_NAMES) == [2**bit for bit in range(len(measure.FLAG_NAMES))]
    assert not any(flagged(measured(result), measure.NOT_CONVERGED))
    assert all(flagged(measured(result, converged=False), measure.NOT_CONVERGED))
    assert flagged(moved(result, (2.0, 30.0)), measure.EDGE)[0]
    assert not flagged(moved(result, (30.0, 30.0)), measure.EDGE)[0]
    assert flagged(moved(result, (5.0, 5.0)), measure.MASKED)[0]
    assert not flagged(moved(result, (30.0, 30.0)), measure.MASKED)[0]
    edge = moved(result, (2.0, 30.0))
    assert list(edge["primary"]) == [not flag & (measure.EDGE | measure.MASKED) for flag in edge["flags"]]
    off = with_view(result, model=result.model + 3)
    assert all(flagged(measured(off), measure.BAD_FIT)) and not any(flagged(measured(result), measure.BAD_FIT))


def test_saturated_sources_are_flagged() -> None:
    result = moved_scene(make_deblended(shape=(60, 60)), saturated=(30, 32))
    assert flagged(moved(result, (30.0, 30.0)), measure.SATURATED)[0]
    assert not flagged(moved(result, (30.0, 45.0)), measure.SATURATED)[0]


def moved_scene(result: Deblended, saturated: tuple[int, int]) -> Deblended:
    """With one saturated pixel."""
    pixels = np.zeros(result.scene.observation.shape, bool)
    pixels[0][saturated] = True
    return with_view(result, observation=replace(result.scene.observation, saturated=pixels))


def test_a_band_that_nothing_sees_is_nan() -> None:
    """Where all pixels of a source are masked in one band, in all observations that have it; another one's tell."""
    result = make_deblended(shape=(60, 60), bands="gr")
    weights = result.scene.observation.weights.copy()
    weights[1, 20:50, 20:50] = 0
    positions = result.scene.positions
    positions[0] = 35, 35
    observation = replace(result.scene.observation, weights=weights, wcs=on_sky(0.2))
    result = with_view(result, observation=observation, positions=positions)
    shapes, flux = shapes_at(*positions.T), result.stamps.sum((2, 3), dtype=float)
    table = catalog(result, shapes, flux, 1.0, True)
    assert np.isnan(table["flux_r"][0]) and np.isnan(table["flux_err_r"][0]) and np.isfinite(table["flux_g"][0])
    assert flagged(table, measure.UNSEEN)[0] and flagged(table, measure.MASKED)[0]
    other = make_deblended(name="other", bands="ri", shape=(60, 60)).views[0]
    other = replace(other, observation=replace(other.observation, wcs=on_sky(0.2)))
    for away, unseen in ((0.0, [False, False]), (100.0, [True, True])):  # beside the footprint of the other
        second = replace(other, positions=positions + np.array([away, 0]))
        scene = Scene((observation, other.observation), result.scene.sources)
        both = replace(result, scene=scene, views=(*result.views, second), flux_cov=np.stack([np.eye(3)] * 3))
        table = catalog(replace(both, stamps=np.ones((3, 3, 15, 15))), shapes, np.ones((3, 3)), 1.0, True)
        assert [np.isnan(table[f"flux_{band}"][0]) for band in "ri"] == unseen
        assert flagged(table, measure.UNSEEN)[0] == any(unseen)
        assert flagged(table, measure.MASKED)[0] == any(unseen)


def test_truncated_sources_are_flagged() -> None:
    result = make_deblended()
    y, x = result.scene.positions.T
    kept = result.stamps.sum((2, 3), dtype=float)
    for factor, expected in ((1.02, False), (1.2, True)):
        table = catalog(result, shapes_at(y, x), kept * factor, 1.0, True)
        assert flagged(table, measure.TRUNCATED) == [expected] * len(kept)


def test_light_on_a_stamps_border() -> None:
    """A stamp of ones: those of its border's pixels that the image has, in units of their noise; no masked ones."""
    seen = make_deblended(sources=1, bands="g").scene.observation
    _, _, width = seen.shape
    observation = replace(seen, weights=np.where(np.arange(width) == 12, 0, 4 + 0 * seen.weights))
    stamps = np.ones((1, 1, 5, 5))
    for corner, pixels in (((10, 20), 16), ((-2, 20), 4 + 5), ((10, -4), 5), ((10, 12), 11), ((99, 20), 0)):
        found = border_snr(observation, stamps, np.array([corner]))
        np.testing.assert_allclose(found, [2 * np.sqrt(pixels)])


def test_undeclared_sources_are_flagged_on_those_they_shine_on() -> None:
    result = make_deblended(sources=2, seed=3)
    (y, x), _ = result.scene.positions
    on = with_view(result, undeclared=Table({"x": [x], "y": [y], "snr": [9.0]}))
    assert flagged(measured(on), measure.UNDECLARED)[0]
    none = with_view(result, undeclared=Table({"x": [], "y": [], "snr": []}))
    assert not any(flagged(measured(none), measure.UNDECLARED))


def test_remeasured_results_agree_with_their_fit() -> None:
    """Stamps alone give the fit's fluxes and positions, its sizes to 10% and shapes to 0.05; errors are the fit's.

    For galaxies of one shape: the moments of stamps and of a bulge in a disk weigh the two differently."""
    result = Deblender(prior="sersic").deblend(simulate()[0])
    again, first = remeasure(result), result.catalog
    for band in ("g", "r"):
        np.testing.assert_allclose(again[f"flux_{band}"], first[f"flux_{band}"], rtol=0.03)
        np.testing.assert_allclose(again[f"flux_err_{band}"], first[f"flux_err_{band}"])
    np.testing.assert_allclose(again["x"], first["x"], atol=0.05)
    np.testing.assert_allclose(again["y"], first["y"], atol=0.05)
    np.testing.assert_allclose(again["size"], first["size"], rtol=0.1)
    for name in ("e1", "e2"):
        np.testing.assert_allclose(again[name], first[name], atol=0.05)
    for name in ("snr", "blendedness", "chi2", "flags", "size_err", "x_err"):
        np.testing.assert_allclose(again[name], first[name])
    assert again.colnames == first.colnames


def test_remeasured_joint_results_have_all_bands_and_views() -> None:
    """Fluxes are the stamps' sums in all bands; positions are the first one's, which its shift takes off the stamps."""
    result = make_joint()
    table = remeasure(result)
    assert {"flux_g", "flux_r", "flux_i", "mag_i", "color_r_i"} <= set(table.colnames)
    np.testing.assert_allclose(table["flux_i"], result.stamps[:, 2].sum((1, 2)), rtol=1e-6)
    assert table["flux_g"].unit == "adu" and table["flux_i"].unit == "electron"
    on_stamps = stamp_shapes(result.stamps, result.corners, MODEL_SIGMA).positions
    np.testing.assert_allclose(np.stack([table["y"], table["x"]], 1), on_stamps - [0.1, -0.2])
    alone = [overlap(view.light, view.observation.weights.astype(float))[0] for view in result.views]
    np.testing.assert_allclose(table["snr"], np.hypot(*alone))


@pytest.mark.parametrize("bands", ["ugrizy", "YJHK"])
def test_colours_bluer_than_the_rayleigh_jeans_law_are_found(bands: str) -> None:
    """The hottest sources, f ~ nu^2, are not noted, nor are red ones; with twice the bluest flux they are."""
    flux = np.tile([1e4 / WAVELENGTHS[band.lower()] ** 2 for band in bands], (3, 1))
    scene: Any = SimpleNamespace(bands=tuple(bands), zeropoints=np.full(len(bands), 31.4))
    assert measure.bluer_than_anything(scene, flux, flux / 100) is None
    assert measure.bluer_than_anything(scene, flux[:, ::-1], flux / 100) is None
    flux[:, 0] *= 2
    assert measure.bluer_than_anything(scene, flux, flux / 100) == (bands[0], bands[1])
