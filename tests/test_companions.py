"""Fields in several files, as surveys lay them out: which belong together, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import gaussian, on_sky
from scene_files import XY, write_fits, write_npz

from tfdeblend import io
from tfdeblend.app import inputs
from tfdeblend.app.cli import main
from tfdeblend.app.runs import Settings
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io import companions

SIDE, SIGMA = 24, 0.5
PSF = gaussian((15, 15), 7, 7, 1.5)
EUCLID = "TILE101158889-{}_20240405T0742{}.613268Z_00.00.fits"
# Of each survey: the image, what lies beside it by its part, and other files of the field, which are not read.
SURVEYS: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "Legacy": (
        "legacysurvey-0000p000-image-r.fits.fz",
        {"weights": "legacysurvey-0000p000-invvar-r.fits.fz"},
        ["legacysurvey-0000p000-model-r.fits.fz", "legacysurvey-0000p000-psfsize-r.fits.fz"],
    ),
    "CANDELS": ("hlsp_gs-tot_f814w_v1.0_drz.fits", {"sigma": "hlsp_gs-tot_f814w_v1.0_rms.fits"}, []),
    "grizli": ("a2744-f115w_drc_sci.fits", {"weights": "a2744-f115w_drc_wht.fits"}, []),
    "SWarp": ("coadd.fits", {"weights": "coadd.weight.fits"}, ["coadd.segmentation.fits"]),
    "KiDS": (
        "KiDS_DR4.0_180.0_-0.5_r_sci.fits",
        {"weights": "KiDS_DR4.0_180.0_-0.5_r_weight.fits", "mask": "KiDS_DR4.0_180.0_-0.5_r_flag.fits"},
        [],
    ),
    "CFHT": ("CFIS.134.256.r.fits", {"weights": "CFIS.134.256.r.weight.fits.fz"}, []),
    "Euclid": (
        "EUC_MER_BGSUB-MOSAIC-VIS_" + EUCLID.format("FC4E52", 11),
        {
            "sigma": "EUC_MER_MOSAIC-VIS-RMS_" + EUCLID.format("ACBD03", 12),
            "mask": "EUC_MER_MOSAIC-VIS-FLAG_" + EUCLID.format("1E0FD9", 13),
        },
        [],
    ),
}


def image(seed: int = 0) -> np.ndarray:
    truth = sum(50 * gaussian((SIDE, SIDE), y, x, 1.5) for x, y in XY)
    return (truth + np.random.default_rng(seed).normal(scale=SIGMA, size=(SIDE, SIDE))).astype(np.float32)


def write(path: Path, data: np.ndarray, **cards: Any) -> Path:
    """An image in a FITS file of its own, compressed where its name says so."""
    header = on_sky(0.2, shape=(SIDE, SIDE)).to_header()
    header.update(cards)
    if path.suffix == ".fz":
        hdu = fits.CompImageHDU(data, header, quantize_level=0, compression_type="GZIP_1")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    else:
        fits.PrimaryHDU(data, header).writeto(path)
    return path


MAPS: dict[str, np.ndarray] = {
    "weights": np.full((SIDE, SIDE), SIGMA**-2, np.float32),
    "variance": np.full((SIDE, SIDE), SIGMA**2, np.float32),
    "sigma": np.full((SIDE, SIDE), SIGMA, np.float32),
    "mask": np.where(np.indices((SIDE, SIDE))[0] < 2, 32, 0).astype(np.int32),
}


def lay_out(folder: Path, survey: str) -> Path:
    first, parts, others = SURVEYS[survey]
    for part, name in parts.items():
        write(folder / name, MAPS[part])
    for name in others:
        write(folder / name, np.ones((SIDE, SIDE), np.float32))
    return write(folder / first, image(), FILTER="r")


@pytest.mark.parametrize("survey", SURVEYS)
def test_parts_beside_an_image_are_read_with_it(tmp_path: Path, survey: str) -> None:
    """One file is one scene, whose weights are what the survey's map says, and a note tells what was joined."""
    path = lay_out(tmp_path, survey)
    _, parts, others = SURVEYS[survey]
    assert io.find_inputs(tmp_path) == [path]
    read = Observation.read(path, psf=PSF / PSF.sum())
    rows = np.arange(SIDE)[:, None] < 2 if "mask" in parts else np.zeros((SIDE, 1), bool)
    np.testing.assert_allclose(read.weights[0], np.where(rows, 0, SIGMA**-2) * np.ones((1, SIDE)), rtol=1e-6)
    for part, name in parts.items():
        assert any(f"{part} from {name}" in note for note in read.notes)
    for name in others:
        assert any(note.startswith("not read: ") and name in note for note in read.notes)
    assert not any("no noise given" in note for note in read.notes)


