"""The local sky: true under sources and gradients, the same in every cut-out, and none where nothing is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import gaussian

from tfdeblend.data.local_sky import MESH, REACH, local_sky
from tfdeblend.data.observation import Observation

SIGMA = np.array([1.0, 3.0])[:, None, None]
SHAPE = (704, 640)
PSF = gaussian((15, 15), 7, 7, 1.6)


def gradient(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape)
    return 20 + 0.004 * y - 0.002 * x


def crowded(shape: tuple[int, int] = SHAPE, sources: int = 400) -> Observation:
    """Galaxies of all fluxes on a sky with a gradient, both in units of each band's noise."""
    rng = np.random.default_rng(3)
    light = np.zeros(shape)
    for y, x, flux, sigma in zip(
        *rng.uniform(0, np.array(shape), (sources, 2)).T,
        10 ** rng.uniform(1.5, 4, sources),
        rng.uniform(1.6, 4, sources),
        strict=True,
    ):
        rows, columns = (slice(max(int(at) - 30, 0), int(at) + 31) for at in (y, x))
        part = light[rows, columns]
        part += flux * gaussian(part.shape, y - rows.start, x - columns.start, sigma)
    noise = rng.normal(size=(2, *shape))
    return Observation(SIGMA * (light + gradient(shape) + noise), np.broadcast_to(SIGMA**-2, noise.shape), PSF)


def test_sky_is_true_under_sources_and_more_so_than_that_of_sep() -> None:
    """In units of the noise of a pixel."""
    import sep

    one = crowded()
    off = local_sky(one) / SIGMA - gradient(SHAPE)
    assert abs(off.mean()) < 0.02 and np.sqrt((off**2).mean()) < 0.025
    theirs = [sep.Background(np.ascontiguousarray(image), bw=MESH, bh=MESH).back() for image in one.images]
    others = np.stack(theirs) / SIGMA - gradient(SHAPE)
    assert np.sqrt((off**2).mean()) < 0.5 * np.sqrt((others**2).mean())


def test_a_plane_is_a_plane_to_the_edge() -> None:
    images = np.broadcast_to(gradient(SHAPE), (1, *SHAPE))
    off = local_sky(Observation(images, np.ones_like(images), PSF)) - images
    assert np.abs(off).max() < 1e-3


@pytest.mark.parametrize("corner", [(0, 0), (MESH, 0), (2 * MESH, MESH)])
def test_sky_depends_on_the_pixels_around_alone(corner: tuple[int, int]) -> None:
    """That of a cut-out is that of the image, to rounding, wherever it shows REACH pixels around or the image's end."""
    one = crowded()
    rows, columns = (slice(first, size) for first, size in zip(corner, SHAPE, strict=True))
    inner = [slice(first + REACH if first else 0, size) for first, size in zip(corner, SHAPE, strict=True)]
    here = [slice(part.start - first, None) for part, first in zip(inner, corner, strict=True)]
    cut, whole = local_sky(one.cut(rows, columns))[:, *here], local_sky(one)[:, *inner]
    assert cut.size and np.abs(cut - whole).max() < 1e-9


def test_masked_meshes_take_the_sky_around() -> None:
    """Whatever stands in masked pixels; a band without a pixel has none."""
    one = crowded()
    weights = one.weights.copy()
    weights[0, 128:320, 192:448] = 0
    weights[1] = 0
    found = local_sky(replace(one, images=np.where(weights > 0, one.images, 1e6), weights=weights)) / SIGMA
    assert np.abs(found[0] - gradient(SHAPE)).max() < 0.6 and not found[1].any()


def test_images_of_less_than_a_mesh_have_a_sky() -> None:
    one = Observation(np.random.default_rng(0).normal(7, 1, (1, 5, 300)), np.ones((1, 5, 300)), PSF)
    assert np.abs(local_sky(one) - 7).max() < 0.3
    bright = replace(one, images=np.where(np.arange(300) % 2, 50.0, 60.0) + 0 * one.images)
    assert np.isfinite(local_sky(bright)).all() and local_sky(bright).min() > 40


def test_a_flat_sky_is_0_whatever_the_pixels_say() -> None:
    one = crowded((192, 192), 50)
    flat = replace(one, flat=True)
    assert one.sky_levels().all() and not flat.sky_levels().any()
    assert not flat.cut(slice(0, 9), slice(0, 9)).sky_levels().any() and not flat.select(["band0"]).sky_levels().any()
