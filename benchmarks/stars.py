"""Stars that nobody declared: which are taken as points, which galaxies are, and what their faint neighbours lose.

    python -m benchmarks.stars --width 1.02 --number 16 [--no-stars] [--declared]

Each scene has a star or a compact galaxy of one signal-to-noise, all bands together, between two galaxies of 30, drawn
with GalSim in three bands under white noise. The PSF that is given has WIDTH times the true one's width.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence

import galsim
import numpy as np

from tfdeblend import Deblended, Deblender, Observation, Scene, Source
from tfdeblend.inference.map_fit import MapOptions

PIXEL, SEEING, BETA, SIDE = 0.168, (0.75, 0.68, 0.6), 3.0, 64  # arcsec, and pixels
COLOUR = np.array([0.6, 1.0, 1.3])
NEIGHBOUR, NEAREST, FARTHEST = 30.0, 5.0, 12.0  # signal-to-noise; pixels from the middle
STRAY = 0.3  # pixels, the error of positions along an axis


def drawn(profile: galsim.GSObject, psfs: Sequence[galsim.GSObject], place: np.ndarray, snr: float) -> np.ndarray:
    """Draw a source (C,H,W) of a signal-to-noise under noise of one."""
    at = galsim.PositionD(place[1] + 1, place[0] + 1)
    shown = []
    for psf in psfs:
        shown.append(galsim.ImageD(SIDE, SIDE, scale=PIXEL))
        galsim.Convolve(profile, psf).drawImage(shown[-1], center=at)
    image = COLOUR[:, None, None] * np.stack([one.array for one in shown])
    return image * snr / np.sqrt((image**2).sum())


def scene(
    radius: float, snr: float, width: float, seed: int, declared: bool = False, scatter: float = 0
) -> tuple[Scene, np.ndarray]:
    """Draw a scene and its fluxes (3,C) on the image. radius: of the middle one's half light, in arcsec; 0: a star."""
    rng = np.random.default_rng(seed)
    psfs = [galsim.Moffat(beta=BETA, fwhm=fwhm) for fwhm in SEEING]
    turn = rng.uniform(0, 2 * np.pi)
    angles, reach = np.array([turn, turn + rng.uniform(1, 5)]), rng.uniform(NEAREST, FARTHEST, 2)
    around = np.stack([reach * np.sin(angles), reach * np.cos(angles)], 1)
    places = SIDE / 2 + np.concatenate([np.zeros((1, 2)), around]) + rng.uniform(-0.5, 0.5, 2)
    images = []
    for k, place in enumerate(places):
        size, index = (rng.uniform(0.25, 0.6), rng.uniform(0.8, 2)) if k else (radius, rng.uniform(0.8, 4))
        shear = {"g1": rng.uniform(-0.2, 0.2), "g2": rng.uniform(-0.2, 0.2)}
        galaxy = galsim.Sersic(index, half_light_radius=size or 1).shear(**shear)
        images.append(drawn(galaxy if size else galsim.DeltaFunction(), psfs, place, NEIGHBOUR if k else snr))
    truth = np.stack(images)
    widths = (width + scatter * rng.normal(size=len(SEEING))).tolist()
    seen = [galsim.Moffat(beta=BETA, fwhm=off * fwhm) for off, fwhm in zip(widths, SEEING, strict=True)]
    psf = np.stack([one.drawImage(nx=43, ny=43, scale=PIXEL, dtype=float).array for one in seen])
    noisy = truth.sum(0) + rng.normal(size=truth.shape[1:])
    given = places + rng.uniform(-STRAY, STRAY, places.shape)
    bands, name = ("g", "r", "i"), f"{'star' if not radius else radius} of {snr:g}, {seed}"
    observation = Observation(noisy, np.ones_like(noisy), psf, bands=bands, pixel_scale=PIXEL, name=name)
    kinds = ["point" if declared and not radius else "unknown", "unknown", "unknown"]
    sources = tuple(Source(y, x, kind) for (y, x), kind in zip(given.tolist(), kinds, strict=True))
    return Scene((observation,), sources), truth.sum((2, 3))


def row(results: Sequence[Deblended], truths: Sequence[np.ndarray]) -> str:
    """Tell how many middle ones are points, and the neighbours' pulls: rms, and how many above 2."""
    light = np.stack([result.sources.sum((2, 3), dtype=float) for result in results])
    error = np.stack([result.flux_err for result in results])
    truth = np.stack(truths)
    pull = ((light - truth) / error)[:, 1:]
    off = (light / truth - 1)[:, 0]
    kinds = np.array([list(result.catalog["kind"]) for result in results]) == "point"
    core = np.median([result.catalog["chi2"][0] for result in results])
    size = np.median([result.catalog["size"][0] for result in results])
    numbers = f"{np.sqrt(np.mean(pull**2)):8.2f} {np.mean(np.abs(pull) > 2):6.2f} {np.median(pull):7.2f}"
    scatter = np.median(error[:, 1:] / truth[:, 1:])
    stated = f"{numbers} {scatter:7.3f} {np.median(np.abs(off)):8.4f} {core:8.2f} {size:6.2f}"
    return f"{kinds[:, 0].mean():6.2f} {kinds[:, 1:].mean():6.2f} {stated}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=16, help="scenes of a kind")
    parser.add_argument("--snr", type=float, nargs="+", default=[30, 50, 100, 300, 1000, 3000, 10000])
    parser.add_argument("--radius", type=float, nargs="+", default=[0, 0.1, 0.15, 0.2, 0.3], help="arcsec; 0: a star")
    parser.add_argument("--width", type=float, default=1.0, help="of the PSF that is given, over the true one's")
    parser.add_argument("--scatter", type=float, default=0.0, help="of that ratio, from band to band")
    parser.add_argument("--prior", default="bulge-disk")
    parser.add_argument("--declared", action="store_true", help="stars are declared points")
    parser.add_argument("--no-stars", action="store_true", help="nothing is tried as a point")
    parser.add_argument("--model-error", type=float, default=MapOptions().model_error)
    options = parser.parse_args(arguments)
    deblender = Deblender(
        options.prior, stars=not options.no_stars, options=MapOptions(model_error=options.model_error)
    )
    columns = "   S/N radius  point others pull rms   > 2  median   error  own off     chi2   size"
    print(columns)
    kinds = [(radius, snr) for radius in options.radius for snr in options.snr]
    scenes = {
        kind: [scene(*kind, options.width, seed, options.declared, options.scatter) for seed in range(options.number)]
        for kind in kinds
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    results = iter(deblender.deblend([one for each in scenes.values() for one, _ in each]))
    for (radius, snr), each in scenes.items():
        found = [next(results) for _ in each]
        print(f"{snr:6g} {radius:6g} {row(found, [truth for _, truth in each])}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime - before:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
