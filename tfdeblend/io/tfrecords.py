"""Arrays in TFRecord files, a `tf.train.Example` for each scene or stamp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.io.atomic import written_whole

TEXTS = ("filters", "unit")  # arrays of names, which are lists of bytes and no tensors


def write(path: Path, examples: Iterable[dict[str, np.ndarray]]) -> None:
    """Write a TFRecord file of `encode`d examples, whole or not at all. Raises: OSError where it cannot be written."""
    import tensorflow as tf

    with written_whole(path) as temporary:
        try:
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for arrays in examples:
                    writer.write(encode(arrays))
        except tf.errors.OpError as error:
            raise OSError(f"{path}: {error.message}") from error


def encode(arrays: dict[str, np.ndarray]) -> bytes:
    """Serialise arrays by name as a `tf.train.Example`: the same bytes for the same arrays.

    An array of numbers becomes one bytes feature, for `tf.io.parse_tensor`; one of names a list of bytes; the columns
    of a structured array a list of floats, integers or bytes each, under `<array>/<column>`.
    """
    import tensorflow as tf

    features: dict[str, Any] = {}
    for name, values in arrays.items():
        if values.dtype.names:
            features |= {f"{name}/{column}": _list_feature(values[column]) for column in values.dtype.names}
        elif values.dtype.kind == "U":
            features[name] = _list_feature(values)
        else:
            tensor = tf.make_tensor_proto(values).SerializeToString()
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[tensor]))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializePartialToString(deterministic=True)


def decode(serialized: bytes) -> dict[str, np.ndarray]:
    """Give the arrays of `encode` back; columns of a structured array stay apart, under `<array>/<column>`."""
    import tensorflow as tf

    arrays = {}
    for name, feature in tf.train.Example.FromString(serialized).features.feature.items():
        values = list(getattr(feature, feature.WhichOneof("kind")).value)
        if "/" not in name and len(values) == 1 and name not in TEXTS:
            arrays[name] = tf.make_ndarray(type(tf.make_tensor_proto(0)).FromString(values[0]))
        else:
            arrays[name] = np.array([v.decode() if isinstance(v, bytes) else v for v in values])
    return arrays


def _list_feature(values: np.ndarray) -> Any:
    import tensorflow as tf

    values = np.atleast_1d(values)
    if values.dtype.kind == "U":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(value).encode() for value in values]))
    if values.dtype.kind in "iub":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values.astype(int)))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
