"""Source and Scene: the observations of a field, one or several, and where the sources are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.data import catalogs
from tfdeblend.data.astrometry import WITHOUT_WCS, AffineMap
from tfdeblend.data.observation import Observation
from tfdeblend.data.photometry import alike, per_solid_angle
from tfdeblend.data.placement import misplaced
from tfdeblend.data.psf import REACH, fwhm
from tfdeblend.data.validation import check_columns
from tfdeblend.errors import DataError, expect

if TYPE_CHECKING:
    from astropy.table import Table

KINDS = ("galaxy", "point", "unknown")
MOST_LEFT_OUT = 100  # sources whose rows are kept
CLOSEST = 0.1  # pixels: sources closer than this are one source declared twice
FINER = 1.02  # ratio of pixel scales that counts as equal
READS = "Scene.read reads files, Scene.from_catalog takes an Observation and positions"
UNNAMED = re.compile(r"band\d+")  # what a band without a name is called


@dataclass(frozen=True)
class Source:
    """Says where a source is, in pixels (zero-based centres), and of which kind: "galaxy", "point" or "unknown".

    One of unknown kind is fitted as a galaxy, and taken as a point where it looks like one: see `inference.stars`.
    """

    y: float
    x: float
    kind: str = "unknown"
    id: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """Holds the E >= 1 observations of a field and its K sources.

    Every observation keeps its own pixels, PSF, depth, mask, bands and noise; a band of one name is one band in all of
    them. Sources are placed, and galaxies modelled, on the pixels of the first observation, which must be the finest.
    What another observation shows outside of the first one's image is not fitted.

    A source just outside of the image is fitted as any other, since its light is seen. One of which nothing can be seen
    is left out of the fit, with a note on the first observation: see `left_out`.

    Args:
        observations: one Observation, or a sequence of them; of several each needs a WCS and a name of its own.
        sources: where the sources are, in pixels of the first observation; one without an `id` gets its index.

    Raises:
        DataError: no source, or none that can be fitted, two sources within 0.1 pixel,
            an unknown kind, an id used twice; observations that cannot be joined: without a WCS, with finer pixels than
            the first's, without a name of their own, with unnamed bands, or with zero points of some alone.
    """

    observations: tuple[Observation, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        given = _as_tuple(self.observations)
        object.__setattr__(self, "observations", given)
        remedy = "Scene.from_catalog takes positions and tables"
        expect("sources", self.sources, list, tuple, remedy=remedy)
        for source in self.sources:
            expect("sources", source, Source, remedy=remedy)
        sources = tuple(source if source.id else replace(source, id=str(k)) for k, source in enumerate(self.sources))
        object.__setattr__(self, "sources", sources)
        if not sources:
            raise DataError(self.name, "catalog", "expected at least one source, received none")
        self._check_kinds_and_ids()
        if len(given) > 1:
            _check_joined(given)
            self._check_footprints()
        self._check_positions()

    @property
    def observation(self) -> Observation:
        """Give the first observation, whose pixels positions are counted in."""
        return self.observations[0]

    @property
    def name(self) -> str:
        """Give the name of the first observation."""
        return self.observation.name

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """List the C bands of all observations together, in the order in which they first come."""
        return tuple(dict.fromkeys(band for one in self.observations for band in one.bands))

    @cached_property
    def zeropoints(self) -> np.ndarray | None:
        """Give the AB magnitudes (C,) of a flux of 1, in the unit of the first observation that has the band.

        A surface brightness is summed over pixels of the scene's first observation, whichever has the band.
        """
        if self.observation.zeropoints is None:
            return None
        found = []
        for band, one in self.first_with_band:
            area = self.maps[self.observations.index(one)].area if per_solid_angle(one.unit) else 1.0
            found.append(one.zeropoints[one.bands.index(band)] + 2.5 * np.log10(area))  # type: ignore[index]
        return np.array(found)

    @property
    def flux_units(self) -> tuple[str | None, ...]:
        """Give the unit of the fluxes in each of the C bands."""
        return tuple(one.unit for _, one in self.first_with_band)

    @property
    def first_with_band(self) -> tuple[tuple[str, Observation], ...]:
        """Pair each of the C bands with the first observation that has it."""
        return tuple((band, next(one for one in self.observations if band in one.bands)) for band in self.bands)

    @cached_property
    def maps(self) -> tuple[AffineMap, ...]:
        """Give the map from each observation's pixels to those of the first."""
        if len(self.observations) == 1:
            return (AffineMap(np.eye(2), np.zeros(2)),)
        wcs = self.observation.wcs
        return tuple(AffineMap.between(one.name, one.wcs, wcs, one.shape[1:]) for one in self.observations)

    def band_indices(self, observation: Observation) -> tuple[int, ...]:
        """Tell which of the C bands an observation has, by their number."""
        return tuple(self.bands.index(band) for band in observation.bands)

    def covered(self, number: int) -> np.ndarray:
        """Tell which pixels of an observation, by its number, lie in the image of the first, (H,W) bool."""
        one = self.observations[number]
        if number == 0:
            return np.ones(one.shape[1:], bool)
        points, image = self.maps[number].points(one.shape[1:]), np.array(self.observation.shape[1:])
        return np.all((points > -0.5) & (points < image - 0.5), -1)

    def fitted(self, number: int) -> Observation:
        """Give an observation, by its number, with all pixels masked that the first one's image does not cover."""
        one = self.observations[number]
        return one if number == 0 else one.derived(weights=np.where(self.covered(number), one.weights, 0))

    @property
    def positions(self) -> np.ndarray:
        """Give the positions (K,2) as (y, x), in pixels."""
        return np.array([(source.y, source.x) for source in self.sources], float)

    @cached_property
    def left_out(self) -> np.ndarray:
        """Tell which sources are not fitted, (K,) bool, as no observation has an unmasked pixel within `REACH` of them.

        They lie outside of the image, or where there are no data in any band, or have no finite position.
        """
        seen = np.zeros(len(self.sources), bool)
        for number, pixels in enumerate(self.maps):
            one = self.observations[number]
            places = np.linalg.solve(pixels.matrix, (self.positions - pixels.offset).T).T
            seen |= _near(places, one.valid.any(0) & self.covered(number), REACH * float(fwhm(one.psf).max()))
        return ~seen

    @cached_property
    def kept(self) -> Scene:
        """Give the scene of the sources that are fitted, which is itself where these are all."""
        if not self.left_out.any():
            return self
        return replace(self, sources=tuple(compress(self.sources, ~self.left_out)))

    def noted(self, *notes: str) -> Scene:
        """Add notes to the first observation, which has each of them once."""
        noted = _noted(self.observations, notes)
        return self if noted is self.observations else replace(self, observations=noted)

    @classmethod
    def read(cls, path: str | Path, detect: bool | None = None, **how: Any) -> Scene:
        """Read an observation and its sources from an NPZ or FITS file.

        Args:
            path: an NPZ or FITS file.
            detect: None: detect sources when the file has no catalogue; True: always; False: refuse a file without one.
            how: the arguments of `tfdeblend.io.Reading`, such as psf, bands or zeropoints.

        Raises:
            DataError: by file and field.
        """
        from tfdeblend import io

        observation, catalog = io.read(path, **how)
        if catalog is None and detect is False:
            raise DataError(path, "catalog", "expected a catalogue of sources, received none")
        try:
            if detect or catalog is None:
                return cls.detect(observation)
            return cls.from_catalog(observation, catalog)
        except DataError as error:
            named = "catalog" if catalog is None else catalog.meta["field"]
            raise error.at(path, (error.field or "").replace("catalog", named)) from error

    def write(self, path: str | Path, **more: np.ndarray) -> None:
        """Write the scene as NPZ or FITS such that `read` reads it back equal; see `tfdeblend.io.write`."""
        from tfdeblend import io

        io.write(self, path, **more)

    @classmethod
    def detect(
        cls, observations: Observation | Sequence[Observation], threshold: float = 3.0, background: bool = False
    ) -> Scene:
        """Make the scene of the sources that `tfdeblend.data.detection.detect` finds in one or several observations.

        Args:
            threshold: in sigma of the filtered detection image.
            background: search the images less the levels of their sky; the scene keeps the images as they are.

        Raises:
            DataError: as `Scene`, and where nothing is detected.
        """
        from tfdeblend.data.detection import detect

        several = _as_tuple(observations)
        searched = [one.less(one.sky_levels()) for one in several] if background else several
        found = detect(searched, threshold)
        if not len(found):
            raise DataError(several[0].name, "catalog", f"expected sources, detected none at {threshold:g} sigma")
        return cls(several, tuple(Source(float(row["y"]), float(row["x"])) for row in found))

    @classmethod
    def from_catalog(cls, observations: Observation | Sequence[Observation], catalog: Any) -> Scene:
        """Make a scene from observations and a catalogue.

        Args:
            observations: one Observation or several, of which the positions belong to the first.
            catalog: a Table, DataFrame, structured array or mapping with the columns that `tfdeblend.data.catalogs`
                lists: positions as `x`, `y` (pixels, zero-based centres) or `ra`, `dec` (degrees, where the column has
                no other unit; the observation needs a WCS), or as surveys and their tools name them; optionally
                `kind` ("galaxy", "point", "unknown") or `is_star` or Legacy's `type`, and `id` or a survey's name for
                it. Where a table has pixels and sky coordinates, more than a pixel apart, those that see more light are
                taken, with a note. A column that is a SkyCoord says as much as `ra`, `dec`. Or an array (N,2) of
                (x, y); or a SkyCoord.

        What the light of the image contradicts becomes a note: positions that count from 1, or are (y, x). Where more
        than 100 sources are left out, as the catalogue is that of a larger field, the scene does not keep them.

        Raises:
            DataError: as `Scene`, and for columns that are missing or of the wrong type. TypeError: for what is no
                catalogue.
        """
        several = _as_tuple(observations)
        rows = catalogs.read(several[0], catalog)
        listed = zip(*rows.positions.T.tolist(), rows.kinds, rows.ids, strict=True)
        scene, notes = cls(several, tuple(Source(*row) for row in listed)), [*rows.notes]
        if scene.left_out.sum() > MOST_LEFT_OUT:
            notes.append(f"the rows of what is left out are not kept, as they are more than {MOST_LEFT_OUT}")
            scene = scene.kept
        return scene.noted(*notes, *misplaced(scene.observation, scene.kept.positions))

    def on_sky(self) -> Table:
        """List the sources on the sky in a table of ra, dec (degrees), kind and id; the observation needs a WCS."""
        from astropy.table import Table

        sky = self.observation.sky(*self.positions.T)
        rows = {name: [getattr(source, name) for source in self.sources] for name in ("kind", "id")}
        return Table({"ra": sky.ra.deg, "dec": sky.dec.deg, **rows})

    def _check_positions(self) -> None:
        positions, shape = self.positions, self.observation.shape[1:]
        fitted = positions[~self.left_out]
        if not len(fitted):
            outside = ((positions < -0.5) | (positions > np.array(shape) - 0.5)).any(axis=1)
            if not outside.any():
                received = f"received {len(positions)} without, such as {_xy(positions[0])}"
                raise DataError(self.name, "catalog", f"expected sources with unmasked pixels near them, {received}")
            received = f"received {int(outside.sum())} outside, such as {_xy(positions[outside][0])}"
            raise DataError(self.name, "catalog", f"expected sources inside the image of {shape} pixels, {received}")
        k = _closest_pair(fitted)
        if k is not None:
            received = f"received duplicates at {_xy(fitted[k])}"
            raise DataError(self.name, "catalog", f"expected sources {CLOSEST} pixel apart, {received}")
        if len(fitted) < len(positions):
            count, first = int(self.left_out.sum()), self.sources[int(np.argmax(self.left_out))]
            where = f"such as {first.id!r} at {_xy(positions[self.left_out][0])}"
            which = f"{count} of {len(positions)} sources left out, with no unmasked pixel near them, {where}"
            object.__setattr__(self, "observations", _noted(self.observations, [which]))

    def _check_footprints(self) -> None:
        for number, (one, pixels) in enumerate(zip(self.observations, self.maps, strict=True)):
            if pixels.area < FINER**-2:
                expected = f"expected pixels no finer than those of {self.name}, which comes first"
                raise DataError(one.name, "wcs", f"{expected}, received {pixels.area**0.5:.3g} of their side")
            if not (one.valid & self.covered(number)).any():
                raise DataError(one.name, "wcs", f"expected unmasked pixels in the image of {self.name}, received none")

    def _check_kinds_and_ids(self) -> None:
        for source in self.sources:
            if source.kind not in KINDS:
                raise DataError(self.name, "catalog.kind", f"expected {' or '.join(KINDS)}, received {source.kind!r}")
        # As they stand in FITS files, which hold no other text than ASCII, and no blanks at its end.
        ids = [source.id.rstrip().encode("ascii", "backslashreplace") for source in self.sources]
        if len({*ids}) < len(ids):
            raise DataError(self.name, "catalog.id", "expected a different id for each source, received duplicates")


