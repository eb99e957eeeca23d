"""What pixels say against weights, sky, noise and PSF: each mistake has its line, and what is right has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import gaussian, smooth_correlation, smooth_noise

from tfdeblend.data import sky
from tfdeblend.data.observation import Observation
from tfdeblend.data.plausibility import examined
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError

SHAPE = (64, 64)
SIGMA = np.array([3.0, 5.0, 12.0])[:, None, None]
PLACES = ((31.7, 30.2), (34.3, 37.6), (42.4, 25.1))


def blend(noise: np.ndarray | None = None, seed: int = 0) -> Scene:
    """Three galaxies of signal-to-noise 20 to 60 in three bands, in noise of SIGMA."""
    light = sum(flux * gaussian(SHAPE, *place, 2.2) for flux, place in zip((900, 500, 260), PLACES, strict=True))
    noise = np.random.default_rng(seed).normal(size=(3, *SHAPE)) if noise is None else noise
    psf = gaussian((25, 25), 12, 12, 1.7)
    weights = np.broadcast_to(SIGMA**-2, noise.shape)
    seen = Observation(SIGMA * (light + noise), weights, psf / psf.sum(), ("g", "r", "i"), "field")
    return Scene(seen, tuple(Source(*place) for place in PLACES))


def with_change(scene: Scene, **change: object) -> Scene:
    return replace(scene, observations=(replace(scene.observation, **change),))  # type: ignore[arg-type]


def notes(scene: Scene, **how: bool) -> str:
    return "; ".join(examined(scene, **how).observation.notes)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_right_has_no_note(seed: int) -> None:
    assert notes(blend(seed=seed)) == ""


@pytest.mark.parametrize(
    "power, cause",
    [(1, "standard deviations"), (2, "variances"), (-1, "inverse standard deviations")],
)
def test_weights_of_another_kind_are_refused_with_both_figures(power: int, cause: str) -> None:
    scene = blend()
    wrong = with_change(scene, weights=np.broadcast_to(SIGMA**power, (3, *SHAPE)))
    with pytest.raises(DataError, match=f"weights: expected inverse variances, .* as if they were {cause}") as error:
        examined(wrong)
    assert "--trust-weights" in str(error.value.remedy) and "--rescale-weights" in str(error.value.remedy)
    assert f"as if they were {cause}" in notes(wrong, trust_weights=True)
    rescaled = wrong.observation.with_sky_weights()
    np.testing.assert_allclose(rescaled.weights * SIGMA**2, 1, rtol=0.15)
    assert notes(replace(wrong, observations=(rescaled,))).startswith("weights rescaled to the scatter of the sky")


@pytest.mark.parametrize(
    "factor, line", [(1.2, ""), (2, "the weights state noise of 6 in g"), (0.5, "noise of 1.5 in g")]
)
def test_a_factor_of_two_is_noted(factor: float, line: str) -> None:
    scene = blend()
    weights = scene.observation.weights / np.array([factor, 1, 1])[:, None, None] ** 2
    found = notes(with_change(scene, weights=weights))
    assert line in found and bool(found) == bool(line)


def test_the_scatter_is_right_without_any_sky() -> None:
    """Galaxies that fill an image of 24 pixels leave the scatter right to a fifth, whatever the sky is."""
    light = sum(800 * gaussian((24, 24), *place, 3.0) for place in ((6, 6), (15, 9), (12, 18), (20, 17)))
    noise = np.random.default_rng(1).normal(size=(3, 24, 24))
    seen = Observation(SIGMA * (light + noise + 50), np.ones((3, 24, 24)), gaussian((15, 15), 7, 7, 1.7))
    np.testing.assert_allclose(sky.noise_seen(seen), SIGMA.ravel(), rtol=0.2)


@pytest.mark.parametrize("level", [-0.5, 0.2, 0.5, 5, 20])
def test_a_level_of_the_sky_is_noted_unless_it_is_fitted(level: float) -> None:
    scene = blend()
    off = with_change(scene, images=scene.observation.images + level * SIGMA)
    assert "the sky is not 0 but " in notes(off) and "--background" in notes(off)
    assert notes(off, background=True) == ""
    found, clean = Scene.detect(off.observation), Scene.detect(scene.observation)
    assert len(found.sources) == len(clean.sources)


def test_wings_are_no_level_of_the_sky() -> None:
    """A bright galaxy whose profile falls as slowly as r^-3 raises the whole image, its corners by 0.2 sigma."""
    scene = blend()
    y, x = np.indices(SHAPE) - 31.0
    wings = 2e4 / (9 + y**2 + x**2) ** 1.5
    assert wings.min() > 0.2
    assert notes(with_change(scene, images=scene.observation.images + SIGMA * wings)) == ""


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.8])
def test_correlated_noise_is_noted_with_its_factor(smoothing: float) -> None:
    """The variance of a flux fitted with the PSF's Gaussian P is sum rho (P * P) over that of white noise."""
    scene = blend(smooth_noise((3, *SHAPE), smoothing, 3))
    found = notes(scene)
    rho = smooth_correlation(smoothing)
    overlap = gaussian(rho.shape, 12, 12, 1.7 * 2**0.5)
    factor = np.sqrt((rho * overlap).sum() / overlap[12, 12])
    assert bool(found) == bool(smoothing)
    if smoothing:
        assert float(found.split("errors may be ")[1].split()[0]) == pytest.approx(factor, rel=0.1)
        assert notes(with_change(scene, noise_correlation=rho)) == ""


