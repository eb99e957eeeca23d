"""Tiles read with as much of their border as can be read: damage in one tile is no damage of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tiles import Section, Tile


def read(settings: SurveySettings, tile: Tile) -> Observation:
    """Read a tile with its border; of its sides and corners those are masked that cannot be read together with it,
    or with which it would not be seen as it is.

    Raises: DataError for a tile that cannot be read, alone or with any side of its border: weights of another size than
        all around are its own fault.
    """
    try:
        return settings.read(tile.outer, tile.inner)
    except DataError as error:
        whole = error
    own = settings.read(tile.inner)
    seen: list[tuple[Section, Observation]] = []
    rows, columns = map(_grown, tile.inner, tile.outer)
    for section in product(rows, columns):
        if section != tile.inner and section not in [each for each, _ in seen]:
            with suppress(DataError):
                one = settings.read(section, tile.inner)
                if np.array_equal(one.weights[:, *_from(section, tile.inner)], own.weights):
                    seen.append((section, one))
    if not seen:
        raise whole
    return _joined(own, [(tile.inner, own), *seen], tile, f"a part of the border is masked: {whole}")


def _grown(inner: slice, outer: slice) -> tuple[slice, slice, slice]:
    """Give the rows, or columns, of a tile alone, with the border before them and with that after."""
    return inner, slice(outer.start, inner.stop), slice(inner.start, outer.stop)


def _from(outer: Section, section: Section) -> Section:
    """Count the rows and columns of a section from the first of another one."""
    rows, columns = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(section, outer, strict=True))
    return rows, columns


def _joined(own: Observation, seen: Sequence[tuple[Section, Observation]], tile: Tile, note: str) -> Observation:
    """Join observations of sections to one of the tile with its border, masked where nothing was seen."""
    sides = tuple(part.stop - part.start for part in tile.outer)

    def pasted(name: str) -> np.ndarray:
        first = getattr(own, name)
        found = np.zeros((len(first), *sides), first.dtype)
        for section, one in seen:
            found[:, *_from(tile.outer, section)] = getattr(one, name)
        return found

    y, x = (part.start for part in _from(tile.outer, tile.inner))
    return replace(
        own,
        images=pasted("images"),
        weights=pasted("weights"),
        saturated=None if any(one.saturated is None for _, one in seen) else pasted("saturated"),
        wcs=None if own.wcs is None else _moved(own.wcs.celestial, x, y),
        notes=(*own.notes, note),
    )


def _moved(wcs: Any, x: int, y: int) -> Any:
    """Give the WCS of an image that has so many pixels more before the first."""
    from astropy.wcs import Sip

    moved = wcs.deepcopy()
    moved.wcs.crpix = np.add(wcs.wcs.crpix, (x, y))
    if wcs.sip is not None:
        moved.sip = Sip(wcs.sip.a, wcs.sip.b, wcs.sip.ap, wcs.sip.bp, np.add(wcs.sip.crpix, (x, y)))
    for table in (moved.cpdis1, moved.cpdis2, moved.det2im1, moved.det2im2):
        if table is not None:
            table.crval = tuple(np.add(table.crval, (x, y)))
    return moved
