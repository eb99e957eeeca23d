"""The whole way from scenes to catalogues, against the truth of GalSim's blends, and laws that every result obeys."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import gaussian, make_scene, result_of
from scipy.ndimage import map_coordinates
from simulations import BLEND, Galaxy, random_blends, simulate

from tfdeblend.catalog import measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene, Source
from tfdeblend.deblender import Chunk, Deblender
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import scene_shape, stamp_side
from tfdeblend.galaxies.moments import moments
from tfdeblend.galaxies.priors import BulgeDiskPrior, GalaxyPrior, SersicPrior
from tfdeblend.inference import priors
from tfdeblend.inference.map_fit import MapFit, MapOptions, MapResult
from tfdeblend.inference.nonparametric import NonparametricFit

FLUXES = np.array([galaxy.flux for galaxy in BLEND], float)
STAR = Galaxy(18.4, 21.7, (2000, 3000), radius=0)


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    """Shared, so that each shape is compiled once."""
    return Deblender()


@pytest.fixture(scope="module")
def blend(deblender: Deblender) -> Deblended:
    return deblender.deblend(simulate()[0])


def fluxes(result: Deblended, column: str = "flux") -> np.ndarray:
    """(K, C)."""
    return np.stack([result.catalog[f"{column}_{band}"] for band in result.scene.observation.bands], 1)


def pulls(result: Deblended, truth: np.ndarray) -> np.ndarray:
    return (fluxes(result) - truth) / fluxes(result, "flux_err")


def assert_finite(result: Deblended) -> None:
    for name in ("model", "sources", "stamps", "corners", "background", "flux_cov"):
        assert np.isfinite(getattr(result, name)).all(), name
    for name in result.catalog.colnames:
        if result.catalog[name].dtype.kind == "f":
            assert np.isfinite(result.catalog[name]).all(), name
    assert all(np.isfinite(value) for value in result.header.values() if isinstance(value, float))


def in_units(scene: Scene, factor: float) -> Scene:
    """The same data with another unit of flux."""
    seen = scene.observation
    images, weights = seen.images.astype(float) * factor, seen.weights / factor**2
    return replace(scene, observations=replace(seen, images=images, weights=weights))


# -- against the truth


def test_fluxes_of_bright_blends_are_the_truth() -> None:
    """Within 5 sigma and a few percent, and errors are about the scatter, for galaxies of the simulation's own kind."""
    blends = random_blends(8)
    results = Deblender(prior="sersic").deblend([scene for scene, _, _ in blends])
    assert [result.scene for result in results] == [scene for scene, _, _ in blends]
    found = np.stack([pulls(result, truth) for result, (_, _, truth) in zip(results, blends, strict=True)])
    assert np.abs(found).max() < 5
    assert 0.3 < np.sqrt(np.mean(found**2)) < 1.5
    ratios = np.stack([fluxes(result) / truth for result, (_, _, truth) in zip(results, blends, strict=True)])
    assert np.median(np.abs(ratios - 1)) < 0.02
    assert np.abs(ratios - 1).max() < 0.1
    for result in results:
        assert_finite(result)
        assert result.header["converged"] and not result.catalog["flags"].any()
        assert 0.8 < result.chi2 < 1.2


def test_images_positions_and_shapes_are_the_truth(blend: Deblended) -> None:
    _, truth = simulate()
    assert np.abs(blend.sources - truth).max() < 0.05 * truth.max()
    np.testing.assert_allclose(blend.sources.sum(0), blend.model, atol=1e-4 * truth.max())
    table = blend.catalog
    for column, expected in {
        "y": [galaxy.y for galaxy in BLEND],
        "x": [galaxy.x for galaxy in BLEND],
        "size": [galaxy.radius / 0.2 for galaxy in BLEND],
        "e1": [galaxy.shear[0] for galaxy in BLEND],
        "e2": [galaxy.shear[1] for galaxy in BLEND],
    }.items():
        assert (np.abs(table[column] - expected) < 5 * table[f"{column}_err"] + 1e-3).all(), column
    assert (table["size_err"] < 0.2 * table["size"]).all()


