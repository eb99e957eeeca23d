"""Tasks on a Dask cluster: each is done once, whatever ends in an error, and few of them wait at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tfdeblend import cluster

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "batch.py"


def work(count: int) -> Iterator[tuple[int, int]]:
    return ((n, n % 5) for n in range(count))  # of which every fifth is a division by 0


def check(done: list[tuple[tuple[int, int], object]], count: int) -> None:
    assert sorted(arguments for arguments, _ in done) == [*work(count)]
    for (n, by), result in done:
        assert isinstance(result, ZeroDivisionError) if by == 0 else result == divmod(n, by)


def test_tasks_of_one_process_are_done_in_turn() -> None:
    done = [*cluster.here(divmod, work(12))]
    check(done, 12)
    assert [arguments for arguments, _ in done] == [*work(12)]
    with pytest.raises(ZeroDivisionError):
        [*cluster.results(iter(done))]


def test_tasks_of_a_cluster_are_done_once_and_few_wait() -> None:
    """No more than AHEAD are taken for each thread before one is done."""
    distributed = pytest.importorskip("distributed")
    taken: list[int] = []

    def counted() -> Iterator[tuple[int, int]]:
        for number, arguments in enumerate(work(40)):
            taken.append(number)
            yield arguments

    done = []
    how = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.Client(**how) as client:
        for each in cluster._on_cluster(client)(divmod, counted()):
            done.append(each)
            assert len(taken) <= len(done) + 2 * cluster.AHEAD
    check(done, 40)


@pytest.mark.slow
def test_local_workers_have_one_thread_and_allocate_as_they_should() -> None:
    pytest.importorskip("distributed")
    wanted = cluster.THREADS | {name: str(value) for name, value in cluster.ALLOCATION.items()}
    with cluster.executor(1) as submit:
        found = {name: value for (name,), value in submit(os.getenv, [(name,) for name in wanted])}
    assert found == wanted


@pytest.mark.slow
def test_tasks_go_to_a_scheduler_that_is_there(tmp_path: Path) -> None:
    """It and its worker are started by hand; the worker may come later than the tasks."""
    pytest.importorskip("distributed")
    place, dask = tmp_path / "scheduler.json", [sys.executable, "-m"]
    start = [*dask, "distributed.cli.dask_scheduler", "--port", "0", "--dashboard-address", ":0"]
    join = [*dask, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([*command, "--scheduler-file", str(place)], **quiet)  # type: ignore[call-overload]
        for command in (start, join)
    ]
    try:
        address = _address(place)
        with cluster.executor(scheduler=address) as submit:
            check([*submit(divmod, work(40))], 40)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def _address(place: Path) -> str:
    import json
    import time

    for _ in range(600):
        if place.is_file() and (text := place.read_text()).endswith("}"):
            return str(json.loads(text)["address"])
        time.sleep(0.1)
    raise TimeoutError(place)


@pytest.mark.parametrize(
    ("system", "lines"),
    [
        ("slurm", ["#SBATCH -p normal", "#SBATCH -n 1", "#SBATCH --cpus-per-task=8", "#SBATCH -t 01:30:00"]),
        ("pbs", ["#PBS -q normal", "#PBS -l select=1:ncpus=8:mem=23GB", "#PBS -l walltime=01:30:00"]),
    ],
)
def test_jobs_are_workers_of_a_thread_each(system: str, lines: list[str]) -> None:
    """Threads of the libraries are set before the worker starts, which ends before its job."""
    if find_spec("dask_jobqueue") is None:  # its import would take over SIGINT
        pytest.skip("dask-jobqueue is not installed")
    given = ["--queue", "normal", "--cores", "8", "--minutes", "90", "--before", "module load python", "--show"]
    shown = subprocess.run(
        [sys.executable, SCRIPT, "--system", system, *given], capture_output=True, text=True, check=True, cwd=ROOT
    )
    script = shown.stdout.splitlines()
    assert {*lines} <= {*script}
    exports = {f"export {name}={value}" for name, value in (cluster.THREADS | cluster.ALLOCATION).items()}
    worker = next(line for line in script if "dask_worker" in line)
    assert {*exports, "module load python"} <= {*script[: script.index(worker)]}
    for option in ("--nthreads 1", "--nworkers 8", "--lifetime 80m"):
        assert option in worker
