"""What a galaxy is worth behind dust: `python -m benchmarks.dust --number 20`.

Sersic galaxies in g, r, z behind lanes of random place, length, direction and depth, multiplied on pixels five times
finer than the image's and seen through the PSF. Relative L2 errors of the galaxy's own light and of what arrives of it,
through the PSF both: with a screen of dust (`tfdeblend.fit_dust`), and by one or two components without.
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
from tfdeblend.data.scene import Scene, Source
from tfdeblend.deblender import Deblender
from tfdeblend.dust import calzetti, fit_dust

SIDE, SCALE, FINER = 48, 0.168, 5  # pixels; arcsec; how much smaller are the pixels where light is taken away
WAVELENGTHS = (0.48, 0.62, 0.89)  # micrometres
FLUX = np.array([15000.0, 24000.0, 33000.0])
DISK = galsim.Exponential(half_light_radius=0.8).shear(g1=0.3, g2=0.1)
LANE = {"offset": (0.1, 0.0), "radius": 0.35, "ellipticity": (0.32, 0.5), "depth": 1.5}  # see `DustPrior`


def simulate(
    lane: dict, galaxy: galsim.GSObject = DISK, noise: float = 1.0, seed: int = 0
) -> tuple[Observation, np.ndarray, np.ndarray]:
    """A galaxy behind a lane, and its image without and with it (C, H, W)."""
    side, scale = SIDE * FINER, SCALE / FINER
    t = (np.arange(side) - (side - 1) / 2) * scale
    y, x = np.meshgrid(t - lane["offset"][0], t - lane["offset"][1], indexing="ij")
    e1, e2 = lane["ellipticity"]
    inverse = np.array([[1 + e1**2 + e2**2 + 2 * e1, -2 * e2], [-2 * e2, 1 + e1**2 + e2**2 - 2 * e1]])
    inverse = inverse / (1 - e1**2 - e2**2) / lane["radius"] ** 2  # along (y, x)
    square = inverse[0, 0] * y**2 + 2 * inverse[0, 1] * y * x + inverse[1, 1] * x**2
    light = galaxy.drawImage(nx=side, ny=side, scale=scale, dtype=float).array
    psf = galsim.Moffat(beta=3.5, fwhm=0.65)

    def seen(image: np.ndarray) -> np.ndarray:
        whole = galsim.InterpolatedImage(galsim.Image(image, scale=scale), flux=float(image.sum()))
        return galsim.Convolve(whole, psf).drawImage(nx=SIDE, ny=SIDE, scale=SCALE, dtype=float).array

    through = [np.exp(-k * lane["depth"] * np.exp(-square / 2)) for k in calzetti(WAVELENGTHS)]
    intrinsic = FLUX[:, None, None] * seen(light)
    attenuated = np.stack([flux * seen(light * share) for flux, share in zip(FLUX, through, strict=True)])
    kernel = psf.drawImage(nx=41, ny=41, scale=SCALE, dtype=float).array
    wcs = WCS(naxis=2)
    wcs.wcs.cd, wcs.wcs.ctype = SCALE / 3600 * np.diag([-1, 1]), ["RA---TAN", "DEC--TAN"]
    data = attenuated + np.random.default_rng(seed).normal(scale=noise, size=attenuated.shape)
    return (
        Observation(data, np.full_like(data, noise**-2.0), kernel / kernel.sum(), tuple("grz"), "lane", wcs),
        intrinsic,
        attenuated,
    )


def alone(observation: Observation) -> Scene:
    return Scene((observation,), (Source((SIDE - 1) / 2, (SIDE - 1) / 2),))


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def draw(seed: int) -> tuple[Observation, np.ndarray, np.ndarray]:
    """A random galaxy and lane."""
    rng = np.random.default_rng(seed)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.75)
    lane = {
        "offset": rng.normal(scale=0.15, size=2),
        "radius": rng.uniform(0.25, 0.5),
        "ellipticity": (length * np.cos(angle), length * np.sin(angle)),
        "depth": rng.uniform(0.4, 2.5),
    }
    g1, g2 = rng.normal(scale=0.2, size=2).clip(-0.4, 0.4)
    galaxy = galsim.Sersic(round(rng.uniform(0.7, 2.0), 1), half_light_radius=rng.uniform(0.5, 1.1)).shear(g1=g1, g2=g2)
    return simulate(lane, galaxy, 10 ** rng.uniform(0, 0.7), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=20, help="of galaxies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    deblenders = {prior: Deblender(prior) for prior in ("sersic", "bulge-disk")}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("dust", *deblenders)}
    seconds, converged = 0.0, 0
    for number in range(options.number):
        observation, intrinsic, attenuated = draw(1000 * options.seed + number)
        scene, began = alone(observation), time.perf_counter()
        dusty = fit_dust(scene, calzetti(WAVELENGTHS))
        seconds, converged = seconds + time.perf_counter() - began, converged + dusty.converged
        found["dust"].append((relative(dusty.intrinsic, intrinsic), relative(dusty.attenuated, attenuated), dusty.chi2))
        for prior, deblender in deblenders.items():
            one = deblender.deblend(scene)
            found[prior].append((relative(one.model, intrinsic), relative(one.model, attenuated), float(one.chi2)))
        print(f"{number + 1} of {options.number}", end="\r", file=sys.stderr)
    document: dict = {"converged": converged / options.number, "seconds": seconds / options.number}
    print(f"\n{'':12} {'own light':>10} {'worst':>7} {'arriving':>10} {'worst':>7} {'chi2':>7}")
    for name, rows in found.items():
        middle, worst = np.median(rows, 0), np.max(rows, 0)
        document[name] = {"median": middle.tolist(), "worst": worst.tolist()}
        print(f"{name:12} {middle[0]:10.4f} {worst[0]:7.3f} {middle[1]:10.4f} {worst[1]:7.3f} {middle[2]:7.2f}")
    print(f"{document['converged']:.2f} converged, {document['seconds']:.1f} s each, compilation included")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