@pytest.mark.parametrize("survey", SURVEYS)
def test_maps_alone_are_refused_with_how_to_pair_them(tmp_path: Path, survey: str) -> None:
    path = lay_out(tmp_path, survey)
    for name in SURVEYS[survey][1].values():
        with pytest.raises(
            DataError, match=r"file: expected an image of the sky, received a ma.* by its name; give"
        ) as told:
            Observation.read(tmp_path / name, psf=PSF / PSF.sum())
        assert str(path) in str(told.value)
    path.unlink()
    for name in SURVEYS[survey][1].values():
        with pytest.raises(DataError, match="put it beside its image under the same name but for that word"):
            Observation.read(tmp_path / name, psf=PSF / PSF.sum())


def test_two_files_of_one_part_are_refused(tmp_path: Path) -> None:
    for name, part in {"x.weight.fits": "weights", "x_wht.fits": "weights"}.items():
        write(tmp_path / name, MAPS[part])
    with pytest.raises(
        DataError, match=r"weights: expected one file of this part beside it, received x.weight.fits, x_wht"
    ):
        Observation.read(write(tmp_path / "x.fits", image()), psf=PSF / PSF.sum())


def test_noise_in_the_file_comes_before_that_beside_it(tmp_path: Path) -> None:
    read = [write_fits(tmp_path / "x.fits"), write(tmp_path / "x.rms.fits", MAPS["sigma"])][0]
    found = Observation.read(read)
    np.testing.assert_allclose(found.weights, 100, rtol=1e-6)
    assert "not read: x.rms.fits beside it" in found.notes


