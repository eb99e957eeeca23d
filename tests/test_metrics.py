"""Calibration metrics on Gaussians: right ones pass, and those too wide, too narrow or biased are found out."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import metrics

NUMBER = 4000


def drawn(samples: int, width: float = 1.0, bias: float = 0.0, size: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Truths and samples, exchangeable if width is 1 and bias 0."""
    rng = np.random.default_rng(samples)
    center = rng.standard_normal((NUMBER, size))
    truth = center + rng.standard_normal((NUMBER, size))
    return truth, center[:, None] + bias + width * rng.standard_normal((NUMBER, samples, size))


@pytest.mark.parametrize("samples", [4, 16, 128])
def test_calibrated_for_any_number_of_samples(samples: int):
    truth, draws = (a[..., 0] for a in drawn(samples))
    rank = metrics.ranks(truth, draws)
    for level in (0.68, 0.95):
        assert metrics.covered(rank, level).mean() == pytest.approx(level, abs=0.025)
    distance, limit = metrics.uniform_distance(rank)
    assert distance < 1.3 * limit
    z = metrics.z_scores(truth, draws.mean(1), draws.std(1, ddof=1), samples)
    if samples > 4:  # of 4 the fourth moment is infinite
        assert z.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("change", [{"width": 0.7}, {"width": 1.4}, {"bias": 0.3}])
def test_tells_what_is_wrong(change: dict[str, float]):
    truth, draws = drawn(32, **change, size=3)
    for values in (metrics.ranks(truth[:, 0], draws[..., 0]), metrics.tarp(truth, draws)):
        distance, limit = metrics.uniform_distance(values)
        assert distance > 1.1 * limit


def test_tarp_is_uniform_if_calibrated():
    distance, limit = metrics.uniform_distance(metrics.tarp(*drawn(64, size=4)))
    assert distance < 1.3 * limit


def test_three_samples_have_no_z_scores():
    with pytest.raises(ValueError, match="expected at least 4 samples, received 3"):
        metrics.z_scores(np.zeros(1), np.zeros(1), np.ones(1), 3)


def test_the_score_of_a_gaussian():
    """E of what N(0, 1) scores where the truth is its own draw: 1 / sqrt(pi); least for the right width."""

    def score(width: float) -> float:
        truth, samples = drawn(8, width)
        return float(metrics.crps(truth[:, 0], samples[..., 0]).mean())

    assert score(1) == pytest.approx(np.pi**-0.5, abs=0.03)  # four standard errors of 4,000 truths
    assert score(1) < min(score(0.6), score(1.6))
    apart = np.abs(np.subtract.outer([1.0, 4.0, 6.0], [1.0, 4.0, 6.0])).sum() / 6
    assert metrics.crps(np.array(2.0), np.array([4.0, 1.0, 6.0])) == pytest.approx((2 + 1 + 4) / 3 - apart / 2)