def test_errors_know_of_the_neighbours(blend: Deblended) -> None:
    """Covariances are symmetric and positive, their diagonal is the catalogue's, and overlap anticorrelates fluxes."""
    covariance = blend.flux_cov
    np.testing.assert_allclose(covariance, covariance.swapaxes(1, 2), rtol=1e-6)
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    errors = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
    np.testing.assert_allclose(fluxes(blend, "flux_err"), errors)
    assert (covariance[:, 0, 1] < 0).all()


def test_a_bright_source_outside_of_the_image_is_fitted_and_one_further_out_left_out(deblender: Deblender) -> None:
    """The neighbour of the one just outside is then right, which it is not without it; the far one changes nothing."""
    outside = Galaxy(24.0, -3.0, (8000, 9000), radius=0.5)
    beside = Galaxy(22.0, 4.0, (600, 700), radius=0.5)
    scene, _ = simulate((outside, beside))
    far = Scene(scene.observations, (Source(400, 3, id="far"), *scene.sources))
    declared, result, without = deblender.deblend([scene, far, Scene(scene.observations, scene.sources[1:])])
    assert np.abs(pulls(declared, np.array([outside.flux, beside.flux]))).max() < 5
    assert np.abs(pulls(without, np.array([beside.flux]))).max() > 20
    assert declared.catalog["flags"][0] == measure.EDGE
    assert result.scene.left_out.tolist() == [True, False, False]
    assert result.catalog["flags"][0] == measure.LEFT_OUT and np.isnan(fluxes(result)[0]).all()
    moved = np.abs(fluxes(result)[1:] - fluxes(declared)) / declared.flux_err
    assert moved.max() < MapOptions().tolerance  # within which a fit of the same numbers may stop elsewhere


def test_points(deblender: Deblender) -> None:
    scene, truth = simulate((BLEND[0], STAR))
    result = deblender.deblend(scene)
    assert np.abs(pulls(result, np.array([BLEND[0].flux, STAR.flux]))).max() < 5
    np.testing.assert_allclose(fluxes(result)[1], STAR.flux, rtol=0.05)
    assert np.abs(result.sources[1] - truth[1]).max() < 0.05 * truth[1].max()
    assert result.catalog["size"][1] < 1e-2 < result.catalog["size"][0]
    assert list(result.catalog["kind"]) == ["galaxy", "point"]


def test_one_source(deblender: Deblender) -> None:
    scene, _ = simulate(BLEND[:1])
    result = deblender.deblend(scene)
    assert np.abs(pulls(result, FLUXES[:1])).max() < 5
    assert result.catalog["blendedness"][0] == pytest.approx(0, abs=1e-6)
    assert result.sources.shape == (1, 2, 32, 32) and result.flux_cov.shape == (2, 1, 1)


def test_negative_light_is_held_back(deblender: Deblender) -> None:
    """A source declared in a hole of 300 becomes less negative than the hole, and its neighbour stays what it is."""
    scene, _ = simulate(BLEND[:1])
    images = scene.observation.images.astype(float)
    images[:, 23:26, 23:26] -= 300 / 9
    hole = replace(scene.observation, images=images)
    result = deblender.deblend(replace(scene, observations=hole, sources=(*scene.sources, Source(24, 24, id="hole"))))
    assert_finite(result)
    assert ((fluxes(result)[1] > -250) & (fluxes(result)[1] < 0)).all()
    assert np.abs(pulls(result, FLUXES[:1])[0]).max() < 5


def test_background_is_fitted() -> None:
    scene, _ = simulate(background=3.0)
    result = Deblender(background=True).deblend(scene)
    np.testing.assert_allclose(result.background, 3, atol=0.3)
    assert np.abs(pulls(result, FLUXES)).max() < 5
    np.testing.assert_allclose(result.model, result.sources.sum(0) + result.background[:, None, None], atol=0.02)


@pytest.mark.parametrize("prior", ["exponential", "bulge-disk"])
def test_other_priors(prior: str) -> None:
    galaxies = [galaxy._replace(index=1.0) for galaxy in BLEND]
    result = Deblender(prior).deblend(simulate(galaxies)[0])
    assert_finite(result)
    assert result.header["prior"] == prior and result.header["converged"]
    np.testing.assert_allclose(fluxes(result), FLUXES, rtol=0.1)
    assert np.abs(pulls(result, FLUXES)).max() < 5


