"""Which shapes scenes are fitted in: those that share one, and stamps that grow where a galaxy is cut."""

from __future__ import annotations

import numpy as np
import pytest
from simulations import BLEND, Galaxy, simulate

from tfdeblend.catalog import measure
from tfdeblend.catalog.measure import side_wanted
from tfdeblend.deblender import Begun, Deblender
from tfdeblend.forward.shapes import BatchShape, ExposureShape, merge_buckets, round_buckets
from tfdeblend.galaxies.priors import ExponentialPrior
from tfdeblend.inference.map_fit import MapOptions

WIDE = Galaxy(8.2, 30.4, (60000, 90000), 1.0, 3.0, (0.0, -0.2))  # half of the image is beyond a stamp of its size


def shape_of(side: int, bands: int, fourier: int = 64, stamp: int = 48) -> BatchShape:
    """Of one observation."""
    own = ExposureShape(tuple(range(bands)), side, 0, 0, True)
    return BatchShape(1, 4, bands, side + 20, 10, fourier, stamp, 0.9, (own,))


def test_scenes_join_a_larger_shape_where_that_costs_less_than_a_compilation() -> None:
    """Every scene stays once, in a shape that holds it; what many scenes share, and what nothing holds, stays."""
    small = shape_of(32, 5)
    wide, crowded = shape_of(48, 5, fourier=80, stamp=64), small._replace(sources=8)
    both = wide._replace(sources=8)
    other, far = shape_of(32, 3), shape_of(192, 5, fourier=240, stamp=96)
    few = {small: [0], wide: [1, 2, 3], crowded: [6], both: [7, 8], other: [9], far: [10]}
    assert merge_buckets(few) == {both: [0, 1, 2, 3, 6, 7, 8], other: [9], far: [10]}
    many = {small: list(range(1000)), wide: [1000], far: list(range(1001, 1010))}
    assert merge_buckets(many) == {small: many[small], far: [*range(1000, 1010)]}


def test_few_scenes_have_a_round_number_of_sources() -> None:
    """Many have a shape of their own, and all stay."""
    one = shape_of(64, 5)._replace(sources=1)
    assert round_buckets({one: [3], one._replace(sources=4): [0], one._replace(sources=5): [1]}) == {
        one._replace(sources=4): [0, 3],
        one._replace(sources=8): [1],
    }
    many = {one: list(range(1000))}
    assert round_buckets(many) == many


def test_one_graph_serves_scenes_of_all_sizes() -> None:
    """It gives what a graph of their own does, and fits of other options have graphs of their own."""
    scenes = [simulate(BLEND[:1], (40, 40))[0], simulate(BLEND, (64, 50))[0], simulate(BLEND[:2], (90, 90))[0]]
    deblender = Deblender("exponential", stars=False)
    together = [deblender.deblend(scene) for scene in scenes]
    assert sum(key[0] == "map" for key in deblender._compiled.made) == 1
    alone = Deblender("exponential", stars=False).deblend(scenes[2])
    np.testing.assert_allclose(together[2].flux, alone.flux, rtol=1e-6)
    other = deblender.like(options=MapOptions(model_error=0.05))
    shape = other._shape(scenes[0], other.prior_of(scenes[0])[0], 0)
    assert other.map_fit(shape, ExponentialPrior).options.model_error == 0.05


def test_larger_stamps_are_not_free() -> None:
    small, large = shape_of(64, 5, fourier=96, stamp=64), shape_of(64, 5, fourier=96, stamp=160)
    many = {small: list(range(1000)), large: [1000]}
    assert merge_buckets(many) == many


def test_no_scene_joins_a_shape_of_smaller_stamps() -> None:
    """It was given larger ones because a galaxy of it reaches beyond them."""
    large = shape_of(64, 5, fourier=96, stamp=64)
    buckets = {large: [0], shape_of(48, 5, fourier=80, stamp=96): [1]}
    assert merge_buckets(buckets) == buckets


@pytest.mark.slow
def test_a_galaxy_beyond_its_stamp_is_fitted_again_with_a_larger_one() -> None:
    """At the image's edge half of the image is beyond a stamp of the image's size; scenes beside it are done once."""
    (large, truth), (small, _) = simulate([WIDE, BLEND[0]], (64, 64)), simulate(BLEND[:1], (64, 64))
    deblender = Deblender("sersic")
    found = dict(deblender.iterate([large, small]))
    assert {index: result.stamps.shape[-1] for index, result in found.items()} == {1: 64, 0: 128}
    assert not found[0].catalog["flags"][0] & measure.TRUNCATED
    far = np.s_[:, 44:]  # rows
    np.testing.assert_allclose(found[0].sources[0][far], truth[0][far], atol=0.05 * truth[0][far].max())
    (cut,) = (
        result for _, result in deblender._in_batches({0: large}, {0: deblender.prior_of(large)}, {0: Begun(0)}, None)
    )
    assert cut.catalog["flags"][0] & measure.TRUNCATED
    assert np.abs(cut.sources[0] - truth[0])[far].max() > 0.5 * truth[0][far].max()


def test_scenes_of_several_observations_join_only_the_same_images() -> None:
    """Scenes join those of a shape that only has more sources, not of other pixels or fewer observations."""
    one = shape_of(32, 3)
    own, coarse = ExposureShape((0, 1), 32, 64, 0, True), ExposureShape((1, 2), 32, 48, 0, False)
    both = one._replace(exposures=(own, coarse))
    crowded, turned = both._replace(sources=8), both._replace(exposures=(own, coarse._replace(kept=64)))
    assert merge_buckets({both: [0], crowded: [1, 2], turned: [3], one: [4]}) == {
        crowded: [0, 1, 2],
        turned: [3],
        one: [4],
    }


@pytest.mark.parametrize(
    ("image", "stamp", "wanted"),
    [
        (24, 48, 48),
        (32, 48, 96),
        (40, 64, 96),
        (64, 64, 128),
        (71, 80, 160),
        (96, 96, 192),
        (200, 96, 192),
        (200, 192, 192),
    ],
)
def test_stamps_grow_as_far_as_the_image_shows(image: int, stamp: int, wanted: int) -> None:
    """Of stamps of ones, in noise of 1; not where all of the flux is on them, or the border is below the noise."""
    scene, _ = simulate(BLEND[:1], (image, image))
    stamps, corners = np.ones((1, 2, stamp, stamp)), np.array([[2, 2]]) - stamp // 2
    flux = stamps.sum((2, 3))
    assert side_wanted(scene, stamps, corners, 1.1 * flux) == wanted
    assert side_wanted(scene, stamps, corners, flux) == stamp
    assert side_wanted(scene, 1e-3 * stamps, corners, 1.1e-3 * flux) == stamp


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_samples_have_larger_stamps_where_needed(alone: bool) -> None:
    """The scene that waits is sampled once, the other, where there is one, without it."""
    scenes = [simulate([WIDE, BLEND[0]], (64, 64))[0], simulate(BLEND[:1], (64, 64))[0]]
    found = dict(Deblender("exponential", "sample", samples=4).iterate(scenes[: 2 - alone]))
    sides = {index: result.stamps.shape[-1] for index, result in found.items()}
    assert sides == ({0: 128} if alone else {1: 64, 0: 128})
    assert all(result.header["samples"] == 4 for result in found.values())
    assert not found[0].catalog["flags"][0] & measure.TRUNCATED
