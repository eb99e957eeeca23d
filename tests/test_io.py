"""Reading every layout of the contract, and writing results that read back the same."""

from __future__ import annotations

import gzip
import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from helpers import make_deblended, make_joint, make_scene, on_sky, result_of, smooth_correlation, with_view
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scene_files import BANDS, SHAPE, XY, arrays, celestial, extensions, write_fits, write_npz

from tfdeblend import io
from tfdeblend.app import inputs
from tfdeblend.app.runs import Settings
from tfdeblend.catalog import files
from tfdeblend.catalog.result import Deblended, SampleCatalog
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole


def assert_reads_as_written(observation: Observation) -> None:
    content = arrays()
    np.testing.assert_array_equal(observation.images, content["images"])
    np.testing.assert_allclose(observation.weights, content["weights"], rtol=1e-6)
    np.testing.assert_allclose(observation.psf, content["psfs"], rtol=1e-5)


# Reading


def test_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "field.npz", unit="nJy", wcs=celestial().to_header_string(), pixel_scale=0.2)
    scene = Scene.read(path)
    assert_reads_as_written(scene.observation)
    assert scene.name == "field"
    assert scene.observation.bands == BANDS
    assert scene.observation.unit == "nJy"
    assert scene.observation.pixel_scale == 0.2
    assert scene.observation.wcs.has_celestial
    assert scene.observation.notes == ()
    np.testing.assert_array_equal(scene.positions, XY[:, ::-1])


def test_fits(tmp_path: Path) -> None:
    header = {"BUNIT": "adu", "MAGZERO": 27.0, "FILTER": "gri"}
    scene = Scene.read(write_fits(tmp_path / "field.fits", header=header))
    assert_reads_as_written(scene.observation)
    assert scene.observation.bands == BANDS
    assert scene.observation.unit == "adu"
    assert scene.observation.zeropoints is not None
    assert scene.observation.zeropoints.tolist() == [27] * 3
    assert scene.observation.pixel_scale == pytest.approx(0.2)
    np.testing.assert_array_equal(scene.positions, XY[:, ::-1])


def test_kind_is_told_by_content(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz").rename(tmp_path / "a.fits")
    assert_reads_as_written(io.read(tmp_path / "a.fits")[0])


def test_compressed_fits(tmp_path: Path) -> None:
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(write_fits(tmp_path / "a.fits").read_bytes()))
    observation = io.read(tmp_path / "a.fits.gz")[0]
    assert_reads_as_written(observation)
    assert observation.name == "a"


def test_variance_instead_of_weights(tmp_path: Path) -> None:
    variance = 1 / arrays()["weights"]
    assert_reads_as_written(io.read(write_npz(tmp_path / "a.npz", ("weights",), variance=variance))[0])
    assert_reads_as_written(io.read(write_fits(tmp_path / "a.fits", ("VAR",), WHT=1 / variance))[0])
    variance[0, 0, 0], variance[0, 0, 1] = np.inf, 0
    observation = io.read(write_npz(tmp_path / "b.npz", ("weights",), variance=variance))[0]
    assert observation.weights[0, 0, :2].tolist() == [0, 0]
    assert observation.notes == ("1 pixels of zero variance masked",)


def test_broken_variance_under_the_mask_is_no_matter(tmp_path: Path) -> None:
    variance, mask = 1 / arrays()["weights"], np.zeros(SHAPE, bool)
    variance[0, 0, 0], mask[0, 0, 0] = np.nan, True
    observation = io.read(write_npz(tmp_path / "a.npz", ("weights",), variance=variance, mask=mask))[0]
    assert (observation.valid == ~mask).all()


@pytest.mark.parametrize("noise", ["weights", "variance", "none"])
@pytest.mark.parametrize("flat", [True, False], ids=["HW", "CHW"])
def test_boolean_mask_and_footprint(noise: str, flat: bool, tmp_path: Path) -> None:
    mask, footprint = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    mask[:, 3, 4], footprint[:, 5, 6] = True, True
    masks = {"mask": mask[0] if flat else mask, "footprint": footprint[0] if flat else footprint}
    given = {"weights": {}, "variance": {"variance": 1 / arrays()["weights"]}, "none": {}}[noise]
    path = write_npz(tmp_path / "a.npz", () if noise == "weights" else ("weights",), **masks, **given)
    observation = io.read(path)[0]
    assert (observation.valid == ~(mask | footprint)).all()
    assert len(observation.notes) == (noise == "none")


def masked_planes(observation: Observation) -> list[int]:
    """Of a mask whose column x has plane x set."""
    return np.flatnonzero(~observation.valid[0, 0]).tolist()


