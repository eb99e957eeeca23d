"""Laws of the benchmark's scores: what a perfect, a rescaled and a missing answer are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import em_galaxies, em_world, score
from benchmarks.catsim import Answers, TrueScene, grade
from tests import scene_files

BANDS = ("g", "r", "i")


def gaussians(seed: int, count: int = 3, side: int = 32) -> np.ndarray:
    """(K,C,H,W) round Gaussian sources of random place, flux and width."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    place = rng.uniform(8, side - 8, (count, 2))
    width = rng.uniform(1.5, 3, count)[:, None, None]
    shape = np.exp(-((y - place[:, :1, None]) ** 2 + (x - place[:, 1:, None]) ** 2) / (2 * width**2))
    return shape[:, None] * rng.uniform(5, 50, (count, len(BANDS)))[:, :, None, None]


def scene(seed: int) -> TrueScene:
    """A scene of unit noise."""
    truth = gaussians(seed)
    images = truth.sum(0) + np.random.default_rng(seed + 100).normal(size=truth.shape[1:])
    return TrueScene(Path(f"{seed}.npz"), images, np.ones_like(images), truth, BANDS)


def test_perfect_answer_has_no_error():
    truth = gaussians(0)
    assert np.all(score.flux_error(truth, truth) == 0)
    assert np.all(score.colour_error(truth, truth, BANDS) == 0)
    assert np.all(score.relative_l2(truth, truth) == 0)
    np.testing.assert_allclose(score.cosine(truth, truth), 1)


def test_rescaling_changes_flux_and_l2_by_as_much_and_neither_cosine_nor_colour():
    truth = gaussians(1)
    np.testing.assert_allclose(score.flux_error(truth, 1.3 * truth), 0.3)
    np.testing.assert_allclose(score.relative_l2(truth, 1.3 * truth), 0.3)
    np.testing.assert_allclose(score.cosine(truth, 1.3 * truth), 1)
    np.testing.assert_allclose(score.colour_error(truth, 1.3 * truth, BANDS), 0, atol=1e-12)


def test_colour_error_is_the_magnitude_shift_of_one_band_and_infinite_without_flux():
    truth = gaussians(2)
    redder = truth.copy()
    redder[:, 0] *= 10**-0.08
    np.testing.assert_allclose(score.colour_error(truth, redder, BANDS), 0.2)
    redder[0, 0] *= -1
    assert np.isinf(score.colour_error(truth, redder, BANDS)[0])
    assert np.isnan(score.colour_error(truth, truth, ("u", "r", "i"))).all()


def test_signal_to_noise_does_not_depend_on_units_and_ignores_masked_pixels():
    truth, weights = gaussians(3), np.ones((3, 32, 32))
    before = score.signal_to_noise(truth, weights)
    np.testing.assert_allclose(score.signal_to_noise(7 * truth, weights / 49), before)
    np.testing.assert_allclose(before, np.sqrt((truth**2).sum((1, 2, 3))))
    assert np.all(score.signal_to_noise(truth, 0 * weights) == 0)


def test_blendedness_is_zero_alone_and_half_under_a_twin():
    one = gaussians(4, count=1)
    np.testing.assert_allclose(score.blendedness(one), 0, atol=1e-12)
    np.testing.assert_allclose(score.blendedness(np.concatenate([one, one])), 0.5)
    np.testing.assert_allclose(score.blendedness(np.concatenate([one, 3 * one])), [0.75, 0.25])


def test_bound_returns_the_truth_without_noise_and_errs_by_the_fisher_matrix_with_it():
    truth, weights = gaussians(5), np.full((3, 32, 32), 0.25)
    np.testing.assert_allclose(score.bound(truth.sum(0), weights, truth), truth, atol=1e-9)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        noisy = truth.sum(0) + rng.normal(scale=2, size=weights.shape)
        errors.append(score.flux_error(truth, score.bound(noisy, weights, truth))[:, 0])
    flat = truth[:, 0].reshape(len(truth), -1)
    expected = np.sqrt(np.diag(np.linalg.inv(0.25 * flat @ flat.T)))
    np.testing.assert_allclose(np.std(errors, 0), expected, rtol=0.2)
    assert np.all(np.abs(np.mean(errors, 0)) < 5 * expected / np.sqrt(200))


