"""What a folder of blends costs, and which fits converge; real ones have no truth.

    python -m benchmarks.blends DIR --prior bulge-disk

CPU-seconds a source of a first call, compilation included, and of a second one; where the second one's are spent, by
the batch's shape.
"""

from __future__ import annotations

import argparse
import resource
from collections import defaultdict
from pathlib import Path

import numpy as np

import tfdeblend
from tfdeblend.catalog import measure
from tfdeblend.forward.shapes import scene_shape, stamp_side


def cpu() -> float:
    """CPU-seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blends", description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--prior", default="bulge-disk")
    parser.add_argument("--number", type=int, help="of scenes, the first by name (default: all)")
    parser.add_argument("--no-stars", dest="stars", action="store_false", help="try no source as a point")
    args = parser.parse_args(argv)
    scenes = [tfdeblend.Scene.read(file) for file in sorted(args.folder.glob("*.npz"))[: args.number]]
    deblender = tfdeblend.Deblender(args.prior, assume_ab=True, stars=args.stars)
    sources, spent = sum(len(scene.sources) for scene in scenes), []
    for _ in range(2):
        began = cpu()
        results = deblender.deblend(scenes)
        spent.append(cpu() - began)
    print(f"{len(scenes)} blends, {sources} sources: {spent[0] / sources:.3f} CPU-seconds a source, start-up included")
    print(f"{spent[1] / sources:.3f} CPU-seconds a source, warm")
    flags = np.concatenate([np.asarray(result.catalog["flags"]) for result in results])
    chi2 = np.array([result.chi2 for result in results])
    print(f"{np.mean((flags & measure.NOT_CONVERGED) == 0):.3f} of the sources converged")
    print(f"chi2 a pixel: median {np.median(chi2):.4f}, 90% {np.quantile(chi2, 0.9):.3f}, mean {chi2.mean():.3f}")
    groups = defaultdict(list)
    for scene, result in zip(scenes, results, strict=True):
        kept = scene.kept
        shape = scene_shape(kept, stamp_side(kept))
        steps, seconds = result.header["steps"], result.header["walltime"]
        groups[shape.sources, shape.side].append((len(kept.sources), steps, seconds))
    print("\nsources up to  side  blends  sources  steps (median)  seconds a source")
    for (count, side), rows in sorted(groups.items()):
        number, steps, seconds = np.array(rows, float).T
        print(f"{count:13d} {side:5d} {len(rows):7d} {number.sum():8.0f} {np.median(steps):15.0f}", end="")
        print(f" {seconds.sum() / number.sum():17.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
