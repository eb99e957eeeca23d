"""FITS files of images, and scenes in them: extensions and keywords are listed in `tfdeblend.io`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from tfdeblend.data import validation
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.contents import LAST_BIT, PLANES, Contents, as_catalog, source_table
from tfdeblend.io.files import parsing
from tfdeblend.io.npz import as_float32

if TYPE_CHECKING:
    from tfdeblend.data.scene import Scene

SCIENCE = ("SCI", "IMAGE")
EXTENSIONS = {
    "weights": ("WHT", "WEIGHTS"),
    "variance": ("VAR", "VARIANCE"),
    "mask": ("MASK",),
    "psf": ("PSF",),
    "noise_correlation": ("NOISECORR",),
    "saturated": ("SATURATED",),
}
NAMES = {"psf": "PSF", "bands": "FILTER", "zeropoints": "MAGZERO", "unit": "BUNIT", "pixel_scale": "PIXSCALE"}
IMAGE_HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
TABLE_HDUS = (fits.BinTableHDU, fits.TableHDU)
SHORT = {"truth_model": "TRUTHMOD", "noise_kernel": "NOISEKER", "model_sigma": "MODELSIG"}  # of a simulation's arrays


@contextmanager
def opened(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file and read the headers of all its HDUs, so that a truncated file is found out.

    Raises: DataError for a file that is missing or broken.
    """
    with parsing(path, "file"):
        hdus = fits.open(path, memmap=False, lazy_load_hdus=True)
    try:
        with parsing(path, "file"):
            _read_headers(path, hdus)
        yield hdus
    finally:
        hdus.close()


def _read_headers(path: Path, hdus: fits.HDUList) -> None:
    """Read one header after the other: from one of negative size Astropy would go back, and never end."""
    index = 0
    while True:
        try:
            hdu = hdus[index]
        except IndexError:
            return
        if hdu.fileinfo()["datSpan"] < 0:
            raise DataError(path, hdu.name, "expected axes of positive length, received a negative one")
        index += 1


def find(hdus: fits.HDUList, names: Sequence[str], kinds: tuple[type, ...] = IMAGE_HDUS) -> Any:
    """The first HDU of one of these names (in capitals) and kinds; None where there is none."""
    for hdu in hdus:
        if hdu.name.upper() in names and isinstance(hdu, kinds):
            return hdu
    return None


def pixels(path: Path, hdu: Any) -> Any:
    """The image of an HDU; None for no HDU. Raises: DataError, by extension, for one that is broken or empty."""
    if hdu is None:
        return None
    with parsing(path, hdu.name):
        if hdu.data is None:
            raise DataError(path, hdu.name, "expected an image, received none")
        return hdu.data


def load(path: Path) -> Contents:
    """Read what a FITS file holds of a scene. Raises: DataError for a file that is broken or has no image."""
    notes: list[str] = []
    with opened(path) as hdus:
        science = _science(path, hdus, notes)
        found = {field: find(hdus, names) for field, names in EXTENSIONS.items()}
        parts = {field: pixels(path, hdu) for field, hdu in {"images": science, **found}.items()}
        if parts["saturated"] is not None:
            parts["saturated"] = parts["saturated"] > 0
        header, wcs = _header(path, science, hdus[0]), celestial_wcs(path, science.header, hdus[0].header)
        count = len(parts["images"]) if parts["images"].ndim == 3 else 1
        parts |= {
            "bands": band_names(header, count),
            "zeropoints": _per_band(header, ("MAGZERO", "ZP"), count),
            "unit": header.get("BUNIT"),
            "wcs": wcs,
            "pixel_scale": _pixel_scale(header) if wcs is None else None,
        }
        names = {field: hdu.name for field, hdu in {"images": science, **found}.items() if hdu is not None}
        planes = _planes(path, found["mask"])
        return Contents(path, parts, {**NAMES, **names}, _catalog(path, hdus), planes, tuple(notes))


def _science(path: Path, hdus: fits.HDUList, notes: list[str]) -> Any:
    """The HDU of the image: SCI or IMAGE, else the primary, else the first image extension of no other name."""
    named = [hdu for hdu in hdus if hdu.name.upper() in SCIENCE and isinstance(hdu, IMAGE_HDUS)]
    if len(named) > 1:
        notes.append(f"{len(named)} image extensions {named[0].name}: the first is read")
    others = {"CATALOG", *(name for names in EXTENSIONS.values() for name in names)}
    unnamed = [hdu for hdu in hdus if isinstance(hdu, IMAGE_HDUS) and hdu.name.upper() not in others]
    for hdu in (*named, *unnamed):
        if hdu.header.get("NAXIS", 0) > 0:
            return hdu
    received = ", ".join(hdu.name or "no name" for hdu in hdus[:20])
    raise DataError(path, "SCI", f"expected an image in the primary, SCI or IMAGE, received extensions {received}")


def _header(path: Path, science: Any, primary: Any) -> dict[str, Any]:
    """Plain values by keyword: of the image's header first, then of the primary."""
    with parsing(path, f"header of {science.name}"):
        values = {**dict(primary.header), **dict(science.header)}
        return {key: value for key, value in values.items() if not isinstance(value, fits.card.Undefined)}


