"""Fast pictures of galaxies: every component is drawn once in Fourier space, whatever the number of bands.

A source is a sum of components c with fluxes f_cb in band b and PSF P_b, so that its image is the inverse transform of
P_b(k) sum_c f_cb S_c(k): one S_c(k) a component, by GalSim, and one inverse transform a band. Grids are as large as the
component's light reaches, so that what wraps around stays below 1e-4 of the peak.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import galsim
import numpy as np

LEAK = 3e-4  # of a PSF's Fourier amplitude beyond the Nyquist frequency that is left out: bounds the error, peak = 1
SIDES = (64, 96, 128, 144, 160, 192, 256, 320, 384, 512, 768, 1024)


class Knots(NamedTuple):
    """Round Gaussians: shares (J,), offsets (J,2) of (y, x) and sigmas (J,) in arcsec."""

    share: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray


class Component(NamedTuple):
    """A profile of unit flux, its flux in each band (C,), and how far (arcsec) its light reaches."""

    profile: Any  # a galsim.GSObject or Knots
    flux: np.ndarray
    reach: float


class Grid(NamedTuple):
    """A square of `side` pixels of `scale` arcsec, whose frequencies go up to `oversampling` times Nyquist's."""

    side: int
    oversampling: int
    scale: float

    @property
    def frequencies(self) -> tuple[np.ndarray, np.ndarray]:
        """ky (F,) in the order of an FFT, kx (F/2 + 1,), radian / arcsec; F = side * oversampling."""
        number, spacing = self.side * self.oversampling, self.scale / self.oversampling
        return 2 * np.pi * np.fft.fftfreq(number, spacing), 2 * np.pi * np.fft.rfftfreq(number, spacing)

    def spectrum(self, profile: Any) -> np.ndarray:
        """(F, F/2 + 1) complex: the transform of a profile centred on the first pixel."""
        if isinstance(profile, Knots):
            return self._knots(profile)
        number = self.side * self.oversampling
        bounds = galsim.BoundsI(0, number // 2, -(number // 2), (number - 1) // 2)
        image = galsim.ImageCD(bounds, scale=2 * np.pi / (self.side * self.scale))
        return np.fft.ifftshift(profile.drawKImage(image=image, recenter=False).array, axes=0)

    def phase(self, y: float, x: float) -> np.ndarray:
        """(F, F/2 + 1) that moves a spectrum by (y, x) pixels."""
        ky, kx = self.frequencies
        return np.exp(-1j * self.scale * y * ky)[:, None] * np.exp(-1j * self.scale * x * kx)

    def image(self, spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """(..., *shape) flux in each of the first pixels, from (..., F, F/2 + 1)."""
        f, s = self.side * self.oversampling, self.oversampling
        folded = spectrum.reshape(*spectrum.shape[:-2], s, self.side, f // 2 + 1).sum(-3) if s > 1 else spectrum
        rows = np.fft.ifft(folded, axis=-2)[..., : shape[0], :]
        return np.fft.irfft(rows, f, axis=-1)[..., : s * shape[1] : s] * s

    def _knots(self, knots: Knots) -> np.ndarray:
        ky, kx = self.frequencies
        y, x = (np.exp(-1j * knots.offset[:, axis, None] * k) for axis, k in enumerate((ky, kx)))
        y, x = (phase * np.exp(-0.5 * (knots.sigma[:, None] * k) ** 2) for phase, k in ((y, ky), (x, kx)))
        return np.einsum("j,jy,jx->yx", knots.share, y, x, optimize=["einsum_path", (0, 1), (0, 1)])


@dataclass(frozen=True, eq=False)
class Camera:
    """PSFs (one a band, or one for all; pixel included) over pixels of `scale` arcsec; remembers their transforms."""

    psfs: Sequence[Any]
    scale: float
    _spectra: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_survey(cls, survey: Any) -> Camera:
        """A survey's PSFs, averaged over its pixels."""
        pixel = galsim.Pixel(survey.pixel_scale)
        return cls([galsim.Convolve(psf, pixel) for psf in survey.psfs()], survey.pixel_scale)

    @classmethod
    def of_model(cls, sigma: float, scale: float) -> Camera:
        """A Gaussian of `sigma` pixels sampled at pixel centres: the frame in which sources are modelled."""
        return cls([galsim.Gaussian(sigma=sigma * scale)], scale)

    @property
    def reach(self) -> float:
        """arcsec: the radius beyond which GalSim leaves a PSF's light away."""
        return max(np.pi / psf.stepk for psf in self.psfs)

    @property
    def oversampling(self) -> int:
        """How many times Nyquist's frequency the PSFs reach."""
        if 0 not in self._spectra:
            self._spectra[0] = np.array(max(_oversampling(psf, self.scale) for psf in self.psfs))
        return int(self._spectra[0])

    def grid(self, shape: tuple[int, int], reach: float) -> Grid:
        """The grid for an image of `shape` pixels with a source anywhere in it."""
        pixels = (reach + self.reach) / self.scale
        needed = max(max(shape) + pixels, 2 * pixels)
        return Grid(next((side for side in SIDES if side >= needed), SIDES[-1]), self.oversampling, self.scale)

    def spectra(self, grid: Grid) -> np.ndarray:
        """(number of PSFs, F, F/2 + 1)."""
        if grid.side not in self._spectra:
            self._spectra[grid.side] = np.stack([grid.spectrum(psf) for psf in self.psfs])
        return self._spectra[grid.side]

    def draw(self, components: Sequence[Component], y: float, x: float, shape: tuple[int, int]) -> np.ndarray:
        """(C, *shape) noiseless image of one source at pixel (y, x), in the flux unit of its components."""
        total = np.zeros((len(components[0].flux), *shape))
        by_grid: dict[Grid, list[Component]] = defaultdict(list)
        for component in components:
            by_grid[self.grid(shape, component.reach)].append(component)
        for grid, group in by_grid.items():
            spectra = np.stack([grid.spectrum(component.profile) for component in group])
            flux = np.stack([component.flux for component in group])
            psfs = self.spectra(grid) * grid.phase(y, x)
            if len(self.psfs) == 1:
                total += np.einsum("cb,cyx->byx", flux, grid.image(spectra * psfs, shape))
            else:
                total += grid.image(np.einsum("cb,cyx->byx", flux, spectra) * psfs, shape)
        return total


def _oversampling(psf: Any, scale: float) -> int:
    """The smallest multiple of Nyquist's frequency beyond which LEAK of the PSF's amplitude is left."""
    side, most = 32, 6
    k = 2 * np.pi / (side * scale)
    amplitude = np.abs(psf.drawKImage(nx=side * most, ny=side * most, scale=k).array)
    frequency = np.abs(np.arange(side * most) - side * most // 2)
    distance = np.maximum(frequency[:, None], frequency)  # in steps of k
    for times in range(1, most):
        if amplitude[distance > times * side / 2].sum() < LEAK * amplitude.sum():
            return times
    return most
