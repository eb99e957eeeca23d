"""Scenes as they are observed: PSF, flux, edges, sub-pixel positions; against GalSim and closed forms."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import tensorflow as tf
from helpers import gaussian

from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import choose_model_sigma, transfer_function
from tfdeblend.data.scene import Scene, Source
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.operators import Convolve, Place
from tfdeblend.forward.shapes import fast_fourier_size, scene_shape
from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.profiles import Mixture


def gaussians(sigma: float, center: tuple[float, float], resolution: float) -> Mixture:
    """A round Gaussian of unit flux, seen with a model PSF of sigma `resolution`."""
    variance = sigma**2 + resolution**2
    return Mixture(
        tf.ones([1, 1, 1], tf.float64),
        tf.constant([[[variance, 0, variance]]], tf.float64),
        tf.constant([center], tf.float64),
    )


def galaxy(index: float, radius: float, shape: tuple[float, float], center: tuple[float, float], resolution: float):
    amplitude, variance = profiles.sersic(tf.constant([index], tf.float64))
    matrix = profiles.ellipse(tf.constant([shape], tf.float64))[:, None]
    covariance = radius**2 * variance[..., None] * matrix + resolution**2 * np.array([1.0, 0, 1])
    return Mixture(amplitude[:, None], covariance, tf.constant([center], tf.float64))


def observe(
    mixture: Mixture, pixel: tuple[int, int], psf: np.ndarray, resolution: float, image: int, margin: int, stamp: int
) -> np.ndarray:
    """(image, image): a mixture around a pixel, seen with a PSF; the Fourier grid holds frame and PSF side by side."""
    frame = image + 2 * margin
    side = fast_fourier_size(frame + max(psf.shape))
    kernel = tf.constant(transfer_function(psf[None], resolution, side)[None], tf.complex128)
    corner = tf.constant([[pixel]], tf.int32) - stamp // 2 + margin
    operator = Convolve(kernel, side, margin, (image, image)) @ Place(corner, stamp, frame, tf.float64)
    return operator(profiles.render(mixture, stamp)[None]).numpy()[0, 0]


@pytest.mark.parametrize("sigma", [1.1, 2.1, 3.5])
def test_model_psf_becomes_the_observed_psf(sigma: float) -> None:
    """A point source at the model PSF's resolution is seen as the PSF itself."""
    psf = gaussian((43, 43), 21, 21, sigma)
    psf /= psf.sum()
    seen = observe(gaussians(0, (0, 0), 0.9), (21, 21), psf, 0.9, 43, 0, 31)
    np.testing.assert_almost_equal(seen, psf, decimal=7)


@pytest.mark.parametrize("center", [(0, 0), (0.5, 0.5), (0.3, -0.4)])
def test_gaussians_convolve_in_closed_form(center: tuple[float, float]) -> None:
    psf = gaussian((61, 61), 30, 30, 2.0)
    seen = observe(gaussians(1.5, center, 0.8), (30, 30), psf, 0.8, 61, 0, 61)
    expected = gaussian((61, 61), 30 + center[0], 30 + center[1], 2.5)
    np.testing.assert_allclose(seen, expected, atol=1e-4 * expected.max())


def moffat(side: int, fwhm: float = 3.5) -> np.ndarray:
    psf = galsim.Moffat(beta=3.5, fwhm=fwhm).drawImage(nx=side, ny=side, scale=1, method="no_pixel", dtype=float).array
    return psf / psf.sum()


def test_flux_is_conserved() -> None:
    for psf in (moffat(43), moffat(20)):
        seen = observe(galaxy(1, 2, (0.2, 0.3), (0.2, 0.1), 0.8), (75, 75), psf, 0.8, 151, 0, 96)
        assert seen.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize("pixel", [(0, 0), (0, 23), (23, 23), (0, 11), (11, 23), (23, 5), (11, 0)])