def _as_tuple(observations: Observation | Sequence[Observation]) -> tuple[Observation, ...]:
    """One observation or several, as a tuple. Raises: DataError for none."""
    remedy = "Observation.read reads files, Observation(images, weights, psf) takes arrays"
    expect("observations", observations, Observation, list, tuple, remedy=remedy)
    several = (observations,) if isinstance(observations, Observation) else tuple(observations)
    for one in several:
        expect("observations", one, Observation, remedy=remedy)
    if not several:
        raise DataError("observations", "observations", "expected at least one, received none")
    return several


def _noted(observations: tuple[Observation, ...], notes: Sequence[str]) -> tuple[Observation, ...]:
    """The observations with notes on the first, which has each of them once."""
    first, *others = observations
    new = [note for note in notes if note not in first.notes]
    return (replace(first, notes=(*first.notes, *new)), *others) if new else observations


def finest_first(observations: Sequence[Observation]) -> list[Observation]:
    """The observations with the one of the finest pixels in front, and the others in their order.

    Pixel scales within 2% count as equal: the first of the finest comes first.

    Raises:
        DataError: for an observation without a WCS.
    """
    from astropy.wcs.utils import proj_plane_pixel_area

    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
    areas = [proj_plane_pixel_area(one.wcs.celestial) for one in observations]
    finest = next(i for i, area in enumerate(areas) if area <= FINER**2 * min(areas))
    return [observations[finest], *observations[:finest], *observations[finest + 1 :]]


