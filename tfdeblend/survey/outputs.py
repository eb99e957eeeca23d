"""Outputs: the files that a survey run writes for each tile, whose checksums tell whether the tile is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdeblend.survey import models, tables
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tasks import TileResult
from tfdeblend.survey.tiles import Tile

Facts = Mapping[str, Any]  # of a file: the run's key, the tile's number


@dataclass(frozen=True)
class Output:
    """Describes a kind of file of which each tile has one, `<name>/<tile><suffix>`.

    write: writes a tile's result to a path, whole or not at all, and gives the file's SHA-256.
    """

    name: str
    suffix: str
    write: Callable[[Path, TileResult, Facts], str]

    def path(self, out: Path, tile: Tile) -> Path:
        """Give the file of a tile in the folder of a run."""
        return out / self.name / f"{tile.name}{self.suffix}"


def checksums(out: Path, tile: Tile) -> Path:
    """Give the file, written last, that has the SHA-256 of each output of a tile by its name."""
    return out / "done" / f"{tile.name}.json"


def _of_table(name: str) -> Output:
    def write(path: Path, found: TileResult, facts: Facts) -> str:
        columns = tables.of_tile(found.bands, found.unit)[name]
        return tables.write(path, getattr(found, name), columns, facts)

    return Output(name, ".parquet", write)


OBJECTS, PAIRS, FAILURES, SAMPLES = (_of_table(name) for name in ("objects", "pairs", "failures", "samples"))
MODELS = Output("models", ".fits", models.write)


def outputs(settings: SurveySettings) -> tuple[Output, ...]:
    """List the outputs of a run of these settings."""
    sampled = (SAMPLES,) if settings.method == "sample" else ()
    return (OBJECTS, PAIRS, FAILURES, *sampled, *((MODELS,) if settings.models else ()))
