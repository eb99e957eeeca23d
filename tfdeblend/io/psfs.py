"""Point-spread functions from files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.errors import DataError
from tfdeblend.io import images
from tfdeblend.io.files import content, parsing
from tfdeblend.io.npz import Archive

PSFEX = "PSF_DATA"  # the table of a PSFEx model


def read_psf(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read the PSF in a file: (C,h,w), or (h,w) for all bands, as it stands there.

    Args:
        path: NPZ with `psfs`, FITS with an image in extension PSF or in the primary, or a PSFEx model (.psf), which is
            evaluated at the centre of the image.
        shape: (H,W) of the image.

    Raises:
        DataError: by file and field, for a file that is missing or broken or holds no PSF.
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
    """Draw the PSFEx model of an HDU on image pixels: (n,n) with n odd, summing to 1.

    Args:
        path: for messages.
        table: the open HDU, with columns and header as PSFEx writes them.
        position: (x, y) in the image, the first pixel's centre being (1, 1) as in FITS.

    Raises:
        DataError: a model that GalSim cannot read.
    """
    import galsim.des

    with parsing(path, PSFEX):
        model = galsim.des.DES_PSFEx(table)
        profile = model.getPSF(galsim.PositionD(*position))
        side = 2 * int(max(model.basis.shape[1:]) * model.sample_scale / 2) + 1
        # PSFEx models the PSF as pixels record it: convolving with the pixel again would widen it.
        psf = profile.drawImage(nx=side, ny=side, scale=1.0, method="no_pixel").array.astype(float)
        return psf / psf.sum()