def test_light_does_not_wrap_around(pixel: tuple[int, int], side: int) -> None:
    """A source at an edge or corner looks as it does in the middle of a far larger image."""
    psf, mixture = moffat(side), galaxy(1, 1.5, (0.3, -0.3), (0.4, -0.2), 0.8)
    margin = 24
    seen = observe(mixture, pixel, psf, 0.8, 24, margin, 40)
    far = observe(mixture, (pixel[0] + 60, pixel[1] + 60), psf, 0.8, 144, margin, 40)[60:84, 60:84]
    np.testing.assert_allclose(seen, far, atol=1e-6 * far.max())


@pytest.mark.parametrize(("psf_side", "tolerance"), [(15, 1e-3), (43, 1e-4)])
@pytest.mark.parametrize("pixel", [(0, 0), (31, 0), (31, 31), (0, 16), (16, 31)])
def test_batches_leave_enough_room(pixel: tuple[int, int], psf_side: int, tolerance: float) -> None:
    """With the margins that a batch chooses nothing wraps around, and only wings of wings are lost beyond the frame."""
    observation = Observation(np.ones((1, 32, 32)), np.ones((1, 32, 32)), moffat(psf_side))
    scene = Scene(observation, (Source(*pixel),))
    shape = scene_shape(scene, 48)
    batch = Batch.build([scene], shape, tf.float64)
    resolution = shape.model_sigma
    mixture = galaxy(1, 2, (0.3, -0.3), (0, 0), resolution)
    placed = galaxy(1, 2, (0.3, -0.3), tuple(batch.tensors.centers.numpy()[0, 0]), resolution)
    unit = tf.pad(profiles.render(placed, 48)[None], [[0, 0], [0, shape.sources - 1], [0, 0], [0, 0], [0, 0]])
    (images,) = Likelihood(batch.tensors, shape).render(unit, tf.ones([1, shape.sources, 1], tf.float64))
    seen = images[0, 0].numpy()
    far = observe(mixture, (pixel[0] + 80, pixel[1] + 80), moffat(psf_side), resolution, 192, 0, 48)[80:112, 80:112]
    np.testing.assert_allclose(seen, far, atol=tolerance * far.max())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 17), (42, 42)])
@pytest.mark.parametrize("convention", ["corner", "pixel"])
def test_even_psf_puts_light_where_the_odd_one_does(height: int, width: int, convention: str) -> None:
    """Centred between the four middle pixels, as GalSim draws, or on pixel side / 2, as an FFT shift leaves it."""
    centers = [(n - 1) / 2 if n % 2 or convention == "corner" else n / 2 for n in (height, width)]
    even, odd = gaussian((height, width), *centers, 1.6), gaussian((43, 43), 21, 21, 1.6)
    mixture = galaxy(1, 2, (0.1, 0.2), (0.2, 0.1), 0.8)
    seen, expected = (observe(mixture, (20, 20), psf, 0.8, 41, 0, 41) for psf in (even, odd))
    np.testing.assert_allclose(seen, expected, atol=3e-5 * expected.max())


GALAXIES = [  # index, half-light radius in pixels, largest error of the peak
    (0.5, 2.0, 5e-4),  # the mixture that stands for the profile
    (1.0, 3.0, 1.5e-4),
    (1.0, 6.0, 1.5e-4),
    (1.0, 1.0, 4e-4),  # aliasing of the stamp, whose resolution is the model PSF's: see the next test
    (4.0, 3.0, 8e-4),  # the mixture
]


def by_galsim(
    index: float, radius: float, shape: tuple[float, float], center: tuple[float, float], psf: galsim.GSObject
) -> np.ndarray:
    """(101, 101): a galaxy about the middle pixel, convolved with a PSF."""
    parameters = galsim.GSParams(folding_threshold=5e-4, maxk_threshold=1e-4, kvalue_accuracy=1e-6)
    profile = galsim.Sersic(index, half_light_radius=radius, gsparams=parameters).shear(g1=shape[0], g2=shape[1])
    seen = galsim.Convolve([profile, psf], gsparams=parameters)
    offset = (center[1], center[0])
    return seen.drawImage(nx=101, ny=101, scale=1, method="no_pixel", offset=offset, dtype=float).array


