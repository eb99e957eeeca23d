"""Reading: what the user says of a file beside what the file says itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reading:
    """Says how a file is read. What is given here takes the place of what the file says, with a note.

    Args:
        psf: an array, a file, or a function (x, y, band) that gives the image (h,w) of a band's PSF at a pixel, of the
            image that `psf_position` is in, the first one's centre being (0, 0). None: the PSF in the file, else
            `<name>_psf.fits` or the PSFEx model `<name>.psf` beside it.
        psf_position: (x, y) of the image's centre in the image that a varying PSF model was made for, its first pixel
            being (1, 1). None: by the LTV1 and LTV2 keywords, else the image's own centre.
        mask_planes: names or bits of the planes of an integer mask that are masked. None: BAD, SAT, EDGE, SUSPECT,
            NO_DATA.
        bands: their names, in order.
        zeropoints: AB magnitude of flux 1: one number for all bands, or one for each band by its name.
        pixel_scale: arcsec.
        section: (rows, columns), two slices of a larger image: it alone is read. A PSF that varies is the one at its
            middle. None: the whole image.
        psf_section: the section at whose middle such a PSF is taken in its place.
    """

    psf: Any = None
    psf_position: tuple[float, float] | None = None
    mask_planes: Sequence[str | int] | None = None
    bands: Sequence[str] | None = None
    zeropoints: float | Mapping[str, float] | None = None
    pixel_scale: float | None = None
    section: tuple[slice, slice] | None = None
    psf_section: tuple[slice, slice] | None = None
