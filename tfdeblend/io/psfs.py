"""Point-spread functions from files, brought to the pixels and the place of the image that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data import validation
from tfdeblend.data.psf_checks import LARGEST
from tfdeblend.errors import DataError
from tfdeblend.io import headers as hd
from tfdeblend.io import images
from tfdeblend.io.files import content, parsing
from tfdeblend.io.npz import Archive

PSFEX = "PSF_DATA"  # the table of a PSFEx model
# Extensions with an image, the first first: of an optics simulator as the detector sees it, with its distortion or
# without, then finer.
IMAGES = ("PSF", "DET_DIST", "DET_SAMP", "OVERDIST", "OVERSAMP")
SCALES = ("PIXELSCL", "PIXSCALE")  # keywords of the PSF's pixel, arcsec
POSITIONS = "POSITIONS"  # the table of the places of stamps
GRIDS = ("DET_YX0", "NXPSFS", "STMPSIZE")  # keywords of stamps at many places: of STPSF's, HST's and Euclid's
SAME = 0.03  # by which pixels of one scale may differ
STEPS = (0.01, 10.0)  # pixels of a PSF in those of an image
WHOLE = 0.01  # by which pixels of the image may differ from whole ones of the PSF
PIFF_SIDE = 65  # pixels of the stamp that a Piff model is drawn on


@dataclass(frozen=True)
class Place:
    """Where a PSF is to be: on the pixels of an image, at its centre.

    Args:
        shape: (H,W) of the image.
        pixel_scale: arcsec, or None where it is not known.
        position: (x, y) of the image's centre in the image that a varying model was made for, the first pixel's centre
            being (1, 1) as in FITS; None where it is not known.

    Raises:
        DataError: a position that is not two numbers.
    """

    shape: tuple[int, ...]
    pixel_scale: float | None = None
    position: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.position is not None:
            numbers = validation.numbers("PSF", "psf_position", self.position)
            if numbers.shape != (2,) or not np.isfinite(numbers).all():
                raise DataError("PSF", "psf_position", f"expected finite (x, y), received {self.position}")

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the image's centre in its own pixels, the first one's centre being (1, 1)."""
        return (self.shape[1] + 1) / 2, (self.shape[0] + 1) / 2


def read_psf(path: Path, place: Place, notes: list[str], named: bool = True) -> np.ndarray:
    """Read the PSF in a file: (C,h,w), or (h,w) for all bands, on the image's pixels.

    Args:
        path: NPZ with `psfs`; FITS with an image in extension PSF, of the names in IMAGES, or in the primary; FITS with
            stamps (n,h,w) in the primary and a table POSITIONS of their x and y; a PSFEx or Piff model.
        named: whether the user named the file, as he must for a Piff model: it holds pickled objects, which can run
            code.

    Raises:
        DataError: by file and field, for a file that is missing or broken or holds no PSF, coarser pixels than the
            image's, several models or a grid of stamps.
    """
    if content(path) == "npz":
        with Archive(path) as archive:
            psf, scale = archive.need("psfs"), archive.get("pixel_scale")
        header = {} if scale is None else {"PIXSCALE": validation.as_pixel_scale(path, scale, None, [])}
        return on_pixels(path, "psfs", psf, header, place, notes)
    with images.opened(path) as hdus:
        models = [hdu for hdu in hdus if hdu.name.upper() == PSFEX and isinstance(hdu, images.TABLE_HDUS)]
        if len(models) > 1:
            remedy = "write the image's own to a file of its own"
            raise DataError(path, PSFEX, f"expected one PSFEx model, received {len(models)}, one a chip", remedy)
        if models:
            return evaluate_psfex(path, models[0], place, notes)
        if images.find(hdus, ("PSF",), images.TABLE_HDUS) is not None:
            return evaluate_piff(path, place, notes, named)
        if (table := images.find(hdus, (POSITIONS,), images.TABLE_HDUS)) is not None:
            stamp = nearest_stamp(path, images.pixels(path, hdus[0]), table, place, notes)
            return on_pixels(path, "PSF", stamp, hdus[0].header, place, notes)
        hdu = _image(path, hdus, place)
        return on_pixels(path, hdu.name, images.pixels(path, hdu), hdu.header, place, notes)


