"""One source or two? `python -m benchmarks.one_or_two --out DIR [--number 150]`.

Every case is a galaxy drawn from the prior, and a place beside it where there is a second one in every other case. The
scene is sampled with one source and with two; the evidences (`inference.evidence`) give the probability of two. If it
is what it says, of all cases that are given probability p a share p has two: the reliability diagram, with the Brier
score, the log score and the share of right answers by the second galaxy's signal-to-noise. A run that was stopped goes
on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks import worlds
from benchmarks.calibration import claim, truths
from tfdeblend import em
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import BatchShape, by_count
from tfdeblend.inference.evidence import STEPS, EvidenceSampler, estimate
from tfdeblend.inference.sample_batches import rows_at_once
from tfdeblend.simulation.surveys import SURVEYS

EDGES = (0, 0.1, 0.3, 0.7, 0.9, 1)
SNRS = (0, 5, 10, 20, np.inf)
AT_ONCE = 24


def cases(options: argparse.Namespace) -> tuple[list[worlds.TrueBlend], np.ndarray]:
    """Two galaxies each; and whether the second is in the image."""
    denoiser = registry.find(options.prior).load()
    stamps = truths(options, 2 * options.number)
    survey = worlds.of_bands(SURVEYS["hsc"], denoiser.bands)
    made = worlds.blends(stamps, denoiser.model_sigma, options.number, (2, 2), options.snr, survey, options.seed)
    two = np.random.default_rng(options.seed + 1).random(len(made)) < 0.5
    for index in np.flatnonzero(~two):
        observation = made[index].scene.observation
        without = replace(observation, images=observation.images - made[index].sources[1])
        made[index] = replace(made[index], scene=Scene((without,), made[index].scene.sources))
    return made, two


class Evidences:
    """Estimates log p(y) of scenes and its error; each shape is compiled once."""

    def __init__(self, prior: str, steps: int, samples: int, seed: int):
        self.denoiser, self.steps, self.samples, self.seed = registry.find(prior).load(), steps, samples, seed
        self.initial_fits = em.InitialFits()
        self.samplers: dict[BatchShape, EvidenceSampler] = {}

    def __call__(self, scenes: Sequence[Scene]) -> list[tuple[float, float]]:
        found: dict[int, tuple[float, float]] = {}
        for shape, members in em.plan(scenes, self.denoiser.stamp_shape[1], self.denoiser.model_sigma):
            shard = self.initial_fits([scenes[index] for index in members], shape)
            for own, rows in by_count(shape, shard.scenes, range(len(members))).items():
                some = [shard.scenes[row] for row in rows]
                batch = Batch.build(some, shape._replace(blends=len(some)))
                fit = InitialFit(*(tf.constant(part[rows]) for part in shard.initial))
                own = own._replace(blends=rows_at_once(own, len(some), self.samples))
                if own not in self.samplers:
                    self.samplers[own] = EvidenceSampler(own, self.denoiser, self.steps)
                values = estimate(self.samplers[own], some, batch, fit, self.samples, self.seed)
                found |= {members[row]: value for row, value in zip(rows, values, strict=True)}
        return [found[index] for index in range(len(scenes))]


def probability(one: float, two: float, snr: tuple[float, float], error: float = 0.0) -> float:
    """Of two: both as likely beforehand; the second's flux evenly in its logarithm over the range it is drawn from.

    error: of the evidences' difference, over which the probability is averaged.
    """
    density = -np.log(snr[1] / snr[0] / worlds.FAINTEST_SHARE**2)
    points, weights = np.polynomial.hermite_e.hermegauss(41)
    odds = np.clip(two - one + density + error * points, -500, 500)
    return float(np.sum(weights / (1 + np.exp(-odds))) / weights.sum())


def report(found: list[dict], snr: tuple[float, float]) -> dict:
    p = np.array([probability(c["one"], c["two"], snr, np.hypot(c["one_error"], c["two_error"])) for c in found])
    truth, second = np.array([case["truth"] for case in found]), np.array([case["snr"] for case in found])
    place = np.clip(np.digitize(p, EDGES) - 1, 0, len(EDGES) - 2)
    bins = [
        {"from": EDGES[b], "to": EDGES[b + 1], "cases": int((place == b).sum()), "said": float(p[place == b].mean()),
         "two": float(truth[place == b].mean())}
        for b in range(len(EDGES) - 1) if (place == b).any()
    ]  # fmt: skip
    right = [
        {"snr": f"{a:g} to {b:g}", "cases": int(rows.sum()), "right": float((p[rows] > 0.5).mean())}
        for a, b in itertools.pairwise(SNRS)
        if (rows := truth & (second >= a) & (second < b)).any()
    ]
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return {
        "cases": len(found),
        "brier": float(np.mean((p - truth) ** 2)),
        "log_score": float(-np.mean(np.where(truth, np.log(clipped), np.log(1 - clipped)))),
        "right": float(((p > 0.5) == truth).mean()),
        "ones_right": float((p[~truth] < 0.5).mean()),
        "bins": bins,
        "twos_right": right,
        "errors": {name: float(np.median([case[f"{name}_error"] for case in found])) for name in ("one", "two")},
    }


def draw(document: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "0.7")
    for row in document["bins"]:
        error = np.sqrt(max(row["two"] * (1 - row["two"]), 0.25 / row["cases"]) / row["cases"])
        axes.errorbar(row["said"], row["two"], error, fmt="o", color="C0")
        axes.annotate(str(row["cases"]), (row["said"], row["two"]), xytext=(6, -10), textcoords="offset points")
    axes.set_xlabel("probability of two")
    axes.set_ylabel("share that has two")
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default="hsc-grizy-64")
    parser.add_argument("--truth", default="prior", help="'prior', or a folder of held-out stamps")
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--snr", type=float, nargs=2, default=(5, 100), metavar=("A", "B"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    made, two = cases(options)
    claim(options.out, options)
    path = options.out / "cases.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    evidences = Evidences(options.prior, options.steps, options.samples, options.seed)
    for first in range(len(found), len(made), AT_ONCE):
        some = [blend.scene for blend in made[first : first + AT_ONCE]]
        several = evidences([*(Scene((scene.observation,), scene.sources[:1]) for scene in some), *some])
        for index in range(len(some)):
            one, both = (several[index + k * len(some)] for k in range(2))
            found.append(
                {
                    "truth": bool(two[first + index]),
                    "snr": float(made[first + index].snr[1]),
                    **{"one": one[0], "one_error": one[1]},
                    **{"two": both[0], "two_error": both[1]},
                }
            )
        unfinished = path.with_suffix(".part")
        unfinished.write_text("".join(json.dumps(case) + "\n" for case in found))
        unfinished.replace(path)
        print(f"{len(found)} of {len(made)} cases", file=sys.stderr, flush=True)
    known = [case for case in found if np.isfinite(case["one"]) and np.isfinite(case["two"])]
    document = report(known, tuple(options.snr)) | {"unknown": len(found) - len(known)}
    (options.out / "one_or_two.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, options.out / "reliability.png")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
