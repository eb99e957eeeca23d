"""Scenes and stamps drawn into a folder of files: by several processes, resumable, with a manifest."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from tfdeblend.data.observation import COADD_ZEROPOINT
from tfdeblend.errors import DataError
from tfdeblend.io import json_values, npz, tfrecords
from tfdeblend.io.atomic import sha256, temporary_name, written_whole
from tfdeblend.simulation.scenes import SceneConfig, Simulator
from tfdeblend.simulation.stamps import CHUNK, StampConfig
from tfdeblend.version import __version__

MANIFEST = "manifest.json"
REMEDY = "give --overwrite or another --out"
TASK = 16  # scenes that a process draws before it reports
SHARD = 100  # scenes in a TFRecord file


class Part(NamedTuple):
    """A file and the range of scenes or stamps that it holds."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class SceneFiles:
    """Writes scenes as NPZ or FITS, a file each, or as TFRecord, 100 a file. Raises: DataError for another format."""

    config: SceneConfig
    format: str = "npz"
    kind: ClassVar[str] = "scenes"

    def __post_init__(self) -> None:
        _check_format(self.format, ("npz", "fits", "tfrecord"))

    @cached_property
    def simulator(self) -> Simulator:
        return Simulator(self.config)

    def plan(self, number: int) -> list[Part]:
        """Lists the files of the first `number` scenes."""
        if self.format == "tfrecord":
            return _plan("scenes_{:05d}.tfrecord", SHARD, number)
        return _plan(f"scene_{{:06d}}.{self.format}", 1, number)

    def write(self, part: Part, folder: Path) -> str:
        """Writes one file and returns its SHA-256."""
        path, scenes = folder / part.name, map(self.simulator.scene, range(part.start, part.stop))
        if self.format == "tfrecord":
            tfrecords.write(path, (simulated.arrays() for simulated in scenes))
        else:
            simulated = next(scenes)
            simulated.scene.write(path, **simulated.truth_arrays())
        return sha256(path)

    def counts(self, parts: Sequence[Part]) -> dict[str, int]:
        """Counts the scenes and sources in some files."""
        numbers = [i for part in parts for i in range(part.start, part.stop)]
        return {"scenes": len(numbers), "sources": sum(self.config.start(i)[1] for i in numbers)}


