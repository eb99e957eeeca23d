"""AffineMap: where the pixels of one observation lie among those of another, by their WCS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.errors import DataError

TOLERANCE = 0.02  # pixels of the model frame by which a map of pixels may depart from an affine one
WITHOUT_WCS = "expected a WCS to join observations by, received none"


class AffineMap(NamedTuple):
    """Maps pixel q of an observation to where it lies in the model frame: p = matrix q + offset, both (y, x).

    matrix: (2, 2). offset: (2,), pixels of the model frame.
    """

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def between(cls, where: str | Path, observed: Any, model: Any, shape: tuple[int, int]) -> AffineMap:
        """Fit the map from the WCS of an observation of `shape` (H, W) to that of the model frame.

        Args:
          where: the observation's name, for messages. observed, model: WCS.

        Raises: DataError where a sky position has no pixel, or an affine map is off by more than TOLERANCE somewhere.
        """
        from astropy.wcs.utils import pixel_to_pixel

        rows, columns = (np.linspace(-0.5, side - 0.5, 7) for side in shape)
        q = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        try:
            x, y = pixel_to_pixel(observed, model, q[:, 1], q[:, 0])
        except Exception as error:  # of astropy, its kind depending on frames and projections
            raise DataError(where, "wcs", f"expected one that maps to the model frame, received {error}") from error
        p = np.stack([y, x], 1)
        if not np.isfinite(p).all():
            raise DataError(where, "wcs", "expected a sky that the model frame's WCS reaches, received one beyond it")
        terms = np.column_stack([q, np.ones(len(q))])
        solution = np.linalg.lstsq(terms, p, rcond=None)[0]
        worst = float(np.abs(terms @ solution - p).max())
        if worst > TOLERANCE:
            expected = f"expected pixels that map affinely to within {TOLERANCE} of the model frame's"
            raise DataError(where, "wcs", f"{expected}, received {worst:.3g} over {shape}", "cut the image smaller")
        return cls(solution[:2].T, solution[2])

    @property
    def area(self) -> float:
        """The area of one of the observation's pixels, in pixels of the model frame."""
        return float(abs(np.linalg.det(self.matrix)))

    def points(self, shape: tuple[int, int]) -> np.ndarray:
        """Map all pixels of an image of `shape` (H, W): (H, W, 2) of (y, x) in the model frame."""
        return np.moveaxis(np.indices(shape), 0, -1) @ self.matrix.T + self.offset
