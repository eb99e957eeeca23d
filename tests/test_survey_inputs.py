"""Coadds as surveys deliver them: a tile is what is cut out of the whole, and its PSF that of its place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import gaussian
from scene_files import celestial, write_psfex

from tfdeblend import io
from tfdeblend.errors import DataError
from tfdeblend.survey import SurveySettings

SHAPE, SIGMA, BAD = (80, 200), 0.5, (12, 150)  # of images; their noise; a pixel of the second tile that is masked
BANDS = ("g", "r")
MODEL = """
import numpy as np

def psf(x, y, band):
    sigma = (1.5 if band.lower().endswith("g") else 2.0) + x / 20000 + y / 50000
    r2 = ((np.indices((25, 25)) - 12) ** 2).sum(0)
    psf = np.exp(-r2 / (2 * sigma**2))
    return psf / psf.sum()
"""


def pixels(band: str) -> np.ndarray:
    return np.random.default_rng(ord(band[-1])).normal(0, SIGMA, SHAPE).astype(np.float32)


def marked(value: int, rest: int = 0) -> np.ndarray:
    mask = np.full(SHAPE, rest, np.int32)
    mask[BAD] |= value
    return mask


def header(**cards: Any) -> fits.Header:
    return fits.Header({**celestial().to_header(), **cards})


def write(path: Path, *parts: tuple[str, np.ndarray, fits.Header], **primary: Any) -> Path:
    """Tile-compressed extensions, without loss."""
    hdus = [fits.PrimaryHDU(header=fits.Header(primary))]
    for name, data, cards in parts:
        how = {"compression_type": "GZIP_2", "quantize_level": 0} if data.dtype.kind == "f" else {}
        hdus.append(fits.CompImageHDU(data, cards, name=name or None, **how))
    fits.HDUList(hdus).writeto(path)
    return path


def afw(path: Path, band: str, image: dict[str, Any], primary: dict[str, Any]) -> Path:
    """An exposure of the LSST pipelines: of a patch, whose place in its tract LTV1 and LTV2 say."""
    planes = {"MP_BAD": 0, "MP_SAT": 1, "HIERARCH MP_DETECTED": 5, "HIERARCH MP_NO_DATA": 8}
    return write(
        path,
        ("IMAGE", pixels(band), header(LTV1=-12000.0, LTV2=-16000.0, **image)),
        ("MASK", marked(1 << 8, 1 << 5), fits.Header(planes)),
        ("VARIANCE", np.full(SHAPE, SIGMA**2, np.float32), fits.Header()),
        **primary,
    )


def rubin(folder: Path, band: str) -> Path:
    name = f"deepCoadd_calexp_9813_42_{band}_hsc_rings_v1.fits"
    return afw(folder / name, band, {"BUNIT": "nJy"}, {"FILTER": band})


def hsc(folder: Path, band: str) -> Path:
    zero = {"FLUXMAG0": 63095734448.0194}
    return afw(folder / f"calexp-HSC-{band.upper()}-9813-4,5.fits", band, {}, {"FILTER": f"HSC-{band.upper()}", **zero})


def des(folder: Path, band: str) -> Path:
    cards = header(BAND=band, FILTER=f"{band} DECam SDSS c0001 4720.0 1520.0", MAGZERO=30.0, INSTRUME="DECam")
    return write(
        folder / f"DES0102-4914_r2583p01_{band}.fits.fz",
        ("SCI", pixels(band), cards),
        ("MSK", marked(1), fits.Header({"INSTRUME": "DECam"})),
        ("WGT", np.full(SHAPE, SIGMA**-2, np.float32), fits.Header()),
    )


def legacy(folder: Path, band: str) -> Path:
    name = "legacysurvey-0001m002-{}.fits.fz"
    if band == "g":  # one mask for all bands, with one of another survey behind it
        masks = [(key, marked(1 << 10), fits.Header()) for key in ("MASKBITS", "WISEM1")]
        write(folder / name.format("maskbits"), *masks)
    invvar = np.full(SHAPE, SIGMA**-2, np.float32)
    write(folder / name.format(f"invvar-{band}"), ("", invvar, header(FILTER=band)))
    write(folder / name.format(f"nexp-{band}"), ("", marked(3), header(FILTER=band)))
    cards = header(FILTER=band, BUNIT="nanomaggy")
    return write(folder / name.format(f"image-{band}"), ("", pixels(band), cards))


def euclid(folder: Path, band: str) -> Path:
    kind = "VIS" if band == "g" else "NIR-H"
    name = "EUC_MER_{}_TILE102018211-{}_20241018T140741.124Z_00.00.fits"
    sky = header()
    fits.writeto(folder / name.format(f"MOSAIC-{kind}-RMS", "A1"), np.full(SHAPE, SIGMA, np.float32), sky)
    fits.writeto(folder / name.format(f"MOSAIC-{kind}-FLAG", "B2"), marked(1), sky)
    cards = header(FILTER=kind.replace("-", "_"), MAGZERO=24.6)
    fits.writeto(path := folder / name.format(f"BGSUB-MOSAIC-{kind}", "C3"), pixels(band), cards)
    return path


SURVEYS: dict[str, tuple[Callable[[Path, str], Path], tuple[str, ...], float]] = {
    "Rubin": (rubin, ("g", "r"), 31.4),
    "HSC": (hsc, ("g", "r"), 27.0),
    "DES": (des, ("g", "r"), 30.0),
    "Legacy": (legacy, ("g", "r"), 22.5),
    "Euclid": (euclid, ("VIS", "NIR_H"), 24.6),
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The name of a function of a PSF that differs by place and band."""
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path / 'model.py'}:psf"


