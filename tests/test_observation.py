"""Observation: what it accepts, what it makes of it, and its notes. Refusals are in test_malformed.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from helpers import gaussian
from scene_files import BANDS, SHAPE, arrays, celestial

from tfdeblend.data.observation import Observation
from tfdeblend.data.photometry import alike, parsed
from tfdeblend.data.weights import Noise
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


@pytest.mark.parametrize("mark", [-1e30, 1e20, 9.96921e36, 3.4e38])
def test_marks_of_missing_data_are_masked(mark: float) -> None:
    """Whatever their number, and whether or not a noise is given; values of a large unit are data."""
    images = arrays()["images"]
    images[:, :, 9:] = mark
    for one in (observe(images=images), observe(images=images, weights=None)):
        assert one.valid[:, :, :9].all() and not one.valid[:, :, 9:].any()
        assert (one.images[:, :, 9:] == 0).all()
        assert one.notes[0] == f"{24 * 11 * 3} pixels without data masked, such as of {np.float32(mark):g}"
    large = observe(images=arrays()["images"].astype(float) * 1e22, weights=arrays()["weights"] * 1e-44)
    assert large.valid.all() and large.notes == ()


FEW = (0, 3, slice(4, 8))  # pixels, of 1440


@pytest.mark.parametrize(
    ("kind", "value", "note"),
    [
        ("weights", np.nan, "4 pixels of weights that are NaN, negative or out of range masked"),
        ("weights", -80.4, "4 pixels of weights that are NaN, negative or out of range masked"),
        ("weights", np.inf, "4 pixels of weights that are NaN, negative or out of range masked"),
        ("weights", 1e38, "4 pixels of weights that are NaN, negative or out of range masked"),
        ("weights", 1e-310, "4 pixels of a noise 100000 times the usual masked"),
        ("weights", 0, None),
        ("variance", -1, "4 pixels of variance that are NaN, negative or out of range masked"),
        ("variance", np.nan, "4 pixels of variance that are NaN, negative or out of range masked"),
        ("variance", 1e-310, "4 pixels of variance that are NaN, negative or out of range masked"),
        ("variance", 0, "4 pixels of zero variance masked"),
        ("variance", np.inf, None),
        ("sigma", -np.inf, "4 pixels of sigma that are NaN, negative or out of range masked"),
        ("sigma", 0, "4 pixels of zero sigma masked"),
        ("sigma", 1e30, "4 pixels of a noise 100000 times the usual masked"),
    ],
)
def test_pixels_of_no_noise_are_masked_and_counted(kind: str, value: float, note: str | None) -> None:
    noise = np.full(SHAPE, {"weights": 100.0, "variance": 0.01, "sigma": 0.1}[kind])
    noise[FEW] = value
    observation = observe(weights=Noise(kind, noise))
    masked = np.zeros(SHAPE, bool)
    masked[FEW] = True
    np.testing.assert_array_equal(observation.valid, ~masked)
    np.testing.assert_allclose(observation.weights[~masked], 100)
    assert observation.notes == (() if note is None else (note,))


def test_many_pixels_of_no_noise_are_refused_unless_they_are_without_data() -> None:
    images, weights = arrays()["images"], np.full(SHAPE, 100.0)
    weights[:, :4] = np.nan
    expected = r"weights: expected values from 0 .* received others, such as nan, in 240 of 1440 .*; mask them"
    with pytest.raises(DataError, match=expected):
        observe(weights=weights)
    for empty in (np.nan, 0.0):
        images[:, :4] = empty
        observation = observe(images=images, weights=weights)
        np.testing.assert_array_equal(observation.valid, np.isfinite(weights))
        assert len(observation.notes) == 1


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
    assert "the scatter of the sky" in observation.notes[0]


def test_psf_of_two_dimensions_serves_all_bands() -> None:
    psf = arrays()["psfs"][0]
    np.testing.assert_array_equal(observe(psf=psf).psf, observe(psf=np.stack([psf] * 3)).psf)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (51, 60)])
def test_psf_of_any_size(shape: tuple[int, int]) -> None:
    psf = gaussian(shape, (shape[0] - 1) / 2, (shape[1] - 1) / 2, 1.0)
    psf = np.stack([psf / psf.sum()] * 3)
    assert observe(psf=psf).psf.shape == (3, *shape)


@pytest.mark.parametrize(("total", "notes"), [(1.0001, 0), (0.96, 1), (1.04, 1)])
def test_psf_is_renormalised_with_a_note(total: float, notes: int) -> None:
    observation = observe(psf=arrays()["psfs"] * total)
    np.testing.assert_allclose(observation.psf.sum(axis=(1, 2)), 1, rtol=1e-6)
    assert len(observation.notes) == notes


@pytest.mark.parametrize(
    ("unit", "zeropoint"),
    [
        ("nJy", 31.4),
        ("Jy", 8.9),
        ("uJy", 23.9),
        ("nmgy", 22.5),
        ("microJy", 23.9),
        ("NJY/PIXEL", 31.4),
        ("1e-6 JY", 23.9),
    ],
)
def test_zeropoint_of_a_flux_density(unit: str, zeropoint: float) -> None:
    zeropoints = observe(unit=unit).zeropoints
    assert zeropoints is not None
    np.testing.assert_allclose(zeropoints, zeropoint, atol=2e-3)


@pytest.mark.parametrize(
    ("spelling", "unit"),
    [
        *(("e-/s", "electron / s"), ("ELECTRONS/S", "electron / s"), ("e-", "electron"), ("e- s-1", "electron / s")),
        *(("counts/sec", "ct / s"), ("PHOTONS", "ph"), ("DN/s", "DN / s"), ("UJY/PIX", "uJy / pix")),
        *(("Nanomaggies", "nmgy"), ("micro-Jy", "uJy"), ("1.e-6 Jy", "1e-06 Jy"), ("10.0*nJy", "10 nJy")),
        *(("MJY/SR", None), ("cps", None)),
    ],
)
def test_units_as_headers_spell_them(spelling: str, unit: str | None) -> None:
    """The text stays as it is; what it means decides about zero points and about what is alike."""
    assert observe(unit=spelling).unit == spelling
    found = parsed(spelling)
    assert found == (None if unit is None else units.Unit(unit))
    assert alike(spelling, unit) == (unit is not None)


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


NOISES = [(StdDevUncertainty, 1, 0.1), (VarianceUncertainty, 2, 0.01), (InverseVariance, -2, 100)]


@pytest.mark.parametrize(("kind", "power", "value"), NOISES)
@pytest.mark.parametrize("unit", ["nJy", "uJy", None])
def test_what_carries_a_unit_is_converted(kind: Any, power: int, value: float, unit: str | None) -> None:
    """The images, and an uncertainty by the power that it has of them: to the unit asked for, else to the images'."""
    images, uncertainty = arrays()["images"], kind((np.full(SHAPE, value) * units.nJy**power).to(units.mJy**power))
    expected = observe(images=images, weights=np.full(SHAPE, 100.0), unit="nJy")
    factor = 1e-3 if unit == "uJy" else 1
    for given in (
        {"images": NDData(images, uncertainty=uncertainty, unit="nJy"), "weights": None},
        {"images": images * units.nJy, "weights": uncertainty},
        {"images": [CCDData(image, unit="nJy") for image in images], "weights": uncertainty},
        {"images": [image * units.Jy for image in images * 1e-9], "weights": uncertainty, "unit": "nJy"},
    ):
        observation = observe(**{"unit": unit, **given})
        scale = 1 if given.get("unit") else factor
        assert observation.unit == (given.get("unit") or unit or "nJy")
        np.testing.assert_allclose(observation.images, expected.images * scale, rtol=1e-6)
        np.testing.assert_allclose(observation.weights, expected.weights / scale**2, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": arrays()["images"] * units.nJy, "unit": "adu"}, "images: expected unit adu, received nJy"),
        (
            {"images": arrays()["images"] * units.nJy, "unit": "cps"},
            "images: expected unit cps, which Astropy does not",
        ),
        (
            {"weights": StdDevUncertainty(np.ones(SHAPE), unit="adu"), "unit": "nJy"},
            "weights: expected unit nJy, received adu",
        ),
        (
            {"weights": np.ones(SHAPE) * units.nJy, "unit": "nJy"},
            "weights: expected unit 1 / nJy2, received nJy; wrap a noise as an uncertainty of astropy.nddata",
        ),
        ({"weights": np.ones(SHAPE) / units.nJy**2}, "weights: expected unit , received 1 / nJy2"),
        ({"pixel_scale": 0.2 * units.nJy}, "pixel_scale: expected arcsec, received nJy"),
        ({"zeropoints": 31.4 * units.STmag}, r"zeropoints: expected AB magnitudes, received mag\(ST\)"),
    ],
)
def test_units_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        observe(**given)


