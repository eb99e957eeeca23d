"""NPZ archives, never unpickled and always written whole, and scenes in them, by the keys that `tfdeblend.io` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.catalogs import source_table
from tfdeblend.io.files import Contents, parsing
from tfdeblend.io.masks import masked_pixels, saturated_pixels, variance_weights

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene

NAMES = {"psf": "psfs", "bands": "filters"}


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
        """Read the array under `key`; None where there is none. Raises: DataError for a broken one."""
        if key not in self.keys:
            return None
        with parsing(self.path, key):
            return self._file[key]

    def need(self, key: str) -> Any:
        """Read the array under `key`. Raises: DataError where there is none, or a broken one."""
        if key not in self.keys:
            received = ", ".join(self.keys[:20]) or "an empty archive"
            raise DataError(self.path, key, f"expected this key, received {received}")
        return self.get(key)


def load(path: Path, mask_planes: Sequence[str | int] | None) -> Contents:
    """Read a scene's arrays from an NPZ file; arguments and errors are those of `tfdeblend.io.read`."""
    notes: list[str] = []
    with Archive(path) as archive:
        images = validation.as_images(str(path), archive.need("images"))
        masked = _masked(archive, images.shape, mask_planes)
        fields = {
            "images": images if masked is None else np.ma.MaskedArray(images, masked),
            "weights": _weights(archive, masked, images.shape, notes),
            "psf": archive.get("psfs"),
            "bands": archive.need("filters"),
            "wcs": archive.get("wcs"),
            "zeropoints": archive.get("zeropoints"),
            "noise_correlation": archive.get("noise_correlation"),
            "unit": archive.get("unit"),
            "saturated": _saturated(archive, images.shape),
            "pixel_scale": archive.get("pixel_scale"),
        }
        return Contents(fields, _catalog(archive), NAMES, notes)


def _masked(archive: Archive, shape: tuple[int, ...], mask_planes: Sequence[str | int] | None) -> np.ndarray | None:
    mask, footprint = archive.get("mask"), archive.get("footprint")
    parts = []
    if mask is not None:
        parts.append(masked_pixels(archive.path, "mask", mask, shape, mask_planes))
    if footprint is not None:
        parts.append(validation.as_mask(str(archive.path), "footprint", footprint, shape))
    return np.any(parts, axis=0) if parts else None


def _saturated(archive: Archive, shape: tuple[int, ...]) -> np.ndarray | None:
    saturated, mask = archive.get("saturated"), archive.get("mask")
    if saturated is None and mask is not None:
        return saturated_pixels(archive.path, "mask", mask, shape)
    return saturated


def _weights(archive: Archive, masked: np.ndarray | None, shape: tuple[int, ...], notes: list[str]) -> Any:
    weights, variance = archive.get("weights"), archive.get("variance")
    if weights is not None and variance is not None:
        raise DataError(archive.path, "variance", "expected either weights or variance, received both")
    if variance is None:
        return weights
    return variance_weights(archive.path, "variance", variance, masked, shape, notes)


def _catalog(archive: Archive) -> Table | None:
    catalog, peaks = archive.get("catalog"), archive.get("peaks")
    if catalog is not None and peaks is not None:
        raise DataError(archive.path, "peaks", "expected either catalog or peaks, received both")
    if catalog is not None:
        if catalog.ndim != 1 or not {"x", "y"} <= set(catalog.dtype.names or ()):
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
    observation = scene.observation
    optional = {
        "zeropoints": observation.zeropoints,
        "unit": observation.unit,
        "wcs": None if observation.wcs is None else observation.wcs.to_header_string(relax=True),
        "pixel_scale": observation.pixel_scale,
        "noise_correlation": observation.noise_correlation,
        "saturated": observation.saturated,
    }
    return {
        "images": observation.images,
        "weights": as_float32(observation.weights),
        "psfs": observation.psf,
        "filters": np.array(observation.bands),
        "catalog": source_table(scene).as_array(),
        **{key: np.asarray(value) for key, value in optional.items() if value is not None},
    }


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array in float32 where that holds each of its values, else as it is."""
    with np.errstate(over="ignore", under="ignore"):
        short = array.astype(np.float32)
    return short if np.array_equal(short, array) else array
