"""Masks of bit planes: which bit says what in the masks of surveys, and which pixels these leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.data import validation
from tfdeblend.errors import DataError

LAST_BIT = 62


class Planes(NamedTuple):
    """Names the bit planes of a mask.

    Args:
        bits: by name of the plane.
        masked: the planes whose pixels are left out unless others are chosen. A plane whose name ends in `_G` is that
            of band g alone.
        assumed: whose planes these are taken for, where the file does not say; None where it does.
    """

    bits: Mapping[str, int]
    masked: tuple[str, ...]
    assumed: str | None = None


def _planes(names: str, masked: str, **more: int) -> Planes:
    return Planes({name: bit for bit, name in enumerate(names.split())} | more, tuple(masked.split()))


LSST = _planes(
    "BAD SAT INTRP CR EDGE DETECTED DETECTED_NEGATIVE SUSPECT NO_DATA",
    "BAD SAT EDGE SUSPECT NO_DATA",
)
JWST = _planes("DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER", "DO_NOT_USE")
# All but the warm and unstable pixels, which calibration corrects.
HST = _planes(
    "LOST FILLED BAD DEVIANT HOT UNSTABLE WARM BIAS SATURATED FLAT TRAP A2D_SATURATED DRIZZLE_CR CR",
    "LOST FILLED BAD DEVIANT HOT BIAS SATURATED FLAT TRAP A2D_SATURATED DRIZZLE_CR CR",
)
DES = _planes(
    "BPM SATURATE INTERP BADAMP CRAY STAR TRAIL EDGEBLEED SSXTALK EDGE STREAK SUSPECT FIXED NEAREDGE TAPEBUMP",
    "BPM SATURATE BADAMP CRAY TRAIL EDGEBLEED SSXTALK EDGE STREAK SUSPECT",
)
LEGACY = _planes(
    "NPRIMARY BRIGHT SATUR_G SATUR_R SATUR_Z ALLMASK_G ALLMASK_R ALLMASK_Z WISEM1 WISEM2 BAILOUT MEDIUM GALAXY CLUSTER"
    " SATUR_I ALLMASK_I SUB_BLOB",
    "SATUR_G SATUR_R SATUR_I SATUR_Z ALLMASK_G ALLMASK_R ALLMASK_I ALLMASK_Z BAILOUT",
)
ANY = Planes({f"BIT{bit}": bit for bit in range(LAST_BIT + 1)}, tuple(f"BIT{bit}" for bit in range(LAST_BIT + 1)))
SATURATED = ("SAT", "SATURATED", "SATURATE", "A2D_SATURATED", "SATUR_G", "SATUR_R", "SATUR_I", "SATUR_Z")


def planes(path: Path, name: str, header: Mapping[str, Any]) -> Planes:
    """The planes of the mask in extension or under key `name`.

    They are those that MP_ keys name, as the pipelines of LSST and HSC write them, else those of the telescope or
    survey: MASKBITS of Legacy, DQ of HST and JWST, MSK of DES. A MASK of no known origin is taken for one of LSST and
    HSC; of any other name all pixels are masked that are not 0.

    Args:
        header: of the mask, over that of the file.

    Raises:
        DataError: MP_ keys without the number of a bit.
    """
    named = {key[3:]: value for key, value in header.items() if key.startswith("MP_")}
    if not all(type(bit) is int and 0 <= bit <= LAST_BIT for bit in named.values()):
        expected = f"expected the number of a bit up to {LAST_BIT} under each MP_ key of the header"
        raise DataError(path, name, f"{expected}, received {', '.join(map(str, named.values()))}")
    kind = name.upper().partition("_")[0]
    telescope, instrument = (str(header.get(key, "")).strip().upper() for key in ("TELESCOP", "INSTRUME"))
    if named:
        return Planes(named, tuple(name for name in LSST.masked if name in named))
    if kind == "MASKBITS":
        return LEGACY
    if telescope in ("JWST", "HST"):
        return JWST if telescope == "JWST" else HST
    if kind == "MSK" and ("DECAM" in instrument or not instrument):
        return DES if instrument else DES._replace(assumed="DES")
    return LSST._replace(assumed="LSST and HSC") if kind == "MASK" else ANY._replace(assumed="marks of bad pixels")


def masked_pixels(
    path: Path,
    mask: Any,
    shape: tuple[int, ...],
    chosen: Sequence[str | int] | None,
    planes: Planes,
    bands: Sequence[str] = (),
) -> np.ndarray:
    """Make a mask (C,H,W) of booleans, True = masked, from booleans or bit planes of shape (C,H,W) or (H,W).

    Args:
        path: for messages.
        mask: booleans (True = masked) or integers (bit planes).
        shape: (C,H,W) of the images.
        chosen: names or bits of the planes to mask. None: those that `planes` says.
        bands: their names, for planes of a single band.

    Raises:
        DataError: a mask of another shape or type, an unknown plane.
    """
    array = np.asarray(mask)
    if array.dtype.kind not in "biu":
        raise DataError(path, "mask", f"expected booleans or integers of bit planes, received dtype {array.dtype}")
    if array.dtype.kind == "b":
        return validation.as_mask(path, "mask", array, shape)
    picked = planes.masked if chosen is None else chosen
    own = {name for name in picked if isinstance(name, str) and name[-2:-1] == "_" and name in planes.bits}
    shared = _bits(path, [plane for plane in picked if plane not in own], planes)
    masked = np.array(validation.as_mask(path, "mask", _has(array, shared), shape))
    for c, band in enumerate(bands):
        bits = _bits(path, [name for name in own if name[-1] == band.strip()[-1:].upper()], planes)
        masked[c] |= _has(array if array.ndim == 2 else array[c], bits)
    return masked


def saturated_pixels(
    path: Path, mask: Any, shape: tuple[int, ...], planes: Planes, bands: Sequence[str] = ()
) -> np.ndarray | None:
    """Find the saturated pixels, (C,H,W) bool, in the planes of a mask that say so; None where it has none.

    Arguments and errors are those of `masked_pixels`.
    """
    known = [name for name in SATURATED if name in planes.bits]
    if np.asarray(mask).dtype.kind == "b" or not known:
        return None
    return masked_pixels(path, mask, shape, known, planes, bands)


def assumption(mask: Any, masked: np.ndarray, planes: Planes, name: str) -> list[str]:
    """A note on planes that were assumed, where it matters: if the mask marks pixels in more than one way.

    Masks of LSST and HSC are known by their sources, which are DETECTED.
    """
    values = np.unique(mask)
    if planes.assumed is None or values.dtype.kind == "b" or set(values.tolist()) <= {0, 1}:
        return []
    if planes.bits is LSST.bits and _has(values, [LSST.bits["DETECTED"]]).any():
        return []
    what = "every pixel that is not 0" if planes.masked == ANY.masked else ", ".join(planes.masked)
    return [f"planes of {name} taken for {planes.assumed}: masked are {what}, {masked.mean():.1%} of the pixels"]


def _has(array: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    return array.astype(np.int64) & sum(1 << bit for bit in set(bits)) != 0


def _bits(path: Path, chosen: Sequence[str | int], planes: Planes) -> list[int]:
    bits = []
    for plane in chosen:
        bit = planes.bits.get(str(plane).upper(), plane)
        if not str(bit).isdigit() or int(bit) > LAST_BIT:
            expected = f"expected {', '.join(planes.bits)} or a bit up to {LAST_BIT}"
            raise DataError(path, "mask_planes", f"{expected}, received {plane!r}")
        bits.append(int(bit))
    return bits
