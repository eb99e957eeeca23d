"""What is gained by fitting observations together? `python -m benchmarks.joint twin --number 60`, or `epochs`.

`twin`: two galaxies 0.4 to 1.4 arcsec apart as seen by a space telescope (F814W, 0.05 arcsec pixels) and from the
ground (grizy, 0.168 arcsec), drawn by GalSim; fluxes on the ground from both together, and from the ground alone.

`epochs`: three galaxies in ten exposures of different seeing, turned and shifted, each off its WCS by a tenth of a
pixel; fluxes from all together, and from their coadd on the first one's pixels, with its PSF and weights. Shifts are
given relative to their mean, in pixels, beside the errors that are given for them. `--snr` sets the signal-to-noise of
all light of an exposure. Seconds are of the fields after the first, whose graph they share.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import galsim
import numpy as np
from astropy.wcs import WCS

from benchmarks.transients import host_of, psf_of
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.inference.calibration import CalibrationOptions

PSF_SIDE, STAMP = 41, {"twin": 128, "epochs": 64}
POSITION_ERROR = 0.02  # arcsec, of the positions that are given
GROUND = "grizy"
CLOSEST = 1.2  # arcsec, of galaxies in `epochs`: what decides is the noise, not the prior
KNOWN = CalibrationOptions(shift=0, gain=0)


class Galaxy(NamedTuple):
    """place: (east, north) arcsec. light: of unit flux. flux: by band."""

    place: np.ndarray
    light: galsim.GSObject
    flux: dict[str, float]


def expose(
    galaxies: Sequence[Galaxy],
    name: str,
    scale: float,
    side: int,
    psfs: dict[str, galsim.GSObject],
    noise: float,
    rng: np.random.Generator,
    degrees: float = 0.0,
    shift: np.ndarray | float = 0.0,
) -> Observation:
    """Galaxies on `side` pixels of `scale` arcsec, turned, `shift` (y, x) pixels off where the WCS has them."""
    middle, angle = (side - 1) / 2, np.radians(degrees)
    to_sky = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs = WCS(naxis=2)
    wcs.wcs.cd, wcs.wcs.crval, wcs.wcs.crpix = to_sky / 3600, [150, 2], [middle + 1] * 2
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    local, images, kernels = galsim.JacobianWCS(*to_sky.ravel()), [], []
    for band, psf in psfs.items():
        image = galsim.ImageD(side, side, wcs=local)
        for place, light, flux in galaxies:
            x, y = np.linalg.solve(to_sky, place) + middle + np.broadcast_to(shift, 2)[::-1]
            seen = galsim.Convolve(light * flux[band], psf)
            seen.drawImage(image, center=galsim.PositionD(x + 1, y + 1), add_to_image=True)
        images.append(image.array + rng.normal(scale=noise, size=(side, side)))
        kernel = psf.drawImage(nx=PSF_SIDE, ny=PSF_SIDE, wcs=local, dtype=float).array
        kernels.append(kernel / kernel.sum())
    data = np.array(images)
    return Observation(data, np.full(data.shape, noise**-2.0), np.array(kernels), tuple(psfs), name, wcs)


def pixels(galaxies: Sequence[Galaxy], one: Observation, error: float, rng: np.random.Generator) -> np.ndarray:
    """(K, 2) as (x, y): where its WCS has the galaxies, to `error` arcsec."""
    inverse = np.linalg.inv(3600 * one.wcs.wcs.cd)
    middle = (one.shape[1] - 1) / 2
    return np.array([inverse @ (galaxy.place + rng.normal(scale=error, size=2)) + middle for galaxy in galaxies])


def twin(seed: int) -> tuple[list[Observation], list[Galaxy]]:
    """One field from space and from the ground."""
    rng = np.random.default_rng(seed)
    angle, apart = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.4)
    galaxies = []
    for sign in (-1, 1):
        place = sign * apart / 2 * np.array([np.cos(angle), np.sin(angle)])
        colour = np.cumsum([0, *rng.normal(0.15, 0.1, 4)])
        flux = dict(zip(GROUND, 10 ** rng.uniform(3, 4.2) * 10 ** (colour - colour[2]), strict=True))
        galaxies.append(Galaxy(place, host_of("bulge-disk", rng), flux | {"F814W": flux["i"] * rng.uniform(0.9, 1.2)}))
    space = expose(galaxies, "space", 0.05, 128, {"F814W": psf_of(0.12, 0.01)}, 0.6, rng)
    psfs = {band: psf_of(rng.uniform(0.6, 0.85), rng.normal(scale=0.02)) for band in GROUND}
    return [space, expose(galaxies, "ground", 0.168, 32, psfs, 2.0, rng, 20)], galaxies


def epochs(seed: int, number: int, snr: float | None) -> tuple[list[Observation], list[Galaxy], np.ndarray]:
    """One field in several exposures of one band, the first not turned, and how far each is off its WCS (E, 2)."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-2, 2, (3, 2))
    while min(np.hypot(*(places[i] - places[i - 1])) for i in range(3)) < CLOSEST:
        places = rng.uniform(-2, 2, (3, 2))
    galaxies = [Galaxy(place, host_of("sersic", rng), {"r": 10 ** rng.uniform(3.3, 4)}) for place in places]
    observations, shifts = [], []
    for epoch in range(number):
        psf, degrees = psf_of(rng.uniform(0.6, 1.0), rng.normal(scale=0.02)), rng.uniform(0, 360) * (epoch > 0)
        shifts.append(rng.normal(scale=0.1, size=2))
        seen, where, noise = (0.2, 40, {"r": psf}), (degrees, shifts[-1]), 3.0
        if snr is not None:
            alone = expose(galaxies, "", *seen, 1e-6, np.random.default_rng(0), *where).images.astype(float)
            noise = float(np.sqrt(np.sum(alone**2))) / snr
        observations.append(expose(galaxies, f"epoch {epoch}", *seen, noise, rng, *where))
    return observations, galaxies, np.array(shifts)


