"""Files: scenes as NPZ and FITS, masks, PSFs, catalogues, TFRecords and JSON; what is written is written whole.

NPZ, never unpickled: `images` (C,H,W); `weights` (inverse variance, 0 = masked), `variance` or `sigma`, any of them
with `mask` (booleans, True = masked; or integer bit planes) and `footprint` (True = masked), (C,H,W) or (H,W); `psfs`
(C,h,w) or (h,w); `filters` (C) names; optionally `zeropoints` (AB), `unit`, `wcs` (text of a header), `pixel_scale`
(arcsec), `noise_correlation` (C,h,w) or (h,w), `saturated` (booleans, (C,H,W) or (H,W)); sources as `catalog`
(structured, with the columns of `tfdeblend.data.catalogs`) or `peaks` (N,2) of (x, y).

FITS: image SCI or IMAGE or the primary, (C,H,W) or (H,W), or one a band, as SCI_g, SCI_r or with a FILTER each; its
noise as VAR, ERR or WHT; MASK, whose MP_ keys may name its planes, or DQ, MSK, ...; PSF; NOISECORR; SATURATED (not 0 =
saturated); table CATALOG, as in NPZ; from the header the celestial WCS, without one PIXSCALE (arcsec), BUNIT,
zero points, and the names of bands from BANDS, BAND, FILTER, or FILTER1, FILTER2, ...

`tfdeblend.io.names` lists what surveys call these parts, `tfdeblend.io.masks` their bit planes, and
`tfdeblend.io.headers` their keywords. What is not understood is named in a note of the observation.

Of a field in several files the noise, the mask and the PSF that lie beside a FITS image are read with it, and bands in
files of their own are one observation: see `tfdeblend.io.companions`.

Files of results are described in `tfdeblend.catalog.files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError, as_path
from tfdeblend.io import fields, images, npz, psfs
from tfdeblend.io.companions import beside, find_inputs
from tfdeblend.io.contents import Contents, read_catalog
from tfdeblend.io.files import content, scene_name
from tfdeblend.io.reading import Reading

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.data.scene import Scene

__all__ = [
    "Reading",
    "find_inputs",
    "read",
    "read_catalog",
    "scene_name",
    "write",
]


def read(path: str | Path | Sequence[str | Path], **how: Any) -> tuple[Observation, Table | None]:
    """Read an observation, and the catalogue of its sources where the file has one.

    Args:
        path: an NPZ or FITS file, recognised by content; or several, of which each holds one band of the observation.
            What lies beside a FITS image is read with it (see `companions.beside`).
        how: the arguments of `Reading`, such as psf, bands or zeropoints, in place of what the file says.

    Returns:
        The observation, named after the file or the field, and the table as it stands in the first file that has one,
        or None.

    Raises:
        DataError: in one line by file and field, whatever is wrong with the file.
    """
    reading = Reading(**how)
    if not isinstance(path, list | tuple):
        return _read(as_path(path), reading)
    if not path:
        raise DataError("path", None, "expected a file, or those of several bands, received none")
    files = [as_path(each) for each in path]
    read = [
        _read(file, fields.reading_of(reading, files, number), number, len(files)) for number, file in enumerate(files)
    ]
    table = next((table for _, table in read if table is not None), None)
    return fields.as_one(files, [one for one, _ in read]), table


def _read(path: Path, reading: Reading, number: int = 0, count: int = 1) -> tuple[Observation, Table | None]:
    """Read one file, or the file of one band, by its number, of so many."""
    fields.refuse_map(path)
    others = beside(path)
    if content(path) == "npz":
        if reading.section is not None:
            raise DataError(path, "section", "expected a FITS image to read a section of, received an NPZ archive")
        contents = npz.load(path)
    else:
        contents = images.load(path, reading.section, reading.psf_section)
    fields.join(contents, others, reading.section)
    psf = _psf(contents, reading, next(iter(others.get("psf", ())), None))
    if count > 1 and psf is not None and np.ndim(psf) == 3 and len(psf) == count:
        psf = psf[number]
    return contents.observation(psf, reading), contents.catalog


def _psf(contents: Contents, reading: Reading, file: Path | None) -> Any:
    """The PSF that was given, of the file or beside it, on the image's pixels and at its place; notes go to contents.

    None: the contents' own, as it stands there. Errors are about the file of the PSF.
    """
    place = psfs.Place(
        contents.parts["images"].shape[1:],
        contents.pixel_scale(reading),
        contents.position if reading.psf_position is None else reading.psf_position,
    )
    notes: list[str] = []
    psf, own = reading.psf, contents.parts["psf"]
    if psf is None and own is not None and contents.psf_header is not None:
        psf = psfs.on_pixels(contents.path, "PSF", own, contents.psf_header, place, notes)
    elif psf is None and own is None:
        psf = file
    elif own is not None and psf is not None:
        notes.append("PSF as given, not the file's own")
    if callable(psf):
        contents.names = {**contents.names, "psf": getattr(psf, "__name__", "psf")}
        return psfs.evaluate_function(contents.path, psf, contents.bands(reading), place)
    if isinstance(psf, str | Path):
        contents.names = {**contents.names, "psf": Path(psf).name}
        psf = psfs.read_psf(Path(psf), place, notes, named=reading.psf is not None)
    if getattr(own if psf is None else psf, "ndim", 0) == 2 and len(contents.parts["images"]) > 1:
        notes.append("one PSF is given for all bands")
    contents.notes += tuple(notes)
    return psf


def write(scene: Scene, path: str | Path, **more: np.ndarray) -> None:
    """Write a scene, whole or not at all, over any file of that name; `Scene.read` reads it back equal.

    Not kept are the name, which is the file's, and the notes; in FITS, where there is a WCS, the pixel scale is that of
    the WCS.

    Args:
        path: an NPZ archive where it ends in .npz, else a FITS file. Missing folders are made.
        more: further arrays to keep under their names (in FITS in capitals), such as the truth of a simulation; one
            called `catalog`, structured, takes the place of the table of the scene's sources.

    Raises:
        DataError: a scene of several observations, as a file holds one; text that FITS cannot hold. OSError: the file
            cannot be written.
    """
    path, count = as_path(path), len(scene.observations)
    if count > 1:
        raise DataError(scene.name, "observations", f"expected one, as a file holds one, received {count}")
    if path.suffix.lower() == ".npz":
        npz.write(path, {**npz.scene_arrays(scene), **more})
    else:
        images.write(scene, path, more)
