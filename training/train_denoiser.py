"""Trains a denoiser: first its mean, by the weighted squared error, then its covariance head, by the likelihood.

    python -m training.train_denoiser --config training/configs/hsc-grizy-64.json --out runs/hsc-grizy-64

A killed run goes on where it stopped when the same command is given again, and ends at the same weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # before TensorFlow is loaded: convolutions are 1.3 times faster

import keras
import numpy as np
import tensorflow as tf

from tfdeblend.datasets import Augmentation, moments, noised_batches, read_stamps
from tfdeblend.denoisers import HeadTraining, NeuralDenoiser, flux_scale, negative_log_likelihood
from tfdeblend.networks import UNet
from tfdeblend.schedules import LogNormalNoise
from training.config import DenoiserConfig, FitConfig
from training.monitors import LossByLevel, Pictures, StartData

Weight = Callable[[tf.Tensor], tf.Tensor]


def build(config: DenoiserConfig, stamps: np.ndarray) -> NeuralDenoiser:
    """The untrained denoiser, with the moments of the stamps (at unit scale)."""
    keras.utils.set_random_seed(config.seed)
    mean, variance = moments(stamps, Augmentation(config.flips, config.scale_jitter))
    bands = len(config.bands)
    network = UNet(config.side, bands, bands, **vars(config.network), gated=True)
    head = UNet(config.side, 2 * bands, (1 + config.rank) * bands, **vars(config.head), output_scale=0.1)
    denoiser = NeuralDenoiser(
        network,
        head,
        bands=config.bands,
        pixel_scale=config.pixel_scale,
        model_sigma=config.model_sigma,
        sigma_data=float(np.sqrt(variance.mean())),
        scale_jitter=config.scale_jitter,
        name=config.name.replace("-", "_"),
    )
    denoiser.set_moments(mean, variance)
    return denoiser


def adam(fit: FitConfig) -> keras.optimizers.Optimizer:
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, fit.steps - fit.warmup, warmup_target=fit.learning_rate, warmup_steps=fit.warmup
    )
    return keras.optimizers.Adam(
        rate, beta_2=0.99, global_clipnorm=fit.clip, use_ema=True, ema_momentum=fit.ema, ema_overwrite_frequency=None
    )


def fit(model: keras.Model, loss, settings: FitConfig, data, held_out: LossByLevel, out: Path, more: list) -> None:
    """Plain `compile` and `fit`. data: first step -> dataset."""
    first_step = tf.Variable(0, dtype=tf.int64)
    model.compile(optimizer=adam(settings), loss=loss, jit_compile=False)
    callbacks = [
        # Backup before swap: what is resumed are the raw weights; checkpoint after swap: what is kept are averages.
        keras.callbacks.BackupAndRestore(str(out / "backup"), double_checkpoint=True, delete_checkpoint=False),
        StartData(first_step, settings.epoch),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint(str(out / "model.keras")),
        keras.callbacks.TerminateOnNaN(),
        held_out,
        keras.callbacks.CSVLogger(str(out / "log.csv"), append=True),
        keras.callbacks.TensorBoard(str(out / "tensorboard"), histogram_freq=4),
        *more,
    ]
    epochs = settings.steps // settings.epoch
    model.fit(data(first_step), epochs=epochs, steps_per_epoch=settings.epoch, callbacks=callbacks, verbose=2)


def train(config: DenoiserConfig, out: Path) -> NeuralDenoiser:
    """Trains, and writes everything below `out`: config.json, the weights `<name>.keras`, logs and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    config.write(out / "config.json")
    stamps, held_out = (read_stamps(Path(config.stamps), kind) for kind in (config.train, config.held_out))
    held_out = held_out[: config.judged]
    for images in (stamps, held_out):
        images /= flux_scale(images)[:, None, None, None]
    denoiser = build(config, stamps)

    def weight(sigma: tf.Tensor) -> tf.Tensor:
        """EDM's 1 / sigma^2 + 1 / sigma_data^2 for a variance that differs from pixel to pixel."""
        return 1 / tf.reduce_mean(denoiser.prior_variance(sigma), [1, 2, 3])

    def error(model: keras.Model, x_t: tf.Tensor, sigma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return weight(sigma) * tf.reduce_mean((model((x_t, sigma)) - x) ** 2, [1, 2, 3])

    def unlikelihood(model: keras.Model, x_t: tf.Tensor, sigma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return negative_log_likelihood(x, model((x_t, sigma)))

    def data(settings: FitConfig, weight: Weight, seed: int):
        noise = LogNormalNoise(config.noise_median, config.noise_spread)
        augmentation = Augmentation(config.flips, config.scale_jitter)
        return lambda first: noised_batches(stamps, noise, weight, settings.batch, seed, augmentation, first)

    pictures = Pictures(denoiser, held_out, out, every=4, seed=config.seed)
    judge = LossByLevel(held_out, error, config.seed)
    mean_data = data(config.mean_fit, weight, config.seed)
    denoiser.head.trainable = False
    fit(denoiser, keras.losses.MeanSquaredError(), config.mean_fit, mean_data, judge, out / "mean", [pictures])

    denoiser.head.trainable = True
    head = HeadTraining(denoiser)
    judge = LossByLevel(held_out, unlikelihood, config.seed)
    head_data = data(config.head_fit, tf.ones_like, config.seed + 1)
    fit(head, negative_log_likelihood, config.head_fit, head_data, judge, out / "head", [])
    denoiser.without_optimizer().save(out / f"{config.name}.keras")
    return denoiser


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="JSON, see training/config.py")
    parser.add_argument("--out", type=Path, help="where to write; default: runs/<name>")
    options = parser.parse_args(arguments)
    config = DenoiserConfig.read(options.config)
    train(config, options.out or Path("runs") / config.name)


if __name__ == "__main__":
    main()
