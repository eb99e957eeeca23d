"""Masks of booleans or bit planes, and variances: which pixels count, and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data import validation
from tfdeblend.errors import DataError

# The planes of the HSC and LSST pipelines.
PLANES = {
    "BAD": 0,
    "SAT": 1,
    "INTRP": 2,
    "CR": 3,
    "EDGE": 4,
    "DETECTED": 5,
    "DETECTED_NEGATIVE": 6,
    "SUSPECT": 7,
    "NO_DATA": 8,
}
MASKED = ("BAD", "SAT", "EDGE", "SUSPECT", "NO_DATA")
SATURATED = "SAT"
LAST_BIT = 62


def masked_pixels(
    path: Path,
    mask: Any,
    shape: tuple[int, ...],
    chosen: Sequence[str | int] | None,
    planes: Mapping[str, int],
) -> np.ndarray:
    """Make a mask (C,H,W) of booleans, True = masked, from booleans or bit planes of shape (C,H,W) or (H,W).

    Args:
        path: for messages.
        mask: booleans (True = masked) or integers (bit planes).
        shape: (C,H,W) of the images.
        chosen: names or bits of the planes to mask. None: BAD, SAT, EDGE, SUSPECT and NO_DATA, as far as they exist.
        planes: bit of each plane, by name.

    Raises:
        DataError: a mask of another shape or type, an unknown plane.
    """
    array = validation.numbers(path, "mask", mask, kinds="biu")
    if array.dtype.kind != "b":
        bits = [planes[name] for name in MASKED if name in planes] if chosen is None else _bits(path, chosen, planes)
        array = array.astype(np.int64) & sum(1 << bit for bit in set(bits)) != 0
    return validation.as_mask(path, "mask", array, shape)


def saturated_pixels(path: Path, mask: Any, shape: tuple[int, ...], planes: Mapping[str, int]) -> np.ndarray | None:
    """Find the saturated pixels, (C,H,W) bool, in the plane SAT of a mask; None where it has no such plane.

    Arguments and errors are those of `masked_pixels`.
    """
    if np.asarray(mask).dtype.kind == "b" or SATURATED not in planes:
        return None
    return masked_pixels(path, mask, shape, [SATURATED], planes)


def _bits(path: Path, chosen: Sequence[str | int], planes: Mapping[str, int]) -> list[int]:
    bits = []
    for plane in chosen:
        bit = planes.get(str(plane).upper(), plane)
        if not str(bit).isdigit() or int(bit) > LAST_BIT:
            expected = f"expected {', '.join(planes)} or a bit up to {LAST_BIT}"
            raise DataError(path, "mask_planes", f"{expected}, received {plane!r}")
        bits.append(int(bit))
    return bits


def variance_weights(
    path: Path, variance: Any, masked: np.ndarray, shape: tuple[int, ...], notes: list[str]
) -> np.ndarray:
    """Invert a variance (C,H,W), or (H,W) of one band, into weights: 0 where it is masked, infinite or 0.

    Unmasked pixels of zero variance are counted in `notes`.

    Args:
        path: for messages.
        masked: (C,H,W) bool, True = masked.
        shape: (C,H,W) of the images.

    Raises:
        DataError: a variance of another shape or type, NaN or a negative value in an unmasked pixel.
    """
    array = validation.numbers(path, "variance", variance)
    array = array[np.newaxis] if array.ndim == 2 and shape[0] == 1 else array
    if array.shape != shape:
        raise DataError(path, "variance", f"expected shape {shape} as images, received {array.shape}")
    for wrong, what in ((np.isnan(array), "NaN"), (array < 0, "negative")):
        count = int((wrong & ~masked).sum())
        if count:
            raise DataError(path, "variance", f"expected positive values, received {count} {what} in unmasked pixels")
    zeros = int((~masked & (array == 0)).sum())
    if zeros:
        notes.append(f"{zeros} pixels of zero variance masked")
    known = ~masked & (array > 0)
    return np.where(known, 1 / np.where(known, array, 1).astype(float), 0)