# -- laws


@pytest.mark.parametrize("factor", [1e-9, 1e9, 1e-20])
def test_units_of_flux_do_not_matter(deblender: Deblender, blend: Deblended, factor: float) -> None:
    scaled = deblender.deblend(in_units(simulate()[0], factor))
    errors = fluxes(blend, "flux_err")
    np.testing.assert_allclose(fluxes(scaled) / factor, fluxes(blend), atol=0.05 * errors.min())
    np.testing.assert_allclose(fluxes(scaled, "flux_err") / factor, errors, rtol=1e-2)
    np.testing.assert_allclose(scaled.model / factor, blend.model, atol=1e-3 * blend.model.max())
    np.testing.assert_allclose(scaled.catalog["snr"], blend.catalog["snr"], rtol=1e-2)
    assert scaled.chi2 == pytest.approx(blend.chi2, rel=1e-3)
    assert list(scaled.catalog["flags"]) == list(blend.catalog["flags"])


@pytest.mark.slow
def test_batch_mates_do_not_matter(deblender: Deblender, blend: Deblended) -> None:
    """Alone and among seven others a scene has the same result, to a small part of its errors."""
    scenes = [scene for scene, _, _ in random_blends(7)]
    together = deblender.deblend([*scenes[:3], simulate()[0], *scenes[3:]])[3]
    errors = fluxes(blend, "flux_err")
    assert (np.abs(fluxes(together) - fluxes(blend)) < 0.05 * errors).all()
    np.testing.assert_allclose(fluxes(together, "flux_err"), errors, rtol=1e-2)
    np.testing.assert_allclose(together.model, blend.model, atol=1e-3 * blend.model.max())
    assert list(together.catalog["id"]) == list(blend.catalog["id"])


def test_errors_of_fluxes_have_the_profiles_own(deblender: Deblender, blend: Deblended) -> None:
    """In quadrature, source by source; covariances between neighbours are the data's."""
    without = Deblender(options=MapOptions(profile_error=0)).deblend(simulate()[0])
    own = deblender.options.profile_error * fluxes(blend)
    np.testing.assert_allclose(fluxes(blend, "flux_err"), np.hypot(fluxes(without, "flux_err"), own), rtol=1e-3)
    off = ~np.eye(len(own), dtype=bool)
    np.testing.assert_allclose(blend.flux_cov[:, off], without.flux_cov[:, off], rtol=1e-3)


def test_results_repeat_to_the_bit(deblender: Deblender, blend: Deblended) -> None:
    again = deblender.deblend(simulate()[0])
    np.testing.assert_array_equal(again.model, blend.model)
    np.testing.assert_array_equal(fluxes(again), fluxes(blend))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SersicPrior, BulgeDiskPrior])
def test_starts_do_not_matter(kind: type[GalaxyPrior]) -> None:
    """Zeros, moments and other sources' moments lead to one maximum."""
    scenes = [scene for scene, _, _ in random_blends(4, seed=1)]
    shape = scene_shape(scenes[0], stamp_side(scenes[0]))._replace(blends=4)
    batch, fit = Batch.build(scenes, shape), MapFit(kind(shape.bands), shape)
    start = np.zeros((4, shape.sources, fit.prior.size), np.float32)
    for row, scene in enumerate(scenes):
        radius, ellipticity = (tf.constant(part, tf.float32) for part in moments(scene))
        start[row, : len(scene.sources)] = fit.prior.start(radius, ellipticity)
    shuffled = start.copy()
    shuffled[:, :3] = start[::-1, [2, 0, 1]]
    results: list[MapResult] = [fit(batch.tensors, first) for first in (np.zeros_like(start), start, shuffled)]
    for other in results[1:]:
        linear = results[0].covariance.linear.numpy()  # [B, C, K, C, K]
        for b in range(4):
            for c in range(shape.bands):
                error = np.sqrt(np.diag(linear[b, c, :3, c, :3]))
                moved = results[0].state.flux[b, :3, c].numpy() - other.state.flux[b, :3, c].numpy()
                assert (np.abs(moved) < 0.1 * error).all()
        np.testing.assert_allclose(other.chi2, results[0].chi2, rtol=1e-3)