def _check_joined(observations: Sequence[Observation]) -> None:
    """Raises: DataError for observations without names to tell them apart by, a WCS, or units that convert."""
    first = observations[0]
    names = [one.name for one in observations]
    suffixes = [
        name.encode("ascii", "backslashreplace").upper() for name in names
    ]  # of FITS extensions, such as SOURCES_STD
    if len({*suffixes, b"STD"}) <= len(names):
        raise DataError(
            first.name, "name", f"expected a name for each observation, not STD, received {', '.join(names)}"
        )
    check_columns(first.name, list(dict.fromkeys(band for one in observations for band in one.bands)))
    for number, one in enumerate(observations):
        before = {band for other in observations[:number] for band in other.bands}
        unnamed = [band for band in one.bands if UNNAMED.fullmatch(band) and band in before]
        if unnamed:
            expected = "expected names of bands, by which observations are joined"
            raise DataError(one.name, "bands", f"{expected}, received none: {', '.join(unnamed)}")
    for one in observations:
        if one.wcs is None:
            raise DataError(one.name, "wcs", WITHOUT_WCS)
        if (one.zeropoints is None) != (first.zeropoints is None):
            raise DataError(one.name, "zeropoints", "expected them of all observations or of none")
        if one.zeropoints is None and per_solid_angle(one.unit):
            expected = "expected zero points to join surface brightnesses by"
            raise DataError(one.name, "zeropoints", f"{expected}, received none and the unit {one.unit}")
        if one.zeropoints is None and None not in (one.unit, first.unit) and not alike(one.unit, first.unit):
            expected = f"expected {first.unit}, the unit of {first.name}, as there are no zero points to convert by"
            raise DataError(one.name, "unit", f"{expected}, received {one.unit}")


