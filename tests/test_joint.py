"""Laws of joint fits: one observation is the single fit, shifts and gains are found, more data make smaller errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from fields import COLOUR, FLUX, away, expose, places, positions
from helpers import gaussian, smooth_correlation
from tfdeblend.data.joint_detection import detect_together
from tfdeblend.forward.field import Exposures
from tfdeblend.forward.joint_likelihood import JointLikelihood
from tfdeblend.joint import CalibrationOptions, deblend_together

from tfdeblend.catalog.result import Deblended
from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError

KNOWN = CalibrationOptions(shift=0, gain=0)
SKIES = np.array([[500.0, -30.0], [0.0, 20.0], [3.0, 80.0]])  # of the two bands of three exposures


def expected(bands: Sequence[str]) -> np.ndarray:
    return FLUX[:, None] * [COLOUR[band] for band in bands]


@pytest.fixture(scope="module")
def epochs() -> Deblended:
    """Three exposures: turned, flipped, of coarser pixels, of other bands, shifted, of other skies, one of another
    gain."""
    observations = [
        expose("first"),
        expose("turned", degrees=25, seeing=0.8, noise=1.5, shift=(0.3, -0.2), gain=1.03, shape=(40, 42), seed=1),
        expose("coarse", 0.3, (30, 30), -60, True, 0.9, bands="ri", shift=(0, 0.1), seed=2),
    ]
    observations = [
        replace(one, images=one.images + sky[:, None, None]) for one, sky in zip(observations, SKIES, strict=True)
    ]
    return deblend_together(observations, positions(observations[0]), "sersic", background=True)


def test_skies_are_found(epochs: Deblended) -> None:
    """One in each band of each exposure, within a few of the errors they would have alone."""
    for view, sky, one in zip(epochs.views, SKIES, epochs.scene.observations, strict=True):
        alone = one.weights.sum((1, 2)) ** -0.5
        assert (np.abs(view.background - sky) < 6 * alone).all()


def test_fluxes_and_pictures_of_several_exposures(epochs: Deblended) -> None:
    assert epochs.header["converged"]
    assert epochs.scene.bands == ("g", "r", "i")
    np.testing.assert_allclose(epochs.flux, expected("gri"), rtol=0.03)
    assert epochs.chi2 == pytest.approx(1, abs=0.05)
    for view, one in zip(epochs.views, epochs.scene.observations, strict=True):
        assert view.chi2 == pytest.approx(1, abs=0.08)
        assert view.model.shape == one.shape
        total = view.sources.sum(0) + view.background[:, None, None]
        np.testing.assert_allclose(total, view.model, atol=1e-3 * view.sources.max())


def test_shifts_are_found(epochs: Deblended) -> None:
    """Relative to their mean, to 0.02 pixel, and within a few of their errors."""
    shifts = [(0, 0), (0.3, -0.2), (0, 0.1)]
    true = -np.array([pixels.matrix @ shift for pixels, shift in zip(epochs.scene.maps, shifts, strict=True)])
    off = epochs.calibration.shift - (true - true.mean(0))
    assert np.abs(off).max() < 0.02
    assert (np.abs(off) < 4 * epochs.calibration.shift_error).all()


def test_positions_are_those_in_the_first(epochs: Deblended) -> None:
    """Where the first shows the galaxies, not in the mean of all pointings, 0.1 pixel away."""
    found = np.stack([epochs.catalog["x"], epochs.catalog["y"]], 1)
    assert np.abs(epochs.calibration.shift[0]).max() > 0.05
    np.testing.assert_allclose(found, places(epochs.scene.observation), atol=0.03)


def test_gains_are_found(epochs: Deblended) -> None:
    """Relative to their mean in each band; of a band seen once nothing is known."""
    first, turned, coarse = epochs.calibration.gain
    np.testing.assert_allclose(turned - first, 0.03, atol=0.01)
    np.testing.assert_allclose((first + turned)[0] / 2, 1, atol=1e-12)
    np.testing.assert_allclose(coarse[1], 1, atol=1e-12)


@pytest.mark.parametrize("background", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_observation_is_the_single_fit(background: bool) -> None:
    """With a background, of an image with a sky, which is found."""
    one = expose("alone")
    one = replace(one, images=one.images + background * SKIES[0][:, None, None])
    alone = Deblender("sersic", background=background).deblend(Scene.from_catalog(one, positions(one)))
    together = deblend_together(
        [one], positions(one), "sersic", alone.stamps.shape[-1], calibration=KNOWN, background=background
    )
    sky_error = one.images[0].size ** -0.5
    np.testing.assert_allclose(together.background, alone.background, atol=0.3 * sky_error)
    np.testing.assert_allclose(together.background, background * SKIES[0], atol=6 * sky_error)
    for band in "gr":
        error = np.asarray(alone.catalog[f"flux_err_{band}"])
        np.testing.assert_allclose(together.catalog[f"flux_err_{band}"], error, rtol=0.03)
        assert (np.abs(together.catalog[f"flux_{band}"] - alone.catalog[f"flux_{band}"]) < 0.1 * error).all()
    np.testing.assert_allclose(together.model, alone.model, atol=2e-3 * alone.model.max())


def test_units_do_not_matter_to_the_fit() -> None:
    """With zero points: what is fitted is the same, whatever an exposure's unit."""
    first, other = replace(expose("first"), zeropoints=27.0), replace(expose("other", seed=1), zeropoints=27.0)
    faint = replace(other, images=10 * other.images, weights=other.weights / 100, zeropoints=29.5)
    scene = Scene.from_catalog(first, positions(first))
    one, same = (Exposures(scene, (second,)) for second in (other, faint))
    for name in ("images", "weights"):
        expected, found = (each.tensors(each.shape(48))[name][1] for each in (one, same))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(same.unit(faint), 10 * one.unit(other))


