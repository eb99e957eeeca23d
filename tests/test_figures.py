"""Laws of the public figures: their panels and colours, ellipses that are covariances, coverage on the diagonal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.visualization.wcsaxes import WCSAxes
from helpers import make_deblended, make_joint, make_scene, on_sky, result_of
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.stats import norm

from tfdeblend import plots
from tfdeblend.catalog.result import SampleCatalog
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io import npz


def images(figure: Figure) -> list[np.ndarray]:
    """Give the pixels of all panels that show an image, in their order; not of bars of colours."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def sampled(samples: int = 5) -> Any:
    """A result with samples of the fluxes."""
    result = make_deblended(samples=samples)
    fluxes = result.flux + np.random.default_rng(0).normal(scale=5, size=(samples, *result.flux.shape))
    shapes = np.zeros((samples, len(fluxes[0]), 5))
    return replace(result, sample_catalog=SampleCatalog(fluxes, shapes, np.zeros(len(fluxes[0]), int)))


def correlated() -> Any:
    """A result whose first two fluxes share light in the first band."""
    result = make_deblended()
    covariance = result.flux_cov.copy()
    covariance[:, 1, 1] = 9.0
    covariance[0, 0, 1] = covariance[0, 1, 0] = -10.0
    return replace(result, flux_cov=covariance)


def curve(**changes: Any) -> Any:
    """What a light curve of four epochs in two bands tells; the first is off, one measurement is missing."""
    flux = np.array([[0.0, 0.0], [5.0, 7.0], [4.0, np.nan], [2.0, 3.0]])
    scene = SimpleNamespace(bands=("g", "r"), observation=SimpleNamespace(unit="nJy"))
    error = np.where(np.isnan(flux), np.nan, np.array([[0.0], [1.0], [1.0], [1.0]]))
    facts = {"scene": scene, "times": np.arange(4.0), "flux": flux, "flux_err": error, "position": (3.0, 4.0)}
    return SimpleNamespace(**facts | changes)


@pytest.mark.parametrize("make", [make_deblended, make_joint])
@pytest.mark.parametrize("figure", [plots.scene, plots.sources, plots.residuals, plots.corner])
def test_figures_are_whole_and_leave_pyplot_alone(make, figure, tmp_path: Path) -> None:
    drawn = figure(make())
    assert isinstance(drawn, Figure) and drawn._repr_png_().startswith(b"\x89PNG")
    plots.write(drawn, tmp_path / "figure.png", dpi=60)
    assert imread(tmp_path / "figure.png").std() > 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert pyplot.get_fignums() == []


def test_every_image_has_its_panel() -> None:
    joint = make_joint(samples=2)
    assert len(images(plots.scene(joint))) == 2 * 3
    assert len(images(plots.residuals(joint))) == 2 * 2
    assert len(images(plots.sources(joint))) == len(joint.stamps)
    assert len(images(plots.samples(joint))) == len(joint.stamps) * (4 + 2)
    assert len(images(plots.sources(joint, ["2", "0"]))) == 2


def test_axes_are_on_the_sky_where_there_is_a_wcs() -> None:
    for result, kind in ((make_joint(), True), (make_deblended(), False)):
        for figure in (plots.scene(result), plots.sources(result), plots.residuals(result)):
            assert all(isinstance(axes, WCSAxes) == kind for axes in figure.axes if axes.images)
    result = make_joint()
    figure, view = plots.sources(result), result.views[0]
    for axes, k in zip(figure.axes, np.argsort(-np.asarray(result.catalog["snr"])), strict=False):
        seen = axes.wcs.pixel_to_world(*np.ravel(axes.lines[0].get_data()))
        assert seen.separation(view.observation.sky(*view.positions[k])).arcsec < 1e-6


def test_panels_share_a_stretch_and_faint_light_is_seen() -> None:
    """The pixels of a source alone are those of the model that is this source, to the last bit."""
    scene, truth = make_scene(sources=1)
    result = result_of(scene, truth)
    whole, (alone,) = images(plots.scene(result))[1], images(plots.sources(result))
    height, width = alone.shape[:2]
    found = np.lib.stride_tricks.sliding_window_view(whole, alone.shape)[:, :, 0]
    assert (found == alone).all((-3, -2, -1)).any() and (height, width) <= whole.shape[:2]


def test_one_band_is_grey_and_three_are_coloured() -> None:
    for bands, grey in (("i", True), ("gri", False)):
        result = make_deblended(bands=bands)
        for shown in (*images(plots.scene(result))[:2], *images(plots.sources(result))):
            assert (np.ptp(shown, axis=-1).max() < 1e-12) == grey


