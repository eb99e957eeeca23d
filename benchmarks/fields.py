"""Fields of many galaxies: cost, memory, and what parts say against the truth and against other fits.

    python -m benchmarks.fields --sources 4 16 64 --area 600 --whole 64
    python -m benchmarks.fields --sources 300 --side 1000 --bands 5 --cuts 8 --prior exponential
    python -m benchmarks.fields --isolated 1000 --side 64 --bands 5

Galaxies are Sersic profiles drawn with GalSim under white noise, of fluxes even in their logarithm, with AREA pixels
for each, or on SIDE pixels a side. A field of more than 32 sources is fitted in parts; up to WHOLE sources it is fitted
as one, too. CUTS of its sources are fitted again in cut-outs of the image, with all that lies in these. ISOLATED
galaxies lie on an image each. Times are CPU-seconds a source of a first and a second call, GB the process's peak so
far, MB the size of the result's file.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import galsim
import numpy as np

from benchmarks.blends import cpu
from tfdeblend import Deblended, Deblender, Observation, Scene, Source
from tfdeblend.inference import parts

PIXEL = 0.2  # arcsec
SEEING = {"g": 0.75, "r": 0.65, "i": 0.6, "z": 0.65, "y": 0.7}  # arcsec
BORDER, APART = 4, 3  # pixels from the edge, and from one another
STAMP = 101  # pixels that a galaxy is drawn on
CUT = 96  # pixels a side of a cut-out


def field(number: int, side: int, seed: int, bands: str) -> tuple[Scene, np.ndarray]:
    """Draw a field of `side` pixels a side, and its fluxes (K,C)."""
    rng = np.random.default_rng(seed)
    psfs = [galsim.Moffat(beta=3.5, fwhm=SEEING[band]) for band in bands]
    images = [galsim.ImageD(side, side, scale=PIXEL) for _ in psfs]
    places: list[np.ndarray] = []
    while len(places) < number:
        place = rng.uniform(BORDER, side - 1 - BORDER, 2)
        if all(np.hypot(*(place - other)) > APART for other in places):
            places.append(place)
    fluxes = 10 ** rng.uniform(2, 3.7, (number, 1)) * np.concatenate(
        [np.ones((number, 1)), rng.uniform(0.7, 1.6, (number, len(psfs) - 1))], 1
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
    observation = Observation(noisy, np.ones_like(noisy), psf, bands=tuple(bands), pixel_scale=PIXEL)
    return Scene((observation,), tuple(Source(*place) for place in places)), fluxes


def timed(deblender: Deblender, scenes: Any) -> tuple[Any, float]:
    """Deblend a scene, or several, and give the CPU-seconds that took."""
    before = cpu()
    return deblender.deblend(scenes), cpu() - before


def size(result: Deblended) -> float:
    """The MB of a result's file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "field.fits"
        result.write(path)
        return path.stat().st_size / 1e6


def in_cutouts(deblender: Deblender, result: Deblended, number: int) -> np.ndarray:
    """Fit some sources again, each in a cut-out around it: (N,C) by how many errors their fluxes differ."""
    one, positions, moved = result.scene.observation, result.scene.positions, []
    corners = np.clip(np.round(positions).astype(int) - CUT // 2, 0, np.array(one.shape[1:]) - CUT)
    for k in np.random.default_rng(0).choice(len(positions), number, replace=False):
        (y, x), own = corners[k], positions - corners[k]
        here = slice(None), slice(y, y + CUT), slice(x, x + CUT)
        cut = replace(one, images=one.images[here], weights=one.weights[here])
        inside = np.flatnonzero((np.abs(own - CUT / 2) < CUT / 2).all(1))
        alone = deblender.deblend(Scene((cut,), tuple(Source(*own[j]) for j in inside)))
        row = int(np.flatnonzero(inside == k)[0])
        moved.append((alone.flux[row] - result.flux[k]) / result.flux_err[k])
    return np.array(moved)


def isolated(deblender: Deblender, options: argparse.Namespace) -> None:
    """Fit galaxies that lie alone on an image each, twice."""
    drawn = [field(1, options.side or 64, seed, "".join(SEEING)[: options.bands]) for seed in range(options.isolated)]
    scenes, truth = [scene for scene, _ in drawn], np.concatenate([flux for _, flux in drawn])
    for title in ("start-up included", "warm"):
        found, seconds = timed(deblender, scenes)
        print(f"{len(scenes)} isolated galaxies: {seconds / len(scenes):.4f} CPU-seconds each, {title}")
    flux, error = (np.concatenate([getattr(one, name) for one in found]) for name in ("flux", "flux_err"))
    pull, memory = (flux - truth) / error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    converged = np.mean([one.header["converged"] for one in found])
    print(f"{memory:.2f} GB, {converged:.3f} converged, pulls of {np.sqrt(np.mean(pull**2)):.2f} in the rms")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[4, 16, 64, 128])
    parser.add_argument("--isolated", type=int, help="galaxies, each on an image of its own (default: fields)")
    parser.add_argument("--area", type=float, default=600, help="pixels for each source")
    parser.add_argument("--side", type=int, help="pixels a side of the field (default: by AREA)")
    parser.add_argument("--bands", type=int, default=2, choices=range(1, len(SEEING) + 1))
    parser.add_argument("--cuts", type=int, default=0, help="sources that are fitted in cut-outs, too")
    parser.add_argument("--whole", type=int, default=64, help="most sources that are fitted as one, too")
    parser.add_argument("--prior", default="bulge-disk")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    deblender, limits = Deblender(options.prior), parts.WHOLE
    if options.isolated:
        isolated(deblender, options)
        return
    titles = f"{'cold':>6} {'warm':>6} {'GB':>5} {'MB':>6} {'chi2':>6} {'|dF/F|':>7} {'pull':>5}"
    print(f"{'sources':>8} {'side':>5} {'':6} {titles}")
    for number in options.sources:
        side = options.side or int((number * options.area) ** 0.5)
        scene, truth = field(number, side, options.seed, "".join(SEEING)[: options.bands])
        found = {}
        for name, limit in (("parts", limits), ("whole", (number, scene.observation.shape[1]))):
            if number > options.whole if name == "whole" else not parts.is_large(scene):
                continue
            parts.WHOLE = limit
            cold = timed(deblender, scene)[1]
            result, warm = timed(deblender, scene)
            parts.WHOLE = limits
            found[name] = result
            error = np.median(np.abs(result.flux / truth - 1))
            pull = np.sqrt(np.mean(((result.flux - truth) / result.flux_err) ** 2))
            memory, written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, size(result)
            costs = f"{cold / number:6.2f} {warm / number:6.2f} {memory:5.2f} {written:6.1f}"
            print(f"{number:8} {side:5} {name:6} {costs} {result.chi2:6.3f} {error:7.4f} {pull:5.2f}")
        if options.cuts and "parts" in found:
            moved = np.abs(in_cutouts(deblender, found["parts"], options.cuts))
            print(f"{'':14} {options.cuts} in cut-outs: {np.median(moved):.2f} errors apart, {moved.max():.1f} at most")
        if len(found) == 2:
            moved = np.abs(found["parts"].flux - found["whole"].flux) / found["whole"].flux_err
            print(f"{'':14} apart by {np.median(moved):.2f} errors in the median, {moved.max():.1f} at most")


if __name__ == "__main__":
    main()
