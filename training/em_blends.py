"""The blends of expectation-maximisation: read, split, thinned where they are held out, and fitted in closed form."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from tfdeblend import em
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion.registry import PriorFile
from tfdeblend.errors import DataError
from tfdeblend.inference.priors import mismatch
from tfdeblend.io import find_inputs
from tfdeblend.io.atomic import written_whole
from tfdeblend.training.em_config import EMConfig

T = TypeVar("T")
SPLITS = ("training", "validation", "test")


def split_of(name: str, config: EMConfig) -> str:
    """Returns which of SPLITS a scene belongs to: a pure function of its name and the random seed."""
    share = np.random.default_rng([config.seed, *name.encode()]).uniform()
    if share < config.test:
        return "test"
    return "validation" if share < config.test + config.validation else "training"


def read_scenes(config: EMConfig) -> list[Scene]:
    """Reads the scenes that the prior can be used on, and prints how many cannot.

    Raises: DataError where none is.
    """
    about = PriorFile(config.name, Path(), config.bands, config.side, config.pixel_scale, config.model_sigma)
    found, refused = [], []
    for path in progress(find_inputs(list(config.blends)), "reading"):
        try:
            scene = Scene.read(path)
            scene = Scene((scene.observation.select(config.bands),), scene.sources).kept
            problem = mismatch(about, scene, assume_ab=True)
        except DataError as error:
            problem = str(error)
        if problem is None:
            found.append(scene)
        else:
            refused.append(f"{path.name}: {problem}")
    if refused:
        print(f"left out {len(refused)} scenes, such as {refused[0]}", file=sys.stderr)
    if not found:
        raise DataError(config.name, "blends", "expected scenes that the prior can be used on, received none")
    return found


@dataclass(frozen=True)
class Blends:
    """Shards of the splits; those of "validation" and "test" are thinned, `halves` their other images by name."""

    shards: dict[str, list[em.Shard]]
    halves: dict[str, np.ndarray]

    @classmethod
    def prepare(cls, config: EMConfig, scenes: Sequence[Scene], folder: Path) -> Blends:
        """Splits and fits the scenes; fits in `folder` are read. Raises: DataError for a split without scenes."""
        groups: dict[str, list[Scene]] = {split: [] for split in SPLITS}
        halves = {}
        for scene in scenes:
            split = split_of(scene.name, config)
            if split != "training":
                scene, halves[scene.name] = em.thin(scene, config.seed)
            groups[split].append(scene)
        for split in SPLITS[: 3 if config.test else 2]:
            if not groups[split]:
                raise DataError(config.name, split, f"expected blends, received none of {len(scenes)}")
        _same_blends(scenes, folder)
        fit = em.InitialFits()
        shards = {split: initial_fits(config, split, group, folder, fit) for split, group in groups.items()}
        return cls(shards, halves)


def _same_blends(scenes: Sequence[Scene], folder: Path) -> None:
    """Raises: DataError where the fits in `folder` are of other blends."""
    digest = hashlib.sha256()
    for scene in scenes:
        observation = scene.observation
        for part in (observation.images, observation.weights, observation.psf, scene.positions):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(scene.name.encode())
    path = folder / "blends.sha256"
    if path.exists() and path.read_text() != digest.hexdigest():
        raise DataError(path, "blends", "expected the blends that this folder was begun with, received others")
    with written_whole(path) as temporary:
        temporary.write_text(digest.hexdigest())


def initial_fits(
    config: EMConfig, kind: str, scenes: Sequence[Scene], folder: Path, fit: em.InitialFits
) -> list[em.Shard]:
    """Fits scenes and writes a file for each shard; files that exist are read."""
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {scene.name: scene for scene in scenes}
    found = []
    for number, (shape, members) in enumerate(
        progress(em.plan(scenes, config.side, config.model_sigma), f"fitting {kind}")
    ):
        path = folder / f"{kind}_{number:05d}.npz"
        if not path.exists():
            fit([scenes[index] for index in members], shape).write(path)
        found.append(em.Shard.read(path, by_name))
    return found


def progress(work: Iterable[T], text: str, number: int | None = None) -> Iterable[T]:
    """Shows a bar on a terminal, and a line in a log. number: of the work, where it has no length."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
    return tqdm(work, text, number, disable=None)
