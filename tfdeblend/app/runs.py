"""A run over many fields into one folder: what is done is kept, what failed is reported, the rest is done."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from tfdeblend.app.report import Entry, write_report
from tfdeblend.catalog import files
from tfdeblend.diffusion import registry
from tfdeblend.errors import DataError, one_line
from tfdeblend.io.atomic import remove_leftovers, sha256, written_whole
from tfdeblend.io.json_values import dumps
from tfdeblend.io.reading import Reading
from tfdeblend.version import __version__

if TYPE_CHECKING:
    from tfdeblend.app.inputs import Input
    from tfdeblend.catalog.result import Deblended
    from tfdeblend.client import Client
    from tfdeblend.data.scene import Scene
    from tfdeblend.deblender import Deblender

SAID = 300  # characters of another package's message, at most
CHUNK = 256  # scenes in memory at a time
TOGETHER = {"catalog.ecsv", "catalog.parquet", "catalog.fits", "index.html", "failures.json"}
PICTURES = (".samples.png", ".png")  # suffixes of a scene's
NOWHERE_TO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what no other scene would fare better with


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on except the files of its field.

    prior: a name or a file. optimizer: of the maximum, see `MapOptions`. samples, steps, keep_samples: of the method
    "sample", see `Deblender`; steps: None is the sampler's own number. trust_weights, stars, assume_ab: see
    `Deblender`. rescale_weights, sky_correlation: whether weights are rescaled to the scatter of the sky, and its
    noise's correlation is estimated, in each observation.
    """

    prior: str = "auto"
    method: str = "map"
    optimizer: str = "newton"
    background: bool = False
    seed: int = 0
    detect: bool | None = None
    reading: Reading = field(default_factory=Reading)
    trust_weights: bool = False
    stars: bool = True
    rescale_weights: bool = False
    sky_correlation: bool = False
    assume_ab: bool = False
    samples: int | None = None
    steps: int | None = None
    keep_samples: bool = False
    server: str | None = None

    def digest(self) -> str:
        """Hash of the settings, the content of PSF and prior files, and the version; each result keeps it as CONFIG."""
        reading = replace(self.reading, psf=sha256(Path(self.reading.psf)) if self.reading.psf else None)
        if registry.is_file(self.prior):
            prior = sha256(Path(self.prior))
        else:
            shipped = registry.shipped()
            used = shipped if self.prior == "auto" else shipped.keys() & {self.prior}
            prior = " ".join([self.prior, *sorted(str(shipped[name].sha256) for name in used)])
        server = "some" if self.server else None  # wherever it is
        text = json.dumps(
            [__version__, asdict(replace(self, reading=reading, prior=prior, server=server))], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ready(NamedTuple):
    """A scene in memory, and the hash of the bytes that it was read from."""

    scene: Scene
    digest: str


@dataclass
class Run:
    """Deblends the fields of `inputs` into the folder `out`, all of one shape together.

    `entries` and `status` ("done", "skipped", "failed") grow by the fields' names.
    """

    inputs: Sequence[Input]
    out: Path
    settings: Settings
    deblender: Deblender | Client
    overwrite: bool = False
    figures: bool = True
    quiet: bool = False
    entries: dict[str, Entry] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)

    def go(self) -> None:
        """Checks all inputs, then deblends those not done before, writing each result as it is finished.

        A field that cannot be done, whatever it fails of, is reported on standard error and becomes a failed entry; the
        others are done. So is a picture that cannot be drawn; its result is kept, and its entry has the error.

        Raises: DataError where results in `out` come from other settings or inputs, or no input can be used; OSError
          where `out` cannot be written.
        """
        config = self.settings.digest()
        remove_leftovers(self.out, {name for one in self.inputs for name in self._outputs(one.name)} | TOGETHER)
        todo = [one for one in self.inputs if self.overwrite or not self._done_before(one, config)]
        if done := sum(state == "skipped" for state in self.status.values()):
            self._say(f"{done} of {len(self.inputs)} scenes were done before")
        good = self._check(todo) if todo else {}
        if not done and not good:
            raise DataError("inputs", None, "expected scenes, received none that can be used, for the reasons above")
        self.out.mkdir(parents=True, exist_ok=True)
        if good:
            self._deblend(good, config)

    def finish(self, catalog_format: str, report: bool) -> dict[str, Any]:
        """Writes what goes over all scenes: catalogue, failures.json, index.html; returns the summary for JSON."""
        entries = [self.entries[one.name] for one in self.inputs]
        states = [self.status[one.name] for one in self.inputs]
        catalogs = {entry.name: entry.catalog for entry in entries if entry.catalog is not None}
        headers = [entry.header for entry in entries if entry.catalog is not None]
        used = Counter((str(header.get("prior")), str(header.get("priorwhy", ""))) for header in headers)
        summary: dict[str, Any] = {"version": __version__, "out": str(self.out), "settings": asdict(self.settings)}
        summary["counts"] = {state: states.count(state) for state in ("done", "skipped", "failed")}
        summary["priors"] = dict(Counter(str(header.get("prior")) for header in headers))
        summary["prior_reasons"] = [
            {"prior": prior, "scenes": count, "reason": reason} for (prior, reason), count in sorted(used.items())
        ]
        if catalogs:
            summary["catalog"] = str(self.out / f"catalog.{catalog_format}")
            files.write_catalog(catalogs, summary["catalog"])
        if report:
            title = f"{len(entries)} scene" + "s" * (len(entries) != 1)
            summary["report"] = str(write_report(self.out, entries, title))
        summary["scenes"] = [self._record(one) for one in self.inputs]
        failures = [scene for scene in summary["scenes"] if "error" in scene]
        log = self.out / "failures.json"
        if failures:
            with written_whole(log) as temporary:
                temporary.write_text(dumps(failures) + "\n")
        else:
            log.unlink(missing_ok=True)
        return summary

    def _target(self, name: str, suffix: str = ".fits") -> Path:
        return self.out / f"{name}{suffix}"

    def _outputs(self, name: str) -> list[str]:
        return [self._target(name, suffix).name for suffix in (".fits", *PICTURES)]

    def _done_before(self, one: Input, config: str) -> bool:
        """Whether nothing is to be done: a whole result of these settings and this input is there, or none can be.

        Raises: DataError where the result is another's.
        """
        target, now = self._target(one.name), ""
        with self._alone(one):
            if not target.exists():
                return False
            now = one.digest()
        if one.name in self.status:
            return True
        try:
            entry = Entry.read(target)
        except Exception:
            return False  # damaged: done again
        for key, wanted, what in (("config", config, "settings"), ("inputsha", now, "input")):
            if entry.header.get(key) != wanted:
                problem = f"expected a result of the same settings and input, received one of other {what}"
                raise DataError(target, key.upper(), problem, "give --overwrite or another --out")
        with self._alone(one):
            self._keep(one.name, entry, "skipped")
            if self.figures and not self._target(one.name, PICTURES[-1]).exists():
                self._plot(files.read(target), one.name)
        return True

    def _check(self, inputs: Sequence[Input]) -> dict[Input, Ready | None]:
        """The scenes that can be read; the first `CHUNK` stay in memory, the others are read again when due."""
        good: dict[Input, Ready | None] = {}
        notes: dict[str, list[str]] = defaultdict(list)
        for one in self._progress(inputs, "checking"):
            if ready := self._read(one):
                good[one] = ready if len(good) < CHUNK else None
                _collect(notes, ready.scene)
        self._say_notes(notes)
        return good

    def _read(self, one: Input) -> Ready | None:
        """The scene; None for one that cannot be read, or changes meanwhile, which fails."""
        with self._alone(one):
            before = one.digest()
            scene = one.read(self.settings)
            if one.digest() == before:
                return Ready(scene, before)
            raise DataError(one.files[0], "file", "expected one that stays as it is while it is read, received changes")
        return None

    def _deblend(self, good: dict[Input, Ready | None], config: str) -> None:
        inputs = list(good)
        notes: dict[str, list[str]] = defaultdict(list)
        try:
            with self._progress(None, "deblending", len(inputs)) as bar:
                for start in range(0, len(inputs), CHUNK):
                    chunk = {one: good.pop(one) or self._read(one) for one in inputs[start : start + CHUNK]}
                    ready = {one: each for one, each in chunk.items() if each}
                    bar.update(len(chunk) - len(ready))
                    for one, result in self._results(ready):
                        with self._alone(one):
                            if isinstance(result, Exception):
                                raise result
                            _collect(notes, result.scene, ready[one].scene)
                            self._write(one, result, {"config": config, "inputsha": ready[one].digest})
                        bar.update()
        finally:
            self._say_notes(notes)

    def _results(self, ready: Mapping[Input, Ready]) -> Iterator[tuple[Input, Deblended | Exception]]:
        """What the deblender makes of scenes; where it stops, its error is that of all that are left."""
        left = dict(enumerate(ready))
        try:
            for index, result in self.deblender.iterate([each.scene for each in ready.values()]):
                yield left.pop(index), result
        except Exception as error:
            yield from ((one, error) for one in left.values())

    def _write(self, one: Input, result: Deblended, facts: Mapping[str, str]) -> None:
        result = replace(result, header={**result.header, **facts})
        for suffix in PICTURES:
            self._target(one.name, suffix).unlink(missing_ok=True)  # of an earlier result
        files.write(result, self._target(one.name))
        self._keep(one.name, Entry.of(result), "done")
        if self.figures:
            self._plot(result, one.name)

    def _plot(self, result: Deblended, name: str) -> None:
        from tfdeblend import plots
        from tfdeblend.plots import bitmap

        of_samples, of_result = (self._target(name, suffix) for suffix in PICTURES)
        if result.samples is not None:
            plots.write(plots.samples(result), of_samples)
        bitmap.plot(result, of_result)  # last: a scene with this picture has all

    def _keep(self, name: str, entry: Entry, status: str) -> None:
        self.entries[name], self.status[name] = entry, status

    @contextmanager
    def _alone(self, one: Input) -> Iterator[None]:
        """Whatever a field fails of in here is reported, and fails it alone.

        Raises: OSError where nothing can be written any more.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NOWHERE_TO_WRITE:
                raise
            self._fail(one, error)

    def _fail(self, one: Input, error: Exception) -> None:
        """Reports an error of a field, which has failed by it; or its picture has, where a result is kept already."""
        message = str(error)
        if not isinstance(error, DataError | OSError):
            message = f"{type(error).__name__}: {message[:SAID]}" if message else type(error).__name__
        entry = self.entries.get(one.name, Entry(one.name))
        if entry.catalog is not None:
            message = f"picture: {message}"
        if not any(str(file) in message for file in (*one.files, one.catalog) if file):
            message = f"{one.files[0]}: {message}"
        message = one_line(message)
        self._keep(one.name, replace(entry, error=message), self.status.get(one.name, "failed"))
        tqdm.write(f"tfdeblend: {message}", file=sys.stderr)

    def _record(self, one: Input) -> dict[str, Any]:
        """One scene in the summary."""
        entry, name = self.entries[one.name], one.name
        record: dict[str, Any] = {"scene": name, "input": str(one.files[0]), "status": self.status[name]}
        if len(one.files) > 1:
            record["observations"] = [str(file) for file in one.files]
        if entry.error is not None:
            record["error"] = entry.error
        if entry.catalog is None:
            return record
        figure = self._target(name, ".png")
        record |= {"output": str(self._target(name)), "figure": str(figure) if figure.exists() else None}
        record |= {"sources": len(entry.catalog), "undeclared": entry.undeclared}
        return record | {"chi2": entry.header.get("chi2")}

    def _say_notes(self, notes: Mapping[str, Sequence[str]]) -> None:
        """A line for each note, with the names of the observations that have it."""
        for note, names in notes.items():
            self._say(f"{', '.join(names) if len(names) < 4 else f'{len(names)} scenes'}: {note}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(f"tfdeblend: {text}", file=sys.stderr)

    def _progress(self, items: Iterable[Input] | None, what: str, total: int | None = None) -> tqdm:
        every = 0.2 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
        return tqdm(items, what, total, unit="scene", file=sys.stderr, disable=self.quiet, mininterval=every)


def _collect(notes: dict[str, list[str]], scene: Scene, known: Scene | None = None) -> None:
    """Add the names of a scene's observations to their notes, save those that it had before."""
    before = {(one.name, note) for one in known.observations for note in one.notes} if known else set()
    for number, one in enumerate(scene.observations):
        name = f"{scene.name} ({one.name})" if number else scene.name
        for note in one.notes:
            if (one.name, note) not in before and name not in notes[note]:
                notes[note].append(name)
