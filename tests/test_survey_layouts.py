"""Files laid out as surveys lay them out: noise, masks, bands, zero points and units come out right, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from helpers import on_sky
from scene_files import BANDS, SHAPE, arrays, celestial, write_npz

from tfdeblend import io
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import observed_flux
from tfdeblend.inference.priors import AutomaticPrior
from tfdeblend.io import masks

IMAGE, PSF = arrays()["images"][0], arrays()["psfs"][0].astype(np.float32)
ONE = IMAGE.shape
SIGMA = 0.1
NOISE = {"weights": SIGMA**-2, "variance": SIGMA**2, "sigma": SIGMA}
KEYS = {
    "weights": "WHT WEIGHT WEIGHTS WGT IVAR INVVAR",
    "variance": "VAR VARIANCE",
    "sigma": "ERR ERROR RMS SIGMA STD UNCERT",
}
NAMED = [(kind, name) for kind, names in KEYS.items() for name in names.split()]


def write(path: Path, *parts: tuple[str, Any, dict[str, Any]], primary: dict[str, Any] | None = None) -> Path:
    """A FITS file of a primary without an image and of extensions (name, data, header), and one PSF."""
    hdus = [fits.PrimaryHDU(header=fits.Header(primary or {}))]
    for name, data, header in parts:
        hdus.append(fits.ImageHDU(data, fits.Header(header), name=name))
    if not any(name.startswith("PSF") for name, _, _ in parts):
        hdus.append(fits.ImageHDU(PSF, name="PSF"))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def full(value: float) -> np.ndarray:
    return np.full(ONE, value, np.float32)


def science(**header: Any) -> tuple[str, Any, dict[str, Any]]:
    return "SCI", IMAGE, {**celestial().to_header(), **header}


# Noise


@pytest.mark.parametrize(("kind", "name"), NAMED, ids=[name for _, name in NAMED])
def test_noise_under_every_name(kind: str, name: str, tmp_path: Path) -> None:
    given = np.broadcast_to(np.float32(NOISE[kind]), SHAPE)
    for path in (
        write(tmp_path / "a.fits", science(), (name, full(NOISE[kind]), {})),
        write_npz(tmp_path / "a.npz", () if name == "WEIGHTS" else ("weights",), **{name.lower(): given}),
    ):
        observation = io.read(path)[0]
        np.testing.assert_allclose(observation.weights, SIGMA**-2, rtol=1e-5)
        assert observation.notes == ()


def test_of_several_noises_the_variance_or_the_error_is_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(), ("ERR", full(SIGMA), {}), ("WHT", full(900), {}), ("CON", full(1), {}))
    observation = io.read(path)[0]
    np.testing.assert_allclose(observation.weights, SIGMA**-2, rtol=1e-5)
    assert observation.notes == ("the noise is that of ERR, not of WHT",)
    several = {"weights": np.full(SHAPE, 900.0), "variance": np.full(SHAPE, SIGMA**2)}
    assert io.read(write_npz(tmp_path / "a.npz", **several))[0].notes == (
        "the noise is that of variance, not of weights",
    )


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(), ("NOISE_LEVEL", full(1), {}), ("CTX", full(1), {}))
    estimated = "no weights given: estimated from the scatter of the sky in each band"
    assert io.read(path)[0].notes == ("not read, as not understood or given twice: NOISE_LEVEL", estimated)
    path = write_npz(tmp_path / "a.npz", depth=np.ones(SHAPE), truth=np.ones(SHAPE), model_sigma=np.array(1.0))
    assert io.read(path)[0].notes == ("not read, as not understood or given twice: depth",)


def test_names_that_begin_with_the_image_s_are_no_further_bands(tmp_path: Path) -> None:
    bad = np.zeros(ONE, np.uint8)
    bad[3, 4] = 1
    rest = ("IMAGE_RAW", IMAGE, {})
    path = write(tmp_path / "a.fits", science(), ("SCI_ERR", full(SIGMA), {}), ("SCI_MASK", bad, {}), rest)
    observation = io.read(path)[0]
    np.testing.assert_allclose(observation.weights[0], np.where(bad, 0, SIGMA**-2), rtol=1e-5)
    assert observation.notes == ("not read, as not understood or given twice: IMAGE_RAW",)
    both = [(name, *science()[1:]) for name in ("SCI_g", "SCI_r")]
    path = write(tmp_path / "b.fits", *both, ("SCI_r_ERR", full(SIGMA), {}), ("SCI_g_ERR", full(2 * SIGMA), {}))
    observation = io.read(path)[0]
    assert observation.bands == ("g", "r")
    np.testing.assert_allclose(observation.weights[:, 0, 0], [SIGMA**-2 / 4, SIGMA**-2], rtol=1e-5)


def test_the_weights_of_jwst_alone_are_a_mask(tmp_path: Path) -> None:
    weights = full(900)
    weights[:2] = 0
    path = write(tmp_path / "a.fits", science(), ("WHT", weights, {}), primary={"TELESCOP": "JWST"})
    observation = io.read(path)[0]
    assert not observation.valid[:, :2].any() and observation.valid[:, 2:].all()
    assert [note.partition(" ")[0] for note in observation.notes] == ["WHT", "no"]


def test_ccddata_says_what_its_uncertainty_is(tmp_path: Path) -> None:
    from astropy.nddata import CCDData, InverseVariance, StdDevUncertainty, VarianceUncertainty

    kinds = {StdDevUncertainty: SIGMA, VarianceUncertainty: SIGMA**2, InverseVariance: SIGMA**-2}
    for number, (kind, value) in enumerate(kinds.items()):
        mask = np.zeros(ONE, bool)
        mask[3, 4] = True
        data = CCDData(IMAGE, kind(full(value)), mask=mask, unit="adu", wcs=celestial())
        data.write(tmp_path / f"{number}.fits")
        observation = io.read(tmp_path / f"{number}.fits", psf=PSF)[0]
        np.testing.assert_allclose(observation.weights[0], np.where(mask, 0, SIGMA**-2), rtol=1e-5)


# Surveys

AREA = (0.2 / 206264.806) ** 2  # of a pixel, in sr
BITS = np.broadcast_to(2 ** np.arange(20), (24, 20)).astype(np.int32)  # bit x in column x
HST = {"PHOTFLAM": 7.07e-20, "PHOTPLAM": 8045.0, "PHOTZPT": -21.1}
HST_ZERO = -2.5 * np.log10(7.07e-20) - 5 * np.log10(8045) - 2.408  # of the handbook of ACS
JWST_PARTS = [(f"VAR_{kind}", full(0.001), {}) for kind in ("POISSON", "RNOISE", "FLAT")]
LAYOUTS: dict[str, tuple[list[Any], dict[str, Any], str, float | None, list[int]]] = {
    # parts, primary header, band, zero point, columns that are masked
    "JWST i2d": (
        [
            science(BUNIT="MJy/sr", PIXAR_SR=AREA),
            ("ERR", full(SIGMA), {}),
            ("CON", np.ones((1, *ONE), np.int32), {}),
            ("WHT", full(SIGMA**-2), {}),
            *JWST_PARTS,
        ],
        {"TELESCOP": "JWST", "FILTER": "F150W2", "PUPIL": "F162M"},
        "F162M",
        -2.5 * np.log10(1e6 * AREA / 3631),
        [],
    ),
    "JWST cal": (
        [science(BUNIT="MJy/sr", PIXAR_A2=0.04), ("ERR", full(SIGMA), {}), ("DQ", BITS, {}), ("AREA", full(1), {})],
        {"TELESCOP": "JWST", "BAND": "N/A", "FILTER": "F277W", "PUPIL": "CLEAR"},
        "F277W",
        -2.5 * np.log10(1e6 * AREA / 3631),
        [0],
    ),
    "NIRISS": (
        [science(BUNIT="MJy/sr"), ("ERR", full(SIGMA), {})],
        {"TELESCOP": "JWST", "FILTER": "CLEAR", "PUPIL": "F150W"},
        "F150W",
        -2.5 * np.log10(1e6 * AREA / 3631),
        [],
    ),
    "HST drz": (
        [science(BUNIT="ELECTRONS/S"), ("WHT", full(SIGMA**-2), {}), ("CTX", np.ones(ONE, np.int32), {})],
        {"TELESCOP": "HST", "FILTER1": "CLEAR1L", "FILTER2": "F814W", **HST},
        "F814W",
        HST_ZERO,
        [],
    ),
    "HST flc": (
        [science(BUNIT="ELECTRONS", **HST), ("ERR", full(SIGMA), {}), ("DQ", BITS.astype(np.int16), {})],
        {"TELESCOP": "HST", "FILTER": "F606W", "EXPTIME": 1000.0},
        "F606W",
        HST_ZERO + 7.5,
        [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13],
    ),
    "DES coadd": (
        [
            science(BAND="r", FILTER="r DECam SDSS c0002 6415.0 1480.0", MAGZERO=30.0, INSTRUME="DECam"),
            ("MSK", BITS, {}),
            ("WGT", full(SIGMA**-2), {}),
        ],
        {},
        "r",
        30.0,
        [0, 1, 3, 4, 6, 7, 8, 9, 10, 11],
    ),
    "Legacy": (
        [science(FILTER="g", MAGZERO=22.5, BUNIT="nanomaggy"), ("INVVAR", full(SIGMA**-2), {}), ("MASKBITS", BITS, {})],
        {},
        "g",
        22.5,
        [2, 5, 10],
    ),
    "KiDS": (
        [science(FILTER="OCAM_r_SDSS", MAGZEROP=0.0), ("WEIGHT", full(SIGMA**-2), {})],
        {},
        "OCAM_r_SDSS",
        0.0,
        [],
    ),
    "MegaPipe": ([science(FILTER="r.MP9602", PHOTZP=30.0), ("WEIGHT", full(SIGMA**-2), {})], {}, "r", 30.0, []),
    "Euclid MER": (
        [science(FILTER="VIS", MAGZERO=23.9), ("RMS", full(SIGMA), {}), ("FLAG", np.minimum(BITS, 0), {})],
        {},
        "VIS",
        23.9,
        [],
    ),
    "HSC": (
        [
            ("IMAGE", IMAGE, {**celestial().to_header(), "FLUXMAG0": 63095734448.0194}),
            ("MASK", BITS, {"MP_BAD": 0, "MP_SAT": 1, "MP_EDGE": 4, "HIERARCH MP_NO_DATA": 8, "MP_CR": 3}),
            ("VARIANCE", full(SIGMA**2), {}),
        ],
        {"FILTER": "HSC-I"},
        "i",
        27.0,
        [0, 1, 4, 8],
    ),
    "Rubin": (
        [
            ("IMAGE", IMAGE, {**celestial().to_header(), "BUNIT": "nJy"}),
            ("MASK", BITS, {"MP_BAD": 0, "MP_SAT": 2, "HIERARCH MP_NO_DATA": 8, "MP_INTRP": 3}),
            ("VARIANCE", full(SIGMA**2), {}),
        ],
        {"FILTER": "i"},
        "i",
        31.4,
        [0, 2, 8],
    ),
}


@pytest.mark.parametrize("survey", LAYOUTS)
def test_survey(survey: str, tmp_path: Path) -> None:
    parts, primary, band, zeropoint, masked = LAYOUTS[survey]
    observation = io.read(write(tmp_path / "a.fits", *parts, primary=primary))[0]
    assert observation.bands == (band,)
    assert observation.zeropoints == pytest.approx([zeropoint], abs=2e-3)
    assert np.flatnonzero(~observation.valid[0].any(0)).tolist() == masked
    np.testing.assert_allclose(observation.weights[observation.valid], SIGMA**-2, rtol=1e-5)
    assert all(note.startswith("the noise is that of ERR") for note in observation.notes)


@pytest.mark.parametrize(("unit", "added"), [("e-", 7.5), ("COUNTS", 7.5), ("e-/s", 0), ("ELECTRONS/S", 0)])
def test_zeropoints_of_hst_are_of_a_count_a_second(unit: str, added: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(BUNIT=unit, **HST), primary={"EXPTIME": 1000.0})
    assert io.read(path)[0].zeropoints == pytest.approx([HST_ZERO + added], abs=2e-3)


def test_saturation_is_told_of_every_survey(tmp_path: Path) -> None:
    columns = {"JWST cal": [1], "HST flc": [8, 11], "DES coadd": [1], "Legacy": [2], "HSC": [1]}
    for survey, expected in columns.items():
        parts, primary, *_ = LAYOUTS[survey]
        saturated = io.read(write(tmp_path / "a.fits", *parts, primary=primary))[0].saturated
        assert saturated is not None
        assert np.flatnonzero(saturated[0].any(0)).tolist() == expected


def test_planes_that_nobody_names_are_noted(tmp_path: Path) -> None:
    bits = np.where(np.arange(20) < 2, 4, 0) * np.ones(ONE, np.int32)
    for name, masked, assumed in (("DQ", 2, "marks of bad pixels"), ("MASK", 0, "LSST and HSC"), ("MSK", 0, "DES")):
        path = write(tmp_path / "a.fits", science(), ("ERR", full(SIGMA), {}), (name, bits.astype(np.int32), {}))
        observation = io.read(path)[0]
        assert (~observation.valid).sum() == masked * 24
        assert len(observation.notes) == 1
        assert observation.notes[0].startswith(f"planes of {name} taken for {assumed}: masked are ")
        assert io.read(path, mask_planes=[2])[0].notes == ()
    ones = write(
        tmp_path / "a.fits", science(), ("ERR", full(SIGMA), {}), ("MASK", np.minimum(bits, 1).astype("u1"), {})
    )
    assert io.read(ones)[0].notes == ()
    assert masks.HST.bits["SATURATED"] == 8 and masks.DES.bits["TAPEBUMP"] == 14 and masks.LEGACY.bits["SUB_BLOB"] == 16


# Several bands

BAND_PSFS = [PSF, np.pad(PSF, 2), PSF]


def by_name(suffix: Callable[[int], str], **header: Any) -> list[tuple[str, Any, dict[str, Any]]]:
    """Image, weights and PSF of each of three bands, one band after the other."""
    wcs = celestial().to_header()
    return [
        (name + suffix(c), data, {**wcs, **{key: value[c] for key, value in header.items()}} if name == "SCI" else {})
        for c in range(3)
        for name, data in (("SCI", IMAGE + c), ("WHT", full(1.0 + c)), ("PSF", BAND_PSFS[c]))
    ]


@pytest.mark.parametrize(
    ("suffix", "header", "primary", "bands"),
    [
        (lambda c: f"_{'GRI'[c]}", {}, {}, BANDS),
        (lambda c: f"_{'gri'[c]}", {"MAGZERO": [25.0, 26.0, 27.0]}, {}, BANDS),
        (lambda c: f"_{['F150W', 'F277W', 'F444W'][c]}", {}, {}, ("F150W", "F277W", "F444W")),
        (lambda c: str(c + 1), {"FILTER": ["g", "r", "i"]}, {}, BANDS),
        (lambda c: str(c + 1), {}, {"FILTERS": "gri", "BANDS": "g,r,i"}, BANDS),
        (lambda c: "", {"FILTER": ["g", "r", "i"]}, {}, BANDS),
    ],
    ids=["names", "small", "space", "numbered", "listed", "EXTVER"],
)
def test_one_extension_a_band(suffix: Any, header: Any, primary: Any, bands: tuple[str, ...], tmp_path: Path) -> None:
    parts = by_name(suffix, **header)
    path = write(tmp_path / "a.fits", *parts, primary=primary)
    if not suffix(0):
        with fits.open(path, mode="update") as hdus:
            for number, hdu in enumerate(hdus[1:]):
                hdu.ver = number // 3 + 1
    observation = io.read(path)[0]
    assert observation.bands == bands
    assert observation.notes == ()
    np.testing.assert_array_equal(observation.images, [IMAGE, IMAGE + 1, IMAGE + 2])
    np.testing.assert_array_equal(observation.weights[:, 0, 0], [1, 2, 3])
    assert observation.psf.shape == (3, 19, 19)
    np.testing.assert_allclose(observation.psf[1], BAND_PSFS[1], rtol=1e-6)
    np.testing.assert_allclose(observation.psf[0], BAND_PSFS[1], rtol=1e-6)
    if "MAGZERO" in header:
        assert observation.zeropoints == pytest.approx([25, 26, 27])


def test_a_cube_with_its_noise_band_by_band(tmp_path: Path) -> None:
    noise = [(name, data, header) for name, data, header in by_name(lambda c: f"_{'GRI'[c]}") if name[:3] != "SCI"]
    cube = ("SCI", arrays()["images"], {"FILTER": "g,r,i"})
    observation = io.read(write(tmp_path / "a.fits", cube, *noise))[0]
    np.testing.assert_array_equal(observation.weights[:, 0, 0], [1, 2, 3])
    assert observation.psf.shape == (3, 19, 19) and observation.notes == ()


def test_images_that_are_no_bands_of_one_grid_are_refused(tmp_path: Path) -> None:
    names = lambda c: f"_{'GRI'[c]}"  # noqa: E731
    cases: dict[str, list[Any]] = {
        "SCI_g: expected one image|WHT: expected one for each": by_name(names)[:1] + by_name(names)[3:],
        "SCI_G: expected an image .* of one size": [
            (n, d[:20] if n == "SCI_I" else d, h) for n, d, h in by_name(names)
        ],
        "SCI_R: expected the pixels of SCI_G on the sky": [
            (n, d, {**h, "CRPIX1": 40.0} if n == "SCI_R" else h) for n, d, h in by_name(names)
        ],
        "BUNIT: expected one unit for all bands": by_name(names, BUNIT=["nJy", "uJy", "nJy"]),
        "MAGZERO: expected a zero point in the header of each": [
            (n, d, {**h, "MAGZERO": 27.0} if n == "SCI_R" else h) for n, d, h in by_name(names)
        ],
        "FILTER: expected another band in each image": by_name(lambda c: str(c + 1), FILTER=["g", "g", "g"]),
        "SCI: expected one image, or one a band": [("A", IMAGE, {}), ("B", IMAGE, {})],
    }
    for message, parts in cases.items():
        with pytest.raises(DataError, match=message):
            io.read(write(tmp_path / "a.fits", *parts))


# Units


def observe(unit: str | None, wcs: WCS | None = None, **fields: Any) -> Observation:
    given = {"images": IMAGE, "weights": full(100), "psf": PSF, "bands": ("g",), "wcs": wcs, "unit": unit}
    return Observation(**{**given, **fields})


@pytest.mark.parametrize(
    ("unit", "flux"),  # of a pixel of 0.3 arcsec, in Jy
    [
        ("MJy/sr", 1e6 * (0.3 / 206264.806) ** 2),
        ("nJy/arcsec2", 0.09e-9),
        ("nJy/arcsec^2", 0.09e-9),
        ("uJy arcsec-2", 0.09e-6),
        ("Jy/pixel", 1.0),
        ("10.0*nanoJansky", 1e-8),
        ("nanomaggies", 3631e-9),
        ("NANOMAGGY", 3631e-9),
        ("nanomaggies/arcsec2", 0.09 * 3631e-9),
    ],
)
def test_zero_point_of_a_unit(unit: str, flux: float) -> None:
    for one in (observe(unit, on_sky(0.3)), observe(unit, pixel_scale=0.3)):
        assert one.zeropoints == pytest.approx([-2.5 * np.log10(flux / 3630.78)], abs=2e-4)
        assert one.notes == ()


@pytest.mark.parametrize("unit", ["ELECTRONS/S", "DN", "counts/sec", "Jy/beam", "K", "made up", "erg/s/cm2/Angstrom"])
def test_units_without_a_zero_point(unit: str) -> None:
    assert observe(unit, on_sky(0.3)).zeropoints is None


def test_a_surface_brightness_needs_an_area() -> None:
    one = observe("MJy/sr")
    assert one.zeropoints is None
    assert one.notes == ("no magnitudes: the unit MJy/sr needs a WCS or a pixel scale",)


@pytest.mark.parametrize("unit", ["mag", "ABmag", "mag/arcsec2", "mag(AB)", "dex", "AB_mag", "magnitudes"])
def test_magnitudes_are_refused(unit: str) -> None:
    with pytest.raises(DataError, match=r"observation: unit: expected a linear unit, received .*; convert magnitudes"):
        observe(unit)


def test_images_of_pan_starrs_are_refused_as_they_come(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(BSOFTEN=46.0, BOFFSET=12.0))
    with pytest.raises(DataError, match=r"BSOFTEN: expected fluxes, received numbers on the scale of asinh; convert"):
        io.read(path)


def test_zero_points_at_odds_with_the_unit_are_noted() -> None:
    assert observe("nJy", zeropoints=31.4).notes == ()
    one = observe("nJy", zeropoints=27.0)
    assert one.zeropoints is not None and one.zeropoints.tolist() == [27]
    assert one.notes == ("zero points 27 used, though the unit nJy has 31.4",)


def test_the_area_of_a_changed_image_is_that_of_its_wcs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(BUNIT="MJy/sr", PIXAR_SR=AREA / 4), ("ERR", full(SIGMA), {}))
    observation = io.read(path)[0]
    assert observation.zeropoints == pytest.approx([-2.5 * np.log10(1e6 * AREA / 3630.78)], abs=1e-3)
    assert len(observation.notes) == 1 and "by the WCS, which is used" in observation.notes[0]


def test_surface_brightnesses_of_two_pixel_scales_are_of_one_flux() -> None:
    """A flux is summed over pixels of the first observation: the coarse image's numbers sum to a quarter of that."""
    fine = observe("MJy/sr", on_sky(0.2, shape=ONE), name="fine")
    for bands, unit, ratio in ((("g",), "MJy/sr", 0.25), (("r",), "MJy/sr", 0.25), (("r",), "kJy/sr", 0.25)):
        coarse = observe(unit, on_sky(0.4, shape=ONE), name="coarse", bands=bands)
        scene = Scene((fine, coarse), (Source(12, 10),))
        assert observed_flux(scene, fine) == pytest.approx([1])
        assert observed_flux(scene, coarse) == pytest.approx([ratio], rel=1e-4)
    scene = Scene((fine, observe("kJy/sr", on_sky(0.4, shape=ONE), name="coarse")), (Source(12, 10),))
    assert observed_flux(scene, scene.observations[1]) == pytest.approx([250], rel=1e-4)


