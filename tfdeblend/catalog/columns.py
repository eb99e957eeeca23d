"""Columns of a catalogue: the unit, the printed digits and the meaning of each, as Astropy's tables carry them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tfdeblend.data.photometry import flux_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.table import Table

    from tfdeblend.data.scene import Scene


class About(NamedTuple):
    """Says what a column holds. digits: a format specification, None where the numbers are whole or text."""

    meaning: str
    unit: Any = None
    digits: str | None = None


PLAIN = {
    "id": About("name of the source, as declared"),
    "kind": About("galaxy or point, as which it was fitted"),
    "x": About("fitted position along a row of pixels; the centre of the first is 0", "pix", ".3f"),
    "y": About("fitted position along a column of pixels; the centre of the first is 0", "pix", ".3f"),
    "x_err": About("standard deviation of x", "pix", ".3f"),
    "y_err": About("standard deviation of y", "pix", ".3f"),
    "ra": About("right ascension, ICRS", "deg", ".7f"),
    "dec": About("declination, ICRS", "deg", ".7f"),
    "size": About("half-light radius of the circle of equal area, PSF taken off", "pix", ".3f"),
    "size_err": About("standard deviation of size", "pix", ".3f"),
    "e1": About("ellipticity, positive along x, |e| = (a - b) / (a + b)", digits=".3f"),
    "e2": About("ellipticity, positive along the diagonal", digits=".3f"),
    "e1_err": About("standard deviation of e1", digits=".3f"),
    "e2_err": About("standard deviation of e2", digits=".3f"),
    "blendedness": About("1 - <m, m> / <m, sum of all sources>, in the first observation", digits=".3f"),
    "snr": About("signal-to-noise of the light as observed, over all bands and unmasked pixels", digits=".1f"),
    "chi2": About("chi-square per pixel where the source shines", digits=".3f"),
    "flags": About("bits, 0 where nothing is to be looked at"),
    "primary": About("neither at the edge nor masked in the middle"),
    "runtime_ms": About("share of the scene's wall time", "ms", ".1f"),
    "stamp_size": About("side of the stamp", "pix"),
    "stamp_x0": About("x of the stamp's first pixel", "pix"),
    "stamp_y0": About("y of the stamp's first pixel", "pix"),
}


def describe(table: Table, scene: Scene) -> Table:
    """Give the columns of a scene's catalogue their units, printed digits and meanings, and return the table."""
    for name, about in _of(scene).items():
        if name in table.colnames:
            info = table[name].info
            info.unit, info.format, info.description = about.unit, about.digits, about.meaning
    return table


def _of(scene: Scene) -> dict[str, About]:
    found = dict(PLAIN)
    for band, text in zip(scene.bands, scene.flux_units, strict=True):
        unit = flux_unit(text)
        said = f" in {band}" if text is None else f" in {band}, in {text}{' summed over pixels' * (unit is None)}"
        found[f"flux_{band}"] = About(f"total flux of the model{said}", unit, ".6g")
        found[f"flux_err_{band}"] = About(f"standard deviation of the flux{said}", unit, ".4g")
        found[f"mag_{band}"] = About(f"AB magnitude in {band}", "mag", ".3f")
        found[f"mag_err_{band}"] = About(f"standard deviation of the magnitude in {band}", "mag", ".3f")
    for blue, red in pairwise(scene.bands):
        found[f"color_{blue}_{red}"] = About(f"magnitude in {blue} less that in {red}", "mag", ".3f")
    return found


def reconcile(tables: Sequence[Table]) -> None:
    """Make catalogues that are to be joined say the same of a column: one that has several units has none, and its
    description lists what each is in."""
    for name in dict.fromkeys(name for table in tables for name in table.colnames):
        having = [table[name].info for table in tables if name in table.colnames]
        meanings = dict.fromkeys(info.description for info in having if info.description)
        one_unit = len({str(info.unit) for info in having}) == 1
        for info in having:
            info.unit, info.description = info.unit if one_unit else None, "; or ".join(meanings) or None
