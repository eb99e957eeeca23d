"""DIR/index.html of a survey run: one page over all tiles, with their pictures beside it.

The page holds sums, histograms and a row a tile. The objects of a tile are in `pictures/objects/<tile>.js`, which the
page loads when the tile is seen, so that it stays small for any number of objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.catalog.measure import FLAG_NAMES
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.json_values import dumps, plain
from tfdeblend.survey import models, pictures, tables
from tfdeblend.survey.outputs import MODELS
from tfdeblend.survey.tables import Table
from tfdeblend.survey.tiles import Tile, tiles
from tfdeblend.survey.truth import Comparison, Truth, compare, magnitude

POINTS = 4000  # objects in the colour-magnitude diagram, at most
LISTED = 50  # kinds of failures with a message of their own, at most
MAGNITUDES = np.arange(10.0, 34.01, 0.25)
SNRS = np.linspace(-0.5, 5.5, 61)  # log10


@dataclass(frozen=True)
class SurveyRun:
    """What the folder of a survey run holds, read tile by tile. Raises: DataError for a folder without a run."""

    out: Path

    def __post_init__(self) -> None:
        if not (self.out / "run.json").is_file():
            raise DataError(self.out, "run.json", "expected the folder of a survey run, received none")

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.out / "run.json").read_text())

    def tiles(self) -> list[Tile]:
        settings = self.facts["settings"]
        return tiles(tuple(self.facts["shape"]), settings["tile"], settings["border"])

    def table(self, part: str, tile: Tile) -> Table | None:
        """One of the tables of a tile; None where it was not written."""
        path = self.out / part / f"{tile.name}.parquet"
        return tables.read(path) if path.is_file() else None

    def used(self, tile: Tile) -> float | None:
        """CPU-seconds of the fit of a tile, where they are known."""
        return tables.read_json(self.out / "used" / f"{tile.name}.json").get("cpu")

    def rms(self, tile: Tile) -> float | None:
        """The root mean square of residual / noise in a tile; None without its model."""
        path = MODELS.path(self.out, tile)
        return models.read_rms(path) if path.is_file() else None

    def bands(self) -> tuple[str, ...]:
        """The bands of the catalogue."""
        names = self._units()
        return tuple(name.removesuffix("_fluxErr") for name in names if name.endswith("_fluxErr"))

    def unit(self) -> str:
        """The unit of the fluxes."""
        return next((unit for name, unit in self._units().items() if name.endswith("_flux")), "")

    def _units(self) -> dict[str, str]:
        """The columns of the table of objects with their units; none before a tile is done."""
        paths = (self.out / "objects" / f"{tile.name}.parquet" for tile in self.tiles())
        return next((tables.units(path) for path in paths if path.is_file()), {})

    def objects(self, columns: tuple[str, ...]) -> Table:
        """Some columns of the objects of all tiles."""
        found = [
            {name: table[name] for name in columns} for tile in self.tiles() if (table := self.table("objects", tile))
        ]
        return {name: np.concatenate([part[name] for part in found] or [np.zeros(0)]) for name in columns}


def write_page(out: str | Path, truth: Mapping[str, Comparison] | None = None) -> Path:
    """Write out/index.html over the run in a folder, and what it loads, each file whole or not at all.

    Args:
        out: of the run. truth: comparisons by band, see `tfdeblend.survey.truth`.

    Raises:
        DataError: a folder without a run. OSError: it cannot be written to.
    """
    run = SurveyRun(Path(out))
    page = files("tfdeblend.app").joinpath("survey.html").read_text(encoding="utf-8")
    document = dumps(_document(run, truth or {}), indent=None).replace("<", "\\u003c")  # ends no script element
    target = run.out / "index.html"
    with written_whole(target) as temporary:
        temporary.write_text(page.replace("{{data}}", document), encoding="utf-8")
    return target


def _document(run: SurveyRun, truth: Mapping[str, Comparison]) -> dict[str, Any]:
    facts, all_tiles, bands = run.facts, run.tiles(), run.bands()
    colours = pictures.Colours.read(run.out)
    scale = None if colours is None else colours.pixel_scale
    total = sum(tables.rows(path) for path in (run.out / "objects").glob("tile_*.parquet"))
    sums = Sums(bands, max(1, -(-total // POINTS)))
    rows = [_tile(run, tile, sums, scale) for tile in all_tiles]
    columns = ("objects", "blends", "failures", "chi2", "cpu", "rms")
    return {
        "title": run.out.resolve().name,
        "version": facts["version"],
        "settings": {k: facts["settings"][k] for k in ("prior", "method", "threshold", "tile")},
        "images": [Path(name).name for name in facts["settings"]["images"]],
        "report": facts.get("report"),
        "shape": facts["shape"],
        "scale": scale,
        "unit": run.unit(),
        "bands": bands,
        "shown": () if colours is None else colours.shown,
        "levels": pictures.levels(all_tiles),
        "layers": pictures.layers(run.out),
        "residual": {"limit": pictures.LIMIT, "ends": pictures.ENDS},
        "tiles": {
            "row": [tile.row for tile in all_tiles],
            "column": [tile.column for tile in all_tiles],
            **{name: [row[k] for row in rows] for k, name in enumerate(columns)},
        },
        "undrawn": pictures.failed(run.out),
        "truth": {band: comparison.document() for band, comparison in truth.items()},
        **sums.document(),
    }


class Sums:
    """Histograms over the objects of all tiles, and every so many of them for the colour-magnitude diagram."""

    def __init__(self, bands: tuple[str, ...], every: int) -> None:
        self.bands, self.every, self.seen = bands, every, 0
        self.magnitudes = {band: np.zeros(len(MAGNITUDES) - 1, int) for band in bands}
        self.snrs = {kind: np.zeros(len(SNRS) - 1, int) for kind in ("galaxy", "point")}
        self.flags: Counter[int] = Counter()
        self.failures: dict[tuple[str, str, str], Counter[str]] = {}
        self.points: list[tuple[float, float, int]] = []

    def add(self, objects: Table) -> None:
        """Count the objects of a tile."""
        magnitudes = {band: magnitude(objects[f"{band}_flux"]) for band in self.bands}
        for band, values in magnitudes.items():
            self.magnitudes[band] += np.histogram(values[np.isfinite(values)], MAGNITUDES)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = np.log10(objects["snr"])
        for kind, count in self.snrs.items():
            count += np.histogram(snr[(objects["kind"] == kind) & np.isfinite(snr)], SNRS)[0]
        for bit in FLAG_NAMES:
            self.flags[bit] += int(((objects["flags"] & bit) > 0).sum())
        if len(self.bands) > 1:
            blue, red, depth = self.diagram
            chosen = np.arange(len(objects["x"])) + self.seen
            chosen = (chosen % self.every == 0) & np.isfinite(magnitudes[blue] - magnitudes[red] + magnitudes[depth])
            colour = (magnitudes[blue] - magnitudes[red])[chosen].round(2)
            point = (objects["kind"][chosen] == "point").astype(int)
            self.points += zip(
                magnitudes[depth][chosen].round(2).tolist(), colour.tolist(), point.tolist(), strict=True
            )
        self.seen += len(objects["x"])

    @property
    def diagram(self) -> tuple[str, str, str]:
        """The bands of the diagram's colour, blue - red, and of its magnitude: the middle one."""
        middle = len(self.bands) // 2
        return self.bands[0], self.bands[max(middle, 1)], self.bands[middle]

    def fail(self, failures: Table, tile: Tile) -> None:
        """Count the failures of a tile by their message."""
        for stage, kind, message in zip(*(failures[k].tolist() for k in ("stage", "kind", "message")), strict=True):
            self.failures.setdefault((stage, kind, message), Counter())[tile.name] += 1

    def document(self) -> dict[str, Any]:
        named = sorted(self.failures.items(), key=lambda each: -each[1].total())
        failures = [[*what, where.total(), [*where][:8]] for what, where in named[:LISTED]]
        left = sum(where.total() for _, where in named[LISTED:])
        if left:
            failures.append(["", "others", f"{len(named) - LISTED} further messages", left, []])
        return {
            "counts": {"edges": MAGNITUDES.tolist(), **{"bands": {b: n.tolist() for b, n in self.magnitudes.items()}}},
            "snr": {"edges": SNRS.tolist(), "kinds": {kind: count.tolist() for kind, count in self.snrs.items()}},
            "flags": [[bit, meaning, self.flags[bit]] for bit, meaning in FLAG_NAMES.items() if self.flags[bit]],
            "failures": failures,
            "diagram": {
                "bands": self.diagram if len(self.bands) > 1 else (),
                "every": self.every,
                "points": self.points,
            },
        }