def _per_band(header: dict[str, Any], keys: Sequence[str], count: int) -> Any:
    """One value for all bands under the key, or one each under key1, key2, ...; None where there is neither."""
    for key in keys:
        if key in header:
            return header[key]
        numbered = [header.get(f"{key}{c + 1}") for c in range(count)]
        if None not in numbered:
            return numbered
    return None


def _pixel_scale(header: dict[str, Any]) -> float | None:
    """In arcsec, from PIXSCALE; other pipelines may have text there, which says nothing here."""
    scale = header.get("PIXSCALE")
    return scale if isinstance(scale, float | int) else None


def band_names(header: dict[str, Any], count: int) -> list[str] | None:
    """Find the names of `count` bands in BANDS or FILTER ("g,r,i", "g r i" or "gri"), or FILTER1, FILTER2, ...

    None where no key holds as many. For one band FILTER1 and FILTER2 are two wheels, as in the headers of HST: the one
    that is not clear counts.
    """
    for key in ("BANDS", "FILTER"):
        text = str(header.get(key, "")).strip()
        names = [text] if count == 1 else re.split(r"[\s,;]+", text)
        for candidate in (names, list(text)):
            if text and len(candidate) == count:
                return candidate
    numbered = [str(header.get(f"FILTER{c}", "")).strip() for c in range(1, max(count, 2) + 1)]
    if count == 1:
        wheels = [name for name in numbered if name and not name.upper().startswith("CLEAR")]
        return wheels if len(wheels) == 1 else None
    return numbered if all(numbered) else None


def celestial_wcs(path: Path, *headers: fits.Header) -> Any:
    """The WCS of the first header with a celestial one; None where there is none.

    Raises: DataError for one that cannot be read.
    """
    for header in headers:
        if "CTYPE1" in header:
            wcs = validation.parse_wcs(path, header)
            if wcs.has_celestial:
                return wcs
    return None


def _planes(path: Path, hdu: Any) -> Mapping[str, int]:
    """The bit of each plane of a mask, by the MP_ keys of its header, or those of the HSC and LSST pipelines."""
    named = {} if hdu is None else {key[3:]: value for key, value in hdu.header.items() if key.startswith("MP_")}
    if not all(type(bit) is int and 0 <= bit <= LAST_BIT for bit in named.values()):
        expected = f"expected the number of a bit up to {LAST_BIT} under each MP_ key of the header"
        raise DataError(path, hdu.name, f"{expected}, received {', '.join(map(str, named.values()))}")
    return named or PLANES


def _catalog(path: Path, hdus: fits.HDUList) -> Table | None:
    hdu = find(hdus, ("CATALOG",), TABLE_HDUS)
    if hdu is None:
        return None
    with parsing(path, "CATALOG"):
        table = Table.read(hdu, format="fits", mask_invalid=False)
    return as_catalog(path, "CATALOG", "CATALOG", table)


def write(scene: Scene, path: Path, more: Mapping[str, np.ndarray]) -> None:
    """Write a scene as a FITS file, whole or not at all, such that `load` gives it back.

    Args:
        more: further arrays by name: tables and images become extensions, numbers cards in the header of SCI.

    Raises:
        DataError: names of bands or sources or a unit that are not ASCII text. OSError: it cannot be written.
    """
    observation = scene.observation
    header = fits.Header() if observation.wcs is None else observation.wcs.to_header(relax=True)
    extensions: dict[str, Any] = {
        "WHT": as_float32(observation.weights),
        "PSF": observation.psf,
        "NOISECORR": observation.noise_correlation,
        "SATURATED": None if observation.saturated is None else observation.saturated.astype(np.uint8),
        "CATALOG": source_table(scene).as_array(),
    }
    cards = _cards(scene)
    for key, value in more.items():
        name = SHORT.get(key, key.upper())
        if np.ndim(value) == 0:
            cards[name] = value.item()
        else:
            extensions[name] = value
    try:
        header.update(cards)
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(observation.images, header, name="SCI")]
        hdus += [_hdu(name, data) for name, data in extensions.items() if data is not None]
    except ValueError as error:
        expected = "expected names of bands and sources and a unit in ASCII, as FITS holds no other text"
        raise DataError(path, "header", f"{expected}, received {error}", "write .npz") from error
    with written_whole(path) as temporary:
        fits.HDUList(hdus).writeto(temporary)


def _hdu(name: str, data: np.ndarray) -> fits.ImageHDU | fits.BinTableHDU:
    return fits.BinTableHDU(data, name=name) if data.dtype.names else fits.ImageHDU(data, name=name)


def _cards(scene: Scene) -> dict[str, Any]:
    """What the header of SCI says of the observation, beside its WCS."""
    observation, cards = scene.observation, dict[str, Any]()
    if any(re.search(r"[\s,;]", band) for band in observation.bands):
        cards.update({f"FILTER{c + 1}": band for c, band in enumerate(observation.bands)})
    else:
        cards["BANDS"] = ",".join(observation.bands)
    if observation.zeropoints is not None:
        cards.update({f"MAGZERO{c + 1}": float(zero) for c, zero in enumerate(observation.zeropoints)})
    if observation.unit is not None:
        cards["BUNIT"] = observation.unit
    if observation.pixel_scale is not None:
        cards["PIXSCALE"] = observation.pixel_scale
    return cards