@pytest.mark.parametrize("method", ["no_pixel", "auto"])
@pytest.mark.parametrize(("index", "radius", "tolerance"), GALAXIES)
def test_agrees_with_galsim(index: float, radius: float, tolerance: float, method: str) -> None:
    """With a Moffat PSF of FWHM 3.5 pixels drawn at the pixel scale, with or without the pixel's own response."""
    psf: galsim.GSObject = galsim.Moffat(beta=3.5, fwhm=3.5)
    drawn = psf.drawImage(nx=61, ny=61, scale=1, method=method, dtype=float).array
    if method == "auto":
        psf = galsim.Convolve([psf, galsim.Pixel(1)])
    for center in ((0.0, 0.0), (0.5, 0.5), (0.3, -0.4)):
        expected = by_galsim(index, radius, (0.3, -0.2), center, psf)
        seen = observe(galaxy(index, radius, (0.3, -0.2), center, 0.8), (50, 50), drawn, 0.8, 101, 0, 81)
        core = np.s_[20:81, 20:81]
        np.testing.assert_allclose(seen[core], expected[core], atol=tolerance * expected.max())


def test_a_wider_model_psf_aliases_less() -> None:
    """What small sources differ from GalSim is aliasing of the stamp, and falls as the model PSF gets wider."""
    psf = galsim.Moffat(beta=3.5, fwhm=4.5)
    drawn = psf.drawImage(nx=61, ny=61, scale=1, method="no_pixel", dtype=float).array
    expected = by_galsim(0.5, 0.8, (0, 0), (0.5, 0.5), psf)
    errors = []
    for resolution in (0.6, 0.8, 1.0):
        mixture = gaussians(0.8 / 1.177410, (0.5, 0.5), resolution)
        seen = observe(mixture, (50, 50), drawn, resolution, 101, 0, 81)
        errors.append(np.abs(seen - expected)[20:81, 20:81].max() / expected.max())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 3e-5


EXACT = galsim.GSParams(
    folding_threshold=1e-5, maxk_threshold=1e-6, kvalue_accuracy=1e-8, stepk_minimum_hlr=10, maximum_fft_size=16384
)
HALF_LIGHT_RADII = [(index, radius) for index in (0.5, 1.0, 4.0) for radius in (1.0, 3.0, 8.0)]
SUB_PIXEL = [(0.0, 0.0), (0.5, 0.5), (0.3, -0.4)]


def exactly(profile: galsim.GSObject, psf: galsim.GSObject, side: int, center: tuple[float, float]) -> np.ndarray:
    """(side, side): GalSim's draw of profile * psf around pixel side // 2."""
    offset = np.array(center[::-1]) + (0.5 if side % 2 == 0 else 0)
    seen = galsim.Convolve([profile, psf], gsparams=EXACT)
    return seen.drawImage(nx=side, ny=side, scale=1, method="no_pixel", offset=tuple(offset), dtype=float).array


