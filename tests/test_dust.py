"""Laws of dusty galaxies: closed forms of the screen, a lane that is found, a maximum that is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from fields import expose, positions

from benchmarks.dust import FLUX, LANE, SCALE, SIDE, WAVELENGTHS, alone, relative, simulate
from tfdeblend.data.scene import Scene, Source
from tfdeblend.deblender import Deblender
from tfdeblend.dust import DTYPE, DustPrior, DustyGalaxy, calzetti, fit_dust
from tfdeblend.errors import DataError


@pytest.fixture(scope="module")
def lane() -> tuple[DustyGalaxy, np.ndarray, np.ndarray]:
    observation, intrinsic, attenuated = simulate(LANE)
    return fit_dust(alone(observation), calzetti(WAVELENGTHS), prior="exponential"), intrinsic, attenuated


def test_both_components_are_found_better_than_by_one(lane: tuple[DustyGalaxy, np.ndarray, np.ndarray]) -> None:
    found, intrinsic, attenuated = lane
    single = Deblender("sersic").deblend(found.scene)
    assert found.converged
    assert relative(found.intrinsic, intrinsic) < 0.3 * relative(single.model, intrinsic)
    assert relative(found.attenuated, attenuated) < 0.2 * relative(single.model, attenuated)
    assert abs(found.chi2 - 1) < 0.05 < single.chi2 - 1
    np.testing.assert_allclose(found.flux, FLUX, rtol=0.05)
    np.testing.assert_allclose(found.transmitted, attenuated.sum((1, 2)) / intrinsic.sum((1, 2)), atol=0.03)
    np.testing.assert_allclose(found.dust["offset"], LANE["offset"], atol=0.03)
    np.testing.assert_allclose(found.attenuated, found.model)
    peak = np.unravel_index(np.argmax(found.optical_depth), found.optical_depth.shape)
    np.testing.assert_allclose(peak, (SIDE - 1) / 2 + np.array(LANE["offset"]) / SCALE, atol=1)


def test_units_are_the_observations(lane: tuple[DustyGalaxy, np.ndarray, np.ndarray]) -> None:
    found, _, _ = lane
    one = found.scene.observation
    other = alone(replace(one, images=10 * one.images, weights=one.weights / 100))
    again = fit_dust(other, calzetti(WAVELENGTHS), prior="exponential")
    np.testing.assert_allclose(again.flux, 10 * found.flux, rtol=1e-3)
    np.testing.assert_allclose(again.log_posterior, found.log_posterior, rtol=1e-4)


@pytest.mark.slow
def test_neighbours_are_no_part_of_the_dusty_galaxy() -> None:
    """And a declared source of which nothing is seen changes nothing."""
    observation, intrinsic, attenuated = simulate(LANE)
    star = np.zeros_like(observation.images)
    star[:, :31, :31] = 1000 * observation.psf[:, 10:, 10:]
    y = x = 10
    middle = (SIDE - 1) / 2
    sources = (
        Source(500, 500, id="far"),
        Source(middle, middle, id="dusty"),
        Source(y, x, "point", "star"),
    )
    scene = Scene((replace(observation, images=observation.images + star),), sources)
    found = fit_dust(scene, calzetti(WAVELENGTHS), 1, prior="exponential")
    assert relative(found.intrinsic, intrinsic) < 0.3 and relative(found.attenuated, attenuated) < 0.2
    assert np.abs((found.model - found.attenuated)[:, int(middle), int(middle)]).max() < 1
    assert found.model[0, y, x] - found.attenuated[0, y, x] == pytest.approx(star[0, y, x], rel=0.1)
    with pytest.raises(DataError, match="source: expected one with unmasked pixels near it, received 0"):
        fit_dust(scene, calzetti(WAVELENGTHS), 0)


def test_no_dust_takes_no_light() -> None:
    observation, intrinsic, _ = simulate(LANE | {"depth": 0.0}, seed=1)
    found = fit_dust(alone(observation), calzetti(WAVELENGTHS), prior="exponential")
    assert (found.transmitted > 0.97).all()
    assert relative(found.intrinsic, intrinsic) < 0.03


def test_screen_is_its_closed_form() -> None:
    """Its peak, where it has fallen to a given share along both axes, and the turned one."""
    dust = DustPrior(DTYPE)
    one = {"offset": [[0.0, 0.0]], "radius": [[0.8]], "ellipticity": [[0.5, 0.0]], "depth": [[2.0]]}
    latent = dust.pack({name: tf.constant(value, DTYPE) for name, value in one.items()})
    arcsec = tf.constant([5.0], DTYPE)
    for law, fall in (("gaussian", lambda r: r**2 / 2), ("exponential", lambda r: np.sqrt(r**2 + 1e-6))):
        depth = dust.optical_depth(latent, tf.zeros([1, 2], DTYPE), arcsec, 32, law)[0].numpy()
        t, (wide, thin) = np.arange(32) - 16, 4 * np.array([3**0.5, 3**-0.5])  # axis ratio (1 - e) / (1 + e)
        np.testing.assert_allclose(depth[16], 2 * np.exp(-fall(t / wide)), rtol=1e-6)
        np.testing.assert_allclose(depth[:, 16], 2 * np.exp(-fall(t / thin)), rtol=1e-6)
    turned = latent + tf.constant([[0, 0, 0, -2.0, 0, 0]], DTYPE) * latent
    moved = dust.optical_depth(turned, tf.zeros([1, 2], DTYPE), arcsec, 32, "exponential")[0].numpy()
    np.testing.assert_allclose(moved, depth.T, rtol=1e-6)


def test_attenuation_curve() -> None:
    """1 at V, one curve on both sides of 0.63 micrometres."""
    np.testing.assert_allclose(calzetti([0.55]), 1, atol=0.005)
    np.testing.assert_allclose(calzetti([0.6299]), calzetti([0.6301]), rtol=0.01)
    assert (np.diff(calzetti(np.linspace(0.13, 2.1, 50))) < 0).all()


def test_refuses() -> None:
    scene = alone(simulate(LANE)[0])
    for arguments, message in (
        (([1.0],), "lane: attenuation: expected 3 finite values"),
        (([1.0, -1.0, 0.5],), "attenuation: expected 3 finite values that are not negative"),
        (([1.0, 1.0, 1.0], 1), "source: expected the number of a galaxy, 0 to 0, received 1"),
    ):
        with pytest.raises(DataError, match=message):
            fit_dust(scene, *arguments)
    with pytest.raises(ValueError, match="law: expected"):
        fit_dust(scene, [1, 1, 1], law="slab")
    with pytest.raises(ValueError, match="prior: expected"):
        fit_dust(scene, [1, 1, 1], prior="nonparametric")
    first, second = expose("one"), expose("two", seed=1)
    with pytest.raises(DataError, match="one: observations: expected one observation, received 2"):
        fit_dust(Scene.from_catalog((first, second), positions(first)), [1.0, 1.0])
