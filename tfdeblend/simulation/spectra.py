"""Colours: galaxy templates seen through a survey's bands at any redshift, and the stellar locus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfdeblend.errors import DataError

# Coleman, Wu & Weedman 1980, extended to the ultraviolet and infrared, as GalSim ships them; from red to blue.
TEMPLATES = ("CWW_E_ext.sed", "CWW_Sbc_ext.sed", "CWW_Scd_ext.sed", "CWW_Im_ext.sed")
REFERENCE = "LSST_i.dat"  # the band in which galaxies are drawn
REDSHIFTS = np.linspace(0, 4, 81)


@dataclass(frozen=True, eq=False)
class Colors:
    """AB magnitudes relative to the LSST i band: `table` (templates, redshifts, C); `wavelengths` (C,) in nm."""

    table: np.ndarray
    wavelengths: np.ndarray
    reference: float  # nm

    @classmethod
    def of(cls, throughputs: Sequence[str]) -> Colors:
        """Makes the table for C transmission curves, see `Survey`. Raises: DataError for one that cannot be read."""
        import galsim

        curves = [_curve(name) for name in (*throughputs, REFERENCE)]
        table = np.zeros((len(TEMPLATES), len(REDSHIFTS), len(curves)))
        for t, name in enumerate(TEMPLATES):
            sed = galsim.SED(name, wave_type="Ang", flux_type="flambda")
            table[t] = np.stack([_magnitudes(sed, *curve) for curve in curves], axis=-1)
        centers = np.array([np.average(waves, weights=through) for waves, through in curves])
        return cls(table[..., :-1] - table[..., -1:], centers[:-1], float(centers[-1]))

    def galaxy(self, template: np.ndarray, redshift: np.ndarray) -> np.ndarray:
        """Returns magnitudes (..., C) of galaxies minus that in the reference band.

        Args:
            template: 0 (elliptical) to 3 (irregular), any number between. redshift: 0 to 4.
        """
        t = np.clip(template, 0, len(TEMPLATES) - 1)
        z = np.clip(redshift, 0, REDSHIFTS[-1]) / REDSHIFTS[1]
        t0, z0 = (np.minimum(v.astype(int), n - 2) for v, n in ((t, len(TEMPLATES)), (z, len(REDSHIFTS))))
        ft, fz = (t - t0)[..., None], (z - z0)[..., None]
        low, high = ((1 - fz) * self.table[k, z0] + fz * self.table[k, z0 + 1] for k in (t0, t0 + 1))
        return (1 - ft) * low + ft * high

    def tilt(self, slope: np.ndarray) -> np.ndarray:
        """Returns magnitudes (..., C) that redden a spectrum by `slope` magnitudes for each factor e in wavelength."""
        return -np.asarray(slope)[..., None] * np.log(self.wavelengths / self.reference)

    def scatter(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws each band's scatter of 0.03 magnitudes (*shape, C), a round choice; none in the reference band."""
        drawn = rng.normal(0, 0.03, (*shape, len(self.wavelengths)))
        return np.where(np.isclose(self.wavelengths, self.reference), 0, drawn)

    def star(self, r_minus_i: np.ndarray) -> np.ndarray:
        """Returns magnitudes (..., C) minus the i band's of stars of that r - i, interpolated in wavelength.

        g - r: the median locus of Juric et al. 2008 (equation 4). i - z and z - y as 0.55 and 0.3 times r - i, and
        u - g as 0.9 + 1.2 times g - r above 0.3: round choices that follow the locus of main-sequence stars.
        """
        x = np.asarray(r_minus_i, float)
        g_r = 1.39 * (1 - np.exp(-4.9 * x**3 - 2.45 * x**2 - 1.68 * x - 0.050))
        u_g = 0.9 + 1.2 * np.maximum(g_r - 0.3, 0)
        nodes = np.stack([u_g + g_r + x, g_r + x, x, 0 * x, -0.55 * x, -0.85 * x], axis=-1)
        waves = np.array([367.0, 482.0, 622.0, 754.0, 869.0, 971.0])  # nm: effective wavelengths of LSST's ugrizy
        wanted = np.append(self.wavelengths, self.reference)
        flat = np.stack([np.interp(wanted, waves, row) for row in nodes.reshape(-1, len(waves))])
        return (flat[:, :-1] - flat[:, -1:]).reshape(*x.shape, len(self.wavelengths))


def _curve(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns wavelengths in nm and transmissions of one band."""
    import galsim

    low, dash, high = name.partition("-")
    try:
        if dash:
            waves = np.linspace(float(low), float(high), 200)
            return waves, np.ones_like(waves)
        band = galsim.Bandpass(name, wave_type="nm")
    except (OSError, ValueError) as error:
        problem = f"expected a transmission curve of GalSim's or a box in nm, received {name!r}"
        raise DataError("survey", "throughputs", problem) from error
    waves = np.linspace(band.blue_limit, band.red_limit, 400)
    return waves, np.asarray(band(waves), float)


def _magnitudes(sed, waves: np.ndarray, through: np.ndarray) -> np.ndarray:
    """Returns AB magnitudes (redshifts,), up to a constant that all bands share at each redshift."""
    rest = waves / (1 + REDSHIFTS[:, None])
    inside = np.clip(rest, sed.blue_limit, sed.red_limit)
    photons = (sed(inside.ravel()).reshape(rest.shape) * through).sum(1)
    flat = (through / waves).sum()  # a source of constant f_nu has photons as 1 / wavelength
    return -2.5 * np.log10(photons / flat)