def test_units_that_do_not_convert_are_not_joined() -> None:
    first = observe("adu", on_sky(0.2), name="first")
    Scene((first, replace(first, name="second", unit="ADU")), (Source(12, 10),))
    for unit, message in (
        ("electron/s", "second: unit: expected adu, the unit of first, as there are no zero points"),
        ("electron/arcsec2", "second: zeropoints: expected zero points to join surface brightnesses"),
        ("nJy", "second: zeropoints: expected them of all"),
    ):
        with pytest.raises(DataError, match=message):
            Scene((first, replace(first, name="second", unit=unit)), (Source(12, 10),))


# What the user says


def test_what_is_said_of_a_file_takes_the_place_of_what_it_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", science(FILTER="g", MAGZERO=27.0), ("ERR", full(SIGMA), {}))
    same = io.read(path, bands=["g"], zeropoints=27, pixel_scale=0.2)[0]
    assert same.notes == ()
    other = io.read(path, bands=["r"], zeropoints={"r": 25.5, "i": 3}, pixel_scale=0.3)[0]
    assert (other.bands, other.pixel_scale) == (("r",), 0.3)
    assert other.zeropoints == pytest.approx([25.5])
    assert other.notes == (
        "bands r as given, not g of FILTER",
        "zeropoints 25.5 as given, not 27 of MAGZERO",
        "pixel_scale 0.3 arcsec given, 0.2 in the WCS",
    )
    (note,) = io.read(path, zeropoints={"G": 25.0})[0].notes
    assert note == "zero points given for G, not for g"
    npz = write_npz(tmp_path / "a.npz", ("filters",))
    assert io.read(npz, bands=BANDS, zeropoints={"g": 25.0, "r": 26.0, "i": 27.0})[0].zeropoints == pytest.approx(
        [25, 26, 27]
    )
    with pytest.raises(DataError, match="zeropoints: expected one for each of g, r, i, received g, r"):
        io.read(npz, bands=BANDS, zeropoints={"g": 25.0, "r": 26.0})
    with pytest.raises(DataError, match="bands: expected 3 names, one a band of images, received 2"):
        io.read(npz, bands=["g", "r"])


