"""How far does expectation-maximisation get? Blends with truth, and priors evaluated on others of the same galaxies.

    python -m benchmarks.em_world make --stamps galaxies.npy --bands g r i --number 1500 --out world
    tfdeblend em --config em.json --out run               # "blends": ["world"]
    python -m benchmarks.em_world evaluate --stamps held-out.npy --bands g r i --number 300 --out found \\
        --priors run/iteration_000/prior.npz run/iteration_001/prior.keras ... isolated.keras

`make` writes scenes as NPZ; stamps (N, C, P, P) are of galaxies alone, at the resolution of the model PSF. `evaluate`
samples held-out blends under every prior, the first of which is the start and the last one was trained on the truth,
and says how far between the two the others are: `evaluation.json`, `evaluation.txt`. A run that was stopped goes on.
With `--scenes` in place of stamps it evaluates on scenes with truth, as `tfdeblend simulate` writes them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import metrics, worlds
from benchmarks.catsim import TrueScene
from tfdeblend import em
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import NeuralDenoiser
from tfdeblend.io import find_inputs
from tfdeblend.io.atomic import written_whole
from tfdeblend.simulation.surveys import SURVEYS

BRIGHT = 0.1  # of a source's peak: pixels whose z-scores count
BOOTSTRAPS = 1000
FIGURES = ("l2", "flux", "pixel_z", "peak", "chi2")


class KnownBlend(NamedTuple):
    """A scene, and the truth (K, C, H, W) of its sources as observed."""

    scene: Scene
    sources: np.ndarray


def read(folder: Path, number: int) -> list[KnownBlend]:
    """The first `number` scenes of a folder, without those that hold no source. Raises: ValueError without truth."""
    found: list[KnownBlend] = []
    for path in find_inputs([str(folder)]):
        if len(found) == number:
            break
        scene = Scene.read(path)
        if scene.sources:
            found.append(KnownBlend(scene, TrueScene.read(path).truth))
    return found


def make(options: argparse.Namespace) -> list[worlds.TrueBlend]:
    stamps = worlds.unit(np.load(options.stamps).astype(float))
    survey = SURVEYS[options.survey]
    survey = worlds.of_bands(survey, options.bands or survey.bands)
    count, snr = tuple(options.sources), tuple(options.snr)
    return worlds.blends(stamps, options.model_sigma, options.number, count, snr, survey, options.seed, options.image)


def write(blends: list[worlds.TrueBlend], out: Path) -> None:
    """Scenes as the NPZ files of docs/formats.md, with `truth`."""
    for blend in blends:
        blend.scene.write(out / f"{blend.scene.name}.npz", truth=blend.sources)


def compare(blends: Sequence[KnownBlend], found: list[em.Shard], expectation: em.Expectation, samples: int, seed: int):
    """(blends, 6): sums over a blend's sources of relative L2 of the mean, flux error and peak height over the truth's;
    of its bright pixels' squared z-scores and their number; and chi-square a pixel of the mean."""
    truth = {blend.scene.name: blend for blend in blends}
    rows = {}
    for shard in found:
        sums: dict[int, list] = {}
        scales = shard.batch().band_scale
        for which, drawn in expectation.draw(shard, samples, seed):
            for row, blend in enumerate(which):
                scene = shard.scenes[blend]
                _, height, width = scene.observation.shape
                unit = scales[blend][:, None, None]
                sources = drawn.sources[0][row, : len(scene.sources), :, :height, :width] * unit
                sums.setdefault(blend, []).append(sources)
        for blend, every in sums.items():
            scene = shard.scenes[blend]
            rows[scene.name] = _compare_one(truth[scene.name], np.stack(every))
    return np.array([rows[blend.scene.name] for blend in blends])


def _compare_one(blend: KnownBlend, sources: np.ndarray) -> list[float]:
    true, mean = blend.sources.astype(float), sources.mean(0, dtype=float)
    deviation = np.maximum(sources.std(0, ddof=1), 1e-30)
    z = metrics.z_scores(true, mean, deviation, len(sources))
    bright = true > BRIGHT * true.max((1, 2, 3), keepdims=True)
    error = np.sqrt(((mean - true) ** 2).sum((1, 2, 3)) / (true**2).sum((1, 2, 3)))
    flux = np.abs(mean.sum((1, 2, 3)) / true.sum((1, 2, 3)) - 1)
    peak = mean.max((1, 2, 3)) / true.max((1, 2, 3))
    observation = blend.scene.observation
    chi2 = (observation.weights * (observation.images - mean.sum(0)) ** 2.0).sum() / observation.valid.sum()
    return [*(float(x.mean()) for x in (error, flux, peak)), float((z[bright] ** 2).sum()), float(bright.sum()), chi2]


def figures(rows: np.ndarray) -> dict[str, float]:
    """Summarises blends' rows, as `compare` gives them."""
    error, flux, peak, square, number, chi2 = rows.T
    spread = float(np.sqrt(square.sum() / number.sum()))
    values = float(error.mean()), float(flux.mean()), spread, float(peak.mean()), float(chi2.mean())
    return dict(zip(FIGURES, values, strict=True))


