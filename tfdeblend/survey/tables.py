"""The tables of a survey run: their columns with units and descriptions, and Parquet files that are written whole.

Names are those of the Rubin Observatory's `Object` table where the meaning is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.errors import DataError
from tfdeblend.io.atomic import sha256, written_whole


class Column(NamedTuple):
    """Describes a column: its NumPy type, its unit ("" for none) and what it holds."""

    dtype: str
    unit: str
    description: str


DETECTIONS = {
    "objectId": Column("i8", "", "identifier, by the half pixel of the image in which the object was detected"),
    "y": Column("f8", "pix", "detected position, of the first pixel's centre 0"),
    "x": Column("f8", "pix", "detected position, of the first pixel's centre 0"),
    "snr": Column("f8", "", "signal-to-noise of the filtered detection image's peak"),
    "half": Column("f8", "pix", "half-light radius as observed, by moments"),
    "reach": Column("f8", "pix", "distance at which the light ends"),
    "tile": Column("i4", "", "tile that the object belongs to, counted row by row"),
    "blend": Column("i8", "", "objectId of the blend's brightest object, by the overlap of their light"),
    "children": Column("i4", "", "objects in the blend"),
}
PARENTS = {
    "parentObjectId": Column("i8", "", "objectId of the blend's brightest object"),
    "deblend_nChild": Column("i4", "", "objects in the blend"),
    "x": Column("f8", "pix", "mean position"),
    "y": Column("f8", "pix", "mean position"),
    "deblend_failed": Column("bool", "", "whether some object of it is in the table of failures"),
}
PAIRS_KEYS = {
    "objectId_1": Column("i8", "", "first object"),
    "objectId_2": Column("i8", "", "second object"),
}
FAILURES = {
    "objectId": Column("i8", "", "object that was not measured; -1 for a whole tile"),
    "tile": Column("i4", "", "tile, counted row by row"),
    "stage": Column("U16", "", "detect, deblend or sample"),
    "kind": Column("U32", "", "class of the error"),
    "message": Column("U512", "", "what was expected, and what came"),
}


def objects(bands: Sequence[str], unit: str) -> dict[str, Column]:
    """Describe the columns of the table of objects. unit: of the fluxes."""
    columns = {
        "objectId": DETECTIONS["objectId"],
        "parentObjectId": Column("i8", "", "objectId of the brightest object of its blend"),
        "deblend_nChild": Column("i4", "", "objects in its blend, itself included"),
        "tile": DETECTIONS["tile"],
        "x": Column("f8", "pix", "fitted position, of the first pixel's centre 0"),
        "y": Column("f8", "pix", "fitted position, of the first pixel's centre 0"),
        "xErr": Column("f4", "pix", "standard deviation of x"),
        "yErr": Column("f4", "pix", "standard deviation of y"),
        "coord_ra": Column("f8", "deg", "right ascension, ICRS"),
        "coord_dec": Column("f8", "deg", "declination, ICRS"),
        "kind": Column("U8", "", "galaxy or point, as it was fitted"),
        "detect_snr": Column("f4", "", "signal-to-noise of the detection"),
        "snr": Column("f4", "", "signal-to-noise of the fitted light, all bands together"),
        "size": Column("f4", "arcsec", "half-light radius, the PSF taken off"),
        "sizeErr": Column("f4", "arcsec", "standard deviation of size"),
        "e1": Column("f4", "", "ellipticity (a - b) / (a + b) along x"),
        "e2": Column("f4", "", "ellipticity (a - b) / (a + b) along x = y"),
        "e1Err": Column("f4", "", "standard deviation of e1"),
        "e2Err": Column("f4", "", "standard deviation of e2"),
        "blendedness": Column("f4", "", "1 - <m, m> / <m, all light> over the pixels of all bands"),
        "chi2": Column("f4", "", "chi-square a pixel where the object shines"),
        "flags": Column("i4", "", "bits, see the documentation of the catalogue"),
        "sampled": Column("bool", "", "numbers are means over posterior samples, else the maximum of the posterior"),
        "detect_isPrimary": Column("bool", "", "measured, and neither at the image's edge nor on a masked pixel"),
    }
    for band in bands:
        columns[f"{band}_flux"] = Column("f4", unit, f"flux in {band}")
        columns[f"{band}_fluxErr"] = Column("f4", unit, f"standard deviation of {band}_flux")
        if unit == "nJy":
            columns[f"{band}_mag"] = Column("f4", "mag", f"AB magnitude in {band}")
            columns[f"{band}_magErr"] = Column("f4", "mag", f"standard deviation of {band}_mag")
    return columns


def pairs(bands: Sequence[str], unit: str) -> dict[str, Column]:
    """Describe the columns of the table of pairs of objects whose fluxes have a covariance."""
    square = f"{unit}2" if unit else ""
    named = {f"{band}_fluxCov": Column("f4", square, f"covariance of the fluxes in {band}") for band in bands}
    return PAIRS_KEYS | named


def samples(bands: Sequence[str], unit: str) -> dict[str, Column]:
    """Describe the columns of the table of posterior samples, a row an object and draw. unit: of the fluxes."""
    names = "x", "y", "coord_ra", "coord_dec", "size", "e1", "e2"
    of_objects = objects(bands, unit)
    own = {
        "objectId": DETECTIONS["objectId"],
        "draw": Column("i4", "", "number of the sample, from 0"),
        "groupId": Column("i8", "", "objectId of one; draw n of objects of one group are of one joint sample"),
    }
    return own | {name: of_objects[name] for name in (*names, *(f"{band}_flux" for band in bands))}


def of_tile(bands: Sequence[str], unit: str) -> dict[str, dict[str, Column]]:
    """Describe the columns of each table that is written for a tile, by the table's name."""
    found = {make.__name__: make(bands, unit) for make in (objects, pairs, samples)}
    return found | {"failures": FAILURES}


