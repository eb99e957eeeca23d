"""Scenes from NPZ archives: the layout is described in `tfdeblend.io`. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.errors import DataError
from tfdeblend.io.masks import masked_pixels, saturated_pixels, variance_weights
from tfdeblend.io.parsing import Contents, parsing

NAMES = {"psf": "psfs", "bands": "filters"}


class Archive:
    """The arrays of an NPZ file, read when asked for."""

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
        """The array under `key`, or None."""
        if key not in self.keys:
            return None
        with parsing(self.path, key):
            return self._file[key]

    def need(self, key: str) -> Any:
        """The array under `key`, or DataError."""
        if key not in self.keys:
            received = ", ".join(self.keys[:20]) or "an empty archive"
            raise DataError(self.path, key, f"expected this key, received {received}")
        return self.get(key)


def load(path: Path, mask_planes: Sequence[str | int] | None) -> Contents:
    """The contents of an NPZ file; see `tfdeblend.io.read`."""
    notes: list[str] = []
    with Archive(path) as archive:
        images = validation.as_images(str(path), archive.need("images"))
        masked, mask = _masked(archive, images.shape, mask_planes), archive.get("mask")
        fields = {
            "images": images if masked is None else np.ma.MaskedArray(images, masked),
            "weights": _weights(archive, masked, images.shape, notes),
            "psf": archive.get("psfs"),
            "bands": archive.need("filters"),
            "wcs": archive.get("wcs"),
            "zeropoints": archive.get("zeropoints"),
            "noise_correlation": archive.get("noise_correlation"),
            "unit": archive.get("unit"),
            "saturated": None if mask is None else saturated_pixels(path, "mask", mask, images.shape),
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
