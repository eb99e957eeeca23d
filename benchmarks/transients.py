"""Are light curves right? `python -m benchmarks.transients --number 200`.

A transient on a galaxy in 12 epochs of different seeing and depth, the first 3 without it, drawn by GalSim. Its light
curve by scene modelling (`tfdeblend.light_curve`, the position found by the fit), and by forced photometry on
difference images at the true position: the template is the mean of the epochs without it, weighted by depth, and each
of epoch and template is convolved with the other's PSF ("difference"); or, what is optimal where noise is white and
PSFs are known, their difference is whitened, too ("proper": Zackay, Ofek and Gal-Yam 2016).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import galsim
import numpy as np
from astropy.wcs import WCS

from tfdeblend.data.observation import Observation
from tfdeblend.transients import light_curve

SCALE, SIDE, PSF_SIDE = 0.2, 32, 41  # arcsec a pixel; pixels
EPOCHS, OFF = 12, 3
GSPARAMS = galsim.GSParams(folding_threshold=1e-4)  # the default leaves out 0.5% of the light
MIDDLE = (SIDE - 1) / 2


def wcs() -> WCS:
    sky = WCS(naxis=2)
    sky.wcs.cd, sky.wcs.crval, sky.wcs.crpix = SCALE / 3600 * np.diag([-1, 1]), [150, 2], [MIDDLE + 1] * 2
    sky.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    return sky


def host_of(kind: str, rng: np.random.Generator) -> galsim.GSObject:
    """A galaxy of unit flux: "sersic", which the fit's prior holds; "bulge-disk" or "knots", which it does not."""
    radius, (g1, g2) = rng.uniform(0.3, 0.9), rng.normal(scale=0.15, size=2).clip(-0.4, 0.4)
    if kind == "sersic":
        return galsim.Sersic(np.round(rng.uniform(0.7, 3), 1), half_light_radius=radius).shear(g1=g1, g2=g2)
    disk = galsim.Exponential(half_light_radius=radius).shear(g1=g1, g2=g2)
    if kind == "knots":
        places = rng.normal(scale=0.5 * radius, size=(8, 2))
        return 0.8 * disk + galsim.Sum(*(galsim.Gaussian(sigma=0.05, flux=0.025).shift(*place) for place in places))
    share = rng.uniform(0.1, 0.6)
    return (1 - share) * disk + share * galsim.DeVaucouleurs(half_light_radius=radius * rng.uniform(0.2, 0.6))


def psf_of(fwhm: float, shear: float) -> galsim.GSObject:
    """Two Gaussians, which leave less than 1e-4 of their light outside of the PSF's image."""
    core = galsim.Gaussian(fwhm=fwhm, flux=0.9, gsparams=GSPARAMS)
    return (core + galsim.Gaussian(fwhm=1.7 * fwhm, flux=0.1, gsparams=GSPARAMS)).shear(g1=shear, g2=0)


def draw(kind: str, seed: int) -> tuple[list[Observation], np.ndarray, np.ndarray, np.ndarray]:
    """Observations, true fluxes (E,), true position (y, x) of the transient, and of the host."""
    rng = np.random.default_rng(seed)
    center = MIDDLE + rng.uniform(-0.5, 0.5, 2)
    place = center + rng.normal(scale=2.0, size=2)
    host = host_of(kind, rng) * 10 ** rng.uniform(3, 4.3)
    phase = np.arange(EPOCHS) - OFF
    rise, fall = rng.uniform(0.5, 2), rng.uniform(2, 8)
    flux = np.where(
        phase < 0, 0, 10 ** rng.uniform(2, 3.5) * (1 - np.exp(-(phase + 0.7) / rise)) * np.exp(-phase / fall)
    )
    observations = []
    for epoch in range(EPOCHS):
        psf = psf_of(rng.uniform(0.6, 1.1), rng.normal(scale=0.02))
        noise = 10 ** rng.uniform(0.0, 0.5)
        image = galsim.ImageD(SIDE, SIDE, scale=SCALE)
        for source, (y, x) in ((host, center), (galsim.DeltaFunction(flux=float(flux[epoch]) or 1e-9), place)):
            seen = galsim.Convolve(source, psf)
            seen.drawImage(image, center=galsim.PositionD(x + 1, y + 1), add_to_image=True)
        kernel = psf.drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=SCALE, dtype=float).array
        data = image.array + rng.normal(scale=noise, size=(SIDE, SIDE))
        weights = np.full(data.shape, noise**-2.0)
        observations.append(Observation(data, weights, kernel / kernel.sum(), ("r",), f"epoch {epoch}", wcs()))
    return observations, flux, place, center


