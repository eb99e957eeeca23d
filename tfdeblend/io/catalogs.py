"""Catalogues of sources: tables in files of their own, and the table of a scene's sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from astropy.table import Table

from tfdeblend.errors import DataError
from tfdeblend.io.files import parsing

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene

FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".parquet": "parquet"}


def read_catalog(path: Path) -> Table:
    """Read the table in a file: .ecsv, .csv, .parquet (needs pyarrow), or the first one of a .fits.

    Raises:
        DataError: a file that is missing, broken or of another suffix; a table without columns x, y or ra, dec.
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
    """The same table with `field` in its metadata, the name by which later errors call it.

    Raises: DataError, about the field `where`, for a table without columns x, y or ra, dec.
    """
    columns = {str(name).lower() for name in table.colnames}
    if not ({"x", "y"} <= columns or {"ra", "dec"} <= columns):
        received = ", ".join(table.colnames[:20])
        raise DataError(path, where, f"expected columns x, y or ra, dec, received {received}")
    table.meta = {"field": field}
    return table


def source_table(scene: Scene) -> Table:
    """A row a source, as `Scene.from_catalog` takes it: x, y (pixels), kind and id."""
    rows = [(source.x, source.y, source.kind, source.id) for source in scene.sources]
    return Table(rows=rows, names=("x", "y", "kind", "id"))