@pytest.mark.slow
def test_units_are_those_of_the_first() -> None:
    """Zero points join exposures of different units; errors are smaller than from either alone."""
    deep = replace(expose("deep"), zeropoints=27.0)
    other = expose("other", seed=1)
    faint = replace(other, images=10 * other.images, weights=other.weights / 100, zeropoints=29.5)
    place = positions(deep)
    one, both = (deblend_together(some, place, "sersic", calibration=KNOWN) for some in ([deep], [deep, faint]))
    np.testing.assert_allclose(both.flux, expected("gr"), rtol=0.03)
    np.testing.assert_allclose(both.flux_err / one.flux_err, 0.5**0.5, rtol=0.05)


def test_pull_is_the_gradient_of_chi_square() -> None:
    """By the stamps' pixels, through every exposure, the noise of one being correlated."""
    coarse = replace(expose("coarse", 0.3, (20, 24), 40, bands="r"), noise_correlation=smooth_correlation(0.5))
    observations = [expose("first", shape=(32, 32)), coarse]
    exposures = Exposures(Scene.from_catalog(observations[0], [[15.0, 16.0]]), tuple(observations[1:]))
    shape = exposures.shape(16)
    likelihood = JointLikelihood(exposures.tensors(shape), shape)
    stamps = tf.random.stateless_uniform([1, shape.sources, 2, 16, 16], (0, 1))
    ones, none = tf.ones([1, shape.sources, 2]), tf.zeros([1, 2])
    with tf.GradientTape() as tape:
        tape.watch(stamps)
        model = likelihood.render(stamps, ones, none)
        value = likelihood.chi2(model)
    gradient = tape.gradient(value, stamps).numpy()
    np.testing.assert_allclose(-2 * likelihood.pull(model).numpy(), gradient, atol=1e-4 * np.abs(gradient).max())
    less = likelihood.render(0.9 * stamps, ones, none)
    np.testing.assert_allclose(likelihood.rise(less, model), value - likelihood.chi2(less), rtol=1e-3)


def test_a_free_constant_is_eliminated_exactly() -> None:
    """Chi-square is that at the best constant, and a sky is that constant, worked out by hand."""
    observations = [expose("first", shape=(32, 32)), expose("coarse", 0.3, (20, 24), 40, bands="r")]
    exposures = Exposures(Scene.from_catalog(observations[0], [[15.0, 16.0]]), tuple(observations[1:]))
    shape = exposures.shape(16, background=True)
    tensors = exposures.tensors(shape)
    likelihood = JointLikelihood(tensors, shape)
    stamps = tf.random.stateless_uniform([1, shape.sources, 2, 16, 16], (0, 1))
    model = likelihood.render(stamps, tf.ones([1, shape.sources, 2]), tf.zeros([1, 2]))
    total = 0.0
    for constant, image, data, weights in zip(
        likelihood.constants(model), model, tensors["images"], tensors["weights"], strict=True
    ):
        residual, weight = (data - image).numpy().astype(float), weights.numpy().astype(float)
        best = (weight * residual).sum((2, 3)) / weight.sum((2, 3))
        np.testing.assert_allclose(constant, best, rtol=1e-4)
        total += (weight * (residual - best[..., None, None]) ** 2).sum()
    np.testing.assert_allclose(likelihood.chi2(model), total, rtol=1e-5)
    gram = likelihood.gram(stamps[:, :, None]).numpy()
    free = JointLikelihood(tensors, exposures.shape(16)).gram(stamps[:, :, None]).numpy()
    assert (np.linalg.eigvalsh(free - gram) > -1e-6 * free.max()).all()  # what a constant takes away is positive
    assert np.linalg.matrix_rank((free - gram)[0, 0], 1e-6 * free.max()) == 1


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
    found = detect_together(observations)
    assert list(found["observation"]) == ["sharp", "sharp", "deep"]
    off = np.stack([found["y"], found["x"]], 1) - (49.5 + places[:3] / 0.05)
    assert np.abs(off[:2]).max() < 0.3 and np.abs(off[2]).max() < 5
    with pytest.raises(DataError, match="sharp: catalog: expected sources, detected none"):
        detect_together([replace(one, images=1e-5 * one.images) for one in observations])


def test_refuses() -> None:
    first = expose("first")
    scene = Scene.from_catalog(first, positions(first))
    bad = {
        "second: wcs: expected a WCS to join": replace(first, name="second", wcs=None),
        "first: name: expected a name for each observation": first,
        "second: zeropoints: expected them of all": replace(first, name="second", zeropoints=27.0),
        "fine: wcs: expected pixels no finer than those of first": expose("fine", 0.1),
        "far: wcs: expected unmasked pixels in the image of first": replace(first, name="far", wcs=away(first.wcs)),
    }
    for message, other in bad.items():
        with pytest.raises(DataError, match=message):
            Exposures(scene, (other,))
    nameless = replace(first, bands=None)
    with pytest.raises(DataError, match=r"other: bands: expected names of bands, .* received none: band0, band1"):
        Exposures(Scene.from_catalog(nameless, positions(first)), (replace(nameless, name="other"),))


def test_maps_are_from_the_others_to_the_first() -> None:
    first, other = expose("first"), expose("other", 0.3, (30, 30), 20)
    pixels = Exposures(Scene.from_catalog(first, positions(first)), (other,)).maps[1]
    expected_map = AffineMap.between("x", other.wcs, first.wcs, (30, 30))
    np.testing.assert_allclose(pixels.matrix, expected_map.matrix)
    np.testing.assert_allclose(pixels.matrix @ [14.5, 14.5] + pixels.offset, [19.5, 19.5], atol=1e-6)
