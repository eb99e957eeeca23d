"""Weights: inverse variances from whatever a noise is given as, and the pixels that they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.data.validation import numbers
from tfdeblend.errors import DataError

ABSURD_WEIGHT = 1e70  # of noise as small as 1e-35, in W/m2/Hz; weights are float64 to hold it
BROKEN = 0.01  # of the pixels: so many may be broken and are masked, more are refused
SPREAD = 1e10  # how far from the median of its band a weight may be, for float32
UNCERTAINTIES = {"std": "sigma", "var": "variance", "ivar": "weights"}  # of astropy.nddata


class Noise(NamedTuple):
    """The noise of images, (C,H,W) or (H,W): "weights" (inverse variance), "variance" or "sigma", as `kind` says."""

    kind: str
    values: Any

    @classmethod
    def of(cls, where: str | Path, given: Any) -> Noise:
        """Take weights as they are given: an array of inverse variance, a Noise or an uncertainty of `astropy.nddata`.

        Raises: DataError for an uncertainty of unknown type.
        """
        if isinstance(given, Noise):
            return given
        if not hasattr(given, "uncertainty_type"):
            return cls("weights", given)
        kind = UNCERTAINTIES.get(given.uncertainty_type)
        if kind is None:
            expected = f"expected an uncertainty of known type ({', '.join(UNCERTAINTIES)})"
            raise DataError(where, "weights", f"{expected}, received {given.uncertainty_type}")
        return cls(kind, given.array)


def as_weights(where: str | Path, given: Any, images: np.ndarray, valid: np.ndarray, notes: list[str]) -> np.ndarray:
    """Convert a noise to weights, float64 inverse variances of the images' shape (C,H,W).

    A weight of 0 or an infinite variance says that there is no measurement, and so does a variance of 0, which is
    noted, as are weights too small to matter. Unmasked pixels of other values that no noise can have, which are NaN,
    negative, or infinite or 1e10 times larger than a band's usual weights, are masked with a note up to 1% of all;
    those where the image is exactly 0 do not count, as it has no data there.

    Args:
        given: see `Noise.of`.
        valid: (C,H,W) bool, the pixels that count.

    Raises:
        DataError: another shape or type, more broken pixels than that.
    """
    kind, values = Noise.of(where, given)
    array = numbers(where, kind, values)
    array = array[np.newaxis] if array.ndim == 2 and len(images) == 1 else array
    if array.shape != images.shape:
        raise DataError(where, kind, f"expected shape {images.shape} as images, received {array.shape}")
    array = array.astype(float)
    broken, zero = ~(array >= 0), array == 0
    with np.errstate(all="ignore"):
        weights = {"weights": array, "variance": 1 / array, "sigma": array**-2}[kind]
    weights = np.where(broken | (zero & (kind != "weights")), 0, weights)
    broken |= weights > ABSURD_WEIGHT
    weights = np.where(broken, 0, weights)
    faint = np.zeros(images.shape, bool)
    for c, band in enumerate(weights):
        if (seen := band[valid[c] & (band > 0)]).size:
            median = float(np.median(seen))
            broken[c] |= band > SPREAD * median
            faint[c] = (band > 0) & (band < median / SPREAD)
    _refuse_many(where, kind, array, broken & valid, images, valid)
    counts = {
        f"{kind} that are NaN, negative or out of range": broken,
        f"zero {kind}": zero & (kind != "weights"),
        f"a noise {SPREAD**0.5:g} times the usual": faint,
    }
    for what, where_so in counts.items():
        if count := int((where_so & valid).sum()):
            notes.append(f"{count} pixels of {what} masked")
    return np.where(broken | faint, 0, weights)


def _refuse_many(
    where: str | Path, kind: str, array: np.ndarray, broken: np.ndarray, images: np.ndarray, valid: np.ndarray
) -> None:
    """Raises: DataError where more pixels are broken than are masked without a question."""
    counted = broken & (images != 0)
    count, total = int(counted.sum()), int(valid.sum())
    if count > BROKEN * total:
        expected = f"expected values from 0 to {ABSURD_WEIGHT:g}, alike in size, as {kind}"
        received = f"received others, such as {array[counted][0]:g}, in {count} of {total} unmasked pixels"
        raise DataError(where, kind, f"{expected}, {received}", "mask them")