@pytest.mark.parametrize(
    ("written", "scenes"),
    [
        (["x-g.fits", "x-r.fits", "x-z.fits"], [("x", "grz")]),
        (["x.i.fits", "x.u.fits", "y.g.fits"], [("x", "ui"), ("y.g", "g")]),
        (["calexp-HSC-I-9813-4,5.fits", "calexp-HSC-G-9813-4,5.fits"], [("calexp-9813-4,5", "gi")]),
        (["calexp-HSC-R2-9813.fits", "calexp-HSC-Y-9813.fits"], [("calexp-9813", "ry")]),
        (["cutout-HSC-I2.fits", "cutout-HSC-NB0816.fits"], [("cutout-HSC-I2", "i"), ("cutout-HSC-NB0816", "")]),
        (["CFHTLS.G.MP9401.fits", "CFHTLS.I.MP9702.fits"], [("CFHTLS", "gi")]),
        (["x-NIR-Y.fits", "x-NIR-H.fits"], [("x", "YH")]),
        (["x-r2.fits", "x-i2.fits"], [("x-i2", ""), ("x-r2", "")]),
        (["field-a.fits", "field-g.fits", "field-i.fits"], [("field-a", ""), ("field-g", "g"), ("field-i", "i")]),
        (["x-g.npz", "x-r.npz"], [("x-g", ""), ("x-r", "")]),
        (["g.fits", "r.fits"], [("here", "gr")]),
    ],
)
def test_bands_of_one_field_are_found_by_name(
    tmp_path: Path, written: list[str], scenes: list[tuple[str, str]]
) -> None:
    """In the order of wavelengths; scenes that are numbered by letters, or hold all of theirs, are their own."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in written:
        (folder / name).touch()
    found = inputs.find([str(folder)])
    assert [(one.name, "".join(companions.parse(file).band for file in one.files)) for one in found] == scenes


def test_bands_of_one_field_are_one_observation(tmp_path: Path) -> None:
    """Bands are joined with the noise beside each and PSFs of any size, and named by their files if need be."""
    small = gaussian((11, 11), 5, 5, 1.2)
    for seed, (band, psf) in enumerate({"g": PSF, "r": small}.items()):
        write(tmp_path / f"x-image-{band}.fits", image(seed))
        write(tmp_path / f"x-rms-{band}.fits", MAPS["sigma"])
        write(tmp_path / f"x-image-{band}_psf.fits", psf / psf.sum())
    Table({"x": XY[:, 0], "y": XY[:, 1]}).write(tmp_path / "sources.csv")
    (field,) = inputs.find([str(tmp_path / "*.fits")], tmp_path / "sources.csv")
    scene = field.read(Settings())
    one = scene.observation
    assert (scene.name, one.bands, one.shape, len(scene.sources)) == ("x", ("g", "r"), (2, SIDE, SIDE), 2)
    np.testing.assert_array_equal(one.images, [image(0), image(1)])
    np.testing.assert_allclose(one.weights, SIGMA**-2)
    np.testing.assert_allclose(one.psf[1], np.pad(small / small.sum(), 2), atol=1e-7)
    assert one.notes[0] == "bands joined to one image: g from x-image-g.fits, r from x-image-r.fits"
    assert one.pixel_scale == pytest.approx(0.2)
    named = io.read(field.files, bands=["blue", "red"], zeropoints={"blue": 27.0, "red": 26.0})[0]
    assert named.bands == ("blue", "red") and list(named.zeropoints) == [27, 26]
    before = field.digest()
    (tmp_path / "x-rms-r.fits").unlink()
    write(tmp_path / "x-rms-r.fits", 2 * MAPS["sigma"])
    assert field.digest() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CRPIX1": 3.0}, "wcs: expected one band on the pixels of .*, received pixels that are off by"),
        ({"BUNIT": "nJy"}, "unit: expected the same as of the other bands of the field, none, received nJy"),
        (
            "shape",
            "images: expected one band on the pixels of .*, received shape .*; give --observation .*x-g.fits --obs",
        ),
    ],
)
def test_bands_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    first = write(tmp_path / "x-g.fits", image())
    second = (
        write(tmp_path / "x-r.fits", image()[:20])
        if change == "shape"
        else write(tmp_path / "x-r.fits", image(), **change)
    )
    with pytest.raises(DataError, match=message):
        io.read([first, second], psf=PSF / PSF.sum())


def test_psfs_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A PSF belongs to its scene or to --psf, which is said to take the place of a scene's own; a scene is a scene."""
    write_npz(tmp_path / "a.npz", without=("psfs",))
    write(tmp_path / "a_psf.fits", PSF / PSF.sum())
    write_npz(tmp_path / "b_psf.npz")
    write_fits(tmp_path / "c_psf.fits")
    star = write(tmp_path / "star_psf.fits", PSF / PSF.sum())
    assert [one.name for one in inputs.find([str(tmp_path)], psf=str(star))] == ["a", "b_psf", "c_psf"]
    for name in ("a.npz", "b_psf.npz", "c_psf.fits"):
        assert len(Scene.read(tmp_path / name).sources) == 2
    assert main(["info", str(star)]) == 2
    assert "received a PSF by its name; give it as --psf" in capsys.readouterr().err
    replaced = "PSF as given, not the file's own"
    assert replaced in Observation.read(tmp_path / "c_psf.fits", psf=star).notes
    assert replaced not in Observation.read(tmp_path / "a.npz", psf=star).notes
