"""Units, zero points and bands: what a number in an image is on the sky.

An image in a surface brightness, such as MJy/sr, holds a flux per solid angle: a number in one of its pixels is that
times the pixel's area. Its zero points are those of one unit times the area of its own pixels.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data.validation import numbers
from tfdeblend.errors import DataError

MAX_ZEROPOINT = 100.0
AGREE = 0.02  # magnitudes by which a zero point and a unit may differ without a note
WAVELENGTHS = {  # of bands in nm, roughly: cameras differ by some percent, in y by a tenth
    **{"u": 360, "g": 480, "r": 620, "vis": 700, "i": 760, "z": 890, "y": 980},
    **{"j": 1250, "h": 1650, "ks": 2150, "k": 2200},
}
MAGNITUDE = re.compile(r"\b(ab|st|vega)?_?mag(s|nitudes?)?\b|\bdex\b|\bdB\b", re.IGNORECASE)
# As headers spell them: in capitals, in the plural, in words; MJY, which may be milli or mega, is not known.
SPELLINGS = {
    r"electrons?": "electron",
    r"(?<!\d)(?<!\.)e-(?!\d)": "electron",  # no exponent, as in 1e-6 Jy
    r"counts?": "ct",
    r"photons?": "ph",
    r"(nmgy|nanomagg(y|ies?))": "nmgy",
    r"magg(y|ies?)": "mgy",
    r"jy": "Jy",
    r"milli-?jy": "mJy",
    r"(u|micro-?)jy": "uJy",
    r"(n|nano-?)jy": "nJy",
    r"adu": "adu",
    r"dn": "DN",
    r"(sec|seconds?)": "s",
    r"s": "s",
    r"pix(els?)?": "pix",
}


def as_unit(where: str | Path, unit: Any) -> str | None:
    """Convert a unit to its text; blank text is None.

    Raises: DataError for what is no text, text that cannot be printed, and magnitudes, which do not add up.
    """
    if hasattr(unit, "to_string"):
        unit = unit.to_string()
    if isinstance(unit, np.ndarray) and unit.ndim == 0:
        unit = unit.item()
    if unit is None:
        return None
    if not isinstance(unit, str):
        raise DataError(where, "unit", f"expected text, received {type(unit).__name__}")
    unit = unit.strip()
    if not unit.isprintable():
        raise DataError(where, "unit", f"expected text that can be printed, received {unit!r}")
    if MAGNITUDE.search(unit):
        raise DataError(where, "unit", f"expected a linear unit, received {unit}", "convert magnitudes to fluxes")
    return unit or None


def parsed(unit: str | None) -> Any:
    """The unit as Astropy understands it; None for no unit and for text that it does not know."""
    if unit is None:
        return None
    from astropy import units

    for spelling, word in SPELLINGS.items():
        unit = re.sub(rf"(?<![A-Za-z]){spelling}(?![A-Za-z])", word, unit, flags=re.IGNORECASE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        known = units.Unit(unit, parse_strict="silent")
    return None if isinstance(known, units.UnrecognizedUnit) else known


@lru_cache(maxsize=256)
def per_solid_angle(unit: str | None) -> bool:
    """Whether the unit is one of surface brightness: something per steradian, square arcsecond, ..."""
    from astropy import units

    known = parsed(unit)
    return known is not None and dict(zip(*_factors(known), strict=True)).get(units.rad) == -2


def _factors(unit: Any) -> tuple[Any, Any]:
    plain = unit.decompose()
    return plain.bases, plain.powers


def flux_unit(unit: str | None) -> Any:
    """Give the unit of a sum over pixels of an image, such as nJy of nJy/pix, as a column of a table can have it.

    None where Astropy does not know it, where FITS cannot hold its factor, as in 3.631 uJy, and for a surface
    brightness, whose sum is a flux only when multiplied by a pixel's area.
    """
    from astropy import units

    known = parsed(unit)
    if known is None or per_solid_angle(unit):
        return None
    bases, powers = _factors(known)
    known = known * units.pix if dict(zip(bases, powers, strict=True)).get(units.pix) == -1 else known
    exponent = float(np.log10(known.scale))
    return known if np.isclose(exponent, round(exponent)) else None


@lru_cache(maxsize=256)
def unit_zeropoint(unit: str | None, pixel_scale: float | None = None) -> float | None:
    """The AB magnitude of one unit of flux density: 31.4 for nJy, 22.5 for nmgy; None for another unit.

    Of a surface brightness it is that of one unit in a pixel of `pixel_scale` (arcsec); None where that is not known.
    """
    from astropy import units

    known = parsed(unit)
    if known is None:
        return None
    flux, equivalent = 1 * known, units.zero_point_flux(units.AB.to(units.Jy) * units.Jy)
    if pixel_scale is not None and per_solid_angle(unit):
        flux = flux * (pixel_scale * units.arcsec) ** 2
    for value in (flux, flux * units.pix):
        try:
            with np.errstate(all="ignore"):
                zero = -2.5 * float(np.log10(value.to_value(units.AB, equivalent)))
        except units.UnitConversionError:
            continue
        return zero if abs(zero) <= MAX_ZEROPOINT else None
    return None


def alike(unit: str | None, other: str | None) -> bool:
    """Whether numbers in two units mean the same."""
    one, two = parsed(unit), parsed(other)
    return unit == other if one is None or two is None else one == two


def as_zeropoints(
    where: str | Path, zeropoints: Any, unit: str | None, pixel_scale: float | None, count: int, notes: list[str]
) -> np.ndarray | None:
    """Convert zero points to (C,) AB magnitudes of flux 1; where not given, from a `unit` of flux density; else None.

    Given ones that differ from the unit's, and a surface brightness without an area of pixels, are noted.

    Args:
        pixel_scale: arcsec; None where it is not known.

    Raises: DataError for another shape, or values that are no magnitudes.
    """
    known = unit_zeropoint(unit, pixel_scale)
    if zeropoints is None:
        if known is None and pixel_scale is None and per_solid_angle(unit):
            notes.append(f"no magnitudes: the unit {unit} needs a WCS or a pixel scale")
        return None if known is None else np.full(count, known)
    own = getattr(zeropoints, "unit", None)
    if own is not None and str(own) not in ("mag", "mag(AB)"):
        raise DataError(where, "zeropoints", f"expected AB magnitudes, received {own}")
    array = numbers(where, "zeropoints", getattr(zeropoints, "value", zeropoints)).astype(float)
    array = np.full(count, array) if array.ndim == 0 else array
    if array.shape != (count,):
        raise DataError(where, "zeropoints", f"expected shape ({count},), one a band, received {array.shape}")
    absurd = ~(np.abs(array) <= MAX_ZEROPOINT)  # so written that NaN is absurd too
    if absurd.any():
        raise DataError(where, "zeropoints", f"expected finite AB magnitudes, received {array[absurd][0]:g}")
    if known is not None and (np.abs(array - known) > AGREE).any():
        given = ", ".join(f"{zero:.4g}" for zero in dict.fromkeys(array.tolist()))
        notes.append(f"zero points {given} used, though the unit {unit} has {known:.4g}")
    return array
