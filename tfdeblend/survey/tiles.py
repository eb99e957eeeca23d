"""Tiles: the pieces that a large image is worked through in.

The inner regions of the tiles cover the image once; a source belongs to the tile in whose inner region it was detected.
Around it lies a border, so that what the tile says of its own sources does not depend on where its edges are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Section = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Tile:
    """Describes a rectangle of an image.

    Args:
        row, column: its place among the tiles, from 0 on.
        inner: rows and columns that are its own.
        outer: the same with its border, inside of the image.
    """

    row: int
    column: int
    inner: Section
    outer: Section

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"tile_{self.row:04d}_{self.column:04d}"

    @property
    def corner(self) -> np.ndarray:
        """(y, x) of the first pixel of `outer`."""
        return np.array([part.start for part in self.outer])

    def owns(self, y: np.ndarray, x: np.ndarray, slack: float = 0.0) -> np.ndarray:
        """Tell which places, in pixels of the image, are the tile's own, or at most `slack` pixels beyond."""
        own = np.ones(np.shape(y), bool)
        for place, part in zip((y, x), self.inner, strict=True):
            own &= (place >= part.start - 0.5 - slack) & (place < part.stop - 0.5 + slack)
        return own


def tiles(shape: tuple[int, int], side: int, border: int) -> list[Tile]:
    """Cover an image of `shape` (H,W) with tiles of `side` pixels a side and a border, row by row."""
    height, width = shape
    found = []
    for row, y in enumerate(range(0, height, side)):
        for column, x in enumerate(range(0, width, side)):
            inner = slice(y, min(y + side, height)), slice(x, min(x + side, width))
            outer = tuple(
                slice(max(part.start - border, 0), min(part.stop + border, length))
                for part, length in zip(inner, shape, strict=True)
            )
            found.append(Tile(row, column, inner, (outer[0], outer[1])))
    return found
