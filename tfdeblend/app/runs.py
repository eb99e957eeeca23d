"""A run over many scenes into one folder: what is done is kept, what failed is told, the rest goes on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tfdeblend import io
from tfdeblend.app.report import Entry, write_report
from tfdeblend.catalog import files
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import registry
from tfdeblend.errors import DataError
from tfdeblend.io import records
from tfdeblend.version import __version__

if TYPE_CHECKING:
    from tfdeblend.catalog.result import Deblended
    from tfdeblend.client import Client
    from tfdeblend.deblender import Deblender

CHUNK = 256  # scenes in memory at a time


@dataclass(frozen=True)
class Sampling:
    """Of `--method sample`. steps: None is the sampler's own number."""

    samples: int = 16
    steps: int | None = None
    keep: bool = False

    @classmethod
    def of(cls, args: Any) -> Sampling:
        """From the command line."""
        return cls(args.samples, args.steps, args.save_samples)

    def options(self) -> dict[str, Any]:
        """What `Deblender` takes."""
        from tfdeblend.inference.diffusion_sampler import SampleOptions

        sampling = SampleOptions() if self.steps is None else SampleOptions(self.steps)
        return {"samples": self.samples, "keep_samples": self.keep, "sampling": sampling}


@dataclass(frozen=True)
class Settings:
    """Everything besides the scenes' own files that a result depends on."""

    prior: str = "auto"
    method: str = "map"
    background: bool = False
    seed: int = 0
    detect: bool | None = None
    mask_planes: tuple[str | int, ...] | None = None
    psf: str | None = None
    sampling: Sampling | None = None
    server: str | None = None

    def digest(self) -> str:
        """Hash of the settings, the content of PSF and prior files, and the version; each result keeps it as CONFIG."""
        psf = digest(Path(self.psf)) if self.psf else None
        if registry.is_file(self.prior):
            prior = digest(Path(self.prior))
        else:
            shipped = registry.shipped()
            files = shipped if self.prior == "auto" else shipped.keys() & {self.prior}
            prior = " ".join([self.prior, *sorted(str(shipped[name].sha256) for name in files)])
        server = "some" if self.server else None  # wherever it is
        text = json.dumps([__version__, asdict(replace(self, psf=psf, prior=prior, server=server))], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, path: Path) -> Scene:
        """The checked scene of a file. Errors: DataError."""
        return Scene.read(path, psf=self.psf, mask_planes=self.mask_planes, detect=self.detect)


