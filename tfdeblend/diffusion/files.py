"""Files of learned priors: read where they are of limited size, name no code, and hold a denoiser that works."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfdeblend.diffusion.denoisers import NeuralDenoiser, PriorDenoiser
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.errors import DataError

LARGEST_FILE, LARGEST_CONFIG = 2**28, 2**20  # bytes
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = ("metadata.json", CONFIG, WEIGHTS)  # of a .keras file
DENOISERS = ("tfdeblend>NeuralDenoiser", "tfdeblend>ResidualDenoiser")
LEVELS = (1.0, 0.1, 0.01)  # of noise, that a prior is tested at


def read_network(path: Path, trusted: bool) -> NeuralDenoiser:
    """Reads the denoiser of a .keras file.

    trusted: the file is known, and need not be examined. Else sizes, the classes that it names and the shapes of its
    weights are looked at before any of it is built, and what is built is tested.

    Raises: DataError for a file that is broken, holds something else, or whose denoiser does not work.
    """
    with _reading(path, "a denoiser saved by Keras"):
        if not trusted:
            _examine(path)
        denoiser = keras.saving.load_model(path, compile=False, safe_mode=True)
        if not trusted:
            _check_number(denoiser, "sigma_data", positive=True)
            _check(denoiser, denoiser.get_weights())
    return denoiser


def read_gaussian(path: Path) -> GaussianDenoiser:
    """Reads the Gaussian prior of an .npz file, and tests it. Raises: DataError as `read_network`."""
    with _reading(path, "a Gaussian prior's arrays"):
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive)
        denoiser = GaussianDenoiser.load(path)
        prior = denoiser.prior
        parts = denoiser.mean, prior.diagonal, prior.factor
        _check(denoiser, [keras.ops.convert_to_numpy(part) for part in parts])
    return denoiser


class _Unfit(Exception):
    """What was expected of a prior, and what was received."""


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever is raised within into a DataError: errors of Keras, zipfile, NumPy or h5py are of any kind."""
    try:
        yield
    except _Unfit as error:
        raise DataError(path, "prior", error) from error
    except Exception as error:
        raise DataError(path, "prior", f"expected {expected}, received {str(error) or type(error).__name__}") from error


def _examine(path: Path) -> None:
    """Checks sizes, classes and datasets of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        _check_sizes(archive)
        if unknown := sorted(set(archive.namelist()) - set(MEMBERS)):
            raise _Unfit(f"expected {', '.join(MEMBERS)} alone, received {unknown[0][:80]!r}")
        config = json.loads(archive.read(CONFIG))
        if config.get("registered_name") not in DENOISERS:
            raise _Unfit(f"expected a denoiser, received a {str(config.get('class_name'))[:80]}")
        for one in _objects(config["config"]):
            if one.get("registered_name") != "tfdeblend>UNet":
                raise _Unfit(f"expected networks that are U-Nets, received a {str(one['class_name'])[:80]}")
        _check_datasets(archive.read(WEIGHTS))


def _check_sizes(archive: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    for name, size, most in (
        (CONFIG, sizes.get(CONFIG, 0), LARGEST_CONFIG),
        ("the archive", sum(sizes.values()), LARGEST_FILE),
    ):
        if size > most:
            raise _Unfit(f"expected at most {most / 2**20:g} MiB in {name}, received {size / 2**20:.0f}")


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """The serialised objects within a configuration."""
    values = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    if isinstance(config, dict) and "class_name" in config:
        yield config
    for value in values:
        yield from _objects(value)


def _check_datasets(content: bytes) -> None:
    """Checks that weights are no more than they should be, compressed as they may be, and lie in the file itself."""
    total = 0

    def add(name: str, item: Any) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset):
            total += item.nbytes
            if item.is_virtual or item.external:
                raise _Unfit(f"expected weights that the file itself holds, received {name[:80]} of another")

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(add)
    if total > LARGEST_FILE:
        raise _Unfit(f"expected at most {LARGEST_FILE / 2**20:g} MiB of weights, received {total / 2**20:.0f}")


def _check(denoiser: PriorDenoiser, weights: Sequence[np.ndarray]) -> None:
    """Checks what a prior says of its stamps, and that its denoiser takes noise away from its mean."""
    bands, names = denoiser.stamp_shape[0], denoiser.bands
    texts = all(isinstance(name, str) and name for name in names)
    if names and not (texts and len(set(names)) == len(names) == bands):
        raise _Unfit(f"expected {bands} names of bands that differ, received {str(names)[:80]}")
    for name, positive in (("pixel_scale", True), ("model_sigma", True), ("scale_jitter", False)):
        _check_number(denoiser, name, positive)
    if not all(np.isfinite(one).all() for one in weights):
        raise _Unfit("expected finite weights, received some that are not")
    variance, mean = (keras.ops.convert_to_numpy(part) for part in (denoiser.variance, denoiser.mean))
    if not variance.min() > 0:
        raise _Unfit(f"expected a positive variance of every pixel, received {variance.min():g}")
    levels = np.array(LEVELS, mean.dtype)
    noise = np.random.default_rng(0).standard_normal((len(LEVELS), *mean.shape)) * levels[:, None, None, None]
    given = keras.ops.convert_to_tensor((mean + noise).astype(mean.dtype))
    denoised, covariance = denoiser.posterior(given, keras.ops.convert_to_tensor(levels))
    left = np.square(keras.ops.convert_to_numpy(denoised) - mean).sum((1, 2, 3)) / np.square(noise).sum((1, 2, 3))
    open_ = keras.ops.convert_to_numpy(covariance.variance).min((1, 2, 3))
    for level, share, least in zip(LEVELS, left, open_, strict=True):
        if not (share < 1 and least >= 0):
            received = f"received {np.sqrt(share):.3g} of it back, and variances from {least:.3g} on"
            raise _Unfit(f"expected a denoiser that takes noise of {level:g} away, {received}")


def _check_number(denoiser: Any, name: str, positive: bool) -> None:
    value = getattr(denoiser, name)
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not known or value < 0 or (positive and value == 0):
        raise _Unfit(f"{name}: expected a {'positive number' if positive else 'number'}, received {str(value)[:80]!r}")