def _image(path: Path, hdus: Any, place: Place) -> Any:
    """The HDU to read: the first on pixels of the image's scale, or of an unknown one; else that of the finest."""
    found = [hdu for name in IMAGES if (hdu := images.find(hdus, (name,))) is not None]
    if not found:
        found = [hdu for hdu in hdus if isinstance(hdu, images.IMAGE_HDUS) and hdu.header.get("NAXIS", 0) > 0][:1]
        if not found:
            raise DataError(path, "PSF", "expected an image in PSF or the primary, or a PSFEx model, received neither")
        listed = any(isinstance(hdu, images.TABLE_HDUS) and hdu.header.get("NAXIS2", 0) > 1 for hdu in hdus)
        if listed or found[0].header["NAXIS"] > 3 or any(key in found[0].header for key in GRIDS):
            remedy = "write the stamp nearest to the image to a file of its own"
            expected = "expected one stamp a band, received stamps at many places"
            raise DataError(path, found[0].name, expected, remedy)
    steps = [pixel_step(path, hdu.header, place.pixel_scale) for hdu in found]
    for hdu, step in zip(found, steps, strict=True):
        if step is None or abs(step - 1) <= SAME:
            return hdu
    return found[steps.index(min(step for step in steps if step is not None))]


def pixel_step(path: Path, header: Mapping[str, Any], image_scale: float | None) -> float | None:
    """The side of a PSF's pixel in pixels of the image; None where the PSF's header does not say.

    image_scale: arcsec, or None where it is not known: then a PSF that an optics simulator oversampled is on its
    detector's pixels DET_SAMP times finer.
    """
    scale = _pixel_scale(path, header)
    if scale is not None and image_scale is not None:
        return scale / image_scale
    finer = hd.positive(header, "DET_SAMP")
    if finer is not None and not str(header.get("EXTNAME", "")).upper().startswith("DET_"):
        return 1 / finer
    return hd.positive(header, "PSF_SAMP")


def _pixel_scale(path: Path, header: Mapping[str, Any]) -> float | None:
    """Arcsec: from one of SCALES, a celestial WCS of pixels that cameras have, or CDELT1 where CUNIT1 is an angle."""
    from astropy import units
    from astropy.wcs.utils import proj_plane_pixel_area

    for key in SCALES:
        if (scale := hd.positive(header, key)) is not None:
            return scale
    wcs = hd.celestial_wcs(path, header)
    if wcs is not None:
        scale, (least, most) = 3600 * float(proj_plane_pixel_area(wcs.celestial)) ** 0.5, validation.PIXEL_SCALES
        return scale if least <= scale <= most else None
    try:
        return abs(float(header["CDELT1"]) * units.Unit(header["CUNIT1"]).to(units.arcsec)) or None
    except (KeyError, ValueError, TypeError):  # no such keywords, or no unit of an angle
        return None