def difference(observations: Sequence[Observation], place: np.ndarray, proper: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes (E,) and errors of forced PSF photometry on difference images; nan where off."""
    spectra = [np.fft.fft2(one.images[0].astype(float)) for one in observations]
    psfs = [_transfer(one.psf[0]) for one in observations]
    variances = np.array([1 / one.weights[0, 0, 0] for one in observations])
    share = 1 / variances[:OFF] / np.sum(1 / variances[:OFF])
    template, template_psf = (sum(w * s for w, s in zip(share, parts, strict=False)) for parts in (spectra, psfs))
    noise = float(np.sum(share**2 * variances[:OFF]))
    k = np.fft.fftfreq(SIDE)
    phase = np.exp(-2j * np.pi * (k[:, None] * place[0] + k * place[1]))
    flux, error = np.full((2, len(observations)), np.nan)
    for e in range(OFF, len(observations)):
        power = variances[e] * abs(template_psf) ** 2 + noise * abs(psfs[e]) ** 2
        scale = np.sqrt(power) if proper else 1.0
        image = (spectra[e] * template_psf - template * psfs[e]) / scale
        shape = psfs[e] * template_psf * phase / scale
        norm = np.sum(abs(shape) ** 2)
        flux[e] = np.sum(shape.conj() * image).real / norm
        error[e] = SIDE * np.sqrt(np.sum(abs(shape) ** 2 * power / scale**2)) / norm
    return flux, error


def _transfer(psf: np.ndarray) -> np.ndarray:
    """F[PSF] of the image's size, about its centre."""
    at = (np.arange(PSF_SIDE) - PSF_SIDE // 2) % SIDE
    padded = np.zeros((SIDE, SIDE))
    np.add.at(padded, (at[:, None], at), psf)
    return np.fft.fft2(padded)


def figures(pulls: np.ndarray, errors: np.ndarray, off: np.ndarray) -> dict:
    """Of all measurements: share within one and two errors, spread and mean of pulls, median error, rms deviation."""
    return {
        "measurements": int(pulls.size),
        "coverage_68": float(np.mean(abs(pulls) < 0.9945)),
        "coverage_95": float(np.mean(abs(pulls) < 1.96)),
        "pull_spread": float(pulls.std()),
        "pull_mean": float(pulls.mean()),
        "median_error": float(np.median(errors)),
        "rms": float(np.sqrt(np.mean(off**2))),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200, help="of simulations")
    parser.add_argument("--host", choices=("sersic", "bulge-disk", "knots"), default="sersic")
    parser.add_argument("--prior", default="sersic", help="of the fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found: dict[str, list[np.ndarray]] = {"scene model": [], "difference": [], "proper": []}
    began, unfinished, chi2 = time.perf_counter(), 0, []
    for number in range(options.number):
        observations, truth, place, center = draw(options.host, 1000 * options.seed + number)
        given = place + np.random.default_rng(number).normal(scale=0.3, size=2)
        result = light_curve(observations, center[None, ::-1], given, off=range(OFF), prior=options.prior)
        unfinished += not result.converged
        chi2.append(np.mean(result.chi2))
        curves = {"scene model": (result.flux[:, 0], result.flux_err[:, 0])}
        curves |= {name: difference(observations, place, name == "proper") for name in ("difference", "proper")}
        for name, (flux, error) in curves.items():
            found[name].append(np.stack([flux - truth, error])[:, OFF:])
        print(f"{number + 1} of {options.number}, {time.perf_counter() - began:.0f} s", end="\r", file=sys.stderr)
    document: dict = {"not_converged": unfinished, "chi2": float(np.mean(chi2))}
    document["seconds"] = (time.perf_counter() - began) / options.number
    print(f"\n{'':12} {'68%':>6} {'95%':>6} {'spread':>7} {'mean':>6} {'error':>7} {'rms':>7}")
    for name, each in found.items():
        off, error = np.stack(each, 1).reshape(2, -1)
        row = document[name] = figures(off / error, error, off)
        print(f"{name:12} {row['coverage_68']:6.3f} {row['coverage_95']:6.3f} {row['pull_spread']:7.3f} "
              f"{row['pull_mean']:6.2f} {row['median_error']:7.2f} {row['rms']:7.2f}")  # fmt: skip
    print(f"{unfinished} not converged, chi2 a pixel {document['chi2']:.3f}, {document['seconds']:.2f} s a simulation")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
