"""Write and read results as FITS files, and write catalogues of many scenes.

One file a scene, `(bands, height, width)` as in NumPy. Of the scene:

    primary       header only: SCENE, BUNIT, PIXSCALE, and `Deblended.header`, keys in capitals
    STAMPS        (K,C,P,P) each source in the model frame, whose pixel grid is the first image's, as is the WCS of the
                  header: stamp pixel (0, 0) of source k is image pixel (stamp_x0, stamp_y0) of CATALOG
    PRIORSHARE    (K,C,P,P) variance of the samples over the prior's: near 0 the data decide, near 1 the prior does
    SAMPLES       (S,K,C,P,P) posterior samples in the model frame, on request
    SAMPLED       where sampled, a row a source: group, flux (S,C) and shape (S,5) of each sample, see `SampleCatalog`
    FLUXCOV       (C,K,K) covariance of the sources' fluxes; of more than 32 sources a table of the pairs whose
                  covariance is not 0: first, second (numbers of sources, from 0), covariance (C)
    CATALOG       a row a source
    CORNERS       (K,2) the (y, x) of the image pixel under pixel [0, 0] of each stamp
    DECLARED      x, y, kind, id of the sources as they were before the fit
    BANDS         a row a band of each observation: observation, band, background, and zeropoint where known
    CALIBRATION   a row a band of each observation, where shifts and gains were fitted: observation, band, shift_y,
                  shift_x and their errors (pixels of the first), gain, background (in the observation's unit), chi2

Of the first observation; of each further one the same with its name appended, as in MODEL_NAME, on its own pixels and
in its own unit. C is the number of all bands of the scene, C_e of those of one observation:

    MODEL         (C_e,H,W) the rendered scene, background included
    RESIDUAL      (C_e,H,W) data - model, pixels NaN that are masked or were not fitted
    SOURCES       (K,C_e,H,W) each source as observed
    SOURCES_STD   (K,C_e,H,W) its posterior standard deviation, where sampled
    REAPPORTIONED (K,C_e,H,W) the data shared out in proportion to the models; of a field in parts these three are
                  tables, a row a source: y0, x0, height, width of its window, beyond which it is 0, and pixels, of
                  length C_e * height * width
    UNDECLARED    x, y, snr of what is left on the residual and no source accounts for
    IMAGES, WEIGHTS (C_e,H,W), PSF (C_e,h,w) the observation
    NOISECORR (C_e,h,w), SATURATED (C_e,H,W) where it has them
    NOTES         warnings of reading, a row each

Images on the sky of more than a million numbers are compressed without loss, as FITS has it (GZIP of each band).
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
from astropy.utils.exceptions import AstropyUserWarning

from tfdeblend.catalog.columns import describe, reconcile
from tfdeblend.catalog.result import Calibration, Deblended, SampleCatalog, View, positions_in_views
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError, as_path, one_line
from tfdeblend.io import headers, images
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.contents import source_table
from tfdeblend.io.files import parsing

CATALOG_FORMATS = {".ecsv": "ascii.ecsv", ".parquet": "parquet", ".fits": "fits"}
STRUCTURAL = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "SCENE", "BUNIT", "PIXSCALE", "COMMENT", "HISTORY", "")
WITHOUT_UNIT = ("WEIGHTS", "PRIORSHARE")
WINDOW = ("y0", "x0", "height", "width")
MOST_DENSE = 32  # sources, whose covariances are written as images
LARGE = 1_000_000  # numbers: larger images on the sky are compressed


def write(deblended: Deblended, path: str | Path) -> None:
    """Write a result, whole or not at all, over any file of that name; the extensions are listed above."""
    path, hdus = as_path(path), [_primary(deblended), *_of_scene(deblended)]
    for number in range(len(deblended.views)):
        hdus += _of_view(deblended, number)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        _write_hdus(fits.HDUList(hdus), file)


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
    """Convert a value to what FITS headers can hold: ASCII text and finite numbers."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return _ascii_text(" ".join(value.split()))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _ascii_text(text: str) -> str:
    """Text as FITS headers can hold it: printable ASCII, other characters as Python escapes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).encode("ascii", "backslashreplace").decode()


def _of_scene(deblended: Deblended) -> list[fits.ImageHDU | fits.BinTableHDU]:
    """Make the extensions that all observations share."""
    scene, first = deblended.scene, deblended.scene.observation
    unit = first.unit if set(scene.flux_units) == {first.unit} else None
    in_frame = {"STAMPS": deblended.stamps, "PRIORSHARE": deblended.prior_share, "SAMPLES": deblended.samples}
    rows = []
    for one, view in zip(scene.observations, deblended.views, strict=True):
        zeropoints = [np.nan] * len(one.bands) if one.zeropoints is None else one.zeropoints
        rows += [(_card_value(one.name), *row) for row in zip(one.bands, view.background, zeropoints, strict=True)]
    bands = Table(rows=rows, names=("observation", "band", "background", "zeropoint"))
    if scene.zeropoints is None:
        bands.remove_column("zeropoint")
    tables = {
        "CATALOG": deblended.catalog,
        "BANDS": bands,
        "DECLARED": source_table(scene),
        "CALIBRATION": None if deblended.calibration is None else deblended.calibration_table,
        "SAMPLED": None if deblended.sample_catalog is None else _of_samples(deblended.sample_catalog),
    }
    return [
        *(_image(data, name, first.wcs, unit) for name, data in in_frame.items() if data is not None),
        _covariance(deblended.flux_cov),
        fits.ImageHDU(np.asarray(deblended.corners), name="CORNERS"),
        *(_table(table, name) for name, table in tables.items() if table is not None),
    ]


def _of_view(deblended: Deblended, number: int) -> list[fits.ImageHDU | fits.BinTableHDU]:
    """Make the extensions of one observation, by its number."""
    one, view, suffix = deblended.scene.observations[number], deblended.views[number], _suffix(deblended.scene, number)
    on_sky: dict[str, np.ndarray | Windows | None] = {
        "MODEL": view.model,
        "RESIDUAL": view.residual.astype(np.float32),
        "SOURCES": view.light,
        "SOURCES_STD": view.light_std,
        "REAPPORTIONED": view.shares,
        "IMAGES": one.images,
        "WEIGHTS": one.weights,
    }
    plain = {
        "PSF": one.psf,
        "NOISECORR": one.noise_correlation,
        "SATURATED": None if one.saturated is None else one.saturated.astype(np.uint8),
    }
    tables = {"UNDECLARED": view.undeclared, "NOTES": Table({"note": list(one.notes)}) if one.notes else None}
    return [
        *(_on_sky(data, name + suffix, one.wcs, one.unit) for name, data in on_sky.items() if data is not None),
        *(fits.ImageHDU(data, name=name + suffix) for name, data in plain.items() if data is not None),
        *(_table(table, name + suffix) for name, table in tables.items() if table is not None),
    ]


def _suffix(scene: Scene, number: int) -> str:
    """Return what the names of an observation's extensions end in: nothing for the first."""
    return f"_{_card_value(scene.observations[number].name).upper()}" if number else ""