def test_angles_and_magnitudes_with_units() -> None:
    for scale in (0.2 * units.arcsec, 0.2 / 60 * units.arcmin, 0.2 * units.arcsec / units.pix):
        assert observe(pixel_scale=scale).pixel_scale == pytest.approx(0.2)
    for zero in (27 * units.ABmag, 27 * units.mag):
        assert observe(zeropoints=zero).zeropoints == pytest.approx([27] * 3)


def bands_of(**changes: Any) -> list[CCDData]:
    """One CCDData a band, each masked at a pixel of its own; the last one with changes."""
    content, found = arrays(), []
    for c, image in enumerate(content["images"]):
        mask = np.zeros(SHAPE[1:], bool)
        mask[0, c] = True
        own = {"uncertainty": StdDevUncertainty(np.full(SHAPE[1:], 0.1)), "wcs": celestial()}
        own |= changes if c == SHAPE[0] - 1 else {}
        found.append(CCDData(image, unit="nJy", mask=mask, psf=content["psfs"][c], **own))
    return found


def test_one_ccddata_a_band() -> None:
    """Masks, noise, WCS, unit and PSFs are theirs, and `ccd` gives each back."""
    observation = Observation(bands_of(), bands=BANDS)
    whole = observe(unit="nJy", wcs=celestial())
    for field in ("images", "psf"):
        np.testing.assert_allclose(getattr(observation, field), getattr(whole, field), rtol=1e-6)
    assert (observation.unit, observation.pixel_scale) == ("nJy", pytest.approx(0.2))
    assert np.argwhere(~observation.valid).tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 2]]
    again = Observation([observation.ccd(band) for band in BANDS], bands=BANDS)
    for field in ("images", "weights", "psf", "zeropoints"):
        np.testing.assert_allclose(getattr(again, field), getattr(observation, field), rtol=1e-6)
    assert again.unit == "nJy" and again.wcs.wcs.compare(observation.wcs.wcs)
    other = observation.ccd("r", np.ones(SHAPE[1:]))
    assert (other.data == 1).all() and other.unit == "nJy"
    assert observe().ccd("r").unit == units.dimensionless_unscaled
    with pytest.raises(DataError, match="image: expected shape"):
        observation.ccd("r", np.ones(SHAPE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncertainty": None}, "weights: expected uncertainties of one kind in all bands, received None, sigma"),
        ({"wcs": None}, "wcs: expected a WCS in all bands or in none"),
        ({"wcs": celestial()[2:, :]}, "wcs: expected bands on the same pixels, received pixels that are off by 2"),
    ],
)
def test_ccddata_that_are_no_bands_of_one_image_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Observation(bands_of(**changes), bands=BANDS)


