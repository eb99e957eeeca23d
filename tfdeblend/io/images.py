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

from tfdeblend.data.astrometry import TOLERANCE, AffineMap
from tfdeblend.errors import DataError
from tfdeblend.io import headers as hd
from tfdeblend.io import masks, names
from tfdeblend.io.atomic import written_whole
from tfdeblend.io.contents import Contents, as_catalog, source_table
from tfdeblend.io.files import check_rows, check_size, content, parsing
from tfdeblend.io.npz import as_float32

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation
    from tfdeblend.data.scene import Scene

NAMES = {"psf": "PSF", "bands": "FILTER", "zeropoints": "MAGZERO", "unit": "BUNIT", "pixel_scale": "PIXSCALE"}
NAMELESS = ("", "PRIMARY", "COMPRESSED_IMAGE")
UPPER_CASE = tuple("UGRIZY")  # bands whose letters are small, which names of extensions often are not
UTYPES = {"StdDevUncertainty": "sigma", "VarianceUncertainty": "variance", "InverseVariance": "weights"}
WRITE_APART = "write each to a file of its own and give them by --observation"
IMAGE_HDUS = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
TABLE_HDUS = (fits.BinTableHDU, fits.TableHDU)
SHORT = {"truth_model": "TRUTHMOD", "noise_kernel": "NOISEKER", "model_sigma": "MODELSIG"}  # of a simulation's arrays


Section = tuple[slice, slice]  # rows and columns of an image


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
        for key in ("EXTNAME", "EXTVER", "UTYPE"):
            hdu.header.get(key)  # a card that cannot be parsed is found out here
        if not isinstance(hdu.header.get("NAXIS", 0), int):
            raise DataError(path, hdu.name, f"expected a number of axes, received {hdu.header['NAXIS']!r}")
        if hdu.fileinfo()["datSpan"] < 0:
            raise DataError(path, hdu.name, "expected axes of positive length, received a negative one")
        index += 1


def find(hdus: fits.HDUList, called: Sequence[str], kinds: tuple[type, ...] = IMAGE_HDUS) -> Any:
    """The first HDU of one of these names (in capitals) and kinds; None where there is none."""
    for hdu in hdus:
        if hdu.name.upper() in called and isinstance(hdu, kinds):
            return hdu
    return None


def pixels(path: Path, hdu: Any, of_any_size: bool = False, section: Section | None = None) -> Any:
    """The image of an HDU, or the section of it that alone is read; None for no HDU.

    Raises: DataError, by extension, for one that is broken or empty, or larger than `check_size` has it.
    """
    if hdu is None:
        return None
    with parsing(path, hdu.name):
        if section is not None:
            return _section(path, hdu, section)
        if not of_any_size and isinstance(hdu, IMAGE_HDUS):
            check_size(path, hdu.name, hdu.shape)
        if hdu.data is None:
            raise DataError(path, hdu.name, "expected an image, received none")
        return hdu.data


def _section(path: Path, hdu: Any, section: Section) -> np.ndarray:
    """Read rows and columns of an image. Raises: DataError for what does not lie inside of it."""
    if len(hdu.shape) not in (2, 3):
        raise DataError(path, hdu.name, f"expected (height, width) or (bands, height, width), received {hdu.shape}")
    for part, length in zip(section, hdu.shape[-2:], strict=True):
        if not 0 <= part.start < part.stop <= length:
            expected = f"expected a section inside of {hdu.shape[-2]} x {hdu.shape[-1]} pixels"
            raise DataError(path, "section", f"{expected}, received {part.start}:{part.stop}")
    count = 1 if len(hdu.shape) == 2 else hdu.shape[0]
    check_size(path, hdu.name, (count, *(part.stop - part.start for part in section)))
    if len(hdu.shape) == 2:
        return np.asarray(hdu.section[section])
    return np.stack([hdu.section[(band, *section)] for band in range(count)])


