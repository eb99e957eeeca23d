"""What a survey run is asked for: images, how they are read, and how their sources are found and fitted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tfdeblend import io
from tfdeblend.data.local_sky import MESH, REACH
from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.io import companions, images
from tfdeblend.survey import psf_function
from tfdeblend.survey.tiles import Section, Tile, tiles
from tfdeblend.version import __version__

METHODS = ("map", "sample")
# Sigma. In two simulated fields of 1024 x 1024 pixels with 908 true sources 3.25 finds 798 of these and 39 others, 3
# finds 798 and 75, and 3.5 finds 797 and 30.
THRESHOLD = 3.25


@dataclass(frozen=True)
class SurveySettings:
    """Says what a survey run is to do. These are plain values, which travel to workers and tell two runs apart.

    Args:
        images: FITS files of one field: one of all bands, or one a band.
        psf: a file as of `io.Reading`; or the name of a function (x, y, band) that gives a PSF (h,w) at a pixel of the
            image, `model.py:psf` or `package.module:psf`, which workers must find there too.
        mask_planes, bands, zeropoints, pixel_scale: see `io.Reading`.
        prior, method, samples, seed, trust_weights: see `Deblender`.
        sky_correlation: whether the correlation of the noise is measured on the empty sky of each tile, and used.
        sample_above: blendedness; with the method "sample", only the blends in which a source has more are sampled, and
            all else is the maximum of the posterior. None: everything is sampled.
        models: whether images of model and residual are written.
        threshold: of the detection, in sigma.
        tile: pixels a side of a tile's inner region. border: pixels around it that the local sky and
            the detection see; with less than 256 they depend on where the tiles are.
        margin: pixels around the inner region whose sources are fitted too, as neighbours of its own.

    Raises:
        DataError: sides that are no whole meshes of the local sky, another method, and files that are no FITS images of
            one shape; a function that is not there.
    """

    images: tuple[str, ...]
    psf: str | None = None
    mask_planes: tuple[str | int, ...] | None = None
    bands: tuple[str, ...] | None = None
    zeropoints: float | Mapping[str, float] | None = None
    pixel_scale: float | None = None
    prior: str = "bulge-disk"
    method: str = "map"
    samples: int = 16
    seed: int = 0
    trust_weights: bool = False
    sky_correlation: bool = False
    sample_above: float | None = None
    models: bool = False
    threshold: float = THRESHOLD
    tile: int = 512
    border: int = REACH
    margin: int = 64

    def __post_init__(self) -> None:
        for name in ("tile", "border"):
            if getattr(self, name) < MESH or getattr(self, name) % MESH:
                expected = f"expected a multiple of {MESH} pixels, the mesh of the local sky"
                raise DataError(name, None, f"{expected}, received {getattr(self, name)}")
        if not 0 <= self.margin <= self.border:
            raise DataError("margin", None, f"expected 0 to {self.border} pixels, the border, received {self.margin}")
        if self.method not in METHODS:
            raise DataError("method", None, f"expected one of {', '.join(METHODS)}, received {self.method!r}")
        if not self.threshold > 0:
            raise DataError("threshold", None, f"expected a positive number of sigma, received {self.threshold}")
        if self.method == "sample" and self.samples < 2:
            raise DataError("samples", None, f"expected at least 2, received {self.samples}")
        if self.sample_above is not None:
            if self.method != "sample":
                raise DataError("sample_above", None, f"expected the method sample, received {self.method}")
            if not 0 <= self.sample_above < 1:
                raise DataError("sample_above", None, f"expected a blendedness of 0 to 1, received {self.sample_above}")
        if psf_function.named(self.psf):
            psf_function.find(str(self.psf))
        if not self.images:
            raise DataError("images", None, "expected FITS images, received none")

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Give the shape (H,W) of the images, by their headers."""
        shapes = {file: images.shape(Path(file)) for file in self.images}
        first, *others = shapes.items()
        for file, shape in others:
            if shape != first[1]:
                expected = f"expected {first[1][0]} x {first[1][1]} pixels as of {first[0]}"
                raise DataError(file, "images", f"{expected}, received {shape[0]} x {shape[1]}")
        return first[1]

    def tiles(self) -> list[Tile]:
        """List the tiles of the images, row by row."""
        return tiles(self.shape, self.tile, self.border)

    def read(self, section: Section, psf_section: Section | None = None) -> Observation:
        """Read a section of the images as one observation, its PSF that of its middle or of another section's."""
        names = ("psf", "mask_planes", "bands", "zeropoints", "pixel_scale")
        how: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if psf_function.named(self.psf):
            how["psf"] = psf_function.find(str(self.psf))
        how |= {"section": section, "psf_section": psf_section}
        observation, _ = io.read(self.images[0] if len(self.images) == 1 else self.images, **how)
        return observation

    @cached_property
    def key(self) -> str:
        """Give a SHA-256 that differs for other settings, other files and another version of the package."""
        beside = [file for image in self.images for files in companions.beside(Path(image)).values() for file in files]
        given = [Path(name) for name in (*self.images, self.psf or "", self.prior) if Path(name).is_file()]
        if psf_function.named(self.psf):
            given.append(psf_function.source(str(self.psf)))
        stats = [(str(file), file.stat()) for file in [*given, *beside]]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        run = {"settings": asdict(self), "files": files, "version": __version__}
        return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