def test_residuals_are_in_units_of_the_noise() -> None:
    result = make_deblended(bands="gr")
    shown = images(plots.residuals(result))
    for band, one in enumerate(shown):
        expected = (result.residual * np.sqrt(result.scene.observation.weights))[band]
        np.testing.assert_allclose(np.ma.filled(one, np.nan), expected)


def test_samples_must_be_there() -> None:
    with pytest.raises(ValueError, match="expected a result with its samples"):
        plots.samples(make_deblended())


def test_sources_are_named() -> None:
    result = make_deblended(samples=2)
    for figure in (plots.sources, plots.samples, plots.corner):
        with pytest.raises(ValueError, match="expected ids of fitted sources, some of 0, 1, 2, received 7"):
            figure(result, ["0", "7"])
        with pytest.raises(ValueError, match="expected a list of ids"):
            figure(result, "0")


def test_ellipses_are_the_covariance() -> None:
    result = correlated()
    figure = plots.corner(result, ["0", "1"], band="g")
    one, two = figure.axes[2].patches
    angle = np.radians(one.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for ellipse, sigma in ((one, 1), (two, 2)):
        found = turn @ np.diag([(ellipse.width / 2) ** 2, (ellipse.height / 2) ** 2]) @ turn.T
        np.testing.assert_allclose(found, sigma**2 * result.flux_cov[0, :2, :2], rtol=1e-9)
        np.testing.assert_allclose(ellipse.center, result.flux[:2, 0])
    assert figure.axes[2].texts[0].get_text() == "ρ = -0.67"


def test_the_most_correlated_neighbours_are_chosen() -> None:
    figure = plots.corner(correlated(), band="g")
    assert len(figure.axes) == 9
    scene, truth = make_scene(sources=8)
    result = result_of(scene, truth)
    covariance = result.flux_cov.copy()
    for k, m in ((2, 5), (6, 7)):
        covariance[:, k, m] = covariance[:, m, k] = 20.0
    figure = plots.corner(replace(result, flux_cov=covariance))
    assert [axes.get_xlabel() for axes in figure.axes[-4:]] == [f"source {k}" for k in (2, 5, 6, 7)]


def test_samples_of_fluxes_are_the_corner_s_points() -> None:
    result = sampled()
    figure = plots.corner(result, ["0", "2"], band="r")
    assert result.sample_catalog is not None
    np.testing.assert_array_equal(
        np.transpose(figure.axes[2].lines[0].get_data()), result.sample_catalog.flux[:, [0, 2], 1]
    )


def test_sources_without_a_flux_are_refused() -> None:
    result = make_deblended()
    result.catalog["flux_g"][1] = np.nan
    assert len(plots.corner(result, band="g").axes) == 4
    with pytest.raises(ValueError, match="in g, received 1"):
        plots.corner(result, ["0", "1"], band="g")
    with pytest.raises(ValueError, match="expected one of g, r, i, z, y"):
        plots.corner(result, band="u")


def test_coverage_of_exact_pulls_is_the_diagonal() -> None:
    """Quantiles of the normal distribution, the band about them, and pulls of errors that are half too small."""
    exact = norm.ppf((np.arange(2000) + 0.5) / 2000)
    axes = plots.coverage({"exact": exact, "too small": 2 * exact}).axes[0]
    _, right, small = axes.lines
    np.testing.assert_allclose(right.get_ydata(), right.get_xdata(), atol=1e-3)
    p = small.get_xdata()[1:-1]
    np.testing.assert_allclose(small.get_ydata()[1:-1], 2 * norm.cdf(norm.ppf((1 + p) / 2) / 2) - 1, atol=1e-3)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "exact (2000 truths)",
        "too small (2000 truths)",
    ]


def test_the_band_of_coverage_is_binomial() -> None:
    """The band at a probability of one half holds about 95% of 1000 runs of 50 pulls that are right."""
    axes = plots.coverage(norm.ppf((np.arange(50) + 0.5) / 50)).axes[0]
    vertices = axes.collections[0].get_paths()[0].vertices
    low, high = np.sort(np.unique(vertices[np.isclose(vertices[:, 0], 0.5), 1]))[[0, -1]]
    shares = (np.random.default_rng(0).uniform(size=(1000, 50)) < 0.5).mean(1)
    assert np.mean((shares >= low) & (shares <= high)) == pytest.approx(0.95, abs=0.03)