def test_a_fit_that_goes_on_ends_where_it_would_have_ended() -> None:
    """Also from rounds in which the prior is still stiff; a batch's other blend, which is done, stays as it is."""
    scenes = simulate()[0], simulate(BLEND[:1])[0]
    shape = scene_shape(scenes[0], 48)._replace(blends=2)
    fit, tensors = MapFit(SersicPrior(shape.bands), shape), Batch.build(scenes, shape).tensors
    whole, some = fit(tensors), fit(tensors, rounds=2)
    assert not whole.unfinished.numpy().any() and some.unfinished.numpy().any() and (some.stiffness.numpy() > 1).any()
    found = fit.go_on(tensors, some, 28)
    assert not found.unfinished.numpy().any()
    error = np.sqrt(np.einsum("bckck->bkc", whole.covariance.linear.numpy()))
    assert (np.abs(found.state.flux - whole.state.flux) <= 2 * MapOptions().tolerance * error).all()
    assert fit.go_on(tensors, whole, 30) is whole


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_a_band_with_few_pixels_beside_a_free_background(pixels: int) -> None:
    """Less a constant they say next to nothing, and rounding all the more."""
    scene, _ = simulate(BLEND[:1])
    one = scene.observation
    weights = one.weights.copy()
    weights[0] = 0
    weights[0, 12, 14 : 14 + pixels] = one.weights[0, 12, 14 : 14 + pixels]
    result = Deblender("bulge-disk", background=True).deblend(Scene((replace(one, weights=weights),), scene.sources))
    assert np.isfinite(result.flux).all() and result.header["converged"]


def test_a_fit_that_is_cut_short_says_so() -> None:
    """Under the stiff prior of its first rounds no blend counts as done, and errors are those of the prior as it is."""
    scene, _ = simulate()
    short, whole = (Deblender(options=MapOptions(rounds=rounds)).deblend(scene) for rounds in (1, 30))
    assert not short.header["converged"] and (np.asarray(short.catalog["flags"]) & measure.NOT_CONVERGED).all()
    assert whole.header["converged"]
    assert (short.catalog["size_err"] > 0.3 * whole.catalog["size_err"]).all()


# -- what may go wrong


def test_one_bad_scene_does_not_stop_the_others(deblender: Deblender) -> None:
    """An undersampled PSF comes back as that scene's error."""
    narrow = gaussian((15, 15), 7, 7, 0.3)
    good, _ = simulate()
    bad, _ = simulate(psf=narrow / narrow.sum(), name="narrow")
    outcomes = dict(deblender.iterate([bad, good]))
    assert isinstance(outcomes[0], DataError) and "narrow: psf: expected" in str(outcomes[0])
    assert isinstance(outcomes[1], Deblended)
    with pytest.raises(DataError, match="undersampled"):
        deblender.deblend([good, bad])


def test_sources_almost_on_top_of_each_other(deblender: Deblender) -> None:
    """Twins that nothing tells apart: finite, their sum is the truth, and the errors say that each alone is unknown."""
    scene, _ = simulate(BLEND[:1])
    twins = replace(scene, sources=(Source(14, 12, id="a"), Source(14, 12.3, id="b")))
    result = deblender.deblend(twins)
    assert_finite(result)
    np.testing.assert_allclose(fluxes(result).sum(0), FLUXES[0], rtol=0.05)
    assert (fluxes(result, "flux_err") > 100).all()


def test_a_band_all_masked(deblender: Deblender, blend: Deblended) -> None:
    """The other band is fitted as ever, and the flag tells."""
    weights = simulate()[0].observation.weights.copy()
    weights[1] = 0
    result = deblender.deblend(simulate(weights=weights)[0])
    for name in ("model", "sources", "stamps", "background"):
        assert np.isfinite(getattr(result, name)).all()
    assert (np.abs(pulls(result, FLUXES)[:, 0]) < 5).all()
    assert np.isnan(result.catalog["flux_r"]).all() and np.isnan(result.catalog["flux_err_r"]).all()
    assert (np.asarray(result.catalog["flags"]) & measure.MASKED).all()


