"""Where the pixels of one observation lie among those of another, by their WCS."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.errors import DataError

BENT = 0.02  # pixels of the model frame by which a map of pixels may depart from an affine one
WITHOUT_WCS = "expected a WCS to join observations by, received none"


class AffineMap(NamedTuple):
    """p = matrix q + offset: where pixel q of an observation lies in the model frame, both (y, x).

    matrix: (2, 2). offset: (2,).
    """

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def between(cls, where: str | Path, observed: Any, model: Any, shape: tuple[int, int]) -> AffineMap:
        """From the WCS of an observation of `shape` (H, W) to that of a model frame.

        Raises: DataError where a sky position has no pixel, or the map departs from an affine one by more than BENT.
        """
        from astropy.wcs.utils import pixel_to_pixel

        rows, columns = (np.linspace(-0.5, side - 0.5, 7) for side in shape)
        q = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        try:
            x, y = pixel_to_pixel(observed, model, q[:, 1], q[:, 0])
        except Exception as error:  # of astropy, its kind depending on frames and projections
            raise DataError(where, "wcs", f"expected one that the model frame can follow, received {error}") from error
        p = np.stack([y, x], 1)
        if not np.isfinite(p).all():
            raise DataError(where, "wcs", "expected a sky that the model frame's WCS reaches, received one beyond it")
        terms = np.column_stack([q, np.ones(len(q))])
        solution = np.linalg.lstsq(terms, p, rcond=None)[0]
        bent = float(np.abs(terms @ solution - p).max())
        if bent > BENT:
            expected = f"expected pixels that map affinely to within {BENT} of the model frame's"
            raise DataError(where, "wcs", f"{expected}, received {bent:.3g} over {shape}: cut the image smaller")
        return cls(solution[:2].T, solution[2])

    @property
    def area(self) -> float:
        """Of the observation's pixels in pixels of the model frame."""
        return float(abs(np.linalg.det(self.matrix)))

    def points(self, shape: tuple[int, int]) -> np.ndarray:
        """(H, W, 2): where the pixels of an image of that shape lie in the model frame."""
        return np.moveaxis(np.indices(shape), 0, -1) @ self.matrix.T + self.offset
