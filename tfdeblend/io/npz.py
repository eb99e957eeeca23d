"""NPZ archives, never unpickled and always written whole, and scenes in them, by the keys that `tfdeblend.io` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.data.catalogs import has_positions
from tfdeblend.errors import DataError
from tfdeblend.io import masks, names
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.contents import Contents, source_table
from tfdeblend.io.files import check_rows, check_size, parsing

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene

KEYS = {  # of the parts of `Contents`
    "images": "images",
    "weights": "weights",
    "variance": "variance",
    "sigma": "sigma",
    "mask": "mask",
    "footprint": "footprint",
    "psf": "psfs",
    "bands": "filters",
    "zeropoints": "zeropoints",
    "unit": "unit",
    "wcs": "wcs",
    "pixel_scale": "pixel_scale",
    "noise_correlation": "noise_correlation",
    "saturated": "saturated",
}
OTHER_NAMES = {"psf": "psf", "bands": "bands", "zeropoints": "zeropoint", "images": "image"}
SOURCES = ("catalog", "peaks")


class Archive:
    """The arrays of an NPZ file, each read when asked for. Raises: DataError for a file that is no archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with parsing(path, "archive"):
            self._file = np.load(path, allow_pickle=False)
            self.keys = tuple(self._file.files)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str) -> Any:
        """Read the array under `key`; None where there is none.

        Raises: DataError for what is no whole array, and for a larger one than is read, before it is.
        """
        if key not in self.keys:
            return None
        with parsing(self.path, key):
            self._check_size(key)
            array = self._file[key]
            if isinstance(array, np.ndarray) and array.dtype.kind in "UV":
                array.tolist()  # fails where its text has numbers that are no characters
        if not isinstance(array, np.ndarray):  # a member of the archive that no array was saved as
            raise DataError(self.path, key, "expected an array, received other content")
        return array

    def _check_size(self, key: str) -> None:
        """Look at the header of an array alone."""
        header = np.lib.format
        with self._file.zip.open(key if key in self._file.zip.namelist() else f"{key}.npy") as member:
            if member.read(6) != header.MAGIC_PREFIX[:6]:
                return
            old = tuple(member.read(2)) == (1, 0)
            shape, _, dtype = (header.read_array_header_1_0 if old else header.read_array_header_2_0)(member)
        if key in SOURCES and shape:
            check_rows(self.path, key, shape[0])
        check_size(
            self.path, key, shape if dtype.itemsize <= 8 else (*shape, -(-dtype.itemsize // 8))
        )  # of 8 bytes each

    def need(self, key: str) -> Any:
        """Read the array under `key`. Raises: DataError where there is none, or a broken one."""
        if key not in self.keys:
            received = ", ".join(self.keys[:20]) or "an empty archive"
            raise DataError(self.path, key, f"expected this key, received {received}")
        return self.get(key)


def load(path: Path) -> Contents:
    """Read what an NPZ file holds of a scene. Raises: DataError where it is broken or lacks images."""
    with Archive(path) as archive:
        keys = _keys(archive.keys)
        used = {key for key in keys.values() if key is not None}
        rest = [key for key in archive.keys if key not in {*used, *SOURCES} and not names.is_harmless(key)]
        parts = {field: archive.get(key) if key else None for field, key in keys.items()}
        if parts["images"] is None:
            archive.need(KEYS["images"])
        mask = keys["mask"] or KEYS["mask"]
        called = {field: key or KEYS[field] for field, key in keys.items()}
        notes = tuple(names.unread(rest))
        return Contents(path, parts, called, _catalog(archive), masks.planes(path, mask, {}), notes, ("bands",))


def _keys(there: Sequence[str]) -> dict[str, str | None]:
    """The key of each part: the usual one, or another that surveys use, in any case."""
    found: dict[str, str | None] = {}
    for field, usual in KEYS.items():
        words = (usual, OTHER_NAMES.get(field, usual), *names.PARTS.get(field, ()))
        keys = [key for word in words for key in there if key.lower() == word.lower()]
        found[field] = keys[0] if keys else None
    return found


def _catalog(archive: Archive) -> Table | None:
    catalog, peaks = archive.get("catalog"), archive.get("peaks")
    if catalog is not None and peaks is not None:
        raise DataError(archive.path, "peaks", "expected either catalog or peaks, received both")
    if catalog is not None:
        if catalog.ndim != 1 or not has_positions(catalog.dtype.names or ()):
            received = f"dtype {catalog.dtype} of shape {catalog.shape}"
            raise DataError(archive.path, "catalog", f"expected a structured array of x, y, received {received}")
        with parsing(archive.path, "catalog"):
            return Table(catalog, meta={"field": "catalog"})
    if peaks is not None:
        peaks = validation.numbers(archive.path, "peaks", peaks)
        if peaks.ndim != 2 or peaks.shape[1] != 2:
            raise DataError(archive.path, "peaks", f"expected shape (N, 2) of (x, y), received {peaks.shape}")
        return Table({"x": peaks[:, 0], "y": peaks[:, 1]}, meta={"field": "peaks"})
    return None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed archive, whole or not at all: the same bytes for the same arrays.

    Raises: OSError where it cannot be written.
    """
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def scene_arrays(scene: Scene) -> dict[str, np.ndarray]:
    """The arrays of a scene by their keys in an archive, such that `load` gives the scene back."""
    values = {key: getattr(scene.observation, field, None) for field, key in KEYS.items()}
    values["weights"] = as_float32(scene.observation.weights)
    values["catalog"] = source_table(scene).as_array()
    if values["wcs"] is not None:
        values["wcs"] = values["wcs"].to_header_string(relax=True)
    return {key: np.asarray(value) for key, value in values.items() if value is not None}


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array in float32 where that holds each of its values, else as it is."""
    with np.errstate(over="ignore", under="ignore"):
        short = array.astype(np.float32)
    return short if np.array_equal(short, array) else array