def shape(path: Path) -> tuple[int, int]:
    """(H, W) of the image in a FITS file, by its header. Raises: DataError for a file that has none."""
    with opened(path) as hdus:
        found = Layers(path, hdus).images[0].shape
        if len(found) < 2:
            raise DataError(path, "images", f"expected (height, width) or (bands, height, width), received {found}")
        return found[-2], found[-1]


def load(path: Path, section: Section | None = None, psf_section: Section | None = None) -> Contents:
    """Read what a FITS file holds of a scene: one image, a cube, or an image a band; or a section of it.

    psf_section: at whose middle a PSF that varies is taken, if not at that of the section.

    Raises: DataError for a file that is broken, has no image, or several that are no bands of one grid of pixels.
    """
    with opened(path) as hdus:
        layers = Layers(path, hdus, section)
        images = layers.images
        headers = [header_values(path, hdu, hdus[0]) for hdu in images]
        hd.refuse_asinh(path, headers[0])
        parts = {field: layers.stack(field) for field in names.PARTS}
        if parts["saturated"] is not None:
            parts["saturated"] = parts["saturated"] > 0
        wcs, notes = _one_wcs(path, images, hdus[0]), names.unread(layers.unread)
        count = len(images) if len(images) > 1 or parts["images"].ndim != 3 else len(parts["images"])
        unit = hd.one_unit(path, headers)
        surface, more = hd.surface_zeropoint(headers[0], unit, wcs)
        if section is not None:
            wcs = None if wcs is None else wcs.celestial[section]
        parts |= {
            "bands": _band_names(path, layers, headers, count),
            "zeropoints": _zeropoints(path, headers, count, unit, surface),
            "unit": unit,
            "wcs": wcs,
            "pixel_scale": hd.pixel_scale(headers[0]) if wcs is None else None,
        }
        used = {field: found[0].name for field, found in layers.parts.items() if found}
        notes += more
        if headers[0].get("TELESCOP") == "JWST" and {"sigma", "variance", "weights"} & set(used) == {"weights"}:
            parts["weights"], parts["footprint"] = None, ~(parts["weights"] > 0)
            notes.append("WHT of JWST, an exposure time or without the noise of the sky, is used as a mask alone")
        mask = layers.parts["mask"]
        planes = masks.LSST
        if mask:
            planes = masks.planes(path, used["mask"], {**headers[0], **header_values(path, mask[0], mask[0])})
        contents = Contents(path, parts, {**NAMES, **used}, _catalog(path, hdus, headers[0]), planes, tuple(notes))
        if section is None:
            contents.position = hd.parent_position(headers[0], parts["images"].shape)
        else:
            contents.position = hd.section_position(headers[0], psf_section or section)
        if psf := layers.parts["psf"]:
            contents.psf_header = header_values(path, psf[0], psf[0])
        return contents


