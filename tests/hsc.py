"""Blends like HSC's, drawn by the package's own simulator, which the shipped prior is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.scenes import SceneConfig, Simulator
from tfdeblend.simulation.surveys import SURVEYS

HSC = SURVEYS["hsc"]
SHIPPED = "hsc-grizy-64"


def simulated(index: int, **changes) -> tuple[Scene, np.ndarray]:
    """A blend, and the truth (K, C, H, W) of each source as observed."""
    config = SceneConfig(HSC, Population(bright=20, faint=23.5), (2, 3), "uniform", "white", size=60, seed=5)
    drawn = Simulator(replace(config, **changes)).scene(index)
    seen = Observation(
        drawn.images,
        drawn.weights,
        drawn.psfs,
        HSC.bands,
        zeropoints=np.array(HSC.flux_zeropoints),
        pixel_scale=HSC.pixel_scale,
    )
    kinds = np.where(drawn.catalog["is_star"], "point", "galaxy")
    places = zip(drawn.catalog["y"], drawn.catalog["x"], kinds, strict=True)
    return Scene((seen,), tuple(Source(float(y), float(x), str(kind)) for y, x, kind in places)), drawn.truth


def small(index: int = 0) -> Scene:
    """One of 30 x 30 pixels, which a model of 32 takes."""
    return simulated(index, size=30, sources=(2, 3))[0]
