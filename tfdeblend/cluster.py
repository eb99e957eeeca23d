"""Where tasks are done: in this process, or on a Dask cluster."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tfdeblend.errors import DataError
from tfdeblend.machine import MEMORY_SHARE, machine_memory
from tfdeblend.startup import silence_tensorflow, start_tensorflow

AHEAD = 2  # tasks that the cluster holds for each thread: more would only fill the scheduler
# Limits of the worker's libraries: many workers of one thread are faster than one of many.
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

# How a worker allocates memory. Dask's default of 64 kB for the first also fixes the size from which the C library maps
# each array by itself, so that clearing pages takes a fifth of the CPU time.
ALLOCATION = {"MALLOC_TRIM_THRESHOLD_": 1 << 24, "MALLOC_MMAP_THRESHOLD_": 1 << 23, "MALLOC_ARENA_MAX": 2}
SPAWNED = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ALLOCATION.items()}

# A worker is killed at its limit of memory, and neither paused nor made to spill below it.
KILLED = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")}

# Does a task for many tuples of arguments, and yields (arguments, result or error) as each is done.
Submit = Callable[[Callable[..., Any], Iterable[tuple]], Iterator[tuple[tuple, Any]]]


class WorkerDied(Exception):
    """A task kills its workers: for want of memory, or by a fault in a library."""


@contextmanager
def executor(
    workers: int = 0, scheduler: str | None = None, progress: bool = False, verbose: bool = False
) -> Iterator[Submit]:
    """Give a function that does tasks, in this process or on a cluster.

    A local worker that takes more than its share of the machine's memory is killed and replaced.

    Args:
        workers: processes of a local Dask cluster; 0: this process alone, without Dask.
        scheduler: the address of a Dask scheduler, in place of a local cluster.
        progress: whether the address of the cluster's page is written to standard error.
        verbose: whether workers may write there which CPU and drivers TensorFlow found.

    Raises:
        DataError: without the package distributed where it is needed.
    """
    if not workers and scheduler is None:
        yield here
        return
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        remedy = "pip install 'tfdeblend[survey]', or give --workers 0"
        raise DataError("workers", None, "expected the package distributed, which is not installed", remedy) from error
    if scheduler is not None:
        with Client(scheduler) as client:
            yield _on(client, progress, verbose)
        return
    settings = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    share = int(MEMORY_SHARE * machine_memory() * 1e9 / workers)
    with (
        dask.config.set(KILLED | SPAWNED),
        LocalCluster(**settings, memory_limit=share, env=THREADS) as cluster,
        Client(cluster) as client,
    ):
        yield _on(client, progress, verbose)


def _on(client: Any, progress: bool, verbose: bool) -> Submit:
    if progress:
        print(f"cluster: {client.scheduler.address}, its page: {client.dashboard_link}", file=sys.stderr)
    if not verbose:
        client.register_plugin(_silence())
    return _on_cluster(client)


def here(task: Callable[..., Any], work: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
    """Do tasks in this process, one after another."""
    for arguments in work:
        try:
            yield arguments, task(*arguments)
        except Exception as error:
            yield arguments, error


def results(done: Iterator[tuple[tuple, Any]]) -> Iterator[tuple[tuple, Any]]:
    """Yield what tasks gave, and raise the first error."""
    for arguments, result in done:
        if isinstance(result, Exception):
            raise result
        yield arguments, result


def _on_cluster(client: Any) -> Submit:
    """Make a function that hands tasks to a cluster, at most AHEAD of them for each of its threads at a time.

    What is done is fetched, and what comes next is handed over, in batches, one at a time: for each task alone the
    scheduler, the workers and this process would wait for each other. Fetches beside each other may wait forever.

    A worker that dies takes along the tasks that wait for it, and Dask gives up those that saw several workers die.
    They are done again at the end, one at a time: only what then kills its workers is an error.
    """
    from distributed import KilledWorker, as_completed

    def submit(task: Callable[..., Any], work: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        waiting, rest, threads = as_completed(), iter(work), _Threads(client)
        given: dict[str, tuple] = {}  # the arguments of tasks that are not done, by key
        suspects: list[tuple] = []

        def more() -> None:
            following = [*islice(rest, max(AHEAD * threads.count - len(given), 0))]
            if following:
                futures = client.map(task, *zip(*following, strict=True), pure=False)
                given.update((future.key, each) for future, each in zip(futures, following, strict=True))
                waiting.update(futures)

        more()
        for batch in waiting.batches():
            got = client.gather({future.key: future for future in batch}, errors="skip")  # None of one that failed
            for future in batch:
                arguments = given.pop(future.key)
                found = got.get(future.key)
                found = _outcome(future) if found is None else found
                if isinstance(found, KilledWorker):
                    suspects.append(arguments)
                else:
                    yield arguments, found
            more()
        for arguments in suspects:
            found = _outcome(client.submit(task, *arguments, pure=False))
            if isinstance(found, KilledWorker):
                found = WorkerDied("expected a worker that lives on, received the deaths of those that did this task")
            yield arguments, found

    return submit


def _outcome(future: Any) -> Any:
    """The result of a task of Dask's, or its error; a result that a dead worker took along is computed again."""
    try:
        return future.result()
    except Exception as error:
        return error


def _silence() -> Any:
    """Make a plugin with which Dask's workers start TensorFlow in silence."""
    from distributed import WorkerPlugin

    class Silence(WorkerPlugin):
        name = "silence"

        def setup(self, worker: Any) -> None:
            silence_tensorflow()
            start_tensorflow()

    return Silence()


class _Threads:
    """Counts the threads of a cluster, which grows and shrinks, and asks for them every few seconds at most."""

    SECONDS = 5.0

    def __init__(self, client: Any) -> None:
        self.client, self.asked, self.known = client, -math.inf, 1

    @property
    def count(self) -> int:
        """Threads of all workers, at least 1."""
        if time.monotonic() - self.asked > self.SECONDS:
            self.asked, self.known = time.monotonic(), max(sum(self.client.nthreads().values()), 1)
        return self.known
