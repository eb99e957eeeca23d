"""Laws of the builder: what a fit or samples of one observation or several become, from made-up arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_deblended, make_joint

from tfdeblend import plots
from tfdeblend.app.report import Entry
from tfdeblend.catalog import measure
from tfdeblend.catalog.builder import Facts, Fit, build, build_from_samples, with_left_out
from tfdeblend.catalog.measure import Shapes
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.statistics import Sample, SampleStatistics
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.scene import Scene, Source
from tfdeblend.io.json_values import dumps

FACTS: Facts = {"method": "map", "prior": "sersic", "seed": 0, "walltime": 0.03}


def fit_of(result: Deblended, shift: np.ndarray | float = 0.0) -> Fit:
    """The fit whose result this is. shift: of the first observation off the model frame."""
    y, x = (result.views[0].positions + shift).T
    one = np.ones(len(y))
    return Fit(
        models=[view.model for view in result.views],
        light=[view.light for view in result.views],
        backgrounds=[view.background for view in result.views],
        stamps=result.stamps,
        corners=result.corners,
        flux=result.flux,
        flux_cov=result.flux_cov,
        shapes=Shapes(y, x, 3 * one, 0.1 * one, -0.2 * one, np.full((len(y), 5), 0.01)),
        converged=True,
        beyond_prior=np.zeros(len(y), bool),
        calibration=result.calibration,
    )


def sample_of(result: Deblended, factor: float, summary: np.ndarray | None = None) -> Sample:
    """A sample of brighter sources."""
    return Sample(
        models=[view.model + (factor - 1) * view.sources.sum(0) for view in result.views],
        sources=[factor * view.sources for view in result.views],
        backgrounds=[view.background + factor for view in result.views],
        stamps=factor * result.stamps,
        flux=factor * result.flux,
        prior_variance=np.ones(result.stamps.shape),
        beyond_prior=np.arange(len(result.stamps)) == (factor > 1),
        summary=summary,
    )


@pytest.mark.parametrize("make", [make_deblended, make_joint])
def test_fits_come_back_as_results(make) -> None:
    given = make()
    shift = 0.0 if given.calibration is None else given.calibration.shift[0]
    result = build(given.scene, fit_of(given, shift), FACTS)
    for one, other in zip(result.views, given.views, strict=True):
        np.testing.assert_array_equal(one.model, other.model)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-9)
        assert one.scale == pytest.approx(other.scale) and one.undeclared is not None
    np.testing.assert_allclose(result.flux, given.flux)
    np.testing.assert_allclose(np.stack([result.catalog["y"], result.catalog["x"]], 1), given.scene.positions)
    np.testing.assert_allclose(result.catalog["runtime_ms"], 10)
    pixels = [(view.observation.weights > 0).sum() for view in result.views]
    assert result.header["converged"]
    assert result.header["chi2"] == pytest.approx(np.average([view.chi2 for view in result.views], weights=pixels))
    assert {"version", "temperature", "noise0", "fwhm1", "walltime"} <= set(result.header)


def test_a_fit_that_the_prior_does_not_know_or_that_did_not_converge_is_flagged() -> None:
    given = make_deblended()
    fit = replace(fit_of(given), converged=False, beyond_prior=np.array([False, True, False]))
    raised = np.asarray(build(given.scene, fit, FACTS).catalog["flags"])
    np.testing.assert_array_equal(raised & measure.BEYOND_PRIOR > 0, fit.beyond_prior)
    assert (raised & measure.NOT_CONVERGED > 0).all()


@pytest.mark.parametrize("make", [make_deblended, make_joint])
def test_samples_become_means_deviations_and_covariances(make) -> None:
    given, factors = make(), np.array([0.9, 1.0, 1.3])
    statistics = SampleStatistics(given.scene, given.corners, 1.0, keep=True)
    for factor in factors:
        statistics.add(sample_of(given, factor))
    result = build_from_samples(statistics, FACTS | {"method": "sample"}, calibration=given.calibration)
    mean, deviation = factors.mean(), factors.std(ddof=1)
    for one, other in zip(result.views, given.views, strict=True):
        np.testing.assert_allclose(one.sources, mean * other.sources, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.sources_std, deviation * np.abs(other.sources), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.background, other.background + mean)
    np.testing.assert_allclose(result.flux, mean * given.flux)
    np.testing.assert_allclose(result.flux_err, deviation * given.flux)
    np.testing.assert_allclose(result.sample_catalog.flux, factors[:, None, None] * given.flux)
    assert result.sample_catalog.shapes.shape == (3, len(given.stamps), 5)
    np.testing.assert_allclose(result.stamps, mean * given.stamps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.prior_share, (deviation * given.stamps) ** 2, rtol=1e-4, atol=1e-6)
    assert result.samples.shape == (3, *given.stamps.shape)
    assert (result.header["samples"], result.header["modelsig"]) == (3, 1.0)
    np.testing.assert_array_equal(result.catalog["flags"] & measure.BEYOND_PRIOR > 0, [True, True, False])


def test_positions_of_samples_are_those_in_the_first_observation() -> None:
    """Summaries count from the stamp's middle in the model frame, off which the first observation is shifted."""
    given = make_joint()
    statistics = SampleStatistics(given.scene, given.corners, 1.0)
    for move in (-0.5, 0.5):
        statistics.add(sample_of(given, 1.0, np.array([[move, 2 + move, 3, 0.1, 0.2]] * 3)))
    result = build_from_samples(statistics, FACTS, calibration=given.calibration)
    expected = given.corners + given.stamps.shape[-1] // 2 + [0, 2] - np.array([0.1, -0.2])
    np.testing.assert_allclose(np.stack([result.catalog["y"], result.catalog["x"]], 1), expected)
    np.testing.assert_allclose(result.catalog["y_err"], 0.5**0.5)
    assert result.samples is None