PLANE_BY_COLUMN = np.broadcast_to(2 ** np.arange(SHAPE[2]), SHAPE).astype(np.int32)


@pytest.mark.parametrize(
    ("chosen", "masked"),
    [(None, [0, 1, 4, 7, 8]), ((), []), (("CR", "sat"), [1, 3]), ((5, "12"), [5, 12])],
    ids=["default", "none", "names", "bits"],
)
def test_bit_planes(chosen: Any, masked: list[int], tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "a.npz", mask=PLANE_BY_COLUMN)
    for path in (npz, write_fits(tmp_path / "a.fits", MASK=PLANE_BY_COLUMN)):
        assert masked_planes(io.read(path, mask_planes=chosen)[0]) == masked


def test_unknown_plane(tmp_path: Path) -> None:
    for plane in ("NONE", 63, -1):
        with pytest.raises(DataError, match="mask_planes: expected BAD, SAT"):
            io.read(write_npz(tmp_path / "a.npz", mask=PLANE_BY_COLUMN), mask_planes=[plane])


def test_lsst_names(tmp_path: Path) -> None:
    """IMAGE, VARIANCE, MASK; the planes as MP_ keys say, whatever their bits."""
    parts = extensions()
    renamed = {"IMAGE": parts["SCI"], "VARIANCE": parts["VAR"], "MASK": PLANE_BY_COLUMN}
    planes = {"MASK:MP_BAD": 3, "MASK:MP_SAT": 5, "MASK:MP_CR": 6, "MASK:HIERARCH MP_NO_DATA": 9}
    path = write_fits(tmp_path / "a.fits", ("SCI", "VAR"), header=planes, wcs=False, **renamed)
    observation = io.read(path)[0]
    np.testing.assert_array_equal(observation.images, parts["SCI"])
    assert masked_planes(observation) == [3, 5, 9]
    assert masked_planes(io.read(path, mask_planes=["CR"])[0]) == [6]


def test_detected_does_not_mask_and_saturated_is_kept(tmp_path: Path) -> None:
    """Of each band its own; whatever planes are chosen. Booleans know nothing of saturation."""
    mask = np.full(SHAPE, 1 << 5, np.int32)
    mask[0, 3, 4] |= 1 << 1
    mask[1, 5, 6] |= 1 << 8
    saturated = mask & 2 > 0
    npz, path = write_npz(tmp_path / "a.npz", mask=mask), write_fits(tmp_path / "a.fits", MASK=mask)
    for observation in (io.read(npz)[0], io.read(path)[0]):
        np.testing.assert_array_equal(observation.saturated, saturated)
        np.testing.assert_array_equal(observation.valid, mask & 0b100000010 == 0)
    np.testing.assert_array_equal(io.read(path, mask_planes=["NO_DATA"])[0].saturated, saturated)
    assert [io.read(npz)[0].select([band]).saturated.sum() for band in "gri"] == [1, 0, 0]
    named = write_fits(tmp_path / "b.fits", header={"MASK:HIERARCH MP_NO_DATA": 1}, MASK=mask)
    assert io.read(named)[0].saturated is None
    assert io.read(write_npz(tmp_path / "b.npz", mask=saturated))[0].saturated is None


def test_primary_of_one_band(tmp_path: Path) -> None:
    image = fits.PrimaryHDU(arrays()["images"][0], celestial().to_header())
    image.header["FILTER1"], image.header["FILTER2"], image.header["ZP"] = "CLEAR1L", "F814W", 25.9
    fits.HDUList([image]).writeto(tmp_path / "a.fits")
    fits.PrimaryHDU(arrays()["psfs"][0]).writeto(tmp_path / "a_psf.fits")
    observation, catalog = io.read(tmp_path / "a.fits")
    assert observation.shape == (1, *SHAPE[1:])
    assert observation.bands == ("F814W",)
    assert observation.zeropoints == pytest.approx([25.9])
    assert catalog is None
    assert len(observation.notes) == 1  # of the noise


@pytest.mark.parametrize(
    ("header", "bands"),
    [
        ({"BANDS": "g,r, i"}, BANDS),
        ({"BANDS": "HSC-G HSC-R HSC-I"}, ("HSC-G", "HSC-R", "HSC-I")),
        ({"FILTER": "gri"}, BANDS),
        ({"FILTER1": "g", "FILTER2": "r", "FILTER3": "i"}, BANDS),
        ({"FILTER": "V"}, ("band0", "band1", "band2")),
        ({}, ("band0", "band1", "band2")),
    ],
)
def test_band_names_of_a_cube(header: dict[str, str], bands: tuple[str, ...], tmp_path: Path) -> None:
    assert io.read(write_fits(tmp_path / "a.fits", header=header))[0].bands == bands