# Names of bands


@pytest.mark.parametrize(
    ("filter_name", "band"),
    [
        *((f"HSC-{letter.upper()}", letter) for letter in "grizy"),
        *(("HSC-R2", "r"), ("HSC-I2", "i"), ("hsc_i2", "i"), ("g.MP9401", "g"), ("i.MP9702", "i"), ("u.MP9301", "u")),
        *(("decam_g", "g"), ("decam_Y", "y"), ("Y DECam c0005 10095.0 1130.0", "y"), ("LSST_g", "g"), ("lsst-z", "z")),
        *((letter, letter) for letter in "ugrizyYJHK"),
        *((name, name) for name in ("G", "HSC-NB0816", "HSC-G2", "F814W", "NIR_Y", "VIS", "MegaCam-u", "desi", "BP")),
        ("VR DECam c0007 6300.0 2600.0", "VR"),
    ],
)
def test_names_of_bands(filter_name: str, band: str, tmp_path: Path) -> None:
    """FILTER of a survey beyond doubt tells a letter; BANDS, which tfdeblend writes, and what a user says are kept."""
    path = write(tmp_path / "a.fits", science(FILTER=filter_name))
    assert io.read(path, psf=PSF)[0].bands == (band,)
    assert io.read(path, psf=PSF, bands=["HSC-G"])[0].bands == ("HSC-G",)
    if len(filter_name) <= 20:
        assert io.read(write(tmp_path / "b.fits", science(BANDS=filter_name)), psf=PSF)[0].bands == (filter_name,)