@pytest.mark.parametrize("survey", SURVEYS)
def test_a_tile_is_what_is_cut_out_of_the_whole(survey: str, tmp_path: Path, model: str) -> None:
    """Pixels, weights, zero points and bands of a coadd in files of a survey's names and keywords."""
    layout, names, zero = SURVEYS[survey]
    folder = tmp_path / "coadd"
    folder.mkdir()
    files = tuple(str(layout(folder, band)) for band in BANDS)
    settings = SurveySettings(files, psf=model, tile=128, border=64)
    whole = settings.read((slice(0, SHAPE[0]), slice(0, SHAPE[1])))
    assert settings.shape == SHAPE and len(settings.tiles()) == 2
    for tile in settings.tiles():
        part = settings.read(tile.outer)
        assert part.bands == names
        assert part.zeropoints == pytest.approx([zero, zero], abs=1e-3)
        np.testing.assert_array_equal(part.images, [pixels(band)[tile.outer] for band in BANDS])
        weights = np.broadcast_to(np.where(marked(1) > 0, 0, SIGMA**-2), (2, *SHAPE))
        np.testing.assert_allclose(part.weights, weights[:, *tile.outer], rtol=1e-5)
        np.testing.assert_array_equal(part.weights, whole.weights[:, *tile.outer])
        y, x = tile.corner
        here = whole.wcs.pixel_to_world(x + 3.0, y + 2.0)
        assert here.separation(part.wcs.pixel_to_world(3.0, 2.0)).arcsec < 1e-6