def test_sky_positions(tmp_path: Path) -> None:
    ra, dec = celestial().wcs_pix2world(*XY.T, 0)
    scene = Scene.read(write_fits(tmp_path / "a.fits", CATALOG=Table({"RA": ra, "DEC": dec, "IS_STAR": [True, False]})))
    np.testing.assert_allclose(scene.positions, XY[:, ::-1], atol=1e-6)
    assert [source.kind for source in scene.sources] == ["point", "galaxy"]


def test_detection_as_asked_for(tmp_path: Path) -> None:
    bare = write_npz(tmp_path / "a.npz", without=("peaks",))
    assert len(Scene.read(bare).sources) == 2
    with pytest.raises(DataError, match=r"a\.npz: catalog: expected a catalogue"):
        Scene.read(bare, detect=False)
    one = write_npz(tmp_path / "b.npz", peaks=XY[:1])
    assert len(Scene.read(one).sources) == 1
    assert len(Scene.read(one, detect=True).sources) == 2


def test_psf_from_elsewhere(tmp_path: Path) -> None:
    psfs = arrays()["psfs"]
    path = write_npz(tmp_path / "a.npz", without=("psfs",))
    write_fits(tmp_path / "extension.fits", without=("SCI",), wcs=False)
    write_npz(tmp_path / "other.npz")
    for psf in (psfs, tmp_path / "extension.fits", str(tmp_path / "other.npz")):
        np.testing.assert_allclose(io.read(path, psf=psf)[0].psf, psfs, rtol=1e-5)
    with pytest.raises(DataError, match=r"a\.npz: psfs: expected an array"):
        io.read(path)
    fits.PrimaryHDU(psfs).writeto(tmp_path / "a_psf.fits")
    np.testing.assert_allclose(io.read(path)[0].psf, psfs, rtol=1e-5)
    with pytest.raises(DataError, match=r"none\.fits: file: expected an NPZ or FITS file"):
        io.read(path, psf=tmp_path / "none.fits")


def test_all_real_blends(data: Path) -> None:
    paths = io.find_inputs(data / "hsc_blends")
    scenes = [Scene.read(path) for path in paths]
    assert len(scenes) == 97
    assert sum(len(scene.sources) for scene in scenes) == 634
    assert all(scene.observation.bands == ("g", "r", "i", "z", "y") for scene in scenes)
    assert all(scene.observation.notes == () for scene in scenes)


def test_reference_scenes(data: Path) -> None:
    scenes = {scene.name: scene for scene in map(Scene.read, io.find_inputs(data / "scenes" / "*.npz"))}
    assert {name: len(scene.sources) for name, scene in scenes.items()} == {
        "hsc_cosmos_35": 7,
        "hsc_crowded_11": 11,
        "lsst_sim_truth": 5,
    }
    truth = scenes["lsst_sim_truth"]
    assert [source.kind for source in truth.sources].count("point") == 3
    with np.load(data / "scenes" / "hsc_crowded_11.npz") as raw:
        footprint = raw["footprint"]
    assert not scenes["hsc_crowded_11"].observation.valid[:, footprint].any()


def test_two_surveys_and_five_pixel_scales(data: Path) -> None:
    hsc, hst = (io.read(path)[0] for path in io.find_inputs(data / "scenes" / "hst_hsc"))
    assert (hsc.shape, hst.shape) == ((5, 50, 50), (1, 250, 250))
    assert (hsc.pixel_scale, hst.pixel_scale) == (pytest.approx(0.168), pytest.approx(0.03))
    assert any("PSF renormalised" in note for note in hsc.notes)
    scales = [io.read(path)[0].pixel_scale for path in io.find_inputs(data / "scenes" / "multiresolution")]
    assert scales == pytest.approx([0.06, 0.1, 0.11, 0.167, 0.2])


# Writing


