"""Deblended scenes as FITS files, and catalogues of many scenes.

One file a scene, `(bands, height, width)` as in NumPy:

    primary       header only: SCENE, BUNIT, PIXSCALE, and `Deblended.header`, keys in capitals
    MODEL         (C,H,W) the rendered scene, background included
    RESIDUAL      (C,H,W) data - model, masked pixels NaN
    SOURCES       (K,C,H,W) each source as observed
    SOURCES_STD   (K,C,H,W) its posterior standard deviation, where sampled
    STAMPS        (K,C,P,P) each source in the model frame, whose pixel grid is the image's, as is the WCS of the
                  header: stamp pixel (0, 0) of source k is image pixel (stamp_x0, stamp_y0) of CATALOG
    PRIORSHARE    (K,C,P,P) variance of the samples over the prior's: near 0 the data decide, near 1 the prior does
    SAMPLES       (S,K,C,P,P) posterior samples in the model frame, on request
    REAPPORTIONED (K,C,H,W) the data shared out in proportion to the models
    FLUXCOV       (C,K,K) covariance of the sources' fluxes
    CATALOG       a row a source
    UNDECLARED    x, y, snr of what is left on the residual and no source accounts for

and, so that the file can be read back whole:

    IMAGES, WEIGHTS (C,H,W), PSF (C,h,w)  the observation
    NOISECORR (C,h,w), SATURATED (C,H,W)  of the observation, where it has them
    CORNERS       (K,2) the (y, x) of the image pixel under pixel [0, 0] of each stamp
    BANDS         a row a band: band, background, and zeropoint where known
    DECLARED      x, y, kind, id of the sources as they were before the fit
    NOTES         warnings of reading, a row each
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from tfdeblend.catalog.result import Deblended
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io import images
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.files import parsing

CATALOG_FORMATS = {".ecsv": "ascii.ecsv", ".parquet": "parquet", ".fits": "fits"}
STRUCTURAL = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "SCENE", "BUNIT", "PIXSCALE", "COMMENT", "HISTORY", "")


def write_fits(deblended: Deblended, path: str | Path, more: Sequence[fits.ImageHDU | fits.BinTableHDU] = ()) -> None:
    """Write a result, whole or not at all, over any file of that name; the extensions are listed above.

    more: extensions to come after.
    """
    hdus = fits.HDUList([_primary(deblended), *_image_hdus(deblended), *_table_hdus(deblended), *more])
    with written_whole(Path(path)) as temporary, temporary.open("wb") as file:
        _write_hdus(hdus, file)


def _write_hdus(hdus: fits.HDUList, file: BinaryIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # of long keywords, which become HIERARCH cards
        hdus.writeto(file)


def _primary(deblended: Deblended) -> fits.PrimaryHDU:
    observation = deblended.scene.observation
    header = fits.Header()
    own = {"scene": deblended.scene.name, "bunit": observation.unit, "pixscale": observation.pixel_scale}
    for key, value in {**deblended.header, **own}.items():
        if value is not None:
            keyword = key.upper() if len(key) <= 8 else f"HIERARCH {key.upper()}"
            header[keyword] = _card_value(value)
    return fits.PrimaryHDU(header=header)


def _card_value(value: Any) -> Any:
    """FITS headers hold ASCII text and finite numbers only."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return " ".join(value.encode("ascii", "replace").decode().split())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _image_hdus(deblended: Deblended) -> list[fits.ImageHDU]:
    observation = deblended.scene.observation
    wcs = None if observation.wcs is None else observation.wcs.to_header(relax=True)
    on_sky = {
        "MODEL": deblended.model,
        "RESIDUAL": deblended.residual.astype(np.float32),
        "SOURCES": deblended.sources,
        "SOURCES_STD": deblended.sources_std,
        "STAMPS": deblended.stamps,
        "PRIORSHARE": deblended.prior_share,
        "SAMPLES": deblended.samples,
        "REAPPORTIONED": deblended.reapportioned,
        "IMAGES": observation.images,
        "WEIGHTS": observation.weights,
    }
    plain = {"FLUXCOV": deblended.flux_cov, "CORNERS": np.asarray(deblended.corners), "PSF": observation.psf}
    if observation.noise_correlation is not None:
        plain["NOISECORR"] = observation.noise_correlation
    if observation.saturated is not None:
        plain["SATURATED"] = observation.saturated.astype(np.uint8)
    hdus = [image_hdu(data, name, wcs, observation.unit) for name, data in on_sky.items() if data is not None]
    return hdus + [fits.ImageHDU(data, name=name) for name, data in plain.items()]


