"""The catalogue of a run as a HATS collection: Parquet files by place on the sky, as LSDB reads them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfdeblend.errors import DataError
from tfdeblend.survey import tables

MARGIN = 10.0  # arcsec around each partition, whose objects are in its margin cache too
PARTITION = 1_000_000  # rows of a partition, at most
KEY = "tfdeblend_run"  # the property that tells of which run a catalogue is


def check(folder: Path, key: str) -> None:
    """Check that a HATS collection can be written to a folder.

    Args:
        folder: that is not there, or holds what an earlier call wrote. key: of the run.

    Raises:
        DataError: without the package hats-import, or where the folder holds something else.
    """
    _pipeline()
    if folder.exists() and not _is_of(folder, key):
        expected = "expected no such folder, or the HATS catalogue of this run"
        raise DataError(folder, "hats", f"{expected}, received another one", "give another --hats")


def _is_of(folder: Path, key: str) -> bool:
    """Whether a folder is itself the collection of a run, not one that holds it: it is removed as a whole."""
    properties = folder / "collection.properties"
    return properties.is_file() and f"{KEY}={key}" in properties.read_text().splitlines()


def write(folder: Path, files: Sequence[Path], key: str) -> None:
    """Write tables of objects as a HATS collection with a margin cache, whole or not at all.

    Files are read, and partitions written, one at a time, so that memory does not grow with their number. Units and
    descriptions of columns stay in the schema.

    Args:
        folder: as for `check`. files: tables of objects of one schema. key: of the run.

    Raises:
        DataError: see `check`; and for objects without coordinates, and where there are none.
    """
    check(folder, key)
    run, CollectionArguments, Reader, Client = _pipeline()
    files = [file for file in files if tables.rows(file)]
    if not files:
        raise DataError(folder, "hats", "expected at least one object, received none")
    if not all(tables.are_finite(file, ("coord_ra", "coord_dec")) for file in files):
        raise DataError(folder, "hats", "expected objects with coordinates, received images without a WCS")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        shared = {"output_path": temporary, "output_artifact_name": folder.name, "progress_bar": False}
        arguments = CollectionArguments(**shared, addl_hats_properties={KEY: key})
        arguments.catalog(
            input_file_list=files,
            file_reader=Reader(),
            use_schema_file=files[0],
            ra_column="coord_ra",
            dec_column="coord_dec",
            sort_columns="objectId",
            pixel_threshold=PARTITION,
            addl_hats_properties={KEY: key},
        )
        arguments.add_margin(margin_threshold=MARGIN, is_default=True)
        with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            run(arguments, client)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(Path(temporary) / folder.name, folder)


def _pipeline() -> tuple[Any, Any, Any, Any]:
    try:
        from distributed import Client
        from hats_import import CollectionArguments
        from hats_import.catalog.file_readers import ParquetPyarrowReader
        from hats_import.pipeline import pipeline_with_client
    except ImportError as error:
        expected = "expected the package hats-import, which is not installed"
        raise DataError("survey", "hats", expected, "pip install 'tfdeblend[hats]'") from error
    return pipeline_with_client, CollectionArguments, ParquetPyarrowReader, Client
