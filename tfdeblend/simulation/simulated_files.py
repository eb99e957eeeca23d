"""Files of a simulation: which scenes, or stamps to train on, each of them holds, and writing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from tfdeblend.data.photometry import COADD_ZEROPOINT
from tfdeblend.errors import DataError
from tfdeblend.io import npz, tfrecords
from tfdeblend.io.atomic import sha256
from tfdeblend.simulation.scenes import SceneConfig, Simulator
from tfdeblend.simulation.stamps import CHUNK, StampConfig

FORMATS = ("npz", "fits", "tfrecord")
SHARD = 100  # scenes in a TFRecord file


class Part(NamedTuple):
    """One file and the range of scenes or stamps that it holds."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class SceneFiles:
    """Scenes as NPZ or FITS, a file each, or as TFRecord, 100 a file. Raises: DataError for another format."""

    config: SceneConfig
    format: str = "npz"
    kind: ClassVar[str] = "scenes"

    def __post_init__(self) -> None:
        _check_format(self.format, FORMATS)

    @cached_property
    def simulator(self) -> Simulator:
        return Simulator(self.config)

    def plan(self, number: int) -> list[Part]:
        """The files of the first `number` scenes."""
        if self.format == "tfrecord":
            return _plan("scenes_{:05d}.tfrecord", SHARD, number)
        return _plan(f"scene_{{:06d}}.{self.format}", 1, number)

    def write(self, part: Part, folder: Path) -> str:
        """Write one file and return its SHA-256."""
        path, scenes = folder / part.name, map(self.simulator.scene, range(part.start, part.stop))
        if self.format == "tfrecord":
            tfrecords.write(path, (simulated.arrays() for simulated in scenes))
        else:
            simulated = next(scenes)
            simulated.scene.write(path, **simulated.truth_arrays())
        return sha256(path)

    def counts(self, parts: Sequence[Part]) -> dict[str, int]:
        """How many scenes and sources there are in some files."""
        numbers = [i for part in parts for i in range(part.start, part.stop)]
        return {"scenes": len(numbers), "sources": sum(self.config.start(i)[1] for i in numbers)}


@dataclass(frozen=True, eq=False)
class StampFiles:
    """Stamps as NPZ or TFRecord, 500 a file. Raises: DataError for another format."""

    config: StampConfig
    format: str = "npz"
    kind: ClassVar[str] = "stamps"

    def __post_init__(self) -> None:
        _check_format(self.format, ("npz", "tfrecord"))

    def plan(self, number: int) -> list[Part]:
        """The files of the first `number` stamps."""
        return _plan(f"stamps_{{:05d}}.{self.format}", CHUNK, number)

    def write(self, part: Part, folder: Path) -> str:
        """Write one file and return its SHA-256."""
        path, bands = folder / part.name, self.config.survey.bands
        images, catalog = (values[: part.size] for values in self.config.chunk(part.start // CHUNK))
        if self.format == "tfrecord":
            rows = zip(images, catalog, strict=True)
            tfrecords.write(path, ({"stamp": image, "catalog": row} for image, row in rows))
            return sha256(path)
        arrays = {
            "stamps": images,
            "catalog": catalog,
            "filters": np.array(bands),
            "zeropoints": np.full(len(bands), COADD_ZEROPOINT),
            "pixel_scale": np.array(self.config.scale),
            "model_sigma": np.array(self.config.model_sigma),
        }
        npz.write(path, arrays)
        return sha256(path)

    def counts(self, parts: Sequence[Part]) -> dict[str, int]:
        """How many stamps there are in some files."""
        return {"stamps": sum(part.size for part in parts)}


def _plan(name: str, size: int, number: int) -> list[Part]:
    return [Part(name.format(k), s, min(s + size, number)) for k, s in enumerate(range(0, number, size))]


def _check_format(format: str, known: Sequence[str]) -> None:
    if format not in known:
        raise DataError("simulate", "format", f"expected {' or '.join(known)}, received {format!r}")
