"""Simulations as files in a folder: by several processes, resumable, with a manifest of what is there."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tfdeblend.errors import DataError
from tfdeblend.io import json_values
from tfdeblend.io.atomic import sha256, temporary_name, written_whole
from tfdeblend.simulation.simulated_files import Part, SceneFiles, StampFiles
from tfdeblend.version import __version__

MANIFEST = "manifest.json"
REMEDY = "give --overwrite or another --out"
TASK = 16  # scenes that a process draws before it reports


@dataclass(frozen=True)
class Production:
    """Scenes or stamps of one configuration as files in the folder `out`.

    Args:
        files: what to draw, and in which format.
        number: how many scenes or stamps.
        out: folder; created where missing.
        workers: processes. What is drawn does not depend on it.
        overwrite: do all again, whatever is there.
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
        """Draws what is not there yet and returns the manifest.

        Raises:
            DataError: `out` holds files of another configuration, or a damaged manifest. OSError: it cannot be written.
        """
        plan = self.files.plan(self.number)
        done = {} if self.overwrite else self._done()
        todo = [part for part in plan if part.name not in done]
        self.out.mkdir(parents=True, exist_ok=True)
        self._remove(todo)
        self._write_manifest({}, complete=False)  # so that what a killed run leaves is known for this configuration's
        with self._bar(sum(part.size for part in todo)) as bar:
            for written, drawn in self._draw(todo):
                done |= written
                bar.update(drawn)
        return self._write_manifest(done, complete=True)

    def _done(self) -> dict[str, str]:
        """SHA-256 by name of whole files that are there. Raises: DataError where they are another configuration's."""
        manifest, plan = read_manifest(self.out), self.files.plan(self.number)
        if manifest is None:
            unlisted = [part.name for part in plan if (self.out / part.name).exists()]
            if unlisted:
                problem = f"expected a manifest beside {unlisted[0]}, received none"
                raise DataError(self.out / MANIFEST, "config", problem, REMEDY)
            return {}
        self._check_same(manifest)
        names = {part.name for part in set(plan) & set(self.files.plan(manifest["number"]))}
        hashes = {name: sha256(self.out / name) for name in sorted(names) if (self.out / name).exists()}
        known = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return {name: value for name, value in hashes.items() if known.get(name, value) == value}

    def _check_same(self, manifest: dict[str, Any]) -> None:
        where, then, now = self.out / MANIFEST, flat(manifest), flat(self._description())
        for key in now:
            if then.get(key) != now[key]:
                problem = f"expected {then.get(key)!r} as before, received {now[key]!r}"
                raise DataError(where, key, problem, REMEDY)
        if manifest["number"] > self.number:
            problem = f"expected at least {manifest['number']}, received {self.number}"
            raise DataError(where, "number", problem, REMEDY)

    def _remove(self, todo: Sequence[Part]) -> None:
        """Removes files that are drawn again, and with `overwrite` all that an earlier manifest lists."""
        names = {part.name for part in todo}
        if self.overwrite:
            try:
                names |= {Path(name).name for name in (read_manifest(self.out) or {"files": {}})["files"]}
            except DataError:  # a damaged manifest lists nothing
                pass
        for name in names:
            (self.out / name).unlink(missing_ok=True)
            for half_written in self.out.glob(temporary_name(name)):  # by a run that was killed
                half_written.unlink(missing_ok=True)

    def _description(self) -> dict[str, Any]:
        """What must agree for files to be kept, in the types that JSON gives back."""
        files = self.files
        document = {"kind": files.kind, "format": files.format, "version": __version__, "config": asdict(files.config)}
        return json.loads(json_values.dumps(document))

    def _write_manifest(self, done: dict[str, str], complete: bool) -> dict[str, Any]:
        parts = [part for part in self.files.plan(self.number) if part.name in done]
        manifest = {
            **self._description(),
            "number": self.number,
            "complete": complete,
            "counts": {"files": len(parts), **self.files.counts(parts)},
            "files": {p.name: {"sha256": done[p.name], "first": p.start, "count": p.size} for p in parts},
        }
        with written_whole(self.out / MANIFEST) as temporary:
            temporary.write_text(json_values.dumps(manifest) + "\n")
        return manifest

    def _draw(self, todo: Sequence[Part]) -> Iterator[tuple[dict[str, str], int]]:
        """SHA-256 by name of the files written, and how many scenes or stamps they hold, as they come."""
        size = max(1, TASK // todo[0].size) if todo else 1
        tasks = [todo[start : start + size] for start in range(0, len(todo), size)]
        if self.workers == 1 or len(tasks) < 2:
            yield from (write_parts(self.files, task, self.out) for task in tasks)
            return
        pool = ProcessPoolExecutor(min(self.workers, len(tasks)), get_context("spawn"), _end_with_parent)
        try:
            futures = [pool.submit(write_parts, self.files, task, self.out) for task in tasks]
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)

    def _bar(self, total: int) -> tqdm:
        every = 0.2 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
        unit = self.files.kind[:-1]
        return tqdm(None, "simulating", total, unit=unit, file=sys.stderr, disable=self.quiet, mininterval=every)


def write_parts(files: SceneFiles | StampFiles, parts: Sequence[Part], folder: Path) -> tuple[dict[str, str], int]:
    """SHA-256 by name of the files written, and how many scenes or stamps they hold."""
    return {part.name: files.write(part, folder) for part in parts}, sum(part.size for part in parts)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None. Raises: DataError for one that is damaged."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        whole = {"number": int, "files": dict, "config": dict}
        if not all(isinstance(manifest[key], kind) for key, kind in whole.items()):
            raise ValueError("values of other types")
    except (ValueError, TypeError, KeyError) as error:
        problem = f"expected the manifest of a simulation, received {type(error).__name__}: {error}"
        raise DataError(path, "manifest", problem, REMEDY) from error
    return manifest


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _end_with_parent() -> None:
    """A worker ends when its parent is killed; by itself it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
