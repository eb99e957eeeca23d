"""Score deblenders on scenes with truth: `python -m benchmarks.catsim --scenes DIR [--prior sersic ...] [--json F]`.

Rows of the table are methods: ours with each prior, the bound (every source's true shape known, see
`benchmarks.score.bound`), and peers, read from folders that hold `<scene>.npz` with `sources` (K,C,H,W) in the order
of the scene's `peaks`, `seconds` and `version`. A method that fails on a scene, or returns NaN there, is scored as
having returned empty images: it does not gain by giving up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.score import Scores, binned, bound, chi2_per_pixel, summary
from tfdeblend.version import __version__

COLUMNS = {"flux": "|flux error|", "bias": "flux bias", "colour": "|d(g-r)| mag", "l2": "relative L2"}


@dataclass(frozen=True, eq=False)
class TrueScene:
    """One benchmark scene: images, weights (C,H,W) and truth (K,C,H,W), each source as observed, noiseless."""

    path: Path
    images: np.ndarray
    weights: np.ndarray
    truth: np.ndarray
    bands: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> TrueScene:
        with np.load(path) as file:
            if "truth" not in file:
                raise ValueError(f"{path}: truth: expected an array (K,C,H,W), received none.")
            images, weights, truth = (file[name].astype(np.float64) for name in ("images", "weights", "truth"))
            return cls(path, images, weights, truth, tuple(str(name) for name in file["filters"]))


@dataclass
class Answers:
    """A method's answer to every scene: sources (K,C,H,W), or the reason why there is none; and the time taken."""

    sources: list[np.ndarray | str]
    seconds: float | None = None
    warm_seconds: float | None = None
    version: str = __version__


def bound_answers(scenes: list[TrueScene]) -> Answers:
    """The least-squares fluxes of the true shapes."""
    return Answers([bound(scene.images, scene.weights, scene.truth) for scene in scenes])


def peer_answers(scenes: list[TrueScene], folder: Path) -> Answers:
    """What a peer left in `folder`, one `<scene>.npz` a scene."""
    found: list[np.ndarray | str] = []
    seconds, release = [], "unknown"
    for scene in scenes:
        path = folder / scene.path.name
        if not path.exists():
            found.append(f"{path}: no such file")
            continue
        with np.load(path) as file:
            found.append(file["sources"].astype(np.float64))
            seconds.append(float(file["seconds"]))
            release = str(file["version"])
    return Answers(found, float(np.mean(seconds)) if seconds else None, version=release)


def our_answers(scenes: list[TrueScene], prior: str, warm: bool, **options) -> Answers:
    """What `Deblender(prior)` returns; `warm` runs it twice, so that the second time is free of compilation."""
    from tfdeblend import Deblender, Scene

    deblender = Deblender(prior=prior, **options)
    inputs = [Scene.read(scene.path) for scene in scenes]
    found: list[np.ndarray | str] = ["not returned"] * len(scenes)
    times = []
    for _ in range(2 if warm else 1):
        start = time.perf_counter()
        for index, result in deblender.iterate(inputs):
            found[index] = repr(result) if isinstance(result, Exception) else np.asarray(result.sources, np.float64)
        times.append((time.perf_counter() - start) / len(scenes))
    return Answers(found, times[0], times[1] if warm else None)


def grade(scenes: list[TrueScene], answers: Answers) -> dict:
    """The figures of one method: failures, overall medians with intervals, medians in bins, chi2, seconds a blend."""
    scores = Scores(scenes[0].bands)
    failures, chi2 = {}, []
    for number, (scene, sources) in enumerate(zip(scenes, answers.sources, strict=True)):
        problem = _problem(scene, sources)
        if problem:
            failures[scene.path.name] = problem
        model = np.zeros_like(scene.truth) if problem else np.asarray(sources)
        scores.add(number, scene.truth, model, scene.weights)
        if not problem:
            chi2.append(chi2_per_pixel(scene.images, scene.weights, model.sum(0)))
    return {
        "version": answers.version,
        "failures": failures,
        "chi2": float(np.median(chi2)) if chi2 else None,
        "chi2_max": float(np.max(chi2)) if chi2 else None,
        "seconds": answers.seconds,
        "warm_seconds": answers.warm_seconds,
        "all": summary(scores),
        "bins": binned(scores),
    }


