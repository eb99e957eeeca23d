"""PSFs in files of their own, as surveys and simulators write them, on the image's pixels and at its place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from helpers import gaussian
from scene_files import SHAPE, celestial, write_fits, write_npz, write_psfex

from tfdeblend import io
from tfdeblend.errors import DataError

SCALE = 0.2  # arcsec, of the scenes that `write_fits` writes
STAR = galsim.Moffat(beta=3.0, fwhm=0.55)


def seen(side: int = 41, step: float = 1.0) -> np.ndarray:
    """(side, side) the light of STAR in pixels of `step` times the image's."""
    star = galsim.Convolve(STAR, galsim.Pixel(step * SCALE))
    return star.drawImage(nx=side, ny=side, scale=step * SCALE, method="no_pixel").array.astype(float)


def write_image(path: Path, psf: np.ndarray, **header: Any) -> Path:
    fits.PrimaryHDU(psf, fits.Header(header)).writeto(path)
    return path


def write_optics(path: Path, names: tuple[str, ...], scale: float = SCALE, finer: int = 4) -> Path:
    """A PSF file of STPSF: extensions on a detector's pixels of `scale` arcsec, or `finer` times finer."""
    hdus = fits.HDUList()
    for name in names:
        over = 1 if name.startswith("DET") else finer
        hdu = (fits.ImageHDU if hdus else fits.PrimaryHDU)(seen(41 * over, scale / SCALE / over))
        hdu.header.update(EXTNAME=name, PIXELSCL=scale / over, OVERSAMP=over, DET_SAMP=finer)
        hdus.append(hdu)
    hdus.writeto(path)
    return path


OPTICS = ("OVERSAMP", "DET_SAMP", "OVERDIST", "DET_DIST")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A scene of pixels of 0.2 arcsec, without a PSF."""
    return write_fits(tmp_path / "scene.fits", without=("PSF",))


@pytest.mark.parametrize(
    ("names", "scale", "note"),
    [
        (OPTICS, SCALE, None),
        (("OVERSAMP",), SCALE, "PSF brought to the image's pixels: its own are 0.25 of them"),
        (("OVERDIST", "OVERSAMP"), 0.9 * SCALE, "PSF brought to the image's pixels: its own are 0.225 of them"),
        (OPTICS, 1.3 * SCALE, "PSF brought to the image's pixels: its own are 0.325 of them"),
    ],
    ids=["as the detector sees it", "binned", "interpolated", "not of this detector"],
)
def test_psf_of_an_optics_simulator(
    names: tuple[str, ...], scale: float, note: str | None, image: Path, tmp_path: Path
) -> None:
    observation, _ = io.read(image, psf=write_optics(tmp_path / "optics.fits", names, scale))
    psf = observation.psf[0]
    np.testing.assert_allclose(psf, seen(len(psf)), atol=2e-3 * psf.max())
    assert [line for line in observation.notes if line.startswith("PSF")] == ([] if note is None else [note])


def test_oversampled_psf_of_an_image_of_unknown_scale(tmp_path: Path) -> None:
    image = write_fits(tmp_path / "scene.fits", without=("PSF",), wcs=False)
    psf = io.read(image, psf=write_optics(tmp_path / "optics.fits", ("OVERSAMP",)))[0].psf[0]
    np.testing.assert_allclose(psf, seen(), atol=2e-3 * psf.max())


def wcs_of(scale: float) -> dict[str, Any]:
    wcs: WCS = celestial()
    wcs.wcs.cdelt = -scale / 3600, scale / 3600
    return dict(wcs.to_header())


@pytest.mark.parametrize("step", [0.5, 1 / 3, 0.41, 0.77])
def test_finer_psf_in_steps_of_any_size(step: float, image: Path, tmp_path: Path) -> None:
    """The light in its pixels; to 0.5% of the peak."""
    finer = seen(int(41 / step) | 1, step)
    headers: tuple[dict[str, Any], ...] = (
        {"PIXSCALE": step * SCALE},
        wcs_of(step * SCALE),
        {"CDELT1": step * SCALE, "CUNIT1": "arcsec"},
    )
    for number, header in enumerate(headers):
        psf = io.read(image, psf=write_image(tmp_path / f"psf{number}.fits", finer, **header))[0].psf[0]
        np.testing.assert_allclose(psf, seen(len(psf)), atol=5e-3 * psf.max())
    own = write_fits(tmp_path / "own.fits", PSF=finer, header={"PSF:PIXELSCL": step * SCALE})
    np.testing.assert_allclose(io.read(own)[0].psf[0], psf, atol=1e-6)
    np.savez(tmp_path / "psf.npz", psfs=finer, pixel_scale=step * SCALE)
    np.testing.assert_allclose(io.read(image, psf=tmp_path / "psf.npz")[0].psf[0], psf, atol=1e-6)


@pytest.mark.parametrize("step", [0.5, 0.8, 1.25])
def test_image_of_a_psfex_model(step: float, image: Path, tmp_path: Path) -> None:
    """It samples what the image's pixels see, finer or coarser."""
    side = int(41 / step) | 1
    sampled = galsim.Convolve(STAR, galsim.Pixel(SCALE))
    sampled = sampled.drawImage(nx=side, ny=side, scale=step * SCALE, method="no_pixel").array
    psf = io.read(image, psf=write_image(tmp_path / "psf.fits", sampled, PSF_SAMP=step))[0].psf[0]
    np.testing.assert_allclose(psf, seen(len(psf)), atol=5e-3 * psf.max())


