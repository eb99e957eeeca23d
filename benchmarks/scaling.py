"""What a survey run costs beside its fits: many empty tasks on a local Dask cluster, through the executor of a run.

    python -m benchmarks.scaling --tasks 100000 --workers 2

Says the CPU-time of the client, the scheduler and a worker for each task, by which one scheduler's tasks a second are
bounded, and how much memory the client's process, in which the scheduler runs too, takes before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import psutil

from tfdeblend.cluster import executor
from tfdeblend.survey.settings import SurveySettings
from tfdeblend.survey.tiles import Tile, tiles

SIDE = 512  # pixels of a tile


def nothing(settings: SurveySettings, out: Path, tile: Tile, number: int) -> dict[str, Any]:
    """Do what a tile's task does, but for its work: say what it took."""
    return {"cpu": 0.0, "memory": {"host:1": 0.0}, "objects": 0}


def measure(count: int, workers: int) -> dict[str, float]:
    """Run `count` empty tasks. Returns seconds and CPU-milliseconds a task, and memory in MB."""
    settings, out = SurveySettings(("coadd_g.fits", "coadd_r.fits")), Path("run")
    side = math.ceil(count**0.5)
    work = [(settings, out, tile, n) for n, tile in enumerate(tiles((side * SIDE, side * SIDE), SIDE, 128)[:count])]
    client = psutil.Process()
    with executor(workers, None) as submit:
        for _ in submit(nothing, work[: 10 * workers]):  # workers unpickle their first tasks
            pass
        children = client.children(recursive=True)
        before, memory = _seconds([client]), client.memory_info().rss / 1e6
        of_workers, began = _seconds(children), time.perf_counter()
        done = sum(1 for _ in submit(nothing, work))
        wall = time.perf_counter() - began
        after, of_workers = _seconds([client]) - before, _seconds(children) - of_workers
        grown = client.memory_info().rss / 1e6
    assert done == count
    return {
        "tasks": count,
        "workers": workers,
        "ms_wall": 1e3 * wall / count,
        "ms_cpu_client_and_scheduler": 1e3 * after / count,
        "ms_cpu_workers": 1e3 * of_workers / count,
        "mb_before": memory,
        "mb_after": grown,
    }


def _seconds(processes: list[psutil.Process]) -> float:
    """CPU-seconds that processes have taken."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, metavar="N", help="empty tasks (default: 100000)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    args = parser.parse_args()
    print(json.dumps({name: round(value, 3) for name, value in measure(args.tasks, args.workers).items()}, indent=2))


if __name__ == "__main__":
    main()
