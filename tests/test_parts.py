"""A large field in parts: each source is one part's own, and is what a fit of the whole field finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulations import Galaxy, simulate

from tfdeblend.catalog import measure
from tfdeblend.catalog.mosaic import Mosaic
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.inference import parts

SIDE = 208  # pixels: more than what is fitted as a whole


def field(seed: int = 0) -> tuple[Scene, np.ndarray]:
    """A blend of three galaxies, a bright galaxy with a faint neighbour 17 pixels away, and two alone."""
    galaxies = [
        Galaxy(40.3, 42.2, (4000, 6000), 1.0, 0.5, (0.2, 0.1)),
        Galaxy(43.6, 50.4, (3000, 2500), 1.0, 0.4, (-0.1, 0.2)),
        Galaxy(48.1, 43.7, (1500, 1500), 1.0, 0.4),
        Galaxy(150.2, 60.1, (6000, 6000), 1.0, 0.7),
        Galaxy(166.0, 66.3, (300, 250), 1.0, 0.3),
        Galaxy(60.4, 160.9, (2500, 1800), 1.0, 0.5, (0.0, 0.2)),
        Galaxy(170.7, 180.2, (900, 1200), 1.0, 0.4),
    ]
    scene, _ = simulate(galaxies, (SIDE, SIDE), seed=seed)
    return scene, np.array([galaxy.flux for galaxy in galaxies])


@pytest.fixture(scope="module")
def found() -> Deblended:
    return Deblender(prior="exponential").deblend(field()[0])


def test_each_source_is_one_parts_own() -> None:
    rng = np.random.default_rng(1)
    galaxies = [Galaxy(*rng.uniform(5, 95, 2), (10 ** rng.uniform(2, 4),) * 2) for _ in range(40)]
    scene, _ = simulate(galaxies, (100, 100))
    found = parts.split(scene)
    own = np.concatenate([part.rows[part.own] for part in found])
    assert sorted(own) == list(range(40))
    for part in found:
        assert len(part.rows) <= parts.MOST
        assert [source.id for source in part.scene.sources] == [scene.sources[row].id for row in part.rows]
        np.testing.assert_allclose(part.scene.positions + part.corner, scene.positions[part.rows])
        np.testing.assert_array_equal(part.scene.observation.images, scene.observation.images[:, *part.window])
        y, x = np.round(part.scene.positions[part.own]).astype(int).T
        assert not part.foreign[y, x].any()


def test_small_scenes_are_not_cut() -> None:
    assert not parts.is_large(simulate()[0])
    assert parts.is_large(field()[0])


def test_a_blend_is_in_one_part_and_what_is_alone_in_its_own() -> None:
    together = [sorted(part.rows.tolist()) for part in parts.split(field()[0])]
    assert [0, 1, 2] in together
    assert [5] in together and [6] in together


def test_fluxes_are_those_of_the_whole(found: Deblended, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, truth = field()
    error = found.flux_err
    assert np.abs((found.flux - truth) / error).max() < 4
    assert found.header["parts"] > 1 and found.header["converged"]
    assert found.chi2 == pytest.approx(1, abs=0.03)
    monkeypatch.setattr(parts, "is_large", lambda scene: False)
    whole = Deblender(prior="exponential").deblend(scene)
    assert np.abs((found.flux - whole.flux) / error).max() < 0.2
    np.testing.assert_allclose(error, whole.flux_err, rtol=0.1)
    np.testing.assert_allclose(found.flux_cov[0, 0, 1], whole.flux_cov[0, 0, 1], rtol=0.1)
    np.testing.assert_allclose(found.catalog["size"], whole.catalog["size"], rtol=0.1)
    assert np.abs(found.model - whole.model).max() < 0.5  # of a pixel's noise


def test_sources_add_up_to_the_model(found: Deblended) -> None:
    np.testing.assert_allclose(found.sources.sum(0) + found.background[:, None, None], found.model, atol=1e-3)


def test_light_is_kept_where_it_is_seen(found: Deblended) -> None:
    noise = found.scene.observation.weights.max((1, 2)) ** -0.5
    assert sum(pixels.size for pixels in found.light.pixels) < 0.1 * found.sources.size
    for k, pixels in enumerate(found.light.pixels):
        edge = np.concatenate([pixels[:, [0, -1]].reshape(2, -1), pixels[:, :, [0, -1]].reshape(2, -1)], 1)
        assert (np.abs(edge).max(1) < 0.1 * noise).all(), k  # which falls off fast: what lies beyond is 0.001 at most


def test_a_mosaic_shows_sources_as_their_parts_do() -> None:
    scene, _ = field()
    piece = next(part for part in parts.split(scene) if len(part.rows) == 3)
    result = Deblender(prior="exponential").deblend(piece.scene)
    whole = replace(scene, sources=tuple(scene.sources[row] for row in piece.rows))
    mosaic = Mosaic(whole, [replace(piece, rows=np.arange(3))], np.zeros(2))
    mosaic.keep(0, result)
    shown = mosaic.light.dense[:, :, *piece.window]
    np.testing.assert_allclose(shown, result.sources, atol=0.02)  # of a peak of 100


def test_a_field_whose_result_is_too_large_is_refused_before_anything_is_fitted() -> None:
    with pytest.raises(DataError, match=r"expected a field whose result takes at most 0.001 GB .*, received 7 sources"):
        Deblender(prior="exponential", memory=0.001).deblend(field()[0])


def test_extents_do_not_depend_on_the_sky() -> None:
    scene, _ = field()
    one = scene.observation
    lit = replace(scene, observations=(replace(one, images=one.images + 30),))
    for found, same in zip(parts.extents(lit), parts.extents(scene), strict=True):
        np.testing.assert_allclose(found, same, rtol=0.05)


def test_a_masked_core_hides_no_wings() -> None:
    scene, _ = field()
    one = scene.observation
    y, x = np.indices(one.shape[1:])
    core = np.hypot(y - 150.2, x - 60.1) < 3
    masked = replace(scene, observations=(replace(one, weights=np.where(core, 0, one.weights)),))
    assert 0.9 < parts.extents(masked)[1][3] / parts.extents(scene)[1][3] < 2  # as moments see a hole


def test_a_background_is_that_of_the_whole_field() -> None:
    scene, truth = field()
    one = scene.observation
    lit = replace(scene, observations=(replace(one, images=one.images + 30),))
    found = Deblender(prior="exponential", background=True).deblend(lit)
    np.testing.assert_allclose(found.background, 30, atol=0.03)
    assert np.abs((found.flux - truth) / found.flux_err).max() < 4
    assert found.chi2 == pytest.approx(1, abs=0.03)


def test_sources_outside_and_under_masks_are_done() -> None:
    """A bright galaxy covers all of the image that one outside could be seen in; another one's core is masked."""
    galaxies = [Galaxy(100, 4, (8000, 8000), 1.0, 0.8), Galaxy(97, -7, (900, 900)), Galaxy(160, 150, (4000, 4000))]
    scene, _ = simulate(galaxies, (SIDE, SIDE))
    one = scene.observation
    y, x = np.indices(one.shape[1:])
    weights = np.where(np.hypot(y - 160, x - 150) < 3, 0, one.weights)
    found = Deblender(prior="exponential").deblend(replace(scene, observations=(replace(one, weights=weights),)))
    assert found.flux[0] == pytest.approx([8000, 8000], rel=0.05)
    assert found.flux[2] == pytest.approx([4000, 4000], rel=0.1)
    assert found.catalog["flags"][1] & measure.UNSEEN  # as it would be in a fit of the whole
    assert np.linalg.eigvalsh(found.flux_cov).min() > 0


