"""Catalogues of sources from files of their own."""

from __future__ import annotations

from pathlib import Path

from astropy.table import Table

from tfdeblend.errors import DataError
from tfdeblend.io.parsing import parsing

FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".parquet": "parquet"}


def read_catalog(path: Path) -> Table:
    """The table in a file: .ecsv, .csv, .parquet (needs pyarrow) or .fits, of which the first table counts.

    Raises: DataError for one that is missing, broken, empty, or without columns x, y or ra, dec.
    """
    if path.suffix not in FORMATS:
        raise DataError(path, "suffix", f"expected one of {', '.join(FORMATS)}, received {path.suffix!r}")
    if not path.is_file():
        raise DataError(path, "file", "expected a catalogue, received none")
    with parsing(path, "table"):
        table = Table.read(path, format=FORMATS[path.suffix])
        table.convert_bytestring_to_unicode()
    return as_catalog(path, "table", "catalog", table)


def as_catalog(path: Path, where: str, field: str, table: Table) -> Table:
    """The table, which errors to come will name `field`. Raises: DataError without columns x, y or ra, dec."""
    columns = {str(name).lower() for name in table.colnames}
    if not ({"x", "y"} <= columns or {"ra", "dec"} <= columns):
        received = ", ".join(table.colnames[:20])
        raise DataError(path, where, f"expected columns x, y or ra, dec, received {received}")
    table.meta = {"field": field}
    return table