def test_chi2_of_the_truth_is_one_and_counts_unmasked_pixels_only():
    blend = scene(6)
    assert score.chi2_per_pixel(blend.images, blend.weights, blend.truth.sum(0)) == pytest.approx(1, abs=0.1)
    masked = blend.images.copy()
    masked[:, 5] = 1e6
    weights = blend.weights.copy()
    weights[:, 5] = 0
    assert score.chi2_per_pixel(masked, weights, blend.truth.sum(0)) == pytest.approx(1, abs=0.1)


def test_bins_part_the_bright_sources():
    blends = [scene(seed) for seed in range(5)]
    result = grade(blends, Answers([b.truth for b in blends]))
    for rows in result["bins"].values():
        assert sum(row["sources"] for row in rows) == result["all"]["sources"] == 15


def test_interval_resamples_blends_and_not_sources():
    blend = np.repeat(np.arange(2), 50)
    scores = score.Scores(
        BANDS, blend, np.full(100, 9.0), np.zeros(100), np.full(100, 50.0), np.repeat([[0.0], [1.0]], 50, 0) * [1, 1, 1]
    )
    scores.colour = scores.l2 = scores.cosine = np.zeros(100)
    flux = score.summary(scores)["flux"]
    assert (flux["low"], flux["high"]) == (0, 1)  # two blends: half of the resamples hold one of them twice
    assert score.summary(scores)["l2"] == {"median": 0, "low": 0, "high": 0}


@pytest.mark.parametrize("answer", ["ValueError('no')", np.full((3, 3, 32, 32), np.nan), np.zeros((2, 3, 32, 32))])
def test_a_failure_is_named_and_scored_as_empty_images(answer):
    blends = [scene(0)]
    result = grade(blends, Answers([answer]))
    assert list(result["failures"]) == ["0.npz"]
    assert result["all"]["bias"]["median"] == -1
    assert result["all"]["l2"]["median"] == 1
    assert result["chi2"] is None


def test_scene_without_truth_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((1, 4, 4)), weights=np.ones((1, 4, 4)), filters=["i"])
    with pytest.raises(ValueError, match="truth: expected"):
        TrueScene.read(path)


def test_galaxies_of_a_world_are_chosen_by_color_and_size():
    t = np.arange(64) - 32
    r2 = t[:, None] ** 2 + t**2
    blue, red, green = (np.array(c)[:, None, None] for c in ([1.0, 1.0, 1.0], [0.2, 0.6, 1.0], [0.4, 0.7, 1.0]))
    small, large = (np.exp(-r2 / (2 * s**2)) for s in (1.6, 3.0))
    stamps = np.stack([blue * small, red * large, green * large, red * small, blue * large]).astype(np.float32)
    found = {name: choice.of(stamps) for name, choice in em_galaxies.CHOICES.items()}
    np.testing.assert_array_equal(found["blue"], stamps[[0], :, 16:48, 16:48])
    assert found["red"].shape == (1, 3, 32, 32)
    wider = red * 9 / 10 * np.exp(-r2 / (2 * 10))  # Gaussians' variances add
    np.testing.assert_allclose(found["red"][0], wider[:, 16:48, 16:48], atol=0.01)


def test_priors_are_evaluated_on_scenes_with_truth(tmp_path: Path):
    content = scene_files.arrays()
    truth = np.random.default_rng(0).uniform(size=(len(content["peaks"]), *content["images"].shape))
    for name in "ab":
        scene_files.write_npz(tmp_path / f"{name}.npz", truth=truth)
    found = em_world.read(tmp_path, 1)
    assert [one.scene.name for one in found] == ["a"]
    np.testing.assert_array_equal(found[0].sources, truth)
    np.testing.assert_allclose(found[0].scene.positions, content["peaks"][:, ::-1])
