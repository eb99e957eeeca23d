"""Tiles read with as much of their border as can be read: damage in one tile is no damage of its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tiles import Section, Tile


def read(settings: SurveySettings, tile: Tile) -> Observation:
    """Read a tile with its border; the sides of the border are masked that cannot be read together with the tile.

    Raises: DataError for a tile that cannot be read, alone or with any side of its border: weights of another size than
        all around are its own fault.
    """
    try:
        return settings.read(tile.outer)
    except DataError as error:
        whole = error
    seen, section = settings.read(tile.inner), tile.inner
    for axis in (0, 1):
        for end in ("start", "stop"):
            bounds = {name: getattr(section[axis], name) for name in ("start", "stop")}
            bounds[end] = getattr(tile.outer[axis], end)
            grown = slice(bounds["start"], bounds["stop"])
            wider = (grown, section[1]) if axis == 0 else (section[0], grown)
            if wider != section:
                try:
                    seen, section = settings.read(wider), wider
                except DataError:
                    continue
    if section == tile.inner:
        raise whole
    return _framed(seen, section, tile.outer, f"a border is masked: {whole}")


def _framed(seen: Observation, section: Section, frame: Section, note: str) -> Observation:
    """Set an observation of a section into a larger one, masked where nothing was seen."""
    width = [(part.start - outer.start, outer.stop - part.stop) for part, outer in zip(section, frame, strict=True)]

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0), *width])

    return replace(
        seen,
        images=padded(seen.images),
        weights=padded(seen.weights),
        saturated=None if seen.saturated is None else padded(seen.saturated),
        wcs=None if seen.wcs is None else _moved(seen.wcs.celestial, width[1][0], width[0][0]),
        notes=(*seen.notes, note),
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
