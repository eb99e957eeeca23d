"""Observation: what it accepts, what it makes of it, and its notes. Refusals are in test_malformed.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, VarianceUncertainty
from scene_files import BANDS, SHAPE, arrays, celestial

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError


def observe(**changes: Any) -> Observation:
    content = arrays()
    fields = {"images": content["images"], "weights": content["weights"], "psf": content["psfs"], "bands": BANDS}
    return Observation(**{**fields, **changes})


def test_keeps_the_data_as_float32_and_weights_as_float64() -> None:
    content = arrays()
    observation = observe(images=content["images"].astype(">f8"))
    np.testing.assert_array_equal(observation.images, content["images"])
    assert observation.images.dtype == observation.psf.dtype == np.float32
    assert observation.weights.dtype == np.float64
    assert observation.shape == SHAPE
    assert observation.bands == BANDS
    assert observation.notes == ()
    assert observation.valid.all()


def test_lists_and_one_band_of_two_dimensions() -> None:
    observation = Observation([[1, 2], [3, 4]], weights=[[1, 1], [1, 0]], psf=[[1.0]])
    assert observation.shape == (1, 2, 2)
    assert observation.bands == ("band0",)
    assert observation.valid.tolist() == [[[True, True], [True, False]]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_masked_and_counted(value: float) -> None:
    images = arrays()["images"]
    images[0, 3, 4] = images[2, 0, 0] = value
    observation = observe(images=images)
    assert observation.images[0, 3, 4] == observation.weights[0, 3, 4] == 0
    assert (~observation.valid).sum() == 2
    assert observation.notes == ("2 NaN or infinite pixels masked",)


def test_absurd_values_under_the_mask_are_dropped() -> None:
    content = arrays()
    content["images"][1, 2, 3], content["weights"][1, 2, 3] = -3e38, 0
    assert observe(images=content["images"], weights=content["weights"]).images[1, 2, 3] == 0


def test_band_without_a_pixel_is_noted() -> None:
    weights = arrays()["weights"]
    weights[1] = 0
    assert observe(weights=weights).notes == ("every pixel is masked in r",)


def test_masked_array() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 5, 6] = True
    assert (~observe(images=np.ma.MaskedArray(arrays()["images"], mask)).valid == mask).all()


def test_noise_is_estimated_from_the_sky() -> None:
    rng = np.random.default_rng(0)
    sigma = np.array([0.5, 1.0, 2.0])
    images = rng.normal(3, sigma[:, None, None], (3, 100, 100))
    images[:, 30:50, 30:50] += 100  # a source on 4% of the pixels
    observation = observe(images=images, weights=None)
    np.testing.assert_allclose(observation.weights[:, 0, 0] ** -0.5, sigma, rtol=0.03)
    assert len(observation.notes) == 1
    assert "median absolute deviation" in observation.notes[0]


def test_psf_of_two_dimensions_serves_all_bands() -> None:
    psf = arrays()["psfs"][0]
    np.testing.assert_array_equal(observe(psf=psf).psf, observe(psf=np.stack([psf] * 3)).psf)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (51, 60)])
def test_psf_of_any_size(shape: tuple[int, int]) -> None:
    psf = np.full((3, *shape), 1 / np.prod(shape))
    assert observe(psf=psf).psf.shape == (3, *shape)


@pytest.mark.parametrize(("total", "notes"), [(1.0001, 0), (0.96, 1), (1.04, 1)])
def test_psf_is_renormalised_with_a_note(total: float, notes: int) -> None:
    observation = observe(psf=arrays()["psfs"] * total)
    np.testing.assert_allclose(observation.psf.sum(axis=(1, 2)), 1, rtol=1e-6)
    assert len(observation.notes) == notes


@pytest.mark.parametrize(("unit", "zeropoint"), [("nJy", 31.4), ("Jy", 8.9), ("uJy", 23.9), ("nmgy", 22.5)])
def test_zeropoint_of_a_flux_density(unit: str, zeropoint: float) -> None:
    zeropoints = observe(unit=unit).zeropoints
    assert zeropoints is not None
    np.testing.assert_allclose(zeropoints, zeropoint, atol=2e-3)


def test_other_units_have_no_zeropoint() -> None:
    observation = observe(unit="adu")
    assert (observation.unit, observation.zeropoints) == ("adu", None)
    given = observe(unit="adu", zeropoints=27).zeropoints
    assert given is not None
    assert given.tolist() == [27, 27, 27]


def test_quantity() -> None:
    content = arrays()
    weights = (content["weights"] / units.nJy**2).to(units.uJy**-2)
    observation = observe(images=content["images"] * units.nJy, weights=weights)
    assert observation.unit == "nJy"
    np.testing.assert_allclose(observation.weights, content["weights"], rtol=1e-6)
    with pytest.raises(DataError, match="observation: weights: expected unit"):
        observe(images=content["images"] * units.nJy, weights=content["weights"] / units.s)


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full(SHAPE, 0.1)),
        VarianceUncertainty(np.full(SHAPE, 0.01)),
        InverseVariance(np.full(SHAPE, 100)),
    ],
)
def test_nddata(uncertainty: Any) -> None:
    content = arrays()
    mask = np.zeros(SHAPE, bool)
    mask[0, 1, 2] = True
    data = NDData(content["images"], uncertainty=uncertainty, mask=mask, wcs=celestial(), unit="nJy")
    observation = observe(images=data, weights=None)
    np.testing.assert_allclose(observation.weights, np.where(mask, 0, content["weights"]), rtol=1e-6)
    assert observation.unit == "nJy"
    assert observation.pixel_scale == pytest.approx(0.2)
    assert observation.notes == ()


def test_ccddata_of_one_band() -> None:
    content = arrays()
    deviation = StdDevUncertainty(np.full(SHAPE[1:], 0.1))
    data = CCDData(content["images"][0], uncertainty=deviation, wcs=celestial(), unit="adu")
    observation = Observation(data, psf=content["psfs"][0], bands="g")
    assert observation.shape == (1, *SHAPE[1:])
    np.testing.assert_allclose(observation.weights, 100, rtol=1e-6)


def test_wcs_from_text_and_its_pixel_scale() -> None:
    for text in (celestial().to_header_string(), celestial().to_header().tostring(sep="\n")):
        observation = observe(wcs=text)
        np.testing.assert_allclose(observation.wcs.wcs_pix2world(3, 4, 0), celestial().wcs_pix2world(3, 4, 0))
        assert observation.pixel_scale == pytest.approx(0.2)


def test_degrees_for_arcsec_are_told_what_they_would_be() -> None:
    with pytest.raises(DataError, match=r"pixel_scale: expected 0.001 to 60 arcsec, .* 5e-05; give 0.18 if these are"):
        observe(pixel_scale=0.18 / 3600)


def test_pixel_scale_at_odds_with_the_wcs_is_noted() -> None:
    observation = observe(wcs=celestial(), pixel_scale=0.3)
    assert observation.pixel_scale == 0.3
    assert len(observation.notes) == 1


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError):
        observe(weight=1)


@pytest.mark.parametrize("noise", [1e-20, 1e-32])
def test_physical_units_fit_into_the_weights(noise: float) -> None:
    """Inverse variances of 1e40 and more, as of W/m2/Hz, are no overflow; absurd ones are refused."""
    content = arrays()
    images = content["images"].astype(float) * noise
    observation = observe(images=images, weights=np.full(SHAPE, noise**-2))
    np.testing.assert_allclose(observation.weights, noise**-2)
    np.testing.assert_allclose(observation.images, images, rtol=1e-6)
    with pytest.raises(DataError, match="weights: expected values from 0 to 1e"):
        observe(weights=np.full(SHAPE, 1e71))
