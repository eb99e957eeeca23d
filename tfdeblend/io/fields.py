"""A field in several files: what lies beside an image as parts of its contents, and bands as one observation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import UNNAMED
from tfdeblend.errors import DataError
from tfdeblend.io import images, masks, names
from tfdeblend.io.companions import field_name, image_of, parse
from tfdeblend.io.contents import Contents
from tfdeblend.io.files import content
from tfdeblend.io.reading import Reading

WHAT = {
    "weights": "a map of weights",
    "variance": "a map of variances",
    "sigma": "a map of noise",
    "mask": "a mask",
    "psf": "a PSF",
    "other": "a map beside an image",
}
APART = 0.1  # pixels by which the bands of an image may differ


def refuse_map(path: Path) -> None:
    """Raises: DataError for a file that, by its name and for want of anything else in it, holds no image of the sky."""
    part, image = parse(path).part, image_of(path)
    if part == "images" or content(path) == "npz":
        return
    with images.opened(path) as hdus:
        held = [hdu for hdu in hdus if isinstance(hdu, images.TABLE_HDUS) or hdu.header.get("NAXIS", 0) > 0]
        said = names.parsed(held[0].name) if held else None
    if len(held) != 1 or (said and said.part == "images"):
        return
    if image is not None:
        remedy = f"give {image}, with which it is read"
    elif part == "psf":
        remedy = "give it as --psf, or call it <name>_psf.fits for an image <name>.fits beside it"
    else:
        remedy = "put it beside its image under the same name but for that word, as x-image-r.fits and x-invvar-r.fits"
    raise DataError(path, "file", f"expected an image of the sky, received {WHAT[part]} by its name", remedy)


def join(contents: Contents, beside: Mapping[str, Sequence[Path]], section: tuple[slice, slice] | None = None) -> None:
    """Take the noise and the mask that lie beside an image for parts of its contents, where it has none, with a note.

    beside: see `companions.beside`. section: that alone is read.

    Raises: DataError for two files of one part, and for one that holds no image.
    """
    noise = [part for part in names.NOISES if beside.get(part)]
    wanted = [] if any(contents.parts.get(part) is not None for part in names.NOISES) else noise[:1]
    wanted += ["mask"] if beside.get("mask") and contents.parts.get("mask") is None else []
    for part in wanted:
        if len(beside[part]) > 1:
            received = ", ".join(file.name for file in beside[part])
            raise DataError(contents.path, part, f"expected one file of this part beside it, received {received}")
        _take(contents, part, beside[part][0], section)
    unread = [file for part in beside if part not in (*wanted, "psf") for file in beside[part]]
    if unread:
        contents.notes += (f"not read: {', '.join(file.name for file in unread)} beside it",)


def _take(contents: Contents, part: str, file: Path, section: tuple[slice, slice] | None) -> None:
    with images.opened(file) as hdus:
        hdu = next((hdu for hdu in hdus if isinstance(hdu, images.IMAGE_HDUS) and hdu.header.get("NAXIS", 0) > 1), None)
        if hdu is None:
            raise DataError(file, "file", f"expected {WHAT[part]}, as its name says, received no image")
        if section is not None and tuple(hdu.shape[-2:]) != (whole := images.shape(contents.path)):
            expected = f"expected {whole[0]} x {whole[1]} pixels as of {contents.path.name}"
            raise DataError(file, part, f"{expected}, received {hdu.shape[-2]} x {hdu.shape[-1]}")
        contents.parts[part] = images.pixels(file, hdu, section=section)
        if part == "mask":
            contents.planes = masks.planes(file, parse(file).word, images.header_values(file, hdu, hdus[0]))
    contents.names[part] = file.name
    contents.notes += (f"{part} from {file.name}",)


def as_one(files: Sequence[Path], observations: Sequence[Observation]) -> Observation:
    """The observation of the bands of a field, each of which has a file of its own, under the field's name.

    Raises: DataError, by file, for bands that are not on the same pixels, or do not have the same unit.
    """
    first = observations[0]
    for file, one in zip(files, observations, strict=True):
        _check_pixels(files, file, first, one)
        for field in ("unit", "zeropoints"):
            ours, theirs = getattr(first, field), getattr(one, field)
            if (ours is None) != (theirs is None) or (field == "unit" and ours != theirs):
                expected = f"expected the same as of the other bands of the field, {_text(ours)}"
                raise DataError(file, field, f"{expected}, received {_text(theirs)}")
    bands = _bands(files, observations)
    joined = ", ".join(f"{band} from {file.name}" for band, file in zip(bands, files, strict=True))
    notes = [f"bands joined to one image: {joined}"]
    for file, one in zip(files, observations, strict=True):
        notes += [f"{file.name}: {note}" for note in one.notes]
    kept = {field: [getattr(one, field) for one in observations] for field in ("noise_correlation", "saturated")}
    blank = [np.zeros(one.shape, bool) for one in observations]
    white = [np.ones((1, 1, 1))] * len(observations)
    zeropoints = None if first.zeropoints is None else np.concatenate([one.zeropoints for one in observations])
    return Observation(
        images=np.concatenate([one.images for one in observations]),
        weights=np.concatenate([one.weights for one in observations]),
        psf=_stacked([one.psf for one in observations]),
        bands=bands,
        name=field_name(files),
        wcs=first.wcs,
        zeropoints=zeropoints,
        unit=first.unit,
        pixel_scale=first.pixel_scale,
        noise_correlation=_filled(kept["noise_correlation"], white, _stacked),
        saturated=_filled(kept["saturated"], blank, np.concatenate),
        notes=tuple(notes),
        may_be_empty=first.may_be_empty,
    )


def _check_pixels(files: Sequence[Path], file: Path, first: Observation, one: Observation) -> None:
    """Raises: DataError for another shape or WCS than the first band's, and for more than one band in a file."""
    expected = f"expected one band on the pixels of {files[0]}, as the names say"
    remedy = f"give {' '.join(f'--observation {each}' for each in files)}, or each in a command of its own"
    if one.shape[0] != 1 or one.shape != first.shape:
        raise DataError(file, "images", f"{expected}, received shape {one.shape} and {first.shape}", remedy)
    if (one.wcs is None) != (first.wcs is None):
        raise DataError(file, "wcs", f"{expected}, received a WCS in one of them alone", remedy)
    if one.wcs is not None:
        pixels = AffineMap.between(one.name, one.wcs, first.wcs, one.shape[1:])
        places = np.moveaxis(np.indices(one.shape[1:]), 0, -1)
        off = float(np.abs(pixels.points(one.shape[1:]) - places).max())
        if off > APART:
            raise DataError(file, "wcs", f"{expected}, received pixels that are off by {off:.3g}", remedy)


