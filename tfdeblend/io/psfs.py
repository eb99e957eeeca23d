"""Point-spread functions from files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.errors import DataError
from tfdeblend.io import images
from tfdeblend.io.npz import Archive
from tfdeblend.io.parsing import parsing

PSFEX = "PSF_DATA"  # the table of a PSFEx model


def read_psf(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The PSF in a file: (C,h,w), or (h,w) for all bands.

    Args:
        path: NPZ with `psfs`, FITS with an image in extension PSF or in the primary, or a PSFEx model (.psf), which is
            evaluated at the centre of the image.
        shape: (H,W) of the image.

    Raises:
        DataError: by file and field.
    """
    if content(path) == "npz":
        with Archive(path) as archive:
            return archive.need("psfs")
    with images.opened(path) as hdus:
        psfex = images.find(hdus, (PSFEX,), images.TABLE_HDUS)
        if psfex is not None:
            return evaluate_psfex(path, psfex, ((shape[1] + 1) / 2, (shape[0] + 1) / 2))
        for hdu in (images.find(hdus, ("PSF",)), *hdus):
            if isinstance(hdu, images.IMAGE_HDUS) and hdu.header.get("NAXIS", 0) > 0:
                return images.pixels(path, hdu)
    raise DataError(path, "PSF", "expected an image in PSF or the primary, or a PSFEx model, received neither")


def evaluate_psfex(path: Path, table: Any, position: tuple[float, float]) -> np.ndarray:
    """(n,n) with n odd: the PSFEx model of an HDU, on image pixels.

    Args:
        path: for messages.
        table: the open HDU, with columns and header as PSFEx writes them.
        position: (x, y) in the image, the first pixel's centre being (1, 1) as in FITS.
    """
    import galsim.des

    with parsing(path, PSFEX):
        model = galsim.des.DES_PSFEx(table)
        profile = model.getPSF(galsim.PositionD(*position))
        side = 2 * int(max(model.basis.shape[1:]) * model.sample_scale / 2) + 1
        # The model holds the PSF as it falls on pixels, so that no pixel is to be convolved with again.
        psf = profile.drawImage(nx=side, ny=side, scale=1.0, method="no_pixel").array.astype(float)
        return psf / psf.sum()


def content(path: Path) -> str:
    """ "npz" or "fits", by the first bytes of the file."""
    if path.is_dir() or not path.exists():
        received = "a folder" if path.is_dir() else "none"
        raise DataError(path, "file", f"expected an NPZ or FITS file, received {received}")
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DataError(path, "file", f"expected a readable file, received {error.strerror}") from error
    if start.startswith(b"PK"):
        return "npz"
    if start == b"SIMPLE" or start.startswith(b"\x1f\x8b"):
        return "fits"
    received = "an empty file" if not start else "other content"
    raise DataError(path, "file", f"expected an NPZ or FITS file, received {received}")


def companion(path: Path, stem: str) -> Any:
    """The PSF file beside an image, `<stem>_psf.fits` or `<stem>.psf`, or None."""
    for name in (f"{stem}_psf.fits", f"{stem}.psf"):
        if (path.parent / name).is_file():
            return path.parent / name
    return None
