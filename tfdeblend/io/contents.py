"""Contents: what the file of a scene holds, part by part as it stands there, and the Observation made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.io.files import parsing, scene_name
from tfdeblend.io.reading import Reading

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene


@dataclass
class Contents:
    """Holds the parts of a scene's file.

    Args:
        parts: by the fields of an Observation, and `variance`, `mask` (booleans or bit planes) and `footprint`; None
            where the file does not say.
        names: what the file calls these parts, for messages; a part that is not listed has its own name.
        catalog: of its sources, or None.
        planes: the bit of each plane of an integer mask, by name.
        notes: warnings of reading, one line each.

    Raises:
        DataError: for images of another shape than (C,H,W) or (H,W).
    """

    path: Path
    parts: dict[str, Any]
    names: dict[str, str]
    catalog: Table | None
    planes: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with self._by_name():
            self.parts["images"] = validation.as_images(self.path, self.parts["images"])

    def observation(self, psf: Any, reading: Reading) -> Observation:
        """Make the observation, named after the file. Errors are those of `tfdeblend.io.read`.

        psf: an array in place of the file's own, or None.
        """
        with self._by_name():
            parts, notes = dict(self.parts), list(self.notes)
            images, mask, footprint, variance = (
                parts.pop(name, None) for name in ("images", "mask", "footprint", "variance")
            )
            masked = np.zeros(images.shape, bool)
            if mask is not None:
                masked = masked_pixels(self.path, mask, images.shape, reading.mask_planes, self.planes)
                if parts["saturated"] is None:
                    parts["saturated"] = saturated_pixels(self.path, mask, images.shape, self.planes)
            if footprint is not None:
                masked = masked | validation.as_mask(self.path, "footprint", footprint, images.shape)
            if variance is not None:
                if parts["weights"] is not None:
                    raise DataError(self.path, "variance", "expected either weights or variance, received both")
                parts["weights"] = variance_weights(self.path, variance, masked, images.shape, notes)
            if psf is not None:
                parts["psf"] = psf
            images = np.ma.MaskedArray(images, masked)
            return Observation(images, name=scene_name(self.path), notes=tuple(notes), **parts)

    @contextmanager
    def _by_name(self) -> Iterator[None]:
        """Name the file, and its parts as the file does, in errors of the checks."""
        try:
            yield
        except DataError as error:
            raise error.at(self.path, self.names.get(error.field or "")) from error


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


FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".fits": "fits", ".parquet": "parquet"}


def read_catalog(path: Path) -> Table:
    """Read the table in a file: .ecsv, .csv, .parquet (needs pyarrow), or the first one of a .fits.

    Raises:
        DataError: a file that is missing, broken or of another suffix; a table without columns x, y or ra, dec.
    """
    if path.suffix not in FORMATS:
        raise DataError(path, "suffix", f"expected one of {', '.join(FORMATS)}, received {path.suffix!r}")
    if not path.is_file():
        raise DataError(path, "file", "expected a catalogue, received none")
    with parsing(path, "table"):
        table = Table.read(path, format=FORMATS[path.suffix])
        table.convert_bytestring_to_unicode()
    return as_catalog(path, "table", "catalog", table)


def as_catalog(path: Path, where: str, field: str, table: Table) -> Table:
    """The same table with `field` in its metadata, the name by which later errors call it.

    Raises: DataError, about the field `where`, for a table without columns x, y or ra, dec.
    """
    columns = {str(name).lower() for name in table.colnames}
    if not ({"x", "y"} <= columns or {"ra", "dec"} <= columns):
        received = ", ".join(table.colnames[:20])
        raise DataError(path, where, f"expected columns x, y or ra, dec, received {received}")
    table.meta = {"field": field}
    return table


def source_table(scene: Scene) -> Table:
    """A row a source, as `Scene.from_catalog` takes it: x, y (pixels), kind and id."""
    rows = [(source.x, source.y, source.kind, source.id) for source in scene.sources]
    return Table(rows=rows, names=("x", "y", "kind", "id"))
