"""Laws of resampling: moments of a Gaussian, GalSim's pictures, real files at several scales, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from astropy.wcs import WCS
from helpers import gaussian

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.psf import gaussian_psf
from tfdeblend.errors import DataError
from tfdeblend.forward.operators import Convolve
from tfdeblend.forward.resample import Resample, Shifted
from tfdeblend.forward.shapes import fast_fourier_size, kept_frequencies, resampled_transfer

POINT = np.ones((1, 1, 1))  # a PSF that changes nothing


def tangent(scale: float, degrees: float = 0.0, flip: bool = False, pixel: tuple[float, float] = (0.0, 0.0)) -> WCS:
    """Pixels of `scale` arcsec, turned, with the same sky position at `pixel` (y, x)."""
    wcs = WCS(naxis=2)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    wcs.wcs.cd = scale / 3600 * np.array([[c, -s], [s, c]]) @ np.diag([-1 if flip else 1, 1])
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.ctype = [150, 2], [pixel[1] + 1, pixel[0] + 1], ["RA---TAN", "DEC--TAN"]
    return wcs


def resample(
    frame: np.ndarray,
    pixels: AffineMap,
    shape: tuple[int, int],
    psf: np.ndarray = POINT,
    model_psf: np.ndarray = POINT,
    dtype: tf.DType = tf.float64,
) -> np.ndarray:
    """(H, W) one frame's image."""
    side = fast_fourier_size(len(frame) + 32)
    kernel = resampled_transfer(psf, model_psf, pixels, side, kept_frequencies(pixels, side))
    complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
    points = tf.constant(pixels.points(shape)[None], dtype)
    operator = Resample(tf.constant(kernel[None], complex_dtype), points, side, len(frame))
    return operator(tf.constant(frame[None, None], dtype)).numpy()[0, 0].astype(float)


