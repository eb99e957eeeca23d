"""One field of galaxies, by GalSim, as several observations show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene

# Offset (east, north) in arcsec, flux in g, Sersic index, half-light radius in arcsec, shear.
GALAXIES = (
    (0.0, 0.0, 8000, 1.0, 0.5, (0.2, 0.1)),
    (1.3, 0.9, 5000, 1.5, 0.4, (-0.1, 0.2)),
    (-1.0, 1.2, 3000, 0.8, 0.4, (0.0, 0.0)),
)
COLOUR = {"g": 1.0, "r": 1.3, "i": 1.6}  # flux over that in g
FLUX = np.array([galaxy[2] for galaxy in GALAXIES])


def expose(
    name: str,
    scale: float = 0.2,
    shape: tuple[int, int] = (40, 40),
    degrees: float = 0.0,
    flip: bool = False,
    seeing: float = 0.7,
    noise: float = 1.0,
    bands: str = "gr",
    shift: tuple[float, float] = (0.0, 0.0),
    gain: float = 1.0,
    seed: int = 0,
) -> Observation:
    """The galaxies by GalSim on turned pixels, `shift` (y, x) of these away from where the WCS has them."""
    middle = (np.array(shape) - 1) / 2
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    to_sky = scale * np.array([[c, -s], [s, c]]) @ np.diag([-1 if flip else 1, 1])
    wcs = WCS(naxis=2)
    wcs.wcs.cd, wcs.wcs.crval, wcs.wcs.crpix = to_sky / 3600, [150, 2], middle[::-1] + 1
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    local = galsim.JacobianWCS(*to_sky.ravel())
    images, psfs = [], []
    for number, band in enumerate(bands):
        psf = galsim.Moffat(beta=3.5, fwhm=seeing * (1 - 0.1 * number))
        image = galsim.ImageD(shape[1], shape[0], wcs=local)
        for east, north, flux, index, radius, (g1, g2) in GALAXIES:
            x, y = np.linalg.solve(to_sky, [east, north]) + middle[::-1] + np.array(shift)[::-1]
            galaxy = galsim.Sersic(index, half_light_radius=radius, flux=gain * flux * COLOUR[band]).shear(g1=g1, g2=g2)
            center = galsim.PositionD(x + 1, y + 1)
            galsim.Convolve(galaxy, psf).drawImage(image, center=center, add_to_image=True)
        drawn = psf.drawImage(nx=35, ny=35, wcs=local, dtype=float).array
        images.append(image.array)
        psfs.append(drawn / drawn.sum())
    data = np.array(images) + np.random.default_rng(seed).normal(scale=noise, size=(len(bands), *shape))
    return Observation(data, np.full(data.shape, noise**-2.0), np.array(psfs), tuple(bands), name, wcs)


def places(first: Observation) -> np.ndarray:
    """(K, 2) of (x, y)."""
    to_sky = first.wcs.wcs.cd * 3600
    return np.array([np.linalg.solve(to_sky, galaxy[:2]) + first.wcs.wcs.crpix - 1 for galaxy in GALAXIES])


def positions(first: Observation) -> np.ndarray:
    """(K, 2) of (x, y), rounded as detections are."""
    return np.round(places(first))


def two_observations(
    name: str = "first", seed: int = 0, degrees: float = 30.0, correlation: np.ndarray | None = None
) -> Scene:
    """A small field in g and r, a corner of it masked, and on coarser, turned pixels in r and i, in noise of a
    correlation."""
    first = expose(name, shape=(20, 24), seed=2 * seed)
    coarse = expose(f"{name}, coarse", 0.3, (16, 15), degrees, seeing=0.9, bands="ri", seed=2 * seed + 1)
    weights = first.weights.copy()
    weights[:, :3, :5] = 0
    first, coarse = replace(first, weights=weights), replace(coarse, noise_correlation=correlation)
    return Scene.from_catalog((first, coarse), positions(first))


def away(wcs: WCS) -> WCS:
    """A field beside."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = wcs.wcs.crpix + 100
    return moved


def write(folder: Path, one: Observation, **planes: np.ndarray) -> Path:
    """The observation as FITS; `planes`: further images by the name of their extension."""
    header = fits.Header() if one.wcs is None else one.wcs.to_header()
    header["BANDS"] = ",".join(one.bands)
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(one.images, header, name="SCI"), fits.ImageHDU(one.weights, name="WHT")]
    hdus += [fits.ImageHDU(one.psf, name="PSF"), *(fits.ImageHDU(data, name=name) for name, data in planes.items())]
    path = folder / f"{one.name}.fits"
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path