def coadd(observations: Sequence[Observation], places: np.ndarray) -> Observation:
    """The mean on the first one's pixels, each interpolated by splines, with the mean PSF and weight: as if the
    WCSs were right and its noise white."""
    from scipy.ndimage import map_coordinates

    first, maps = observations[0], Scene.from_catalog(observations, places).maps
    images, weights, psfs = [], [], []
    for one, to_first in zip(observations, maps, strict=True):
        back = np.linalg.inv(to_first.matrix)
        at = np.moveaxis((np.moveaxis(np.indices(first.shape[1:]), 0, -1) - to_first.offset) @ back.T, -1, 0)
        images.append(map_coordinates(one.images[0].astype(float), at, order=5, cval=np.nan))
        weights.append(map_coordinates(one.weights[0].astype(float), at, order=1, cval=0))
        around = np.moveaxis(np.indices(one.psf.shape[1:]) - PSF_SIDE // 2, 0, -1) @ back.T + PSF_SIDE // 2
        psfs.append(map_coordinates(one.psf[0].astype(float), np.moveaxis(around, -1, 0), order=5))
    share = np.where(np.isfinite(images), weights, 0)
    total = share.sum(0)
    mean = np.nansum(np.nan_to_num(images) * share, 0) / np.maximum(total, 1e-30)
    psf = np.mean(psfs, 0)
    return Observation(mean[None], total[None], psf[None] / psf.sum(), first.bands, "coadd", first.wcs)


def fluxes(result: Deblended, bands: Sequence[str], galaxies: Sequence[Galaxy]) -> np.ndarray:
    """(3, n): found, its error, and true."""
    table = result.catalog
    rows = [(table[f"flux_{band}"][k], table[f"flux_err_{band}"][k], g.flux[band])
            for band in bands for k, g in enumerate(galaxies)]  # fmt: skip
    return np.array(rows, float).T


def figures(found: np.ndarray) -> dict[str, float]:
    """Relative errors of fluxes, and pulls."""
    flux, error, truth = found
    off, pulls = (flux - truth) / truth, (flux - truth) / error
    return {
        "fluxes": int(flux.size),
        "median_off": float(np.median(np.abs(off))),
        "rms_off": float(np.sqrt(np.mean(off**2))),
        "median_error": float(np.median(error / truth)),
        "coverage_68": float(np.mean(np.abs(pulls) < 0.9945)),
        "pull_spread": float(pulls.std()),
    }


def shift_errors(result: Deblended, shifts: np.ndarray) -> np.ndarray:
    """(2, 2 E): how far the fitted shifts are off, and their errors, in pixels."""
    assert result.calibration is not None
    maps = result.scene.maps
    true = -np.array([pixels.matrix @ shift for pixels, shift in zip(maps, shifts, strict=True)])
    off = result.calibration.shift - (true - true.mean(0))
    return np.stack([off.ravel(), result.calibration.shift_error.ravel()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("twin", "epochs"))
    parser.add_argument("--number", type=int, default=60, help="of fields")
    parser.add_argument("--prior", choices=tuple(PRIORS), default="bulge-disk", help="of the fit")
    parser.add_argument("--method", choices=("map", "sample"), default="map")
    parser.add_argument("--exposures", type=int, default=10, help="of a field, in `epochs`")
    parser.add_argument("--snr", type=float, help="of all light of an exposure, in `epochs`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    free = CalibrationOptions() if options.what == "epochs" else KNOWN
    deblenders = {
        name: Deblender(options.prior, options.method, samples=32, calibration=calibration, stamp=STAMP[options.what])
        for name, calibration in (("together", free), ("alone", KNOWN))
    }
    found: dict[str, list[np.ndarray]] = {"together": [], "alone": []}
    seconds, unfinished, moved = {"together": 0.0, "alone": 0.0}, 0, []
    for number in range(options.number):
        of = 1000 * options.seed + number
        if options.what == "twin":
            observations, galaxies = twin(of)
        else:
            observations, galaxies, shifts = epochs(of, options.exposures, options.snr)
        rng, first = np.random.default_rng(number), observations[0]
        bands, single = GROUND, observations[1]
        if options.what == "epochs":
            bands, single = "r", coadd(observations, pixels(galaxies, first, 0, rng))
        for name, several in (("together", observations), ("alone", [single])):
            places = pixels(galaxies, several[0], POSITION_ERROR, rng)
            began = time.perf_counter()
            result = deblenders[name].deblend(Scene.from_catalog(several, places))
            seconds[name] += (time.perf_counter() - began) * (number > 0)
            if options.what == "epochs" and name == "together":
                moved.append(shift_errors(result, shifts))
            unfinished += not result.header["converged"]
            found[name].append(fluxes(result, bands, galaxies))
        print(f"{number + 1} of {options.number}", end="\r", flush=True)
    document = {name: figures(np.concatenate(parts, 1)) | {"seconds": seconds[name]} for name, parts in found.items()}
    print(f"{'':10}{'fluxes':>8}{'off, median':>13}{'rms':>8}{'error':>8}{'68% hold':>10}{'pulls':>7}{'seconds':>9}")
    for name, one in document.items():
        print(
            f"{name:10}{one['fluxes']:8d}{one['median_off']:13.4f}{one['rms_off']:8.4f}{one['median_error']:8.4f}"
            f"{one['coverage_68']:10.3f}{one['pull_spread']:7.2f}{one['seconds']:9.0f}"
        )
    if moved:
        off, error = np.concatenate(moved, 1)
        said, rms = np.sqrt(np.mean(error**2)), np.sqrt(np.mean(off**2))
        document["shifts"] = {"exposures": off.size // 2, "rms_off": float(rms), "rms_error": float(said)}
        print(f"shifts of {off.size // 2} exposures are off by {rms:.4f} pixel (rms), their errors are {said:.4f}")
    print(f"{unfinished} did not finish")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
