"""Fast images of galaxies: every component is drawn once in Fourier space, whatever the number of bands.

A source is a sum of components c with fluxes f_cb in band b and PSF P_b, so that its image is the inverse transform of
P_b(k) sum_c f_cb S_c(k): one S_c(k) a component, by GalSim, and one inverse transform a band. Grids lie around the
source and are as large as its light reaches: what wraps around or is left out is below 1e-3 of the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import galsim
import numpy as np

LEAK = 3e-4  # of a PSF's Fourier amplitude beyond the Nyquist frequency that is left out: bounds the error, peak = 1
MARGIN = 1.2  # times the PSFs' reach that a grid extends beyond a component
SIDES = (32, 48, 64, 80, 96, 128, 144, 160, 192, 256, 320, 384, 512, 768, 1024)


class Knots(NamedTuple):
    """Round Gaussians with shares (J,), offsets (J,2) of (y, x) and sigmas (J,) in arcsec."""

    share: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray


class Component(NamedTuple):
    """A profile of unit flux, its flux in each band (C,), and how far (arcsec) its light reaches."""

    profile: Any  # a galsim.GSObject or Knots
    flux: np.ndarray
    reach: float


@dataclass(frozen=True)
class Grid:
    """A square of `side` pixels of `scale` arcsec, whose frequencies go up to `oversampling` times Nyquist's."""

    side: int
    oversampling: int
    scale: float

    @cached_property
    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """ky (F,) in the order of an FFT, kx (F/2 + 1,), radian / arcsec; F = side * oversampling."""
        number, spacing = self.side * self.oversampling, self.scale / self.oversampling
        return 2 * np.pi * np.fft.fftfreq(number, spacing), 2 * np.pi * np.fft.rfftfreq(number, spacing)

    def spectrum(self, profile: Any) -> np.ndarray:
        """Returns the transform (F, F/2 + 1) complex64 of a profile centred on the first pixel."""
        if isinstance(profile, Knots):
            return self._knots(profile)
        number = self.side * self.oversampling
        bounds = galsim.BoundsI(0, number // 2, -(number // 2), (number - 1) // 2)
        image = galsim.ImageCF(bounds, scale=2 * np.pi / (self.side * self.scale))
        return np.fft.ifftshift(profile.drawKImage(image=image, recenter=False).array, axes=0)

    def phase(self, y: float, x: float) -> np.ndarray:
        """Returns the factor (F, F/2 + 1) complex64 that moves a spectrum by (y, x) pixels."""
        ky, kx = self.frequencies
        rows, columns = np.exp(-1j * self.scale * y * ky), np.exp(-1j * self.scale * x * kx)
        return rows.astype(np.complex64)[:, None] * columns.astype(np.complex64)

    def image(self, spectrum: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Returns the flux (..., rows, columns) in some of the pixels of a spectrum (..., F, F/2 + 1)."""
        f, s = self.side * self.oversampling, self.oversampling
        folded = spectrum.reshape(*spectrum.shape[:-2], s, self.side, f // 2 + 1).sum(-3) if s > 1 else spectrum
        kept = np.fft.ifft(folded, axis=-2)[..., rows, :]
        return np.fft.irfft(kept, f, axis=-1)[..., ::s][..., columns] * s

    def _knots(self, knots: Knots) -> np.ndarray:
        ky, kx = self.frequencies
        y, x = (
            np.exp(-1j * knots.offset[:, axis, None] * k - 0.5 * (knots.sigma[:, None] * k) ** 2).astype(np.complex64)
            for axis, k in enumerate((ky, kx))
        )
        return np.einsum("jy,jx->yx", knots.share.astype(np.complex64)[:, None] * y, x)


@dataclass(frozen=True, eq=False)
class Camera:
    """PSFs (one a band, or one for all; pixel included) over pixels of `scale` arcsec; remembers their transforms.

    leak: of a PSF's Fourier amplitude, what may be left out: see `LEAK`.
    """

    psfs: Sequence[Any]
    scale: float
    leak: float = LEAK
    _spectra: dict[int, np.ndarray] = field(default_factory=dict)
    _grids: dict[int, Grid] = field(default_factory=dict)

    @classmethod
    def of_survey(cls, survey: Any) -> Camera:
        """Makes the camera of a survey: its PSFs, averaged over its pixels."""
        pixel = galsim.Pixel(survey.pixel_scale)
        return cls([galsim.Convolve(psf, pixel) for psf in survey.psfs()], survey.pixel_scale)

    @classmethod
    def of_model(cls, sigma: float, scale: float) -> Camera:
        """Makes the camera of the model frame: a Gaussian of `sigma` pixels, sampled at pixel centres."""
        return cls([galsim.Gaussian(sigma=sigma * scale)], scale)

    @cached_property
    def reach(self) -> float:
        """The radius in arcsec beyond which GalSim neglects a PSF's light."""
        return max(np.pi / psf.stepk for psf in self.psfs)

    @cached_property
    def oversampling(self) -> int:
        """The multiple of Nyquist's frequency that the PSFs reach."""
        return max(_oversampling(psf, self.scale, self.leak) for psf in self.psfs)

    def grid(self, reach: float) -> Grid:
        """Returns the grid for a source whose light reaches so many arcsec."""
        pixels = 2 * (reach + MARGIN * self.reach) / self.scale
        side = next((side for side in SIDES if side >= pixels), SIDES[-1])
        if side not in self._grids:
            self._grids[side] = Grid(side, self.oversampling, self.scale)
        return self._grids[side]

    def spectra(self, grid: Grid) -> np.ndarray:
        """Returns the transforms (number of PSFs, F, F/2 + 1) of the PSFs."""
        if grid.side not in self._spectra:
            self._spectra[grid.side] = np.stack([grid.spectrum(psf) for psf in self.psfs])
        return self._spectra[grid.side]

    def draw(
        self,
        components: Sequence[Component],
        y: float,
        x: float,
        shape: tuple[int, int],
        psfs: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """Draws the noiseless image (C, *shape) of one source at pixel (y, x), in the flux unit of its components.

        psfs: in place of the camera's, where the source has its own; none wider or sharper than all of the camera's.
        """
        grid = self.grid(max(component.reach for component in components))
        top, rows, place_y = _window(grid.side, y, shape[0])
        left, columns, place_x = _window(grid.side, x, shape[1])
        spectra = np.stack([grid.spectrum(component.profile) for component in components])
        flux = np.stack([component.flux for component in components]).astype(np.float32)
        blurs = self.spectra(grid) if psfs is None else np.stack([grid.spectrum(psf) for psf in psfs])
        blurs = blurs * grid.phase(place_y, place_x)
        if len(blurs) == 1:
            image = _mixed(flux, grid.image(spectra * blurs, rows, columns))
        else:
            image = grid.image(_mixed(flux, spectra) * blurs, rows, columns)
        total = np.zeros((len(image), *shape), np.float32)
        total[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        return total


def _mixed(flux: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Sums parts (N, ...) with fluxes (N, C) to (C, ...)."""
    return np.sum([f[:, None, None] * part for f, part in zip(flux, parts, strict=True)], axis=0)


def _window(side: int, position: float, size: int) -> tuple[int, slice, float]:
    """Finds where a grid of `side` pixels around a position falls in an image of `size` pixels.

    Returns the image's first pixel in the grid, the grid's pixels in the image, and the position in the grid.
    """
    corner = int(np.floor(position + 0.5)) - side // 2
    first, last = max(0, -corner), min(side, size - corner)
    return max(0, corner), slice(first, max(first, last)), position - corner


def _oversampling(psf: Any, scale: float, leak: float) -> int:
    """Finds the smallest multiple of Nyquist's frequency beyond which less than `leak` of the amplitude is left."""
    side, most = 32, 6
    k = 2 * np.pi / (side * scale)
    amplitude = np.abs(psf.drawKImage(nx=side * most, ny=side * most, scale=k).array)
    frequency = np.abs(np.arange(side * most) - side * most // 2)
    distance = np.maximum(frequency[:, None], frequency)  # in steps of k
    for times in range(1, most):
        if amplitude[distance > times * side / 2].sum() < leak * amplitude.sum():
            return times
    return most