@dataclass(frozen=True, eq=False)
class StampFiles:
    """Writes stamps as NPZ or TFRecord, 500 a file. Raises: DataError for another format."""

    config: StampConfig
    format: str = "npz"
    kind: ClassVar[str] = "stamps"

    def __post_init__(self) -> None:
        _check_format(self.format, ("npz", "tfrecord"))

    def plan(self, number: int) -> list[Part]:
        """Lists the files of the first `number` stamps."""
        return _plan(f"stamps_{{:05d}}.{self.format}", CHUNK, number)

    def write(self, part: Part, folder: Path) -> str:
        """Writes one file and returns its SHA-256."""
        path, bands = folder / part.name, self.config.survey.bands
        images, catalog = (values[: part.size] for values in self.config.chunk(part.start // CHUNK))
        if self.format == "tfrecord":
            rows = zip(images, catalog, strict=True)
            tfrecords.write(path, ({"stamp": image, "catalog": row} for image, row in rows))
            return sha256(path)
        arrays = {
            "stamps": images,
            "catalog": catalog,
            "filters": np.array(bands),
            "zeropoints": np.full(len(bands), COADD_ZEROPOINT),
            "pixel_scale": np.array(self.config.survey.pixel_scale),
            "model_sigma": np.array(self.config.model_sigma),
        }
        npz.write(path, arrays)
        return sha256(path)

    def counts(self, parts: Sequence[Part]) -> dict[str, int]:
        """Counts the stamps in some files."""
        return {"stamps": sum(part.size for part in parts)}


def _plan(name: str, size: int, number: int) -> list[Part]:
    return [Part(name.format(k), s, min(s + size, number)) for k, s in enumerate(range(0, number, size))]


def _check_format(format: str, known: Sequence[str]) -> None:
    if format not in known:
        raise DataError("simulate", "format", f"expected {' or '.join(known)}, received {format!r}")


@dataclass(frozen=True)
class Production:
    """Draws scenes or stamps of one configuration into files in the folder `out`.

    Args:
        files: what to draw, and in which format.
        number: how many scenes or stamps.
        out: folder; created where missing.
        workers: processes, which do not change what is drawn.
        overwrite: draw everything again.
        quiet: no progress bar.

    Raises:
        DataError: no positive number or workers.
    """

    files: SceneFiles | StampFiles
    number: int
    out: Path
    workers: int = 1
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for field in ("number", "workers"):
            if getattr(self, field) < 1:
                raise DataError("simulate", field, f"expected a positive number, received {getattr(self, field)}")

    def go(self) -> dict[str, Any]:
        """Draws the files that are missing and returns the manifest.

        Raises:
            DataError: `out` holds files of another configuration, or a damaged manifest. OSError: it cannot be written.
        """
        plan = self.files.plan(self.number)
        done = {} if self.overwrite else self._done()
        todo = [part for part in plan if part.name not in done]
        self.out.mkdir(parents=True, exist_ok=True)
        self._remove(todo)
        self._write_manifest({}, complete=False)  # a killed run leaves files that belong to it
        with progress(sum(part.size for part in todo), self.files.kind[:-1], self.quiet) as bar:
            for written, drawn in self._draw(todo):
                done |= written
                bar.update(drawn)
        return self._write_manifest(done, complete=True)

    def _done(self) -> dict[str, str]:
        """Returns the SHA-256 by name of complete files. Raises: DataError where they have another configuration."""
        manifest, plan = read_manifest(self.out), self.files.plan(self.number)
        if manifest is None:
            unlisted = [part.name for part in plan if (self.out / part.name).exists()]
            if unlisted:
                problem = f"expected a manifest beside {unlisted[0]}, received none"
                raise DataError(self.out / MANIFEST, "config", problem, REMEDY)
            return {}
        check_same(self.out / MANIFEST, manifest, self._description())
        if manifest["number"] > self.number:
            problem = f"expected at least {manifest['number']}, received {self.number}"
            raise DataError(self.out / MANIFEST, "number", problem, REMEDY)
        names = {part.name for part in set(plan) & set(self.files.plan(manifest["number"]))}
        hashes = {name: sha256(self.out / name) for name in sorted(names) if (self.out / name).exists()}
        known = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return {name: value for name, value in hashes.items() if known.get(name, value) == value}

    def _remove(self, todo: Sequence[Part]) -> None:
        """Removes the files to be drawn, and with `overwrite` all that an earlier manifest lists."""
        names = {part.name for part in todo}
        if self.overwrite:
            names |= listed(self.out)
        for name in names:
            (self.out / name).unlink(missing_ok=True)
            for half_written in self.out.glob(temporary_name(name)):  # by a run that was killed
                half_written.unlink(missing_ok=True)

    def _description(self) -> dict[str, Any]:
        """Returns what must be equal for files to be kept, in the types that JSON gives back."""
        return description(self.files.kind, self.files.format, self.files.config)

    def _write_manifest(self, done: dict[str, str], complete: bool) -> dict[str, Any]:
        parts = [part for part in self.files.plan(self.number) if part.name in done]
        manifest = {
            **self._description(),
            "number": self.number,
            "complete": complete,
            "counts": {"files": len(parts), **self.files.counts(parts)},
            "files": {p.name: {"sha256": done[p.name], "first": p.start, "count": p.size} for p in parts},
        }
        write_manifest(self.out, manifest)
        return manifest

    def _draw(self, todo: Sequence[Part]) -> Iterator[tuple[dict[str, str], int]]:
        """Yields the SHA-256 by name of files as they are written, and their number of scenes or stamps."""
        size = max(1, TASK // todo[0].size) if todo else 1
        tasks = [todo[start : start + size] for start in range(0, len(todo), size)]
        yield from in_processes(self.workers, write_parts, [(self.files, task, self.out) for task in tasks])


def write_parts(files: SceneFiles | StampFiles, parts: Sequence[Part], folder: Path) -> tuple[dict[str, str], int]:
    """Writes files; returns their SHA-256 by name and their number of scenes or stamps."""
    return {part.name: files.write(part, folder) for part in parts}, sum(part.size for part in parts)


def in_processes(workers: int, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Yields `work(*task)` of tasks as they are done: by so many processes, or one after the other in this one."""
    if workers == 1 or len(tasks) < 2:
        yield from (work(*task) for task in tasks)
        return
    pool = ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), _end_with_parent)
    try:
        futures = [pool.submit(work, *task) for task in tasks]
        yield from (future.result() for future in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def progress(total: int, unit: str, quiet: bool) -> tqdm:
    """Makes the bar that shows on standard error how many units are drawn."""
    every = 0.2 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
    return tqdm(None, "simulating", total, unit=unit, file=sys.stderr, disable=quiet, mininterval=every)


def description(kind: str, format: str, config: Any) -> dict[str, Any]:
    """Returns what a manifest says of a configuration (a dataclass), in the types that JSON gives back."""
    document = {"kind": kind, "format": format, "version": __version__, "config": asdict(config)}
    return json.loads(json_values.dumps(document))


def check_same(where: Path, manifest: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares a manifest with the description of what is to be drawn. Raises: DataError, by key, where they differ."""
    then, wanted = flat(manifest), flat(now)
    for key in wanted:
        if then.get(key) != wanted[key]:
            problem = f"expected {then.get(key)!r} as before, received {wanted[key]!r}"
            raise DataError(where, key, problem, REMEDY)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a folder, whole or not at all."""
    with written_whole(folder / MANIFEST) as temporary:
        temporary.write_text(json_values.dumps(manifest) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Reads the manifest of a folder, None where there is none. Raises: DataError for a damaged one."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        whole = {"number": int, "files": dict, "config": dict}
        if not all(isinstance(manifest[key], kind) for key, kind in whole.items()):
            raise ValueError("values of other types")
        if not all(isinstance(one, dict) and isinstance(one.get("sha256"), str) for one in manifest["files"].values()):
            raise ValueError("files without a sha256")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"expected the manifest of a simulation, received {type(error).__name__}: {error}"
        raise DataError(path, "manifest", problem, REMEDY) from error
    return manifest


def listed(folder: Path) -> set[str]:
    """Returns the names of the files that the manifest of a folder lists; none of a damaged one."""
    try:
        return {Path(name).name for name in (read_manifest(folder) or {"files": {}})["files"]}
    except DataError:
        return set()


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Joins nested keys by dots."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _end_with_parent() -> None:
    """Ends a worker when its parent is killed: otherwise it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
