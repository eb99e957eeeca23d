"""Files of simulated scenes and stamps: NPZ, FITS and TFRecord, each written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("npz", "fits", "tfrecord")


def write_whole(path: Path, write: Any) -> str:
    """Calls write(temporary path), then renames to `path`; returns the file's SHA-256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sha256(path)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An NPZ archive: the same bytes for the same arrays."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_fits(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A scene as FITS: SCI, WHT, PSF, CATALOG as `tfdeblend.io.read` takes them, and TRUTH (K,C,H,W)."""
    from astropy.io import fits

    header = fits.Header({"BUNIT": "electron", "BANDS": ",".join(arrays["filters"])})
    header.update({f"MAGZERO{c + 1}": float(zero) for c, zero in enumerate(arrays["zeropoints"])})
    if "model_sigma" in arrays:
        header["MODELSIG"] = float(arrays["model_sigma"])
    scale = float(arrays["pixel_scale"]) / 3600
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRVAL1": 0.0})
    header.update({"CRVAL2": 0.0, "CRPIX1": 1.0, "CRPIX2": 1.0, "CDELT1": -scale, "CDELT2": scale})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(arrays["images"], header, name="SCI")]
    hdus += [fits.ImageHDU(arrays["weights"], name="WHT"), fits.ImageHDU(arrays["psfs"], name="PSF")]
    hdus += [fits.BinTableHDU(arrays["catalog"], name="CATALOG"), fits.ImageHDU(arrays["truth"], name="TRUTH")]
    extra = {"TRUTHMOD": "truth_model", "NOISEKER": "noise_kernel"}
    hdus += [fits.ImageHDU(arrays[key], name=name) for name, key in extra.items() if key in arrays]
    fits.HDUList(hdus).writeto(path)


def write_records(path: Path, examples: Iterator[dict[str, np.ndarray]]) -> None:
    """A TFRecord file of `tf.train.Example`, see `encode`."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for arrays in examples:
            writer.write(encode(arrays))


def encode(arrays: dict[str, np.ndarray]) -> bytes:
    """A serialised `tf.train.Example`: the same bytes for the same arrays.

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
    """The arrays of `encode`; columns of a structured array stay apart, under `<array>/<column>`."""
    import tensorflow as tf

    arrays = {}
    for name, feature in tf.train.Example.FromString(serialized).features.feature.items():
        values = list(getattr(feature, feature.WhichOneof("kind")).value)
        if "/" not in name and len(values) == 1 and name not in ("filters", "unit"):
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
