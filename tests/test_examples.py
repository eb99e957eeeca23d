"""The scripts of docs/examples run as they stand, and are as short as they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fields import expose, write

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LONGEST = 15  # lines


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= LONGEST


@pytest.mark.slow
def test_two_surveys(tmp_path: Path) -> None:
    """Finer and coarser pixels, one band each: both are fitted to their noise."""
    fine = write(tmp_path, expose("fine", 0.1, (64, 64), seeing=0.4, bands="r"))
    coarse = write(tmp_path, expose("coarse", 0.2, (32, 32), 30, bands="g"))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "two_surveys.py", fine, coarse], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert "flux_r" in done.stdout and "flux_g" in done.stdout
    chi2 = [float(line.split("chi2 a pixel ")[1].split(",")[0]) for line in lines if "chi2 a pixel" in line]
    np.testing.assert_allclose(chi2, 1, atol=0.1)