def _problem(scene: TrueScene, sources: np.ndarray | str) -> str:
    """Why an answer cannot be scored, or an empty string."""
    if isinstance(sources, str):
        return sources
    if sources.shape != scene.truth.shape:
        return f"expected sources of shape {scene.truth.shape}, received {sources.shape}"
    return "" if np.isfinite(sources).all() else "not finite"


def table(methods: dict[str, dict]) -> Iterator[str]:
    """Lines of text: one row a method, then the flux error and relative L2 in bins."""
    width = max(map(len, methods)) + 2
    heads = [f"{name:>24}" for name in COLUMNS.values()]
    yield "method".ljust(width) + "failures" + "".join(heads) + f"{'chi2/pixel':>12}{'s/blend':>9}{'warm':>9}"
    for name, result in methods.items():
        cells = "".join(_cell(result["all"][key]) for key in COLUMNS)
        times = "".join(f"{_number(result[key]):>9}" for key in ("seconds", "warm_seconds"))
        yield f"{name:<{width}}{len(result['failures']):>8}{cells}{_number(result['chi2']):>12}{times}"
    for by in next(iter(methods.values()))["bins"]:
        yield ""
        yield from _bin_table(methods, by, width)


def _bin_table(methods: dict[str, dict], by: str, width: int) -> Iterator[str]:
    rows = next(iter(methods.values()))["bins"][by]
    edges = ["{:g}-{:g}".format(*row["bin"]) for row in rows]
    yield f"{by}, median |flux error| / relative L2"
    yield " " * width + "".join(f"{edge:>17}" for edge in edges)
    yield "sources".ljust(width) + "".join(f"{row['sources']:>17}" for row in rows)
    for name, result in methods.items():
        pairs = [f"{_number(row['flux']['median'])} / {_number(row['l2']['median'])}" for row in result["bins"][by]]
        yield name.ljust(width) + "".join(f"{pair:>17}" for pair in pairs)


def _cell(interval: dict) -> str:
    text = "{} [{}, {}]".format(*(_number(interval[key]) for key in ("median", "low", "high")))
    return f"{text:>24}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def versions() -> dict[str, str]:
    """Versions of what produced the figures, and the machine."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    own = {"machine": machine, "python": platform.python_version(), "tfdeblend": __version__}
    return own | {package: version(package) for package in ("tensorflow", "keras", "numpy")}


def strict(value):
    """`value` with infinities and NaN replaced by None, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.catsim", description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, required=True, help="folder of NPZ scenes with `truth`")
    parser.add_argument("--prior", nargs="*", default=["sersic"], help="priors of ours to run (default sersic)")
    parser.add_argument("--method", default="map", help="inference of ours (default map)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=DIR", help="peers' answers")
    parser.add_argument("--limit", type=int, help="only the first so many scenes")
    parser.add_argument("--warm", action="store_true", help="run ours twice and report the second time too")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(argv)
    if bad := [peer for peer in args.peer if "=" not in peer]:
        parser.error(f"--peer: expected NAME=DIR, received {bad[0]}")
    scenes = [TrueScene.read(path) for path in sorted(args.scenes.glob("*.npz"))[: args.limit]]
    if not scenes:
        parser.error(f"--scenes: expected NPZ files, received none in {args.scenes}")

    methods = {"bound": grade(scenes, bound_answers(scenes))}
    for prior in args.prior:
        answers = our_answers(scenes, prior, args.warm, method=args.method, seed=args.seed)
        methods[f"tfdeblend {prior}"] = grade(scenes, answers)
    for name, folder in (peer.split("=", 1) for peer in args.peer):
        methods[name] = grade(scenes, peer_answers(scenes, Path(folder)))
    sources = sum(len(scene.truth) for scene in scenes)
    print(f"{len(scenes)} blends, {sources} sources; medians over those with signal-to-noise above 5, [16%, 84%]")
    print("\n".join(table(methods)))
    for name, result in methods.items():
        for scene_name, problem in result["failures"].items():
            print(f"{name}: {scene_name}: {problem}", file=sys.stderr)
    if args.json:
        report = {"versions": versions(), "blends": len(scenes), "sources": sources, "methods": methods}
        args.json.write_text(json.dumps(strict(report), indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
