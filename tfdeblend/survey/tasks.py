"""The work on one tile: find its sources, then fit them. A task is a pure function of settings, tile and detections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from tfdeblend.catalog.result import Deblended, SampleCatalog
from tfdeblend.data.detection import search
from tfdeblend.data.local_sky import local_sky
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.inference import parts
from tfdeblend.survey import borders, tables
from tfdeblend.survey.models import TileModel
from tfdeblend.survey.resampled import Fitted, resampled
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tables import Table
from tfdeblend.survey.tiles import Tile

# Pixels beyond its own in which a tile reports detections, as two tiles may place one on either side of their edge.
SLACK = 3.0
SAME = 2.0  # pixels within which detections of two tiles are one
NJY = 31.4  # AB magnitude of 1 nJy
LEAST_CORRELATION = 1e-3  # of the fluxes of a pair that is kept
HALF_PIXELS = 2  # a pixel, by which objects are numbered: no two detections of a tile are so close


class TileResult(NamedTuple):
    """What the fit of a tile gives: tables of the objects, of pairs of them, of their samples, and of what failed.

    unit: of fluxes. model: where it is asked for. notes: warnings of reading and checking the tile.
    """

    objects: Table
    pairs: Table
    samples: Table
    failures: Table
    bands: tuple[str, ...]
    unit: str
    model: TileModel | None = None
    notes: tuple[str, ...] = ()


def observe(settings: SurveySettings, tile: Tile) -> Observation:
    """Read a tile with its border, less the local sky."""
    observation = borders.read(settings, tile)
    return observation.derived(images=observation.images - local_sky(observation), flat=True)


def _with_noise(settings: SurveySettings, flat: Observation) -> Observation:
    """Measure the correlation of the noise, where it is asked for and the tile has enough empty sky."""
    if not settings.sky_correlation:
        return flat
    try:
        return flat.with_sky_correlation()
    except DataError as error:
        return flat.derived(notes=(*flat.notes, f"{error}: the noise is taken as white here"))


def detect(settings: SurveySettings, tile: Tile) -> Table:
    """Find the sources of a tile, and those at most SLACK pixels beyond: columns y, x, snr, half and reach."""
    names = "y", "x", "snr", "half", "reach"
    flat = observe(settings, tile)
    if not flat.valid.any():
        return {name: np.zeros(0) for name in names}
    flat = _with_noise(settings, flat)
    found = search(flat, settings.threshold)
    place = np.stack([found["y"], found["x"]], 1).reshape(-1, 2)
    y, x = (place + tile.corner).T
    kept = tile.owns(y, x, SLACK)
    half, reach = np.zeros((2, 0))
    if kept.any():
        half, reach = parts.extents(Scene((flat,), tuple(Source(*each) for each in place[kept].tolist())))
    columns = y[kept], x[kept], np.asarray(found["snr"], float)[kept], half, reach
    return dict(zip(names, columns, strict=True))


def merge(found: Sequence[Table], all_tiles: Sequence[Tile], shape: tuple[int, int]) -> Table:
    """Join the detections of all tiles, each object once, with its identifier, tile and blend; by row and column.

    Of two tiles that report one object the one is right in which it lies farther from the edge.
    """
    number = np.repeat(np.arange(len(found)), [len(table["y"]) for table in found])
    whole = {name: np.concatenate([table[name] for table in found]) for name in ("y", "x", "snr", "half", "reach")}
    place = np.stack([whole["y"], whole["x"]], 1).reshape(-1, 2)
    first, last = (
        np.array([[getattr(part, end) for part in tile.inner] for tile in all_tiles]) - 0.5 for end in ("start", "stop")
    )
    depth = np.minimum(place - first[number], last[number] - place).min(1, initial=np.inf)
    kept = np.ones(len(place), bool)
    near = cKDTree(place).query_pairs(SAME, output_type="ndarray") if len(place) else np.zeros((0, 2), int)
    near = near[np.lexsort((*near.T, np.hypot(*(place[near[:, 0]] - place[near[:, 1]]).T)))]
    met: set[tuple[int, int]] = set()  # a detection is one of another tile's at most, the nearest
    for a, b in near.tolist():
        if number[a] != number[b] and not met & {(a, number[b]), (b, number[a])}:
            met |= {(a, number[b]), (b, number[a])}
            kept[a if depth[a] < depth[b] else b] = False
    order = np.flatnonzero(kept)
    order = order[np.lexsort((whole["x"][order], whole["y"][order]))]
    table = {name: values[order] for name, values in whole.items()}
    y, x = (np.clip(table[axis], 0, size - 1) for axis, size in zip("yx", shape, strict=True))
    height, width = (part.stop for part in all_tiles[0].inner)
    across = max(tile.column for tile in all_tiles) + 1
    table["tile"] = (np.floor((y + 0.5) / height) * across + np.floor((x + 0.5) / width)).astype(int)
    rows, columns = (np.floor(HALF_PIXELS * (values + 0.5)).astype(int) for values in (y, x))
    table["objectId"] = rows * HALF_PIXELS * shape[1] + columns
    labels = parts.blends(np.stack([table["y"], table["x"]], 1), table["half"], table["reach"])
    brightest = np.lexsort((table["objectId"], -table["snr"], labels))
    _, starts, counts = np.unique(labels[brightest], return_index=True, return_counts=True)
    table["blend"], table["children"] = table["objectId"][brightest[starts]][labels], counts[labels]
    return {name: table[name] for name in tables.DETECTIONS}


def deblend(settings: SurveySettings, tile: Tile, number: int, detections: Table) -> TileResult:
    """Fit the sources of a tile, by its number, together with their neighbours.

    Where the fit of the whole tile fails, its blends are fitted one by one; the objects of one that fails are rows of
    the table of failures.
    """
    flat = _with_noise(settings, observe(settings, tile))
    unit = flat.unit or "" if flat.zeropoints is None else "nJy"
    near = _within(settings, tile, detections)
    rows = {name: values[near] for name, values in detections.items()}
    own = rows["tile"] == number
    area = tuple(
        slice(max(inner.start - settings.margin, outer.start), min(inner.stop + settings.margin, outer.stop))
        for inner, outer in zip(tile.inner, tile.outer, strict=True)
    )
    corner = np.array([part.start for part in area])
    here = [slice(part.start - first, part.stop - first) for part, first in zip(area, tile.corner, strict=True)]
    places = np.stack([rows["y"], rows["x"]], 1) - corner
    named = zip(places.tolist(), rows["objectId"].tolist(), strict=True)
    sources = [Source(y, x, id=str(name)) for (y, x), name in named]
    one = flat.cut(*here)
    found: dict[str, list[Table]] = {name: [] for name in ("objects", "pairs", "samples", "failures")}
    total, lacking = np.zeros(one.shape), len(sources)
    notes = [*flat.notes]
    wanted = own | settings.models  # neighbours shine into a tile without a source of its own
    for each in _fitted(settings, Scene((one,), tuple(sources)), rows, own) if wanted.any() else ():
        if isinstance(each.result, Exception):
            failed = rows["objectId"][each.rows[own[each.rows]]]
            found["failures"].append(failure(failed, number, each.stage, each.result))
            continue
        notes += each.result.scene.observation.notes
        for name, table in _measured(each.result, rows, own, each, corner, unit).items():
            found[name].append(table)
        if settings.models:
            _add_light(total, each)
            lacking -= int(each.kept.sum())
    columns = tables.of_tile(flat.bands, unit)
    joined = {name: tables.joined(each, columns[name]) for name, each in found.items()}
    model = None
    if settings.models:
        inner = [slice(part.start - first, part.stop - first) for part, first in zip(tile.inner, corner, strict=True)]
        first = [part.start for part in tile.inner]
        model = TileModel(one.cut(*inner), total[:, *inner], first, len(sources) - lacking, lacking)
    return TileResult(**joined, bands=flat.bands, unit=unit, model=model, notes=tuple(dict.fromkeys(notes)))


def _add_light(image: np.ndarray, each: Fitted) -> None:
    """Add the light of the sources that a fit tells of to what the tile fits."""
    assert isinstance(each.result, Deblended)
    light = each.result.light
    rows, columns = (slice(a, a + n) for a, n in zip(each.corner, light.shape[1:], strict=True))
    part = image[:, rows, columns]
    for kept, (here, pixels) in zip(each.kept, light, strict=True):
        if kept:
            part[here] += pixels


def failure(objects: Sequence[int] | np.ndarray, tile: int, stage: str, error: Exception) -> Table:
    """Make the rows of the table of failures for objects, by identifier, of a tile, by number."""
    shared = {"tile": tile, "stage": stage, "kind": type(error).__name__, "message": str(error)[:512]}
    same = {name: np.full(len(objects), value, tables.FAILURES[name].dtype) for name, value in shared.items()}
    return {"objectId": np.asarray(objects, int)} | same


def deblender(settings: SurveySettings) -> Deblender:
    """Give the deblender of this process for whole tiles, whose compiled graphs serve all of them."""
    return _deblenders(settings)[0]


def _deblenders(settings: SurveySettings) -> tuple[Deblender, Deblender]:
    """Give the deblender of whole tiles, and that of blends to be sampled."""
    arguments = {name: getattr(settings, name) for name in ("prior", "method", "seed", "samples", "trust_weights")}
    if settings.sample_above is not None:
        arguments["method"] = "map"
    return _made(tuple(arguments.items()))


@lru_cache(1)
def _made(arguments: tuple[tuple[str, Any], ...]) -> tuple[Deblender, Deblender]:
    first = Deblender(**dict(arguments), few_shapes=True)
    # Weights of blends were examined with their tile's.
    return first, first.like(method="sample", trust_weights=True)


def _within(settings: SurveySettings, tile: Tile, detections: Table) -> np.ndarray:
    """Number the detections, which are sorted by y, of a tile, and those at most `margin` pixels beyond."""
    first, last = np.searchsorted(detections["y"], reach(settings, tile))
    y, x = (detections[axis][first:last] for axis in "yx")
    return first + np.flatnonzero(tile.owns(y, x, settings.margin))


def reach(settings: SurveySettings, tile: Tile) -> tuple[float, float]:
    """Give where the detections that the fit of a tile sees begin and end in y."""
    rows = tile.inner[0]
    return rows.start - 0.5 - settings.margin, rows.stop - 0.5 + settings.margin


def digest(settings: SurveySettings, tile: Tile, detections: Table) -> str:
    """Compute the SHA-256 of the detections that the fit of a tile sees, of all or those about it."""
    near = _within(settings, tile, detections)
    return hashlib.sha256(b"".join(detections[name][near].tobytes() for name in tables.DETECTIONS)).hexdigest()


def _fitted(settings: SurveySettings, scene: Scene, rows: Table, own: np.ndarray) -> Iterator[Fitted]:
    """Fit the sources of a tile, and sample the blends of which that is asked."""
    whole, sampler = _deblenders(settings)
    for each in _fitted_whole(whole, scene, rows, own):
        if settings.sample_above is None or isinstance(each.result, Exception):
            yield each
            continue
        blend, mine, reach = (values[each.rows] for values in (rows["blend"], own, rows["reach"]))
        yield from resampled(sampler, each, blend, mine, reach, settings.sample_above)


def _fitted_whole(deblender: Deblender, scene: Scene, table: Table, own: np.ndarray) -> Iterator[Fitted]:
    """Fit all sources, or, where that ends in an error, the blends that have sources of the tile each alone.

    There the pixels are masked where sources of other blends shine.
    """
    everything, blend = np.arange(len(own)), table["blend"]

    def fitted(result: Deblended | Exception, rows: np.ndarray) -> Fitted:
        return Fitted(result, rows, np.ones(len(rows), bool), np.zeros(2, int))

    try:
        yield fitted(deblender.deblend(scene), everything)
        return
    except DataError as error:
        whole = error
    groups = [np.flatnonzero(blend == each) for each in np.unique(blend[own])]
    if len(groups) == 1 and len(groups[0]) == len(everything):
        yield fitted(whole, everything)
        return
    flat, note = scene.observation, f"blends were fitted one by one, since the fit of all failed: {whole}"
    for group in groups:
        others = np.setdiff1d(everything, group)
        shine = parts.within(scene.positions[others], table["reach"][others], flat.shape[1:])
        seen = flat.derived(weights=np.where(shine, 0, flat.weights), notes=(*flat.notes, note))
        for _, result in deblender.iterate([Scene((seen,), tuple(scene.sources[k] for k in group))]):
            yield fitted(result, group)


def _measured(
    result: Deblended, rows: Table, own: np.ndarray, each: Fitted, corner: np.ndarray, unit: str
) -> dict[str, Table]:
    """Make the tables of objects, pairs and samples of a result. corner: (y, x) of what the tile fits in the image."""
    catalog, scene = result.catalog, result.scene
    bands, which, corner = scene.bands, each.rows, corner + each.corner
    mine = own[which] & each.kept
    kept = {name: values[which][mine] for name, values in rows.items()}
    scale = scene.observation.pixel_scale or np.nan
    jansky = np.ones(len(bands)) if scene.zeropoints is None else 10 ** (0.4 * (NJY - scene.zeropoints))

    def column(name: str) -> np.ndarray:
        return np.asarray(catalog[name])[mine]

    table: Table = {
        "objectId": kept["objectId"],
        "parentObjectId": kept["blend"],
        "deblend_nChild": kept["children"],
        "tile": kept["tile"],
        "x": column("x") + corner[1],
        "y": column("y") + corner[0],
        "xErr": column("x_err"),
        "yErr": column("y_err"),
        "coord_ra": column("ra") if "ra" in catalog.colnames else np.full(mine.sum(), np.nan),
        "coord_dec": column("dec") if "dec" in catalog.colnames else np.full(mine.sum(), np.nan),
        "kind": column("kind"),
        "detect_snr": kept["snr"],
        "snr": column("snr"),
        "size": column("size") * scale,
        "sizeErr": column("size_err") * scale,
        **{name: column(name) for name in ("e1", "e2", "blendedness", "chi2", "flags")},
        "e1Err": column("e1_err"),
        "e2Err": column("e2_err"),
        "sampled": np.full(mine.sum(), result.sample_catalog is not None),
        "detect_isPrimary": column("primary"),
    }
    for index, band in enumerate(bands):
        table[f"{band}_flux"] = column(f"flux_{band}") * jansky[index]
        table[f"{band}_fluxErr"] = column(f"flux_err_{band}") * jansky[index]
        if unit == "nJy":
            table[f"{band}_mag"], table[f"{band}_magErr"] = column(f"mag_{band}"), column(f"mag_err_{band}")
    objects = rows["objectId"][which]
    found = {"objects": table, "pairs": _pairs(result, objects, mine, each.kept, jansky)}
    if result.sample_catalog is not None:
        found["samples"] = _samples(result, result.sample_catalog, objects, mine, corner, jansky)
    return found


def _samples(
    result: Deblended,
    drawn: SampleCatalog,
    objects: np.ndarray,
    mine: np.ndarray,
    corner: np.ndarray,
    jansky: np.ndarray,
) -> Table:
    """List the samples of the tile's own objects, object by object; groups are named by the first of these in each."""
    own, number = np.flatnonzero(mine & (drawn.group >= 0)), len(drawn.flux)
    _, first, group = np.unique(drawn.group[own], return_index=True, return_inverse=True)
    y, x, size, e1, e2 = np.moveaxis(drawn.shapes[:, own], 2, 0).swapaxes(1, 2).reshape(5, -1)
    flux = drawn.flux[:, own].swapaxes(0, 1).reshape(-1, len(jansky)) * jansky
    one = result.scene.observation
    place = None if one.wcs is None else one.sky(y, x)
    table: Table = {
        "objectId": np.repeat(objects[own], number),
        "draw": np.tile(np.arange(number), len(own)),
        "groupId": np.repeat(objects[own][first][group], number),
        "x": x + corner[1],
        "y": y + corner[0],
        "coord_ra": np.full(len(x), np.nan) if place is None else place.ra.deg,
        "coord_dec": np.full(len(x), np.nan) if place is None else place.dec.deg,
        "size": size * (one.pixel_scale or np.nan),
        "e1": e1,
        "e2": e2,
    }
    return table | {f"{band}_flux": values for band, values in zip(result.scene.bands, flux.T, strict=True)}


def _pairs(result: Deblended, objects: np.ndarray, mine: np.ndarray, kept: np.ndarray, jansky: np.ndarray) -> Table:
    """List the covariances of fluxes of pairs whose first object, of the smaller identifier, is the tile's own."""
    covariance = result.flux_cov
    correlated = np.zeros(covariance.shape[1:], bool)
    for band in covariance:
        sigma = np.sqrt(np.diagonal(band))
        correlated |= np.abs(band) > LEAST_CORRELATION * np.outer(sigma, sigma)  # never so where NaN
    first, second = np.nonzero(correlated)
    chosen = mine[first] & kept[second] & (objects[first] < objects[second])
    first, second = first[chosen], second[chosen]
    table = {"objectId_1": objects[first], "objectId_2": objects[second]}
    for index, band in enumerate(result.scene.bands):
        table[f"{band}_fluxCov"] = np.nan_to_num(covariance[index, first, second]) * jansky[index] ** 2
    return table