def test_masked_quantity() -> None:
    from astropy.utils.masked import Masked

    mask = np.zeros(SHAPE, bool)
    mask[:, 5, 6] = True
    observation = observe(images=Masked(arrays()["images"] * units.nJy, mask=mask))
    assert observation.unit == "nJy" and (~observation.valid == mask).all()


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


def test_a_cube_s_wcs_is_that_of_its_first_axes() -> None:
    """Also where Astropy takes no celestial part out of it."""
    header = celestial().to_header()
    header["CTYPE1"], header["CTYPE2"], header["PV1_1"], header["PV2_1"] = "RA---TPV", "DEC--TPV", 1.0, 1.0
    flat = observe(wcs=WCS(header))
    header["CTYPE3"], header["CRVAL3"], header["CDELT3"], header["WCSAXES"] = "WAVE", 1e-6, 1e-7, 3
    cube = observe(wcs=header.tostring())
    np.testing.assert_allclose(cube.wcs.wcs_pix2world(3, 4, 0), flat.wcs.wcs_pix2world(3, 4, 0))
    assert cube.pixel_scale == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("cards", "problem"),
    [
        ({"RADESYS": "NOWHERE"}, "a usable WCS"),
        (
            {"PC1_1": 1.0, "PC1_2": 1.0, "PC2_1": 1.0, "PC2_2": 1.0},
            "a sky position of its own for each pixel|pixels of",
        ),
        ({"CDELT1": 1e-300}, "a sky position of its own for each pixel|pixels of"),
        ({"CDELT1": 1e30}, "a sky position of its own|a usable WCS|pixels of"),
    ],
)
def test_a_wcs_that_results_could_not_be_read_back_with(cards: dict[str, Any], problem: str) -> None:
    header = celestial().to_header()
    header.update(cards)
    with pytest.raises(DataError, match=f"^observation: wcs: expected ({problem})") as caught:
        observe(wcs=header.tostring())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bands": ("g", "r", "µ")}, "bands"),
        ({"bands": ("g", "r", "x" * 31)}, "bands"),
        ({"bands": ("g", "r", "a\x07b")}, "bands"),
        ({"bands": ("g", "r", "err_g")}, "bands"),
        ({"bands": ("g", "r", "G")}, "bands"),
        ({"unit": "nJy\x07"}, "unit"),
        ({"pixel_scale": 1e-300}, "pixel_scale"),
    ],
)
def test_text_and_numbers_that_no_file_of_results_can_hold(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError, match=f"^observation: {field}: expected"):
        observe(**changes)


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


def test_bands_that_share_a_column_are_told() -> None:
    """FITS does not tell capitals apart."""
    for bands, shared in (
        (("g", "r", "err_g"), "g and err_g, which both have flux_err_g"),
        (("y", "r", "Y"), "y and Y"),
    ):
        with pytest.raises(
            DataError, match=f"bands: expected names whose columns .* received {shared}.*; rename one by"
        ):
            observe(bands=bands)


def test_noises_and_units_of_lists_are_those_of_arrays() -> None:
    psf, image = np.full((2, 5, 5), 0.04), np.ones((9, 9))
    images = [image * units.nJy] * 2
    for weights in ([image * units.uJy**-2] * 2, [StdDevUncertainty(1000 * image * units.nJy)] * 2):
        np.testing.assert_allclose(Observation(images, weights, psf, bands=("g", "r")).weights, 1e-6, rtol=1e-6)
    with pytest.raises(DataError, match="expected a unit in all bands or in none"):
        Observation([image, 5 * image * units.nJy], np.ones((2, 9, 9)), psf, bands=("g", "r"))
