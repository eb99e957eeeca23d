"""Headers: what the keywords of surveys say of bands, zero points and the size of pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data import photometry, validation
from tfdeblend.errors import DataError
from tfdeblend.io.names import band_letter

Header = Mapping[str, Any]

ZEROPOINTS = ("MAGZERO", "ZP")
# What other pipelines call them; text there says nothing.
OTHER_ZEROPOINTS = (
    *("MAGZPT", "MAGZP", "PHOTZP", "ZPAB", "ABZP", "ZP_AB", "MAGZEROP", "ZEROPT", "ZEROPNT", "ZEROPOIN", "ZEROPOINT"),
    *("MAGZEROPOINT", "MAG_ZERO", "ABMAGZP", "ZPT"),
)
CLEAR = "CLEAR"
NOTHING = ("N/A", "NONE", "NULL", "UNKNOWN", "UNDEFINED")  # what headers say that know no band
WIDTHS = ("N", "M", "W", "LP", "X", "W2")  # of the filters of HST and JWST, the narrowest first
SPACE_FILTER = re.compile(r"F\d{3,4}(W2|LP|[NMWX])")
AREA_AGREES = 0.05  # by which a pixel's area in the header and the WCS may differ
ARCSEC = float(np.degrees(3600))  # in a radian


def band_names(header: Header, count: int) -> list[str] | None:
    """Find the names of `count` bands in BANDS or FILTER ("g,r,i", "g r i" or "gri"), or FILTER1, FILTER2, ...

    None where no key holds as many. For one band BAND comes before FILTER, FILTER1 and FILTER2 are two wheels, as in
    the headers of HST: the one that is not clear counts. So are FILTER and PUPIL of JWST, of which the narrower counts.
    """
    for key in ("BANDS", *(("BAND",) if count == 1 else ()), "FILTER"):
        text = _text(header, key)
        if count == 1:
            found = [_single_filter(text, _text(header, "PUPIL"))] if text else []
        else:
            found = re.split(r"[\s,;]+", text)
        for candidate in (found, list(text)):
            if text and len(candidate) == count:
                return candidate
    numbered = [_text(header, f"FILTER{c}") for c in range(1, max(count, 2) + 1)]
    if count == 1:
        wheels = [name for name in numbered if name and not name.upper().startswith(CLEAR)]
        return wheels if len(wheels) == 1 else None
    return numbered if all(numbered) else None


def _text(header: Header, key: str) -> str:
    text = str(header.get(key, "")).strip()
    return "" if text.upper() in NOTHING else text


def _single_filter(text: str, pupil: str) -> str:
    """The band of one filter, of two in the wheels FILTER and PUPIL of JWST, or of DECam's long names."""
    wheels = [name for name in (text, pupil) if SPACE_FILTER.fullmatch(name)]
    if wheels:
        return min(wheels, key=lambda name: WIDTHS.index(SPACE_FILTER.fullmatch(name)[1]))  # type: ignore[index]
    return band_letter(text).split()[0] if " DECam " in text else text


def zeropoints(header: Header, count: int, unit: Any) -> Any:
    """Zero points as the header says them: one number, or one a band; None where it does not.

    They are MAGZERO, ZP or what other surveys call it; or of FLUXMAG0 (the flux of AB magnitude 0); or, unless the
    `unit` is one of flux density, of PHOTFLAM and PHOTPLAM of HST, those of one count a second.
    """
    for key in (*ZEROPOINTS, *OTHER_ZEROPOINTS):
        found = _per_band(header, key, count)
        if found is not None and (key in ZEROPOINTS or all(map(_is_number, np.atleast_1d(found).tolist()))):
            return found
    flux = _per_band(header, "FLUXMAG0", count)
    if flux is not None and all(_is_number(value) and value > 0 for value in np.atleast_1d(flux).tolist()):
        return 2.5 * np.log10(flux)
    return None if isinstance(unit, str) and photometry.unit_zeropoint(unit, 1.0) is not None else _of_hst(header, unit)


def _per_band(header: Header, key: str, count: int) -> Any:
    """One value for all bands under the key, or one each under key1, key2, ...; None where there is neither."""
    if key in header:
        return header[key]
    numbered = [header.get(f"{key}{c + 1}") for c in range(count)]
    return None if None in numbered else numbered


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def positive(header: Header, key: str) -> float | None:
    """The positive, finite number under a keyword; None for anything else, such as text."""
    value = header.get(key)
    return float(value) if value is not None and _is_number(value) and 0 < value < np.inf else None