def _bands(files: Sequence[Path], observations: Sequence[Observation]) -> tuple[str, ...]:
    """The names of bands in the files, else in their names."""
    given = [one.bands[0] for one in observations]
    unknown = len({*given}) < len(given) or any(UNNAMED.fullmatch(band) for band in given)
    return tuple(parse(file).band for file in files) if unknown else tuple(given)


def _filled(arrays: Sequence[Any], blank: Sequence[np.ndarray], stack: Any) -> np.ndarray | None:
    """What the bands that lack a part have instead, in one array; None where all lack it."""
    if all(array is None for array in arrays):
        return None
    return stack([none if array is None else array for array, none in zip(arrays, blank, strict=True)])


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Images (1,h,w) of odd or of even sides in one array, with zeros around those that are smaller."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (1, 2))
    padded = []
    for array in arrays:
        y, x = (height - array.shape[1]) // 2, (width - array.shape[2]) // 2
        rest = (y, height - array.shape[1] - y), (x, width - array.shape[2] - x)
        padded.append(np.pad(array, ((0, 0), *rest)))
    return np.concatenate(padded)


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def reading_of(reading: Reading, files: Sequence[Path], number: int) -> Reading:
    """What the user says of a field whose bands have files of their own, as it holds for one of them, by its number.

    Raises: DataError for another number of bands than files.
    """
    bands, zeropoints, name = reading.bands, reading.zeropoints, parse(files[number])
    if bands is not None:
        if len(bands) != len(files):
            expected = f"expected {len(files)} names, one for each of {files[0]} and further files"
            raise DataError("--bands", None, f"{expected}, received {', '.join(bands)}")
        bands = bands[number : number + 1]
    if isinstance(zeropoints, Mapping):
        zeropoints = next((zeropoints[each] for each in (*(bands or ()), name.band) if each in zeropoints), zeropoints)
    return replace(reading, bands=bands, zeropoints=zeropoints)
