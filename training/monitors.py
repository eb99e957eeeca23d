"""Keras callbacks for training: where it starts, averaged weights, the loss at each noise level, and pictures."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tfdeblend.diffusion.denoisers import NeuralDenoiser
from tfdeblend.plots.stretch import Stretch
from tfdeblend.training.generation import Generator

LEVELS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


class Restore(keras.callbacks.BackupAndRestore):
    """Takes up a training where a killed one was, and leaves it to another process to save this one."""

    def _save_model(self) -> None:
        pass


class StartData(keras.callbacks.Callback):
    """Starts data and epochs at the optimiser's step: after `BackupAndRestore`, where a killed run was."""

    def __init__(self, first_step: tf.Variable, epoch: int):
        super().__init__()
        self.first_step, self.epoch = first_step, epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        done = int(tf.convert_to_tensor(self.model.optimizer.iterations))
        self.first_step.assign(done)
        self.model._initial_epoch = done // self.epoch


class ExactAverages(keras.callbacks.SwapEMAWeights):
    """Puts averages in the place of weights at an epoch's end, and takes them back to the last bit.

    Keras swaps variables of TensorFlow by sums and differences, which round: a run that was killed in between would end
    at other weights than one that was not. Here they are copied.
    """

    _tf_swap_variables = keras.callbacks.SwapEMAWeights._backend_swap_variables


class LossByLevel(keras.callbacks.Callback):
    """Adds the held-out loss at each of LEVELS to an epoch's logs, as `held_out_<sigma>` and, of all, `held_out`.

    Place it after `ExactAverages` (so that averaged weights are evaluated) and before the callbacks that write logs.

    Args:
      stamps: [N, C, P, P] at unit scale. loss: (model, x_t, sigma, x) -> [N].
    """

    def __init__(self, stamps: np.ndarray, loss, seed: int, batch: int = 64):
        super().__init__()
        self.stamps, self.loss, self.seed = stamps, loss, seed
        self.batch = min(batch, len(stamps))
        self.evaluate = tf.function(self._evaluate, autograph=False)

    def _evaluate(self, x: tf.Tensor, sigma: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        x_t = x + sigma * tf.random.stateless_normal(tf.shape(x), seed, alg="philox")
        return tf.reduce_mean(self.loss(self.model, x_t, tf.fill([tf.shape(x)[0]], sigma), x))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is None:
            return
        starts = range(0, len(self.stamps) - self.batch + 1, self.batch)
        values = []
        for level in LEVELS:
            parts = [
                self.evaluate(self.stamps[i : i + self.batch], tf.constant(level), tf.constant([self.seed, i]))
                for i in starts
            ]
            values.append(float(np.mean(parts)))
            logs[f"held_out_{level:g}"] = values[-1]
        logs["held_out"] = float(np.mean(values))


class Pictures(keras.callbacks.Callback):
    """Draws denoised held-out stamps and generated ones every `every` epochs, as PNG files and in TensorBoard."""

    def __init__(self, denoiser: NeuralDenoiser, stamps: np.ndarray, folder: Path, every: int, seed: int):
        super().__init__()
        self.denoiser, self.stamps, self.folder, self.every, self.seed = denoiser, stamps[:8], folder, every, seed
        self.generator = Generator(denoiser, denoiser.stamp_shape)
        self.denoise = tf.function(denoiser.denoise, autograph=False)
        self.writer = tf.summary.create_file_writer(str(folder / "tensorboard" / "pictures"))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        rows = [self.stamps]
        normal = np.random.default_rng(self.seed).standard_normal(self.stamps.shape).astype("float32")
        for level in (0.3, 0.1, 0.03, 0.01):
            x_t = self.stamps + level * normal
            rows += [x_t, self.denoise(x_t, np.full(len(x_t), level, "float32")).numpy()]
        generated = self.generator(32, (self.seed, 0)).numpy()
        names = {"denoised": np.concatenate(rows), "generated": generated}
        with self.writer.as_default():
            for name, images in names.items():
                path = self.folder / f"{name}.png"
                draw(images, 8, path)
                picture = tf.image.decode_png(path.read_bytes(), 3)[None]
                tf.summary.image(name, picture, step=epoch + 1)


def draw(images: np.ndarray, columns: int, path: Path) -> None:
    """Draws stamps (N, C, P, P) on a grid of `columns`, each on a stretch of its own, with the colours of all bands."""
    rows, side = len(images) // columns, images.shape[-1]
    shown = np.stack([Stretch.of_light(image)(image) for image in images[: rows * columns]])
    grid = shown.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(grid.reshape(rows * side, columns * side, 3), origin="lower", aspect="auto")
    axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
