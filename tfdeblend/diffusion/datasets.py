"""tf.data pipelines of stamps for training. What a step sees is a pure function of the seed and the step's number.

A training that was killed thus goes on with the very data that it would have seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.schedules import LogNormalNoise
from tfdeblend.forward.batch import BlendBatch
from tfdeblend.forward.operators import Shift
from tfdeblend.forward.shapes import BatchShape, scene_shape

FLOOR = 0.03  # of pixels' deviations, over the root of their mean variance: pixels without light have some, too


@dataclass(frozen=True)
class Augmentation:
    """What is done to a stamp at random.

    flips: the eight flips and rotations about pixel P // 2, each as likely. shift: largest shift in pixels along each
    axis, for stamps that are all centred alike. scale_jitter: spread of the log of a factor.
    """

    flips: bool = True
    shift: float = 0.0
    scale_jitter: float = 0.2


def read_stamps(folder: Path, pattern: str = "*") -> np.ndarray:
    """(N, C, P, P) float32: stamps of a folder's files whose names fit, in the order of their names.

    Files are .npy arrays, .npz archives (`stamps`) or TFRecord shards (`stamp`), as `tfdeblend.stamps` writes them.

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
    """The stamps (N, C, P, P) of one TFRecord file; (0,) where there are none."""

    def parse(record: tf.Tensor) -> tf.Tensor:
        features = tf.io.parse_single_example(record, {"stamp": tf.io.FixedLenFeature([], tf.string)})
        return tf.io.parse_tensor(features["stamp"], tf.float32)

    return np.array(list(tf.data.TFRecordDataset(str(path)).map(parse).as_numpy_iterator()), np.float32)


READERS = {".npy": _read_npy, ".npz": _read_npz, ".tfrecord": read_records}


def batch_indices(step: tf.Tensor, batch: int, number: int, seed: int) -> tf.Tensor:
    """[batch] int64: which of `number` examples step `step` sees. Every pass over all is a permutation of its own."""
    position = step * batch + tf.range(batch, dtype=tf.int64)
    lap = position // number
    seeds = tf.stack([tf.fill([batch], tf.constant(seed, tf.int64)), lap, tf.zeros_like(lap)], 1)
    # The raw operation, since the public one pads a batch of seeds along the wrong axis too.
    last = tf.constant(number - 1, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(index=position % number, seed=seeds, max_index=last, rounds=4)


def flip(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Reverses an even-sided image axis about pixel P // 2, where sources are centred; pixel 0 stays in its place."""
    return tf.roll(tf.reverse(x, [axis]), 1, axis)


def augment(x: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Stamps [B, C, P, P], each flipped, transposed, shifted and scaled at random; pure in `seed` [2]."""
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
    return x


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """A new seed [2] from a seed and a number."""
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
    """Endless ((x_t, sigma), x, weight) from step `first_step` on, as `fit` takes them.

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
    """Mean and variance (C, P, P) of augmented stamps, without drawing any: flips are averaged over, jitter is known.

    Shifts are left out: sub-pixel ones hardly change either.
    The variance is at least `floor`^2 times the mean variance, so that dividing by it is harmless where no light falls.
    """
    chunks = np.array_split(stamps, max(1, len(stamps) // 500))
    mean = sum(chunk.sum(0, dtype=np.float64) for chunk in chunks) / len(stamps)
    square = sum(np.square(chunk, dtype=np.float64).sum(0) for chunk in chunks) / len(stamps)
    if augmentation.flips:
        mean, square = _symmetrize(mean), _symmetrize(square)
    jitter = augmentation.scale_jitter
    mean, square = mean * np.exp(jitter**2 / 2), square * np.exp(2 * jitter**2)
    variance = square - mean**2
    return mean, np.maximum(variance, floor**2 * variance.mean())


def _symmetrize(image: np.ndarray) -> np.ndarray:
    """(C, P, P) averaged over the eight flips and rotations about pixel P // 2."""
    for axis in (1, 2):
        image = (image + np.roll(np.flip(image, axis), 1, axis)) / 2
    return (image + image.swapaxes(1, 2)) / 2


def blend_batches(
    scenes: Sequence[Scene], stamp: int, blends: int, seed: int, lap: int = 0
) -> list[tuple[BatchShape, tf.data.Dataset]]:
    """Scenes as padded batches of plain tensors, a dataset for each shape: what a lap over real blends goes through.

    The order is a pure function of (seed, lap). Batches are padded where they are made, one ahead of the consumer.

    Args:
      stamp: P of the sources. blends: B.
    Returns:
      (shape, dataset) pairs; a dataset yields `BlendBatch.tensors`, with "index" [B] of each scene in `scenes`, -1
      where a row is padding, and "band_scale" [B, C], the noise by which each band was divided.
    """
    buckets: dict[BatchShape, list[int]] = defaultdict(list)
    for index in np.random.default_rng([seed, lap]).permutation(len(scenes)):
        buckets[scene_shape(scenes[index], stamp)._replace(blends=blends)].append(int(index))
    return [(shape, _bucket(scenes, members, shape)) for shape, members in sorted(buckets.items())]


def _bucket(scenes: Sequence[Scene], members: list[int], shape: BatchShape) -> tf.data.Dataset:
    def pad(first: int) -> dict[str, tf.Tensor]:
        chunk = members[first : first + shape.blends]
        batch = BlendBatch.build([scenes[index] for index in chunk], shape)
        index = tf.constant(chunk + [-1] * (shape.blends - len(chunk)), tf.int32)
        return {**batch.tensors, "index": index, "band_scale": tf.constant(batch.band_scale)}

    signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), pad(0))
    starts = range(0, len(members), shape.blends)
    return tf.data.Dataset.from_generator(lambda: map(pad, starts), output_signature=signature).prefetch(1)