class Layers:
    """Which extensions of a file are which part of its contents, one for all bands or one a band.

    Args:
        images: those of the image: one, or one a band.
        parts: the extensions of each part by `names.PARTS`, as many as `images` or one; none where it is not there.
        keys: what tells images of several bands apart: the end of their names, or EXTVER.
        tags: the same of the other parts, in capitals; with a cube its bands.
        unread: names of images that are not understood.

    Raises:
        DataError: no image; several that nothing tells apart; a part of some bands alone.
    """

    def __init__(self, path: Path, hdus: fits.HDUList, section: Section | None = None) -> None:
        self.path, self.section = path, section
        known: dict[str, dict[str, list[tuple[str, Any]]]] = {part: {} for part in names.PARTS}
        unknown = []
        for hdu in hdus:
            if not isinstance(hdu, IMAGE_HDUS) or names.is_harmless(hdu.name):
                continue
            name = names.parsed(extension_name(hdu))
            if name is not None:
                words = known[_part(name.part, hdu)]
                words.setdefault(name.word, []).append((name.tag or str(hdu.ver), hdu))
            elif hdu.header.get("NAXIS", 0) > 0:
                unknown.append(hdu)
        named = [(word, *pair) for word, found in known.pop("images").items() for pair in found]
        named = [(word, key, hdu) for word, key, hdu in named if hdu.header.get("NAXIS", 0) > 0]
        images = [(key, hdu) for word, key, hdu in named if hdu.name.upper() == word] or [pair[1:] for pair in named]
        unknown += [hdu for _, key, hdu in named if (key, hdu) not in images]
        if not images:
            images = [(str(number), hdu) for number, hdu in enumerate(self._unnamed(hdus, unknown))]
        self.keys = [key for key, _ in images]
        self.images = [hdu for _, hdu in images]
        if len({key.upper() for key in self.keys}) < len(images):
            raise self._ambiguous(self.images)
        self.tags = [key.upper() for key in self._of_cube() or self.keys]
        self.parts = {"images": self.images} | {part: self._of_bands(words) for part, words in known.items()}
        chosen = {id(hdu) for found in self.parts.values() for hdu in found}
        found = [hdu for words in known.values() for pairs in words.values() for _, hdu in pairs]
        rest = [hdu for hdu in found if id(hdu) not in chosen]
        unknown = [hdu for hdu in unknown if id(hdu) not in chosen]
        self.unread = [extension_name(hdu) or "an image without a name" for hdu in (*unknown, *rest)]

    def _of_cube(self) -> list[str] | None:
        """The bands of a file of one cube, whose noise, mask and PSFs may be there band by band."""
        count = self.images[0].shape[0] if len(self.images) == 1 and len(self.images[0].shape) == 3 else 1
        return hd.band_names(header_values(self.path, self.images[0], self.images[0]), count) if count > 1 else None

    def _unnamed(self, hdus: fits.HDUList, unknown: list[Any]) -> list[Any]:
        """The images of a file that calls none SCI or IMAGE: the primary, the only one, or those of a FILTER each."""
        nameless = [hdu for hdu in unknown if hdu.name.upper() in NAMELESS]
        candidates = nameless or unknown
        if not candidates:
            received = ", ".join(hdu.name or "no name" for hdu in hdus[:20])
            expected = "expected an image in the primary, SCI or IMAGE"
            raise DataError(self.path, "SCI", f"{expected}, received extensions {received}")
        filters = [hd.band_names(header_values(self.path, hdu, hdu), 1) for hdu in candidates]
        if len(candidates) > 1 and None not in filters and len({*map(str, filters)}) == len(filters):
            return candidates
        if len(candidates) > 1 and not isinstance(candidates[0], fits.PrimaryHDU):
            raise self._ambiguous(candidates)
        return candidates[:1]

    def _ambiguous(self, images: list[Any]) -> DataError:
        received = ", ".join(extension_name(hdu) or "one without a name" for hdu in images[:20])
        expected = "expected one image, or one a band of the same pixels, called SCI_<band> or with a FILTER each"
        return DataError(
            self.path, "SCI", f"{expected}, received {received}", "keep other images in files of their own"
        )

    def _of_bands(self, words: dict[str, list[tuple[str, Any]]]) -> list[Any]:
        """Choose a part's extensions, given by word and key: one for each band, or one for all."""
        for word, pairs in words.items():
            called = {key.upper(): hdu for key, hdu in pairs}
            if all(tag in called for tag in self.tags):
                return [called[tag] for tag in self.tags]
            if len(pairs) == 1 and pairs[0][1].name.upper() == word:
                return [pairs[0][1]]
            if len(self.images) > 1:
                expected = f"expected one for each of {', '.join(map(extension_name, self.images))}"
                received = ", ".join(extension_name(hdu) for _, hdu in pairs)
                raise DataError(self.path, word, f"{expected}, received {received}")
        return []

    def stack(self, part: str) -> Any:
        """The pixels of a part, (C,H,W) of an extension a band; PSFs of several sizes are padded with zeros.

        Raises: DataError for extensions of shapes that do not go together.
        """
        found = self.parts[part]
        section = None if part in ("psf", "noise_correlation") else self.section
        for hdu in found if section is not None else ():
            if tuple(hdu.shape[-2:]) != tuple(self.images[0].shape[-2:]):
                expected = f"expected pixels as of {extension_name(self.images[0])}, {self.images[0].shape[-2:]}"
                raise DataError(self.path, extension_name(hdu), f"{expected}, received {hdu.shape}")
        arrays = [pixels(self.path, hdu, section=section) for hdu in found]
        if len(arrays) < 2:
            return arrays[0] if arrays else None
        arrays = [array[0] if array.ndim == 3 and len(array) == 1 else array for array in arrays]
        if part == "psf":
            arrays = padded(arrays)
        if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 2:
            shapes = ", ".join(f"{extension_name(hdu)} {hdu.shape}" for hdu in found)
            expected = "expected an image (height, width) of one size for each band"
            raise DataError(self.path, found[0].name, f"{expected}, received {shapes}")
        return np.stack(arrays)


