"""Settings of a training run: frozen dataclasses, read from JSON. A misspelt key fails."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole


@dataclass(frozen=True)
class NetworkConfig:
    """Says how large a U-Net is, see `tfdeblend.networks.UNet`."""

    widths: tuple[int, ...] = (24, 48, 96, 160)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    patch: int = 2
    embedding: int = 64
    head_kernel: int = 3


PRECISIONS = ("float32", "mixed_bfloat16")  # Keras' policies; mixed_float16 would need its losses scaled
STRATEGIES = (None, "mirrored", "multi_worker")  # one device; the devices of one process; the processes of TF_CONFIG
HEAD = NetworkConfig(widths=(64, 64, 64), blocks=(1, 1, 1), patch=4, head_kernel=1)


@dataclass(frozen=True)
class FitConfig:
    """Says how long and how fast one `fit` is.

    Args:
        steps: in all.
        epoch: steps between checkpoints.
        batch: stamps a step.
        learning_rate, warmup: the rate rises over `warmup` steps and falls to zero along a cosine.
        ema: momentum of the average of the weights that is kept.
        clip: largest global norm of a gradient.
        memory: Adam's, of squared gradients (beta 2). A covariance head learns most from rare galaxies with large
            gradients: clipped at 1 it is too narrow for them.
    """

    steps: int
    epoch: int = 250
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    memory: float = 0.99


@dataclass(frozen=True)
class DenoiserConfig:
    """Says what `train_denoiser` trains, and on what.

    Args:
        stamps: a folder of .npy files, relative to the working directory.
        train, held_out: patterns of their names.
        evaluation_stamps: how many held-out stamps the losses are measured on.
        bands, side, pixel_scale, model_sigma: what the stamps are; the scale in arcsec, the sigma in pixels.
        noise_median, noise_spread: of the log-normal levels.
        rank: of the covariance's factor.
        base_rank: directions of a Gaussian, fitted to the stamps first, that the networks correct; with one, short fits
            need not learn what is linear.
        flips, shift, scale_jitter, band_jitter: see `tfdeblend.training.datasets.Augmentation`.
        start: a learned prior (name or .keras file) whose networks, moments and base are taken over and trained on; a
            fit of no steps leaves them as they are.
        precision: of the networks' products in training, one of `PRECISIONS`; weights, and what is saved, are float32
            with either.
        strategy: how it is spread over devices or machines, one of `STRATEGIES`, see `tfdeblend.training.distribution`;
            batches are of all replicas together.
    """

    name: str
    stamps: str
    bands: tuple[str, ...]
    side: int
    pixel_scale: float
    model_sigma: float
    mean_fit: FitConfig
    head_fit: FitConfig
    network: NetworkConfig = NetworkConfig()
    head: NetworkConfig = HEAD
    rank: int = 6
    base_rank: int = 0
    noise_median: float = 0.04
    noise_spread: float = 1.8
    flips: bool = True
    shift: float = 0.0
    scale_jitter: float = 0.2
    band_jitter: float = 0.0
    train: str = "train_*.npy"
    held_out: str = "heldout_*.npy"
    evaluation_stamps: int = 256
    seed: int = 0
    start: str | None = None
    precision: str = "float32"
    strategy: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, received {self.precision!r}")
        check_strategy(self.strategy)

    @classmethod
    def read(cls, path: Path) -> DenoiserConfig:
        """Reads settings from JSON. Raises: DataError for what is missing, misspelt or of a wrong kind."""
        try:
            return parse(cls, json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(path, None, error) from error

    def write(self, path: Path) -> None:
        """Writes the file that `read` takes, with every setting."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def check_strategy(name: str | None) -> None:
    """Raises: ValueError for what is none of `STRATEGIES`."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy: expected null, mirrored or multi_worker, received {name!r}")


def parse(cls: type, values: Any) -> Any:
    """Returns the dataclass `cls` of JSON's `values`, nested ones too. Raises: ValueError for unknown keys."""
    if not isinstance(values, dict):
        raise ValueError(f"expected a {cls.__name__}, received {values!r}")
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ValueError(f"expected keys of {cls.__name__} ({', '.join(kinds)}), received {', '.join(unknown)}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    return cls(**{key: _convert(kinds[key], value, defaults[key]) for key, value in values.items()})


def _convert(kind: Any, value: Any, default: Any) -> Any:
    """Converts one value; keys that a nested dataclass lacks are as in its default."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(default, kind) and isinstance(value, dict):
            value = dataclasses.asdict(default) | value
        return parse(kind, value)
    return tuple(value) if typing.get_origin(kind) is tuple else value
