"""Point spread functions as images: their centres, widths and transfer functions."""

from __future__ import annotations

import numpy as np

from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError

TYPICAL_SEEING = 0.7  # arcsec: the assumed FWHM where no pixel scale is known, only to scale the prior's radii


def transfer_function(psf: np.ndarray, model_sigma: float, side: int) -> np.ndarray:
    """F[PSF] / F[model PSF] on a side x side Fourier grid.

    The model PSF is a Gaussian sampled at whole pixels, as stamps are. An even-sided PSF is centred either on the
    corner between its four middle pixels (as GalSim draws it) or on pixel side / 2 (as an FFT shift leaves it): the one
    nearer to its centroid is meant.

    Args:
      psf: (C, h, w), summing to 1. model_sigma: pixels.
    Returns:
      (C, side, side // 2 + 1) complex.
    """
    bands, height, width = psf.shape
    reach = min(side // 2, max(height, width))
    y0, x0 = psf_center(psf)
    rows, columns = (np.arange(n) - int(np.floor(c)) for n, c in ((height, y0), (width, x0)))
    keep_y, keep_x = np.abs(rows) < reach, np.abs(columns) < reach
    padded = np.zeros((bands, side, side))
    padded[:, (rows[keep_y] % side)[:, None], columns[keep_x] % side] = psf[:, keep_y][:, :, keep_x]
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    phase = np.exp(2j * np.pi * (fy * (y0 % 1) + fx * (x0 % 1)))
    t = np.minimum(np.arange(side), side - np.arange(side))
    gauss = np.exp(-0.5 * (t / model_sigma) ** 2)
    model = np.fft.fft(gauss / gauss.sum()).real
    return np.fft.rfft2(padded) * phase / (model[:, None] * model[None, : side // 2 + 1])


def psf_center(psf: np.ndarray) -> tuple[float, float]:
    """(y, x) pixel coordinates of the origin of a PSF (C, h, w)."""
    y, x = (_psf_center(psf.sum(0).sum(1 - axis), psf.shape[1 + axis]) for axis in (0, 1))
    return y, x


def _psf_center(profile: np.ndarray, size: int) -> float:
    """Pixel coordinate of the PSF's origin along one axis, by its size, and for even sizes by its centroid."""
    if size % 2:
        return (size - 1) / 2
    centroid = float(profile @ np.arange(size) / profile.sum())
    return min(((size - 1) / 2, size / 2), key=lambda c: abs(c - centroid))


def psf_fwhm(psf: np.ndarray) -> np.ndarray:
    """(C,) full width at half maximum in pixels: the mean along the brightest pixel's row and column, interpolated."""
    widths = []
    for band in psf:
        row, column = np.unravel_index(np.argmax(band), band.shape)
        widths.append(np.mean([_full_width(band[row]), _full_width(band[:, column])]))
    return np.array(widths)


def _full_width(profile: np.ndarray) -> float:
    fine = np.linspace(0, len(profile) - 1, 50 * len(profile))
    return float((np.interp(fine, np.arange(len(profile)), profile) > 0.5 * profile.max()).mean() * (len(profile) - 1))


def pixels_per_arcsec(scene: Scene) -> float:
    """From the observation's pixel scale, else from its PSF, taken to be TYPICAL_SEEING wide."""
    scale = scene.observation.pixel_scale
    return 1 / scale if scale else float(np.median(psf_fwhm(scene.observation.psf))) / TYPICAL_SEEING


def psf_spectrum(psf: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """(C, n) complex: the Fourier transform of sampled PSFs (C, h, w) about their origin.

    frequencies: (n, 2) along (y, x), radian / pixel.
    """
    y0, x0 = psf_center(psf)
    rows = np.exp(-1j * frequencies[:, :1] * (np.arange(psf.shape[1]) - y0))
    columns = np.exp(-1j * frequencies[:, 1:] * (np.arange(psf.shape[2]) - x0))
    return np.stack([((rows @ band) * columns).sum(1) for band in psf])


def gaussian_psf(sigma: float) -> np.ndarray:
    """(1, h, w) the model PSF: a Gaussian of `sigma` pixels sampled at whole pixels."""
    t = np.arange(-int(np.ceil(8 * sigma)), int(np.ceil(8 * sigma)) + 1)
    profile = np.exp(-0.5 * (t / sigma) ** 2)
    profile /= profile.sum()
    return (profile[:, None] * profile)[None]


MODEL_SIGMA = 1.0  # pixels: the model PSF's sigma, wherever the observed PSFs allow it; wider ones alias less


NARROWEST_MODEL_SIGMA = 0.45  # below, a stamp sampled at whole pixels no longer represents its profile


LARGEST_GAIN = 1.02  # of PSF over model PSF in Fourier space: the sigma that just obeys it has the least aliasing


def choose_model_sigma(scene: Scene) -> float:
    """The widest model PSF, up to MODEL_SIGMA, whose transfer functions do not amplify.

    Raises: DataError if even the narrowest does: the observation is undersampled.
    """
    psf = scene.observation.psf
    for sigma in np.linspace(MODEL_SIGMA, NARROWEST_MODEL_SIGMA, 8):
        if np.abs(transfer_function(psf, sigma, 64)).max() <= LARGEST_GAIN:
            return float(sigma)
    widths = ", ".join(f"{width:.2f}" for width in psf_fwhm(psf))
    expected = f"expected a PSF wider than a Gaussian of sigma {NARROWEST_MODEL_SIGMA} pixel"
    raise DataError(scene.name, "psf", f"{expected}, received FWHM {widths} pixels (undersampled)")


def allows_model_sigma(scene: Scene, sigma: float) -> bool:
    """Whether a model PSF of `sigma` pixels is narrower than the scene's PSFs, as far as these tell.

    Only frequencies below Nyquist's along any direction are asked: in the corners beyond, both PSFs are some 1e-4, and
    the noise of a measured one may well be the larger.
    """
    side = 64
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    gain = np.abs(transfer_function(scene.observation.psf, sigma, side))
    return bool(gain[:, radius <= 0.5].max() <= LARGEST_GAIN)