def image_hdu(data: np.ndarray, name: str, wcs: fits.Header | None, unit: str | None) -> fits.ImageHDU:
    """An image on the sky, in `unit` but for those that have none."""
    hdu = fits.ImageHDU(data, wcs, name=name)
    if unit is not None and not name.startswith(("WEIGHTS", "PRIORSHARE")):
        hdu.header["BUNIT"] = _card_value(unit)
    return hdu


def _table_hdus(deblended: Deblended) -> list[fits.BinTableHDU]:
    scene = deblended.scene
    bands = Table({"band": list(scene.observation.bands), "background": np.asarray(deblended.background, float)})
    if scene.observation.zeropoints is not None:
        bands["zeropoint"] = scene.observation.zeropoints
    rows = [(source.x, source.y, source.kind, source.id) for source in scene.sources]
    declared = Table(rows=rows, names=("x", "y", "kind", "id"))
    tables = {"CATALOG": deblended.catalog, "UNDECLARED": deblended.undeclared, "BANDS": bands, "DECLARED": declared}
    if scene.observation.notes:
        tables["NOTES"] = Table({"note": list(scene.observation.notes)})
    return [table_hdu(table, name) for name, table in tables.items() if table is not None]


def table_hdu(table: Table, name: str) -> fits.BinTableHDU:
    hdu = fits.table_to_hdu(_ascii(table))
    hdu.name = name
    return hdu


def _ascii(table: Table) -> Table:
    """A copy without metadata, of which FITS can hold all text."""
    table = Table(table, copy=True)
    table.meta.clear()
    for name in table.colnames:
        if table[name].dtype.kind == "U":
            table[name] = np.char.encode(np.asarray(table[name]), "ascii", "replace")
    return table


def read_fits(path: str | Path) -> Deblended:
    """Read a result back, as `write_fits` wrote it; keys of `header` come back in small letters.

    Raises:
        DataError: by file and extension, where one is missing or broken.
    """
    path = Path(path)
    if path.suffix == ".npz":
        raise DataError(path, "file", "expected a deblended scene as FITS, received an NPZ archive, which holds scenes")
    with images.opened(path) as hdus:
        contents = _Result(path, hdus)
        scene = _read_scene(contents)
        catalog = contents.table("CATALOG")
        if len(catalog) != len(scene.sources):
            expected = f"expected {len(scene.sources)} rows, as in DECLARED"
            raise DataError(path, "CATALOG", f"{expected}, received {len(catalog)}")
        return Deblended(
            scene=scene,
            model=contents.image("MODEL"),
            sources=contents.image("SOURCES"),
            stamps=contents.image("STAMPS"),
            corners=contents.image("CORNERS"),
            background=np.asarray(contents.table("BANDS")["background"], float),
            flux_cov=contents.image("FLUXCOV"),
            catalog=catalog,
            header=_read_header(path, hdus[0]),
            undeclared=contents.table("UNDECLARED") if "UNDECLARED" in hdus else None,
            prior_share=contents.image("PRIORSHARE") if "PRIORSHARE" in hdus else None,
            samples=contents.image("SAMPLES") if "SAMPLES" in hdus else None,
            sources_std=contents.image("SOURCES_STD") if "SOURCES_STD" in hdus else None,
        )


