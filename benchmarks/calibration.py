"""Are the error bars right? `python -m benchmarks.calibration --out DIR [--number 300 --samples 64 ...]`.

Blends with truth (`benchmarks.worlds`) are deblended as a user's would be, and every truth is compared with its
samples: coverage, ranks, z-scores, TARP, chi-square of the samples. Truth is drawn from the prior itself, which tests
the sampler, or is held-out stamps (`--truth FOLDER`), which tests the prior. Writes `calibration.json` and a figure.

Several `--steps`, `--conditioning` or `--step` are compared on the same blends, each in a folder of its own, in
`methods.txt`. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import metrics, worlds
from benchmarks.worlds import TrueBlend
from tfdeblend.catalog import measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.deblender import Deblender
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.conditioning import CONDITIONINGS
from tfdeblend.diffusion.steps import STEPS
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.io import npz
from tfdeblend.simulation.surveys import SURVEYS
from tfdeblend.training.datasets import read_stamps
from tfdeblend.training.generation import Generator

BRIGHT = 0.1  # of a source's peak: pixels whose z-scores count
BINS = {
    "snr": (0, 10, 30, 100, np.inf),
    "blendedness": (-np.inf, 0.05, 0.2, 0.5, np.inf),
    "K": (1, 2, 3, 4, 5, np.inf),
}
BATCH = 32
LEAST_SAMPLES = 4
AT_ONCE = 60  # blends: what a stopped run loses, at most


@dataclass
class Findings:
    """A row a source, in the order of the blends."""

    truth: list[np.ndarray] = field(default_factory=list)  # (C,) fluxes
    samples: list[np.ndarray] = field(default_factory=list)  # (S, C)
    snr: list[float] = field(default_factory=list)
    blendedness: list[float] = field(default_factory=list)
    count: list[int] = field(default_factory=list)  # K
    pixels: list[np.ndarray] = field(default_factory=list)  # z-scores
    beyond: list[bool] = field(default_factory=list)  # galaxies taken to be larger than the prior's stamps
    chi2: list[float] = field(default_factory=list)  # a blend: the samples' mean

    def add(self, one: dict[str, np.ndarray]) -> None:
        """A blend, as `compare` gives it."""
        count = len(one["truth"])
        self.truth.extend(one["truth"])
        self.samples.extend(one["samples"])
        self.snr.extend(one["snr"].tolist())
        self.blendedness.extend(one["blendedness"].tolist())
        self.count.extend([count] * count)
        self.beyond.extend(one["beyond"].tolist())
        self.pixels.extend(np.split(one["pixels"], np.cumsum(one["lengths"])[:-1]))
        self.chi2.append(float(one["chi2"]))


def compare(blend: TrueBlend, result: Deblended) -> dict[str, np.ndarray]:
    """Truth and samples of K sources."""
    assert result.samples is not None and result.sources_std is not None
    flux = result.samples.sum((3, 4), dtype=float)
    peak = blend.sources.max((1, 2, 3), keepdims=True)
    z = metrics.z_scores(blend.sources, result.sources, np.maximum(result.sources_std, 1e-30), len(flux))
    pixels = [z[k][blend.sources[k] > BRIGHT * peak[k]] for k in range(len(peak))]
    return {
        "truth": blend.stamps.sum((2, 3), dtype=float),
        "samples": flux.transpose(1, 0, 2),
        "snr": np.array(result.catalog["snr"]),
        "blendedness": np.array(result.catalog["blendedness"]),
        "beyond": (np.array(result.catalog["flags"]) & measure.BEYOND_PRIOR) > 0,
        "pixels": np.concatenate(pixels).astype(np.float32),
        "lengths": np.array([len(p) for p in pixels]),
        "chi2": np.array(result.header["ppchi2"]),
    }


def table(found: Findings, seed: int = 0) -> dict:
    """All figures; of flux, that of all bands together. Bins, ranks and TARP are of galaxies that the prior knows, as
    their flags say."""
    truth, samples = np.array(found.truth), np.array(found.samples)
    whole, drawn = truth.sum(1), samples.sum(2)
    rank = metrics.ranks(whole, drawn, seed)
    z = metrics.z_scores(whole, drawn.mean(1), drawn.std(1, ddof=1), drawn.shape[1])
    error = np.abs(drawn.mean(1) - whole) / np.abs(whole)

    logs = np.log(np.maximum(np.concatenate([samples, truth[:, None]], 1), 1e-3 * np.abs(truth[:, None])))
    whole_logs = np.log(np.maximum(drawn, 1e-3 * np.abs(whole[:, None])))
    score = metrics.crps(np.log(np.abs(whole)), whole_logs)

    def figures(rows: np.ndarray) -> dict:
        share = {f"coverage_{level:g}": float(metrics.covered(rank[rows], level).mean()) for level in (0.68, 0.95)}
        spread = np.sqrt(0.68 * 0.32 / rows.sum())
        pixels = np.concatenate([p for p, row in zip(found.pixels, rows, strict=True) if row])
        return {
            "sources": int(rows.sum()),
            **share,
            "coverage_error": float(spread),
            "z_mean": float(z[rows].mean()),
            "z_spread": float(z[rows].std()),
            "flux_error": float(np.median(error[rows])),
            "pixel_z_spread": float(pixels.std()),
            "score": float(score[rows].mean()),
        }

    beyond = np.array(found.beyond)
    document: dict = {"all": figures(np.ones(len(rank), bool)), "bins": {"known to the prior": figures(~beyond)}}
    if beyond.any():
        document["bins"]["beyond the prior"] = figures(beyond)
    for name, values in (("snr", found.snr), ("blendedness", found.blendedness), ("K", found.count)):
        edges = BINS[name]
        for low, high in itertools.pairwise(edges):
            rows = (np.array(values) >= low) & (np.array(values) < high) & ~beyond
            if rows.sum() > 1:
                document["bins"][f"{name} {low:g} to {high:g}"] = figures(rows)
    for name, uniform in (("ranks", rank), ("tarp", metrics.tarp(logs[:, -1], logs[:, :-1], seed))):
        uniform = uniform[~beyond]
        distance, limit = metrics.uniform_distance(uniform, seed)
        document[name] = {"distance": distance, "limit_95": limit, "values": np.sort(uniform).round(4).tolist()}
    chi2 = np.array(found.chi2)
    document["chi2"] = {"mean": float(chi2.mean()), "median": float(np.median(chi2)), "blends": len(chi2)}
    return document


def draw(document: dict, path: Path) -> None:
    """Coverage by bin; cumulative ranks and TARP less the diagonal, with the band of 95%."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = {"all": document["all"], **document["bins"]}
    place = np.arange(len(rows))
    for level, colour in ((0.68, "C0"), (0.95, "C1")):
        share = [row[f"coverage_{level:g}"] for row in rows.values()]
        error = [np.sqrt(level * (1 - level) / row["sources"]) for row in rows.values()]
        left.errorbar(place, share, error, fmt="o", color=colour, label=f"{level:.0%}")
        left.axhline(level, color=colour, lw=0.8)
    left.set_xticks(
        place, [f"{name} ({row['sources']})" for name, row in rows.items()], rotation=60, ha="right", size=7
    )
    left.set_ylabel("coverage of flux")
    left.legend()
    for name in ("ranks", "tarp"):
        values = np.array(document[name]["values"])
        right.plot(values, (np.arange(len(values)) + 0.5) / len(values) - values, label=name)
    right.axhspan(-document["ranks"]["limit_95"], document["ranks"]["limit_95"], color="0.9")
    right.set_xlabel("credibility")
    right.set_ylabel("truths below - credibility")
    right.legend()
    figure.savefig(path, dpi=120)