def progress(rows: dict[str, np.ndarray], seed: int = 0) -> dict[str, dict]:
    """Of each prior: the figures, and what share of the way from the first to the last it is, with bootstrap intervals
    over blends (95%); of pixel z-scores, of their spread's distance from the last prior's in logarithm."""
    names = list(rows)
    rng = np.random.default_rng(seed)
    number = len(rows[names[0]])
    picks = [np.arange(number), *rng.integers(0, number, (BOOTSTRAPS, number))]

    def way(pick: np.ndarray, name: str) -> tuple[float, float]:
        first, here, last = (figures(rows[key][pick]) for key in (names[0], name, names[-1]))
        error = (first["l2"] - here["l2"]) / (first["l2"] - last["l2"])
        z = [abs(np.log(one["pixel_z"] / last["pixel_z"])) for one in (first, here)]
        return error, 1 - z[1] / z[0]

    found: dict[str, dict] = {}
    for name in names:
        ways = np.array([way(pick, name) for pick in picks])
        low, high = np.quantile(ways[1:], (0.025, 0.975), axis=0)
        found[name] = {
            **figures(rows[name]),
            "way_l2": [float(ways[0, 0]), float(low[0]), float(high[0])],
            "way_pixel_z": [float(ways[0, 1]), float(low[1]), float(high[1])],
        }
    return found


def evaluate(options: argparse.Namespace) -> None:
    if options.scenes:
        blends = read(options.scenes, options.number)
    else:
        blends = [KnownBlend(one.scene, one.sources) for one in make(options)]
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    scenes, fit = [blend.scene for blend in blends], em.InitialFits()
    first = registry.find(str(options.priors[0])).load()
    by_name = {scene.name: scene for scene in scenes}
    found = []
    for number, (shape, members) in enumerate(em.plan(scenes, first.stamp_shape[1], first.model_sigma)):
        path = out / f"initial_{number:05d}.npz"
        if not path.exists():
            fit([scenes[index] for index in members], shape).write(path)
        found.append(em.Shard.read(path, by_name))
    rows, expectations = {}, {}  # priors of other networks are compiled apart
    for number, prior in enumerate(options.priors):
        path = out / f"prior_{number:02d}.npy"
        if not path.exists():
            loaded = registry.find(str(prior)).load()
            shapes = [tuple(w.shape) for w in loaded.weights] if isinstance(loaded, NeuralDenoiser) else loaded.rank
            if (kind := f"{shapes} {loaded.scale_jitter}") not in expectations:
                own = loaded.without_optimizer() if isinstance(loaded, NeuralDenoiser) else loaded
                expectations[kind] = em.Expectation(own, em.SAMPLING)
            expectations[kind].use(loaded)
            values = compare(blends, found, expectations[kind], options.samples, options.seed)
            with written_whole(path) as temporary:
                np.save(temporary, values)
        rows[f"{number} {prior}"] = np.load(path)
        print(prior, {name: round(value, 4) for name, value in figures(rows[f"{number} {prior}"]).items()}, flush=True)
    document = progress(rows)
    (out / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = ["relative L2, flux error, pixel z spread, peak, chi2; share of the way by L2 and by pixel z (95%): prior"]
    for name, one in document.items():
        ways = [f"{a:5.2f} ({b:5.2f}, {c:5.2f})" for a, b, c in (one["way_l2"], one["way_pixel_z"])]
        lines.append("  ".join([*(f"{one[key]:6.3f}" for key in FIGURES), *ways, name]))
    (out / "evaluation.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "evaluate"))
    parser.add_argument("--out", type=Path, required=True)
    galaxies = parser.add_mutually_exclusive_group(required=True)
    galaxies.add_argument("--stamps", type=Path, help=".npy of (N, C, P, P)")
    galaxies.add_argument("--scenes", type=Path, help="folder of NPZ scenes with truth, to evaluate on")
    parser.add_argument("--survey", default="hsc")
    parser.add_argument("--bands", nargs="+", help="of the blends of stamps (default: all of the survey)")
    parser.add_argument("--model-sigma", type=float, default=1.0)
    parser.add_argument("--number", type=int, default=300, help="of blends")
    parser.add_argument("--image", type=int, default=48, help="pixels a side")
    parser.add_argument("--sources", type=int, nargs=2, default=(2, 2), metavar=("A", "B"))
    parser.add_argument("--snr", type=float, nargs=2, default=(20, 400), metavar=("A", "B"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--priors", type=Path, nargs="+", default=[], help="from the start's to the truth's")
    options = parser.parse_args(arguments)
    if options.what == "make":
        if not options.stamps:
            parser.error("make: expected --stamps, received --scenes")
        write(make(options), options.out)
    else:
        evaluate(options)


if __name__ == "__main__":
    main()