def _xy(position: np.ndarray) -> str:
    y, x = position
    return f"x={x:g}, y={y:g}"


def _near(places: np.ndarray, pixels: np.ndarray, radius: float) -> np.ndarray:
    """Tell (K,) of which `places` (K,2) some of `pixels` (H,W) bool lies within `radius` pixels, at least 1."""
    shape, radius, found = np.array(pixels.shape), max(radius, 1.0), np.zeros(len(places), bool)
    close = np.all((places > -0.5 - radius) & (places < shape - 0.5 + radius), 1)
    for k in np.flatnonzero(close):
        first = np.maximum(np.floor(places[k] - radius), 0).astype(int)
        last = np.ceil(places[k] + radius).astype(int) + 1
        offset = np.argwhere(pixels[first[0] : last[0], first[1] : last[1]]) + first - places[k]
        found[k] = (np.hypot(*offset.T) < radius).any()
    return found


def _closest_pair(positions: np.ndarray) -> int | None:
    """Index of a source with another one closer than CLOSEST, or None; sorted by y, so that few pairs are looked at."""
    order = np.argsort(positions[:, 0], kind="stable")
    ordered = positions[order]
    for step in range(1, len(ordered)):
        dy, dx = np.abs(ordered[step:] - ordered[:-step]).T
        close = np.hypot(dy, dx) < CLOSEST
        if close.any():
            return int(order[np.argmax(close)])
        if dy.min() >= CLOSEST:
            break
    return None