def test_a_source_masked_in_one_band(deblender: Deblender) -> None:
    """Its flux there is NaN and a flag tells; the other band, and the other sources, are fitted as ever."""
    scene, _ = simulate()
    weights = scene.observation.weights.copy()
    y, x = np.indices(weights.shape[1:])
    row, column = scene.positions[2]
    weights[1, np.hypot(y - row, x - column) < 9] = 0
    result = deblender.deblend(replace(scene, observations=replace(scene.observation, weights=weights)))
    flux = fluxes(result)
    assert np.isnan(flux[2, 1]) and np.isfinite(np.delete(flux.ravel(), 5)).all()
    assert [bool(flag & measure.UNSEEN) for flag in result.catalog["flags"]] == [False, False, True]
    assert (np.abs(pulls(result, FLUXES))[[0, 1, 2, 0], [0, 0, 0, 1]] < 5).all()


def test_masked_pixels_do_not_matter(deblender: Deblender) -> None:
    """Whatever is in them: results are the same to the bit."""
    scene, _ = simulate()
    weights, images = scene.observation.weights.copy(), scene.observation.images.copy()
    weights[:, 4:9, 3:8] = 0
    results = []
    for value in (0.0, 1e6, np.nan):
        images[:, 4:9, 3:8] = value
        masked = replace(scene, observations=replace(scene.observation, images=images, weights=weights))
        results.append(deblender.deblend(masked))
    for other in results[1:]:
        np.testing.assert_array_equal(other.model, results[0].model)
        np.testing.assert_array_equal(fluxes(other), fluxes(results[0]))


def test_noise_alone_gives_no_flux(deblender: Deblender) -> None:
    result = deblender.deblend(simulate([galaxy._replace(flux=(1e-3, 1e-3)) for galaxy in BLEND])[0])
    assert_finite(result)
    assert np.abs(pulls(result, np.zeros((3, 2)))).max() < 5


@pytest.mark.parametrize("scarce", [False, True], ids=["number", "memory"])
def test_a_batch_that_fails_is_done_in_halves(monkeypatch: pytest.MonkeyPatch, scarce: bool) -> None:
    """Until the scene that ails fails alone; in smaller shapes only where memory is scarce."""
    scenes = [make_scene(f"scene {number}")[0] for number in range(7)]
    shapes = []

    def results(chunk: Chunk, wanted: dict[int, int] | None) -> Iterator[tuple[int, Deblended]]:
        shapes.append(chunk.shape.blends)
        if scarce and chunk.shape.blends > 2:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        if 4 in chunk.indices:
            raise tf.errors.InvalidArgumentError(None, None, "no eigenvalues")
        for index, scene in zip(chunk.indices, chunk.scenes, strict=True):
            yield index, result_of(scene, np.ones((3, 5, 40, 50), np.float32))

    monkeypatch.setattr(Chunk, "results", results)
    found = dict(Deblender("exponential", stamp=48, batch_size=8).iterate(scenes))
    assert sorted(found) == list(range(7))
    assert [index for index, result in found.items() if isinstance(result, DataError)] == [4]
    assert set(shapes) == ({8, 4, 2} if scarce else {8})


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"prior: expected one of auto, .*received 'sersik'"):
        Deblender("sersik")
    with pytest.raises(ValueError, match="method: expected one of map, sample, received 'mcmc'"):
        Deblender(method="mcmc")
    with pytest.raises(TypeError, match="prior: expected the name of a prior, the path of one, or a prior, received a"):
        Deblender(3)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused_in_one_line(deblender: Deblender) -> None:
    scene = simulate()[0]
    with pytest.raises(
        TypeError, match="scenes: expected a Scene or an Observation, or a list of them, received a str"
    ):
        deblender.deblend("blend.npz")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"received a PosixPath; Scene.read reads files"):
        deblender.deblend([scene, Path("blend.npz")])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"scenes: expected .* received a ndarray"):
        deblender.deblend(scene.observation.images)  # type: ignore[call-overload]


def test_it_can_be_pickled(deblender: Deblender, blend: Deblended) -> None:
    """A compiled deblender is pickled with its settings only; workers compile again what they need."""
    copy = pickle.loads(pickle.dumps(replace(deblender, prior="sersic", samples=5)))
    assert copy == replace(deblender, prior="sersic", samples=5)
    assert copy.prior_of(blend.scene)[0].name == "sersic"
    assert pickle.loads(pickle.dumps(deblender)) == deblender


