"""Surveys: bands, pixels, PSFs and depth, each number with its source; other surveys are read from JSON files.

Sources of the numbers below:

* HSC (Wide): exposures and seeing: Aihara et al. 2022 (arXiv:2108.13045), table 1; pixel scale: HSC-SSP survey page;
  sky: Suprime-Cam exposure time calculator (as the DESC survey-codex takes it for HSC); zero points: the HSC
  transmission curves at airmass 1.2, as tabulated in the DESC survey-codex. Moffat with beta = 3: a round choice.
* LSST (ten years): sky, seeing (zenith, times 1.2^0.6 for airmass 1.2) and visits of 30 s: Ivezic et al. 2019
  (arXiv:0805.2366), tables 1 and 2; zero points: the LSST transmission curves, as tabulated in the DESC survey-codex.
  Kolmogorov: the profile that GalSim's documentation gives for long exposures through the atmosphere.
* Euclid VIS: pixel scale: Laureijs et al. 2011 (arXiv:1110.3193); exposure and PSF width: Racca et al. 2016
  (arXiv:1608.08603), sections 6 and 8; sky and zero point: the DESC survey-codex, from the VIS instrument page and the
  transmission curve. One exposure of 565 s; 4.5 electrons of readout noise: Laureijs et al. 2011 (requirement).
  550 to 900 nm, a box: the nominal band.
* HST ACS F814W: pixel scale (drizzled), exposure and PSF width: Koekemoer et al. 2007 (arXiv:astro-ph/0703095); zero
  point 25.94: GalSim's documentation of its COSMOS sample. Sky of 22 mag / arcsec^2: a round choice, from the
  survey-codex. 10 electrons of readout noise: four exposures of 5 electrons each, the ACS handbook's figure rounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfdeblend.errors import DataError

PROFILES = ("moffat", "kolmogorov", "gaussian", "airy")


@dataclass(frozen=True)
class Survey:
    """Describes the images of a survey, in electrons, of C bands on one grid of pixels.

    Args:
        name: in lower case.
        bands: C names.
        pixel_scale: arcsec.
        zeropoints: (C,) AB magnitude that gives one electron a second.
        psf_fwhm: (C,) arcsec, without the pixel's own response.
        sky: (C,) AB magnitude in a square arcsec.
        exposure: (C,) seconds, all exposures together.
        throughputs: (C,) a transmission curve that GalSim ships, such as "LSST_g.dat", or a box in nm: "550-900".
        psf_profile: "moffat", "kolmogorov", "gaussian" or "airy".
        psf_beta: of the Moffat profile.
        read_noise: electrons a pixel, all exposures together.

    Raises:
        DataError: one line, by survey and field.
    """

    name: str
    bands: tuple[str, ...]
    pixel_scale: float
    zeropoints: tuple[float, ...]
    psf_fwhm: tuple[float, ...]
    sky: tuple[float, ...]
    exposure: tuple[float, ...]
    throughputs: tuple[str, ...]
    psf_profile: str = "moffat"
    psf_beta: float = 3.0
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        for field in ("name", "psf_profile"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise DataError(self.name, field, f"expected a name, received {getattr(self, field)!r}")
        for field in ("bands", "throughputs"):
            object.__setattr__(self, field, self._texts(field))
        if len(set(self.bands)) < len(self.bands):
            raise DataError(self.name, "bands", f"expected different names, received {', '.join(self.bands)}")
        for field in ("zeropoints", "psf_fwhm", "sky", "exposure"):
            object.__setattr__(self, field, self._numbers(field, positive=field in ("psf_fwhm", "exposure")))
        for field in ("pixel_scale", "psf_beta", "read_noise"):
            object.__setattr__(self, field, _number(self.name, field, getattr(self, field), positive=True))
        if self.psf_profile not in PROFILES:
            received = f"expected one of {', '.join(PROFILES)}, received {self.psf_profile!r}"
            raise DataError(self.name, "psf_profile", received)

    @classmethod
    def find(cls, name: str) -> Survey:
        """Returns the survey of that name in `SURVEYS`, or of a JSON file whose keys are the arguments above.

        Raises:
            DataError: an unknown name; a key that is unknown, missing or of the wrong kind.
        """
        if name.lower() in SURVEYS:
            return SURVEYS[name.lower()]
        path = Path(name)
        if path.suffix.lower() != ".json":
            raise DataError("survey", None, f"expected {', '.join(SURVEYS)} or a JSON file, received {name!r}")
        return cls.read(path)

    @classmethod
    def read(cls, path: str | Path) -> Survey:
        """Reads the survey of a JSON file. Raises: DataError, as `find`."""
        try:
            document = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DataError(path, "survey", f"expected a JSON file, received {error}") from error
        known = {field.name: field.default is MISSING for field in fields(cls)}
        if not isinstance(document, dict):
            raise DataError(path, "survey", f"expected an object with keys {', '.join(known)}, received {document!r}")
        for key in document:
            if key not in known:
                raise DataError(path, key, f"expected keys of {', '.join(known)}, received {key!r}")
        for key, needed in known.items():
            if needed and key not in document:
                raise DataError(path, key, f"expected this key, received {', '.join(document) or 'none'}")
        try:
            return cls(**document)
        except DataError as error:
            raise error.at(path) from error

    @property
    def flux_zeropoints(self) -> tuple[float, ...]:
        """Gives the images' zero points (C,), the AB magnitudes of one electron in the whole exposure."""
        from math import log10

        return tuple(zero + 2.5 * log10(t) for zero, t in zip(self.zeropoints, self.exposure, strict=True))

    @property
    def sky_variance(self) -> tuple[float, ...]:
        """Gives the variance (C,) of sky and readout, in electrons^2 a pixel."""
        rows = zip(self.flux_zeropoints, self.sky, strict=True)
        return tuple(10 ** (0.4 * (zero - sky)) * self.pixel_scale**2 + self.read_noise**2 for zero, sky in rows)

    def psfs(self) -> list[Any]:
        """Returns the C PSFs as GalSim profiles, in arcsec, without the pixel."""
        import galsim

        make = {
            "moffat": lambda fwhm: galsim.Moffat(beta=self.psf_beta, fwhm=fwhm),
            "kolmogorov": lambda fwhm: galsim.Kolmogorov(fwhm=fwhm),
            "gaussian": lambda fwhm: galsim.Gaussian(fwhm=fwhm),
            "airy": lambda fwhm: galsim.Airy(lam_over_diam=fwhm / 1.029),  # FWHM of an Airy disk in lambda / D
        }[self.psf_profile]
        return [make(fwhm) for fwhm in self.psf_fwhm]

    def _texts(self, field: str) -> tuple[str, ...]:
        values = getattr(self, field)
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise DataError(self.name, field, f"expected a list of names, received {values!r}")
        if not all(isinstance(value, str) and value for value in values):
            raise DataError(self.name, field, f"expected names, received {list(values)!r}")
        self._check_count(field, values)
        return tuple(values)

    def _numbers(self, field: str, positive: bool) -> tuple[float, ...]:
        values = getattr(self, field)
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise DataError(self.name, field, f"expected a list of numbers, received {values!r}")
        self._check_count(field, values)
        return tuple(_number(self.name, field, value, positive) for value in values)

    def _check_count(self, field: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.bands):
            expected = f"expected one for each of {len(self.bands)} bands"
            raise DataError(self.name, field, f"{expected}, received {len(values)}")


