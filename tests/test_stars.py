"""What nobody declared becomes a point where it looks like one, and a PSF that is off leaves its neighbours alone."""

from __future__ import annotations

from dataclasses import replace

import galsim
import numpy as np
import pytest
from simulations import PIXEL, SEEING, Galaxy, simulate

from tfdeblend.catalog import measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.inference.map_fit import MapOptions

STAR = Galaxy(15.3, 14.2, (4000, 6000), radius=0)
ROUND = STAR._replace(radius=0.3)
FAINT = Galaxy(18.4, 21.7, (150, 200), radius=0.4)


def undeclared(*galaxies: Galaxy, kind: str = "unknown", **changes: object) -> Scene:
    scene, _ = simulate(galaxies, **changes)  # type: ignore[arg-type]
    return Scene(scene.observations, tuple(replace(source, kind=kind) for source in scene.sources))


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    return Deblender("bulge-disk", batch_size=2)


@pytest.fixture(scope="module")
def results(deblender: Deblender) -> list[Deblended]:
    return deblender.deblend([undeclared(STAR, FAINT), undeclared(ROUND, FAINT)])


def test_a_star_becomes_a_point_and_a_galaxy_as_bright_does_not(results: list[Deblended]) -> None:
    """What becomes one is flagged so; the scene keeps what was declared."""
    kinds = [list(result.catalog["kind"]) for result in results]
    assert kinds == [["point", "galaxy"], ["galaxy", "galaxy"]]
    flags = [list(result.catalog["flags"] & measure.TAKEN_AS_POINT) for result in results]
    assert flags == [[measure.TAKEN_AS_POINT, 0], [0, 0]]
    assert [source.kind for source in results[0].scene.sources] == ["unknown", "unknown"]
    assert results[0].catalog["size"][0] < 1e-2 and results[0].header["converged"]
    for result, bright in zip(results, (STAR, ROUND), strict=True):
        pulls = (result.flux - [bright.flux, FAINT.flux]) / result.flux_err
        assert np.abs(pulls).max() < 4


def test_what_becomes_a_point_is_as_if_declared_one(deblender: Deblender, results: list[Deblended]) -> None:
    """Whatever else is in its batch."""
    scene = undeclared(STAR, FAINT)
    known = Scene(scene.observations, (replace(scene.sources[0], kind="point"), scene.sources[1]))
    other, declared = deblender.deblend([scene, known])
    for one in results[0], declared:
        assert (np.abs(one.flux - other.flux) < MapOptions().tolerance * other.flux_err).all()


def test_a_star_is_found_in_batches_of_any_size(deblender: Deblender, results: list[Deblended]) -> None:
    """One compiled trial serves them all."""
    alone = deblender.deblend(undeclared(STAR, FAINT))
    assert list(alone.catalog["kind"]) == ["point", "galaxy"]
    assert (np.abs(alone.flux - results[0].flux) < MapOptions().tolerance * alone.flux_err).all()


def test_what_is_declared_stays(deblender: Deblender) -> None:
    kinds = "galaxy", "point"
    found = deblender.deblend([undeclared(STAR, FAINT, kind=kind) for kind in kinds])
    for kind, result in zip(kinds, found, strict=True):
        assert set(result.catalog["kind"]) == {kind}
        assert not (result.catalog["flags"] & measure.TAKEN_AS_POINT).any()
    without = deblender.like(stars=False).deblend([undeclared(STAR, FAINT, seed=seed) for seed in (0, 1)])
    assert {*without[0].catalog["kind"], *without[1].catalog["kind"]} == {"galaxy"}


def test_a_result_that_is_read_and_measured_again_keeps_its_points(results: list[Deblended]) -> None:
    again = measure.remeasure(results[0])
    assert list(again["kind"]) == list(results[0].catalog["kind"])
    assert list(again["flags"] & measure.TAKEN_AS_POINT) == [measure.TAKEN_AS_POINT, 0]


def test_a_psf_that_is_off_does_not_reach_the_neighbours_of_a_bright_star(deblender: Deblender) -> None:
    """The PSF's width is off by 2%, and the star has a signal-to-noise of some 10,000."""
    bright, scenes = STAR._replace(flux=(40_000, 60_000)), []
    for width in (0.98, 1.02):
        psfs = [galsim.Moffat(3.5, fwhm=width * fwhm).drawImage(nx=35, ny=35, scale=PIXEL).array for fwhm in SEEING]
        psf = np.stack([one / one.sum() for one in psfs])
        scenes.append(undeclared(bright, FAINT, psf=psf))
    for result in deblender.deblend(scenes):
        assert list(result.catalog["kind"]) == ["point", "galaxy"]
        assert np.abs((result.flux[1] - FAINT.flux) / result.flux_err[1]).max() < 3
