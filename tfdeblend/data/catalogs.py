"""Catalogues: the rows of a table of sources, by the names that surveys and their tools give to columns.

Names are compared without regard to case. Of the pairs of columns with pixels, and of those with sky coordinates, the
first in `PIXELS` and in `SKY` that a table has counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfdeblend.data.placement import Light
from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation

PIXELS = (  # x, y, and what the centre of the first pixel is called
    ("x", "y", 0),
    ("xcentroid", "ycentroid", 0),  # photutils
    ("x_centroid", "y_centroid", 0),
    ("x_fit", "y_fit", 0),
    ("xwin_image", "ywin_image", 1),  # SExtractor
    ("xpsf_image", "ypsf_image", 1),
    ("xmodel_image", "ymodel_image", 1),
    ("x_image", "y_image", 1),
    ("slot_centroid_x", "slot_centroid_y", 0),  # LSST and HSC, in pixels of the parent image
    ("base_sdsscentroid_x", "base_sdsscentroid_y", 0),
    ("bx", "by", 0),  # Legacy, in pixels of the brick
)
SKY = (
    ("ra", "dec"),  # Rubin, DES, Legacy, Gaia
    ("coord_ra", "coord_dec"),  # Rubin: degrees, or radians where the column says so
    ("alphawin_j2000", "deltawin_j2000"),  # SExtractor
    ("alphapsf_j2000", "deltapsf_j2000"),
    ("alpha_j2000", "delta_j2000"),
    ("alphawin_sky", "deltawin_sky"),
    ("alpha_sky", "delta_sky"),
    ("right_ascension", "declination"),  # Euclid
    ("raj2000", "decj2000"),  # KiDS
    ("raj2000", "dej2000"),  # VizieR
    ("ra_icrs", "de_icrs"),
    ("ra_j2000", "dec_j2000"),
    ("ramean", "decmean"),  # Pan-STARRS
)
IDS = (
    "id",
    "objectid",  # Rubin
    "object_id",  # HSC, Euclid
    "coadd_object_id",  # DES
    "coadd_objects_id",
    "source_id",  # Gaia
    "objid",  # Legacy, Pan-STARRS
    "number",  # SExtractor
    "label",  # photutils
    "seqnr",  # KiDS
)
TYPES = {  # of Legacy; duplicates are entries of Gaia's inside of galaxies
    **dict.fromkeys(("REX", "EXP", "DEV", "SER", "COMP", "SIMP"), "galaxy"),
    "PSF": "point",
    "DUP": "duplicate",
}
COORDINATES = ""  # under which a SkyCoord is kept, as no column is called so
APART = 1.0  # pixels by which two sets of positions may differ and be the same


@dataclass(frozen=True)
class Rows:
    """N sources. positions: (N,2) of (y, x) in pixels, NaN where the table has none. kinds, ids: as in `Source`, ids ""
    where the table has none."""

    positions: np.ndarray
    kinds: list[str]
    ids: list[str]
    notes: list[str]


class Column(NamedTuple):
    """A column by the name that the table gives it."""

    name: str
    values: Any

    @property
    def unit(self) -> Any:
        return getattr(self.values, "unit", None) or None

    def plain(self, where: str, kinds: str, expected: str) -> np.ndarray:
        """The values (N,). Raises: DataError for masked ones, another shape, another kind of dtype than `kinds`."""
        field, values = f"catalog.{self.name}", getattr(self.values, "value", self.values)
        if np.ma.is_masked(values):
            raise DataError(where, field, "expected a value for each source, received masked ones")
        array = np.ma.getdata(np.asanyarray(values))
        if array.ndim != 1:
            raise DataError(where, field, f"expected one value a source, received shape {array.shape}")
        array = np.char.decode(array, "ascii", "replace") if array.dtype.kind == "S" else array
        if array.dtype.kind not in kinds:
            raise DataError(where, field, f"expected {expected}, received dtype {array.dtype}")
        return array

    def text(self, where: str) -> list[str]:
        return [str(value).strip() for value in self.plain(where, "fiubUO", "names")]

    def pixels(self, where: str) -> np.ndarray:
        if self.unit is not None and not str(self.unit).lower().startswith("pix"):
            raise DataError(where, f"catalog.{self.name}", f"expected pixels, received {self.unit}")
        return self.numbers(where)

    def numbers(self, where: str) -> np.ndarray:
        """The values (N,) as floats, NaN where they are masked or infinite."""
        values = getattr(self.values, "value", self.values)
        if np.ma.is_masked(values) and values.dtype.kind in "fiu":
            values = values.astype(float).filled(np.nan)
        floats = Column(self.name, values).plain(where, "fiu", "numbers").astype(float)
        return np.where(np.isfinite(floats), floats, np.nan)

    def degrees(self, where: str) -> np.ndarray:
        """Angles, of which those without a unit are in degrees."""
        from astropy import units

        try:
            scale = 1.0 if self.unit is None else units.Unit(self.unit).to(units.deg)
        except (units.UnitsError, TypeError, ValueError) as error:
            raise DataError(where, f"catalog.{self.name}", f"expected degrees, received {self.unit}") from error
        return scale * self.numbers(where)


class Places(NamedTuple):
    """Positions (N,2) of (y, x) in pixels, by the columns they come from, with the notes on how they were read."""

    columns: str
    positions: np.ndarray
    notes: tuple[str, ...] = ()


def read(observation: Observation, catalog: Any) -> Rows:
    """Read a catalogue, see `Scene.from_catalog`.

    Raises: DataError for columns that are missing or of the wrong type; TypeError for what is no catalogue.
    """
    where, columns = observation.name, _columns(observation.name, catalog)
    choices = list(_choices(observation, columns, getattr(catalog, "meta", None) or {}))
    chosen, notes = _best(observation, choices)
    count = len(chosen.positions)
    kinds = _kinds(where, columns, count)
    ids = _ids(where, columns, count, notes)
    if "duplicate" in kinds:
        kept = [k for k, kind in enumerate(kinds) if kind != "duplicate"]
        notes.append(f"{count - len(kept)} rows of type DUP are no sources")
        return Rows(chosen.positions[kept], [kinds[k] for k in kept], [ids[k] for k in kept], notes)
    return Rows(chosen.positions, kinds, ids, notes)


def has_positions(names: Any) -> bool:
    """Whether columns of these names say where sources are."""
    known = {str(name).lower() for name in names}
    return any({*pair[:2]} <= known for pair in (*PIXELS, *SKY))


def is_sky(values: Any) -> bool:
    """Whether a column, or a whole catalogue, is a SkyCoord."""
    return hasattr(values, "to_pixel")


def _columns(where: str, catalog: Any) -> dict[str, Column]:
    """Columns by lower-case name; a SkyCoord, or the first column of such, under `COORDINATES`."""
    if is_sky(catalog):
        return {COORDINATES: Column("sky", catalog.reshape(-1))}
    names: Any
    if isinstance(catalog, Mapping):
        names = tuple(catalog)
    else:
        names = getattr(getattr(catalog, "dtype", None), "names", None)
        names = names or getattr(catalog, "colnames", None) or getattr(catalog, "columns", None)  # of pandas
    if names is not None:
        found: dict[str, Column] = {}
        for name in names:
            found.setdefault(str(name).lower(), Column(str(name), catalog[name]))
        plain = {name: column for name, column in found.items() if not is_sky(column.values)}
        coordinates = next((column for column in found.values() if is_sky(column.values)), None)
        return plain if coordinates is None else plain | {COORDINATES: coordinates}
    if not isinstance(catalog, list | tuple | np.ndarray):
        expected = "catalog: expected a table, an array (N,2) of (x, y) or a SkyCoord"
        hint = "; tfdeblend.io.read_catalog reads files" if isinstance(catalog, str | Path) else ""
        raise TypeError(f"{expected}, received a {type(catalog).__name__}{hint}")
    try:
        array = np.asarray(catalog)
    except ValueError as error:
        raise DataError(where, "catalog", f"expected an array (N,2) of (x, y), received {error}") from error
    if array.ndim != 2 or array.shape[1] != 2:
        raise DataError(where, "catalog", f"expected columns x, y or an array (N,2) of (x, y), received {array.shape}")
    return {"x": Column("x", array[:, 0]), "y": Column("y", array[:, 1])}


def _choices(observation: Observation, columns: dict[str, Column], meta: Mapping[str, Any]) -> Iterator[Places]:
    """Positions by pixels, by pixels of the image that this one was cut from, and by the sky, as far as there are such.

    meta: of the table; `origin` is the (x, y) of the first pixel in the image that it was cut from.

    Raises: DataError for neither, and for sky coordinates without a WCS.
    """
    where = observation.name
    pixels = next(((x, y, first) for x, y, first in PIXELS if {x, y} <= columns.keys()), None)
    sky = next((pair for pair in SKY if {*pair} <= columns.keys()), None)
    if pixels is not None:
        x, y, first = columns[pixels[0]], columns[pixels[1]], pixels[2]
        names = f"{x.name}, {y.name}"
        places = np.stack([y.pixels(where), x.pixels(where)], 1) - first
        notes = (f"{names} count from {first}: {first} subtracted",) if first else ()
        yield Places(names, places, notes)
        if origin := meta.get("origin"):
            cut = f"{names} count in the image that this one was cut from: {origin[0]:g}, {origin[1]:g} subtracted"
            yield Places(names, places - np.array(origin)[::-1], (*notes, cut))
    if COORDINATES not in columns and sky is None:
        if pixels is None:
            received = ", ".join(list(columns)[:20]) or "neither"
            raise DataError(where, "catalog", f"expected columns x, y or ra, dec, received {received}")
        return
    if observation.wcs is None:
        if pixels is None:
            raise DataError(where, "catalog", "expected columns x, y, as there is no WCS to place ra, dec by")
        return
    if COORDINATES in columns:
        yield Places(columns[COORDINATES].name, _on_image(observation, columns[COORDINATES].values))
    if sky is None:
        return
    try:
        yield _by_angles(observation, columns[sky[0]], columns[sky[1]])
    except DataError:
        if pixels is None:  # else the sky only tells what the pixels tell
            raise


def _by_angles(observation: Observation, first: Column, second: Column) -> Places:
    """Positions by degrees; by radians where the columns have no unit, and only as radians lie in the image."""
    from astropy.coordinates import SkyCoord

    ra, dec = first.degrees(observation.name), second.degrees(observation.name)
    if (np.abs(dec) > 90).any():
        raise DataError(observation.name, f"catalog.{second.name}", "expected degrees from -90 to 90, received others")
    found = Places(f"{first.name}, {second.name}", _on_image(observation, SkyCoord(ra, dec, unit="deg")))
    bare = first.unit is second.unit is None
    small = not (np.abs(ra) > 7).any() and not (np.abs(dec) > 1.6).any()
    if bare and small and not _inside(observation, found.positions):
        radians = _on_image(observation, SkyCoord(ra, dec, unit="rad"))
        if _inside(observation, radians):
            return Places(
                found.columns, radians, (f"{found.columns} taken as radians: as degrees none is in the image",)
            )
    return found


def _best(observation: Observation, choices: list[Places]) -> tuple[Places, list[str]]:
    """The first of several sets of positions, or where others are elsewhere the one that sees most light, and notes."""
    first = choices[0]
    others = [one for one in choices[1:] if not _same(observation, first.positions, one.positions)]
    if not others:
        return first, list(first.notes)
    light, differing = Light(observation), [first, *others]
    seen = [light.seen(one.positions[np.isfinite(one.positions).all(1)]) for one in differing]
    inside = [_inside(observation, one.positions) for one in differing]
    best = max(range(len(differing)), key=lambda n: (seen[n], inside[n], -n))
    chosen, other = differing[best], differing[1 if best == 0 else 0]
    if chosen.columns == other.columns:
        return chosen, list(chosen.notes)
    apart = np.nanmedian(np.hypot(*(chosen.positions - other.positions).T))
    taken = f"{chosen.columns} taken, which see more light than {other.columns}"
    return chosen, [*chosen.notes, f"{taken}, {apart:.3g} pixels away in the median by the WCS"]


def _same(observation: Observation, places: np.ndarray, others: np.ndarray) -> bool:
    """Whether two sets of positions (N,2) are the same but for APART pixels, in the median of those in the image."""
    shape = np.array(observation.shape[1:])
    near = [((one > -0.5) & (one < shape - 0.5)).all(1) for one in (places, others)]
    distance = np.hypot(*(places - others)[near[0] | near[1]].T)
    known = distance[np.isfinite(distance)]
    return not len(known) or bool(np.median(known) <= APART)


def _inside(observation: Observation, places: np.ndarray) -> int:
    return int(((places > -0.5) & (places < np.array(observation.shape[1:]) - 0.5)).all(1).sum())


def _on_image(observation: Observation, sky: Any) -> np.ndarray:
    try:
        x, y = observation.wcs.world_to_pixel(sky)
    except Exception as error:  # of astropy, its kind depending on the frame and the distortion
        expected = "expected positions that the WCS can place"
        raise DataError(observation.name, "catalog", f"{expected}, received {error}") from error
    return np.stack([np.asarray(y, float), np.asarray(x, float)], 1)


def _ids(where: str, columns: dict[str, Column], count: int, notes: list[str]) -> list[str]:
    name = next((name for name in IDS if name in columns), None)
    if name is None:
        return [""] * count
    ids = columns[name].text(where)
    if name != "id" and len({*ids}) < count:  # such as numbers that are a brick's or a detector's own
        notes.append(f"sources are numbered, as {columns[name].name} is the same for several")
        return [""] * count
    return ids


def _kinds(where: str, columns: dict[str, Column], count: int) -> list[str]:
    if "kind" in columns:
        return columns["kind"].text(where)
    if "is_star" in columns:
        stars = columns["is_star"].plain(where, "biu", "true or false")
        return ["point" if star else "galaxy" for star in stars]
    if "type" in columns and not np.ma.is_masked(columns["type"].values):
        types = columns["type"].text(where)
        if {*types} <= TYPES.keys():
            return [TYPES[one] for one in types]
    return ["unknown"] * count
