"""Fits of several observations find skies, shifts and gains, have smaller errors, and are in a batch as alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fields import COLOUR, FLUX, expose, places, positions

from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.inference.calibration import CalibrationOptions
from tfdeblend.inference.map_fit import MapOptions

KNOWN = CalibrationOptions(shift=0, gain=0)
SKIES = np.array([[500.0, -30.0], [0.0, 20.0], [3.0, 80.0]])  # of the two bands of three exposures


def expected(bands: Sequence[str]) -> np.ndarray:
    return FLUX[:, None] * [COLOUR[band] for band in bands]


@pytest.fixture(scope="module")
def epochs() -> Deblended:
    """Three exposures: turned, flipped, of coarser pixels, of other bands, shifted, of other skies, one of another
    gain."""
    observations = [
        expose("first"),
        expose("turned", degrees=25, seeing=0.8, noise=1.5, shift=(0.3, -0.2), gain=1.03, shape=(40, 42), seed=1),
        expose("coarse", 0.3, (30, 30), -60, True, 0.9, bands="ri", shift=(0, 0.1), seed=2),
    ]
    observations = [
        replace(one, images=one.images + sky[:, None, None]) for one, sky in zip(observations, SKIES, strict=True)
    ]
    scene = Scene.from_catalog(observations, positions(observations[0]))
    return Deblender("sersic", background=True).deblend(scene)


def test_skies_are_found(epochs: Deblended) -> None:
    """One in each band of each exposure, within a few of the errors they would have alone."""
    for view, sky, one in zip(epochs.views, SKIES, epochs.scene.observations, strict=True):
        alone = one.weights.sum((1, 2)) ** -0.5
        assert (np.abs(view.background - sky) < 6 * alone).all()


def test_fluxes_and_pictures_of_several_exposures(epochs: Deblended) -> None:
    assert epochs.header["converged"]
    assert epochs.scene.bands == ("g", "r", "i")
    np.testing.assert_allclose(epochs.flux, expected("gri"), rtol=0.03)
    assert epochs.chi2 == pytest.approx(1, abs=0.05)
    for view, one in zip(epochs.views, epochs.scene.observations, strict=True):
        assert view.chi2 == pytest.approx(1, abs=0.08)
        assert view.model.shape == one.shape
        total = view.sources.sum(0) + view.background[:, None, None]
        np.testing.assert_allclose(total, view.model, atol=1e-3 * view.sources.max())


def test_shifts_are_found(epochs: Deblended) -> None:
    """Relative to their mean, to 0.02 pixel, and within a few of their errors."""
    shifts = [(0, 0), (0.3, -0.2), (0, 0.1)]
    true = -np.array([pixels.matrix @ shift for pixels, shift in zip(epochs.scene.maps, shifts, strict=True)])
    off = epochs.calibration.shift - (true - true.mean(0))
    assert np.abs(off).max() < 0.02
    assert (np.abs(off) < 4 * epochs.calibration.shift_error).all()


def test_positions_are_those_in_the_first(epochs: Deblended) -> None:
    """Where the first shows the galaxies, not in the mean of all pointings, 0.1 pixel away."""
    found = np.stack([epochs.catalog["x"], epochs.catalog["y"]], 1)
    assert np.abs(epochs.calibration.shift[0]).max() > 0.05
    np.testing.assert_allclose(found, places(epochs.scene.observation), atol=0.03)


def test_gains_are_found(epochs: Deblended) -> None:
    """Relative to their mean in each band; of a band seen once nothing is known."""
    first, turned, coarse = epochs.calibration.gain
    np.testing.assert_allclose(turned - first, 0.03, atol=0.01)
    np.testing.assert_allclose((first + turned)[0] / 2, 1, atol=1e-12)
    np.testing.assert_allclose(coarse[1], 1, atol=1e-12)


@pytest.mark.slow
def test_units_are_those_of_the_first() -> None:
    """Zero points join exposures of different units; errors are smaller than from either alone."""
    deep = replace(expose("deep"), zeropoints=27.0)
    other = expose("other", seed=1)
    faint = replace(other, images=10 * other.images, weights=other.weights / 100, zeropoints=29.5)
    scenes = [Scene.from_catalog(some, positions(deep)) for some in (deep, [deep, faint])]
    one, both = Deblender("sersic", calibration=KNOWN, options=MapOptions(profile_error=0)).deblend(scenes)
    np.testing.assert_allclose(both.flux, expected("gr"), rtol=0.03)
    np.testing.assert_allclose(both.flux_err / one.flux_err, 0.5**0.5, rtol=0.05)


def field(name: str, seed: int, shift: tuple[float, float]) -> Scene:
    """Two observations with skies, the second coarser, turned and shifted."""
    first = expose(name, shape=(32, 32), seed=seed)
    other = expose(f"{name}, coarse", 0.3, (24, 26), 30, seeing=0.9, bands="ri", shift=shift, gain=1.02, seed=seed + 1)
    both = (replace(one, images=one.images + sky) for one, sky in ((first, 20.0), (other, -3.0)))
    return Scene.from_catalog(tuple(both), positions(first))


@pytest.mark.slow
def test_fields_in_a_batch_are_fitted_as_alone() -> None:
    """Each has its own shifts, gains and skies."""
    fields = [field("one", 10, (0.2, -0.1)), field("two", 20, (-0.3, 0.3))]
    deblender = Deblender("exponential", background=True)
    together = deblender.deblend(fields)
    for found, scene in zip(together, fields, strict=True):
        alone = deblender.deblend(scene)
        assert alone.header["converged"] and found.header["converged"]
        assert (np.abs(found.flux - alone.flux) < 0.1 * alone.flux_err).all()
        np.testing.assert_allclose(found.flux_err, alone.flux_err, rtol=0.02)
        assert np.abs(found.calibration.shift - alone.calibration.shift).max() < 5e-3
        for one, other in zip(found.views, alone.views, strict=True):
            np.testing.assert_allclose(one.background, other.background, atol=0.02)
            np.testing.assert_allclose(one.model, other.model, atol=5e-3 * np.abs(other.model).max())
    first, second = (found.calibration.shift[1] for found in together)
    assert np.abs(first - second).max() > 0.1


def test_one_observation_in_a_tuple_is_fitted_as_alone() -> None:
    """The sky is fitted and nothing is calibrated."""
    one = expose("alone", shape=(32, 32))
    one = replace(one, images=one.images + SKIES[0][:, None, None])
    scenes = [Scene.from_catalog(given, positions(one)) for given in (one, (one,), [one])]
    deblender = Deblender("exponential", background=True)
    alone, *others = (deblender.deblend(scene) for scene in scenes)
    assert alone.calibration is None and len(alone.views) == 1
    np.testing.assert_allclose(alone.background, SKIES[0], atol=6 * one.images[0].size ** -0.5)
    for other in others:
        np.testing.assert_array_equal(other.flux, alone.flux)
        np.testing.assert_array_equal(other.model, alone.model)
        np.testing.assert_array_equal(other.flux_cov, alone.flux_cov)


@pytest.mark.slow
def test_an_observation_more_on_the_same_pixels_is_one_of_twice_the_depth() -> None:
    """Two observations of the same data tell what one of twice the weight does, through the general path: it is that of
    the model's own pixels to a tenth of the errors."""
    one = expose("one", shape=(32, 32))
    deep = replace(one, weights=2 * one.weights)
    scenes = [Scene.from_catalog(some, positions(one)) for some in (deep, (one, replace(one, name="again")))]
    exact = MapOptions(model_error=0.0)  # which is taken to be another one in each observation
    alone, twice = Deblender("sersic", calibration=KNOWN, options=exact).deblend(scenes)
    np.testing.assert_allclose(twice.flux_err, alone.flux_err, rtol=0.03)
    assert (np.abs(twice.flux - alone.flux) < 0.1 * alone.flux_err).all()
    np.testing.assert_allclose(twice.model, alone.model, atol=3e-3 * alone.model.max())


@pytest.mark.slow
def test_surface_brightnesses_are_summed_over_pixels_of_the_first() -> None:
    """Pixels 2.25 times as large hold the same surface brightness: a sum over them is 2.25 times smaller."""
    first, coarse = expose("first"), expose("coarse", 0.3, (30, 30), 20, seeing=0.9, bands="i", seed=2)
    area = 2.25
    coarse = replace(coarse, images=coarse.images / area, weights=coarse.weights * area**2)
    scene = Scene.from_catalog([replace(one, unit="MJy/sr") for one in (first, coarse)], positions(first))
    result = Deblender("sersic").deblend(scene)
    np.testing.assert_allclose(result.flux, expected("gri"), rtol=0.03)
    assert np.ptp(scene.zeropoints) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(result.views[1].sources.sum((2, 3))[:, 0] * area, expected("i")[:, 0], rtol=0.03)
