"""Posterior samples of the blends that need them, in place of the maximum of the posterior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tfdeblend.catalog.result import Deblended
from tfdeblend.data.psf import REACH, fwhm
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.inference.parts import FARTHEST


class Fitted(NamedTuple):
    """What a fit says of sources of a tile.

    result: or its error. rows: of the tile's detections, those that its scene has. kept: (K,) bool, which of them
    it measures. corner: (y, x) of the scene's first pixel in what the tile fits. stage: deblend or sample.
    """

    result: Deblended | Exception
    rows: np.ndarray
    kept: np.ndarray
    corner: np.ndarray
    stage: str = "deblend"


def resampled(
    deblender: Deblender, found: Fitted, blend: np.ndarray, own: np.ndarray, reach: np.ndarray, above: float
) -> Iterator[Fitted]:
    """Sample the blends of a maximum in which a source has more than a blendedness, less the light of all others.

    A blend that is too large to be sampled as one is sampled in parts, see `inference.parts`.

    Args:
        deblender: that samples. found: the maximum.
        blend: (K,) labels. own: (K,) bool; blends that have no such source are left as they are.
        reach: (K,) pixels, at which light ends.

    Yields:
        The maximum, for what is not sampled; and of each sampled blend its result, or its error, beside
        which the maximum stands.
    """
    result = found.result
    assert isinstance(result, Deblended)
    high = np.asarray(result.catalog["blendedness"]) > above
    groups = [np.flatnonzero(blend == label) for label in np.intersect1d(blend[high], blend[own])]
    light = result.light.total()
    cut = [_alone(result, light, group, reach[group]) for group in groups]
    left = found.kept.copy()
    for index, sampled in deblender.iterate([scene for scene, _ in cut]) if cut else ():
        group, (_, corner) = groups[index], cut[index]
        if not isinstance(sampled, Exception):
            left[group] = False
        yield Fitted(sampled, found.rows[group], np.ones(len(group), bool), found.corner + corner, "sample")
    yield found._replace(kept=left)


def _alone(result: Deblended, light: np.ndarray, group: np.ndarray, reach: np.ndarray) -> tuple[Scene, np.ndarray]:
    """Cut some sources out of a scene of this `light`, that of all others taken off, and give the corner (y, x)."""
    one, places = result.scene.observation, result.scene.positions[group]
    around = np.clip(reach, REACH * fwhm(one.psf).max(), FARTHEST)[:, None]
    first = np.clip(np.floor((places - around).min(0)).astype(int), 0, one.shape[1:])
    last = np.clip(np.ceil((places + around).max(0)).astype(int) + 1, 0, one.shape[1:])
    rows, columns = (slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True))
    cut = one.cut(rows, columns)
    beyond = light[:, rows, columns].copy()
    for k in group:
        beyond -= result.light.cut(k, first, cut.shape[1:])
    names = [result.scene.sources[k] for k in group]
    sources = [replace(source, y=y, x=x) for source, (y, x) in zip(names, (places - first).tolist(), strict=True)]
    cut = replace(cut, name=f"{one.name}, blend of source {names[0].id}", images=cut.images - beyond)
    return Scene((cut,), tuple(sources)), first
