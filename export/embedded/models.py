"""The models of a folder: the newest version of each is loaded, warmed up, served, and replaced by a newer one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tfdeblend.export.embedded import inputs
from tfdeblend.export.embedded.batcher import Arrays, Batcher, Closed
from tfdeblend.export.embedded.metrics import Metrics
from tfdeblend.export.embedded.refusal import Refusal
from tfdeblend.export.embedded.runtime import Runtime
from tfdeblend.export.layout import WARM_UP, versions

log = logging.getLogger("tfdeblend.serve")
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of gradients, which nobody asks for
DEFAULT = "serving_default"
WHOLE = (Path("saved_model.pb"), Path("variables") / "variables.index")  # a version without them is being copied
Ask = Callable[["Version"], Awaitable[tuple[str, Arrays]]]  # a request's signature and inputs, as a version takes them


@dataclass(frozen=True)
class Limits:
    """blends: in a batch and in a request. waiting: blends that may wait. threads: batches side by side."""

    blends: int = 8
    waiting: int = 256
    threads: int = 2


class Version:
    """A version of a model in service.

    Attributes: signatures, specs: of its `Runtime`.
    """

    def __init__(self, folder: Path, limits: Limits, metrics: Metrics):
        self.name, self.number, self.limits = folder.parent.name, int(folder.name), limits
        self._run = Runtime(folder)
        self.signatures, self.specs = self._run.signatures, self._run.specs
        self._warm_up(folder / WARM_UP)
        self.batcher = Batcher(self._run, limits.blends, limits.waiting, limits.threads, metrics.batches(self.name))

    def close(self) -> None:
        """Takes no more requests and finishes what was accepted."""
        self.batcher.close()
        self._run.close()

    def _warm_up(self, records: Path) -> None:
        if not records.exists():
            return
        for record in tf.data.TFRecordDataset(str(records)):
            request = PredictionLog.FromString(record.numpy()).predict_log.request
            name = request.model_spec.signature_name or DEFAULT
            self._run(name, inputs.of_protos(request.inputs, self.specs[name], self.limits.blends))


class Models:
    """Loads and serves the models below `base`.

    Raises: Refusal from what is asked of them; OSError for a folder that is not there.
    """

    def __init__(self, base: Path, limits: Limits, metrics: Metrics):
        self.base, self.limits, self.metrics = base, limits, metrics
        self._served: dict[str, Version] = {}
        self._broken: set[tuple[Path, int, int]] = set()  # when they were written, and their size
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._poller: threading.Thread | None = None
        if not base.is_dir():
            raise NotADirectoryError(f"expected a folder of models, received {base}")

    def poll(self) -> None:
        """Loads the newest version of each model that can be loaded, and drops models that are gone.

        Raises: OSError where the folder cannot be read.
        """
        there = {path.name: path for path in sorted(self.base.iterdir()) if versions(path)}
        for name in set(self._served) - set(there):
            self._replace(name, None)
        for name, folder in there.items():
            served = self._served.get(name)
            for number in reversed(versions(folder)):
                if self._stop.is_set() or (served and served.number == number):
                    break
                began = time.perf_counter()
                if version := self._loaded(folder / str(number)):
                    self._replace(name, version)
                    log.info("%s: version %d in service after %.1f s", name, number, time.perf_counter() - began)
                    break

    def _loaded(self, folder: Path) -> Version | None:
        """Loads a version; returns None for one that is being copied, or does not load."""
        if not all((folder / file).exists() for file in WHOLE):
            return None
        files = [path.stat() for path in folder.rglob("*")]
        written = folder, max(file.st_mtime_ns for file in files), sum(file.st_size for file in files)
        if written in self._broken:
            return None
        try:
            return Version(folder, self.limits, self.metrics)
        except Exception as error:  # of TensorFlow or protobuf, whatever is wrong with the files
            self._broken.add(written)
            log.error("%s: expected a model, received %s", folder, " ".join(str(error).split())[:300])
            return None

    def watch(self, seconds: float) -> None:
        """Polls until `close`."""

        def repeat() -> None:
            while not self._stop.wait(seconds):
                try:
                    self.poll()
                except OSError as error:  # the next time, it may be there again
                    log.error("expected a folder of models, received %s", error)

        self._poller = threading.Thread(target=repeat, name="versions")
        self._poller.start()

    def leave(self) -> None:
        """Stops polling."""
        self._stop.set()

    def close(self) -> None:
        """Takes no more requests and finishes what was accepted."""
        self.leave()
        if self._poller:
            self._poller.join()
        for name in list(self._served):
            self._replace(name, None)

    @property
    def names(self) -> list[str]:
        return sorted(self._served)

    def find(self, name: str, number: int | None = None, label: str = "") -> Version:
        """Finds the served version of a model. Raises: Refusal."""
        version = self._served.get(name)
        if version is None or (number is not None and version.number != number) or label:
            wanted = f" version {number}" if number is not None else f" label {label!r}" if label else ""
            have = f"{name} version {version.number}" if version else ", ".join(self.names) or "no model"
            raise Refusal("NOT_FOUND", f"expected a model that is served ({have}), received {name[:80]}{wanted}")
        return version

    async def predict(self, find: Callable[[], Version], ask: Ask) -> tuple[Version, str, Arrays]:
        """Answers a request: returns the version that answered, the signature that was asked for, and its outputs.

        Raises: Refusal.
        """
        while True:
            version = find()
            signature, arrays = await ask(version)
            try:
                future = version.batcher.submit(signature, arrays)
            except Closed:  # replaced since it was found
                continue
            try:
                return version, signature, await asyncio.wrap_future(future)
            except tf.errors.OpError as error:
                raise Refusal("INTERNAL", " ".join(str(error.message).split())[:300]) from error

    def _replace(self, name: str, version: Version | None) -> None:
        with self._lock:
            before = self._served.get(name)
            if version:
                self._served[name] = version  # at once: a request in between would find no model
            else:
                self._served.pop(name, None)
        self.metrics.serving(name, version.number if version else 0, version.batcher.held if version else lambda: 0)
        if before:
            before.close()


def signature_of(version: Version, name: str) -> str:
    """Finds the signature of a request. Raises: Refusal."""
    name = name or DEFAULT
    if name not in version.specs:
        known = ", ".join(sorted(version.specs))
        raise Refusal("INVALID_ARGUMENT", f"signature_name: expected one of {known}, received {name[:80]!r}")
    return name
