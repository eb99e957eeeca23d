"""Moments that fits start from: closed forms of Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import elliptical, gaussian

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.galaxies.moments import GAUSSIAN_HALF_LIGHT, adaptive_moments, moments

SEEING = 1.5  # sigma of the PSF in pixels
PSF = gaussian((31, 31), 15, 15, SEEING)


def seen(*sources: tuple[float, float, float, tuple[float, float, float]], noise: float = 1e-3) -> Scene:
    """Gaussians (flux, y, x, intrinsic covariance) as observed, with next to no noise, 0.2 arcsec pixels."""
    images = np.random.default_rng(0).normal(scale=noise, size=(1, 61, 61))
    for flux, y, x, (yy, yx, xx) in sources:
        images[0] += flux * elliptical(61, y, x, (yy + SEEING**2, yx, xx + SEEING**2))
    observation = Observation(images, np.full(images.shape, noise**-2.0), PSF, pixel_scale=0.2)
    return Scene(observation, tuple(Source(y, x) for _, y, x, _ in sources))


@pytest.mark.parametrize("covariance", [(4, 0, 4), (9, 0, 2), (3, 1.5, 5), (2, -1, 2)])
def test_adaptive_moments_of_a_gaussian_are_its_covariance(covariance: tuple[float, float, float]) -> None:
    stamps = elliptical(41, 20, 20, covariance)[None]
    np.testing.assert_allclose(adaptive_moments(stamps)[0], covariance, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(adaptive_moments(1e9 * stamps), adaptive_moments(stamps), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("covariance", [(9, 0, 4), (4, 2, 6), (6.25, 0, 6.25)])
def test_moments_are_free_of_the_psf(covariance: tuple[float, float, float]) -> None:
    """Half-light radius of the circle of equal area in arcsec, |e| = (a - b) / (a + b)."""
    radius, ellipticity = moments(seen((1000, 30, 30, covariance)))
    yy, yx, xx = covariance
    area = np.sqrt(yy * xx - yx**2)
    assert radius[0] == pytest.approx(GAUSSIAN_HALF_LIGHT * np.sqrt(area) * 0.2, rel=0.05)
    expected = np.array([xx - yy, 2 * yx]) / (xx + yy + 2 * area)
    np.testing.assert_allclose(ellipticity[0], expected, atol=0.03)


def test_a_neighbour_is_suppressed() -> None:
    round_one, far = (6.25, 0.0, 6.25), (6.25, 0.0, 6.25)
    radius, ellipticity = moments(seen((1000, 30, 24, round_one), (1000, 30, 36, far)))
    np.testing.assert_allclose(radius, GAUSSIAN_HALF_LIGHT * 2.5 * 0.2, rtol=0.25)
    assert np.hypot(*ellipticity.T).max() < 0.2


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30])
def test_where_there_is_no_light_a_start_is_there(value: float) -> None:
    images = np.full((1, 30, 30), value)
    scene = Scene(Observation(images, np.ones((1, 30, 30)), PSF, pixel_scale=0.2), (Source(0, 0), Source(29, 12)))
    radius, ellipticity = moments(scene)
    assert np.isfinite(radius).all() and (radius > 0).all()
    assert np.isfinite(ellipticity).all() and (np.hypot(*ellipticity.T) < 1).all()
