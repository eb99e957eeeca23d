"""Windows: images of many sources, each kept only where the source has light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

Slices = tuple[slice, slice, slice]  # of an image (C,H,W): all bands, some rows, some columns


@dataclass(frozen=True, eq=False)
class Windows:
    """Holds images of K sources on the pixels of one observation, each in a window of its own and 0 outside of it.

    `for here, pixels in windows` gives, source by source, the slices of an image (C,H,W) that are its window, and its
    pixels (C,n,m) there. A scene that is fitted as one has windows of the whole image, a field in parts small ones.

    Args:
        pixels: K arrays (C,n,m) float32, n and m each source's own.
        corners: (K,2) integers, the (y, x) of the image's pixel under pixel [0, 0] of each window. Windows lie inside
            of the image.
        shape: (C,H,W) of the image.
    """

    pixels: tuple[np.ndarray, ...]
    corners: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def whole(cls, images: np.ndarray) -> Windows:
        """Make windows of whole images (K,C,H,W)."""
        count, bands, height, width = images.shape
        corners = np.zeros((count, 2), int)
        return cls(tuple(images.astype(np.float32, copy=False)), corners, (bands, height, width))

    @property
    def are_whole(self) -> bool:
        """Tell whether every window is the whole image."""
        return all(pixels.shape == self.shape for pixels in self.pixels)

    @property
    def dense(self) -> np.ndarray:
        """Make every source over the whole image, (K,C,H,W) float32, which takes 4 K C H W bytes at each use."""
        images = np.zeros((len(self), *self.shape), np.float32)
        for image, (here, pixels) in zip(images, self, strict=True):
            image[here] = pixels
        return images

    def total(self) -> np.ndarray:
        """Add up all sources, (C,H,W) in double precision."""
        image = np.zeros(self.shape)
        for here, pixels in self:
            image[here] += pixels
        return image

    def image(self, k: int) -> np.ndarray:
        """Show one source over the whole image, (C,H,W)."""
        return self.cut(k, np.zeros(2, int), self.shape[1:])

    def cut(self, k: int, corner: np.ndarray, sides: Sequence[int]) -> np.ndarray:
        """Show one source in another window: `sides` pixels from `corner` (y, x) on, which may lie outside."""
        pixels, own = self.pixels[k], self.corners[k]
        found = np.zeros((self.shape[0], *sides), pixels.dtype)
        first, last = np.maximum(corner, own), np.minimum(np.add(corner, sides), own + pixels.shape[1:])
        if (first < last).all():
            found[box(first - corner, last - corner)] = pixels[box(first - own, last - own)]
        return found

    def map(self, change: Callable[[Slices, np.ndarray], np.ndarray]) -> Windows:
        """Make other pixels in the same windows: what `change` gives for each window's slices and pixels."""
        return replace(self, pixels=tuple(change(here, pixels) for here, pixels in self))

    def spread(self, kept: np.ndarray) -> Windows:
        """Place the sources where `kept` (N,) is True; the others of N have no light, in a window like the first's."""
        pixels = [np.zeros_like(self.pixels[0])] * len(kept)
        corners = np.tile(self.corners[0], (len(kept), 1))
        for place, own in zip(np.flatnonzero(kept), self.pixels, strict=True):
            pixels[place] = own
        corners[kept] = self.corners
        return replace(self, pixels=tuple(pixels), corners=corners)

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[tuple[Slices, np.ndarray]]:
        for corner, pixels in zip(self.corners, self.pixels, strict=True):
            yield box(corner, corner + pixels.shape[1:]), pixels


def box(first: Iterable[int], last: Iterable[int]) -> Slices:
    """Slice all bands of an image (C,H,W) from the pixel `first` (y, x) to the one before `last`."""
    rows, columns = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return slice(None), rows, columns


def trimmed(
    pixels: np.ndarray, corner: np.ndarray, shape: tuple[int, int, int], floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut an image down to the smallest window that holds all of its pixels of more than `floor` in some band.

    Args:
        pixels: (C,n,m). corner: (y, x) of the first in an image of this `shape` (C,H,W), beyond which they may reach.
        floor: (C,).

    Returns:
        The pixels, of which there may be none, and the corner of the window.
    """
    first, last = (np.clip(edge, 0, shape[1:]) for edge in (corner, corner + pixels.shape[1:]))
    inside = pixels[box(first - corner, last - corner)]
    lit = (np.abs(inside) > floor[:, None, None]).any(0)
    rows, columns = (np.flatnonzero(lit.any(axis)) for axis in (1, 0))
    if not len(rows):
        return inside[:, :0, :0].copy(), first * 0
    low, high = np.array([rows[0], columns[0]]), np.array([rows[-1], columns[-1]]) + 1
    return inside[box(low, high)].copy(), first + low
