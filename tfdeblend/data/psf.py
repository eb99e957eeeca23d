"""Point spread functions as images: their centres, widths, transfer functions, and the model PSF that suits them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene

TYPICAL_SEEING = 0.7  # arcsec: the assumed FWHM where no pixel scale is known, only to scale the prior's radii
FINE = 12  # points per pixel along each axis on which a width is measured
MODEL_SIGMA = 1.0  # pixels: the model PSF's sigma, wherever the observed PSFs allow it; wider ones alias less
NARROWEST_MODEL_SIGMA = 0.45  # below, a stamp sampled at whole pixels no longer represents its profile
LARGEST_GAIN = 1.02  # of PSF over model PSF in Fourier space: the sigma that just obeys it has the least aliasing
FWHM_PER_SIGMA = 2.3548  # of a Gaussian
NARROWEST_WINDOW = 1.3  # pixels: sigma of the window of a centroid; in a narrower one pixels would bias it
# Full widths at half maximum of a PSF: a source without an unmasked pixel so near is not fitted. Simulated galaxies of
# 8,000 times a pixel's noise change the flux of a neighbour inside by 17 errors where they lie two widths outside, by 3
# at three widths.
REACH = 3.0
WINDOW_REACH = 5  # of its sigma, where the window ends
GAIN_SIDE = 64  # pixels of the Fourier grid on which that gain is looked at


def psf_center(psf: np.ndarray) -> tuple[float, float]:
    """Find the origin (y, x), in pixels, of a PSF (C, h, w).

    It is the middle along axes of odd size. A PSF of even size is centred either on the corner between its middle
    pixels (as GalSim draws it) or on pixel size / 2 (as an FFT shift leaves it): the one nearer to its centroid is
    taken.
    """
    height, width = psf.shape[1:]
    if height % 2 and width % 2:
        return (height - 1) / 2, (width - 1) / 2
    y, x = centroid(psf.sum(0))
    return _origin(height, y), _origin(width, x)


def _origin(size: int, centroid: float) -> float:
    """The origin along one axis, in pixels."""
    if size % 2:
        return (size - 1) / 2
    return min(((size - 1) / 2, size / 2), key=lambda origin: abs(origin - centroid))


def centroid(psf: np.ndarray) -> tuple[float, float]:
    """Measure where a PSF (h, w) is centred: (y, x) in pixels, in a Gaussian window as wide as its core.

    Wings and their noise hardly count, as in SExtractor's XWIN_IMAGE. It is good to 0.01 pixel from a width of 1.5
    pixels on, and to 0.05 where the window reaches out of the stamp, beyond which there is taken to be no light.
    """
    import sep

    core = psf > psf.max() / 2
    y, x = (float(at.mean()) for at in np.nonzero(core))
    sigma = max(core_width(psf) / FWHM_PER_SIGMA, NARROWEST_WINDOW)
    border = int(np.ceil(WINDOW_REACH * sigma))
    [found_x], [found_y], [flag] = sep.winpos(np.pad(psf.astype(float), border), [x + border], [y + border], sigma)
    return (y, x) if flag else (float(found_y) - border, float(found_x) - border)


def core_width(psf: np.ndarray) -> float:
    """The diameter, in pixels, of the circle as large as the pixels above half the maximum of a PSF (h, w)."""
    return float(2 * np.sqrt((psf > psf.max() / 2).sum() / np.pi))


def fwhm(psf: np.ndarray) -> np.ndarray:
    """Measure the full width at half maximum of each PSF (C, h, w): (C,) in pixels.

    It is the diameter of the circle that is as large as the area above half the maximum. Both are found between the
    pixels, by band-limited interpolation: good to 2% from a width of 2 pixels on where the PSF is centred on a pixel,
    from 3 pixels on wherever it is centred.
    """
    return np.array([_fwhm(band.astype(float).tobytes(), *band.shape) for band in psf])


@lru_cache(maxsize=1024)  # parts of a field ask for the same PSF hundreds of times
def _fwhm(pixels: bytes, height: int, width: int) -> float:
    psf = np.frombuffer(pixels).reshape(height, width)
    bright = psf > psf.max() / 4  # half the maximum is crossed within a pixel of these
    seen = (np.flatnonzero(bright.any(1 - axis)) for axis in (0, 1))
    y, x = (_interpolation(n, int(at[0]) - 1, int(at[-1]) + 1) for n, at in zip(psf.shape, seen, strict=True))
    fine = y @ psf @ x.T
    return float(2 * np.sqrt((fine > fine.max() / 2).sum() / np.pi) / FINE)


@lru_cache(maxsize=64)
def _interpolation(size: int, first: int, last: int) -> np.ndarray:
    """The matrix (n, size) that interpolates a profile at n points, FINE a pixel, in its pixels `first` to `last`.

    It does so by the Dirichlet kernel, as zero-padding the profile's Fourier transform would.
    """
    first, last = max(first, 0), min(last, size - 1)
    points = first - 0.5 + (np.arange(FINE * (last + 1 - first)) + 0.5) / FINE
    offset = points[:, None] - np.arange(size)
    kernel = np.sinc(offset) / np.sinc(offset / size)
    return kernel if size % 2 else kernel * np.cos(np.pi * offset / size)


def pixels_per_arcsec(scene: Scene) -> float:
    """Convert arcsec to pixels by the observation's pixel scale, else by its PSF, taken to be TYPICAL_SEEING wide."""
    scale = scene.observation.pixel_scale
    return 1 / scale if scale else float(np.median(fwhm(scene.observation.psf))) / TYPICAL_SEEING


