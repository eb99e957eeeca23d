"""Input files: which there are, of what kind each is, and what a broken one ends in."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tfdeblend.errors import DataError

SUFFIXES = (".npz", ".fits", ".fit", ".fits.gz", ".fits.fz")
COMPANION = "_psf"


def scene_name(path: str | Path) -> str:
    """The name of a file without its folder and its suffix; `.fits.gz` is one suffix."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def find_inputs(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the files that files, folders and globs stand for: sorted, each once.

    PSF companions (`*_psf.fits`) are left out, and in folders hidden files.

    Raises:
        DataError: nothing found for one of `paths`, or two files of one name, whose outputs would collide.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found = sorted({path for given in paths for path in _expand(Path(given))})
    if not found:
        raise DataError("inputs", "files", "expected files, folders or globs, received none")
    first: dict[str, Path] = {}
    for path in found:
        other = first.setdefault(scene_name(path), path)
        if other is not path:
            raise DataError(path, "name", f"expected a different name for each scene, received {other} too")
    return found


def _expand(given: Path) -> list[Path]:
    if given.is_file():
        return [] if _is_companion(given) else [given]
    if given.is_dir():
        found = [path for path in given.iterdir() if path.name.lower().endswith(SUFFIXES) and path.is_file()]
        found = [path for path in found if not path.name.startswith(".")]
        expected = f"expected files ending in {', '.join(SUFFIXES)}"
    else:
        found = [Path(path) for path in glob.glob(str(given), recursive=True) if Path(path).is_file()]
        expected = "expected a file, a folder or a glob that matches files"
    found = [path for path in found if not _is_companion(path)]
    if not found:
        raise DataError(given, "files", f"{expected}, received none")
    return found


def _is_companion(path: Path) -> bool:
    return scene_name(path).endswith(COMPANION)


def psf_companion(path: Path) -> Path | None:
    """The PSF file beside an image, `<name>_psf.fits` or else the PSFEx model `<name>.psf`; None without either."""
    name = scene_name(path)
    beside = (path.parent / f"{name}{COMPANION}.fits", path.parent / f"{name}.psf")
    return next((companion for companion in beside if companion.is_file()), None)


def content(path: Path) -> str:
    """Tell "npz" or "fits" by the first bytes of a file, whatever its suffix.

    Raises:
        DataError: no such file, a folder, a file that cannot be read or is of another kind.
    """
    if path.is_dir() or not path.exists():
        received = "a folder" if path.is_dir() else "none"
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
