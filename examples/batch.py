"""A Dask cluster of workers for `tfdeblend survey` on a batch system, as jobs of one node each.

    python examples/batch.py --system slurm --jobs 20 --queue normal --address scheduler.txt
    tfdeblend survey coadd_[grizy].fits --out run --scheduler "$(cat scheduler.txt)"

The first command, and its jobs, run until it is interrupted. `--show` prints the job's script, and submits
nothing. It needs `pip install dask-jobqueue`; coadds and the folder of the run must be on disks that all nodes see.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tfdeblend.cluster import ALLOCATION, THREADS


def cluster(args: argparse.Namespace) -> Any:
    """Make a cluster whose jobs are workers of one thread each, as many processes as a job has cores."""
    from dask_jobqueue import PBSCluster, SLURMCluster

    kinds = {"slurm": SLURMCluster, "pbs": PBSCluster}
    return kinds[args.system](
        queue=args.queue,
        account=args.account,
        cores=args.cores,
        processes=args.cores,
        memory=f"{args.memory * args.cores:g}GB",
        walltime=args.walltime,
        # A worker stops 5 to 15 minutes before its job ends, and its tile goes to others.
        worker_extra_args=["--lifetime", f"{args.minutes - 10}m", "--lifetime-stagger", "5m", "--memory-limit", "0"],
        job_script_prologue=[
            *(f"export {name}={value}" for name, value in (THREADS | ALLOCATION).items()),
            *args.before,
        ],
        scheduler_options={"dashboard_address": ":0"},
    )


def options() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=["slurm", "pbs"], required=True, help="batch system")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="jobs to keep (default: 1)")
    parser.add_argument("--cores", type=int, default=16, metavar="N", help="processes of a job (default: 16)")
    parser.add_argument("--memory", type=float, default=3.0, metavar="GB", help="of each process (default: 3)")
    parser.add_argument("--minutes", type=int, default=720, metavar="N", help="time of a job (default: 720)")
    parser.add_argument("--queue", metavar="NAME", help="queue or partition")
    parser.add_argument("--account", metavar="NAME", help="account or project")
    parser.add_argument(
        "--before",
        action="append",
        default=[],
        metavar="LINE",
        help="line to add to the job's script, before its worker",
    )
    parser.add_argument("--address", type=Path, metavar="FILE", help="file to write the scheduler's address to")
    parser.add_argument("--show", action="store_true", help="print the job's script, and submit nothing")
    return parser


def main() -> int:
    """Keep the jobs until the command is interrupted."""
    args = options().parse_args()
    if args.minutes < 20:
        print("--minutes: expected at least 20, as a worker stops up to 15 before its job ends", file=sys.stderr)
        return 2
    args.walltime = f"{args.minutes // 60:02d}:{args.minutes % 60:02d}:00"
    with cluster(args) as jobs:
        if args.show:
            print(jobs.job_script())
            return 0
        jobs.adapt(minimum_jobs=args.jobs, maximum_jobs=args.jobs)  # a job that ended is replaced
        print(f"{jobs.scheduler_address}, its page: {jobs.dashboard_link}", flush=True)
        if args.address is not None:
            args.address.write_text(jobs.scheduler_address)
        try:
            while True:
                time.sleep(60)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
