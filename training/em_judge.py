"""How good the prior of a lap is, told by blends and galaxies that it was not fitted to; the laps' pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfdeblend.app.plots import Stretch, residual_colours, significance
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.datasets import read_stamps
from tfdeblend.diffusion.denoisers import PriorDenoiser, flux_scale
from tfdeblend.diffusion.generation import Generator
from tfdeblend.em import Expectation, Score, Shard, score
from tfdeblend.io.shards import write_whole
from training.em_config import EMConfig
from training.monitors import draw
from training.two_sample import pqmass, properties, two_sample

PRIOR_DRAWS = 512  # of a prior's own galaxies, to be compared with the truth
AT_ONCE = 64
SHOWN = 4  # blends in the figure of the laps
BOOTSTRAPS = 1000
SCORES = Score._fields[:-1]  # all but the model


class Judge:
    """Of all laps of a run.

    Args:
      shards: of thinned validation blends; halves: their other images, by name.
    """

    def __init__(self, config: EMConfig, shards: Sequence[Shard], halves: Mapping[str, np.ndarray], out: Path):
        self.config, self.shards, self.halves, self.out = config, shards, halves, out
        self.writer = tf.summary.create_file_writer(str(out / "tensorboard"))
        self.truth = None
        if config.truth is not None:
            stamps = read_stamps(Path(config.truth), config.truth_pattern)
            stamps = stamps[:: max(1, len(stamps) // PRIOR_DRAWS)][:PRIOR_DRAWS]
            self.truth = stamps / flux_scale(stamps)[:, None, None, None]
        scenes = [scene for shard in shards for scene in shard.scenes]
        blended = [scene for scene in scenes if 1 < len(scene.sources) <= 6]
        names = sorted(scene.name for scene in blended or scenes)
        self.shown = names[:: max(1, len(names) // SHOWN)][:SHOWN]
        self.generator: Generator | None = None

    def blends(self, expectation: Expectation, shards: Sequence[Shard]) -> tuple[dict, dict[str, np.ndarray]]:
        """Scores of thinned blends: means, and each blend's; and mean models of those that are shown."""
        found, models = {}, {}
        for shard in shards:
            for scene, one in score(expectation, shard, self.halves, self.config.judged, self.config.seed):
                found[scene.name] = one[:-1]
                if scene.name in self.shown:
                    models[scene.name] = one.model
        means = np.mean(list(found.values()), 0).tolist()
        return {**dict(zip(SCORES, means, strict=True)), "blends": found}, models

    def population(self, denoiser: PriorDenoiser) -> tuple[dict, np.ndarray]:
        """The prior's own galaxies, and how far they are from the truth, where that is known."""
        if self.generator is None or self.generator.denoiser is not denoiser:
            self.generator = Generator(denoiser, denoiser.stamp_shape)
        number = PRIOR_DRAWS if self.truth is not None else AT_ONCE
        drawn = [self.generator(AT_ONCE, (self.config.seed, first)).numpy() for first in range(0, number, AT_ONCE)]
        stamps = np.concatenate(drawn)
        stamps /= flux_scale(stamps)[:, None, None, None]
        if self.truth is None:
            return {}, stamps
        both = [properties(x, self.config.bands, self.config.model_sigma) for x in (self.truth, stamps)]
        told = {"pqmass": pqmass(self.truth, stamps, self.config.seed)}
        return told | {name: two_sample(both[0][name], both[1][name])["distance"] for name in both[0]}, stamps

    def __call__(self, lap: int, expectation: Expectation, folder: Path, facts: Mapping[str, float]) -> dict:
        """Judges a lap's prior; writes scores.json, models.npz and drawn.png into its folder, and to TensorBoard."""
        told, models = self.blends(expectation, self.shards)
        distances, drawn = self.population(expectation.denoiser)
        told |= {"lap": lap, **facts, "distances": distances}
        np.savez(folder / "models.npz", **models)  # type: ignore[arg-type]
        draw(drawn[:64], 16, folder / "drawn.png")
        with self.writer.as_default(lap):
            for name in (*SCORES, *facts):
                tf.summary.scalar(name, told[name])
            for name, value in distances.items():
                tf.summary.scalar(f"distance/{name}", value)
            tf.summary.image("drawn from the prior", tf.image.decode_png((folder / "drawn.png").read_bytes(), 3)[None])
            tf.summary.histogram("log_predictive of blends", [one[0] for one in told["blends"].values()])
        write_whole(folder / "scores.json", lambda path: path.write_text(json.dumps(told, indent=1) + "\n"))
        return told

    def figure(self, laps: Sequence[int]) -> None:
        """`laps.png`: the same blends under the prior of every lap: observation, models, residuals."""
        scenes = {scene.name: scene for shard in self.shards for scene in shard.scenes if scene.name in self.shown}
        models = [dict(np.load(self.out / f"lap_{lap:03d}" / "models.npz")) for lap in laps]
        figure = Figure(figsize=(1.5 * (len(laps) + 1), 3.1 * len(scenes) + 0.3), layout="constrained")
        axes = figure.subplots(2 * len(scenes), len(laps) + 1, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for row, (name, scene) in enumerate(scenes.items()):
            columns = [(None, "observation"), *((m[name], f"k = {lap}") for m, lap in zip(models, laps, strict=True))]
            for column, (model, title) in enumerate(columns):
                panels = _panels(scene, model)
                for part, panel in enumerate(panels):
                    axes[2 * row + part, column].imshow(panel, origin="lower", interpolation="nearest")
                axes[2 * row, column].set_title(title if row == 0 else "", size=9)
        write_whole(self.out / "laps.png", lambda path: figure.savefig(path, format="png", dpi=100))
        with self.writer.as_default(max(laps)):
            tf.summary.image("laps", tf.image.decode_png((self.out / "laps.png").read_bytes(), 3)[None])


def _panels(scene: Scene, model: np.ndarray | None) -> list[np.ndarray]:
    """The data alone, or a model with its residual in sigma below."""
    observation = scene.observation
    stretch = Stretch.fit(observation.images, observation.weights, observation.zeropoints)
    if model is None:
        return [stretch(observation.images)]
    sigma = significance(observation.images - model, observation.weights)
    return [stretch(model), residual_colours(sigma)]


def rise(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], seed: int = 0) -> dict:
    """Of `Score.log_predictive` from one prior to another, on the same blends, with its bootstrap interval (95%)."""
    gain = np.array([after[name][0] - before[name][0] for name in before])
    rng = np.random.default_rng(seed)
    means = gain[rng.integers(0, len(gain), (BOOTSTRAPS, len(gain)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(gain.mean()), "low": float(low), "high": float(high), "risen": float(np.mean(gain > 0))}
