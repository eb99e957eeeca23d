"""Scores and pictures of each iteration's prior, on blends and galaxies that it was not fitted to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.denoisers import PriorDenoiser, flux_scale
from tfdeblend.em import Score, Shard
from tfdeblend.io import npz
from tfdeblend.io.atomic import written_whole
from tfdeblend.plots import panels
from tfdeblend.plots.stretch import Stretch, residual_colours, significance
from tfdeblend.training.datasets import read_stamps
from tfdeblend.training.em_config import EMConfig
from tfdeblend.training.generation import Generator
from tfdeblend.training.monitors import draw
from tfdeblend.training.two_sample import pqmass, properties, two_sample

PRIOR_DRAWS = 512  # of a prior's own galaxies, to be compared with the truth
AT_ONCE = 64
SHOWN = 4  # blends in the figure of the iterations
KEPT = 8  # of a prior's own galaxies, for figures
BOOTSTRAPS = 1000
SCORES = Score._fields[:-1]  # all but the model


class Evaluator:
    """Evaluates the priors of all iterations of a run.

    Args:
      shards: of thinned validation blends.
    """

    def __init__(self, config: EMConfig, shards: Sequence[Shard], out: Path):
        self.config, self.shards, self.out = config, shards, out
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

    def blends(self, scored: Iterable[tuple[str, Score]]) -> tuple[dict, dict[str, np.ndarray]]:
        """Returns the means of blends' scores, and each one's, by name; and the mean models of those shown."""
        found, models = {}, {}
        for name, one in scored:
            found[name] = one[:-1]
            if name in self.shown:
                models[name] = one.model
        means = np.mean(list(found.values()), 0).tolist()
        return {**dict(zip(SCORES, means, strict=True)), "blends": found}, models

    def population(self, denoiser: PriorDenoiser) -> tuple[dict, np.ndarray]:
        """Draws galaxies from the prior; returns their distances from the truth, where that is known, and stamps."""
        if self.generator is None or self.generator.denoiser is not denoiser:
            self.generator = Generator(denoiser, denoiser.stamp_shape)
        number = PRIOR_DRAWS if self.truth is not None else AT_ONCE
        drawn = [self.generator(AT_ONCE, (self.config.seed, first)).numpy() for first in range(0, number, AT_ONCE)]
        stamps = np.concatenate(drawn)
        stamps /= flux_scale(stamps)[:, None, None, None]
        if self.truth is None:
            return {}, stamps
        both = [properties(x, self.config.bands, self.config.model_sigma) for x in (self.truth, stamps)]
        distances = {"pqmass": pqmass(self.truth, stamps, self.config.seed)}
        distances |= {name: two_sample(both[0][name], both[1][name])["distance"] for name in both[0]}
        return distances, stamps

    def __call__(
        self,
        iteration: int,
        scored: Iterable[tuple[str, Score]],
        denoiser: PriorDenoiser,
        folder: Path,
        facts: Mapping[str, float],
    ) -> dict:
        """Evaluates a prior by the scores of the validation blends and by galaxies drawn from it.

        Writes scores.json, models.npz, drawn.npz and drawn.png into its folder, and to TensorBoard.
        """
        scores, models = self.blends(scored)
        distances, drawn = self.population(denoiser)
        scores |= {"iteration": iteration, **facts, "distances": distances}
        npz.write(folder / "models.npz", models)
        npz.write(folder / "drawn.npz", {"stamps": drawn[:KEPT].astype(np.float32)})
        draw(drawn[:64], 16, folder / "drawn.png")
        with self.writer.as_default(iteration):
            for name in (*SCORES, *facts):
                tf.summary.scalar(name, scores[name])
            for name, value in distances.items():
                tf.summary.scalar(f"distance/{name}", value)
            tf.summary.image("drawn from the prior", tf.image.decode_png((folder / "drawn.png").read_bytes(), 3)[None])
            tf.summary.histogram("log_predictive of blends", [one[0] for one in scores["blends"].values()])
        with written_whole(folder / "scores.json") as temporary:
            temporary.write_text(json.dumps(scores, indent=1) + "\n")
        return scores

    def figure(self, iterations: Sequence[int]) -> None:
        """Draws `iterations.png`: observation, models and residuals of the same blends under every prior."""
        scenes = {scene.name: scene for shard in self.shards for scene in shard.scenes if scene.name in self.shown}
        models = [dict(np.load(self.out / f"iteration_{k:03d}" / "models.npz")) for k in iterations]
        figure = Figure(figsize=(1.5 * (len(iterations) + 1), 3.1 * len(scenes) + 0.3), layout="constrained")
        axes = figure.subplots(2 * len(scenes), len(iterations) + 1, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for row, (name, scene) in enumerate(scenes.items()):
            fitted = ((m[name], f"k = {k}") for m, k in zip(models, iterations, strict=True))
            columns = [(None, "observation"), *fitted]
            for column, (model, title) in enumerate(columns):
                for part, panel in enumerate(_panels(scene, model)):
                    axes[2 * row + part, column].imshow(panel, origin="lower", interpolation="nearest")
                axes[2 * row, column].set_title(title if row == 0 else "", size=9)
        panels.write(figure, self.out / "iterations.png", dpi=100)
        with self.writer.as_default(max(iterations)):
            tf.summary.image("iterations", tf.image.decode_png((self.out / "iterations.png").read_bytes(), 3)[None])


def _panels(scene: Scene, model: np.ndarray | None) -> list[np.ndarray]:
    """Returns the data alone, or a model and its residual in sigma."""
    observation = scene.observation
    stretch = Stretch.fit(observation)
    if model is None:
        return [stretch(observation.images)]
    sigma = significance(observation.images - model, observation.weights)
    return [stretch(model), residual_colours(sigma)]


def rise(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], seed: int = 0) -> dict:
    """Returns the rise of `Score.log_predictive` on the same blends, with its 95% bootstrap interval."""
    gain = np.array([after[name][0] - before[name][0] for name in before])
    rng = np.random.default_rng(seed)
    means = gain[rng.integers(0, len(gain), (BOOTSTRAPS, len(gain)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(gain.mean()), "low": float(low), "high": float(high), "risen": float(np.mean(gain > 0))}
