"""A survey run: tiles worked through in this process or on a Dask cluster, resumed where it was stopped.

The folder of a run holds

    detections/<tile>.parquet   what each tile detects
    detections.parquet          all of them, each object once
    objects/, pairs/, failures/ <tile>.parquet: the catalogue, by tile
    done/<tile>.json            the checksums of a tile's files: what they verify is not done again
    parents.parquet             the blends
    run.json                    what the run was asked for, and what it took
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tfdeblend.cluster import Submit, executor
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import sha256, written_whole
from tfdeblend.survey import tables, tasks
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tiles import Tile
from tfdeblend.version import __version__

PARTS = ("objects", "pairs", "failures")
WHOLE = -1  # in place of an object's identifier: the whole tile

Task = Callable[[SurveySettings, Path, Tile, int], dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """Says what a run did.

    Args:
        tiles: of the images. done: those fitted by this call.
        detections, objects, failures: rows of the tables. blends: of two objects or more. kinds: failures by error.
        seconds: of wall time. cpu: CPU-seconds of all processes. memory: the largest peak of a process, in GB.
    """

    tiles: int
    done: int
    detections: int
    objects: int
    blends: int
    failures: int
    kinds: dict[str, int]
    seconds: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        cost = f"{self.cpu / self.objects:.2f} CPU-seconds each" if self.objects and self.cpu else "done before"
        failed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        return (
            f"{self.objects} objects of {self.detections} detections on {self.tiles} tiles, {self.blends} blends, "
            f"{cost}, {self.memory:.2f} GB; failures: {failed or 'none'}"
        )


class Survey:
    """Makes the catalogue of images of any size, tile by tile.

    Args:
        settings: what is asked for. out: the folder of the run; one that holds another run is refused.

    Raises:
        DataError: for a folder of a run of other settings, other images or another version.
    """

    def __init__(self, settings: SurveySettings, out: str | Path) -> None:
        self.settings, self.out = settings, Path(out)
        self.tiles = settings.tiles()
        known = self.out / "run.json"
        if known.is_file() and json.loads(known.read_text()).get("key") != settings.key:
            expected = "expected the run of these settings, images and this version"
            raise DataError(known, "key", f"{expected}, received another one", "give another --out")
        try:
            tasks.deblender(settings)
        except ValueError as error:
            raise DataError("survey", None, str(error)) from error

    def run(self, workers: int = 0, scheduler: str | None = None, progress: bool = True) -> Report:
        """Do what is not done yet, and give a report.

        Args:
            workers: processes of a local Dask cluster; 0: this process alone, without Dask.
            scheduler: the address of a Dask scheduler, in place of a local cluster.
            progress: whether tiles are counted on standard error.

        Raises:
            DataError: without the package distributed where it is needed. OSError: the folder cannot be written to.
        """
        began = time.perf_counter()
        self._write_facts({})
        with executor(workers, scheduler) as submit:
            used = [*self._detected(submit, progress)]
            found = self._merged()
            seen = [number for number, tile in enumerate(self.tiles) if _detections(self.out, tile).is_file()]
            left = [number for number in seen if not self._is_done(number, found)]
            used += self._each(submit, deblend_tile, left, "deblend", progress)
        return self._reported(found, used, len(left), time.perf_counter() - began)

    def _each(
        self, submit: Submit, task: Task, numbers: Sequence[int], what: str, progress: bool
    ) -> Iterator[dict[str, Any]]:
        """Do a task for tiles by their number; one that fails as a whole becomes a row of its failures."""
        work = ((self.settings, self.out, self.tiles[number], number) for number in numbers)
        results = submit(task, work)
        for (*_, number), used in tqdm(results, f"{what}ed", len(numbers), unit="tile", disable=not progress):
            if isinstance(used, Exception):
                _failed(self.out, self.tiles[number], number, what, used)
                used = {}
            yield used

    def _detected(self, submit: Submit, progress: bool) -> Iterator[dict[str, Any]]:
        """Detect in the tiles whose detections are not there."""
        left = [n for n, tile in enumerate(self.tiles) if not tables.is_whole(_detections(self.out, tile))]
        return self._each(submit, detect_tile, left, "detect", progress)

    def _merged(self) -> tables.Table:
        """Join the detections of all tiles, and write them with their blends."""
        names = "y", "x", "snr", "half", "reach"
        found = []
        for tile in self.tiles:
            path = _detections(self.out, tile)
            found.append(tables.read(path) if path.is_file() else {name: np.zeros(0) for name in names})
        table = tasks.merge(found, self.tiles, self.settings.shape)
        path = self.out / "detections.parquet"
        tables.write(path, table, tables.DETECTIONS, {"key": self.settings.key})
        return tables.read(path)

    def _is_done(self, number: int, detections: tables.Table) -> bool:
        """Whether a tile's files are those that were written with the detections that are there."""
        tile = self.tiles[number]
        path = self.out / "done" / f"{tile.name}.json"
        if not path.is_file():
            return False
        said = json.loads(path.read_text())
        if said["detections"] != tasks.digest(self.settings, tile, detections):
            return False
        return all(
            (file := self.out / part / f"{tile.name}.parquet").is_file() and sha256(file) == said[part]
            for part in PARTS
        )

    def _reported(self, found: tables.Table, used: list[dict[str, Any]], done: int, seconds: float) -> Report:
        """Write the table of parents, and report the run."""
        failures = tables.joined([*self._parts("failures")], tables.FAILURES)
        labels, index, counts = np.unique(found["blend"], return_inverse=True, return_counts=True)
        lost = np.isin(found["objectId"], failures["objectId"])
        lost |= np.isin(found["tile"], failures["tile"][failures["objectId"] == WHOLE])
        bad = np.isin(labels, found["blend"][lost])
        parents = {
            "parentObjectId": labels,
            "deblend_nChild": counts,
            "x": np.bincount(index, found["x"], len(labels)) / counts,
            "y": np.bincount(index, found["y"], len(labels)) / counts,
            "deblend_failed": bad,
        }
        tables.write(self.out / "parents.parquet", parents, tables.PARENTS, {"key": self.settings.key})
        own = resource.getrusage(resource.RUSAGE_SELF)
        report = Report(
            tiles=len(self.tiles),
            done=done,
            detections=len(found["y"]),
            objects=sum(tables.rows(file) for file in self._files("objects")),
            blends=int((counts > 1).sum()),
            failures=len(failures["tile"]),
            kinds=dict(Counter(failures["kind"].tolist())),
            seconds=seconds,
            cpu=sum(each.get("cpu", 0.0) for each in used),
            memory=max([own.ru_maxrss / 1e6, *(each.get("memory", 0.0) for each in used)]),
        )
        self._write_facts({"report": asdict(report)})
        return report

    def _files(self, part: str) -> list[Path]:
        """The files of one of PARTS that are there, in the order of the tiles."""
        files = [self.out / part / f"{tile.name}.parquet" for tile in self.tiles]
        return [file for file in files if file.is_file()]

    def _parts(self, part: str) -> Iterator[tables.Table]:
        return (tables.read(file) for file in self._files(part))

    def objects(self) -> Any:
        """Read the catalogue as an Astropy table with units. Raises: DataError before any tile is done."""
        from astropy.table import vstack

        found = [tables.read_astropy(file) for file in self._files("objects")]
        if not found:
            raise DataError(self.out, "objects", "expected a run that has tiles done, received none", "call run")
        return vstack(found, metadata_conflicts="silent")

    def _write_facts(self, more: dict[str, Any]) -> None:
        facts = {"key": self.settings.key, "version": __version__, "settings": asdict(self.settings)} | more
        with written_whole(self.out / "run.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def detect_tile(settings: SurveySettings, out: Path, tile: Tile, number: int) -> dict[str, Any]:
    """Detect in a tile, and write what is found."""
    began = time.process_time()
    found = tasks.detect(settings, tile)
    columns = {name: tables.DETECTIONS[name] for name in found}
    tables.write(_detections(out, tile), found, columns, {"key": settings.key, "tile": number})
    return _used(began)


def deblend_tile(settings: SurveySettings, out: Path, tile: Tile, number: int) -> dict[str, Any]:
    """Fit a tile, and write its tables, and their checksums last."""
    began = time.process_time()
    detections = tables.read(out / "detections.parquet")
    found = tasks.deblend(settings, tile, number, detections)
    seen = tasks.digest(settings, tile, detections)
    _write(out, tile, number, found._asdict(), found.bands, found.unit, settings.key, seen)
    return _used(began)


def _write(
    out: Path,
    tile: Tile,
    number: int,
    found: dict[str, Any],
    bands: Sequence[str],
    unit: str,
    key: str,
    detections: str,
) -> None:
    columns = {"objects": tables.objects(bands, unit), "pairs": tables.pairs(bands, unit), "failures": tables.FAILURES}
    facts = {"key": key, "tile": number}
    sums = {
        part: tables.write(out / part / f"{tile.name}.parquet", found[part], columns[part], facts) for part in PARTS
    }
    with written_whole(out / "done" / f"{tile.name}.json") as temporary:
        temporary.write_text(json.dumps(sums | {"detections": detections}, sort_keys=True))


def _failed(out: Path, tile: Tile, number: int, stage: str, error: Exception) -> None:
    """Write down that a tile failed as a whole, in place of what it had; it is tried again when the run is resumed."""
    for old in (out / "done" / f"{tile.name}.json", *(out / part / f"{tile.name}.parquet" for part in PARTS)):
        old.unlink(missing_ok=True)
    rows = tasks.failure([WHOLE], number, stage, error)
    tables.write(out / "failures" / f"{tile.name}.parquet", rows, tables.FAILURES, {"tile": number})


def _detections(out: Path, tile: Tile) -> Path:
    return out / "detections" / f"{tile.name}.parquet"


def _used(began: float) -> dict[str, Any]:
    """Measure the CPU-seconds since `began`, and the process's peak of memory in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"cpu": time.process_time() - began, "memory": peak}
