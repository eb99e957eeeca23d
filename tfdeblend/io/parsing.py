"""Where other people's parsers meet files that may be broken."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from astropy.table import Table


@dataclass
class Contents:
    """What one file holds: the fields of an Observation, a catalogue, and what the file calls the fields."""

    fields: dict[str, Any]
    catalog: Table | None
    names: dict[str, str]  # of an Observation's field in this file, for messages
    notes: list[str] = field(default_factory=list)


@contextmanager
def parsing(path: str | Path, part: str) -> Iterator[None]:
    """Turn whatever NumPy, zipfile, zlib, Astropy or GalSim raises on a broken file into a DataError.

    A corrupt byte can end in an exception of almost any kind there, so all are caught: keep only the parser's call
    inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Astropy reads on after these two, and leaves out what it could not read.
            warnings.filterwarnings("error", message=".*truncated")
            warnings.filterwarnings("error", message="(?s).*Error validating header")
            yield
    except DataError:
        raise
    except Exception as error:
        received = f"{type(error).__name__}: {error}"
        raise DataError(path, part, f"expected a readable, whole file, received {received}") from error
