"""Warm-up requests, one for each signature, which a server runs before it puts a model into service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from tfdeblend.export.bucket import Bucket
from tfdeblend.export.layout import WARM_UP

SIGMA = 2.0  # pixels, of the PSF and the source


def example(bucket: Bucket, blends: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws blends of one Gaussian source in noise of unit variance, as every signature of a bucket takes them."""
    rng = np.random.default_rng(seed)
    c, s, q, k = bucket.channels, bucket.side, bucket.psf, bucket.sources
    centre = rng.uniform(-0.5, 0.5, [blends, 1, 2]) + (s - 1) / 2
    y, x = (np.arange(s) - centre[:, :, axis] for axis in (0, 1))
    light = np.exp(-(y[:, None, :, None] ** 2 + x[:, None, None] ** 2) / (4 * SIGMA**2))
    t = np.arange(q) - (q - 1) / 2
    psf = np.exp(-(t[:, None] ** 2 + t**2) / (2 * SIGMA**2))
    is_source = np.arange(k) < np.ones([blends, 1])
    return {
        "images": (50 * light + rng.normal(size=[blends, c, s, s])).astype(np.float32),
        "weights": np.ones([blends, c, s, s], np.float32),
        "psfs": np.broadcast_to(psf / psf.sum(), [blends, c, q, q]).astype(np.float32),
        "psf_center": np.full([blends, 2], (q - 1) / 2, np.float32),
        "positions": centre * is_source[..., None],
        "is_source": is_source,
        "is_point": np.zeros([blends, k], bool),
        "pixel_scale": np.full([blends], 0.168, np.float32),
        "zeropoints": np.full([blends, c], 27, np.float32),
    }


def inputs(bucket: Bucket, signatures: dict[str, tf.types.experimental.ConcreteFunction], name: str, blends: int = 1):
    """Makes the inputs of a signature's warm-up by name: arrays of `blends` blends."""
    given = example(bucket, blends)
    specs = signatures[name].structured_input_signature[1]
    if "eps" in specs:
        start = signatures["start"](**{key: tf.constant(value) for key, value in given.items()})
        given |= {key: value.numpy() for key, value in start.items()}
    found = {}
    for key, spec in specs.items():
        empty = np.zeros([blends, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
        found[key] = given.get(key, empty + 1 if key == "sigma" else empty)
    return found


def write(folder: Path, bucket: Bucket, signatures: dict[str, tf.types.experimental.ConcreteFunction]) -> None:
    """Writes the requests of all signatures into the folder of a version."""
    path = folder / WARM_UP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as records:
        for name in signatures:
            log = PredictionLog()
            request = log.predict_log.request
            request.model_spec.name, request.model_spec.signature_name = bucket.name, name
            fill(request, inputs(bucket, signatures, name))
            records.write(log.SerializeToString())


def fill(request: PredictRequest, arrays: dict[str, np.ndarray]) -> None:
    """Puts arrays into a request; one that holds the same number throughout is sent as that number."""
    for name, value in arrays.items():
        if value.size > 1 and (value == value.flat[0]).all():
            proto = tf.make_tensor_proto(value.flat[0], shape=value.shape)
        else:
            proto = tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
