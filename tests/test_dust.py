"""Laws of dusty galaxies: closed forms of the screen, a lane that is found, a maximum that is one."""

from __future__ import annotations

from dataclasses import replace

import galsim
import numpy as np
import pytest
import tensorflow as tf
from astropy.wcs import WCS

from tfdeblend.deblender import Deblender
from tfdeblend.dust import DTYPE, DustPrior, DustyGalaxy, calzetti, fit_dust
from tfdeblend.errors import DataError
from tfdeblend.observation import Observation
from tfdeblend.scene import Scene, Source

SIDE, SCALE, FINER = 48, 0.168, 5  # pixels; arcsec; how much smaller are the pixels where light is taken away
WAVELENGTHS = (0.48, 0.62, 0.89)  # micrometres
FLUX = np.array([15000.0, 24000.0, 33000.0])
LANE = {"offset": (0.1, 0.0), "radius": 0.35, "ellipticity": (0.32, 0.5), "depth": 1.5}


def simulate(depth: float = LANE["depth"], seed: int = 0) -> tuple[Observation, np.ndarray, np.ndarray]:
    """A disk behind a lane, and its image without and with it (C, H, W); the product is taken on small pixels."""
    side, scale = SIDE * FINER, SCALE / FINER
    t = (np.arange(side) - (side - 1) / 2) * scale
    y, x = np.meshgrid(t - LANE["offset"][0], t - LANE["offset"][1], indexing="ij")
    e1, e2 = LANE["ellipticity"]
    inverse = np.array([[1 + e1**2 + e2**2 + 2 * e1, -2 * e2], [-2 * e2, 1 + e1**2 + e2**2 - 2 * e1]])
    inverse = inverse / (1 - e1**2 - e2**2) / LANE["radius"] ** 2  # along (y, x)
    square = inverse[0, 0] * y**2 + 2 * inverse[0, 1] * y * x + inverse[1, 1] * x**2
    disk = galsim.Exponential(half_light_radius=0.8).shear(g1=0.3, g2=0.1)
    light = disk.drawImage(nx=side, ny=side, scale=scale, dtype=float).array
    psf = galsim.Moffat(beta=3.5, fwhm=0.65)

    def seen(image: np.ndarray) -> np.ndarray:
        whole = galsim.InterpolatedImage(galsim.Image(image, scale=scale), flux=float(image.sum()))
        return galsim.Convolve(whole, psf).drawImage(nx=SIDE, ny=SIDE, scale=SCALE, dtype=float).array

    through = [np.exp(-k * depth * np.exp(-square / 2)) for k in calzetti(WAVELENGTHS)]
    intrinsic = FLUX[:, None, None] * seen(light)
    attenuated = np.stack([flux * seen(light * share) for flux, share in zip(FLUX, through, strict=True)])
    kernel = psf.drawImage(nx=41, ny=41, scale=SCALE, dtype=float).array
    wcs = WCS(naxis=2)
    wcs.wcs.cd, wcs.wcs.ctype = SCALE / 3600 * np.diag([-1, 1]), ["RA---TAN", "DEC--TAN"]
    data = attenuated + np.random.default_rng(seed).normal(size=attenuated.shape)
    return (
        Observation(data, np.ones_like(data), kernel / kernel.sum(), tuple("grz"), "lane", wcs),
        intrinsic,
        attenuated,
    )


def alone(observation: Observation) -> Scene:
    return Scene(observation, (Source((SIDE - 1) / 2, (SIDE - 1) / 2),))


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.fixture(scope="module")
def lane() -> tuple[DustyGalaxy, np.ndarray, np.ndarray]:
    observation, intrinsic, attenuated = simulate()
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


def test_no_dust_takes_no_light() -> None:
    observation, intrinsic, _ = simulate(depth=0.0, seed=1)
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
    scene = alone(simulate()[0])
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
