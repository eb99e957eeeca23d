"""Contents: what the file of a scene holds, part by part as it stands there, and the Observation made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.data import validation
from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.io.files import scene_name
from tfdeblend.io.masks import masked_pixels, saturated_pixels, variance_weights

if TYPE_CHECKING:
    from astropy.table import Table


@dataclass
class Contents:
    """Holds the parts of a scene's file.

    Args:
        parts: by the fields of an Observation, and `variance`, `mask` (booleans or bit planes) and `footprint`; None
            where the file does not say.
        names: what the file calls these parts, for messages; a part that is not listed has its own name.
        catalog: of its sources, or None.
        planes: the bit of each plane of an integer mask, by name.
        notes: warnings of reading, one line each.

    Raises:
        DataError: for images of another shape than (C,H,W) or (H,W).
    """

    path: Path
    parts: dict[str, Any]
    names: dict[str, str]
    catalog: Table | None
    planes: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        with self._by_name():
            self.parts["images"] = validation.as_images(self.path, self.parts["images"])

    def observation(self, psf: Any, mask_planes: Sequence[str | int] | None) -> Observation:
        """Make the observation, named after the file. Arguments and errors are those of `tfdeblend.io.read`."""
        with self._by_name():
            parts, notes = dict(self.parts), list(self.notes)
            images, mask, footprint, variance = (
                parts.pop(name, None) for name in ("images", "mask", "footprint", "variance")
            )
            masked = np.zeros(images.shape, bool)
            if mask is not None:
                masked = masked_pixels(self.path, mask, images.shape, mask_planes, self.planes)
                if parts["saturated"] is None:
                    parts["saturated"] = saturated_pixels(self.path, mask, images.shape, self.planes)
            if footprint is not None:
                masked = masked | validation.as_mask(self.path, "footprint", footprint, images.shape)
            if variance is not None:
                if parts["weights"] is not None:
                    raise DataError(self.path, "variance", "expected either weights or variance, received both")
                parts["weights"] = variance_weights(self.path, variance, masked, images.shape, notes)
            if psf is not None:
                parts["psf"] = psf
            images = np.ma.MaskedArray(images, masked)
            return Observation(images, name=scene_name(self.path), notes=tuple(notes), **parts)

    @contextmanager
    def _by_name(self) -> Iterator[None]:
        """Name the file, and its parts as the file does, in errors of the checks."""
        try:
            yield
        except DataError as error:
            raise error.at(self.path, self.names.get(error.field or "")) from error