def psf_spectrum(psf: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Fourier transform sampled PSFs (C, h, w) about their origin: (C, n) complex.

    frequencies: (n, 2) along (y, x), radian / pixel; any, while `transfer_function` takes those of an FFT.
    """
    y0, x0 = psf_center(psf)
    rows = np.exp(-1j * frequencies[:, :1] * (np.arange(psf.shape[1]) - y0))
    columns = np.exp(-1j * frequencies[:, 1:] * (np.arange(psf.shape[2]) - x0))
    return np.stack([((rows @ band) * columns).sum(1) for band in psf])


def gaussian_psf(sigma: float) -> np.ndarray:
    """Draw the model PSF, (1, n, n) with n odd, summing to 1: a Gaussian of `sigma` pixels sampled at whole pixels."""
    t = np.arange(-int(np.ceil(8 * sigma)), int(np.ceil(8 * sigma)) + 1)
    profile = np.exp(-0.5 * (t / sigma) ** 2)
    profile /= profile.sum()
    return (profile[:, None] * profile)[None]


def transfer_function(psf: np.ndarray, model_sigma: float, side: int) -> np.ndarray:
    """Divide the Fourier transforms of PSFs by that of the model PSF: what takes a stamp to the observed source.

    Args:
      psf: (C, h, w), each summing to 1; what lies further than side / 2 from the origin is cut off.
      model_sigma: pixels, of `gaussian_psf`, as which stamps are sampled.
      side: pixels of the Fourier grid.

    Returns:
      (C, side, side // 2 + 1) complex, as `np.fft.rfft2` orders frequencies.
    """
    return _spectrum_on_grid(psf, side) / _spectrum_on_grid(gaussian_psf(model_sigma), side)


def _spectrum_on_grid(psf: np.ndarray, side: int) -> np.ndarray:
    """`psf_spectrum` at the frequencies of `np.fft.rfft2`, of the part of the PSF within side / 2 of its origin."""
    bands, height, width = psf.shape
    y0, x0 = psf_center(psf)
    rows, columns = (np.arange(n) - int(np.floor(c)) for n, c in ((height, y0), (width, x0)))
    reach = min(side // 2, max(height, width))
    keep_y, keep_x = np.abs(rows) < reach, np.abs(columns) < reach
    padded = np.zeros((bands, side, side))
    padded[:, (rows[keep_y] % side)[:, None], columns[keep_x] % side] = psf[:, keep_y][:, :, keep_x]
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    phase = np.exp(2j * np.pi * (fy * (y0 % 1) + fx * (x0 % 1)))
    return np.fft.rfft2(padded) * phase


def choose_model_sigma(scene: Scene) -> float:
    """Choose the sigma, in pixels, of the widest model PSF, up to MODEL_SIGMA, whose transfer functions never amplify.

    Raises: DataError where even the narrowest amplifies: the observation is undersampled.
    """
    psf = scene.observation.psf
    for sigma in np.linspace(MODEL_SIGMA, NARROWEST_MODEL_SIGMA, 8):
        if np.abs(transfer_function(psf, sigma, GAIN_SIDE)).max() <= LARGEST_GAIN:
            return float(sigma)
    widths = ", ".join(f"{width:.2f}" for width in fwhm(psf))
    expected = f"expected a PSF wider than a Gaussian of sigma {NARROWEST_MODEL_SIGMA} pixel"
    raise DataError(scene.name, "psf", f"{expected}, received FWHM {widths} pixels (undersampled)")
