"""Observation: images of the sky in some bands on one grid of pixels, with their weights, PSFs and WCS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.data import validation
from tfdeblend.data.noise_correlation import WINDOW, as_correlation, from_power, from_sky
from tfdeblend.data.photometry import as_unit, as_zeropoints, parsed
from tfdeblend.data.psf_checks import as_psf
from tfdeblend.data.weights import as_weights
from tfdeblend.data.wrappings import unwrap
from tfdeblend.errors import DataError, expect

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.nddata import CCDData


@dataclass(frozen=True, eq=False)
class Observation:
    """Holds one image of the sky, an exposure or a coadd, in C bands; all of it is converted and checked on creation.

    Args:
        images: (C,H,W), or (H,W) for one band, in `unit`. Arrays, lists, masked arrays, `Quantity`, `NDData`/`CCDData`
            (whose mask, uncertainty, wcs, unit and psf are used), or a list of `Quantity`, `NDData` or `CCDData` (H,W),
            one a band on the same pixels. What is in another unit than `unit` is converted. NaN and infinite pixels,
            and marks of missing data such as 1e30, become 0 with weight 0, and are counted in `notes`.
        weights: as images: inverse variance in 1/unit^2, 0 = masked; or an uncertainty of `astropy.nddata`. One with a
            unit of its own is converted. None: one value per band, from the scatter of its sky, with a note. See
            `tfdeblend.data.weights.as_weights` for what is masked.
        psf: (C,h,w), each band summing to 1 (renormalised with a note up to 5% off), or (h,w): the same in all bands.
            Bands that are not centred on one origin are shifted to it (see `tfdeblend.data.psf_checks`).
        bands: C different names. None: band0, band1, ...
        name: used in messages and in the names of outputs.
        wcs: a WCS with a celestial part, or the text of a FITS header.
        zeropoints: (C,) or one number: AB magnitude of flux 1; a `Quantity` must be in mag or ABmag. None: from `unit`,
            where that is a flux density or, with a pixel scale, a surface brightness.
        unit: of the images, as astropy writes it; any other text is kept as it is, except magnitudes.
        pixel_scale: arcsec, or a `Quantity`. None: from `wcs`.
        noise_correlation: (C,h,w), or (h,w) for all bands, h and w odd: the noise's correlation between pixels so far
            apart, 1 in the middle; variances are the weights' (see `tfdeblend.data.noise_correlation`). None: white.
        saturated: (C,H,W), or (H,W) for all bands, booleans: at the detector's limit. Sources that have such pixels are
            flagged; only weights say what is masked.
        notes: warnings of reading and checking, one line each.
        may_be_empty: whether all pixels may be masked, as in a piece of a larger image.
        flat: whether the sky was subtracted: its level is then 0, whatever the pixels say.

    Raises:
        DataError: naming the observation, the field, what was expected and what was received.
    """

    images: np.ndarray
    # These three may be given as None, but are never None once __post_init__ has run.
    weights: np.ndarray = None  # type: ignore[assignment]
    psf: np.ndarray = None  # type: ignore[assignment]
    bands: tuple[str, ...] = None  # type: ignore[assignment]
    name: str = "observation"
    wcs: Any = None
    zeropoints: np.ndarray | None = None
    unit: str | None = None
    pixel_scale: float | None = None
    noise_correlation: np.ndarray | None = None
    saturated: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    may_be_empty: bool = False
    flat: bool = False

    def __post_init__(self) -> None:
        expect("notes", self.notes, tuple, list)
        for note in self.notes:
            expect("notes", note, str)
        where, notes = str(self.name), list(self.notes)
        pixels = unwrap(where, self.images, self.weights, self.wcs, self.unit, self.psf)
        images = validation.as_images(where, pixels.images)
        bands = validation.as_bands(where, self.bands, len(images))
        valid = validation.valid_pixels(where, images, pixels.mask, notes)
        if pixels.noise is None:
            weights = validation.estimate_weights(where, images, valid, bands, notes)
        else:
            weights = as_weights(where, pixels.noise, images, valid, notes)
        images, weights = validation.mask_pixels(where, images, weights, valid, bands, notes, self.may_be_empty)
        unit, wcs = as_unit(where, pixels.unit), validation.as_wcs(where, pixels.wcs)
        scale = validation.as_pixel_scale(where, self.pixel_scale, wcs, notes)
        checked = {
            "images": images,
            "weights": weights,
            "psf": as_psf(where, pixels.psf, bands, scale, notes),
            "bands": bands,
            "name": where,
            "wcs": wcs,
            "zeropoints": as_zeropoints(where, self.zeropoints, unit, scale, len(images), notes),
            "unit": unit,
            "pixel_scale": scale,
            "noise_correlation": as_correlation(where, self.noise_correlation, bands),
            "saturated": None
            if self.saturated is None
            else validation.as_mask(where, "saturated", self.saturated, images.shape),
            "notes": tuple(dict.fromkeys(notes)),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)
        if pixels.noise is None:  # what is crowded has more deviation than noise
            from tfdeblend.data.sky import noise_seen

            noise = noise_seen(self)[:, None, None]
            object.__setattr__(self, "weights", np.where(self.valid, noise**-2.0, 0))

    @classmethod
    def read(cls, path: str | Path, **how: Any) -> Observation:
        """Read an NPZ or FITS file; see `tfdeblend.io.read` for the errors, `tfdeblend.io.Reading` for `how`."""
        from tfdeblend import io

        return io.read(path, **how)[0]

    def select(self, bands: Sequence[str]) -> Observation:
        """Keep some of the bands, in the order given. Raises: DataError for one that is not there."""
        expect("bands", bands, tuple, list, str)
        for band in bands:
            expect("bands", band, str)
        missing = [band for band in bands if band not in self.bands]
        if missing:
            expected = f"expected some of {', '.join(self.bands)}"
            raise DataError(self.name, "bands", f"{expected}, received {', '.join(missing)}")
        rows = [self.bands.index(band) for band in bands]
        zeropoints, correlation, saturated = (
            None if field is None else field[rows]
            for field in (self.zeropoints, self.noise_correlation, self.saturated)
        )
        return replace(
            self,
            images=self.images[rows],
            weights=self.weights[rows],
            psf=self.psf[rows],
            bands=tuple(bands),
            zeropoints=zeropoints,
            noise_correlation=correlation,
            saturated=saturated,
        )

    def cut(self, rows: slice, columns: slice) -> Observation:
        """Cut out the pixels from `start` to before `stop` of rows and columns, with their WCS."""
        window = (slice(None), rows, columns)
        return replace(
            self,
            images=self.images[window],
            weights=self.weights[window],
            wcs=None if self.wcs is None else self.wcs.celestial[rows, columns],
            saturated=None if self.saturated is None else self.saturated[window],
        )

    def ccd(self, band: str, image: np.ndarray | None = None) -> CCDData:
        """Give one band as Astropy's CCDData: with its inverse variance, mask, WCS, unit and PSF.

        Args:
            image: (H,W) that takes the place of the band's own, such as a model of it or a residual; the uncertainty
                and the mask stay those of the data.

        Raises: DataError for a band that is not there, and an image of another shape.
        """
        from astropy import units
        from astropy.nddata import CCDData, InverseVariance

        one = self.select((band,))
        shown = one.images[0] if image is None else np.asarray(image)
        if shown.shape != one.shape[1:]:
            raise DataError(self.name, "image", f"expected shape {one.shape[1:]}, received {shown.shape}")
        return CCDData(
            shown,
            uncertainty=InverseVariance(one.weights[0]),
            mask=~one.valid[0],
            wcs=one.wcs,
            unit=parsed(one.unit) or units.dimensionless_unscaled,
            psf=one.psf[0],
        )

    def sky(self, y: np.ndarray, x: np.ndarray) -> SkyCoord:
        """Convert pixels (y, x) to ICRS coordinates; the observation needs a WCS."""
        return self.wcs.celestial.pixel_to_world(x, y).icrs

    def with_sky_correlation(self, sky: np.ndarray | None = None) -> Observation:
        """Estimate `noise_correlation` from the empty sky, and return the observation with it.

        Args:
            sky: (H,W) bool, where nothing but noise is seen. None: what `sky.empty` finds.

        Raises:
            DataError: another shape, or too few pixels of sky in some band.
        """
        from tfdeblend.data.sky import empty as without_sources

        empty = without_sources(self) if sky is None else np.asarray(sky, bool)
        if empty.shape != self.shape[1:]:
            raise DataError(self.name, "sky", f"expected shape {self.shape[1:]}, received {empty.shape}")
        noise = self.images * np.sqrt(self.weights)
        try:
            white = from_power(np.ones((1, 2 * WINDOW + 1, 2 * WINDOW + 1)))[0]  # for a band that is all masked
            pairs = zip(noise, self.valid, strict=True)
            found = [from_sky(band, empty & valid) if valid.any() else white for band, valid in pairs]
            return replace(self, noise_correlation=np.stack(found))
        except ValueError as error:
            raise DataError(self.name, "noise_correlation", str(error)) from error

    def with_sky_weights(self) -> Observation:
        """Rescale the weights of each band so that its noise is the scatter of its sky, with a note of the factors."""
        from tfdeblend.data import sky

        factors = (sky.stated_noise(self) / sky.noise_seen(self)) ** 2
        text = ", ".join(f"{factor:.3g} in {band}" for factor, band in zip(factors, self.bands, strict=True))
        note = f"weights rescaled to the scatter of the sky: by {text}"
        return replace(self, weights=self.weights * factors[:, None, None], notes=(*self.notes, note))

    def sky_levels(self) -> np.ndarray:
        """Measure the level of the sky in each band, (C,), the median of its unmasked pixels, clipped above; 0 where it
        was subtracted. It is measured once, so that an observation's arrays are not to be changed."""
        return self._sky_levels.copy()

    @cached_property
    def _sky_levels(self) -> np.ndarray:
        if self.flat:
            return np.zeros(len(self.images))
        return np.array([validation.sky_level(i[v]) for i, v in zip(self.images, self.valid, strict=True)])

    def less(self, levels: np.ndarray) -> Observation:
        """Take a constant (C,) off each band."""
        return self.derived(images=self.images - np.asarray(levels)[:, None, None])

    def derived(self, **changes: Any) -> Observation:
        """Make the same with changes that were made of its own checked values, which are not checked again. Images keep
        their shape and type, weights their zeros."""
        if "images" in changes:
            changes["images"] = changes["images"].astype(np.float32, copy=False)
        other = object.__new__(type(self))
        vars(other).update({field.name: getattr(self, field.name) for field in fields(self)} | changes)
        return other

    @property
    def shape(self) -> tuple[int, int, int]:
        """Give the shape (C,H,W) of the images."""
        bands, height, width = self.images.shape
        return bands, height, width

    @property
    def valid(self) -> np.ndarray:
        """Tell which pixels, (C,H,W) bool, have positive weights."""
        return self.weights > 0


COADD_ZEROPOINT = 27.0  # AB magnitude of one flux unit of the stamps, as in HSC's coadds


def band_scales(observation: Observation) -> np.ndarray:
    """Measure each band's typical noise, (C,) in the observation's unit: the median of 1 / sqrt(weights) where valid.

    A band that is all masked gets the other bands' geometric mean, taken at the same AB magnitude; all get 1 where all
    are masked.
    """
    weights, reference = observation.weights.astype(float), reference_flux(observation)
    seen = np.array([bool((band > 0).any()) for band in weights])
    if not seen.any():
        return np.ones(len(weights))
    noise = np.array([np.sqrt(1 / np.median(w[w > 0])) if (w > 0).any() else 1.0 for w in weights])
    typical = np.exp(np.log(noise / reference)[seen].mean())
    return np.where(seen, noise, typical * reference)


def reference_flux(observation: Observation) -> np.ndarray:
    """The flux of AB magnitude COADD_ZEROPOINT, (C,) in the observation's unit; 1 where zero points are not known."""
    zeropoints = observation.zeropoints
    return np.ones(observation.shape[0]) if zeropoints is None else 10 ** (0.4 * (zeropoints - COADD_ZEROPOINT))
