"""The whole way on one simulated blend: simulate, save, read, deblend, compare with the truth, write, draw.

    python examples/demo.py --out demo

Four bulge+disk galaxies are drawn by GalSim as the Hyper Suprime-Cam would see them: grizy, 0.168 arcsec pixels,
seeing of 0.6 to 0.75 arcsec, the noise of a deep coadd. The deblender is given images, variance, PSFs and peaks.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import galsim
import numpy as np

import tfdeblend

BANDS = "grizy"
PIXEL = 0.168  # arcsec
SEEING = {"g": 0.74, "r": 0.69, "i": 0.60, "z": 0.66, "y": 0.68}  # FWHM in arcsec
SKY_SIGMA = {"g": 0.05, "r": 0.07, "i": 0.10, "z": 0.16, "y": 0.33}  # of a pixel, in flux units
ZEROPOINT = 27.0  # AB magnitude of flux 1
GAIN = 40.0  # photo-electrons a flux unit
SHAPE = (70, 76)  # pixels
BULGE_COLOURS = {"g": 1.75, "r": 0.62, "i": 0.0, "z": -0.28, "y": -0.42}  # magnitudes from i
DISK_COLOURS = {"g": 0.75, "r": 0.28, "i": 0.0, "z": -0.13, "y": -0.2}


class Galaxy(NamedTuple):
    """The truth of a galaxy, whose bulge has half the shear of its disk."""

    x: float  # pixels
    y: float
    mag: float  # in i
    bulge: float  # its share of the light in i
    redness: float  # of the disk, times DISK_COLOURS
    disk_radius: float  # half-light, arcsec
    bulge_radius: float
    shear: tuple[float, float]

    def profile(self, band: str) -> galsim.GSObject:
        flux = 10 ** (-0.4 * (self.mag - ZEROPOINT))
        disk = galsim.Exponential(half_light_radius=self.disk_radius, flux=flux * (1 - self.bulge))
        bulge = galsim.DeVaucouleurs(half_light_radius=self.bulge_radius, flux=flux * self.bulge)
        disk *= 10 ** (-0.4 * self.redness * DISK_COLOURS[band])
        bulge *= 10 ** (-0.4 * BULGE_COLOURS[band])
        g1, g2 = self.shear
        return disk.shear(g1=g1, g2=g2) + bulge.shear(g1=g1 / 2, g2=g2 / 2)


GALAXIES = (
    Galaxy(33.2, 34.6, 20.6, 0.35, 1.2, 0.95, 0.35, (0.25, 0.10)),
    Galaxy(44.7, 39.1, 21.4, 0.10, 0.1, 0.60, 0.30, (-0.20, 0.20)),
    Galaxy(30.4, 47.8, 22.2, 0.60, 1.5, 0.50, 0.30, (0.05, -0.15)),
    Galaxy(49.3, 28.5, 22.9, 0.05, -0.1, 0.45, 0.25, (0.30, -0.25)),
)


def simulate(seed: int) -> tfdeblend.Scene:
    """Draw the galaxies as a scene; the deblender is given their positions to the pixel, as a detection would."""
    height, width = SHAPE
    psfs = {band: galsim.Kolmogorov(fwhm=SEEING[band]) for band in BANDS}
    noiseless = np.zeros((len(BANDS), height, width))
    for galaxy in GALAXIES:
        for c, band in enumerate(BANDS):
            seen = galsim.Convolve(galaxy.profile(band), psfs[band])
            image = galsim.ImageD(width, height, scale=PIXEL)
            centre = galsim.PositionD(galaxy.x + 1, galaxy.y + 1)  # GalSim counts pixels from 1
            noiseless[c] += seen.drawImage(image, center=centre).array
    sky = np.array([SKY_SIGMA[band] for band in BANDS])[:, None, None] ** 2
    variance = sky + np.maximum(noiseless, 0) / GAIN
    noise = np.random.default_rng(seed).normal(size=variance.shape) * np.sqrt(variance)
    psf_images = np.stack([psfs[band].drawImage(nx=41, ny=41, scale=PIXEL).array for band in BANDS])
    observation = tfdeblend.Observation(
        images=noiseless + noise,
        weights=1 / variance,
        psf=psf_images / psf_images.sum((1, 2), keepdims=True),
        bands=tuple(BANDS),
        zeropoints=np.full(len(BANDS), ZEROPOINT),
        pixel_scale=PIXEL,
    )
    return tfdeblend.Scene.from_catalog(observation, [(round(galaxy.x), round(galaxy.y)) for galaxy in GALAXIES])


def compare(result: tfdeblend.Deblended) -> None:
    """Prints total flux and error against the truth by source and band."""
    print(f"\n{'source':>6} {'band':>4} {'truth':>9} {'flux':>9} {'error':>7} {'flux/truth-1':>12} {'pull':>6}")
    relative, pulls = [], []
    for row, galaxy in zip(result.catalog, GALAXIES, strict=True):
        for band in BANDS:
            true = galaxy.profile(band).flux
            flux, error = row[f"flux_{band}"], row[f"flux_err_{band}"]
            relative.append(flux / true - 1)
            pulls.append((flux - true) / error)
            measured = f"{flux:9.1f} {error:7.2f} {relative[-1]:+12.3f} {pulls[-1]:+6.1f}"
            print(f"{row['id']:>6} {band:>4} {true:9.1f} {measured}")
    typical, spread = np.median(np.abs(relative)), np.sqrt(np.mean(np.square(pulls)))
    print(f"\nmedian |flux/truth - 1| {typical:.3f}, rms pull {spread:.2f}, chi2/pixel {result.chi2:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a blend, deblend it, compare with the truth.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    parser.add_argument("--prior", default="bulge-disk", help="galaxy model (default: bulge-disk, as simulated)")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the noise (default: 1)")
    args = parser.parse_args()
    simulate(args.seed).write(args.out / "blend.npz")

    scene = tfdeblend.Scene.read(args.out / "blend.npz")
    start = time.perf_counter()
    result = tfdeblend.Deblender(prior=args.prior, seed=args.seed).deblend(scene)
    print(f"deblended {len(scene.sources)} galaxies in {len(BANDS)} bands in {time.perf_counter() - start:.1f} s")
    compare(result)

    result.write(args.out / "blend.fits")
    result.plot(args.out / "blend.png")
    print("wrote", ", ".join(str(args.out / f"blend.{suffix}") for suffix in ("npz", "fits", "png")))


if __name__ == "__main__":
    main()
