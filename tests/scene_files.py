"""Small, valid scenes as NPZ and FITS files, for the tests of reading to alter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from helpers import gaussian

SHAPE = (3, 24, 20)
BANDS = ("g", "r", "i")
XY = np.array([[5.0, 6.0], [12.0, 16.0]])


def arrays() -> dict[str, Any]:
    """The arrays of an NPZ scene: two sources in three bands, noise of sigma 0.1."""
    rng = np.random.default_rng(1)
    truth = sum(50 * gaussian(SHAPE[1:], y, x, 1.5) for x, y in XY)
    return {
        "images": (truth + rng.normal(scale=0.1, size=SHAPE)).astype(np.float32),
        "weights": np.full(SHAPE, 100, np.float32),
        "psfs": np.stack([gaussian((15, 15), 7, 7, 1.5)] * 3) / gaussian((15, 15), 7, 7, 1.5).sum(),
        "filters": np.array(BANDS),
        "peaks": XY,
    }


def celestial() -> WCS:
    """0.2 arcsec a pixel, north up."""
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = 10.5, 12.5
    wcs.wcs.crval = 150.0, 2.0
    wcs.wcs.cdelt = -0.2 / 3600, 0.2 / 3600
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    return wcs


def extensions() -> dict[str, Any]:
    """The parts of a FITS scene by name, in an order such that any truncation loses the PSF."""
    content = arrays()
    return {
        "SCI": content["images"],
        "VAR": 1 / content["weights"],
        "MASK": np.zeros(SHAPE, np.int32),
        "CATALOG": Table({"x": XY[:, 0], "y": XY[:, 1]}),
        "PSF": content["psfs"].astype(np.float32),
    }


def write_npz(path: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    content = {**arrays(), **changes}
    np.savez(path, **{key: value for key, value in content.items() if key not in without})
    return path


def write_fits(
    path: Path, without: tuple[str, ...] = (), header: dict[str, Any] | None = None, wcs: bool = True, **changes: Any
) -> Path:
    """A FITS scene; `header` goes into SCI, keys such as "MASK:MP_BAD" into another extension."""
    content = {name: data for name, data in {**extensions(), **changes}.items() if name not in without}
    hdus = fits.HDUList([fits.PrimaryHDU(), *_hdus(content)])
    if wcs and "SCI" in hdus:
        hdus["SCI"].header.update(celestial().to_header())
    for key, value in (header or {}).items():
        extension, _, keyword = key.rpartition(":")
        hdus[extension or "SCI"].header[keyword] = value
    hdus.writeto(path, overwrite=True)
    return path


def _hdus(content: dict[str, Any]) -> Iterator[Any]:
    for name, data in content.items():
        hdu = fits.table_to_hdu(data) if isinstance(data, Table) else fits.ImageHDU(data)
        hdu.name = name
        yield hdu


def write_psfex(path: Path, sampling: float = 1.0, centre: float = 5000.0, **changes: Any) -> Path:
    """A model whose width grows linearly with x, from the left to the right of a tile, as PSFEx writes it."""
    size, span = 61, 5000.0
    narrow, wide = (gaussian((size, size), size // 2, size // 2, sigma / sampling) for sigma in (1.5, 2.0))
    basis = np.stack([(narrow + wide) / 2, (wide - narrow) / 2, 0 * narrow])[np.newaxis].astype(np.float32)
    column = fits.Column("PSF_MASK", f"{basis.size}E", dim=f"({size},{size},3)", array=basis)
    hdu = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    hdu.header.update(POLNAXIS=2, POLGRP1=1, POLNAME1="X_IMAGE", POLZERO1=centre, POLSCAL1=span, POLGRP2=1)
    hdu.header.update(POLNAME2="Y_IMAGE", POLZERO2=centre, POLSCAL2=span, POLNGRP=1, POLDEG1=1, PSF_SAMP=sampling)
    hdu.header.update(PSFNAXIS=3, PSFAXIS1=size, PSFAXIS2=size, PSFAXIS3=3, **changes)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path
