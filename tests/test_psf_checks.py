"""One origin for all bands, and what cannot be right about a PSF: by profiles whose centre and wings are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import galsim
import numpy as np
import pytest
from helpers import gaussian

from tfdeblend.data.psf import centroid, psf_center
from tfdeblend.data.psf_checks import as_psf, last_level, light_beyond
from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.scenes import SceneConfig, Simulator
from tfdeblend.simulation.surveys import SURVEYS

SIDE = 31


def moffat(width: float, side: int = SIDE, offset: tuple[float, float] = (0.0, 0.0), beta: float = 3.0) -> np.ndarray:
    """(side, side) as pixels see it, of FWHM `width` and `offset` (y, x) pixels; its sum lacks what lies beyond."""
    profile = galsim.Convolve(galsim.Moffat(beta=beta, fwhm=width), galsim.Pixel(1.0))
    return profile.drawImage(nx=side, ny=side, scale=1.0, offset=offset[::-1], method="no_pixel").array.astype(float)


def checked(
    *bands: np.ndarray, scale: float | None = None, notes: tuple[str, ...] = ()
) -> tuple[np.ndarray, list[str]]:
    """The PSF of bands g, r, ..., each divided by its sum, as an observation has it, and all notes."""
    noted = list(notes)
    psf = as_psf("blend", np.stack([band / band.sum() for band in bands]), tuple("grizy"[: len(bands)]), scale, noted)
    return psf, noted


@pytest.mark.parametrize("width", [1.0, 1.5, 2.5, 4.0, 8.0])
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.1, 0.25), (0.5, 0.5), (-1.3, 0.4)])
def test_centroid_is_where_the_profile_is(width: float, offset: tuple[float, float]) -> None:
    """In noise and beside a faint neighbour too."""
    psf = moffat(width, 41, offset)
    found = np.array(centroid(psf)) - 20 - offset
    assert np.hypot(*found) < (0.01 if width > 1 else 0.06)
    psf += np.random.default_rng(0).normal(scale=2e-3 * psf.max(), size=psf.shape)
    psf += 0.02 * psf.max() * moffat(3.0, 41, (14, -14)) / moffat(3.0, 41).max()
    assert np.hypot(*(np.array(centroid(psf)) - 20 - offset)) < (0.03 if width > 1 else 0.07)


@pytest.mark.parametrize("offset", [(0.0, 0.31), (-0.4, 0.3), (1.0, 0.0), (2.6, -3.3)])
def test_a_band_off_its_middle_is_moved_there_with_a_note(offset: tuple[float, float]) -> None:
    middle, (dy, dx) = SIDE // 2, offset
    psf, notes = checked(*(gaussian((SIDE, SIDE), middle + y, middle + x, 2.0) for y, x in ((0.0, 0.0), offset)))
    np.testing.assert_allclose(psf[1], psf[0], atol=2e-6)  # the peak is 0.04
    assert notes == [f"PSF shifted to its stamp's middle: it was off by (x, y) {dx:+.2f}, {dy:+.2f} pixel in r"]
    np.testing.assert_array_equal(as_psf("blend", psf, ("g", "r"), None, notes), psf)
    assert len(notes) == 1


@pytest.mark.parametrize("width", [3.0, 5.0])
def test_small_stamps_are_centred_too(width: float) -> None:
    """Though the window of the centroid reaches out of them."""
    psf, _ = checked(moffat(width, 9), moffat(width, 9, (0.3, -0.4)))
    np.testing.assert_allclose([centroid(band) for band in psf], 4, atol=0.06)
    np.testing.assert_array_equal(as_psf("blend", psf, ("g", "r"), None, []), psf)


def test_a_psf_too_narrow_for_a_shift_stays_as_it_is() -> None:
    given = gaussian((SIDE, SIDE), SIDE // 2 + 0.4, SIDE // 2 - 0.4, 0.35)
    psf, notes = checked(given)
    np.testing.assert_allclose(psf[0], given / given.sum(), rtol=1e-5, atol=1e-9)
    assert "PSF too narrow to be shifted to its stamp's middle" in [note.split(":")[0] for note in notes]
    np.testing.assert_array_equal(as_psf("blend", psf, ("g",), None, []), psf)


def test_a_doubt_is_noted_once() -> None:
    """Also where a note of one band's file has become one of the field's."""
    psf, notes = checked(moffat(4.0, 13), moffat(4.0, 13))
    (note,) = notes
    for before in ([note], [f"r.fits: {note}"]):
        again = [*before]
        as_psf("blend", psf, ("g", "r"), None, again)
        assert again == before


@pytest.mark.parametrize(("offset", "moved"), [(0.08, False), (0.2, True)])
def test_small_offsets_are_not_noted(offset: float, moved: bool) -> None:
    psf, notes = checked(moffat(4.0), moffat(4.0, offset=(0.0, offset)))
    assert notes == []
    np.testing.assert_allclose(centroid(psf[1])[1], SIDE // 2 + (0 if moved else offset), atol=2e-3)


@pytest.mark.parametrize("place", [14.5, 15.0])
def test_both_conventions_of_even_sides_are_kept(place: float) -> None:
    """Between the middle pixels, or on pixel size / 2; bands of one cube agree on one of them."""
    off, wide = place - 14.5, gaussian((30, 30), place, place, 3.0)
    psf, notes = checked(moffat(4.0, 30, (off, off)), wide)
    np.testing.assert_allclose(psf[1], (wide / wide.sum()), rtol=1e-6)
    assert notes == []
    assert psf_center(psf) == (place, place)
    mixed, notes = checked(moffat(4.0, 30, (off, off)), wide, moffat(4.0, 30, (0.5 - off, 0.5 - off)))
    assert psf_center(mixed) == (place, place)
    np.testing.assert_allclose([centroid(band) for band in mixed], place, atol=5e-3)
    assert len(notes) == 1


@pytest.mark.parametrize("beta", [2.5, 3.0, 3.5])
@pytest.mark.parametrize(("width", "side"), [(4.0, 15), (4.0, 17), (2.5, 13)])
def test_a_psf_that_is_cut_off_is_noted_with_the_light_that_is_missing(beta: float, width: float, side: int) -> None:
    """To a factor of 2, whether the stamp is small or padded with zeros."""
    psf = moffat(width, side, beta=beta)
    missing, found = 1 - psf.sum(), light_beyond(psf / psf.sum())
    assert found is not None
    assert missing / 2 < found < missing * 2
    for stamp in (psf, np.pad(psf, 8)):
        notes = checked(stamp)[1]
        assert [note.split(":")[0] for note in notes] == ["PSF cut off before its wings end"]
        assert f"at {last_level(psf):.2%} of its peak" in notes[0]
    assert f"(about {found:.1%} of its light is missing) in g" in checked(psf)[1][0]
    assert checked(moffat(width, 61, beta=beta))[1] == []


@pytest.mark.parametrize(
    ("psf", "scale", "note"),
    [
        (moffat(4.0) - 0.05 * np.roll(moffat(4.0), 9, 0), None, "PSF negative: down to -4"),
        (moffat(0.1), None, "PSF narrower than pixels can show: FWHM 1.23 pixels in g"),
        (
            moffat(4.0),
            5.6e-5,
            "PSF of a width that no telescope has, for pixels of 5.6e-05 arcsec: FWHM 0.00023 arcsec",
        ),
        (moffat(4.0), 10.0, "PSF of a width that no telescope has, for pixels of 10 arcsec: FWHM 41 arcsec in g"),
    ],
)
def test_what_is_noted(psf: np.ndarray, scale: float | None, note: str) -> None:
    assert any(line.startswith(note) for line in checked(psf, scale=scale)[1]), checked(psf, scale=scale)[1]


STAMP = moffat(4.0) / moffat(4.0).sum()


@pytest.mark.parametrize(
    ("psf", "line"),
    [
        (None, "expected an array (bands, height, width), received none"),
        ("star.fits", "expected an array (bands, height, width), received the name of a file; read it with the image:"),
        (
            galsim.Moffat(beta=3, fwhm=0.8),
            "expected an array, received a profile, Moffat; draw it as the image's pixels",
        ),
        (np.zeros((9, 9)), "expected a sum of 1 within 5% in band g, received 0; divide each band by its sum"),
        (STAMP / STAMP.max(), "expected a sum of 1 within 5% in band g, received 24.9"),
        (np.fft.ifftshift(STAMP), "expected the inner half of the stamp to hold most light in band g, received 0%"),
        (np.full((12, 12), 1 / 144), "expected the inner half of the stamp to hold most light in band g, received 25%"),
        (1.4 * STAMP - 0.4 * np.roll(STAMP, 9, 0), "expected no values below 0 but of noise in band g, received -"),
    ],
    ids=["none", "file", "profile", "zeros", "peak 1", "origin first", "flat", "negative"],
)
def test_what_is_refused(psf: Any, line: str) -> None:
    with pytest.raises(DataError) as caught:
        as_psf("blend", psf, ("g",), None, [])
    assert str(caught.value).startswith(f"blend: psf: {line}")


@pytest.mark.parametrize("name", SURVEYS)
def test_simulated_psfs_pass_as_they_are(name: str) -> None:
    survey = SURVEYS[name]
    psfs, notes = Simulator(SceneConfig(survey, Population())).psfs, list[str]()
    np.testing.assert_array_equal(as_psf("blend", psfs, survey.bands, survey.pixel_scale, notes), psfs)
    assert notes == []


def test_real_psfs_pass_as_they_are(data: Path) -> None:
    for path in sorted((data / "hsc_blends").glob("*.npz")):
        with np.load(path) as file:
            psfs, notes = file["psfs"].astype(np.float32), list[str]()
        np.testing.assert_array_equal(as_psf("blend", psfs, tuple("grizy"), 0.168, notes), psfs)
        assert notes == []
