"""Images of what was fitted: of each tile's inner region the model of all sources, and what it leaves of the images.

The files of all tiles cover the image once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.io.atomic import sha256, written_whole
from tfdeblend.io.images import cards

if TYPE_CHECKING:
    from tfdeblend.survey.tasks import TileResult

CHUNK = 256  # pixels a side of what is compressed as one, and can be read alone
STEPS = 64  # of the values in files, in the least noise of a pixel
UNDITHERED = -1  # values that are 0 stay so, and files are the same when written again


@dataclass(frozen=True, eq=False)
class TileModel:
    """Holds the model of a tile's inner region.

    Args:
        observation: of the inner region, less the local sky.
        light: (C,h,w) of all sources that shine there, as observed.
        corner: (y, x) of its first pixel in the image.
        sources: how many were fitted. lacking: how many more shine there perhaps, whose fit failed.
    """

    observation: Observation
    light: np.ndarray
    corner: Sequence[int]
    sources: int
    lacking: int

    @property
    def residual(self) -> np.ndarray:
        """(C,h,w) float32: image - sky - model, NaN where masked."""
        one = self.observation
        return np.where(one.valid, one.images - self.light, np.nan).astype(np.float32)

    @property
    def rms(self) -> float | None:
        """The root mean square of residual / noise, 1 for white noise of the weights; None where all is masked."""
        one = self.observation
        if not one.valid.any():
            return None
        return float(np.sqrt((one.weights * (one.images - self.light) ** 2)[one.valid].mean()))

    @property
    def step(self) -> float:
        """The step of values in files."""
        most = float(self.observation.weights.max())
        return most**-0.5 / STEPS if most > 0 else 1.0


def write(path: Path, found: TileResult, facts: Mapping[str, Any]) -> str:
    """Write a tile's MODEL and RESIDUAL as FITS, whole or not at all, and give the file's SHA-256.

    Both are cubes (bands, height, width) in the unit of the images, in steps of the least noise of a pixel over STEPS,
    compressed by RICE in chunks of CHUNK pixels a side. Their WCS is the image's; LTV1 and LTV2 plus the column and row
    of a pixel in the image are those in the tile, both counted from 1. RESIDRMS is the
    root mean square of residual / noise, 1 for white noise of the weights.
    """
    from astropy.io import fits

    model = found.model
    assert model is not None
    one = model.observation
    header = fits.Header() if one.wcs is None else one.wcs.to_header(relax=True)
    y, x = (int(first) for first in model.corner)
    header.update(LTV1=-x, LTV2=-y, LTM1_1=1.0, LTM2_2=1.0)
    header.update(cards(one))
    header.update(
        RUNKEY=facts["key"][:16], TILE=facts["tile"], NSOURCE=model.sources, NLACKING=model.lacking, RESIDRMS=model.rms
    )
    layers = {"MODEL": model.light.astype(np.float32), "RESIDUAL": model.residual}
    how = {"compression_type": "RICE_1", "quantize_level": -model.step, "quantize_method": UNDITHERED}
    hdus = [fits.PrimaryHDU()]
    for name, pixels in layers.items():
        chunk = (1, *(min(CHUNK, side) for side in pixels.shape[1:]))
        hdus.append(fits.CompImageHDU(pixels, header, name=name, tile_shape=chunk, **how))
    with written_whole(path) as temporary:
        fits.HDUList(hdus).writeto(temporary)
    return sha256(path)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read (C,h,w) model and residual of a tile. Raises: OSError for a file that is not there or damaged."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        return hdus["MODEL"].data, hdus["RESIDUAL"].data


def read_rms(path: Path) -> float | None:
    """Read the root mean square of residual / noise in a tile; None where all is masked."""
    from astropy.io import fits

    return fits.getheader(path, "RESIDUAL")["RESIDRMS"]