def operator_error(index: float, radius: float, fwhm: float, psf_side: int, stamp: int = 201) -> float:
    """Largest difference of GalSim's own stamp, seen through the operator, from GalSim's convolution, of the peak.

    The stamp is large enough to hold the light that reaches the image, and its resolution is the one batches choose.
    """
    psf = galsim.Moffat(beta=3.5, fwhm=fwhm, gsparams=EXACT)
    drawn = psf.drawImage(nx=psf_side, ny=psf_side, scale=1, method="no_pixel", dtype=float).array
    drawn /= drawn.sum()
    observation = Observation(np.ones((1, 20, 20)), np.ones((1, 20, 20)), drawn[None])
    resolution = choose_model_sigma(Scene(observation, (Source(10, 10),)))
    assert resolution == 1.0
    profile = galsim.Sersic(index, half_light_radius=radius, gsparams=EXACT).shear(g1=0.3, g2=-0.2)
    image, margin = 101, max(0, stamp // 2 - 49)
    frame = image + 2 * margin
    side = fast_fourier_size(frame + psf_side)
    kernel = tf.constant(transfer_function(drawn[None], resolution, side)[None], tf.complex128)
    corner = tf.fill([1, 1, 2], image // 2 + margin - stamp // 2)
    operator = Convolve(kernel, side, margin, (image, image)) @ Place(corner, stamp, frame, tf.float64)
    errors = []
    for center in SUB_PIXEL:
        unit = exactly(profile, galsim.Gaussian(sigma=resolution, gsparams=EXACT), stamp, center)
        expected = exactly(profile, psf, image, center)
        seen = operator(tf.constant(unit[None, None, None])).numpy()[0, 0]
        errors.append(np.abs(seen - expected).max() / expected.max())
    return max(errors)


@pytest.mark.parametrize(("fwhm", "psf_side", "stamp"), [(3.5, 61, 201), (4.5, 61, 200), (4.5, 60, 201)])
@pytest.mark.parametrize(("index", "radius"), HALF_LIGHT_RADII)
def test_operator_agrees_with_galsim(index: float, radius: float, fwhm: float, psf_side: int, stamp: int) -> None:
    """To 1e-4 of the peak, anywhere in the image, for any Sersic galaxy at any sub-pixel position."""
    assert operator_error(index, radius, fwhm, psf_side, stamp) < 1e-4


@pytest.mark.parametrize(
    ("index", "radius", "bound"),
    [(0.5, 1.0, 1.3e-4), (0.5, 3.0, 1e-4), (1.0, 1.0, 2.5e-4), (1.0, 3.0, 1e-4), (4.0, 1.0, 6e-4), (4.0, 8.0, 2.1e-4)],
)
def test_narrow_even_psf_limits_the_operator(index: float, radius: float, bound: float) -> None:
    """An even-sided PSF is not sampled at its centre: moved there by half a pixel, what it aliases goes astray.

    Sharp galaxies show it: 1e-4 holds from FWHM 4.5 pixels on, and with an odd-sided PSF of 3.5 (see above).
    """
    assert operator_error(index, radius, 3.5, 60) < bound


@pytest.mark.parametrize("psf_side", [25, 31, 43])
def test_wings_beyond_the_psf_limit_the_operator(psf_side: int) -> None:
    """A PSF normalised within its own image differs by the share of light beyond it, and the operator by no more."""
    psf = galsim.Moffat(beta=3.5, fwhm=3.5, gsparams=EXACT)
    lost = 1 - psf.drawImage(nx=psf_side, ny=psf_side, scale=1, method="no_pixel", dtype=float).array.sum()
    assert operator_error(1.0, 3.0, 3.5, psf_side, 101) < 1.3 * lost


@pytest.mark.parametrize("sigma", [0.2, 0.35])
def test_undersampled_psf_is_refused(sigma: float) -> None:
    psf = gaussian((15, 15), 7, 7, sigma)
    observation = Observation(np.ones((1, 20, 20)), np.ones((1, 20, 20)), psf / psf.sum(), name="blend")
    with pytest.raises(DataError, match=r"blend: psf: expected .*undersampled"):
        choose_model_sigma(Scene(observation, (Source(10, 10),)))


def test_model_psf_is_as_wide_as_the_psf_allows() -> None:
    def chosen(sigma: float) -> float:
        psf = gaussian((31, 31), 15, 15, sigma)
        observation = Observation(np.ones((1, 20, 20)), np.ones((1, 20, 20)), psf / psf.sum())
        return choose_model_sigma(Scene(observation, (Source(10, 10),)))

    widths = [chosen(sigma) for sigma in (0.5, 0.6, 0.7, 0.9, 2.0)]
    assert widths == sorted(widths)
    assert all(width <= 1.1 * sigma for width, sigma in zip(widths, (0.5, 0.6, 0.7, 0.9, 2.0), strict=True))
