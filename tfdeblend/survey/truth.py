"""A catalogue against the truth of its image: what was found, what is there, and whether fluxes and errors hold.

An object and a true source match where each is the other's nearest neighbour within a radius. By magnitude:

    completeness   share of true sources, by true magnitude, that have an object
    purity         share of objects, by measured magnitude, that have a true source
    flux error     F / F_true - 1 of the pairs, by true magnitude: its median, and half its central 68%
    68%, 95%       share of the pairs with |F - F_true| < 1 and 1.96 standard errors

True sources where all bands are masked, or on tiles that cannot be read, do not count. A true source is blended if
another one, not fainter by more than `FAINTER` mag, lies within `NEAR` arcsec; an object is if it is in a blend of two
or more. Some matches are chance: their share is measured with all objects shifted by `MOVED` radii.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.survey import tables
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tables import Table
from tfdeblend.survey.tasks import NJY
from tfdeblend.survey.tiles import Tile

RADIUS, PIXELS = 0.5, 3.0  # within which a pair is one: arcsec; pixels where their scale is not known
NEAR, FAINTER = 2.0, 2.0  # arcsec, mag
MOVED = 20.0
STEP = 0.5  # mag
WRONG = 2.0  # factor by which a flux is off that is counted apart
CLASSES = ("all", "isolated", "blended")


class Truth(NamedTuple):
    """True sources of an image: x, y (pixels, the first one's centre 0) and <band>_flux; arcsec a pixel, if known."""

    sources: Table
    pixel_scale: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` says of one band.

    Args:
        band: by whose magnitudes. chance: share of the objects that would have a partner by chance.
        edges: (n+1,) of bins of magnitude.
        counts: (3,n) of true sources, of CLASSES, by true magnitude; objects, by measured magnitude; and pairs with a
            flux, by true magnitude.
        shares: (3,n) of `completeness` and `purity`, and of the pairs `within68`, `within95`, and `wrong`: off by a
            factor of WRONG or more. bias, scatter: (3,n) of their fluxes. NaN in empty bins.
    """

    band: str
    chance: float
    edges: np.ndarray
    counts: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    bias: np.ndarray
    scatter: np.ndarray

    def document(self) -> dict[str, Any]:
        """Give all numbers as plain values."""
        lists = {name: part.tolist() for name, part in (self.counts | self.shares).items()}
        flux = {"bias": self.bias.tolist(), "scatter": self.scatter.tolist()}
        facts = {"band": self.band, "chance": self.chance, "edges": self.edges.tolist(), "classes": list(CLASSES)}
        return facts | lists | flux

    def __str__(self) -> str:
        head = (
            f"{self.band:>9}     class  sources complete  objects   pure    pairs    bias scatter    68%    95%  wrong"
        )
        lines = [f"by magnitude in {self.band}; {self.chance:.1%} of the objects would have a partner by chance", head]
        for k, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            for c, name in enumerate(CLASSES):
                if not any(count[c, k] for count in self.counts.values()):
                    continue
                lines.append(
                    f"{low:4.1f}-{high:4.1f} {name:>9} {self.counts['sources'][c, k]:8d} "
                    f"{self.shares['completeness'][c, k]:8.3f} {self.counts['objects'][c, k]:8d} "
                    f"{self.shares['purity'][c, k]:6.3f} {self.counts['pairs'][c, k]:8d} {self.bias[c, k]:+7.3f} "
                    f"{self.scatter[c, k]:7.3f} {self.shares['within68'][c, k]:6.3f} "
                    f"{self.shares['within95'][c, k]:6.3f} {self.shares['wrong'][c, k]:6.3f}"
                )
        return "\n".join(lines).replace("nan", "  -")


def match(
    objects: np.ndarray, truth: np.ndarray, radius: float, moved: tuple[float, float] = (0.0, 0.0)
) -> tuple[np.ndarray, np.ndarray]:
    """Number the pairs of places (n,2) and (m,2), each the other's nearest within `radius`, as two arrays of numbers.

    moved: added to the places of the objects, which come back in at the other side of what they cover.
    """
    if not len(objects) or not len(truth):
        return np.zeros(0, int), np.zeros(0, int)
    if any(moved):
        low, span = objects.min(0), np.ptp(objects, 0) + radius
        objects = low + (objects - low + moved) % span
    away, nearest = cKDTree(truth).query(objects)
    _, back = cKDTree(objects).query(truth)
    both = np.flatnonzero((away < radius) & (back[nearest] == np.arange(len(objects))))
    return both, nearest[both]


def compare(objects: Table, truth: Truth, band: str, radius: float | None = None) -> Comparison:
    """Compare a catalogue with the truth by the magnitudes of one band.

    Args:
        objects: columns of the table of objects: x, y, deblend_nChild, <band>_flux and <band>_fluxErr.
        truth: with fluxes in the same unit, see `read`.
        radius: pixels within which a pair is one; by default RADIUS arcsec.

    Magnitudes are 31.4 - 2.5 log10 of the flux: AB if it is in nJy. Objects without a flux are none, and those of a
    flux that is not positive are not in `purity`, as they have no magnitude.
    """
    sources, scale = truth.sources, truth.pixel_scale or RADIUS / PIXELS
    radius = radius or RADIUS / scale
    flux, error = (np.asarray(objects[f"{band}_{name}"], float) for name in ("flux", "fluxErr"))
    measured = np.isfinite(flux)
    flux, error = flux[measured], error[measured]
    places = np.stack([objects["y"], objects["x"]], 1).astype(float)[measured]
    true_places, true = (
        np.stack([sources["y"], sources["x"]], 1).astype(float),
        np.asarray(sources[f"{band}_flux"], float),
    )
    found, which = match(places, true_places, radius)
    chance = len(match(places, true_places, radius, (MOVED * radius, MOVED * radius))[0]) / max(len(places), 1)
    is_found, is_real = np.zeros(len(true), bool), np.zeros(len(flux), bool)
    is_found[which], is_real[found] = True, True
    of_truth, own = magnitude(true), magnitude(flux)
    known = np.concatenate([of_truth, own])
    known = known[np.isfinite(known)]
    low, high = (np.floor(known.min() / STEP), np.ceil(known.max() / STEP + 1e-9)) if len(known) else (0, 1)
    edges = STEP * np.arange(low, high + 1)
    blended = _blended(true_places, of_truth, NEAR / scale)
    in_blend = np.asarray(objects["deblend_nChild"])[measured] > 1
    by_class, by_own_class, of_pairs = ([np.ones_like(b), ~b, b] for b in (blended, in_blend, blended[which]))
    pull, ratio = (flux[found] - true[which]) / error[found], flux[found] / true[which]

    def counted(values: np.ndarray, classes: list[np.ndarray], chosen: Any = True) -> np.ndarray:
        return np.array([np.histogram(values[each & chosen], edges)[0] for each in classes])

    counts = {
        "sources": counted(of_truth, by_class),
        "objects": counted(own, by_own_class),
        "pairs": counted(of_truth[which], of_pairs),
    }
    shares = {
        "completeness": _share(counted(of_truth, by_class, is_found), counts["sources"]),
        "purity": _share(counted(own, by_own_class, is_real), counts["objects"]),
    }
    of_fluxes = {"within68": np.abs(pull) < 1, "within95": np.abs(pull) < 1.96}
    of_fluxes |= {"wrong": (ratio >= WRONG) | (ratio <= 1 / WRONG)}
    for name, right in of_fluxes.items():
        shares[name] = _share(counted(of_truth[which], of_pairs, right), counts["pairs"])
    quantiles = np.full((3, len(CLASSES), len(edges) - 1), np.nan)
    at = np.digitize(of_truth[which], edges) - 1
    for c, k in zip(*np.nonzero(counts["pairs"]), strict=True):
        quantiles[:, c, k] = np.percentile(ratio[of_pairs[c] & (at == k)] - 1, (15.87, 50, 84.13))
    return Comparison(band, chance, edges, counts, shares, quantiles[1], (quantiles[2] - quantiles[0]) / 2)


def read(path: str | Path, settings: SurveySettings) -> Truth:
    """Read the truth of a run's images from FITS, ECSV or Parquet, but for sources where all bands are masked, or on
    tiles that cannot be read.

    Args:
        path: a table of x and y (the first pixel's centre 0), or of ra and dec (degrees), and of mag_<band> (AB) or
            flux_<band>, as `tfdeblend simulate --field` writes it.

    Returns:
        The sources with the flux in each band of the images that the table has: in nJy where these have zero points,
        else in their unit.

    Raises:
        DataError: a file that is no such table, that has no band of the image, or whose x, y and ra, dec are not the
            same places.
    """
    from astropy.table import Table as AstropyTable

    from tfdeblend.io.files import parsing

    name, tiles = Path(path), settings.tiles()
    first, corner = _readable(settings, tiles)
    with parsing(name, "truth"):
        table: Any = tables.read(name) if name.suffix == ".parquet" else AstropyTable.read(name)
        columns = list(table) if isinstance(table, dict) else table.colnames

    def numbers(column: str) -> np.ndarray:
        """Give a column, NaN where it is masked."""
        return np.ma.filled(np.ma.asarray(table[column]).astype(float), np.nan)

    places = []
    if {"x", "y"} <= {*columns}:
        places.append(np.stack([numbers("y"), numbers("x")], 1))
    if {"ra", "dec"} <= {*columns} and first.wcs is not None:
        x, y = first.wcs.world_to_pixel_values(numbers("ra"), numbers("dec"))
        places.append(np.stack([y, x], 1) + corner)
    if not places:
        received = ", ".join(columns)
        raise DataError(name, "truth", f"expected columns x and y, or ra and dec and an image with a WCS, {received=}")
    if len(places) == 2 and len(table) and (off := np.nanmedian(np.hypot(*(places[0] - places[1]).T))) > 0.5:
        expected = "expected x and y (the first pixel's centre 0) to be the places of ra and dec"
        raise DataError(name, "truth", f"{expected}, received {off:.2f} pixels between them in the median")
    y, x = places[0].T
    seen = np.zeros(len(y), bool)
    for tile in tiles:
        own = np.flatnonzero(tile.owns(y, x))
        if len(own):
            at = [np.rint(axis[own]).astype(int) - part.start for axis, part in zip((y, x), tile.inner, strict=True)]
            try:
                valid = np.asarray(settings.read(tile.inner).valid.any(0))
            except DataError:  # a tile that cannot be read has no objects
                continue
            seen[own] = valid[np.minimum(at[0], len(valid) - 1), np.minimum(at[1], valid.shape[1] - 1)]
    found = {"x": x[seen], "y": y[seen]}
    for band in first.bands:
        if first.zeropoints is not None and f"mag_{band}" in columns:
            found[f"{band}_flux"] = 10 ** (0.4 * (NJY - numbers(f"mag_{band}")[seen]))
        elif first.zeropoints is None and f"flux_{band}" in columns:
            found[f"{band}_flux"] = numbers(f"flux_{band}")[seen]
    if len(found) == 2:
        wanted = "flux" if first.zeropoints is None else "mag"
        expected = f"expected a column {wanted}_<band> of a band of the image ({', '.join(first.bands)})"
        raise DataError(name, "truth", f"{expected}, received {', '.join(columns)}")
    return Truth(found, first.pixel_scale)


def _readable(settings: SurveySettings, tiles: Sequence[Tile]) -> tuple[Observation, list[int]]:
    """Read the first tile that can be read, and give its first row and column. Raises: DataError where none can be."""
    error: DataError | None = None
    for tile in tiles:
        try:
            return settings.read(tile.inner), [part.start for part in tile.inner]
        except DataError as problem:
            error = error or problem
    assert error is not None
    raise error


def magnitude(flux: np.ndarray) -> np.ndarray:
    """31.4 - 2.5 log10 of fluxes, AB magnitudes where they are in nJy; NaN where they are not positive."""
    flux = np.asarray(flux, float)
    return NJY - 2.5 * np.log10(flux, out=np.full(flux.shape, np.nan), where=flux > 0)


def _blended(places: np.ndarray, magnitude: np.ndarray, near: float) -> np.ndarray:
    """Which sources have another one, not fainter by more than FAINTER, within `near` pixels."""
    found = np.zeros(len(places), bool)
    if len(places):
        for first, second in (pairs := cKDTree(places).query_pairs(near, output_type="ndarray").T, pairs[::-1]):
            found[first[magnitude[second] < magnitude[first] + FAINTER]] = True
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