def test_two_filters_of_one_letter_keep_their_names(tmp_path: Path) -> None:
    parts = [
        (f"SCI{number}", IMAGE, {**celestial().to_header(), "FILTER": f"HSC-{name}"})
        for number, name in enumerate(("R", "R2"))
    ]
    assert io.read(write(tmp_path / "a.fits", *parts), psf=PSF)[0].bands == ("HSC-R", "HSC-R2")


def test_coadds_of_hsc_have_the_learned_prior(tmp_path: Path) -> None:
    """Bands are known by FILTER in their headers, or by the names of the files alone."""
    wcs = on_sky(0.168, shape=IMAGE.shape[-2:]).to_header()
    for said in (True, False):
        files = [tmp_path / f"{said}-calexp-HSC-{name}-9813.fits" for name in ("G", "R2", "I2", "Z", "Y")]
        for path in files:
            cards = {**wcs, "FLUXMAG0": 63095734448.0194}
            if said:
                cards["FILTER"] = "HSC-" + path.stem.split("-")[3]
            write(path, ("IMAGE", IMAGE, cards), ("VARIANCE", full(SIGMA**2), {}))
        observation = io.read(files, psf=PSF)[0]
        assert observation.bands == tuple("grizy")
        scene = Scene(observation, (Source(5, 5),))
        assert AutomaticPrior().choose(scene)[0].name == "hsc-grizy-64"
