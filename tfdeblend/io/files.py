"""Input files: their names, of what kind each is, how much of it is read, and what a broken one ends in."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tfdeblend.errors import DataError

MOST_NUMBERS = 18_000_000  # in an array, such that even what is refused later takes less than 1 GB of memory
MOST_ROWS = 1_000_000  # of a catalogue
LARGEST = "TFDEBLEND_LARGEST"  # the variable of the environment that takes the place of MOST_NUMBERS
SUFFIXES = (".npz", ".fits", ".fit", ".fits.gz", ".fits.fz")


def scene_name(path: str | Path) -> str:
    """The name of a file without its folder and its suffix; `.fits.gz` is one suffix."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def content(path: Path) -> str:
    """Tell "npz" or "fits" by the first bytes of a file, whatever its suffix.

    Raises:
        DataError: no such file, a folder, a file that cannot be read or is of another kind.
    """
    if not path.is_file():
        received = "a folder" if path.is_dir() else "no file" if path.exists() else "none"
        raise DataError(path, "file", f"expected an NPZ or FITS file, received {received}")
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DataError(path, "file", f"expected a readable file, received {error.strerror}") from error
    if start.startswith(b"PK"):
        return "npz"
    if start == b"SIMPLE" or start.startswith(b"\x1f\x8b"):
        return "fits"
    received = "an empty file" if not start else "other content"
    raise DataError(path, "file", f"expected an NPZ or FITS file, received {received}")


def check_size(path: str | Path, part: str, shape: Sequence[int]) -> None:
    """Look at the shape of an array before it is read.

    Raises: DataError for more than 18 million numbers, or as many as the variable TFDEBLEND_LARGEST says.
    """
    said = os.environ.get(LARGEST, "") or str(MOST_NUMBERS)
    try:
        most = float(said)
    except ValueError as error:
        raise DataError(LARGEST, None, f"expected a number, received {said}") from error
    if not math.prod(shape) <= most:
        problem = f"expected at most {most:,.0f} numbers, received {math.prod(shape):,} of shape {tuple(shape)}"
        raise DataError(path, part, problem, f"cut it smaller, or set {LARGEST} to read more")


def check_rows(path: str | Path, part: str, count: int) -> None:
    """Look at the length of a catalogue before it is read. Raises: DataError for more than a million rows."""
    if count > MOST_ROWS:
        raise DataError(path, part, f"expected a catalogue of at most {MOST_ROWS:,} rows, received {count:,}")


@contextmanager
def parsing(path: str | Path, part: str) -> Iterator[None]:
    """Turn whatever NumPy, zipfile, zlib, Astropy or GalSim raises on a broken file into a DataError.

    A corrupt byte can end in an exception of almost any kind there, so all are caught: keep only the parser's call
    inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # After these two warnings Astropy reads on, and leaves out what it could not read.
            warnings.filterwarnings("error", message=".*truncated")
            warnings.filterwarnings("error", message="(?s).*Error validating header")
            yield
    except DataError:
        raise
    except Exception as error:
        received = f"{type(error).__name__}: {error}"
        raise DataError(path, part, f"expected a readable, whole file, received {received}") from error
