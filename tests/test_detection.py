"""Detection: the statistics of the detection image, sources found where they are, and what residuals leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fields import expose
from helpers import gaussian, smooth_correlation, smooth_noise
from scene_files import XY, arrays

from tfdeblend import io
from tfdeblend.data import detection
from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import REACH, fwhm
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError

SIGMA = np.array([0.5, 1.0, 2.0])[:, np.newaxis, np.newaxis]
PSF = gaussian((15, 15), 7, 7, 1.5)


def field(fluxes: list[float], positions: list[tuple[float, float]], seed: int = 0) -> Observation:
    """Point sources of flat spectrum in three bands of different depth, a corner masked."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((80, 90))
    for flux, (y, x) in zip(fluxes, positions, strict=True):
        truth += flux * gaussian(truth.shape, y, x, 1.5)
    weights = np.broadcast_to(SIGMA**-2, (3, 80, 90)).copy()
    weights[:, :10, :10] = 0
    return Observation(truth + rng.normal(scale=SIGMA, size=(3, 80, 90)), weights, PSF / PSF.sum())


def test_detection_image_has_unit_variance() -> None:
    observation = field([], [])
    image, sigma = detection.detection_image(observation.images, observation.weights)
    assert image[~np.isinf(sigma)].std() == pytest.approx(1, abs=0.03)
    assert (image[:10, :10] == 0).all()
    assert np.isinf(sigma[:10, :10]).all()


def test_no_weighting_of_bands_beats_it_for_a_flat_spectrum() -> None:
    flat = np.ones((3, 1, 1))
    weights = SIGMA**-2
    best = detection.detection_image(flat, weights)[0].item()
    for others in np.random.default_rng(0).uniform(size=(100, 3)):
        assert others.sum() / np.sqrt((others**2 / weights.ravel()).sum()) <= best + 1e-12


def test_sources_are_found_where_they_are() -> None:
    positions = [(20.3, 30.7), (20.1, 39.2), (60.0, 70.5)]
    found = detection.detect(field([150, 100, 60], positions))
    assert len(found) == 3
    np.testing.assert_allclose(np.c_[found["y"], found["x"]], positions, atol=0.4)
    assert (np.diff(found["snr"]) < 0).all()


def test_noise_alone_gives_few_detections() -> None:
    assert sum(len(detection.detect(field([], [], seed), 5.0)) for seed in range(10)) == 0


def test_correlated_noise_alone_gives_few_detections() -> None:
    """Where the observation tells the correlation; taken as white it gives many. In units of the filtered scatter."""
    images = smooth_noise((3, 80, 90), 1.0, 0)
    white = Observation(images, np.ones_like(images), PSF / PSF.sum())
    known = replace(white, noise_correlation=smooth_correlation(1.0))
    assert len(detection.detect(white, 4.0)) > 10 and len(detection.detect(known, 4.0)) <= 1
    kernel = detection.psf_kernel(white.psf)
    scatter = convolved(images[0], kernel)[5:-5, 5:-5].std()
    assert detection.filtered_sigma(kernel, known) == pytest.approx(scatter, rel=0.1)
    masked = replace(white, weights=white.weights * [[[1]], [[0]], [[1]]])
    told = masked.with_sky_correlation()  # its masked band tells nothing, and counts for nothing
    assert detection.filtered_sigma(kernel, told) == pytest.approx(scatter, rel=0.1)


def test_masked_sources_are_not_seen() -> None:
    assert len(detection.detect(field([500], [(4, 4)]), 5.0)) == 0


def seen_through(light: np.ndarray, masked: np.ndarray, seed: int = 0) -> Observation:
    """Light of flat spectrum in noise, in three bands that are masked where (3,H,W), or (H,W), says."""
    shape = (3, *light.shape)
    images = light + np.random.default_rng(seed).normal(scale=SIGMA, size=shape)
    masked = np.broadcast_to(masked, shape)
    return Observation(np.where(masked, 0, images), np.where(masked, 0, SIGMA**-2), PSF / PSF.sum())


def star(shape: tuple[int, int], y: float, x: float, flux: float) -> np.ndarray:
    """A point source with wings, as a saturated star shows them around its middle."""
    rows, columns = np.indices(shape)
    profile = (1 + ((rows - y) ** 2 + (columns - x) ** 2) / 2.2**2) ** -3.0
    return flux * profile / profile.sum()