@dataclass
class Run:
    """Deblends files into the folder `out`; `entries` and `status` ("done", "skipped", "failed") grow by scene name."""

    paths: Sequence[Path]
    out: Path
    settings: Settings
    overwrite: bool = False
    figures: bool = True
    batch_size: int | None = None
    quiet: bool = False
    entries: dict[str, Entry] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)

    def go(self) -> None:
        """Checks all inputs, then deblends those not done before, writing each scene as it finishes.

        Errors: DataError where results in `out` come from other settings or inputs, or every input is bad; OSError
        where `out` cannot be written. A bad scene among good ones is told on standard error and becomes a failed entry.
        """
        config = self.settings.digest()
        todo = [path for path in self.paths if self.overwrite or not self._done_before(path, config)]
        if len(todo) < len(self.paths):
            self._say(f"{len(self.paths) - len(todo)} of {len(self.paths)} scenes were done before")
        good = self._check(todo) if todo else {}
        if "skipped" not in self.status.values() and not good:
            raise DataError("inputs", "expected scenes, received none that can be used, for the reasons above")
        self.out.mkdir(parents=True, exist_ok=True)
        if good:
            self._deblend(good, config)

    def finish(self, catalog_format: str, report: bool) -> dict[str, Any]:
        """Writes what goes over all scenes: catalogue, failures.json, index.html; returns the summary for JSON."""
        names = [io.scene_name(path) for path in self.paths]
        catalogs = {name: self.entries[name].catalog for name in names if self.status[name] != "failed"}
        summary: dict[str, Any] = {"version": __version__, "out": str(self.out), "settings": asdict(self.settings)}
        summary["counts"] = {state: list(self.status.values()).count(state) for state in ("done", "skipped", "failed")}
        used = [self.entries[name].header.get("prior") for name in names if self.status[name] != "failed"]
        summary["priors"] = dict(Counter(str(prior) for prior in used))
        if catalogs:
            summary["catalog"] = str(self.out / f"catalog.{catalog_format}")
            files.write_catalog(catalogs, summary["catalog"])
        if report:
            title = f"{len(names)} scene" + "s" * (len(names) != 1)
            summary["report"] = str(write_report(self.out, [self.entries[name] for name in names], title))
        summary["scenes"] = [self._record(path) for path in self.paths]
        failures = [scene for scene in summary["scenes"] if scene["status"] == "failed"]
        log = self.out / "failures.json"
        if failures:
            log.write_text(records.dumps(failures) + "\n")
        else:
            log.unlink(missing_ok=True)
        return summary

    def _digest(self, path: Path) -> str:
        return input_digest(path)

    def _save(self, result: Deblended, target: Path) -> None:
        files.write_fits(result, target)

    def _target(self, path: Path, suffix: str = ".fits") -> Path:
        return self.out / f"{io.scene_name(path)}{suffix}"

    def _done_before(self, path: Path, config: str) -> bool:
        """Whether a whole result of these settings and this input is there. Errors: DataError where it is another's."""
        target = self._target(path)
        if not target.exists():
            return False
        try:
            entry = Entry.read(target)
        except DataError:
            return False  # damaged: done again
        for key, now, what in (("config", config, "settings"), ("inputsha", self._digest(path), "input")):
            if entry.header.get(key) != now:
                problem = f"expected a result of the same settings and input, received one of other {what}"
                raise DataError(target, key.upper(), f"{problem}; give --overwrite or another --out")
        if self.figures and not self._target(path, ".png").exists():
            self._plot(files.read_fits(target), path)
        self._keep(path, entry, "skipped")
        return True

    def _check(self, paths: Sequence[Path]) -> dict[Path, Scene | None]:
        """The scenes that can be read; the first `CHUNK` stay in memory, the others are read again when due."""
        good: dict[Path, Scene | None] = {}
        notes: dict[str, list[str]] = defaultdict(list)
        for path in self._progress(paths, "checking"):
            scene = self._read(path)
            if scene is None:
                continue
            good[path] = scene if len(good) < CHUNK else None
            for note in scene.observation.notes:
                notes[note].append(scene.name)
        for note, names in notes.items():
            self._say(f"{', '.join(names) if len(names) < 4 else f'{len(names)} scenes'}: {note}")
        return good

    def _read(self, path: Path) -> Scene | None:
        try:
            return self.settings.read(path)
        except DataError as error:
            self._fail(path, error)
            return None

    def _deblend(self, good: dict[Path, Scene | None], config: str) -> None:
        deblender, paths = self._deblender(), list(good)
        with self._progress(None, "deblending", len(paths)) as bar:
            for start in range(0, len(paths), CHUNK):
                chunk = {path: good.pop(path) or self._read(path) for path in paths[start : start + CHUNK]}
                scenes = {path: scene for path, scene in chunk.items() if scene}
                bar.update(len(chunk) - len(scenes))
                for index, result in deblender.iterate(list(scenes.values())):
                    path = list(scenes)[index]
                    if isinstance(result, Exception):
                        self._fail(path, result)
                    else:
                        self._write(path, result, config)
                    bar.update()

    def _deblender(self) -> Deblender | Client:
        """Of this machine, or a server's."""
        settings = self.settings
        if settings.server:
            from tfdeblend.client import Client

            keep = settings.sampling is not None and settings.sampling.keep
            return Client(settings.server, settings.prior, settings.method, settings.seed, keep)
        from tfdeblend.deblender import Deblender

        return Deblender(
            settings.prior,
            settings.method,
            seed=settings.seed,
            background=settings.background,
            batch_size=self.batch_size,
            **(settings.sampling.options() if settings.sampling else {}),
        )

    def _write(self, path: Path, result: Deblended, config: str) -> None:
        result = replace(result, header={**result.header, "config": config, "inputsha": self._digest(path)})
        if self.figures:
            self._plot(result, path)
        self._save(result, self._target(path))  # last: a scene with this file is complete
        self._keep(path, Entry.of(result), "done")

    def _plot(self, result: Deblended, path: Path) -> None:
        from tfdeblend.app import sample_plots
        from tfdeblend.app.plots import plotter

        plotter().save(result, self._target(path, ".png"))
        of_samples = self._target(path, ".samples.png")
        if result.samples is not None:
            sample_plots.save(result, of_samples)
        else:
            of_samples.unlink(missing_ok=True)

    def _keep(self, path: Path, entry: Entry, status: str) -> None:
        name = io.scene_name(path)
        self.entries[name], self.status[name] = entry, status

    def _fail(self, path: Path, error: Exception) -> None:
        message = " ".join(str(error).split()) or type(error).__name__
        if str(path) not in message:
            message = f"{path}: {message}"
        self._keep(path, Entry(io.scene_name(path), error=message), "failed")
        tqdm.write(f"tfdeblend: {message}", file=sys.stderr)

    def _record(self, path: Path) -> dict[str, Any]:
        """One scene in the summary."""
        name = io.scene_name(path)
        entry, status = self.entries[name], self.status[name]
        record: dict[str, Any] = {"scene": name, "input": str(path), "status": status}
        if entry.catalog is None:
            return record | {"error": entry.error}
        figure = self._target(path, ".png")
        record |= {"output": str(self._target(path)), "figure": str(figure) if figure.exists() else None}
        record |= {"sources": len(entry.catalog), "undeclared": entry.undeclared}
        return record | {"chi2": entry.header.get("chi2")}

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(f"tfdeblend: {text}", file=sys.stderr)

    def _progress(self, items: Iterable[Path] | None, what: str, total: int | None = None) -> tqdm:
        every = 0.2 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
        return tqdm(items, what, total, unit="scene", file=sys.stderr, disable=self.quiet, mininterval=every)


def digest(*paths: Path, text: str = "") -> str:
    """Hash of the files' content, and of a text."""
    return hashlib.sha256(b"".join([text.encode(), *(path.read_bytes() for path in paths)])).hexdigest()[:16]


def input_digest(path: Path) -> str:
    """Hash of a scene's file and of a PSF that lies beside it."""
    beside = (path.with_name(io.scene_name(path) + suffix) for suffix in ("_psf.fits", ".psf"))
    return digest(path, *(companion for companion in beside if companion.exists()))
