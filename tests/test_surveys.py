"""Surveys and colours."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tfdeblend.errors import DataError
from tfdeblend.simulation.surveys import REFERENCE, SURVEYS, TEMPLATES, Colors, Survey


@pytest.mark.parametrize("survey", SURVEYS.values(), ids=list(SURVEYS))
def test_psfs_are_as_wide_as_the_survey_says(survey: Survey):
    for psf, fwhm in zip(survey.psfs(), survey.psf_fwhm, strict=True):
        assert psf.calculateFWHM() == pytest.approx(fwhm, rel=0.02)
        assert psf.flux == pytest.approx(1)


def test_depths_are_those_of_the_surveys():
    """Five sigma of a point source: HSC Wide has i = 26.2 and LSST's ten years r = 27.5, by their papers' tables."""
    for name, band, published in (("hsc", "i", 26.2), ("lsst", "r", 27.5)):
        survey = SURVEYS[name]
        c = survey.bands.index(band)
        area = 4 * np.pi * (survey.psf_fwhm[c] / 2.355) ** 2 / survey.pixel_scale**2  # pixels, of a Gaussian's noise
        limit = survey.flux_zeropoints[c] - 2.5 * np.log10(5 * np.sqrt(area * survey.sky_variance[c]))
        assert limit == pytest.approx(published, abs=0.7)


def test_longer_exposures_have_more_sky_and_deeper_zero_points():
    short = SURVEYS["lsst"]
    long = replace(short, exposure=tuple(4 * t for t in short.exposure))
    np.testing.assert_allclose(long.sky_variance, 4 * np.array(short.sky_variance))
    np.testing.assert_allclose(np.subtract(long.flux_zeropoints, short.flux_zeropoints), 2.5 * np.log10(4))


def test_a_survey_comes_back_from_json(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(asdict(SURVEYS["hsc"]) | {"name": "mine"}))
    assert Survey.find(str(path)) == replace(SURVEYS["hsc"], name="mine")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pixel_scal": 0.2}, "pixel_scal: expected keys of"),
        ({"sky": None}, "sky: expected a list of numbers, received None"),
        ({"sky": [20.0]}, "sky: expected one for each of 5 bands, received 1"),
        ({"psf_fwhm": [0.7, 0.7, -0.7, 0.7, 0.7]}, "psf_fwhm: expected a positive number, received -0.7"),
        ({"exposure": [1, 2, 3, "4", 5]}, "exposure: expected a positive number, received '4'"),
        ({"pixel_scale": 0}, "pixel_scale: expected a positive number, received 0"),
        ({"psf_profile": "moffet"}, "psf_profile: expected one of moffat"),
        ({"bands": "grizy"}, "bands: expected a list of names, received 'grizy'"),
        ({"bands": ["g", "g", "i", "z", "y"]}, "bands: expected different names"),
    ],
)
def test_a_bad_survey_is_refused_in_one_line(tmp_path: Path, change: dict, problem: str):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(asdict(SURVEYS["hsc"]) | change))
    with pytest.raises(DataError) as error:
        Survey.find(str(path))
    assert str(error.value).startswith(f"{path}: {problem}") and "\n" not in str(error.value)


def test_unknown_surveys_missing_keys_and_files_are_refused(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine"}')
    with pytest.raises(DataError, match="bands: expected this key, received name"):
        Survey.find(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="expected an object with keys"):
        Survey.find(str(path))
    with pytest.raises(DataError, match=r"expected a JSON file, received \[Errno 2\]"):
        Survey.find(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="expected hsc, lsst, euclid-vis, hst-acs or a JSON file, received 'sdss'"):
        Survey.find("sdss")
    with pytest.raises(DataError, match="expected a transmission curve of GalSim's or a box in nm"):
        Colors.of(["no such curve"])


def test_colours_are_relative_to_the_reference_and_run_from_red_to_blue():
    colors = Colors.of((REFERENCE, *SURVEYS["hsc"].throughputs))
    types, redshifts = np.arange(len(TEMPLATES), dtype=float), np.full(len(TEMPLATES), 0.3)
    magnitudes = colors.galaxy(types, redshifts)
    np.testing.assert_allclose(magnitudes[:, 0], 0, atol=1e-12)
    g_minus_i = magnitudes[:, 1] - magnitudes[:, 3]
    assert (np.diff(g_minus_i) < 0).all()
    between = colors.galaxy(np.array(0.5), np.array(0.3))
    np.testing.assert_allclose(between, magnitudes[:2].mean(0), atol=1e-12)


def test_a_source_of_constant_f_nu_has_no_colour():
    """AB magnitudes: what the templates' magnitudes are relative to; a box of any width sees the same."""
    wide, narrow = Colors.of(["500-900"]), Colors.of(["650-700"])
    assert abs(wide.galaxy(np.array(3.0), np.array(0.0)) - narrow.galaxy(np.array(3.0), np.array(0.0))) < 0.1


def test_redder_tilts_and_redder_stars_are_fainter_in_the_blue():
    colors = Colors.of(SURVEYS["lsst"].throughputs)
    assert (np.diff(colors.tilt(np.array(0.3))) < 0).all()
    stars = colors.star(np.array([0.1, 0.5, 1.5]))
    assert (np.diff(stars[:, :3], axis=0) > 0).all() and (np.diff(stars[:, 4:], axis=0) < 0).all()
    np.testing.assert_allclose(stars[:, 2] - stars[:, 3], [0.1, 0.5, 1.5], atol=0.03)
