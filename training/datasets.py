"""tf.data pipelines of stamps for training, in which a step's batch is a pure function of the seed and the step.

A training that was killed thus continues with the data that it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion.schedules import LogNormalNoise
from tfdeblend.forward.operators import Shift

FLOOR = 0.03  # least deviation of a pixel, over the root of the mean variance


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a stamp.

    flips: the eight flips and rotations about pixel P // 2, each as likely. shift: largest shift in pixels along each
    axis, for stamps that are all centred alike. scale_jitter: spread of the log of a factor. band_jitter: spread of
    the logs of further factors, one for each band and independent of each other, by which colours become a hint only.
    """

    flips: bool = True
    shift: float = 0.0
    scale_jitter: float = 0.2
    band_jitter: float = 0.0


def read_stamps(folder: Path, pattern: str = "*") -> np.ndarray:
    """Reads stamps (N, C, P, P) float32 from the files of a folder that fit a pattern, in the order of names.

    Files are .npy arrays, or what `tfdeblend simulate --stamps` writes: .npz (`stamps`) or TFRecord files (`stamp`).

    Raises: FileNotFoundError where no file fits, ValueError where stamps differ in shape.
    """
    paths = sorted(path for path in folder.glob(pattern) if path.suffix in READERS)
    if not paths:
        raise FileNotFoundError(f"expected stamps {pattern} ({', '.join(READERS)}) in {folder}, found none")
    parts = [READERS[path.suffix](path) for path in paths]
    paths = [path for path, part in zip(paths, parts, strict=True) if len(part)]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise FileNotFoundError(f"expected stamps in the files {pattern} of {folder}, found none")
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"expected stamps of shape {parts[0].shape[1:]}, received {part.shape[1:]} in {path}")
    stamps = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), np.float32)
    np.concatenate(parts, out=stamps, casting="same_kind")
    return stamps


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["stamps"]


def read_records(path: Path) -> np.ndarray:
    """Reads the stamps (N, C, P, P) of one TFRecord file; (0,) where there are none."""

    def parse(record: tf.Tensor) -> tf.Tensor:
        features = tf.io.parse_single_example(record, {"stamp": tf.io.FixedLenFeature([], tf.string)})
        return tf.io.parse_tensor(features["stamp"], tf.float32)

    return np.array(list(tf.data.TFRecordDataset(str(path)).map(parse).as_numpy_iterator()), np.float32)


READERS = {".npy": _read_npy, ".npz": _read_npz, ".tfrecord": read_records}


