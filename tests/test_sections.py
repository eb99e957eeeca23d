"""Sections of large images, read alone: the same as cut out of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tfdeblend import io
from tfdeblend.errors import DataError

SHAPE, SECTION = (90, 70), (slice(20, 64), slice(3, 51))


def header(**cards: object) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [35.5, 45.5]
    wcs.wcs.cd = np.array([[-0.2, 0.01], [0.01, 0.2]]) / 3600
    found = wcs.to_header()
    found.update(cards)
    return found


def write(path: Path, bands: int, compressed: bool) -> Path:
    """An image with its variance, a mask of bit planes and one PSF a band."""
    rng, kind = np.random.default_rng(bands), fits.CompImageHDU if compressed else fits.ImageHDU
    shape = SHAPE if bands == 1 else (bands, *SHAPE)
    y, x = np.indices((15, 15)) - 7
    psf = np.exp(-(y**2 + x**2) / (2 * 1.6**2)).astype(np.float32)
    card = header(BANDS="gri"[:bands], MAGZERO=27.0)
    mask = (rng.random(SHAPE) < 0.02).astype(np.int16)
    hdus = [
        kind(rng.normal(size=shape).astype(np.float32), card, name="IMAGE"),
        kind(rng.uniform(0.8, 1.2, shape).astype(np.float32), name="VARIANCE"),
        fits.ImageHDU(mask, fits.Header([("MP_BAD", 0)]), name="MASK"),
        fits.ImageHDU(psf / psf.sum(), name="PSF"),
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


@pytest.mark.parametrize(("bands", "compressed"), [(1, False), (3, False), (1, True)])
def test_a_section_is_what_is_cut_out_of_the_whole(tmp_path: Path, bands: int, compressed: bool) -> None:
    """Pixels, weights, and the place on the sky."""
    path = write(tmp_path / "coadd.fits", bands, compressed)
    (whole, _), (part, _) = io.read(path), io.read(path, section=SECTION)
    for name in ("images", "weights"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:, *SECTION])
    assert part.bands == whole.bands
    np.testing.assert_array_equal(part.psf, whole.psf)
    rows, columns = SECTION
    sky = whole.wcs.pixel_to_world(columns.start + 4.0, rows.start + 7.0)
    assert sky.separation(part.wcs.pixel_to_world(4.0, 7.0)).arcsec < 1e-6


def test_bands_in_files_of_their_own_are_read_by_section(tmp_path: Path) -> None:
    """The variance beside an image is cut like it."""
    for band in "gr":
        rng = np.random.default_rng(ord(band))
        card = header(MAGZERO=27.0)
        fits.writeto(tmp_path / f"field_{band}.fits", rng.normal(size=SHAPE), card)
        fits.writeto(tmp_path / f"field_{band}_var.fits", rng.uniform(0.8, 1.2, SHAPE))
    files = sorted(path for path in tmp_path.glob("field_?.fits"))
    psf = write(tmp_path / "psf.fits", 1, False)
    (whole, _), (part, _) = io.read(files, psf=psf), io.read(files, psf=psf, section=SECTION)
    np.testing.assert_array_equal(part.images, whole.images[:, *SECTION])
    np.testing.assert_array_equal(part.weights, whole.weights[:, *SECTION])


def test_a_section_beyond_the_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "coadd.fits", 1, False)
    with pytest.raises(DataError, match=r"expected a section inside of 90 x 70 pixels, received 60:91"):
        io.read(path, section=(slice(60, 91), slice(0, 70)))


def test_parts_of_another_shape_are_refused(tmp_path: Path) -> None:
    """A section shows no less than the whole that its parts do not belong together."""
    path = write(tmp_path / "coadd.fits", 1, False)
    with fits.open(path) as hdus:
        hdus["VARIANCE"].data = np.ones((100, 80), np.float32)
        hdus.writeto(tmp_path / "other.fits")
    with pytest.raises(DataError, match="VARIANCE: expected pixels as of IMAGE"):
        io.read(tmp_path / "other.fits", section=SECTION)