@pytest.mark.parametrize("trail", [0, 1, 3])
@pytest.mark.parametrize(("radius", "flux"), [(2, 1e4), (5, 1e5), (10, 1e6)])
def test_a_star_with_a_masked_middle_is_one(radius: int, flux: float, trail: int) -> None:
    """Also near the image's edge, with columns that bleed beyond its light, and where bands are masked to different
    radii, or not at all."""
    (y, x), shape = (60.3, 20.6), (120, 130)
    rows, columns = np.indices(shape)
    bled = (np.abs(columns - x) <= trail / 2) & (np.abs(rows - y) < 55) & (trail > 0)
    apart, light = np.hypot(rows - y, columns - x), star(shape, y, x, flux)
    for seed, shares in enumerate([(1, 1, 1), (1, 1, 1), (0.6, 0.8, 1), (0, 0.5, 1)]):
        masked = np.stack([(share > 0) & ((apart <= share * radius) | bled) for share in shares])
        found = detection.search(seen_through(light, masked, seed), 5.0)
        assert len(found) == 1
        assert np.hypot(found["y"][0] - y, found["x"][0] - x) < 1.5


@pytest.mark.parametrize("radius", [4, 9, 13, 15, 18, 21])
def test_what_is_found_in_holes_of_any_size_is_fitted(radius: int) -> None:
    """One source in a hole that is not too deep, several around a deeper one, and none where it would be left out."""
    shape, masked = (150, 150), np.hypot(*(np.indices((150, 150)) - 74.5)) <= radius
    one = seen_through(star(shape, 74.6, 74.3, 3e6), np.stack([masked] * 3), 0)
    found = Scene.detect(one)
    assert not found.left_out.any()
    assert (len(found.sources) == 1) == (radius <= REACH * fwhm(one.psf).max())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_galaxy_that_masked_columns_cross_is_one(width: int) -> None:
    """Wherever they cross it, and with a twentieth of all other pixels masked as by cosmic rays."""
    shape = (80, 90)
    for seed, first in enumerate(range(41, 48)):
        masked = np.random.default_rng(seed).uniform(size=shape) < 0.05
        masked[:, first : first + width] = True
        found = detection.search(seen_through(600 * gaussian(shape, 40.2, 44.7, 3.0), masked, seed))
        assert len(found) == 1
        assert np.hypot(found["y"][0] - 40.2, found["x"][0] - 44.7) < 2


def test_masked_pixels_without_light_around_give_no_detections() -> None:
    """Neither squares, columns and single pixels in empty sky, nor the masked half of what has a galaxy at its edge."""
    shape = (120, 130)
    masked = np.zeros(shape, bool)
    masked[20:70, 30:90], masked[:, 10:13] = True, True
    for seed in range(10):
        speckled = masked | (np.random.default_rng(seed).uniform(size=shape) < 0.03)
        assert len(detection.search(seen_through(np.zeros(shape), speckled, seed), 4.0)) == 0
    beside = detection.search(seen_through(2000 * gaussian(shape, 72, 60, 2.5), masked), 4.0)
    assert len(beside) == 1 and not masked[tuple(np.round([beside["y"][0], beside["x"][0]]).astype(int))]
    nothing = seen_through(np.zeros(shape), masked).derived(weights=np.zeros((3, *shape)))
    assert len(detection.search(nothing)) == 0


def test_residual_shows_the_undeclared_source_only() -> None:
    observation = field([300, 60], [(40, 40), (60.2, 70.4)])
    model = np.broadcast_to(200 * gaussian((80, 90), 40, 40, 1.5), (3, 80, 90))
    undeclared = detection.residual_detections(observation, model, np.array([[40, 40]]))
    assert undeclared.colnames == ["x", "y", "snr"]
    assert len(undeclared) == 1
    assert (undeclared["y"][0], undeclared["x"][0]) == pytest.approx((60.2, 70.4), abs=0.5)
    expected = 60 * np.sqrt((SIGMA**-2).sum() * (PSF**2).sum())  # of the matched filter
    assert undeclared["snr"][0] == pytest.approx(expected, rel=0.2)