def on_pixels(
    path: Path, field: str, psf: Any, header: Mapping[str, Any], place: Place, notes: list[str]
) -> np.ndarray:
    """Bring a PSF (C,h,w) or (h,w) to the image's pixels where its header says that its own are finer, with a note.

    The light in its pixels is added up where the image's are whole multiples of them, else it is interpolated. An image
    of a PSFEx model (PSF_SAMP) holds what the image's pixels see, and is only interpolated.

    Raises: DataError for pixels that are coarser than the image's.
    """
    step = pixel_step(path, header, place.pixel_scale)
    if step is None or abs(step - 1) <= SAME:
        return psf
    sampled, unit = "PSF_SAMP" in header, place.pixel_scale
    if not STEPS[0] <= step <= (STEPS[1] if sampled else 1):
        expected, received = f"expected pixels of {STEPS[0]:g} to 1 of the image's", f"{step:.4g}"
        if unit is not None:
            expected, received = f"{expected}, which are of {unit:.4g} arcsec", f"{step * unit:.4g} arcsec"
        raise DataError(path, field, f"{expected}, received {received}", "give the PSF on the image's pixels")
    array = validation.numbers(path, field, psf)
    if array.ndim not in (2, 3) or max(array.shape) > LARGEST or not np.isfinite(array).all():
        return psf  # what is wrong with it the checks of an Observation say
    array = array.astype(float)
    bands = array[np.newaxis] if array.ndim == 2 else array
    count = round(1 / step)
    if not sampled and abs(count * step - 1) <= WHOLE and count > 1 and _divides(bands.shape[1:], count):
        height, width = (size // count for size in bands.shape[1:])
        y, x = ((size % count) // 2 for size in bands.shape[1:])
        cut = bands[:, y : y + height * count, x : x + width * count]
        brought = cut.reshape(len(bands), height, count, width, count).sum((2, 4))
    else:
        with parsing(path, field):
            brought = np.stack([_interpolated(band, step, sampled) for band in bands])
    notes.append(f"PSF brought to the image's pixels: its own are {step:.4g} of them")
    return brought if array.ndim == 3 else brought[0]


def _divides(shape: tuple[int, ...], count: int) -> bool:
    """Whether whole pixels of `count` times `count` lie about the middle of a stamp."""
    return all((size % count) % 2 == 0 and size >= count for size in shape)


def _interpolated(psf: np.ndarray, step: float, sampled: bool) -> np.ndarray:
    """A PSF (h,w) of pixels of `step` drawn on those of 1, odd in number, with the total it had.

    sampled: whether its values are samples of what the pixels of 1 see, not the light in its own.
    """
    import galsim

    profile = galsim.InterpolatedImage(galsim.Image(np.ascontiguousarray(psf)), scale=step, x_interpolant="lanczos5")
    if not sampled:
        profile = galsim.Convolve(profile, galsim.Deconvolve(galsim.Pixel(step)), galsim.Pixel(1.0))
    height, width = (2 * (int(size * step - 1) // 2) + 1 for size in psf.shape)
    return profile.drawImage(nx=width, ny=height, scale=1.0, method="no_pixel").array.astype(float)


def evaluate_psfex(path: Path, table: Any, place: Place, notes: list[str]) -> np.ndarray:
    """Draw the PSFEx model of an HDU, at the place of an image, on its pixels: (n,n) with n odd, summing to 1.

    Args:
        path: for messages.
        table: the open HDU, with columns and header as PSFEx writes them.

    Raises:
        DataError: a model that GalSim cannot read, or that varies with anything but a position in pixels.
    """
    import galsim.des

    header = table.header
    names = [str(header.get(key)) for key in ("POLNAME1", "POLNAME2")]
    if header.get("POLNAXIS") == 0:  # GalSim reads models that vary with two coordinates, to any degree
        header.update(POLNAXIS=2, POLNGRP=1, POLDEG1=0, PSFNAXIS=3, PSFAXIS3=1)
        header.update(POLNAME1="X_IMAGE", POLGRP1=1, POLZERO1=0.0, POLSCAL1=1.0)
        header.update(POLNAME2="Y_IMAGE", POLGRP2=1, POLZERO2=0.0, POLSCAL2=1.0)
    elif not all(name.startswith(axis) and name.endswith("IMAGE") for name, axis in zip(names, "XY", strict=True)):
        expected = "expected a model that varies with X_IMAGE and Y_IMAGE"
        raise DataError(path, PSFEX, f"{expected}, received one with {', '.join(names)}")
    with parsing(path, PSFEX):
        model = galsim.des.DES_PSFEx(table)
        if not STEPS[0] <= model.sample_scale <= STEPS[1]:
            expected = "expected a PSF_SAMP of {:g} to {:g}".format(*STEPS)
            raise DataError(path, PSFEX, f"{expected}, received {model.sample_scale:g}")
        x, y = place.centre if model.fit_order == 0 else _position(model, place, notes)
        profile = model.getPSF(galsim.PositionD(x, y))
        side = 2 * int(max(model.basis.shape[1:]) * model.sample_scale / 2) + 1
        # PSFEx models the PSF as pixels record it: convolving with the pixel again would widen it.
        psf = profile.drawImage(nx=side, ny=side, scale=1.0, method="no_pixel").array.astype(float)
        return psf / psf.sum()


def evaluate_function(
    path: Path, function: Callable[[float, float, str], Any], bands: Sequence[str], place: Place
) -> np.ndarray:
    """Call a function (x, y, band) for the PSF of each band at the place of an image: (C,h,w).

    x and y are pixels of the image that the place's position is in, else of the image itself, the first pixel's centre
    being (0, 0). Stamps of several sizes are padded with zeros.

    Raises: DataError for a function that fails, or gives no image of odd or even sides as those of the other bands.
    """
    x, y = place.centre if place.position is None else place.position
    name = getattr(function, "__name__", "psf")
    found = []
    for band in bands:
        expected = f"expected an image (h, w) from {name}({x - 1:g}, {y - 1:g}, {band!r})"
        try:
            stamp = np.asarray(function(x - 1, y - 1, band), float)
        except Exception as error:  # whatever the function does
            raise DataError(path, "psf", f"{expected}, received {type(error).__name__}: {error}") from error
        if stamp.ndim != 2:
            raise DataError(path, "psf", f"{expected}, received shape {stamp.shape}")
        found.append(stamp)
    padded = images.padded(found)
    if len({stamp.shape for stamp in padded}) > 1:
        received = ", ".join(str(stamp.shape) for stamp in found)
        raise DataError(path, "psf", f"expected sides odd in all bands, or even in all, received {received}")
    return np.stack(padded)


def nearest_stamp(path: Path, stamps: Any, table: Any, place: Place, notes: list[str]) -> np.ndarray:
    """Take of PSFs (n,h,w) at many places of an image the one nearest to `place`: (h,w).

    Args:
        path: for messages.
        table: the open HDU of their places: columns x and y, of the first pixel's centre (1, 1).

    Raises:
        DataError: another number of stamps than of places, or places that are no numbers.
    """
    with parsing(path, POSITIONS):
        at = np.stack([np.asarray(table.data[axis], float) for axis in "xy"], 1)
    if stamps is None or stamps.ndim != 3 or len(stamps) != len(at) or not len(at):
        received = "no image" if stamps is None else f"shape {stamps.shape}"
        raise DataError(path, "PSF", f"expected a stamp (h, w) for each of {len(at)} positions, received {received}")
    if not np.isfinite(at).all():
        raise DataError(path, POSITIONS, "expected finite x and y, received others")
    if place.position is None:
        notes.append(_assumed(place))
    here = place.centre if place.position is None else place.position
    return np.asarray(stamps[np.argmin(np.hypot(*(at - here).T))])


def _position(model: Any, place: Place, notes: list[str]) -> tuple[float, float]:
    """Where a PSFEx model is evaluated, with a note where that may not be the image's place, or is far from its stars.

    A model that was made for the image itself has its middle in the image's.
    """
    x, y = place.centre if place.position is None else place.position
    reach = max(abs(x - model.x_zero) / model.x_scale, abs(y - model.y_zero) / model.y_scale)
    if place.position is None and reach > 0.1:
        notes.append(_assumed(place))
    elif reach > 1:
        span = f"x {model.x_zero:g} +- {model.x_scale:g}, y {model.y_zero:g} +- {model.y_scale:g}"
        notes.append(f"PSF model used far outside of its range: at ({x:g}, {y:g}), it was made for {span}")
    return x, y


def _assumed(place: Place) -> str:
    x, y = place.centre
    remedy = "a cut-out needs LTV1 and LTV2 in its header, or --psf-position"
    return f"PSF model that varies taken at the image's own centre ({x:g}, {y:g}): {remedy}"


def evaluate_piff(path: Path, place: Place, notes: list[str], named: bool) -> np.ndarray:
    """Draw a Piff model at the place of an image, on its pixels: (n,n), summing to 1.

    Raises: DataError where the user did not name the file, without the package piff, and for what it cannot draw.
    """
    if not named:
        remedy = "a Piff model holds pickled objects, which can run code: give it by --psf where you trust it"
        raise DataError(path, "PSF", "expected an image or a PSFEx model, received a Piff model", remedy)
    try:
        import piff
    except ImportError as error:
        remedy = "pip install 'tfdeblend[piff]'"
        raise DataError(path, "PSF", "expected an image or a PSFEx model, received a Piff model", remedy) from error
    if place.position is None:
        notes.append(_assumed(place))
    x, y = place.centre if place.position is None else place.position
    with parsing(path, "PSF"):
        psf = piff.read(str(path)).draw(x=x, y=y, stamp_size=PIFF_SIDE, center=True).array.astype(float)
        return psf / psf.sum()