@pytest.mark.parametrize("wcs", [True, False], ids=["wcs", "scale"])
@pytest.mark.parametrize("suffix", [".npz", ".fits", ".fits.gz"])
def test_a_scene_is_read_back_equal(suffix: str, wcs: bool, tmp_path: Path) -> None:
    scene = make_scene(sources=3)[0]
    point, *galaxies = scene.sources
    observation = replace(
        scene.observation,
        weights=scene.observation.weights / 3,
        zeropoints=np.linspace(26.1, 27.3, 5),
        unit="nJy",
        wcs=celestial() if wcs else None,
        pixel_scale=None if wcs else 0.17,
        noise_correlation=smooth_correlation(0.5),
        saturated=scene.observation.images > 50,
    )
    written = Scene(observation, (replace(point, kind="point", id="a star"), *galaxies))
    written.write(tmp_path / "made" / f"blend{suffix}")
    read = Scene.read(tmp_path / "made" / f"blend{suffix}")
    assert [path.name for path in (tmp_path / "made").iterdir()] == [f"blend{suffix}"]
    assert read.sources == written.sources
    for field in ("images", "weights", "psf", "zeropoints", "noise_correlation", "saturated"):
        np.testing.assert_array_equal(getattr(read.observation, field), getattr(observation, field), err_msg=field)
    for field in ("name", "bands", "unit", "notes"):
        assert getattr(read.observation, field) == getattr(observation, field)
    assert read.observation.pixel_scale == pytest.approx(0.2 if wcs else 0.17, rel=1e-9)
    if wcs:
        np.testing.assert_allclose(read.observation.wcs.wcs_pix2world(3, 4, 0), celestial().wcs_pix2world(3, 4, 0))


@pytest.mark.parametrize("suffix", [".npz", ".fits"])
def test_a_bare_scene_is_read_back_equal(suffix: str, tmp_path: Path) -> None:
    """One band of any name, no unit, zero points or scale; weights that float32 would not hold."""
    scene = make_scene(bands="g")[0]
    observation = replace(
        scene.observation, bands=("F814W, drizzled",), zeropoints=None, weights=scene.observation.weights * 1e40
    )
    replace(scene, observations=observation).write(tmp_path / f"blend{suffix}", truth=np.arange(3.0))
    read = io.read(tmp_path / f"blend{suffix}")[0]
    assert read.bands == observation.bands
    assert read.unit is read.zeropoints is read.wcs is read.pixel_scale is read.noise_correlation is None
    np.testing.assert_array_equal(read.weights, observation.weights)


def test_several_bands_of_any_names(tmp_path: Path) -> None:
    scene = make_scene(bands="gr")[0]
    replace(scene, observations=replace(scene.observation, bands=("HSC G", "a,b"))).write(tmp_path / "a.fits")
    assert io.read(tmp_path / "a.fits")[0].bands == ("HSC G", "a,b")


def test_fits_holds_ascii_only(tmp_path: Path) -> None:
    scene = make_scene(bands="g")[0]
    scene = replace(scene, observations=replace(scene.observation, unit="µJy"))
    with pytest.raises(DataError, match=r"a\.fits: header: expected .* in ASCII.*; write \.npz"):
        scene.write(tmp_path / "a.fits")
    assert not list(tmp_path.iterdir())
    scene.write(tmp_path / "a.npz")
    assert io.read(tmp_path / "a.npz")[0].unit == "µJy"