def _of_samples(samples: SampleCatalog) -> Table:
    """Make the table of what samples say of the sources, a row a source."""
    flux, shape = (values.swapaxes(0, 1) for values in (samples.flux, samples.shapes))
    return Table({"group": samples.group, "flux": flux, "shape": shape})


def _covariance(flux_cov: np.ndarray) -> fits.ImageHDU | fits.BinTableHDU:
    """Make the extension of covariances (C,K,K): between most of many sources there is none."""
    if flux_cov.shape[1] <= MOST_DENSE:
        return fits.ImageHDU(flux_cov, name="FLUXCOV")
    first, second = np.nonzero((flux_cov != 0).any(0))
    return _table(Table({"first": first, "second": second, "covariance": flux_cov[:, first, second].T}), "FLUXCOV")


def _on_sky(data: np.ndarray | Windows, name: str, wcs: Any, unit: str | None) -> fits.ImageHDU | fits.BinTableHDU:
    """Make an extension of images: of windows that are not whole a table, a row a source."""
    if not isinstance(data, Windows):
        return _image(data, name, wcs, unit)
    if data.are_whole:
        return _image(data.dense, name, wcs, unit)
    sides = np.array([pixels.shape[1:] for pixels in data.pixels])
    numbers = zip(WINDOW, np.concatenate([data.corners, sides], 1).T, strict=True)
    flat = np.empty(len(data), object)
    flat[:] = [pixels.ravel() for pixels in data.pixels]
    columns = [fits.Column(column, "J", array=values) for column, values in numbers]
    pixels = fits.Column("pixels", "QE()", unit=None if unit is None else _card_value(unit), array=flat)
    return fits.BinTableHDU.from_columns([*columns, pixels], name=name)


