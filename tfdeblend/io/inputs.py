"""Which files to work on."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from tfdeblend.errors import DataError

SUFFIXES = (".npz", ".fits", ".fit", ".fits.gz", ".fits.fz")
COMPANION = "_psf"


def scene_name(path: str | Path) -> str:
    """The name of a file without its suffix, of which `.fits.gz` is one."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def find_inputs(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files behind files, folders and globs: sorted, each once, PSF companions (`*_psf.fits`) left out.

    Raises:
        DataError: nothing found behind one of `paths`, or two files of one name, whose outputs would collide.
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
