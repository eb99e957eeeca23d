"""Widths of PSFs and the model PSF, by profiles whose width is known."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import gaussian

from tfdeblend.data.psf import fwhm, gaussian_psf, psf_spectrum, transfer_function

GAUSSIAN = 2 * np.sqrt(2 * np.log(2))  # FWHM over sigma


def profile(kind: str, width: float, side: int, offset: float = 0.0, axis_ratio: float = 1.0) -> np.ndarray:
    """(1, side, side) of FWHM `width`, the geometric mean of both axes, `offset` pixels (y, x) from the middle."""
    rows, columns = np.indices((side, side)) - side // 2 - offset
    radius = np.sqrt(rows**2 / axis_ratio + columns**2 * axis_ratio) / (width / 2)
    if kind == "gaussian":
        image = 0.5**radius**2
    else:
        beta = float(kind)
        image = (1 + (2 ** (1 / beta) - 1) * radius**2) ** -beta
    return (image / image.sum())[None]


@pytest.mark.parametrize("kind", ["gaussian", "2.5", "4.765"])
@pytest.mark.parametrize(("width", "error"), [(2.0, 0.02), (2.5, 0.01), (4.3, 0.005), (12.0, 0.005)])
def test_width_is_the_truth(kind: str, width: float, error: float) -> None:
    """Undersampled too, whatever the side of the image."""
    for side in (25, 44, 61):
        assert fwhm(profile(kind, width, side)) == pytest.approx([width], rel=error)


@pytest.mark.parametrize("kind", ["gaussian", "2.5"])
@pytest.mark.parametrize("offset", [0.3, 0.5])
def test_width_does_not_depend_on_the_place_between_pixels(kind: str, offset: float) -> None:
    assert fwhm(profile(kind, 3.0, 35, offset)) == pytest.approx([3.0], rel=0.02)


def test_width_of_ellipses_and_of_each_band() -> None:
    images = np.concatenate([profile("gaussian", 3.0, 31, axis_ratio=0.6), profile("3.5", 6.0, 31)])
    np.testing.assert_allclose(fwhm(images), [3, 6], rtol=0.01)


def test_width_of_one_pixel() -> None:
    """All of it is above half of the maximum: a circle of one pixel's area."""
    assert fwhm(np.ones((1, 1, 1))) == pytest.approx([2 / np.sqrt(np.pi)], rel=1e-6)


def test_noise_in_the_wings_does_not_count() -> None:
    psf = profile("3.5", 4.0, 43)
    noise = np.random.default_rng(0).normal(scale=0.003 * psf.max(), size=psf.shape)
    assert fwhm(psf + noise) == pytest.approx([4.0], rel=0.01)


@pytest.mark.parametrize(("height", "width"), [(21, 21), (20, 23), (33, 44)])
def test_transfer_function_is_the_ratio_of_two_spectra(height: int, width: int) -> None:
    side, sigma = 64, 0.8
    psf = gaussian((height, width), (height - 1) / 2, (width - 1) / 2, 2.0)[None]
    y, x = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
    frequencies = 2 * np.pi * np.stack([y, x], -1).reshape(-1, 2)
    ratio = psf_spectrum(psf, frequencies) / psf_spectrum(gaussian_psf(sigma), frequencies)
    found = transfer_function(psf, sigma, side)
    np.testing.assert_allclose(found.reshape(1, -1), ratio, atol=1e-10)


def test_model_psf_transfers_to_itself() -> None:
    np.testing.assert_allclose(transfer_function(gaussian_psf(1.0), 1.0, 64), 1)
    assert fwhm(gaussian_psf(1.0)) == pytest.approx([GAUSSIAN], rel=0.01)
