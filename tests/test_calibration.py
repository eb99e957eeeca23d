"""The calibration benchmark's own arithmetic, on findings calibrated by construction, and on ones that are not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.calibration import Findings, show, table
from benchmarks.one_or_two import probability, report


def findings(width: float, blends: int = 150, samples: int = 32) -> Findings:
    """Two galaxies a blend; samples `width` times as wide as the truth scatters."""
    rng, found = np.random.default_rng(0), Findings()
    for _ in range(blends):
        center = 100 + rng.standard_normal((2, 5))
        found.add(
            {
                "truth": center + rng.standard_normal((2, 5)),
                "samples": center[:, None] + width * rng.standard_normal((2, samples, 5)),
                "snr": rng.uniform(5, 200, 2),
                "blendedness": rng.uniform(0, 0.9, 2),
                "pixels": rng.standard_normal(60) / width,
                "lengths": np.array([20, 40]),
                "beyond": np.array([False, rng.random() < 0.1]),
                "chi2": np.array(1.0),
            }
        )
    return found


def test_calibrated_findings_read_as_such():
    document = table(findings(1.0))
    whole = document["all"]
    assert whole["sources"] == 300
    for level in (0.68, 0.95):
        error = np.sqrt(level * (1 - level) / 300)
        assert whole[f"coverage_{level:g}"] == pytest.approx(level, abs=3 * error)
    assert whole["z_spread"] == pytest.approx(1, abs=0.15)
    known, beyond = (document["bins"][name]["sources"] for name in ("known to the prior", "beyond the prior"))
    assert known + beyond == 300 and 0 < beyond < 60
    for name in ("ranks", "tarp"):
        assert document[name]["distance"] < 1.3 * document[name]["limit_95"]
    assert "68%" in show(document | {"seconds": 0.0, "failed": 0})


def test_narrow_samples_are_found_out():
    document = table(findings(0.5))
    assert document["all"]["coverage_0.68"] < 0.5
    assert document["ranks"]["distance"] > document["ranks"]["limit_95"]


def test_evidence_becomes_a_probability():
    """Equal evidences of a flux known to a factor e: 1 in the logarithm of the range is where odds are even."""
    snr = (5.0, 100.0)
    density = np.log(snr[1] / snr[0] / 0.6**2)
    assert probability(0.0, density, snr) == pytest.approx(0.5)
    assert probability(0.0, density + np.log(3), snr) == pytest.approx(0.75)
    assert 0.6 < probability(0.0, density + 2, snr, error=5.0) < probability(0.0, density + 2, snr, error=1.0)
    cases = [
        {"truth": True, "snr": 20.0, "one": 0.0, "two": 50.0, "one_error": 0.1, "two_error": 0.1},
        {"truth": False, "snr": 20.0, "one": 0.0, "two": -50.0, "one_error": 0.1, "two_error": 0.1},
    ]
    document = report(cases, snr)
    assert document["right"] == 1 and document["brier"] == pytest.approx(0, abs=1e-9)
    assert [row["cases"] for row in document["bins"]] == [1, 1]