def test_whole_steps_need_no_interpolation() -> None:
    """`Shifted` is `Resample` at a grid of the frame's own steps; points in common serve several blends."""
    frame, x = 24, np.random.default_rng(0).normal(size=(3, 1, 24, 24))
    pixels = AffineMap(np.eye(2), np.array([-2.3, 1.6]))
    psf, side = np.random.default_rng(1).uniform(size=(1, 5, 5)), 48
    kernel = tf.constant(resampled_transfer(psf / psf.sum(), gaussian_psf(0.8), pixels, side, side)[None])
    for step in (1, 2):
        points = tf.constant(pixels.points((28, 26))[None, ::step, ::step])
        exact = Shifted(kernel, points, side, frame, step)(tf.constant(x))
        assert exact.shape == (3, 1, 28 // step, 26 // step)
        np.testing.assert_allclose(
            Resample(kernel, points, side, frame)(tf.constant(x)), exact, atol=1e-5 * np.abs(exact).max()
        )
        one = Resample(kernel, points, side, frame)(tf.constant(x[1:2]))
        np.testing.assert_allclose(one[0], Resample(kernel, points, side, frame)(tf.constant(x))[1], atol=1e-12)


def elliptical(shape: tuple[int, int], center: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(H, W) Gaussian of unit flux; center (y, x), covariance (2, 2)."""
    d = np.moveaxis(np.indices(shape), 0, -1) - center
    chi2 = np.einsum("hwi,ij,hwj->hw", d, np.linalg.inv(covariance), d)
    return np.exp(-0.5 * chi2) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))


def moments(image: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Flux, centroid (y, x) and covariance (2, 2)."""
    place, flux = np.indices(image.shape), image.sum()
    center = (place * image).sum((1, 2)) / flux
    d = place - center[:, None, None]
    return flux, center, np.einsum("ihw,jhw,hw->ij", d, d, image) / flux


def shape_of(covariance: np.ndarray) -> np.ndarray:
    """sigma of the circle of equal area, and e1, e2 with |e| = (a - b) / (a + b)."""
    (yy, yx), (_, xx) = covariance
    area = np.sqrt(np.linalg.det(covariance))
    return np.array([np.sqrt(area), *np.array([xx - yy, 2 * yx]) / (xx + yy + 2 * area)])


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_moments_of_a_gaussian(dtype: tf.DType) -> None:
    """Scale 3.1, 30 degrees, a flip and a shift of (12, -1.9) pixels change moments as they should."""
    e1, e2 = 0.5, 0.3
    length = 1 - e1**2 - e2**2
    covariance = 100 / length * np.array([[(1 - e1) ** 2 + e2**2, 2 * e2], [2 * e2, (1 + e1) ** 2 + e2**2]])
    np.testing.assert_allclose(shape_of(covariance), [10, e1, e2], rtol=1e-12)
    frame, shape, here = 300, (96, 100), np.array([149.3, 150.2])
    there = np.array([48 + 12, 50 - 1.9])
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    matrix = 3.1 * np.array([[c, s], [-s, c]]) @ np.diag([1, -1])
    pixels = AffineMap(matrix, here - matrix @ there)
    image = resample(elliptical((frame, frame), here, covariance), pixels, shape, dtype=dtype)
    inverse = np.linalg.inv(matrix)
    expected = inverse @ covariance @ inverse.T
    flux, center, found = moments(image)
    assert abs(flux - 1) < 1e-6
    np.testing.assert_allclose(center, there, atol=1e-5)
    np.testing.assert_allclose(shape_of(found)[0], 10 / 3.1, rtol=3e-5)
    np.testing.assert_allclose(shape_of(found)[1:], shape_of(expected)[1:], atol=3e-5)
    truth = elliptical(shape, there, expected)
    np.testing.assert_allclose(image, truth, atol=3e-6 * truth.max())


@pytest.mark.parametrize(("scale", "degrees", "flip"), [(0.168, 25.0, True), (0.11, 0.0, False), (0.06, -70.0, False)])
def test_agrees_with_galsim(scale: float, degrees: float, flip: bool) -> None:
    """A galaxy drawn by GalSim through an elliptical PSF on turned pixels, from its picture in the model frame."""
    import galsim

    fine, sigma, frame, shape = 0.05, 1.0, 200, (52, 56)
    galaxy = galsim.Sersic(1.5, half_light_radius=0.4).shear(g1=0.3, g2=-0.2)
    seen = galsim.Convolve(galaxy, galsim.Gaussian(sigma=sigma * fine))
    stamp = seen.drawImage(nx=frame, ny=frame, scale=fine, method="no_pixel", offset=(0.5, 0.5)).array  # at 100, 100
    pixels = AffineMap.between("x", tangent(scale, degrees, flip, (25, 28)), tangent(fine, pixel=(100, 100)), shape)
    to_sky = fine * pixels.matrix[::-1, ::-1]  # of (x, y), in arcsec
    wcs = galsim.JacobianWCS(*to_sky.ravel())
    blur = galsim.Moffat(beta=3.5, fwhm=3.2 * scale).shear(g1=-0.1, g2=0.05)
    psf = blur.drawImage(nx=61, ny=61, wcs=wcs).array
    expected = galsim.Convolve(galaxy, blur).drawImage(nx=shape[1], ny=shape[0], wcs=wcs, offset=(0.5, -0.5)).array
    image = resample(stamp.astype(float), pixels, shape, psf[None] / psf.sum(), gaussian_psf(sigma))
    np.testing.assert_allclose(image.sum() / expected.sum(), 1, atol=2e-4)
    np.testing.assert_allclose(image, expected, atol=1e-4 * expected.max())


def test_same_pixels_is_a_convolution() -> None:
    """With nothing to resample, the operator is `Convolve` without the Nyquist frequency."""
    side, frame = 64, 40
    pixels = AffineMap(np.eye(2), np.array([8.0, 8.0]))
    kernel = resampled_transfer(gaussian((15, 15), 7, 7, 1.5)[None], gaussian_psf(0.8), pixels, side, side)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 1, frame, frame)))
    convolved = Convolve(tf.constant(kernel[None]), side, 8, (24, 24))(x)
    resampled = Resample(tf.constant(kernel[None]), tf.constant(pixels.points((24, 24))[None]), side, frame)(x)
    np.testing.assert_allclose(resampled, convolved, atol=3e-6 * np.abs(convolved).max())


