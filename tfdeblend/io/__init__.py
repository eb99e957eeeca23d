"""Files in and out.

NPZ, never unpickled: `images` (C,H,W); `weights` (inverse variance, 0 = masked) or `variance`, either with `mask`
(booleans, True = masked; or integer bit planes) and `footprint` (True = masked), (C,H,W) or (H,W); `psfs` (C,h,w) or
(h,w); `filters` (C) names; optionally `zeropoints` (AB), `unit`, `wcs` (text of a header), `pixel_scale` (arcsec);
sources as `catalog` (structured: x, y, optionally kind, is_star, id) or `peaks` (N,2) of (x, y).

FITS: image SCI or IMAGE or the primary, (C,H,W) or (H,W); VAR or VARIANCE, or WHT; MASK, whose MP_ keys may name its
planes; PSF; table CATALOG with x, y or ra, dec; from the header the celestial WCS, BUNIT, MAGZERO or ZP, and the names
of bands from BANDS, FILTER, or FILTER1, FILTER2, ...

What is written for a scene is described in `tfdeblend.catalog.files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.io import images, npz, psfs
from tfdeblend.io.catalogs import read_catalog
from tfdeblend.io.inputs import find_inputs, scene_name

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = [
    "find_inputs",
    "read",
    "read_catalog",
    "scene_name",
]


def read(
    path: str | Path, psf: Any = None, mask_planes: Sequence[str | int] | None = None
) -> tuple[Observation, Table | None]:
    """Read an observation, and the catalogue of its sources where the file has one.

    Args:
        path: an NPZ or FITS file, told apart by content.
        psf: an array or a file in place of the PSF in `path`. None: that in the file, else `<name>_psf.fits` or the
            PSFEx model `<name>.psf` beside it. A PSFEx model is evaluated at the image's centre.
        mask_planes: names or bits of the planes of an integer mask that are masked. None: BAD, SAT, EDGE, SUSPECT,
            NO_DATA.

    Returns:
        The observation, named after the file, and the table as it stands in the file, or None.

    Raises:
        DataError: in one line by file and field, whatever is wrong with the file.
    """
    path = Path(path)
    name = scene_name(path)
    contents = (npz if psfs.content(path) == "npz" else images).load(path, mask_planes)
    fields = contents.fields
    if psf is None and fields["psf"] is None:
        psf = psfs.companion(path, name)
    if isinstance(psf, str | Path):
        psf = psfs.read_psf(Path(psf), fields["images"].shape[1:])
    if psf is not None:
        fields["psf"] = psf
    try:
        return Observation(name=name, notes=tuple(contents.notes), **fields), contents.catalog
    except DataError as error:
        raise DataError(path, contents.names.get(error.args[1], error.args[1]), *error.args[2:]) from error