def _image(data: np.ndarray, name: str, wcs: Any, unit: str | None) -> fits.ImageHDU:
    """Make an image on the sky, in `unit` unless its name says that it has none; a large one is compressed."""
    header = None if wcs is None else wcs.to_header(relax=True)
    if data.size <= LARGE:
        hdu = fits.ImageHDU(data, header, name=name)
    else:
        tile = (*[1] * (data.ndim - 2), *data.shape[-2:])
        lossless = {"compression_type": "GZIP_1", "quantize_level": 0.0}
        hdu = fits.CompImageHDU(data, header, name=name, tile_shape=tile, **lossless)
    if unit is not None and not name.startswith(WITHOUT_UNIT):
        hdu.header["BUNIT"] = _card_value(unit)
    return hdu


def _table(table: Table, name: str) -> fits.BinTableHDU:
    """Make an extension of a table; units that the standard does not list, such as electron, are written as text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyUserWarning)
        hdu = fits.table_to_hdu(_ascii(table))
        for column in table.colnames:
            if table[column].unit is not None and not hdu.columns[column].unit:
                hdu.columns.change_unit(column, table[column].unit.to_string())
    hdu.name = name
    return hdu


def _ascii(table: Table) -> Table:
    """Copy a table without its metadata, its text as of `_ascii_text`, which FITS can hold."""
    table = Table(table, copy=True)
    table.meta.clear()
    for name in table.colnames:
        if table[name].dtype.kind == "U":
            table[name] = np.array([_ascii_text(str(text)).encode() for text in table[name]], "S")
    return table


def read(path: str | Path) -> Deblended:
    """Read a result back, as `write` wrote it; keys of `header` come back in small letters.

    Raises:
        DataError: by file and extension, where one is missing or broken.
    """
    path = as_path(path)
    if path.suffix == ".npz":
        raise DataError(path, "file", "expected a deblended scene as FITS, received an NPZ archive, which holds scenes")
    with images.opened(path) as hdus:
        contents = _Contents(path, hdus)
        bands = contents.table("BANDS", ("observation", "band", "background"))
        names = list(dict.fromkeys(str(name) for name in bands["observation"]))
        rows = [np.asarray(bands["observation"]) == name for name in names]
        suffixes = ["", *(f"_{_card_value(name).upper()}" for name in names[1:])]
        parts = list(zip(names, rows, suffixes, strict=True))
        observations = [_read_observation(contents, name, bands[own], suffix) for name, own, suffix in parts]
        declared = contents.table("DECLARED", ("x", "y", "kind", "id"))
        sources = (Source(float(row["y"]), float(row["x"]), str(row["kind"]), str(row["id"])) for row in declared)
        scene = Scene(tuple(observations), tuple(sources))
        catalog = describe(contents.table("CATALOG", ("x", "y")), scene)
        if len(catalog) != len(scene.sources):
            expected = f"expected {len(scene.sources)} rows, as in DECLARED"
            raise DataError(path, "CATALOG", f"{expected}, received {len(catalog)}")
        calibration = _read_calibration(contents, rows) if "CALIBRATION" in hdus else None
        places = np.stack([np.asarray(catalog["y"], float), np.asarray(catalog["x"], float)], 1)
        frame = places if calibration is None else places + calibration.shift[0]
        positions = positions_in_views(scene, frame, calibration)
        return Deblended(
            scene=scene,
            views=tuple(
                View(
                    observation=scene.fitted(number),
                    model=contents.image(f"MODEL{suffix}"),
                    light=contents.windows(f"SOURCES{suffix}", len(catalog), shape),
                    background=np.asarray(bands[own]["background"], float),
                    positions=positions[number],
                    scale=scene.maps[number].area ** -0.5,
                    light_std=contents.windows_if_there(f"SOURCES_STD{suffix}", len(catalog), shape),
                    undeclared=contents.table_if_there(f"UNDECLARED{suffix}"),
                )
                for number, (_, own, suffix) in enumerate(parts)
                for shape in [scene.observations[number].shape]
            ),
            stamps=contents.image("STAMPS"),
            corners=contents.image("CORNERS"),
            flux_cov=contents.covariance("FLUXCOV", len(scene.bands), len(catalog)),
            catalog=catalog,
            header=_read_header(path, hdus[0]),
            calibration=calibration,
            samples=contents.image_if_there("SAMPLES"),
            sample_catalog=contents.samples_if_there("SAMPLED", len(catalog)),
            prior_share=contents.image_if_there("PRIORSHARE"),
        )


class _Contents:
    """The extensions of a result by name; a missing one is a DataError."""

    def __init__(self, path: Path, hdus: fits.HDUList) -> None:
        self.path, self.hdus = path, hdus

    def hdu(self, name: str) -> Any:
        if name not in self.hdus:
            raise DataError(self.path, name, "expected this extension of a deblended scene, received none")
        return self.hdus[name]

    def image(self, name: str) -> np.ndarray:
        data = np.asarray(images.pixels(self.path, self.hdu(name), of_any_size=True))
        return data.astype(data.dtype.newbyteorder("="))

    def table(self, name: str, columns: Sequence[str] = ()) -> Table:
        """A table, which must have these columns."""
        hdu = self.hdu(name)
        with parsing(self.path, name):
            table = Table.read(hdu, format="fits", mask_invalid=False)
            table.convert_bytestring_to_unicode()
        table.meta.clear()
        if missing := [column for column in columns if column not in table.colnames]:
            raise DataError(self.path, name, f"expected columns {', '.join(columns)}, received no {', '.join(missing)}")
        return table

    def windows(self, name: str, count: int, shape: tuple[int, int, int]) -> Windows:
        """Images of so many sources on an observation of this shape, whole or in windows."""
        if not isinstance(self.hdu(name), fits.BinTableHDU):
            images = self.image(name)
            if images.shape != (count, *shape):
                raise DataError(self.path, name, f"expected shape {(count, *shape)}, received {images.shape}")
            return Windows.whole(images)
        table = self.table(name, (*WINDOW, "pixels"))
        with parsing(self.path, name):
            numbers = np.stack([np.asarray(table[column], int) for column in WINDOW], 1)
            corners, sides = numbers[:, :2], numbers[:, 2:]
            lengths = [len(flat) for flat in table["pixels"]]
            inside = (corners >= 0) & (sides >= 0) & (corners + sides <= shape[1:])
            if len(table) != count or not inside.all() or lengths != (shape[0] * sides.prod(1)).tolist():
                expected = f"expected the pixels of windows of {count} sources in an image of shape {shape}"
                raise DataError(self.path, name, f"{expected}, received others")
            pairs = zip(table["pixels"], sides, strict=True)
            pixels = tuple(np.asarray(flat, np.float32).reshape(shape[0], *side) for flat, side in pairs)
        return Windows(pixels, corners, shape)

    def covariance(self, name: str, bands: int, count: int) -> np.ndarray:
        """Covariances (C,K,K), an image or of pairs."""
        if not isinstance(self.hdu(name), fits.BinTableHDU):
            return self.image(name)
        table, full = self.table(name, ("first", "second", "covariance")), np.zeros((bands, count, count))
        with parsing(self.path, name):
            first, second = (np.asarray(table[column], int) for column in ("first", "second"))
            if ((np.minimum(first, second) < 0) | (np.maximum(first, second) >= count)).any():
                raise DataError(self.path, name, f"expected pairs of {count} sources, received others")
            full[:, first, second] = np.asarray(table["covariance"], float).reshape(len(table), bands).T
        return full

    def windows_if_there(self, name: str, count: int, shape: tuple[int, int, int]) -> Windows | None:
        return self.windows(name, count, shape) if name in self.hdus else None

    def image_if_there(self, name: str) -> np.ndarray | None:
        return self.image(name) if name in self.hdus else None

    def samples_if_there(self, name: str, count: int) -> SampleCatalog | None:
        """What samples say of so many sources."""
        if name not in self.hdus:
            return None
        table = self.table(name, ("group", "flux", "shape"))
        if len(table) != count:
            raise DataError(self.path, name, f"expected {count} rows, as in CATALOG, received {len(table)}")
        flux, shapes = (np.asarray(table[column], float).swapaxes(0, 1) for column in ("flux", "shape"))
        return SampleCatalog(flux, shapes, np.asarray(table["group"], int))

    def table_if_there(self, name: str) -> Table | None:
        return self.table(name) if name in self.hdus else None


def _read_header(path: Path, primary: Any) -> dict[str, Any]:
    with parsing(path, "header"):
        return {key.lower(): value for key, value in primary.header.items() if key not in STRUCTURAL}


def _read_observation(contents: _Contents, name: str, bands: Table, suffix: str) -> Observation:
    """Read one observation, whose extensions end in `suffix`. bands: its rows of BANDS."""
    primary, weights = contents.hdus[0].header, contents.hdu(f"WEIGHTS{suffix}")
    first = suffix == ""
    notes, saturated = contents.table_if_there(f"NOTES{suffix}"), contents.image_if_there(f"SATURATED{suffix}")
    return Observation(
        images=contents.image(f"IMAGES{suffix}"),
        weights=contents.image(f"WEIGHTS{suffix}"),
        psf=contents.image(f"PSF{suffix}"),
        bands=tuple(str(band) for band in bands["band"]),
        name=str(primary.get("SCENE", contents.path.stem)) if first else name,
        wcs=headers.celestial_wcs(contents.path, weights.header),
        zeropoints=np.asarray(bands["zeropoint"], float) if "zeropoint" in bands.colnames else None,
        unit=primary.get("BUNIT") if first else contents.hdu(f"IMAGES{suffix}").header.get("BUNIT"),
        pixel_scale=primary.get("PIXSCALE") if first else None,
        noise_correlation=contents.image_if_there(f"NOISECORR{suffix}"),
        saturated=None if saturated is None else saturated > 0,
        notes=() if notes is None else tuple(str(note) for note in notes["note"]),
    )


def _read_calibration(contents: _Contents, rows: Sequence[np.ndarray]) -> Calibration:
    """Read shifts and gains. rows: of each observation in BANDS, whose order CALIBRATION has."""
    names = ("shift_y", "shift_x", "shift_y_err", "shift_x_err", "gain")
    table = contents.table("CALIBRATION", names)
    if len(table) != len(rows[0]):
        raise DataError(
            contents.path, "CALIBRATION", f"expected {len(rows[0])} rows, as in BANDS, received {len(table)}"
        )
    columns = np.stack([np.asarray(table[name], float) for name in names], 1)
    first = np.stack([columns[own][0] for own in rows])
    return Calibration(first[:, :2], tuple(columns[own, 4] for own in rows), first[:, 2:4])


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
        if path.suffix == ".fits":
            _table(joined, "CATALOG").writeto(temporary)
            return
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
            table.add_column(np.full(len(table), one_line(scene)), name="scene", index=0)
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
    reconcile(named)
    joined = vstack(named, metadata_conflicts="silent")
    for name in joined.colnames:  # a band that another scene has: no number, where masks would read as zero elsewhere
        if joined[name].dtype.kind == "f":
            joined[name] = np.ma.filled(joined[name], np.nan)
    return joined
