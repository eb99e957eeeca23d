"""Take images and their noise out of Astropy's and NumPy's wrappings: masks, units, uncertainties, one NDData a band.

Everything comes out in one unit: that which is asked for, else the images' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.photometry import as_unit, parsed
from tfdeblend.data.weights import Noise
from tfdeblend.errors import DataError

POWERS = {"sigma": 1, "variance": 2, "weights": -2}  # of the images' unit in which a noise is
APART = 0.1  # pixels by which the bands of an image may differ


class Pixels(NamedTuple):
    """What an observation is made of. mask: True = masked. Anything but the images may be None."""

    images: Any
    mask: Any = None
    noise: Any = None
    wcs: Any = None
    unit: Any = None
    psf: Any = None


def unwrap(where: str | Path, images: Any, noise: Any, wcs: Any, unit: Any, psf: Any) -> Pixels:
    """Take apart masked arrays, Quantity, NDData and CCDData, or a list of such, one a band.

    An argument that is given wins over what the wrapping carries; images in another unit than `unit` are converted.

    Raises: DataError for units that do not go together, and bands that are not of one grid of pixels.
    """
    several = isinstance(images, list | tuple) and any(hasattr(one, "unit") for one in images)
    found = _of_bands(where, images, unit) if several else _of_one(where, images, unit)
    if noise is not None:
        each = isinstance(noise, list | tuple) and any(hasattr(one, "unit") for one in noise)
        noises = [_in_unit(where, one, found.unit) for one in (noise if each else [noise])]
        found = found._replace(noise=_stacked(where, noises) if each else noises[0])
    given = {"wcs": wcs, "psf": psf}
    return found._replace(**{field: value for field, value in given.items() if value is not None})


def _of_one(where: str | Path, images: Any, unit: Any) -> Pixels:
    mask = noise = wcs = psf = None
    own = getattr(images, "unit", None)
    if hasattr(images, "uncertainty"):  # NDData, CCDData
        noise, mask, wcs, psf = images.uncertainty, images.mask, images.wcs, getattr(images, "psf", None)
        images = images.data
    if hasattr(images, "unmasked"):  # Masked(Quantity)
        images, mask = images.unmasked, images.mask
    images = getattr(images, "value", images)
    if isinstance(images, np.ma.MaskedArray):
        mask, images = np.ma.getmaskarray(images), np.ma.getdata(images)
    unit = own if unit is None else unit
    if own is not None:
        images = _times(images, _factor(where, "images", own, unit, 1))
    return Pixels(images, mask, None if noise is None else _in_unit(where, noise, unit), wcs, unit, psf)


def _of_bands(where: str | Path, images: Sequence[Any], unit: Any) -> Pixels:
    """Stack images (H,W), one a band, that are wrapped each by itself; all in the unit of the first."""
    if unit is None and len({getattr(one, "unit", None) is None for one in images}) > 1:
        raise DataError(where, "images", "expected a unit in all bands or in none, received one in some of them")
    first = _of_one(where, images[0], unit)
    bands = [first, *(_of_one(where, one, first.unit if unit is None else unit) for one in images[1:])]
    shapes = [np.shape(one.images) for one in bands]
    if len({*shapes}) > 1 or len(shapes[0]) != 2:
        raise DataError(where, "images", f"expected images (height, width) of one size, received {shapes}")
    noises = [one.noise for one in bands]
    for one in bands[1:]:
        _check_wcs(where, first.wcs, one.wcs, shapes[0])
    masks = [np.zeros(shapes[0], bool) if one.mask is None else one.mask for one in bands]
    return first._replace(
        images=np.stack([one.images for one in bands]),
        mask=np.stack(masks),
        noise=_stacked(where, noises),
        psf=None if any(one.psf is None for one in bands) else [one.psf for one in bands],
    )


def _stacked(where: str | Path, noises: Sequence[Noise | None]) -> Noise | None:
    """Stack the noises (H,W) of the bands; None where none has one. Raises: DataError for different kinds."""
    kinds = {None if noise is None else noise.kind for noise in noises}
    if len(kinds) > 1:
        received = ", ".join(sorted(map(str, kinds)))
        raise DataError(where, "weights", f"expected uncertainties of one kind in all bands, received {received}")
    known = [noise for noise in noises if noise is not None]
    return Noise(known[0].kind, np.stack([noise.values for noise in known])) if known else None


def _check_wcs(where: str | Path, first: Any, other: Any, shape: tuple[int, int]) -> None:
    if (first is None) != (other is None):
        raise DataError(where, "wcs", "expected a WCS in all bands or in none, received one in some of them")
    if first is not None:
        places = AffineMap.between(where, other, first, shape).points(shape)
        off = float(np.abs(places - np.moveaxis(np.indices(shape), 0, -1)).max())
        if off > APART:
            expected = "expected bands on the same pixels"
            remedy = "make an Observation of each, and a Scene of these"
            raise DataError(where, "wcs", f"{expected}, received pixels that are off by {off:.3g}", remedy)


def _in_unit(where: str | Path, given: Any, unit: Any) -> Noise:
    """Bring a noise, as `Noise.of` takes it, to the images' unit."""
    noise, own = Noise.of(where, given), getattr(given, "unit", None)
    values = getattr(noise.values, "value", noise.values)
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled(0)
    if own is not None:
        values = _times(values, _factor(where, "weights", own, unit, POWERS[noise.kind]))
    return Noise(noise.kind, values)


def _factor(where: str | Path, field: str, own: Any, unit: Any, power: int) -> float:
    """Find the factor from the unit `own` to a power of `unit`. Raises: DataError where there is none."""
    from astropy import units

    known = unit if isinstance(unit, units.UnitBase) else parsed(as_unit(where, unit))
    expected = units.dimensionless_unscaled if unit is None else known if known is None else known**power
    try:
        return float(own.to(expected))
    except (units.UnitsError, AttributeError, TypeError) as error:
        wanted = f"{unit}, which Astropy does not know" if expected is None else expected
        hint = "wrap a noise as an uncertainty of astropy.nddata" if field == "weights" else None
        raise DataError(where, field, f"expected unit {wanted}, received {own}", hint) from error


def _times(values: Any, factor: float) -> Any:
    return values if factor == 1 else np.asarray(values) * factor
