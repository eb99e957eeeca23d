"""Trainings that take seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tfdeblend.training.config import DenoiserConfig, FitConfig, NetworkConfig

NETWORK = NetworkConfig(widths=(8,), blocks=(1,), embedding=8)


def tiny(folder: Path) -> DenoiserConfig:
    """A configuration that trains in seconds on discs of any size."""
    rng = np.random.default_rng(0)
    y, x = np.indices((16, 16)) - 8.0
    sizes, colours = rng.uniform(1, 4, (72, 1, 1, 1)), rng.uniform(0.5, 2, (72, 2, 1, 1))
    stamps = (colours * np.exp(-np.hypot(y, x) / sizes)).astype("float32")
    np.save(folder / "train_0.npy", stamps[:-64])
    np.save(folder / "heldout_0.npy", stamps[-64:])
    return DenoiserConfig(
        name="tiny",
        stamps=str(folder),
        bands=("g", "r"),
        side=16,
        pixel_scale=0.168,
        model_sigma=1.0,
        mean_fit=FitConfig(steps=16, epoch=4, batch=4, warmup=2, ema=0.9),
        head_fit=FitConfig(steps=12, epoch=4, batch=4, warmup=2, ema=0.9),
        network=NETWORK,
        head=dataclasses.replace(NETWORK, patch=4, head_kernel=1),
        rank=2,
        evaluation_stamps=64,
    )
