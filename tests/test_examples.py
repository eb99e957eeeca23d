"""The scripts of docs/examples run as they stand, and are as short as they promise."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from epochs import FLUXES, HOST, OFF, PLACE, disk_epochs, wcs
from fields import expose, write

from benchmarks.dust import FLUX, LANE, WAVELENGTHS, simulate

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


@pytest.mark.slow
def test_transient(tmp_path: Path) -> None:
    """Templates first: a light curve of four epochs, zero in the first two."""
    files = [write(tmp_path, replace(one, name=str(number))) for number, one in enumerate(disk_epochs())]
    ra, dec = ([float(axis) for axis in axes] for axes in sky(PLACE, (HOST["y"], HOST["x"])))
    arguments = [str(len(OFF)), *(str(value) for pair in zip(ra, dec, strict=True) for value in pair)]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "transient.py", *arguments, *files], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines() if " r " in line]
    flux, error = (np.array([row[column] for row in rows], float) for column in (-2, -1))
    assert len(rows) == len(FLUXES)
    assert (flux[OFF] == 0).all()
    np.testing.assert_array_less(np.abs(flux - FLUXES)[2:], 3.5 * error[2:])


def sky(*places: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Right ascensions and declinations of pixels (y, x)."""
    y, x = np.transpose(places)
    return wcs().pixel_to_world_values(x, y)


@pytest.mark.slow
def test_dust_lane(tmp_path: Path) -> None:
    """Fitted to its noise with dust alone, and to the flux that it hides."""
    path = write(tmp_path, replace(simulate(LANE)[0], name="lane"))
    arguments = [path, *(str(wavelength) for wavelength in WAVELENGTHS)]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "dust_lane.py", *arguments], capture_output=True, text=True, check=True
    )
    first, *rest = done.stdout.splitlines()
    with_dust, without = (float(part.split()[0]) for part in first.removeprefix("chi2 a pixel: ").split(", ")[:2])
    assert abs(with_dust - 1) < 0.05 < without - 1
    np.testing.assert_allclose([float(line.split()[2]) for line in rest], FLUX, rtol=0.05)