def test_nothing_undeclared_is_an_empty_table() -> None:
    observation = field([], [])
    assert len(detection.residual_detections(observation, 0 * observation.images, np.zeros((0, 2)))) == 0


def test_detections_of_all_are_merged() -> None:
    """A pair that only the sharp observation tells apart stays two, at its places; a source that only the deep, coarse
    one shows is found; one beyond the image of the first is not."""
    seen = {"sharp": (0.05, (100, 100), 0.2, 10.0, (0.0, 0.0)), "deep": (0.2, (60, 60), 0.9, 0.3, (0.1, -0.1))}
    places = np.array([[0.0, 0.0], [0.35, 0.0], [-1.6, 1.5], [4.0, 0.0]])  # (y, x) in arcsec about the middle
    fluxes = np.array([9000.0, 7000.0, 20.0, 9000.0])
    observations = []
    for name, (scale, shape, seeing, noise, shift) in seen.items():
        blank = expose(name, scale, shape, seeing=seeing, noise=noise, bands="g")
        middle, sigma = (np.array(shape) - 1) / 2 + shift, seeing / 2.355 / scale
        truth = sum(f * gaussian(shape, *(middle + at / scale), sigma) for f, at in zip(fluxes, places, strict=True))
        noisy = truth + np.random.default_rng(1).normal(scale=noise, size=shape)
        observations.append(replace(blank, images=noisy[None], psf=gaussian((31, 31), 15, 15, sigma)))
    found = detection.detect(observations)
    assert list(found["observation"]) == ["sharp", "sharp", "deep"]
    off = np.stack([found["y"], found["x"]], 1) - (49.5 + places[:3] / 0.05)
    assert np.abs(off[:2]).max() < 0.3 and np.abs(off[2]).max() < 5
    with pytest.raises(DataError, match="sharp: catalog: expected sources, detected none"):
        Scene.detect([replace(one, images=1e-5 * one.images) for one in observations])


def test_a_constant_sky_hides_nothing_where_it_is_taken_off() -> None:
    """The sources are those without it, and the scene keeps the images as they are."""
    one = field([150, 100, 60], [(20.3, 30.7), (20.1, 39.2), (60.0, 70.5)])
    bright = replace(one, images=one.images + SIGMA * 50)
    scene = Scene.detect(bright, background=True)
    np.testing.assert_allclose(scene.positions, Scene.detect(one).positions, atol=0.05)
    assert scene.observation is bright


def test_detections_in_one_of_a_tuple_are_those_in_it() -> None:
    one = field([150, 100], [(20.3, 30.7), (60.0, 70.5)])
    alone, same = detection.detect(one), detection.detect((one,))
    assert alone.colnames == same.colnames and (alone["x"] == same["x"]).all()
    assert len(Scene.detect(one).sources) == len(Scene.detect([one]).sources) == 2


@pytest.mark.parametrize("threshold", [0, -1, np.nan])
def test_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(DataError, match="threshold"):
        detection.detect(field([], []), threshold)


def test_scene_by_detection() -> None:
    content = arrays()
    observation = Observation(content["images"], content["weights"], content["psfs"], name="field")
    positions = Scene.detect(observation).positions
    np.testing.assert_allclose(positions[np.argsort(positions[:, 0])], XY[:, ::-1], atol=0.3)
    with pytest.raises(DataError, match="field: catalog: expected sources, detected none"):
        Scene.detect(Observation(content["images"] * 0, content["weights"], content["psfs"], name="field"))


def test_real_blends_against_the_pipeline_s_peaks(data: Path) -> None:
    """Three in four of the peaks of 97 HSC blends are found within 2 pixels, with few others."""
    found = others = total = 0
    for path in io.find_inputs(data / "hsc_blends"):
        scene = Scene.read(path)
        detected = Scene.detect(scene.observation).positions
        distances = np.linalg.norm(scene.positions[:, np.newaxis] - detected, axis=2)
        free = np.ones(len(detected), bool)
        for row in distances:
            nearest = np.argmin(np.where(free, row, np.inf))
            if free[nearest] and row[nearest] < 2:
                found, free[nearest] = found + 1, False
        others, total = others + int(free.sum()), total + len(scene.sources)
    assert total == 634
    assert found / total > 0.75
    assert others / total < 0.1