@pytest.mark.parametrize("width", [1.7, 2.0])
def test_a_psf_like_the_galaxies_is_right(width: float) -> None:
    psf = gaussian((41, 41), 20, 20, width)
    assert notes(with_change(blend(), psf=np.stack([psf / psf.sum()] * 3))) == ""


def test_a_psf_of_finer_pixels_is_noted() -> None:
    psf = gaussian((61, 61), 30, 30, 4 * 1.7)
    found = notes(with_change(blend(), psf=np.stack([psf / psf.sum()] * 3)))
    assert "sources in g, r, i fall off faster than the PSF does" in found


def test_images_of_magnitudes_are_refused() -> None:
    scene = blend()
    images = 27 - 2.5 * np.log10(np.maximum(scene.observation.images, 0.01))
    with pytest.raises(DataError, match=r"images: expected fluxes, received values such as .* as magnitudes are"):
        examined(with_change(scene, images=images))


@pytest.mark.parametrize("mark", [0, -999])
def test_pixels_without_data_that_are_not_masked_are_noted_alone(mark: float) -> None:
    scene = blend()
    images = scene.observation.images.copy()
    images[:, :16] = mark
    (found,) = examined(with_change(scene, images=images)).observation.notes
    assert found == f"25.0% of the pixels are exactly as those around them, such as {mark}: mask what is no data"


def test_a_level_of_the_sky_is_not_taken_for_another_mistake() -> None:
    """Neither where it is far below 0, nor where weights vary from pixel to pixel."""
    scene = blend()
    weights = scene.observation.weights * np.random.default_rng(0).uniform(0.7, 1.3, scene.observation.shape)
    for level, changed in ((-20, {}), (30, {"weights": weights})):
        images = scene.observation.images + level * SIGMA
        (found,) = examined(with_change(scene, images=images, **changed)).observation.notes
        assert found.startswith("the sky is not 0"), found


def test_an_image_without_noise_is_noted() -> None:
    scene = blend(np.zeros((3, *SHAPE)))
    assert notes(scene).startswith("no noise is seen in g, r, i")


def test_real_blends_have_no_false_alarm(data: Path) -> None:
    """Of 99 real scenes three have a note, and it is true: their noise is correlated by resampling."""
    files = [*(data / "hsc_blends").glob("*.npz"), *(data / "scenes").glob("hsc_*.npz")]
    found = [notes(Scene.read(file)) for file in files]
    assert len(files) == 99
    assert sum(bool(line) for line in found) <= 4
    assert all(line.startswith("the noise of neighbouring pixels is correlated") for line in found if line)
