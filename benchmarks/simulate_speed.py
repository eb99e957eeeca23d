"""Seconds a blend: our simulator against the Blending ToolKit's, one process each, one after the other.

    python -m benchmarks.simulate_speed --catalog catsim_sample.fits --environments DIR [--json F]

Both draw HSC blends of 2 to 5 galaxies brighter than i = 25.3 in five bands, every source alone and the noisy sum: ours
on 71 pixels a side, the toolkit on its 11 arcsec. Both draw as many blends untimed first: GalSim makes a table for each
Sersic index once a process, about a second for ours. Reading and writing files is left out. Processor seconds are the
fairer figure on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import DATA, HERE
from benchmarks.environments import create
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.scenes import SceneConfig, Simulator
from tfdeblend.simulation.surveys import SURVEYS
from tfdeblend.version import __version__


def ours(number: int) -> dict[str, Any]:
    """Seconds a blend of `number` blends."""
    simulator = Simulator(SceneConfig(SURVEYS["hsc"], Population(faint=25.3), sources=(2, 5), seed=1))
    for index in range(number):
        simulator.scene(number + index)
    wall, cpu = time.perf_counter(), time.process_time()
    sources = sum(len(simulator.scene(index).catalog) for index in range(number))
    seconds = {"wall": (time.perf_counter() - wall) / number, "cpu": (time.process_time() - cpu) / number}
    return {**seconds, "sources": sources / number, "version": __version__}


def toolkit(number: int, catalog: Path, environments: Path) -> dict[str, Any]:
    """The same of the Blending ToolKit. Raises RuntimeError where it cannot be installed."""
    command = [create("btk", environments), HERE / "time_catsim.py", "--catalog", catalog, "--n", number]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--catalog", type=Path, default=DATA / "catsim_sample.fits", help="FITS table of galaxies")
    parser.add_argument("--environments", type=Path, default=Path("bench/environments"), help="of the peers")
    parser.add_argument("--n", type=int, default=64, help="number of blends (default 64)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    figures = {"tfdeblend": ours(args.n), "toolkit": toolkit(args.n, args.catalog, args.environments)}
    ratio = {kind: figures["toolkit"][kind] / figures["tfdeblend"][kind] for kind in ("wall", "cpu")}
    for name, row in figures.items():
        print(
            f"{name:10} {row['version']:8} {row['wall']:.3f} s a blend, {row['cpu']:.3f} s of processor time, ", end=""
        )
        print(f"{row['sources']:.1f} sources")
    print(f"ratio      {ratio['wall']:.1f} by the clock, {ratio['cpu']:.1f} by processor time")
    if args.json:
        args.json.write_text(json.dumps({**figures, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
