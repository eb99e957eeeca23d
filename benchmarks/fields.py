"""Fields of many galaxies at one density: cost, memory, and what parts say against a fit of the whole.

    python -m benchmarks.fields --sources 4 16 64 --area 600 --whole 64

Galaxies are Sersic profiles drawn with GalSim in two bands under white noise, of fluxes even in their logarithm, with
AREA pixels for each. A field of more than 32 sources is fitted in parts; up to WHOLE sources it is fitted as one, too.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence

import galsim
import numpy as np

from tfdeblend import Deblended, Deblender, Observation, Scene, Source
from tfdeblend.inference import parts

PIXEL, SEEING = 0.2, (0.75, 0.65)  # arcsec
BORDER, APART = 4, 3  # pixels from the edge, and from one another
STAMP = 101  # pixels that a galaxy is drawn on


def field(number: int, area: float, seed: int) -> tuple[Scene, np.ndarray]:
    """Draw a field and its fluxes (K,2)."""
    rng, side = np.random.default_rng(seed), int((number * area) ** 0.5)
    psfs = [galsim.Moffat(beta=3.5, fwhm=fwhm) for fwhm in SEEING]
    images = [galsim.ImageD(side, side, scale=PIXEL) for _ in psfs]
    places: list[np.ndarray] = []
    while len(places) < number:
        place = rng.uniform(BORDER, side - 1 - BORDER, 2)
        if all(np.hypot(*(place - other)) > APART for other in places):
            places.append(place)
    fluxes = 10 ** rng.uniform(2, 3.7, (number, 1)) * np.concatenate(
        [np.ones((number, 1)), rng.uniform(0.7, 1.6, (number, 1))], 1
    )
    for (y, x), flux in zip(places, fluxes, strict=True):
        radius = rng.uniform(0.15, 0.7)
        galaxy = galsim.Sersic(rng.uniform(0.7, 3), half_light_radius=radius).shear(
            g1=rng.uniform(-0.2, 0.2), g2=rng.uniform(-0.2, 0.2)
        )
        for image, psf, total in zip(images, psfs, flux, strict=True):
            drawn = galsim.Convolve(galaxy.withFlux(total), psf).drawImage(
                nx=STAMP, ny=STAMP, scale=PIXEL, center=galsim.PositionD(x + 1, y + 1)
            )
            overlap = drawn.bounds & image.bounds
            image[overlap] += drawn[overlap]
    noisy = np.stack([image.array for image in images]) + rng.normal(size=(len(psfs), side, side))
    psf = np.stack([one.drawImage(nx=35, ny=35, scale=PIXEL).array for one in psfs])
    observation = Observation(noisy, np.ones_like(noisy), psf, bands=("g", "r"), pixel_scale=PIXEL)
    return Scene((observation,), tuple(Source(*place) for place in places)), fluxes


def timed(deblender: Deblender, scene: Scene) -> tuple[Deblended, float]:
    """Deblend a scene, and give the CPU-seconds that took."""
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    result = deblender.deblend(scene)
    return result, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[4, 16, 64, 128])
    parser.add_argument("--area", type=float, default=600, help="pixels for each source")
    parser.add_argument("--whole", type=int, default=64, help="most sources that are fitted as one, too")
    parser.add_argument("--prior", default="bulge-disk")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    deblender, limits = Deblender(options.prior), parts.WHOLE
    print(f"{'sources':>8} {'side':>5} {'':6} {'cold':>6} {'warm':>6} {'GB':>5} {'chi2':>6} {'|dF/F|':>7} {'pull':>5}")
    for number in options.sources:
        scene, truth = field(number, options.area, options.seed)
        found = {}
        for name, limit in (("parts", limits), ("whole", (number, scene.observation.shape[1]))):
            if number > options.whole if name == "whole" else not parts.is_large(scene):
                continue
            parts.WHOLE = limit
            (result, cold), (_, warm) = timed(deblender, scene), timed(deblender, scene)
            parts.WHOLE = limits
            found[name] = result
            error = np.median(np.abs(result.flux / truth - 1))
            pull = np.sqrt(np.mean(((result.flux - truth) / result.flux_err) ** 2))
            memory, side = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, scene.observation.shape[1]
            times = f"{cold / number:6.2f} {warm / number:6.2f}"
            print(f"{number:8} {side:5} {name:6} {times} {memory:5.1f} {result.chi2:6.3f} {error:7.4f} {pull:5.2f}")
        if len(found) == 2:
            moved = np.abs(found["parts"].flux - found["whole"].flux) / found["whole"].flux_err
            print(f"{'':14} apart by {np.median(moved):.2f} errors in the median, {moved.max():.1f} at most")


if __name__ == "__main__":
    main()