def test_nothing_is_seen_beyond_the_frame() -> None:
    """Far from the frame an image is dark, and not another period of it."""
    frame = gaussian((64, 64), 32, 32, 3)
    here = resample(frame, AffineMap(2 * np.eye(2), np.zeros(2)), (32, 32))
    for far in (-96.0, 96.0, 192.0):
        away = resample(frame, AffineMap(2 * np.eye(2), np.array([far, 0.0])), (32, 32))
        assert np.abs(away).max() < 1e-6 * here.max()


def test_map_follows_two_wcs() -> None:
    """Sky positions agree, in other celestial frames too; the area is that of the pixels."""
    model = tangent(0.03, pixel=(100, 90))
    for observed in (tangent(0.168, 30, True, (20.5, 12)), galactic(tangent(0.168, -50, False, (5, 5)))):
        pixels = AffineMap.between("x", observed, model, (40, 50))
        for q in ([0.0, 0.0], [13.2, 40.1]):
            y, x = pixels.matrix @ q + pixels.offset
            apart = observed.pixel_to_world(q[1], q[0]).separation(model.pixel_to_world(x, y).transform_to("icrs"))
            assert apart.arcsec < 1e-4
        np.testing.assert_allclose(pixels.area, (0.168 / 0.03) ** 2, rtol=1e-5)
        np.testing.assert_allclose(pixels.points((40, 50))[13, 40], pixels.matrix @ [13, 40] + pixels.offset)


def galactic(wcs: WCS) -> WCS:
    """The same pixels in Galactic coordinates about the same position, turned as these are."""
    center = wcs.pixel_to_world(wcs.wcs.crpix[0] - 1, wcs.wcs.crpix[1] - 1).galactic
    turned = wcs.deepcopy()
    turned.wcs.ctype, turned.wcs.crval = ["GLON-TAN", "GLAT-TAN"], [center.l.deg, center.b.deg]
    return turned


def test_map_refuses() -> None:
    """Pixels that bend more than TOLERANCE, and a sky on the other side."""
    wide = tangent(600.0, pixel=(50, 50))
    with pytest.raises(DataError, match=r"deep: wcs: expected pixels that map affinely to within 0\.02.*cut the image"):
        AffineMap.between("deep", wide, arc(wide), (100, 100))
    opposite = tangent(1.0)
    opposite.wcs.crval = [330, -2]
    with pytest.raises(DataError, match="wcs: expected"):
        AffineMap.between("deep", opposite, tangent(1.0), (10, 10))


def arc(wcs: WCS) -> WCS:
    """The same with another projection."""
    other = wcs.deepcopy()
    other.wcs.ctype = ["RA---ARC", "DEC--ARC"]
    return other


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_scales_of_one_galaxy(data: Path, number: int) -> None:
    """From the finest of five files each coarser one, to 1% (relative L2), the finest's own PSF being the model's."""
    finest, model_psf, model_wcs = read(data / "scenes/multiresolution/sampled_0.fits")
    image, psf, wcs = read(data / f"scenes/multiresolution/sampled_{number}.fits")
    pixels = AffineMap.between("x", wcs, model_wcs, image.shape)
    found = resample(finest, pixels, image.shape, psf, model_psf)
    assert np.linalg.norm(found - image) < 0.01 * np.linalg.norm(image)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, WCS]:
    with fits.open(path) as file:
        return file[0].data.astype(float), np.asarray(file["PSF"].data, float), WCS(file[0].header)