def _tile(run: SurveyRun, tile: Tile, sums: Sums, scale: float | None) -> tuple[Any, ...]:
    """Count a tile and write its objects.

    Returns: the numbers of objects, blends and failures, the median chi-square, CPU-seconds, rms of the residual.
    """
    objects, failures = run.table("objects", tile), run.table("failures", tile)
    failed = 0 if failures is None else len(failures["tile"])
    if failures is not None:
        sums.fail(failures, tile)
    if objects is None:
        return None, None, failed, None, run.used(tile), None
    sums.add(objects)
    text = dumps({"name": tile.name, **_marks(objects, sums.bands, scale)}, indent=None)
    with written_whole(run.out / pictures.FOLDER / "objects" / f"{tile.name}.js") as temporary:
        temporary.write_text(f"tile({text})\n", encoding="utf-8")
    blends = (objects["deblend_nChild"] > 1) & (objects["objectId"] == objects["parentObjectId"])
    chi2 = objects["chi2"][np.isfinite(objects["chi2"])]
    median = round(float(np.median(chi2)), 4) if len(chi2) else None
    cpu, rms = (None if value is None else round(value, 4) for value in (run.used(tile), run.rms(tile)))
    return len(objects["x"]), int(blends.sum()), failed, median, cpu, rms


def _marks(objects: Table, bands: tuple[str, ...], scale: float | None) -> dict[str, Any]:
    """What the page shows of each object; a, b, angle: of its half-light ellipse, pixels and degrees from x to y."""
    size = np.nan_to_num(objects["size"]) / (scale or np.inf)
    e1, e2 = np.nan_to_num(objects["e1"]), np.nan_to_num(objects["e2"])
    ratio = np.sqrt((1 + np.minimum(np.hypot(e1, e2), 0.9)) / (1 - np.minimum(np.hypot(e1, e2), 0.9)))
    columns = {
        "id": objects["objectId"],
        "x": objects["x"].round(2),
        "y": objects["y"].round(2),
        "a": (size * ratio).round(2),
        "b": (size / ratio).round(2),
        "angle": np.degrees(np.arctan2(e2, e1) / 2).round(1),
        "point": (objects["kind"] == "point").astype(int),
        "children": objects["deblend_nChild"],
        "snr": _short(objects["snr"]),
        "chi2": _short(objects["chi2"]),
        "flags": objects["flags"],
        "mags": np.stack([magnitude(objects[f"{band}_flux"]) for band in bands], 1).round(2) if bands else [],
    }
    return {name: plain(np.asarray(values)) for name, values in columns.items()}


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def comparisons(out: str | Path, truth: Truth) -> Iterator[tuple[str, Comparison]]:
    """Compare the catalogue of the run in a folder with the truth, by each band that both have.

    truth: see `tfdeblend.survey.truth.read`. Raises: DataError for a folder without a run.
    """
    run = SurveyRun(Path(out))
    bands = [band for band in run.bands() if f"{band}_flux" in truth.sources]
    fluxes = [f"{band}_{name}" for band in bands for name in ("flux", "fluxErr")]
    objects = run.objects(("x", "y", "deblend_nChild", *fluxes))
    for band in bands:
        yield band, compare(objects, truth, band)