def test_of_compressed_images_only_a_section_is_held(tmp_path: Path) -> None:
    """Of 4 MB in each of three parts a tile takes a small part."""
    data = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    parts = {"SCI": data, "MSK": np.zeros(data.shape, np.int32), "WGT": np.ones_like(data)}
    hdus = [fits.CompImageHDU(values, name=name) for name, values in parts.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "coadd.fits.fz")
    psf = gaussian((25, 25), 12, 12, 2.0)
    io.read(tmp_path / "coadd.fits.fz", psf=psf, section=(slice(0, 32), slice(0, 32)))  # imports
    tracemalloc.start()
    io.read(tmp_path / "coadd.fits.fz", psf=psf, section=(slice(900, 950), slice(900, 950)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < data.nbytes / 2


# PSFs by place


def shown(section: Any, sigma: float) -> None:
    """Whether the PSF of an observation is a Gaussian of this width."""
    place = (np.indices(section.psf[0].shape).T - np.array(section.psf[0].shape) // 2).T
    second = (section.psf[0] * place[1] ** 2).sum() / section.psf[0].sum()
    assert second**0.5 == pytest.approx(sigma, rel=0.02)


def test_a_function_is_called_at_the_middle_of_what_is_read(tmp_path: Path, model: str) -> None:
    """In pixels of the image it was cut from, the first being 0, for each band by its name."""
    files = tuple(str(hsc(tmp_path, band)) for band in BANDS)
    settings = SurveySettings(files, psf=model)
    observation = settings.read((slice(0, 11), slice(100, 121)))
    np.testing.assert_allclose(observation.psf[1], gaussian_psf(2 + 12110 / 20000 + 16005 / 50000), atol=1e-7)
    files = tuple(str(des(tmp_path, band)) for band in BANDS)
    observation = SurveySettings(files, psf=model).read((slice(0, 11), slice(100, 121)))
    np.testing.assert_allclose(observation.psf[0], gaussian_psf(1.5 + 110 / 20000 + 5 / 50000), atol=1e-7)


def gaussian_psf(sigma: float) -> np.ndarray:
    """(25,25) with a sum of 1."""
    r2 = ((np.indices((25, 25)) - 12) ** 2).sum(0)
    psf = np.exp(-r2 / (2 * sigma**2))
    return psf / psf.sum()


def test_another_function_is_another_run(tmp_path: Path, model: str) -> None:
    """The key is that of what the file says; so is the function that is called."""
    files = (str(des(tmp_path, "g")),)
    first = SurveySettings(files, psf=model)
    before, key = first.read((slice(0, 11), slice(0, 11))).psf, first.key
    (tmp_path / "model.py").write_text(MODEL.replace("1.5", "2.5"))
    second = SurveySettings(files, psf=model)
    assert second.key != key
    assert not np.allclose(second.read((slice(0, 11), slice(0, 11))).psf, before)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{}/none.py:psf", "expected a file or a module with the function"),
        ("no_such_module:psf", "expected a file or a module with the function"),
        ("__main__:psf", "expected a file or a module with the function"),
        ("{}/model.py:other", r"expected a function other \(x, y, band\) in .*model.py, received None"),
        ("{}/broken.py:psf", "expected a module that can be imported, received NameError"),
    ],
)
def test_functions_that_are_not_there_are_refused(text: str, line: str, tmp_path: Path, model: str) -> None:
    (tmp_path / "broken.py").write_text("psf = nothing\n")
    with pytest.raises(DataError, match=line):
        SurveySettings(("coadd.fits",), psf=text.format(tmp_path))


def test_what_a_function_gives_is_checked(tmp_path: Path) -> None:
    path = des(tmp_path, "g")
    for function, received in (
        (lambda x, y, band: np.ones(3), r"received shape \(3,\)"),
        (lambda x, y, band: 1 / 0, "received ZeroDivisionError"),
    ):
        with pytest.raises(
            DataError, match=rf"expected an image \(h, w\) from <lambda>\(99.5, 39.5, 'g'\), {received}"
        ):
            io.read(path, psf=function)


def test_psfex_models_beside_the_bands_of_a_tile(tmp_path: Path) -> None:
    """Each band has its own, as DES calls it, at the place of each section: wider to the right."""
    for band in BANDS:
        des(tmp_path, band)
        write_psfex(tmp_path / f"DES0102-4914_r2583p01_{band}_psfcat.psf", centre=100.0, POLSCAL1=100.0)
    settings = SurveySettings(tuple(str(path) for path in sorted(tmp_path.glob("*.fz"))))
    left, right = (settings.read((slice(0, 21), slice(x, x + 21))) for x in (0, 179))
    shown(left, 1.5 + 0.5 * 10.5 / 200)
    shown(right, 1.5 + 0.5 * 189.5 / 200)


def test_stamps_of_cells_beside_an_image(tmp_path: Path) -> None:
    """The cell nearest to a section's middle counts, by its place in the tract."""
    files = [hsc(tmp_path, band) for band in BANDS]
    for file in files:
        stamps = np.stack([gaussian_psf(sigma) for sigma in (1.5, 2.5)]).astype(np.float32)
        places = Table({"x": [12050.0, 12150.0], "y": [16040.0, 16040.0]})
        hdus = [fits.PrimaryHDU(stamps), fits.BinTableHDU(places, name="POSITIONS")]
        fits.HDUList(hdus).writeto(file.with_name(file.stem + "_psf.fits"))
    settings = SurveySettings(tuple(map(str, files)))
    for x, sigma in ((0, 1.5), (179, 2.5)):
        shown(settings.read((slice(0, 21), slice(x, x + 21))), sigma)