def test_one_sample_has_no_spread() -> None:
    given = make_deblended()
    statistics = SampleStatistics(given.scene, given.corners, 1.0)
    statistics.add(sample_of(given, 1.0))
    result = build_from_samples(statistics, FACTS)
    assert np.isnan(result.sources_std).all() and np.isnan(result.flux_err).all()


@pytest.mark.parametrize("make", [make_deblended, make_joint])
def test_sources_that_were_left_out_keep_their_rows(make, tmp_path) -> None:
    """In the order of the scene: without light, numbers or any other flag, in files and measured again too."""
    given = make(samples=2)
    a, b, c = given.scene.sources
    far = [Source(-300, 7, "point", "far"), Source(20, np.nan, id="nowhere")]
    scene = Scene(given.scene.observations, (far[0], a, b, far[1], c))
    alone = build(scene.kept, fit_of(given, 0.0 if given.calibration is None else given.calibration.shift[0]), FACTS)
    views = tuple(replace(view, light_std=Windows.whole(np.abs(view.sources) + 1)) for view in alone.views)
    alone = replace(alone, views=views, samples=given.samples, prior_share=np.ones_like(given.stamps))
    result = with_left_out(alone, scene)
    result.write(tmp_path / "a.fits")
    out, kept = [0, 3], [1, 2, 4]
    for one in (result, Deblended.read(tmp_path / "a.fits")):
        assert one.scene.left_out[out].all() and len(one.scene.observation.notes) == len(scene.observation.notes)
        for table in (one.catalog, measure.remeasure(one)):
            assert table["id"].tolist() == [source.id for source in scene.sources]
            np.testing.assert_array_equal(table["flags"][out], measure.LEFT_OUT)
            assert not table["primary"][out].any() and not (table["flags"][kept] & measure.LEFT_OUT).any()
            np.testing.assert_array_equal(table["x"][out], [7, np.nan])
            for name in set(table.colnames) - {"x", "y", "ra", "dec"}:
                assert table.dtype[name].kind != "f" or np.isnan(table[name][out]).all(), name
        assert (one.catalog[kept].as_array() == alone.catalog.as_array()).all()
        for part, own, axis in (
            (one.stamps, alone.stamps, 0),
            (one.samples, alone.samples, 1),
            (one.corners, alone.corners, 0),
            *((view.sources, each.sources, 0) for view, each in zip(one.views, alone.views, strict=True)),
        ):
            np.testing.assert_array_equal(np.take(part, kept, axis), own)
            assert not np.take(part, out, axis).any()
        assert np.isnan(one.flux_cov[:, out]).all() and np.isnan(one.flux_cov[:, :, out]).all()
        np.testing.assert_array_equal(one.flux_cov[:, kept][:, :, kept], alone.flux_cov)
    result.plot(tmp_path / "a.png")
    plots.samples(result)
    assert '"nowhere"' in dumps(Entry.of(result).document(None))
    assert with_left_out(alone, scene.kept) is alone
