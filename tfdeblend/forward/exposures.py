"""What the sampling of one blend sees of it: one exposure or several, each on its own pixels.

All of their pixels, whitened, stand in one row [B, n]: the data y of the linear problems that a noise level poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfdeblend.linalg.blocks import flatten as in_a_row
from tfdeblend.linalg.blocks import gather_bands, split
from tfdeblend.linalg.blocks import scatter_bands as among_all
from tfdeblend.linalg.operator import LinearOperator

__all__ = ["View", "among_all", "as_images", "in_a_row"]


class View(NamedTuple):
    """How one exposure shows the model frame.

    bands: its C_e bands, by their number among the frame's. observe: frames [B, C_e, ..., F, F] -> whitened images
    [B, C_e, ..., S_e, S_e]. constant: [B, C_e, S_e, S_e] the whitened image 1.
    """

    bands: tuple[int, ...]
    observe: LinearOperator
    constant: tf.Tensor

    def of(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ...] -> [B, C_e, ...]."""
        return gather_bands(x, self.bands)


def as_images(row: tf.Tensor, views: Sequence[View]) -> list[tf.Tensor]:
    """The inverse of `in_a_row`."""
    return split(row, [view.constant.shape[1:] for view in views])
