"""Contents: what the file of a scene holds, part by part as it stands there, and the Observation made of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.data.catalogs import has_positions, is_sky
from tfdeblend.data.observation import Observation
from tfdeblend.data.weights import Noise
from tfdeblend.errors import DataError, as_path
from tfdeblend.io import masks
from tfdeblend.io.companions import parse
from tfdeblend.io.files import check_rows, parsing, scene_name
from tfdeblend.io.names import NOISES
from tfdeblend.io.reading import Reading

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene


@dataclass
class Contents:
    """Holds the parts of a scene's file.

    Args:
        parts: by the fields of an Observation, and `variance`, `sigma`, `mask` (booleans or bit planes) and
            `footprint`; None where the file does not say.
        names: what the file calls these parts, for messages; a part that is not listed has its own name.
        catalog: of its sources, or None.
        planes: of an integer mask.
        notes: warnings of reading, one line each.
        needed: parts that must be there, by the file or by what is said of it.
        psf_header: of the PSF, where it has one.
        position: (x, y) of the image's centre in the image that it was cut from, the first pixel's being (1, 1); None
            where the file does not say.

    Raises:
        DataError: for images of another shape than (C,H,W) or (H,W).
    """

    path: Path
    parts: dict[str, Any]
    names: dict[str, str]
    catalog: Table | None
    planes: masks.Planes
    notes: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    psf_header: Mapping[str, Any] | None = None
    position: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        with self._by_name():
            self.parts["images"] = validation.as_images(self.path, self.parts["images"])

    def observation(self, psf: Any, reading: Reading) -> Observation:
        """Make the observation, named after the file. Errors are those of `tfdeblend.io.read`.

        psf: an array in place of the file's own, or None.
        """
        given = self._given(reading)
        with self._by_name(given):
            parts, notes = {**self.parts, **given}, [*self.notes, *self._replaced(given)]
            images, mask, footprint = (parts.pop(name, None) for name in ("images", "mask", "footprint"))
            parts["weights"] = self._noise(parts, notes)
            for field in self.needed:
                if parts[field] is None:
                    raise DataError(self.path, field, "expected this key, received none")
            bands = validation.as_bands(self.path, parts["bands"], len(images))
            if isinstance(reading.zeropoints, Mapping) and not {*bands} & {*reading.zeropoints}:
                notes.append(f"zero points given for {', '.join(reading.zeropoints)}, not for {', '.join(bands)}")
            masked = np.zeros(images.shape, bool)
            if mask is not None:
                masked = masks.masked_pixels(self.path, mask, images.shape, reading.mask_planes, self.planes, bands)
                if parts["saturated"] is None:
                    parts["saturated"] = masks.saturated_pixels(self.path, mask, images.shape, self.planes, bands)
                if reading.mask_planes is None:
                    notes += masks.assumption(mask, masked, self.planes, self.names.get("mask", "mask"))
            if footprint is not None:
                masked = masked | validation.as_mask(self.path, "footprint", footprint, images.shape)
            if psf is not None:
                parts["psf"] = psf
            images = np.ma.MaskedArray(images, masked)
            empty = reading.section is not None
            return Observation(images, name=scene_name(self.path), notes=tuple(notes), may_be_empty=empty, **parts)

    def _noise(self, parts: dict[str, Any], notes: list[str]) -> Noise | None:
        """Take the noise out of the parts: of several what comes first in `NOISES`, with a note."""
        given = {kind: parts.pop(kind, None) for kind in NOISES}
        there = [kind for kind, values in given.items() if values is not None]
        if not there:
            return None
        if len(there) > 1:
            used, *others = (self.names.get(kind, kind) for kind in there)
            notes.append(f"the noise is that of {used}, not of {', '.join(others)}")
        return Noise(there[0], given[there[0]])

    def _given(self, reading: Reading) -> dict[str, Any]:
        """What the user says of the bands, zero points and pixels.

        Raises: DataError for zero points that lack one of the bands, and bands of another number.
        """
        count, given = len(self.parts["images"]), dict[str, Any]()
        if reading.bands is not None:
            given["bands"] = validation.as_bands(self.path, reading.bands, count)
        if isinstance(reading.zeropoints, Mapping):
            given["zeropoints"] = self._zeropoints(reading.zeropoints, given.get("bands", self.parts["bands"]), count)
        elif reading.zeropoints is not None:
            given["zeropoints"] = reading.zeropoints
        if reading.pixel_scale is not None:
            given["pixel_scale"] = reading.pixel_scale
        return given

    def _replaced(self, given: Mapping[str, Any]) -> list[str]:
        """Notes on what the file says otherwise than the user."""
        both = ((field, _listed(value), self.parts[field]) for field, value in given.items())
        return [
            f"{field.replace('_', ' ')} {value} as given, not {_listed(said)} of {self.names.get(field, field)}"
            for field, value, said in both
            if said is not None and _listed(said) != value
        ]

    def _zeropoints(self, given: Mapping[str, float], bands: Any, count: int) -> list[Any]:
        """Zero points by band, of the file where none is given."""
        said = self.parts["zeropoints"]
        own = np.broadcast_to(np.asarray(said), count).tolist() if np.size(said) in (1, count) else [None] * count
        names = validation.as_bands(self.path, bands, count)
        found = [given.get(band, zero) for band, zero in zip(names, own, strict=True)]
        if None in found:
            received = ", ".join(given) or "none"
            raise DataError(
                self.path, "zeropoints", f"expected one for each of {', '.join(names)}, received {received}"
            )
        return found

    def bands(self, reading: Reading) -> tuple[str, ...]:
        """The names of the bands, as the observation will have them, or as the name of a file of one band says."""
        with self._by_name():
            given, count = self.parts["bands"] if reading.bands is None else reading.bands, len(self.parts["images"])
            if given is None and count == 1:
                given = parse(self.path).band or None
            return validation.as_bands(self.path, given, count)

    def pixel_scale(self, reading: Reading) -> float | None:
        """Arcsec, as the observation will have it; None where it is not known."""
        with self._by_name():
            given = self.parts["pixel_scale"] if reading.pixel_scale is None else reading.pixel_scale
            return validation.as_pixel_scale(self.path, given, validation.as_wcs(self.path, self.parts["wcs"]), [])

    @contextmanager
    def _by_name(self, given: Collection[str] = ()) -> Iterator[None]:
        """Name the file, and its parts as the file does, in errors of the checks; not those that are `given`."""
        try:
            yield
        except DataError as error:
            field = error.field or ""
            raise error.at(self.path, None if field in given else self.names.get(field)) from error


def _listed(value: Any) -> str:
    """The values of a part in one line, each of them once where they are all the same."""
    texts = [f"{one:g}" if isinstance(one, float | int) else str(one) for one in np.ravel(np.asarray(value)).tolist()]
    return ", ".join(texts[:1] if len(set(texts)) == 1 else texts)


FORMATS = {".ecsv": "ascii.ecsv", ".csv": "ascii.csv", ".cat": "ascii.sextractor"}
SUFFIXES = (".fits", ".fit", ".gz", ".fz", *FORMATS, ".parquet")  # of catalogues
FITS_STARTS = (b"SIMPLE", b"\x1f\x8b")  # the second of what gzip has compressed


def read_catalog(path: str | Path, origin: tuple[float, float] | None = None) -> Table:
    """Read the table in a file: .ecsv, .csv, .cat of SExtractor, .parquet (needs pyarrow), or FITS by its content.

    Of a FITS file it is the first table with columns of positions, such as that of the objects in a FITS_LDAC.

    origin: see `as_catalog`.

    Raises:
        DataError: a file that is missing, broken or of another suffix; a table without columns of positions.
    """
    path = as_path(path)
    if path.suffix not in SUFFIXES:
        raise DataError(path, "suffix", f"expected one of {', '.join(SUFFIXES)}, received {path.suffix!r}")
    if not path.is_file():
        raise DataError(path, "file", "expected a catalogue, received none")
    with parsing(path, "table"), path.open("rb") as file:
        if file.read(6).startswith(FITS_STARTS):
            table = _fits_table(path)
        elif path.suffix == ".parquet":
            table = _parquet_table(path)
        else:
            check_rows(path, "table", sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b"")))
            table = Table.read(path, format=FORMATS.get(path.suffix, "fits"))
        if not any(is_sky(table[name]) for name in table.colnames):  # beside which Astropy converts none
            table.convert_bytestring_to_unicode()
    return as_catalog(path, "table", "catalog", table, origin)


def _fits_table(path: Path) -> Table:
    with fits.open(path) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
        tables = [hdu for hdu in tables if has_positions(hdu.columns.names)] or tables
        if not tables:
            raise DataError(path, "table", "expected a table of sources, received images alone")
        check_rows(path, "table", tables[0].header["NAXIS2"])
        return Table.read(tables[0], format="fits", mask_invalid=False)


def _parquet_table(path: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(path, "format", "expected the package pyarrow, which is not installed") from error
    check_rows(path, "table", parquet.read_metadata(path).num_rows)
    return Table(parquet.read_table(path).to_pydict())


def as_catalog(path: Path, where: str, field: str, table: Table, origin: tuple[float, float] | None = None) -> Table:
    """The same table with `field` in its metadata, the name by which later errors call it.

    origin: where the first pixel of the image lies in the image that it was cut from, (x, y); positions may be there.

    Raises: DataError, about the field `where`, for a table without columns of positions.
    """
    if not has_positions(table.colnames) and not any(is_sky(table[name]) for name in table.colnames):
        received = ", ".join(table.colnames[:20])
        raise DataError(path, where, f"expected columns x, y or ra, dec, received {received}")
    table.meta = {"field": field, "origin": origin}
    return table


def source_table(scene: Scene) -> Table:
    """A row a source, as `Scene.from_catalog` takes it: x, y (pixels), kind and id."""
    rows = [(source.x, source.y, source.kind, source.id) for source in scene.sources]
    return Table(rows=rows, names=("x", "y", "kind", "id"))