Table = dict[str, np.ndarray]


def empty(columns: Mapping[str, Column]) -> Table:
    """Make a table of no rows."""
    return {name: np.zeros(0, column.dtype) for name, column in columns.items()}


def joined(found: Sequence[Table], columns: Mapping[str, Column]) -> Table:
    """Join the rows of several tables, one after the other."""
    parts = [empty(columns), *found]
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def write(
    path: Path,
    table: Mapping[str, Any],
    columns: Mapping[str, Column],
    facts: Mapping[str, Any],
    group: int | None = None,
) -> str:
    """Write a Parquet file, whole or not at all, and give its SHA-256.

    Each column's unit and description are the metadata of its field in the schema; `facts` about the table are JSON in
    the schema's own, under `tfdeblend`. group: rows of a row group. Raises: DataError without the package pyarrow.
    """
    pyarrow, parquet = _pyarrow()
    fields, arrays = [], []
    for name, column in columns.items():
        values = np.asarray(table[name]).astype(column.dtype)
        text = column.dtype.startswith("U")
        array = pyarrow.array(values.tolist(), pyarrow.string()) if text else pyarrow.array(values)
        metadata = {"unit": column.unit, "description": column.description}
        fields.append(pyarrow.field(name, array.type, metadata=metadata))
        arrays.append(array)
    schema = pyarrow.schema(fields, metadata={"tfdeblend": json.dumps(facts, sort_keys=True)})
    with written_whole(path) as temporary:
        whole = pyarrow.Table.from_arrays(arrays, schema=schema)
        parquet.write_table(whole, temporary, compression="zstd", row_group_size=group)
    return sha256(path)


def read(path: Path, y: tuple[float, float] | None = None) -> Table:
    """Read the columns of a Parquet file, of the rows that lie between two `y` alone where these are given.

    Row groups without such rows are not read.
    """
    _, parquet = _pyarrow()
    table = parquet.read_table(path, filters=None if y is None else [("y", ">=", y[0]), ("y", "<", y[1])])
    return {name: np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in table.column_names}


def is_whole(path: Path, key: str) -> bool:
    """Tell whether a Parquet file is there, can be read, and was written by the run of this key."""
    pyarrow, parquet = _pyarrow()
    try:
        facts = json.loads(parquet.read_schema(path).metadata[b"tfdeblend"]) if path.is_file() else {}
        return facts.get("key") == key and bool(read(path))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read what a run has written about itself as JSON; nothing where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def rows(path: Path) -> int:
    """Count the rows of a Parquet file."""
    _, parquet = _pyarrow()
    return int(parquet.read_metadata(path).num_rows)


def are_finite(path: Path, names: Sequence[str]) -> bool:
    """Tell whether all numbers of some columns of a Parquet file are finite."""
    _, parquet = _pyarrow()
    table = parquet.read_table(path, columns=list(names))
    return all(np.isfinite(table[name].to_numpy()).all() for name in names)


def units(path: Path) -> dict[str, str]:
    """List the names of the columns of a Parquet file, with their units."""
    _, parquet = _pyarrow()
    return {field.name: field.metadata[b"unit"].decode() for field in parquet.read_schema(path)}


def read_astropy(path: Path) -> Any:
    """Read a Parquet file as an Astropy table, with units and descriptions."""
    from astropy.table import Table as AstropyTable

    _, parquet = _pyarrow()
    schema = parquet.read_schema(path)
    table = AstropyTable(read(path))
    for name in table.colnames:
        field = {key.decode(): value.decode() for key, value in schema.field(name).metadata.items()}
        table[name].unit, table[name].description = field["unit"] or None, field["description"]
    return table


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        remedy = "pip install 'tfdeblend[survey]'"
        raise DataError("survey", None, "expected the package pyarrow, which is not installed", remedy) from error
    return pyarrow, parquet
