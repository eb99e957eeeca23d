"""Seconds a blend of the Blending ToolKit's CatSim generator, as JSON; runs inside the toolkit's own environment."""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

from draw_catsim import BATCH, generator


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--catalog", type=Path, required=True, help="FITS table of CatSim galaxies")
    parser.add_argument("--n", type=int, default=64, help="number of blends, a multiple of 8 (default 64)")
    args = parser.parse_args()
    draw = generator(args.catalog, "HSC", 5, seed=1)
    rounds = -(-args.n // BATCH)
    for _ in range(rounds):
        next(draw)  # fills caches
    wall, cpu, sources = time.perf_counter(), time.process_time(), 0
    for _ in range(rounds):
        sources += sum(len(table) for table in next(draw).catalog_list)
    blends = rounds * BATCH
    seconds = {"wall": (time.perf_counter() - wall) / blends, "cpu": (time.process_time() - cpu) / blends}
    print(json.dumps({**seconds, "sources": sources / blends, "version": version("blending-toolkit")}))


if __name__ == "__main__":
    main()