def test_a_file_holds_one_observation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="observations: expected one, as a file holds one, received 2"):
        make_joint().scene.write(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.fits.gz"])
def test_a_file_is_whole_or_as_it_was(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("before")
    with pytest.raises(OSError, match="No space left on device"), written_whole(path) as temporary:
        assert temporary.name.startswith(".") and temporary.name.endswith(name)
        temporary.write_text("half")
        raise OSError("512 requested and 40 written")  # as NumPy does
    assert path.read_text() == "before"
    with written_whole(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


# Which files


def test_inputs_from_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.npz", "a.fits", "a_psf.fits", "c.fits.gz", "notes.txt", ".9-d.fits"):
        (tmp_path / name).touch()
    names = ["a.fits", "b.npz", "c.fits.gz"]
    assert [path.name for path in io.find_inputs(tmp_path)] == names
    assert [path.name for path in io.find_inputs([tmp_path / "*.fits*", tmp_path / "b.npz", tmp_path])] == names


def test_inputs_refused(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "a.npz", tmp_path / "*.npz"):
        with pytest.raises(DataError, match="files: expected"):
            io.find_inputs([missing])
    with pytest.raises(DataError, match="received none"):
        io.find_inputs([])
    (tmp_path / "a.npz").touch()
    (tmp_path / "a.fits").touch()
    with pytest.raises(DataError, match=r"a\.npz: name: expected a different name for each scene"):
        io.find_inputs(tmp_path)


# Results


def result(**changes: Any) -> Deblended:
    deblended = make_deblended(samples=2)
    drawn = np.random.default_rng(0).normal(size=(2, 3, 3))
    changes |= {"sample_catalog": SampleCatalog(drawn, np.concatenate([drawn, drawn[..., :2]], 2), np.array([0, 0, 1]))}
    observation = replace(deblended.scene.observation, wcs=celestial(), unit="nJy", notes=("one", "two"))
    return replace(with_view(deblended, observation=observation), **changes)


@pytest.mark.parametrize("written", [result(), make_joint(samples=2), make_joint()], ids=["one", "two", "a fit of two"])
def test_result_round_trip(written: Deblended, tmp_path: Path) -> None:
    written.write(tmp_path / "blend.fits")
    read = Deblended.read(tmp_path / "blend.fits")
    for name in ("stamps", "samples", "corners", "flux_cov", "flux", "flux_err"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
    assert len(read.views) == len(written.views)
    for one, other in zip(read.views, written.views, strict=True):
        for name in ("model", "sources", "sources_std", "background", "residual", "reapportioned"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-6)
        assert one.scale == pytest.approx(other.scale) and one.chi2 == pytest.approx(other.chi2)
        assert one.undeclared.values_equal(other.undeclared)
        np.testing.assert_array_equal(one.observation.weights, other.observation.weights)
    for one, other in zip(read.scene.observations, written.scene.observations, strict=True):
        for name in ("images", "weights", "zeropoints", "noise_correlation", "saturated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_allclose(one.psf, other.psf, rtol=1e-6)
        assert one.pixel_scale == pytest.approx(other.pixel_scale)
        for name in ("bands", "name", "unit", "notes"):
            assert getattr(one, name) == getattr(other, name)
    assert read.scene.sources == written.scene.sources
    assert dict(read.header) == dict(written.header)
    assert read.catalog.values_equal(written.catalog)
    assert read.chi2 == pytest.approx(written.chi2)
    if written.calibration is None:
        assert read.calibration is None
    else:
        assert read.calibration_table.values_equal(written.calibration_table)
    assert (read.sample_catalog is None) == (written.sample_catalog is None)
    for name in ("flux", "shapes", "group") if written.sample_catalog else ():
        np.testing.assert_array_equal(getattr(read.sample_catalog, name), getattr(written.sample_catalog, name))


def test_saved_calibrations_are_checked(tmp_path: Path) -> None:
    make_joint().write(tmp_path / "blend.fits")
    with fits.open(tmp_path / "blend.fits", mode="update") as hdus:
        hdus["CALIBRATION"].data = hdus["CALIBRATION"].data[:3]
    with pytest.raises(DataError, match="CALIBRATION: expected 4 rows, as in BANDS, received 3"):
        Deblended.read(tmp_path / "blend.fits")


def test_extensions_of_several_observations(tmp_path: Path) -> None:
    """What all share is there once, in all bands; each further observation has its own images."""
    joint = make_joint(samples=2)
    joint.write(tmp_path / "blend.fits")
    with fits.open(tmp_path / "blend.fits") as hdus:
        hdus.verify("exception")
        shapes = {hdu.name: hdu.shape for hdu in hdus if isinstance(hdu, fits.ImageHDU)}
        units = {hdu.name: hdu.header.get("BUNIT") for hdu in hdus}
        rows = [(row["observation"], row["band"], row["background"]) for row in Table.read(hdus["BANDS"])]
    own = ("MODEL", "RESIDUAL", "SOURCES", "SOURCES_STD", "IMAGES", "WEIGHTS", "PSF", "NOISECORR", "SATURATED")
    assert {name for name in shapes if name.endswith("_SECOND")} == {
        f"{name}_SECOND" for name in (*own, "REAPPORTIONED")
    }
    assert shapes["MODEL_SECOND"] == (2, 30, 34) and shapes["SOURCES_STD_SECOND"] == (3, 2, 30, 34)
    assert (
        shapes["STAMPS"] == (3, 3, 15, 15) and shapes["SAMPLES"] == (2, 3, 3, 15, 15) and shapes["FLUXCOV"] == (3, 3, 3)
    )
    assert (units["MODEL"], units["MODEL_SECOND"]) == ("adu", "electron")
    assert rows == [("first", "g", 0), ("first", "r", 0), ("second", "r", 3), ("second", "i", 3)]


def test_text_of_a_result() -> None:
    text = repr(make_joint())
    assert (
        len(text.splitlines()) == 4
        and "3 sources in g r i" in text
        and "View of second: r i, 30 x 34 pixels, chi2" in text
    )
    assert "<pre>" in make_joint()._repr_html_()


def test_saturation_comes_back(tmp_path: Path) -> None:
    written = result()
    observation = written.scene.observation
    observation = replace(observation, saturated=observation.images > 50)
    files.write(with_view(written, observation=observation), tmp_path / "blend.fits")
    read = files.read(tmp_path / "blend.fits").scene.observation
    np.testing.assert_array_equal(read.saturated, observation.saturated)


def test_optional_parts_stay_out(tmp_path: Path) -> None:
    files.write(with_view(result(samples=None), light_std=None, undeclared=None), tmp_path / "blend.fits")
    read = files.read(tmp_path / "blend.fits")
    assert read.samples is read.sources_std is read.undeclared is None


def test_extensions_of_the_contract(tmp_path: Path) -> None:
    written = result()
    files.write(written, tmp_path / "blend.fits")
    with fits.open(tmp_path / "blend.fits") as hdus:
        hdus.verify("exception")
        shapes = {hdu.name: hdu.shape for hdu in hdus if isinstance(hdu, fits.ImageHDU)}
        for name in ("MODEL", "RESIDUAL", "SOURCES", "STAMPS", "SAMPLES", "REAPPORTIONED"):
            np.testing.assert_allclose(WCS(hdus[name].header).celestial.wcs.crval, [150, 2])
            assert hdus[name].header["BUNIT"] == "nJy"
        assert np.isnan(hdus["RESIDUAL"].data[~written.scene.observation.valid]).all()
        assert hdus[0].header["METHOD"] == "map"
        assert len(hdus["CATALOG"].data) == len(written.sources)
    assert shapes["SOURCES"] == shapes["SOURCES_STD"] == shapes["REAPPORTIONED"] == (3, 5, 40, 50)
    assert (shapes["SAMPLES"], shapes["FLUXCOV"]) == ((2, 3, 5, 15, 15), (5, 3, 3))


def test_reapportioned_data_add_up(tmp_path: Path) -> None:
    deblended = with_view(result(), background=np.arange(5.0))
    observation = deblended.scene.observation
    shared = deblended.reapportioned.sum(axis=0)
    bright = observation.valid & (deblended.model > 0)
    expected = observation.images - np.arange(5.0)[:, None, None]
    np.testing.assert_allclose(shared[bright], expected[bright], rtol=1e-4, atol=1e-4)
    assert (shared[~observation.valid] == 0).all()


def test_header_takes_any_text_and_number(tmp_path: Path) -> None:
    header = {"prior": "sérsic\n" + "x" * 200, "chi2": float("nan"), "steps": np.int64(3), "a_long_keyword": 1.5}
    files.write(result(header=header), tmp_path / "blend.fits")
    read = files.read(tmp_path / "blend.fits").header
    assert read["prior"] == "s\\xe9rsic " + "x" * 200
    assert (read["chi2"], read["steps"], read["a_long_keyword"]) == ("nan", 3, 1.5)


def test_names_that_are_not_ascii_stay_apart(tmp_path: Path) -> None:
    """In files they are quoted; two that differ by nothing that FITS keeps are refused."""
    scene, truth = make_scene(sources=2)
    named = replace(scene, sources=tuple(replace(s, id=name) for s, name in zip(scene.sources, "éè", strict=True)))
    files.write(result_of(named, truth), tmp_path / "blend.fits")
    read = files.read(tmp_path / "blend.fits")
    assert [source.id for source in read.scene.sources] == list(read.catalog["id"]) == ["\\xe9", "\\xe8"]
    with pytest.raises(DataError, match=r"catalog.id: expected a different id"):
        replace(scene, sources=tuple(replace(s, id=name) for s, name in zip(scene.sources, ("a", "a "), strict=True)))


def test_names_that_cannot_be_printed_are_read_back(tmp_path: Path) -> None:
    joint = make_joint()
    first, second = (replace(one, name=f"{one.name}\x07\n") for one in joint.scene.observations)
    views = tuple(replace(v, observation=one) for v, one in zip(joint.views, (first, second), strict=True))
    files.write(
        replace(joint, views=views, scene=replace(joint.scene, observations=(first, second))), tmp_path / "a.fits"
    )
    read = files.read(tmp_path / "a.fits")
    assert read.scene.name == r"first\x07"
    np.testing.assert_array_equal(read.views[1].model, joint.views[1].model)


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "blend.fits"
    files.write(result(), path)
    before = path.read_bytes()

    def fail(hdus: fits.HDUList, file: Any) -> None:
        file.write(b"SIMPLE")
        raise OSError("512 requested and 40 written")  # as NumPy does

    monkeypatch.setattr(fits.HDUList, "writeto", fail)
    with pytest.raises(OSError, match="No space left on device"):
        files.write(result(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_result_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.fits: BANDS: expected this extension of a deblended scene"):
        files.read(write_fits(tmp_path / "a.fits"))
    files.write(result(), tmp_path / "b.fits")
    whole = (tmp_path / "b.fits").read_bytes()
    for length in np.linspace(1, len(whole) - 1, 20).astype(int):
        (tmp_path / "b.fits").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"b\.fits"):
            files.read(tmp_path / "b.fits")


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".parquet"])
def test_joined_catalog(suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    one, two = result().catalog, make_deblended(bands="gr", sources=2).catalog
    path = tmp_path / f"catalog{suffix}"
    files.write_catalog({"first": one, "second": two}, path)
    table = read_parquet(path) if suffix == ".parquet" else Table.read(path)
    table.convert_bytestring_to_unicode()
    assert table.colnames[:2] == ["scene", "id"]
    assert list(table["scene"]) == ["first"] * 3 + ["second"] * 2
    np.testing.assert_array_equal(table["flux_g"], np.concatenate([one["flux_g"], two["flux_g"]]))
    missing = np.ma.filled(table["flux_y"], np.nan)  # a band that the second scene lacks
    np.testing.assert_array_equal(missing, np.concatenate([one["flux_y"], [np.nan, np.nan]]))
    assert not any(name.endswith(".mask") for name in table.colnames)
    assert "scene" not in one.colnames
    assert list(tmp_path.iterdir()) == [path]


def read_parquet(path: Path) -> Table:
    """By pyarrow alone, as Astropy's reader needs pandas too."""
    from pyarrow import parquet

    return Table(parquet.read_table(path).to_pydict())


def test_joined_catalog_refused(tmp_path: Path) -> None:
    for tables, path, message in (
        ({"a": Table()}, "catalog.csv", "suffix: expected one of .ecsv"),
        ({}, "catalog.ecsv", "tables: expected at least one"),
        ([Table({"x": [1]})], "catalog.ecsv", "scene: expected a column scene"),
    ):
        with pytest.raises(DataError, match=message):
            files.write_catalog(tables, tmp_path / path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the package pyarrow"):
        files.write_catalog({"a": result().catalog}, tmp_path / "catalog.parquet")
    assert not list(tmp_path.iterdir())


def write_ldac(path: Path) -> None:
    """As SExtractor does: a table of the image's header before that of the objects."""
    head = fits.BinTableHDU.from_columns(
        [fits.Column("Field Header Card", "80A", array=["SIMPLE"])], name="LDAC_IMHEAD"
    )
    columns = {"NUMBER": [4, 7], "X_IMAGE": XY[:, 0] + 1, "Y_IMAGE": XY[:, 1] + 1}
    objects = fits.table_to_hdu(Table(columns, units={"X_IMAGE": "pix", "Y_IMAGE": "pix"}))
    objects.name = "LDAC_OBJECTS"
    fits.HDUList([fits.PrimaryHDU(), head, objects]).writeto(path)


def write_ascii_head(path: Path) -> None:
    names = [
        "#   1 NUMBER   Running object number",
        "#   2 XWIN_IMAGE   Windowed   [pixel]",
        "#   3 YWIN_IMAGE   Windowed   [pixel]",
    ]
    path.write_text("\n".join([*names, *(f"{n} {x + 1} {y + 1}" for n, (x, y) in zip((4, 7), XY, strict=True))]) + "\n")


def write_parquet(path: Path) -> None:
    """As Rubin's tables: degrees without a unit."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sky = celestial().pixel_to_world(*XY.T)
    columns = {"objectId": [4, 7], "coord_ra": sky.ra.deg, "coord_dec": sky.dec.deg}
    parquet.write_table(arrow.table(columns), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.cat", write_ldac), ("a.fits", write_ldac), ("b.cat", write_ascii_head), ("c.parquet", write_parquet)],
)
def test_catalogues_as_tools_write_them(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path / name)
    scene = Scene.from_catalog(io.read(write_fits(tmp_path / "scene.fits"))[0], io.read_catalog(tmp_path / name))
    np.testing.assert_allclose(scene.positions, XY[:, ::-1], atol=1e-6)
    assert [source.id for source in scene.sources] == ["4", "7"]


def test_a_table_beside_an_image_may_count_in_the_image_that_it_was_cut_from(tmp_path: Path) -> None:
    """LTV1 and LTV2 say where that one's pixels are; what counts in the image itself stays as it is."""
    origin = np.array([8968.0, 4968.0])
    header = {"LTV1": -origin[0], "LTV2": -origin[1]}
    for names, first in (
        (("base_SdssCentroid_x", "base_SdssCentroid_y"), 0),
        (("X_IMAGE", "Y_IMAGE"), 1),
        (("x", "y"), 0),
    ):
        for places in (XY + origin, XY):
            table = Table(places + first, names=names)
            scene = Scene.read(write_fits(tmp_path / "scene.fits", header=header, CATALOG=table))
            np.testing.assert_allclose(scene.positions, XY[:, ::-1], atol=1e-6)
            cut = f"{', '.join(names)} count in the image that this one was cut from: 8968, 4968 subtracted"
            assert (cut in scene.observation.notes) == (places[0, 0] > 100)


@pytest.mark.parametrize(("scale", "moved"), [(1.0, True), (0.5, False)])
def test_a_catalogue_may_count_in_the_image_that_its_own_was_cut_from(
    scale: float, moved: bool, tmp_path: Path
) -> None:
    """A file of its own may do so as a table in the image's file may: where both images have the same pixels (LTM)."""
    header = {"LTV1": -8968.0, "LTV2": -4968.0, "LTM1_1": scale, "LTM2_2": scale}
    image = write_fits(tmp_path / "a.fits", ("CATALOG",), header)
    for offset in (np.array([8968.0, 4968.0]), np.zeros(2)):
        Table(XY + offset, names=("x", "y")).write(tmp_path / "tile.csv", overwrite=True)
        field = inputs.Input((image,), tmp_path / "tile.csv")
        if offset.any() and not moved:
            with pytest.raises(DataError, match=r"a.fits|tile.csv"):
                field.read(Settings())
            continue
        scene = field.read(Settings())
        np.testing.assert_allclose(scene.positions, XY[:, ::-1])
        cut = "x, y count in the image that this one was cut from: 8968, 4968 subtracted"
        assert (cut in scene.observation.notes) == bool(offset.any())
    npz = inputs.Input((write_npz(tmp_path / "b.npz"),), tmp_path / "tile.csv")
    np.testing.assert_allclose(npz.read(Settings()).positions, XY[:, ::-1])


def test_a_file_of_images_is_no_catalogue(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(DataError, match=r"image.fits: table: expected a table of sources, received images alone"):
        io.read_catalog(tmp_path / "image.fits")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
BANDS_OF = [("g", "r"), ("HSC-G", "F115W"), ("a b", "c,d"), ("g'", 'r"'), ("MP9601" * 4, "x" * 30), ("err", "&<")]


@st.composite
def odd_scenes(draw: st.DrawFn) -> tuple[Scene, np.ndarray]:
    """Scenes of any unit of flux, sky, zero points, names and notes, as far as they are not refused."""
    scene, truth = make_scene("odd", "gr", (16, 18), 2, seed=1)
    one, factor, wcs = scene.observation, 10.0 ** draw(st.integers(-34, 26)), None
    if draw(st.booleans()):
        wcs = on_sky(10.0 ** draw(st.floats(-3, 1.7)), draw(st.floats(-180, 180)), (16, 18))
        wcs.wcs.cd = wcs.wcs.cd * draw(st.sampled_from([[1, 1], [1, -1], [1, 0], [1, 1e-9], [1, 0.1]]))
        wcs.wcs.crval = [draw(st.floats(0, 360)), draw(st.floats(-90, 90))]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            odd = Observation(
                images=one.images * factor,
                weights=None if draw(st.booleans()) else one.weights / factor**2,
                psf=one.psf,
                bands=draw(st.sampled_from(BANDS_OF)),
                name=draw(TEXT),
                wcs=wcs,
                zeropoints=draw(st.none() | st.floats(-99, 99)),
                unit=draw(st.none() | TEXT | st.sampled_from(["nJy", "mJy", "count/s", "10-20W/m2"])),
                pixel_scale=draw(st.none() | st.floats(1e-3, 60)),
                notes=tuple(draw(st.lists(TEXT, max_size=2, unique=True))),
            )
            ids = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
            sources = [replace(source, id=id) for source, id in zip(scene.sources, ids, strict=True)]
            return Scene(odd, tuple(sources)), (truth * factor).astype(np.float32)
    except DataError:
        assume(False)
        raise


@given(odd_scenes())
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_results_that_are_written_are_read(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[Scene, np.ndarray]
) -> None:
    """Whatever an observation may be, its result reads back with the same numbers and as many names that differ."""
    path = tmp_path_factory.mktemp("odd") / "odd.fits"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        made = result_of(*pair)
        made.write(path)
        read = Deblended.read(path)
    ours, theirs = made.scene.observation, read.scene.observation
    for field in ("images", "weights", "psf", "zeropoints"):
        np.testing.assert_array_equal(getattr(theirs, field), getattr(ours, field))
    assert (theirs.pixel_scale or 0) == pytest.approx(ours.pixel_scale or 0, rel=1e-6)
    assert theirs.bands == ours.bands and len(theirs.notes) == len(ours.notes)
    np.testing.assert_array_equal(read.flux, made.flux)
    np.testing.assert_array_equal(read.catalog["x"], made.catalog["x"])
    assert len({*read.catalog["id"]}) == len({source.id for source in read.scene.sources}) == 2
