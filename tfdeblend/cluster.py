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

AHEAD = 2  # tasks a thread that are waiting for it: more would only fill the scheduler
# Of each worker's libraries, where they count threads: many workers of one beat one of many.
THREADS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

# Does a task for many tuples of arguments, and yields (arguments, result or error) as each is done.
Submit = Callable[[Callable[..., Any], Iterable[tuple]], Iterator[tuple[tuple, Any]]]


@contextmanager
def executor(workers: int = 0, scheduler: str | None = None, progress: bool = False) -> Iterator[Submit]:
    """Give what does tasks.

    Args:
        workers: processes of a local Dask cluster; 0: this process alone, without Dask.
        scheduler: the address of a Dask scheduler, in place of a local cluster.
        progress: whether the address of the cluster's page is written to standard error.

    Raises:
        DataError: without the package distributed where it is needed.
    """
    if not workers and scheduler is None:
        yield here
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        remedy = "pip install 'tfdeblend[survey]', or give --workers 0"
        raise DataError("workers", None, "expected the package distributed, which is not installed", remedy) from error
    if scheduler is not None:
        with Client(scheduler) as client:
            yield _told(client, progress)
        return
    settings = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(**settings, memory_limit=0, env=THREADS) as cluster, Client(cluster) as client:
        yield _told(client, progress)


def _told(client: Any, progress: bool) -> Submit:
    if progress:
        print(f"cluster: {client.scheduler.address}, its page: {client.dashboard_link}", file=sys.stderr)
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

    What is done is fetched, and what comes next is handed over, in batches: for each task alone the scheduler, the
    workers and this process would wait for each other.
    """
    from distributed import as_completed

    def submit(task: Callable[..., Any], work: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        waiting = as_completed(with_results=True, raise_errors=False)
        rest, threads = iter(work), _Threads(client)
        given: dict[str, tuple] = {}  # the arguments of tasks that are not done, by key

        def more() -> None:
            following = [*islice(rest, max(AHEAD * threads.count - len(given), 0))]
            if following:
                futures = client.map(task, *zip(*following, strict=True), pure=False)
                given.update((future.key, each) for future, each in zip(futures, following, strict=True))
                waiting.update(futures)

        more()
        for batch in waiting.batches():
            for future, result in batch:
                yield given.pop(future.key), result[1] if future.status == "error" else result
            more()

    return submit


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