def show(document: dict) -> str:
    """The table as text."""
    lines = [
        f"{'':24}{'sources':>8}{'68%':>7}{'95%':>7}{'z mean':>8}{'z spread':>9}{'pixel z':>8}{'|error|':>8}{'score':>7}"
    ]
    for name, row in {"all": document["all"], **document["bins"]}.items():
        lines.append(
            f"{name:24}{row['sources']:8d}{row['coverage_0.68']:7.2f}{row['coverage_0.95']:7.2f}{row['z_mean']:8.2f}"
            f"{row['z_spread']:9.2f}{row['pixel_z_spread']:8.2f}{row['flux_error']:8.3f}{row['score']:7.3f}"
        )
    for name in ("ranks", "tarp"):
        lines.append(
            f"{name}: distance {document[name]['distance']:.3f}, 95% of calibrated ones below "
            f"{document[name]['limit_95']:.3f}"
        )
    lines.append(f"chi2/pixel of samples: mean {document['chi2']['mean']:.3f}, median {document['chi2']['median']:.3f}")
    lines.append(
        f"{document['seconds']:.4f} seconds a sample and source, compilation included; "
        f"{document['failed']} blends failed"
    )
    return "\n".join(lines)


def truths(options: argparse.Namespace, number: int) -> np.ndarray:
    """(N, C, P, P) at unit scale."""
    if options.truth != "prior":
        return worlds.unit(read_stamps(Path(options.truth), "*"))
    denoiser = registry.find(options.prior).load()
    generator = Generator(denoiser, denoiser.stamp_shape)
    return np.concatenate([generator(BATCH, (options.seed, i)).numpy() for i in range(-(-number // BATCH))])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default="hsc-grizy-64")
    parser.add_argument("--truth", default="prior", help="'prior', or a folder of held-out stamps")
    parser.add_argument("--number", type=int, default=300, help="of blends")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sources", type=int, nargs=2, default=(1, 6), metavar=("A", "B"))
    parser.add_argument("--snr", type=float, nargs=2, default=(5, 500), metavar=("A", "B"))
    parser.add_argument("--steps", type=int, nargs="+", default=[SampleOptions.steps])
    parser.add_argument("--conditioning", choices=CONDITIONINGS, nargs="+", default=["head"])
    parser.add_argument("--step", choices=STEPS, nargs="+", default=["moment-matched"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.samples < LEAST_SAMPLES:
        expected = f"expected at least {LEAST_SAMPLES} (z-scores of fewer have no finite spread)"
        parser.error(f"--samples: {expected}, received {options.samples}")
    methods: dict[str, SampleOptions] = {}
    for conditioning, step, steps in itertools.product(options.conditioning, options.step, options.steps):
        name = f"{conditioning}-{step}-{steps}"
        try:
            methods[name] = SampleOptions(steps, conditioning=CONDITIONINGS[conditioning], step=STEPS[step])
        except ValueError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
    if not methods:
        parser.error("--conditioning, --step, --steps: expected a possible combination, received none")
    most = options.number * options.sources[1]
    stamps = truths(options, min(most, 1024))
    denoiser = registry.find(options.prior).load()
    survey = worlds.of_bands(SURVEYS["hsc"], denoiser.bands)
    settings = options.number, options.sources, options.snr, survey, options.seed
    made = worlds.blends(stamps, denoiser.model_sigma, *settings)
    claim(options.out, options)
    lines = []
    for name, sampling in methods.items():
        folder = options.out if len(methods) == 1 else options.out / name
        document = calibrate(made, sampling, folder, options)
        row = document["bins"]["known to the prior"]
        lines.append(
            f"{name:36}{document['seconds']:8.4f}{document['chi2']['mean']:9.3f}{row['flux_error']:8.3f}"
            f"{row['z_spread']:8.2f}{row['coverage_0.68']:7.2f}{row['coverage_0.95']:7.2f}{row['pixel_z_spread']:8.2f}"
            f"{document['failed']:5d}"
        )
    if len(methods) > 1:
        header = f"{'method':36}{'s':>8}{'chi2':>9}{'|error|':>8}{'z':>8}{'68%':>7}{'95%':>7}{'pixel z':>8}{'fail':>5}"
        (options.out / "methods.txt").write_text("\n".join([header, *lines]) + "\n")
        print("\n".join([header, *lines]))


def claim(folder: Path, options: argparse.Namespace) -> None:
    """Makes a folder for these options; one that has cases of others is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "options.json", json.dumps({name: str(v) for name, v in vars(options).items()}, indent=1)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{path}: expected a folder of the same options, received one of others")
    path.write_text(text)


def calibrate(made: list[TrueBlend], sampling: SampleOptions, folder: Path, options: argparse.Namespace) -> dict:
    """Deblends what has not been yet, a file each in `folder`/blends; then all figures, written beside."""
    (folder / "blends").mkdir(parents=True, exist_ok=True)
    paths = [folder / "blends" / f"{index:04d}.npz" for index in range(len(made))]
    left = [index for index, path in enumerate(paths) if not path.exists()]
    deblender = Deblender(
        options.prior, "sample", options.seed, samples=options.samples, keep_samples=True, sampling=sampling
    )
    began, failed = time.perf_counter(), 0
    for first in range(0, len(left), AT_ONCE):
        some = left[first : first + AT_ONCE]
        for place, result in deblender.iterate([made[index].scene for index in some]):
            if isinstance(result, Exception):
                failed += 1
                print(f"{some[place]}: {result}", file=sys.stderr)
                continue
            npz.write(paths[some[place]], compare(made[some[place]], result))
        print(f"{folder.name}: {first + len(some)} of {len(left)} blends", file=sys.stderr, flush=True)
    seconds, found = time.perf_counter() - began, Findings()
    for path in paths:
        if path.exists():
            with np.load(path) as one:
                found.add(dict(one))
    document = table(found, options.seed)
    drawn = sum(len(made[index].snr) for index in left) * options.samples
    document["seconds"] = seconds / drawn if drawn else float("nan")
    document["failed"] = failed
    document["options"] = {name: str(value) for name, value in vars(options).items()}
    (folder / "calibration.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, folder / "calibration.png")
    print(show(document))
    return document


if __name__ == "__main__":
    main()