def _number(name: str, field: str, value: Any, positive: bool) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    least_is_zero = field == "read_noise"
    if not number or (positive and (value < 0 or (value == 0 and not least_is_zero))):
        kind = "a positive number" if positive else "a number"
        raise DataError(name, field, f"expected {kind}, received {value!r}")
    return float(value)


SURVEYS = MappingProxyType(
    {
        survey.name: survey
        for survey in (
            Survey(
                name="hsc",
                bands=("g", "r", "i", "z", "y"),
                pixel_scale=0.168,
                zeropoints=(28.90, 28.86, 28.61, 27.68, 27.34),
                psf_fwhm=(0.79, 0.75, 0.61, 0.68, 0.68),
                sky=(21.4, 20.6, 19.7, 18.3, 17.9),
                exposure=(600, 600, 1200, 1200, 1200),
                throughputs=("LSST_g.dat", "LSST_r.dat", "LSST_i.dat", "LSST_z.dat", "LSST_y.dat"),
            ),
            Survey(
                name="lsst",
                bands=("u", "g", "r", "i", "z", "y"),
                pixel_scale=0.2,
                zeropoints=(26.40, 28.26, 28.10, 27.78, 27.39, 26.56),
                psf_fwhm=(0.90, 0.86, 0.81, 0.79, 0.77, 0.76),
                sky=(22.99, 22.26, 21.20, 20.48, 19.60, 18.61),
                exposure=(1680, 2400, 5520, 5520, 4800, 4800),
                throughputs=tuple(f"LSST_{band}.dat" for band in "ugrizy"),
                psf_profile="kolmogorov",
            ),
            Survey(
                name="euclid-vis",
                bands=("VIS",),
                pixel_scale=0.1,
                zeropoints=(25.91,),
                psf_fwhm=(0.17,),
                sky=(22.32,),
                exposure=(565,),
                throughputs=("550-900",),
                psf_profile="airy",
                read_noise=4.5,
            ),
            Survey(
                name="hst-acs",
                bands=("F814W",),
                pixel_scale=0.03,
                zeropoints=(25.94,),
                psf_fwhm=(0.095,),
                sky=(22.0,),
                exposure=(2028,),
                throughputs=("ACS_wfc_F814W.dat",),
                psf_profile="airy",
                read_noise=10.0,
            ),
        )
    }
)


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
        rows = [np.interp(wanted, waves, row) for row in nodes.reshape(-1, len(waves))]
        flat = np.array(rows).reshape(-1, len(wanted))  # of no stars, too
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