def test_a_prior_is_an_object(blend: Deblended) -> None:
    """It says why it is not for a scene; a denoiser is one, too."""
    learned = priors.find("hsc-grizy-64")
    assert isinstance(learned, priors.LearnedPrior) and learned.problem(blend.scene)
    assert learned.problem(blend.scene) == "expected bands g, r, i, z, y, received g, r"
    same = priors.find(learned.denoiser)
    assert isinstance(same, priors.LearnedPrior) and same.denoiser is learned.denoiser
    assert priors.find(learned) is learned and Deblender(learned).prior_of(blend.scene)[0] is learned


# -- non-parametric


def falls_along_rays(stamp: np.ndarray, center: np.ndarray) -> float:
    """The largest rise along 32 rays from `center`, over the peak."""
    radii = np.arange(0, len(stamp) // 2 - 4, 0.5)
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)[:, None]
    points = np.stack([center[0] + radii * np.sin(angles), center[1] + radii * np.cos(angles)])
    profile = map_coordinates(stamp.astype(float), points, order=3, mode="nearest")
    return float(np.diff(profile, axis=1).max() / stamp.max())


@pytest.fixture(scope="module")
def nonparametric() -> tuple[Deblended, Sequence[Galaxy]]:
    galaxies = (*BLEND[:2], STAR._replace(y=24.0, x=10.0))
    return Deblender("nonparametric").deblend(simulate(galaxies)[0]), galaxies


def test_nonparametric_fluxes(nonparametric: tuple[Deblended, Sequence[Galaxy]]) -> None:
    result, galaxies = nonparametric
    assert_finite(result)
    np.testing.assert_allclose(fluxes(result), [galaxy.flux for galaxy in galaxies], rtol=0.1)
    assert 0.7 < result.chi2 < 1.2
    assert result.header["prior"] == "nonparametric"


def test_nonparametric_galaxies_are_positive_and_fall_from_the_centre(
    nonparametric: tuple[Deblended, Sequence[Galaxy]],
) -> None:
    result, _ = nonparametric
    centers = np.stack([result.catalog["y"], result.catalog["x"]], 1) - result.corners
    for stamps, center in zip(result.stamps, centers, strict=True):
        for stamp in stamps:
            assert stamp.min() > -1e-3 * stamp.max()
            assert falls_along_rays(stamp, center) < 3e-3


# -- real blends


@pytest.mark.slow
def test_real_blends(data: Path) -> None:
    """Hyper Suprime-Cam's: finite, converged, residuals near the noise, and light shared out among declared sources."""
    names = ("43158172147384648", "43158172147386129", "43158172147386531")
    scenes = [Scene.read(data / "hsc_blends" / f"{name}.npz") for name in names]
    for scene, outcome in zip(scenes, Deblender().deblend(scenes), strict=True):
        assert_finite(outcome)
        assert outcome.header["converged"]
        assert 0.2 < outcome.chi2 < 3
        seen = scene.observation
        moved = np.hypot(outcome.catalog["x"] - scene.positions[:, 1], outcome.catalog["y"] - scene.positions[:, 0])
        assert (moved < 2).all()
        light, model = (np.where(seen.valid, image, 0).sum((1, 2)) for image in (seen.images, outcome.model))
        variance = np.where(seen.valid, 1 / np.where(seen.valid, seen.weights, 1), 0).sum((1, 2))
        assert (np.abs(model - light) < 0.1 * light + 5 * np.sqrt(variance)).all()


def test_a_point_narrower_than_the_model_psf_leaves_images_finite() -> None:
    """A point is that narrow where the given PSF is too wide. NaN would stop the fit of all images of its blend."""
    scene, _ = simulate((*BLEND[:2], STAR._replace(y=24.0, x=10.0)))
    scene = replace(scene, sources=(*scene.sources[:2], replace(scene.sources[2], kind="point")))
    shape = scene_shape(scene, stamp_side(scene))
    initial = MapFit(BulgeDiskPrior(shape.bands), shape)
    narrowest = tf.fill([1, shape.sources, initial.prior.size], -4.0)
    found = NonparametricFit(initial).coefficients(narrowest, Batch.build([scene], shape).tensors)
    assert np.isfinite(found).all() and (found.numpy() > 0).all()