def batch_indices(step: tf.Tensor, batch: int, number: int, seed: int) -> tf.Tensor:
    """Returns which of `number` examples a step sees, [batch] int64. Every epoch is a permutation of its own."""
    position = step * batch + tf.range(batch, dtype=tf.int64)
    epoch = position // number
    seeds = tf.stack([tf.fill([batch], tf.constant(seed, tf.int64)), epoch, tf.zeros_like(epoch)], 1)
    # The raw operation, since the public one pads a batch of seeds along the wrong axis.
    last = tf.constant(number - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(index=position % number, seed=seeds, max_index=last, rounds=4)


def flip(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Reverses an even-sided image axis about pixel P // 2, where sources are centred; pixel 0 stays in its place."""
    return tf.roll(tf.reverse(x, [axis]), 1, axis)


def augment(x: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Flips, transposes, shifts and scales each stamp of [B, C, P, P] at random; pure in `seed` [2]."""
    batch = x.shape[0]
    if augmentation.flips:
        bits = tf.random.stateless_uniform([3, batch, 1, 1, 1], seed, 0, 2, tf.int32, "philox") > 0
        x = tf.where(bits[0], flip(x, 2), x)
        x = tf.where(bits[1], flip(x, 3), x)
        x = tf.where(bits[2], tf.transpose(x, [0, 1, 3, 2]), x)
    if augmentation.shift:
        bounds = -augmentation.shift, augmentation.shift
        offset = tf.random.stateless_uniform([batch, 1, 2], fold_in(seed, 2), *bounds, alg="philox")
        x = Shift(offset, x.shape[-1])(x)
    if augmentation.scale_jitter:
        normal = tf.random.stateless_normal([batch, 1, 1, 1], fold_in(seed, 1), alg="philox")
        x *= tf.exp(augmentation.scale_jitter * normal)
    if augmentation.band_jitter:
        normal = tf.random.stateless_normal([batch, x.shape[1], 1, 1], fold_in(seed, 3), alg="philox")
        x *= tf.exp(augmentation.band_jitter * normal)
    return x


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """Makes a new seed [2] of a seed and a number."""
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def noised_batches(
    stamps: np.ndarray | tf.Tensor,
    noise: LogNormalNoise,
    weight: Callable[[tf.Tensor], tf.Tensor],
    batch: int,
    seed: int,
    augmentation: Augmentation = Augmentation(),
    first_step: int | tf.Variable = 0,
) -> tf.data.Dataset:
    """Makes an endless dataset of ((x_t, sigma), x, weight) from step `first_step` on, as `fit` takes them.

    Args:
      stamps: (N, C, P, P) at unit scale. weight: of the squared error at noise levels, [B] -> [B].
      first_step: int64 if a variable, which is read when a batch is made, not when the pipeline is.
    Returns:
      x_t and x [B, C, P, P], sigma [B], weight [B, 1, 1, 1].
    """
    data = tf.convert_to_tensor(stamps, tf.float32)
    number = data.shape[0]
    root = tf.constant([seed, 0], tf.int64)

    def make(count: tf.Tensor):
        step = first_step + count
        key = fold_in(root, step)
        x = tf.gather(data, batch_indices(step, batch, number, seed))
        x = augment(x, fold_in(key, 1), augmentation)
        sigma = noise.sample(fold_in(key, 2), batch)
        normal = tf.random.stateless_normal(x.shape, fold_in(key, 3), alg="philox")
        x_t = x + sigma[:, None, None, None] * normal
        return (x_t, sigma), x, weight(sigma)[:, None, None, None]

    return tf.data.Dataset.range(np.iinfo(np.int64).max).map(make, num_parallel_calls=1, deterministic=True).prefetch(4)


def moments(stamps: np.ndarray, augmentation: Augmentation, floor: float = FLOOR) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and variance (C, P, P) of augmented stamps in closed form.

    Flips are averaged over; sub-pixel shifts are neglected, as they hardly change either.
    The variance is at least `floor`^2 times the mean variance, so that dividing by it is harmless where no light falls.
    """
    chunks = np.array_split(stamps, max(1, len(stamps) // 500))
    mean = sum(chunk.sum(0, dtype=np.float64) for chunk in chunks) / len(stamps)
    square = sum(np.square(chunk, dtype=np.float64).sum(0) for chunk in chunks) / len(stamps)
    if augmentation.flips:
        mean, square = _symmetrize(mean), _symmetrize(square)
    jitter = augmentation.scale_jitter**2 + augmentation.band_jitter**2  # a variance: of every pixel's log
    mean, square = mean * np.exp(jitter / 2), square * np.exp(2 * jitter)
    variance = square - mean**2
    return mean, np.maximum(variance, floor**2 * variance.mean())


def norm_jitter(stamps: np.ndarray, augmentation: Augmentation) -> float:
    """Returns the spread of the log of augmented stamps' norms: how wrong a flux scale may be.

    ln |x| changes by the sum of w_c ln f_c, with f_c the factor of a band and w_c its share of the squared norm.
    """
    power = np.square(stamps).sum((2, 3), dtype=float)
    share = power / power.sum(1, keepdims=True)
    bands = augmentation.band_jitter * np.sqrt(np.square(share).sum(1).mean())
    return float(np.hypot(augmentation.scale_jitter, bands))


def _symmetrize(image: np.ndarray) -> np.ndarray:
    """Averages an image (C, P, P) over the eight flips and rotations about pixel P // 2."""
    for axis in (1, 2):
        image = (image + np.roll(np.flip(image, axis), 1, axis)) / 2
    return (image + image.swapaxes(1, 2)) / 2