def _of_hst(header: Header, unit: Any) -> float | None:
    """The zero point by PHOTFLAM, the flux density in erg/s/cm2/A of a count a second, at PHOTPLAM, in A."""
    from astropy import units

    density, wavelength, exposure = (positive(header, key) for key in ("PHOTFLAM", "PHOTPLAM", "EXPTIME"))
    if density is None or wavelength is None:
        return None
    flux = density * units.erg / units.s / units.cm**2 / units.AA
    at = units.spectral_density(wavelength * units.AA)
    zero = -2.5 * float(np.log10(flux.to_value(units.AB, at)))
    known = photometry.parsed(unit) if isinstance(unit, str) else None
    if known is None or units.s in known.bases:
        return zero
    return None if exposure is None else zero + 2.5 * float(np.log10(exposure))  # of an image in counts


def parent_position(header: Header, shape: Sequence[int]) -> tuple[float, float] | None:
    """(x, y) of an image's centre in the image that it was cut from, by LTV1, LTV2 and LTM1_1, LTM2_2; else None.

    shape: (..., H, W) of the image. Pixels are counted from (1, 1).
    """
    return _in_parent(header, ((shape[-1] + 1) / 2, (shape[-2] + 1) / 2))


def section_position(header: Header, section: tuple[slice, slice]) -> tuple[float, float]:
    """(x, y) of the centre of a section in the image that its own was cut from, else in its own.

    section: rows and columns. Pixels of the position are counted from (1, 1).
    """
    rows, columns = section
    centre = (columns.start + columns.stop + 1) / 2, (rows.start + rows.stop + 1) / 2
    return _in_parent(header, centre) or centre


def _in_parent(header: Header, place: tuple[float, float]) -> tuple[float, float] | None:
    """A place (x, y) of an image in the one that it was cut from; None where the header does not say."""
    found = []
    for axis, value in zip((1, 2), place, strict=True):
        shift, factor = header.get(f"LTV{axis}"), header.get(f"LTM{axis}_{axis}", 1.0)
        if shift is None or not (_is_number(shift) and _is_number(factor) and factor):
            return None
        found.append((value - shift) / factor)
    return found[0], found[1]


def origin(header: Header) -> tuple[float, float] | None:
    """Find where the first pixel (x, y) of an image lies in the one that it was cut from, by LTV1 and LTV2, from 0 on.

    None: the header does not say, or the two have different pixels.
    """
    x, y = header.get("LTV1"), header.get("LTV2")
    same = header.get("LTM1_1", 1) == header.get("LTM2_2", 1) == 1
    return (-x, -y) if same and x is not None and y is not None and _is_number(x) and _is_number(y) else None


def pixel_scale(header: Header) -> float | None:
    """The pixel scale in arcsec: PIXSCALE if a number, else by the pixel's area, PIXAR_A2 (arcsec^2) or PIXAR_SR."""
    scale, area = header.get("PIXSCALE"), pixel_area(header)
    return float(scale) if scale is not None and _is_number(scale) else None if area is None else area**0.5


def pixel_area(header: Header) -> float | None:
    """The area of a pixel in arcsec^2, from PIXAR_SR or PIXAR_A2."""
    steradian = positive(header, "PIXAR_SR")
    return positive(header, "PIXAR_A2") if steradian is None else steradian * ARCSEC**2


def surface_zeropoint(header: Header, unit: Any, wcs: Any) -> tuple[float | None, list[str]]:
    """The zero point of a surface brightness by the header's own area of a pixel, and notes.

    None for another unit, without such an area, and where the WCS contradicts it, as after a change of pixels.
    """
    from astropy.wcs.utils import proj_plane_pixel_area

    area = pixel_area(header)
    if area is None or not isinstance(unit, str) or not photometry.per_solid_angle(unit):
        return None, []
    known = area if wcs is None else 3600**2 * float(proj_plane_pixel_area(wcs))
    if abs(known / area - 1) > AREA_AGREES:
        return None, [f"pixels of {known:.4g} arcsec2 by the WCS, which is used, {area:.4g} by PIXAR_SR or PIXAR_A2"]
    return photometry.unit_zeropoint(unit, area**0.5), []


def celestial_wcs(path: Path, *headers: Any) -> Any:
    """The WCS of the first header with a celestial one; None where there is none.

    Raises: DataError for one that cannot be read.
    """
    for header in headers:
        if "CTYPE1" in header:
            wcs = validation.parse_wcs(path, header)
            if wcs.has_celestial:
                return wcs
    return None


def refuse_asinh(path: Path, header: Header) -> None:
    """Raises: DataError for an image whose numbers are magnitudes of the inverse hyperbolic sine, as of Pan-STARRS."""
    if "BSOFTEN" in header:
        remedy = "convert it: BOFFSET + 2 BSOFTEN sinh(number / 1.0857)"
        raise DataError(path, "BSOFTEN", "expected fluxes, received numbers on the scale of asinh", remedy)


def one_unit(path: Path, headers: Sequence[Header]) -> Any:
    """BUNIT of the images of several bands. Raises: DataError where it differs."""
    found = list(dict.fromkeys(header.get("BUNIT") for header in headers))
    if len(found) > 1:
        raise DataError(path, "BUNIT", f"expected one unit for all bands, received {', '.join(map(str, found))}")
    return found[0]
