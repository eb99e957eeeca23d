"""Trains a denoiser: first its mean, by the weighted squared error, then its covariance head, by the likelihood.

    tfdeblend train --config training/configs/hsc-grizy-64.json --out runs/hsc-grizy-64

A killed run continues when the same command is given again, and ends at the same weights, to the last bit on the same
machine. Other settings are refused in its folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import NeuralDenoiser, ResidualDenoiser, flux_scale
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.schedules import LogNormalNoise
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole
from tfdeblend.networks import UNet
from tfdeblend.training import distribution
from tfdeblend.training.config import DenoiserConfig, FitConfig
from tfdeblend.training.datasets import FLOOR, Augmentation, augment, moments, noised_batches, norm_jitter, read_stamps
from tfdeblend.training.losses import HeadTraining, head_loss, negative_log_likelihood
from tfdeblend.training.monitors import ExactAverages, LossByLevel, Pictures, Restore, StartData

AUGMENTED = 8000  # stamps that a base is fitted to, at most

Weight = Callable[[tf.Tensor], tf.Tensor]  # sigma [B] -> [B]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # x, prediction -> [B]
Data = Callable[[tf.Variable, FitConfig], tf.data.Dataset]


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Makes networks built in this context compute their products by one of Keras' dtype policies."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build(config: DenoiserConfig, stamps: np.ndarray) -> NeuralDenoiser:
    """Builds the untrained denoiser, with the moments of the stamps (at unit scale), or reads the one to start from."""
    keras.utils.set_random_seed(config.seed)
    augmentation = Augmentation(config.flips, config.shift, config.scale_jitter, config.band_jitter)
    scale_jitter = norm_jitter(stamps, augmentation)
    if config.start is not None:
        start = registry.find(config.start).network()
        with precision(config.precision):
            denoiser = start.without_optimizer()
        denoiser.scale_jitter = scale_jitter
        return denoiser
    if config.base_rank:
        base = gaussian(stamps, augmentation, config.base_rank, config.seed)
        mean, variance = (keras.ops.convert_to_numpy(part) for part in (base.mean, base.variance))
    else:
        base, (mean, variance) = None, moments(stamps, augmentation)
    bands = len(config.bands)
    with precision(config.precision):
        network = UNet(config.side, bands, bands, **vars(config.network), gated=True)
        head = UNet(config.side, 2 * bands, (1 + config.rank) * bands, **vars(config.head), output_scale=0.1)
    settings: dict[str, Any] = {
        "bands": config.bands,
        "pixel_scale": config.pixel_scale,
        "model_sigma": config.model_sigma,
        "sigma_data": float(np.sqrt(variance.mean())),
        "scale_jitter": scale_jitter,
        "name": config.name.replace("-", "_"),
    }
    if base is None:
        denoiser = NeuralDenoiser(network, head, **settings)
        denoiser.set_moments(mean, variance)
        return denoiser
    residual = ResidualDenoiser(network, head, base_rank=config.base_rank, **settings)
    residual.set_gaussian(mean, variance, keras.ops.convert_to_numpy(base.prior.factor))
    return residual


def gaussian(stamps: np.ndarray, augmentation: Augmentation, rank: int, seed: int) -> GaussianDenoiser:
    """Fits a Gaussian to augmented stamps, its variances at least the floor of `moments`."""
    rng = np.random.default_rng(seed)
    chosen = np.resize(rng.permutation(len(stamps)), min(8 * len(stamps), AUGMENTED))
    every = augment(tf.constant(stamps[chosen]), tf.constant([seed, 0], tf.int64), augmentation).numpy()
    return GaussianDenoiser.fit(every, rank, seed=seed, floor=FLOOR**2)


def adam(fit: FitConfig, replicas: int) -> keras.optimizers.Optimizer:
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, fit.steps - fit.warmup, warmup_target=fit.learning_rate, warmup_steps=fit.warmup
    )
    kind = keras.optimizers.Adam if replicas == 1 else distribution.Adam
    return kind(
        rate,
        beta_2=fit.memory,
        global_clipnorm=fit.clip,
        use_ema=True,
        ema_momentum=fit.ema,
        ema_overwrite_frequency=None,
    )


def fit(model: keras.Model, loss: Loss, settings: FitConfig, data: Data, out: Path, watch: list) -> None:
    """Compiles and fits a model; does nothing where settings have no steps.

    Args:
      data: (first step, settings) -> dataset. watch: callbacks that add to the logs, or look on, at an epoch's end.
    """
    if settings.steps == 0:
        return
    first_step = tf.Variable(0, dtype=tf.int64)
    strategy = model.distribute_strategy
    with strategy.scope():
        model.compile(optimizer=adam(settings, strategy.num_replicas_in_sync), loss=loss, jit_compile=False)
    distribution.mend(model)
    writes = distribution.is_chief(strategy)
    backup = keras.callbacks.BackupAndRestore if writes else Restore
    callbacks = [
        # Backup before swap: what is resumed are the raw weights; checkpoint after swap: what is kept are averages.
        backup(str(out / "backup"), double_checkpoint=True, delete_checkpoint=False),
        StartData(first_step, settings.epoch),
        ExactAverages(swap_on_epoch=True),
        keras.callbacks.TerminateOnNaN(),
    ]
    if writes:
        callbacks += [
            keras.callbacks.ModelCheckpoint(str(out / "model.keras")),
            *watch,
            keras.callbacks.CSVLogger(str(out / "log.csv"), append=True),
            keras.callbacks.TensorBoard(str(out / "tensorboard"), histogram_freq=4),
        ]
    epochs, batches = settings.steps // settings.epoch, distribution.distributed(strategy, data(first_step, settings))
    how = {"epochs": epochs, "steps_per_epoch": settings.epoch, "shuffle": False, "verbose": 2 if writes else 0}
    model.fit(batches, callbacks=callbacks, **how)


def fit_mean(denoiser: NeuralDenoiser, config: DenoiserConfig, stamps: tf.Tensor, held_out: np.ndarray, out: Path):
    """Fits the mean by the squared error times EDM's 1 / sigma^2 + 1 / sigma_data^2, with a variance for each pixel."""

    def weight(sigma: tf.Tensor) -> tf.Tensor:
        return 1 / tf.reduce_mean(denoiser.prior_variance(sigma), [1, 2, 3])

    def error(model: keras.Model, x_t: tf.Tensor, sigma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return weight(sigma) * tf.reduce_mean((model((x_t, sigma)) - x) ** 2, [1, 2, 3])

    def data(first_step: tf.Variable, settings: FitConfig) -> tf.data.Dataset:
        return _batches(config, stamps, weight, settings.batch, config.seed, first_step)

    watch = [LossByLevel(held_out, error, config.seed), Pictures(denoiser, held_out, out, every=4, seed=config.seed)]
    if denoiser.head is not None:
        denoiser.head.trainable = False
    fit(denoiser, keras.losses.MeanSquaredError(), config.mean_fit, data, out / "mean", watch)


def fit_head(denoiser: NeuralDenoiser, config: DenoiserConfig, stamps: tf.Tensor, held_out: np.ndarray, out: Path):
    """Fits the covariance head by the likelihood of pixels and apertures, with the mean frozen."""

    def unlikelihood(model: keras.Model, x_t: tf.Tensor, sigma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return negative_log_likelihood(x, model((x_t, sigma)))

    def data(first_step: tf.Variable, settings: FitConfig) -> tf.data.Dataset:
        return _batches(config, stamps, tf.ones_like, settings.batch, config.seed + 1, first_step)

    watch = [LossByLevel(held_out, unlikelihood, config.seed)]
    with denoiser.distribute_strategy.scope():
        model = HeadTraining(denoiser)
    fit(model, head_loss, config.head_fit, data, out / "head", watch)


def _batches(
    config: DenoiserConfig, stamps: tf.Tensor, weight: Weight, batch: int, seed: int, first_step: tf.Variable
) -> tf.data.Dataset:
    noise = LogNormalNoise(config.noise_median, config.noise_spread)
    augmentation = Augmentation(config.flips, config.shift, config.scale_jitter, config.band_jitter)
    return noised_batches(stamps, noise, weight, batch, seed, augmentation, first_step)


def read(config: DenoiserConfig, pattern: str) -> np.ndarray:
    """Reads stamps at unit scale. Raises: ValueError where they are not what the configuration says."""
    stamps = read_stamps(Path(config.stamps), pattern)
    expected = (len(config.bands), config.side, config.side)
    if stamps.shape[1:] != expected:
        raise ValueError(f"expected stamps of shape {expected}, received {stamps.shape[1:]} in {config.stamps}")
    stamps /= flux_scale(stamps)[:, None, None, None]
    return stamps


def begin(config: DenoiserConfig, path: Path, writes: bool = True) -> None:
    """Writes the settings of a run, or checks that they are those it was begun with, but for where it is trained.

    Raises: DataError.
    """
    if not path.exists():
        if writes:
            config.write(path)
        return
    before = dataclasses.replace(DenoiserConfig.read(path), strategy=config.strategy)
    if changed := [field for field, value in vars(config).items() if value != getattr(before, field)]:
        expected = f"expected the settings that this run was begun with, received another {', '.join(changed)}"
        raise DataError(path, None, expected, "give another --out")


def train(config: DenoiserConfig, out: Path) -> NeuralDenoiser:
    """Trains and writes everything below `out`: config.json, the weights `<name>.keras`, logs and pictures.

    Where several processes train together, each returns the denoiser, and the chief alone writes.

    Raises: DataError where `out` holds a run of other settings.
    """
    strategy = distribution.strategy(config.strategy)
    writes = distribution.is_chief(strategy)
    out.mkdir(parents=True, exist_ok=True)
    begin(config, out / "config.json", writes)
    images = read(config, config.train)
    held_out = read(config, config.held_out)
    number = config.evaluation_stamps
    held_out = held_out[:: max(1, len(held_out) // number)][:number]  # some of every file
    with strategy.scope():
        denoiser = build(config, images)
    stamps = tf.constant(images)
    del images  # gigabytes
    fit_mean(denoiser, config, stamps, held_out, out)
    fit_head(denoiser, config, stamps, held_out, out)
    done = denoiser.without_optimizer()
    if writes:
        with written_whole(out / f"{config.name}.keras") as temporary:
            done.save(temporary)
    distribution.of_chief(strategy, 0)  # none goes before the prior is there
    return done