def test_scales_that_agree_or_say_nothing_change_nothing(image: Path, tmp_path: Path) -> None:
    headers: tuple[dict[str, Any], ...] = (
        {"PIXSCALE": 1.02 * SCALE},
        {"PIXSCALE": "auto"},
        {"CDELT1": 1.0},
        wcs_of(3600),
    )
    for number, header in enumerate(headers):
        observation, _ = io.read(image, psf=write_image(tmp_path / f"psf{number}.fits", seen(), **header))
        np.testing.assert_allclose(observation.psf[0], seen() / seen().sum(), rtol=1e-5)
        assert not any("brought" in note for note in observation.notes)


def mixture(side: int, wide: float) -> np.ndarray:
    """(side, side) of that model where the part `wide` is of the tile's right edge."""
    left, right = (gaussian((side, side), side // 2, side // 2, sigma) for sigma in (1.5, 2.0))
    return (1 - wide) * left + wide * right


@pytest.mark.parametrize("sampling", [1.0, 0.5, 0.7])
@pytest.mark.parametrize("axes", ["{}_IMAGE", "{}WIN_IMAGE"])
def test_psfex_model_at_the_place_of_a_cut_out(sampling: float, axes: str, tmp_path: Path) -> None:
    """By LTV1 and LTV2, or as said: the middle of the image, at x = 9000.5, of a tile from 0 to 10,000."""
    model = write_psfex(tmp_path / "tile.psf", sampling, POLNAME1=axes.format("X"), POLNAME2=axes.format("Y"))
    corner = {"LTV1": -(9000.5 - (SHAPE[2] + 1) / 2), "LTV2": -4000.0}
    cut_out = write_fits(tmp_path / "a.fits", without=("PSF",), header=corner)
    bare = write_fits(tmp_path / "b.fits", without=("PSF",))
    for path, position in ((cut_out, None), (bare, (9000.5, 4012.5)), (cut_out, (9000.5, 3000.0))):
        observation, _ = io.read(path, psf=model, psf_position=position)
        psf = observation.psf[1]
        assert len(psf) % 2 == 1
        np.testing.assert_allclose(psf, mixture(len(psf), 0.90005), atol=2e-4)  # the peak is 0.05
        assert not any("PSF model" in note for note in observation.notes)


def test_psfex_model_at_an_unknown_place(image: Path, tmp_path: Path) -> None:
    write_psfex(tmp_path / "scene.psf")
    observation, _ = io.read(image)
    psf = observation.psf[0]
    np.testing.assert_allclose(psf, mixture(len(psf), 0.00105), atol=2e-4)
    remedy = "a cut-out needs LTV1 and LTV2 in its header, or --psf-position"
    note = f"PSF model that varies taken at the image's own centre (10.5, 12.5): {remedy}"
    assert [line for line in observation.notes if "PSF model" in line] == [note]


def test_psfex_model_of_the_image_itself(image: Path, tmp_path: Path) -> None:
    model = write_psfex(tmp_path / "own.psf", centre=11.0)
    observation, _ = io.read(image, psf=model)
    np.testing.assert_allclose(observation.psf[0], mixture(observation.psf.shape[1], 0.5), atol=2e-4)
    assert not any("PSF model" in note for note in observation.notes)


def test_psfex_model_far_outside_of_its_range(image: Path, tmp_path: Path) -> None:
    observation, _ = io.read(image, psf=write_psfex(tmp_path / "tile.psf"), psf_position=(11000, 5000))
    expected = (
        "PSF model used far outside of its range: at (11000, 5000), it was made for x 5000 +- 5000, y 5000 +- 5000"
    )
    assert expected in observation.notes


@pytest.mark.parametrize("cards", [{"POLNAXIS": 0}, {"POLDEG1": 0}], ids=["no axes", "degree 0"])
def test_constant_psfex_model(cards: dict[str, Any], image: Path, tmp_path: Path) -> None:
    model = write_psfex(tmp_path / "constant.psf", 0.5)
    with fits.open(model) as hdus:
        header, mean = hdus[1].header, hdus[1].data["PSF_MASK"][:, :1]
        hdu = fits.BinTableHDU.from_columns([fits.Column("PSF_MASK", f"{mean.size}E", dim="(61,61,1)", array=mean)])
        hdu.header.update({key: header[key] for key in header if key[:3] in ("POL", "PSF")} | {"PSFAXIS3": 1} | cards)
    if "POLNAXIS" in cards:
        for key in ("POLGRP", "POLNAME", "POLZERO", "POLSCAL"):
            del hdu.header[f"{key}1"], hdu.header[f"{key}2"]
        del hdu.header["POLDEG1"]
    hdu.name = "PSF_DATA"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(model, overwrite=True)
    observation, _ = io.read(image, psf=model)
    np.testing.assert_allclose(observation.psf[0], mixture(observation.psf.shape[1], 0.5), atol=2e-4)
    assert not any("PSF model" in note for note in observation.notes)


def piff_table() -> fits.BinTableHDU:
    return fits.BinTableHDU(Table({"type": ["Simple"], "piff_version": ["1.7.0"]}), name="psf")


def test_piff_model(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn at the place where the image was cut out, where the user names it and has Piff."""
    path = tmp_path / "tile.piff"
    fits.HDUList([fits.PrimaryHDU(), piff_table()]).writeto(path)
    drawn: dict[str, Any] = {}

    def draw(**how: Any) -> Any:
        drawn.update(how)
        return galsim.Image(3 * seen(how["stamp_size"]))

    monkeypatch.setitem(sys.modules, "piff", SimpleNamespace(read=lambda _: SimpleNamespace(draw=draw)))
    psf = io.read(image, psf=path, psf_position=(900.5, 80.0))[0].psf[0]
    np.testing.assert_allclose(psf, seen(len(psf)), atol=1e-4)
    assert (drawn["x"], drawn["y"], drawn["center"]) == (900.5, 80.0, True)
    assert any("taken at the image's own centre (10.5, 12.5)" in note for note in io.read(image, psf=path)[0].notes)


def stamps(**header: Any) -> list[Any]:
    return [fits.PrimaryHDU(seen(), fits.Header(header))]


@pytest.mark.parametrize(
    ("hdus", "line"),
    [
        (
            stamps(PIXSCALE=0.3),
            "PRIMARY: expected pixels of 0.01 to 1 of the image's, which are of 0.2 arcsec, received 0.3",
        ),
        (
            stamps(STMPSIZE=21),
            "PRIMARY: expected one stamp a band, received stamps at many places; write the stamp nearest",
        ),
        (
            [*stamps(), fits.BinTableHDU(Table({"ra": [1.0, 2.0], "dec": [1.0, 2.0]}))],
            "PRIMARY: expected one stamp a band, received stamps at many places",
        ),
        (
            [fits.PrimaryHDU(), piff_table()],
            "PSF: expected an image or a PSFEx model, received a Piff model; pip install",
        ),
        ([fits.PrimaryHDU()], "PSF: expected an image in PSF or the primary, or a PSFEx model, received neither"),
    ],
    ids=["coarser", "grid", "list of places", "piff", "none"],
)
def test_what_is_refused(
    hdus: list[Any], line: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "piff", None)
    path = tmp_path / "other.fits"
    fits.HDUList(hdus).writeto(path)
    with pytest.raises(DataError) as caught:
        io.read(image, psf=path)
    assert str(caught.value).startswith(f"{path}: {line}")


def test_piff_model_that_nobody_named(image: Path) -> None:
    """It holds pickled objects, which nothing found beside an image may run."""
    fits.HDUList([fits.PrimaryHDU(), piff_table()]).writeto(image.with_name("scene_psf.fits"))
    with pytest.raises(DataError, match="received a Piff model; a Piff model holds pickled objects"):
        io.read(image)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"POLNAME1": "MAG_AUTO"}, "expected a model that varies with X_IMAGE and Y_IMAGE, received one with MAG_AUTO"),
        ({"POLDEG1": 3}, "expected a readable, whole file, received OSError"),
    ],
)
def test_psfex_model_that_is_not_understood(changes: dict[str, Any], line: str, image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"tile\.psf: PSF_DATA: {line}"):
        io.read(image, psf=write_psfex(tmp_path / "tile.psf", **changes))


def test_psfex_models_of_several_chips(image: Path, tmp_path: Path) -> None:
    model = write_psfex(tmp_path / "tile.psf")
    with fits.open(model) as hdus:
        fits.append(model, hdus[1].data, hdus[1].header)
    with pytest.raises(DataError, match="expected one PSFEx model, received 2, one a chip"):
        io.read(image, psf=model)


def test_psf_that_is_given_in_place_of_the_file_s_own(tmp_path: Path) -> None:
    observation, _ = io.read(write_fits(tmp_path / "scene.fits"), psf=seen() / seen().sum())
    np.testing.assert_allclose(observation.psf[0], seen() / seen().sum(), rtol=1e-5)
    assert "PSF as given, not the file's own" in observation.notes


def test_what_is_wrong_with_a_psf_names_its_file(image: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "star.fits", 3 * seen())
    with pytest.raises(DataError, match=r"scene\.fits: star\.fits: expected a sum of 1 within 5% in band band0"):
        io.read(image, psf=path)


@pytest.mark.parametrize("cards", [{"PIXELSCL": 1e-300}, {"PIXELSCL": 1e300}, {"PSF_SAMP": 1e9}, {"PSF_SAMP": 1e-9}])
def test_pixels_of_no_size(cards: dict[str, float], image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected pixels of 0\.01 to 1 of the image's"):
        io.read(image, psf=write_image(tmp_path / "star.fits", seen(), **cards))
    with pytest.raises(DataError, match=r"expected a PSF_SAMP of 0\.01 to 10, received 1e\+09"):
        io.read(image, psf=write_psfex(tmp_path / "tile.psf", PSF_SAMP=1e9))


def test_one_psf_for_all_bands_is_noted(image: Path, tmp_path: Path) -> None:
    notes = io.read(image, psf=write_image(tmp_path / "star.fits", seen()))[0].notes
    assert "one PSF is given for all bands" in notes
    own = write_npz(tmp_path / "own.npz", psfs=seen() / seen().sum())
    assert "one PSF is given for all bands" in io.read(own)[0].notes
    assert not any("one PSF" in note for note in io.read(write_fits(tmp_path / "cube.fits"))[0].notes)


@pytest.mark.parametrize("position", [(1.0,), (np.nan, 2.0), ("a", "b"), 3.0])
def test_position_that_is_none(position: Any, image: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="PSF: psf_position: expected"):
        io.read(image, psf=write_psfex(tmp_path / "tile.psf"), psf_position=position)