def _part(part: str, hdu: Any) -> str:
    """The part that an extension is: of a noise what UTYPE says, as Astropy writes it with CCDData."""
    return UTYPES.get(str(hdu.header.get("UTYPE", "")).strip(), part) if part in names.NOISES else part


def padded(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Images with zeros around them, to one size where their middles can stay in place."""
    if any(array.ndim != 2 for array in arrays):
        return arrays
    shape = np.max([array.shape for array in arrays], 0)
    margins = [shape - array.shape for array in arrays]
    if any((margin % 2).any() for margin in margins):
        return arrays
    return [np.pad(array, [(m // 2, m // 2) for m in margin]) for array, margin in zip(arrays, margins, strict=True)]


def extension_name(hdu: Any) -> str:
    """The name of an extension in the case in which the file has it."""
    return str(hdu.header.get("EXTNAME", "") or hdu.name).strip()


def header_values(path: Path, hdu: Any, primary: Any) -> dict[str, Any]:
    """Plain values by keyword: of the extension's header first, then of the primary."""
    with parsing(path, f"header of {hdu.name}"):
        values = {**dict(primary.header), **dict(hdu.header)}
        return {key: value for key, value in values.items() if not isinstance(value, fits.card.Undefined)}


def _one_wcs(path: Path, images: Sequence[Any], primary: Any) -> Any:
    """The WCS of an image, or that of the images of all bands. Raises: DataError where they differ."""
    first, *others = (hd.celestial_wcs(path, hdu.header, primary.header) for hdu in images)
    for hdu, other in zip(images[1:], others, strict=True):
        if (first is None) != (other is None):
            raise DataError(path, hdu.name, "expected a WCS in all images or in none", WRITE_APART)
        if first is None or tuple(hdu.shape) != tuple(images[0].shape):
            continue
        pixels_of_first = AffineMap.between(path, other.celestial, first.celestial, hdu.shape[-2:]).points(
            hdu.shape[-2:]
        )
        if np.abs(pixels_of_first - np.moveaxis(np.indices(hdu.shape[-2:]), 0, -1)).max() > TOLERANCE:
            expected = f"expected the pixels of {images[0].name} on the sky, as images of one file are bands"
            raise DataError(path, hdu.name, f"{expected}, received another WCS", WRITE_APART)
    return first


def _band_names(path: Path, layers: Layers, headers: Sequence[hd.Header], count: int) -> list[str] | None:
    """Names of bands: of a cube by its header, of an image a band by the header or the name of each.

    The names that surveys give to u, g, r, i, z, y stand for these (see `names.band_letter`), unless two bands would
    then have one name; those in BANDS or FILTER1, FILTER2, ..., as `cards` writes them, are kept.

    Raises: DataError for images of one band.
    """
    written = _written_names(path, layers, headers, count)
    if written is None or {"BANDS", "FILTER1"} & {*headers[0]}:
        return written
    letters = [names.band_letter(name) for name in written]
    return letters if len({*letters}) == count else written


def _written_names(path: Path, layers: Layers, headers: Sequence[hd.Header], count: int) -> list[str] | None:
    """Names of bands as they are written."""
    if len(headers) == 1:
        return hd.band_names(headers[0], count)
    own = [hd.band_names(dict(hdu.header), 1) for hdu in layers.images]
    found = [one[0] for one in own if one]
    if len(set(found)) == count:
        return found
    if not any(key.isdigit() for key in layers.keys):
        letters = all(key in UPPER_CASE for key in layers.keys)
        return [key.lower() for key in layers.keys] if letters else layers.keys
    listed = hd.band_names(headers[0], count)
    if listed is None and found:
        raise DataError(
            path, "FILTER", f"expected another band in each image, received {', '.join(found)}", WRITE_APART
        )
    return listed


def _zeropoints(path: Path, headers: Sequence[hd.Header], count: int, unit: Any, surface: float | None) -> Any:
    """Zero points of all bands by the headers, `surface` where these say none; None where that is None too.

    Raises: DataError for those of some bands alone.
    """
    found = [hd.zeropoints(header, count if len(headers) == 1 else 1, unit) for header in headers]
    if len(headers) == 1 or all(zero is None for zero in found):
        found = [found[0] if len(headers) == 1 else hd.zeropoints(headers[0], count, unit)]
        return surface if found[0] is None else found[0]
    if None in found:
        raise DataError(path, "MAGZERO", "expected a zero point in the header of each band, received some alone")
    return found


def _catalog(path: Path, hdus: fits.HDUList, header: hd.Header) -> Table | None:
    hdu = find(hdus, ("CATALOG",), TABLE_HDUS)
    if hdu is None:
        return None
    with parsing(path, "CATALOG"):
        check_rows(path, "CATALOG", hdu.header["NAXIS2"])
        table = Table.read(hdu, format="fits", mask_invalid=False)
    return as_catalog(path, "CATALOG", "CATALOG", table, hd.origin(header))


def origin(path: Path) -> tuple[float, float] | None:
    """The (x, y) of the first pixel of a file's image in the one that it was cut from; None where it does not say."""
    if content(path) != "fits":
        return None
    with opened(path) as hdus:
        return hd.origin(header_values(path, Layers(path, hdus).images[0], hdus[0]))


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
    values = cards(scene.observation)
    for key, value in more.items():
        name = SHORT.get(key, key.upper())
        if np.ndim(value) == 0:
            values[name] = value.item()
        else:
            extensions[name] = value
    try:
        header.update(values)
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(observation.images, header, name="SCI")]
        hdus += [_hdu(name, data) for name, data in extensions.items() if data is not None]
    except ValueError as error:
        expected = "expected names of bands and sources and a unit in ASCII, as FITS holds no other text"
        raise DataError(path, "header", f"{expected}, received {error}", "write .npz") from error
    with written_whole(path) as temporary:
        fits.HDUList(hdus).writeto(temporary)


def _hdu(name: str, data: np.ndarray) -> fits.ImageHDU | fits.BinTableHDU:
    return fits.BinTableHDU(data, name=name) if data.dtype.names else fits.ImageHDU(data, name=name)


def cards(observation: Observation) -> dict[str, Any]:
    """Give what the header of an image says of an observation, beside its WCS: keywords and values."""
    found = dict[str, Any]()
    if any(re.search(r"[\s,;]", band) for band in observation.bands):
        found.update({f"FILTER{c + 1}": band for c, band in enumerate(observation.bands)})
    else:
        found["BANDS"] = ",".join(observation.bands)
    if observation.zeropoints is not None:
        found.update({f"MAGZERO{c + 1}": float(zero) for c, zero in enumerate(observation.zeropoints)})
    if observation.unit is not None:
        found["BUNIT"] = observation.unit
    if observation.pixel_scale is not None:
        found["PIXSCALE"] = observation.pixel_scale
    return found
