"""A survey run: tiles worked through in this process or on a Dask cluster, resumed where it was stopped.

The folder of a run holds

    detections/<tile>.parquet   what each tile detects
    detections.parquet          all of them, each object once
    objects/, pairs/, failures/ ... the catalogue and all else that is asked for, by tile, see `outputs`
    done/<tile>.json            the checksums of a tile's files: what they verify is not done again
    pictures/                   of the tiles, where they were asked for
    used/<tile>.json            CPU-seconds and memory of a tile's fit, and its notes
    parents.parquet             the blends
    run.json                    the settings, and the time and memory the run took
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tfdeblend.cluster import Submit, executor
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import remove_leftovers, sha256, written_whole
from tfdeblend.machine import release_memory
from tfdeblend.survey import hats, tables, tasks
from tfdeblend.survey import pictures as drawing
from tfdeblend.survey.outputs import FAILURES, OBJECTS, Output, checksums, outputs
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tiles import Tile
from tfdeblend.version import __version__

GROUP = 1 << 14  # rows of the detections that are read together: a tile reads those of its rows of the image
MOST_NOTES = 10  # different notes of a report
NUMBER = re.compile(r"\b\d[\d.e+-]*")  # in notes, which differs from tile to tile
WHOLE = -1  # in place of an object's identifier: the whole tile

Task = Callable[[SurveySettings, Path, Tile, int], dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """Says what a run did.

    Args:
        tiles: of the images. done: those whose fit this call began.
        detections, objects, failures: rows of the tables. blends: of two objects or more.
        kinds, messages: how many failures are of each kind of error, and the first message of each.
        fitted: objects of the tiles that are done. seconds: of wall time. cpu: CPU-seconds of the tasks of this call.
        processes: the peak of memory of each that worked, in GB, by host and number; this one has the tables of all.
        notes: warnings of reading and checking, their numbers replaced by N, and how many tiles have each.
    """

    tiles: int
    done: int
    detections: int
    objects: int
    blends: int
    failures: int
    kinds: dict[str, int]
    messages: dict[str, str]
    fitted: int
    seconds: float
    cpu: float
    processes: dict[str, float]
    notes: dict[str, int]

    @property
    def hourly(self) -> float:
        """Give the objects an hour."""
        return 3600 * self.fitted / self.seconds if self.seconds else 0.0

    @property
    def memory(self) -> float:
        """Give the largest peak of a process, in GB."""
        return max(self.processes.values())

    def as_dict(self) -> dict[str, Any]:
        """Give all figures by name."""
        return asdict(self) | {"hourly": self.hourly, "memory": self.memory}

    def __str__(self) -> str:
        cost = "done before"
        if self.fitted:
            cost = f"{self.hourly:,.0f} an hour, {self.cpu / self.fitted:.2f} CPU-seconds each"
        memory = f"{self.memory:.2f} GB in the largest of {len(self.processes)} processes"
        failed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        notes = [f"\n  {kind}: {message}" for kind, message in sorted(self.messages.items())]
        notes += [f"\n  note on {count} of {self.tiles} tiles: {note}" for note, count in self.notes.items()]
        return (
            f"{self.objects} objects of {self.detections} detections on {self.tiles} tiles, {self.blends} blends, "
            f"{cost}, {memory}; failures: {failed or 'none'}" + "".join(notes)
        )


class Survey:
    """Makes the catalogue of images of any size, tile by tile.

    Args:
        settings: what is asked for. out: the folder of the run; one that holds another run is refused.

    Raises:
        DataError: for a folder of a run of other settings, other images or another version.
    """

    def __init__(self, settings: SurveySettings, out: str | Path) -> None:
        self.settings, self.out = settings, Path(out).resolve()  # workers may run in another folder
        self.tiles = settings.tiles()
        known = self.out / "run.json"
        if known.is_file() and tables.read_json(known).get("key") != settings.key:
            expected = "expected the run of these settings, images and this version"
            raise DataError(known, "key", f"{expected}, received another one", "give another --out")
        try:
            tasks.deblender(settings)
        except ValueError as error:
            raise DataError("survey", None, str(error)) from error

    def run(
        self,
        workers: int = 0,
        scheduler: str | None = None,
        progress: bool = True,
        pictures: bool = False,
        verbose: bool = False,
        fit: bool = True,
    ) -> Report:
        """Do what is not done yet, and give a report.

        Args:
            workers: processes of a local Dask cluster; 0: this process alone, without Dask.
            scheduler: the address of a Dask scheduler, in place of a local cluster.
            progress: whether tiles are counted on standard error.
            pictures: whether the tiles are drawn, too, see `tfdeblend.survey.pictures`.
            verbose: whether workers may write there which CPU and drivers TensorFlow found.
            fit: whether the sources are fitted, too; else the run ends with its detections, and may go on from there.

        Raises:
            DataError: without the package distributed where it is needed. OSError: the folder cannot be written to.
        """
        began = time.perf_counter()
        self._write_facts({})
        self._cleared()
        with executor(workers, scheduler, progress, verbose) as submit:
            used = [*self._detected(submit, progress)]
            found = self._merged()
            seen = [n for n, tile in enumerate(self.tiles) if fit and _detections(self.out, tile).is_file()]
            left = [number for number in seen if not self._is_done(number, found)]
            used += self._each(submit, deblend_tile, left, "deblend", progress)
            if pictures:
                bar = partial(tqdm, desc="drawn", unit="tile", disable=not progress)
                used += drawing.draw(self.settings, self.out, self.tiles, submit, lambda each, n: bar(each, total=n))
        return self._reported(found, used, len(left), time.perf_counter() - began)

    def _each(
        self, submit: Submit, task: Task, numbers: Sequence[int], what: str, progress: bool
    ) -> Iterator[dict[str, Any]]:
        """Do a task for tiles by their number; one that fails as a whole becomes a row of its failures."""
        work = ((self.settings, self.out, self.tiles[number], number) for number in numbers)
        results = submit(task, work)
        for (*_, number), used in tqdm(results, f"{what}ed", len(numbers), unit="tile", disable=not progress):
            if isinstance(used, Exception):
                _failed(self.settings, self.out, self.tiles[number], number, what, used)
                used = {}
            yield used

    def _detected(self, submit: Submit, progress: bool) -> Iterator[dict[str, Any]]:
        """Detect in the tiles whose detections are not there."""
        files = [_detections(self.out, tile) for tile in self.tiles]
        left = [number for number, file in enumerate(files) if not tables.is_whole(file, self.settings.key)]
        return self._each(submit, detect_tile, left, "detect", progress)

    def _cleared(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        kinds = outputs(self.settings)
        files = [path for tile in self.tiles for path in (_detections(self.out, tile), checksums(self.out, tile))]
        files += [each.path(self.out, tile) for tile in self.tiles for each in kinds]
        files += [self.out / name for name in ("detections.parquet", "parents.parquet", "run.json")]
        names = {file.name for file in files}
        for folder in {file.parent for file in files}:
            remove_leftovers(folder, names)

    def _merged(self) -> tables.Table:
        """Join the detections of all tiles, and write them with their blends."""
        names = "y", "x", "snr", "half", "reach"
        found = []
        for tile in self.tiles:
            path = _detections(self.out, tile)
            found.append(tables.read(path) if path.is_file() else {name: np.zeros(0) for name in names})
        table = tasks.merge(found, self.tiles, self.settings.shape)
        path = self.out / "detections.parquet"
        tables.write(path, table, tables.DETECTIONS, {"key": self.settings.key}, GROUP)
        return tables.read(path)

    def _is_done(self, number: int, detections: tables.Table) -> bool:
        """Whether a tile's files are those that were written with the detections that are there."""
        tile = self.tiles[number]
        known = tables.read_json(checksums(self.out, tile))
        if known.get("detections") != tasks.digest(self.settings, tile, detections):
            return False
        files = {each.name: each.path(self.out, tile) for each in outputs(self.settings)}
        return all(file.is_file() and sha256(file) == known.get(name) for name, file in files.items())

    def _reported(self, found: tables.Table, used: list[dict[str, Any]], done: int, seconds: float) -> Report:
        """Write the table of parents, and report the run."""
        failures = tables.joined([tables.read(file) for file in self.files(FAILURES)], tables.FAILURES)
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
        processes = _peak()
        for each in used:
            for name, memory in each.get("memory", {}).items():
                processes[name] = max(memory, processes.get(name, 0.0))
        report = Report(
            tiles=len(self.tiles),
            done=done,
            detections=len(found["y"]),
            objects=sum(tables.rows(file) for file in self.files(OBJECTS)),
            blends=int((counts > 1).sum()),
            failures=len(failures["tile"]),
            kinds=dict(Counter(failures["kind"].tolist())),
            messages=dict(zip(failures["kind"][::-1].tolist(), failures["message"][::-1].tolist(), strict=True)),
            fitted=sum(each.get("objects", 0) for each in used),
            seconds=seconds,
            cpu=sum(each.get("cpu", 0.0) for each in used),
            processes=processes,
            notes=dict(self._notes().most_common(MOST_NOTES)),
        )
        self._write_facts({"report": report.as_dict()})
        return report

    def _notes(self) -> Counter[str]:
        """Count the tiles that have each note, whatever its numbers."""
        counts: Counter[str] = Counter()
        for tile in self.tiles:
            noted = tables.read_json(self.out / "used" / f"{tile.name}.json").get("notes", [])
            counts.update({NUMBER.sub("N", note) for note in noted})
        return counts

    def files(self, output: Output) -> list[Path]:
        """List the files of an output that are there, in the order of the tiles."""
        return [file for tile in self.tiles if (file := output.path(self.out, tile)).is_file()]

    def objects(self) -> Any:
        """Read the catalogue as an Astropy table with units. Raises: DataError before any tile is done."""
        from astropy.table import vstack

        found = [tables.read_astropy(file) for file in self.files(OBJECTS)]
        if not found:
            raise DataError(self.out, "objects", "expected a run that has tiles done, received none", "call run")
        return vstack(found, metadata_conflicts="silent")

    def write_hats(self, folder: str | Path) -> None:
        """Write the catalogue as a HATS collection, see `survey.hats`.

        Raises: DataError without the package hats-import, before any object is there, for objects without coordinates,
            and for a folder that holds something else.
        """
        hats.write(Path(folder), self.files(OBJECTS), self.settings.key)

    def _write_facts(self, more: dict[str, Any]) -> None:
        facts = {"key": self.settings.key, "version": __version__, "settings": asdict(self.settings)}
        facts |= {"shape": self.settings.shape} | more
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
    detections = tables.read(out / "detections.parquet", y=tasks.reach(settings, tile))
    found = tasks.deblend(settings, tile, number, detections)
    seen = tasks.digest(settings, tile, detections)
    facts = {"key": settings.key, "tile": number}
    sums = {each.name: each.write(each.path(out, tile), found, facts) for each in outputs(settings)}
    with written_whole(checksums(out, tile)) as temporary:
        temporary.write_text(json.dumps(sums | {"detections": seen}, sort_keys=True))
    objects, notes = len(found.objects["objectId"]), found.notes
    del found, detections
    release_memory()  # before the next tile, whose needs would add up with what is left
    used = _used(began) | {"objects": objects, "notes": notes}
    with written_whole(out / "used" / f"{tile.name}.json") as temporary:
        temporary.write_text(json.dumps(used))
    return used


def _failed(settings: SurveySettings, out: Path, tile: Tile, number: int, stage: str, error: Exception) -> None:
    """Write down that a tile failed as a whole, in place of what it had; it is tried again when the run is resumed."""
    for old in (checksums(out, tile), *(each.path(out, tile) for each in outputs(settings))):
        old.unlink(missing_ok=True)
    rows = tasks.failure([WHOLE], number, stage, error)
    tables.write(FAILURES.path(out, tile), rows, tables.FAILURES, {"tile": number})


def _detections(out: Path, tile: Tile) -> Path:
    return out / "detections" / f"{tile.name}.parquet"


def _used(began: float) -> dict[str, Any]:
    """Measure the CPU-seconds since `began`, and the process's peak of memory."""
    return {"cpu": time.process_time() - began, "memory": _peak()}


def _peak() -> dict[str, float]:
    """Measure this process's peak of memory in GB, by its host and number."""
    name = f"{socket.gethostname()}:{os.getpid()}"
    return {name: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