def test_pulls_that_are_not_finite_are_counted() -> None:
    axes = plots.coverage([0.1, np.nan, -2.0]).axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == "(2 of 3 truths)"
    with pytest.raises(ValueError, match="expected some that are finite"):
        plots.coverage({"none": [np.nan]})


def test_pulls_of_samples_are_normal_where_samples_are_right() -> None:
    """Whatever the posterior's form: truth and samples of one log-normal distribution."""
    drawn = np.random.default_rng(0).lognormal(size=(100, 4000))
    pulls = plots.pulls_of_samples(drawn[0], drawn[1:])
    assert np.mean(pulls) == pytest.approx(0, abs=0.05) and np.std(pulls) == pytest.approx(1, abs=0.03)
    low, high = plots.pulls_of_samples(np.array([-1.0, 1e9]), drawn[:, :2])
    assert high < -2 and low > 2  # as of an estimate that is too low, and too high
    assert np.isnan(plots.pulls_of_samples(np.array([np.nan]), drawn[:, :1])).all()


def test_light_curves_show_what_was_measured() -> None:
    axes = plots.light_curve(curve()).axes[0]
    bars = [container.lines[0].get_xydata() for container in axes.containers]
    np.testing.assert_array_equal(bars[0], [[1, 5], [2, 4], [3, 2]])
    np.testing.assert_array_equal(bars[1], [[1, 7], [3, 3]])
    assert axes.get_ylabel() == "flux [nJy]"


def test_existing_axes_are_drawn_on() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plots.coverage(np.linspace(-2, 2, 9), axes=left) is figure
    assert plots.light_curve(curve(), axes=right) is figure
    assert len(figure.axes) == 2 and left.lines and right.lines


def test_iterations_are_columns(tmp_path: Path) -> None:
    """Galaxies of all iterations share one stretch, and the curves are those of the scores."""
    rng = np.random.default_rng(0)
    for k in range(3):
        folder = tmp_path / f"iteration_{k:03d}"
        folder.mkdir()
        scores = {"iteration": k, "log_predictive": -1.0 / (k + 1), "chi2": 1.1}
        scores |= {"dispersion": 0.9, "kept": 0.9**k} if k else {}
        (folder / "scores.json").write_text(json.dumps(scores))
        npz.write(folder / "drawn.npz", {"stamps": rng.uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)})
    figure = plots.em_iterations(tmp_path)
    panels = [axes for axes in figure.axes if axes.images]
    curves = [line.get_xydata() for axes in figure.axes if not axes.images for line in axes.lines]
    assert len(panels) == 6
    np.testing.assert_allclose(curves[0], [[0, -1], [1, -0.5], [2, -1 / 3]])
    np.testing.assert_allclose(curves[3], [[1, 0.9], [2, 0.81]])
    (tmp_path / "iteration_001" / "drawn.npz").unlink()
    with pytest.raises(DataError, match=r"drawn\.npz: expected galaxies drawn from the prior"):
        plots.em_iterations(tmp_path)
    with pytest.raises(DataError, match="without iterations"):
        plots.em_iterations(tmp_path / "elsewhere")


@pytest.mark.parametrize("scale", [None, 0.168, 0.03])
def test_the_bar_is_as_long_as_it_says(scale: float | None) -> None:
    """On pixels of any size, and of pixels where their size is unknown."""
    result = make_deblended()
    observation = replace(result.scene.observation, pixel_scale=scale)
    view = replace(result.views[0], observation=observation)
    axes = plots.scene(replace(result, scene=Scene(observation, result.scene.sources), views=(view,))).axes[0]
    (bar,) = [artist for artist in axes.artists if hasattr(artist, "size_bar")]
    number = float(bar.txt_label.get_text().removesuffix(" pixels").removesuffix("″"))
    length = bar.size_bar.get_children()[0].get_width()
    assert length * (scale or 1) == pytest.approx(number)
    assert 0.1 * 50 < length < 0.36 * 50


def test_turned_and_masked_fields_are_drawn() -> None:
    """Also where all of a band is masked, as its title says."""
    scene, truth = make_scene(bands="gr")
    weights = scene.observation.weights * np.array([0, 1])[:, None, None]
    result = result_of(Scene(replace(scene.observation, wcs=on_sky(0.2, 37), weights=weights), scene.sources), truth)
    figure = plots.residuals(result)
    assert len(images(plots.scene(result))) == 3 and len(images(figure)) == 2
    assert figure.axes[0].get_title().endswith("none, all masked")
