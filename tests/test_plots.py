"""Pictures show what is in the data: the stretch of all figures, and the bitmap of a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import gaussian, make_deblended, make_joint
from matplotlib.image import imread

from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.plots.bitmap import ScenePlotter, Window, arrange, plot
from tfdeblend.plots.stretch import Stretch, residual_colours, significance


@pytest.fixture(scope="module")
def plotter() -> ScenePlotter:
    return ScenePlotter()


def unit_stretch(bands: int) -> Stretch:
    return Stretch(np.ones(bands), softening=1.0, white=100.0)


def test_brighter_is_brighter_and_sky_is_dark():
    flux = np.array([-5, 0, 1, 10, 100, 1000.0])
    colours = unit_stretch(3)(np.broadcast_to(flux, (3, 1, 6)))[0]
    assert np.all(np.diff(colours.mean(-1)) >= 0)
    np.testing.assert_allclose(colours[0], colours[1], atol=1e-6)
    np.testing.assert_allclose(colours[4:], 1)
    np.testing.assert_allclose(np.ptp(colours, axis=-1), 0, atol=1e-12)  # equal bands are grey


def test_one_band_is_grey_and_three_are_three_colours():
    image = np.random.default_rng(0).normal(5, 10, (1, 8, 8))
    np.testing.assert_allclose(np.ptp(unit_stretch(1)(image), axis=-1), 0, atol=1e-12)
    for band, colour in ((0, 2), (1, 1), (2, 0)):
        shown = unit_stretch(3)(50.0 * (np.arange(3) == band)[:, None, None])[0, 0]
        assert np.argmax(shown) == colour and shown[colour] > 2 * np.delete(shown, colour).max()


@pytest.mark.parametrize("bands", range(1, 8))
def test_no_band_is_left_out(bands: int):
    share = Stretch.groups(np.eye(bands))
    np.testing.assert_allclose(share.sum(1), 1)
    assert (share.sum(0) > 0).all()


def test_light_of_one_sigma_is_seen_beside_a_source_of_thousands():
    image = np.zeros((1, 60, 60))
    image[0, :10, :10], image[0, 30, 30] = 5000.0, 1.0
    stretch = Stretch.fit(Observation(image, np.ones_like(image), gaussian((15, 15), 7, 7, 1.5)))
    shown = stretch(image)[..., 0]
    assert shown[0, 0] > 0.99 and shown[30, 30] > shown[40, 40] + 0.05


def test_red_bands_are_shown_red_also_where_saturated():
    images = np.array([1.0, 2, 3, 4, 5])[:, None, None] * np.array([[5.0, 1000.0]])
    red, green, blue = np.moveaxis(unit_stretch(5)(images)[0], -1, 0)
    assert np.all(red > green) and np.all(green > blue)


def test_zeropoints_bring_bands_to_one_unit():
    images = np.full((3, 1, 1), 20.0) * np.array([1, 10, 100.0])[:, None, None]
    psf, zeropoints = gaussian((15, 15), 7, 7, 1.5), np.array([25, 27.5, 30.0])
    stretch = Stretch.fit(Observation(np.tile(images, (1, 8, 8)), np.ones((3, 8, 8)), psf, zeropoints=zeropoints))
    np.testing.assert_allclose(np.ptp(stretch(images)), 0, atol=1e-9)


def test_significance_has_unit_variance_whatever_the_weights_and_masks():
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.1, 10, (4, 200, 200)) * (rng.uniform(size=(4, 200, 200)) > 0.3)
    residual = rng.normal(size=weights.shape) / np.sqrt(np.maximum(weights, 1e-9))
    sigma = significance(np.where(weights > 0, residual, np.nan), weights)
    assert np.isnan(sigma).mean() == pytest.approx(0.3**4, rel=0.2)
    assert np.nanstd(sigma) == pytest.approx(1, abs=0.02)


def test_residual_is_red_where_data_are_brighter():
    bright, none, faint = residual_colours(np.array([[4.0, 0.0, -4.0]]))[0]
    assert bright[0] > bright[2] and faint[2] > faint[0] and none.min() > 0.9


def test_window_holds_the_source():
    source = gaussian((60, 90), 30, 70, 4.0) * 1e4
    window = Window.around(Windows.whole(source[None, None]), 0, np.array([30.0, 70.0]), floor=1.0)
    rows, columns = np.nonzero(source > 1.0)
    assert window.y <= rows.min() and rows.max() < window.y + window.height
    assert window.x <= columns.min() and columns.max() < window.x + window.width
    assert window.width < 60


@pytest.mark.parametrize("sources", [1, 3, 8, 9, 40])
def test_panels_do_not_overlap_and_fit(sources: int):
    views, panels, height = arrange(Window(0, 0, 60, 90), [Window(0, 0, 16, 16)] * sources)
    covered = np.zeros((height, 1200), int)
    for panel in [*views, *panels]:
        covered[panel.bottom : panel.bottom + panel.height, panel.left : panel.left + panel.width] += 1
    assert covered.max() == 1
    assert covered.sum() == sum(panel.width * panel.height for panel in [*views, *panels])


@pytest.mark.parametrize(
    ("bands", "shape", "sources"),
    [
        ("i", (20, 20), 1),
        ("gr", (60, 30), 2),
        ("gri", (180, 20), 7),
        ("ugrizy", (20, 200), 9),
        ("grizy", (200, 200), 40),
    ],
)
def test_any_scene_can_be_drawn(tmp_path, bands, shape, sources):
    plot(make_deblended(bands=bands, shape=shape, sources=sources), tmp_path / "scene.png")
    image = imread(tmp_path / "scene.png")
    assert image.shape[1] == 1200 and image[..., :3].std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_marks_stand_on_the_sources(plotter):
    """The pixel under a bright source's mark, found through the panel, is the brightest of the model's panel."""
    deblended = make_deblended(shape=(40, 50), sources=1)
    bitmap = plotter.draw(deblended)[::-1].max(-1)
    views, _, _ = arrange(Window(0, 0, 40, 50), [Window(0, 0, 16, 16)])
    view = views[1]
    panel = bitmap[view.bottom : view.bottom + view.height, view.left : view.left + view.width]
    ((x,), (y,)) = view.locate(deblended.scene.positions)
    brightest = np.argwhere(panel == panel.max()).mean(0)
    scale = view.width / 50
    np.testing.assert_allclose(brightest, [y - view.bottom, x - view.left], atol=1.5 * scale)


def test_observations_are_drawn_below_each_other(plotter):
    """The first one as it is alone, then the second on its own pixels."""
    joint = make_joint()
    scene = Scene(joint.scene.observation, joint.scene.sources)
    picture, alone = plotter.draw(joint), plotter.draw(replace(joint, scene=scene, views=joint.views[:1]))
    np.testing.assert_array_equal(picture[: len(alone)], alone)
    assert len(picture) > 1.5 * len(alone) and picture[len(alone) :].std() > 10