class _Result:
    """The extensions of a result by name; a missing one is a DataError."""

    def __init__(self, path: Path, hdus: fits.HDUList) -> None:
        self.path, self.hdus = path, hdus

    def hdu(self, name: str) -> Any:
        if name not in self.hdus:
            raise DataError(self.path, name, "expected this extension of a deblended scene, received none")
        return self.hdus[name]

    def image(self, name: str) -> np.ndarray:
        data = np.asarray(images.pixels(self.path, self.hdu(name)))
        return data.astype(data.dtype.newbyteorder("="))

    def table(self, name: str) -> Table:
        hdu = self.hdu(name)
        with parsing(self.path, name):
            table = Table.read(hdu, format="fits", mask_invalid=False)
            table.convert_bytestring_to_unicode()
        table.meta.clear()
        return table


def _read_header(path: Path, primary: Any) -> dict[str, Any]:
    with parsing(path, "header"):
        return {key.lower(): value for key, value in primary.header.items() if key not in STRUCTURAL}


def _read_scene(contents: _Result) -> Scene:
    path, primary = contents.path, contents.hdus[0].header
    bands = contents.table("BANDS")
    weights = contents.hdu("WEIGHTS")
    notes = tuple(str(note) for note in contents.table("NOTES")["note"]) if "NOTES" in contents.hdus else ()
    observation = Observation(
        images=contents.image("IMAGES"),
        weights=contents.image("WEIGHTS"),
        psf=contents.image("PSF"),
        bands=tuple(str(band) for band in bands["band"]),
        name=str(primary.get("SCENE", path.stem)),
        wcs=images.celestial_wcs(path, weights.header),
        zeropoints=np.asarray(bands["zeropoint"], float) if "zeropoint" in bands.colnames else None,
        unit=primary.get("BUNIT"),
        pixel_scale=primary.get("PIXSCALE"),
        noise_correlation=contents.image("NOISECORR") if "NOISECORR" in contents.hdus else None,
        saturated=contents.image("SATURATED") > 0 if "SATURATED" in contents.hdus else None,
        notes=notes,
    )
    return Scene.from_catalog(observation, contents.table("DECLARED"))


def write_catalog(tables: Mapping[str, Table] | Sequence[Table], path: str | Path) -> None:
    """Join catalogues and write them, whole or not at all.

    Args:
        tables: by scene, whose name becomes the first column, `scene`; or tables that hold this column already.
        path: .ecsv, .parquet (needs pyarrow) or .fits.

    Raises:
        DataError: another suffix, no tables, a table without `scene`, no pyarrow.
    """
    path = Path(path)
    if path.suffix not in CATALOG_FORMATS:
        raise DataError(path, "suffix", f"expected one of {', '.join(CATALOG_FORMATS)}, received {path.suffix!r}")
    joined = _join(path, tables)
    with written_whole(path) as temporary:
        try:
            joined.write(temporary, format=CATALOG_FORMATS[path.suffix])
        except ImportError as error:
            raise DataError(path, "format", "expected the package pyarrow, which is not installed") from error


def _join(path: Path, tables: Mapping[str, Table] | Sequence[Table]) -> Table:
    if isinstance(tables, Mapping):
        named = []
        for scene, table in tables.items():
            table = Table(table, copy=True)
            if "scene" in table.colnames:
                table.remove_column("scene")
            table.add_column(np.full(len(table), scene, dtype=f"U{max(len(scene), 1)}"), name="scene", index=0)
            named.append(table)
    else:
        named = [Table(table, copy=True) for table in tables]
    if not named:
        raise DataError(path, "tables", "expected at least one catalogue, received none")
    for table in named:
        if "scene" not in table.colnames:
            received = ", ".join(table.colnames)
            raise DataError(path, "scene", f"expected a column scene in each catalogue, received {received}")
        table.meta.clear()
    joined = vstack(named, metadata_conflicts="silent")
    for name in joined.colnames:  # a band that another scene has: no number, where masks would read as zero elsewhere
        if joined[name].dtype.kind == "f":
            joined[name] = np.ma.filled(joined[name], np.nan)
    return _ascii(joined) if path.suffix == ".fits" else joined