def test_what_a_prior_is_not_for_is_refused_of_the_whole() -> None:
    with pytest.raises(DataError, match=r"^blend0: prior hsc-grizy-64: expected bands g, r, i, z, y"):
        Deblender(prior="hsc-grizy-64").deblend(field()[0])


@pytest.mark.slow
def test_samples_in_parts() -> None:
    scene, truth = field()
    found = Deblender(prior="exponential", method="sample", samples=4, keep_samples=True).deblend(scene)
    assert found.samples is not None and found.samples.shape[:2] == (4, 7)
    assert found.sources_std is not None and found.sources_std.shape == found.sources.shape
    assert found.header["samples"] == 4 and found.header["method"] == "sample"
    assert found.header["sampler"] == "nuts" and "converged" not in found.header
    np.testing.assert_allclose(found.samples.mean(0), found.stamps, atol=1e-3 * found.stamps.max())
    np.testing.assert_allclose(found.flux, truth, rtol=0.3)
    drawn = found.sample_catalog
    np.testing.assert_allclose(drawn.flux.mean(0), found.flux, rtol=1e-4)
    np.testing.assert_allclose(drawn.shapes[..., :2].mean(0), np.stack([found.catalog["y"], found.catalog["x"]], 1))
    together = (found.flux_cov != 0).any(0)
    assert (drawn.group[:, None] == drawn.group)[together].all()
