"""Do errors hold in correlated noise? `python -m benchmarks.correlated --number 200`.

Three galaxies, 0.9 to 2.5 arcsec apart, drawn by GalSim, in white noise that was smoothed by a Gaussian of 0, 0.5, 0.7
and 1 pixel, its power on large scales kept, so that galaxies are as well measured: their fluxes as fitted with the
noise's correlation given, and with the noise taken as white.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.joint import Galaxy, expose, pixels
from benchmarks.transients import host_of, psf_of
from tfdeblend.data.noise_correlation import WINDOW, draw
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.galaxies.priors import PRIORS

SMOOTHINGS = (0.0, 0.5, 0.7, 1.0)  # pixels
NOISE = 3.0
APART = 0.9, 2.5  # arcsec


def smoothed(sigma: float) -> np.ndarray:
    """(h, w): the correlation of white noise after a Gaussian of `sigma` pixels, sampled and cut off at 4 of them."""
    offset = np.arange(-(WINDOW // 2), WINDOW // 2 + 1)
    kernel = np.where(np.abs(offset) <= max(4 * sigma, 0.5), np.exp(-0.5 * (offset / max(sigma, 0.1)) ** 2), 0)
    row = np.convolve(kernel, kernel, "same")
    return np.outer(row, row) / row.max() ** 2


def field(seed: int, sigma: float) -> tuple[Scene, np.ndarray]:
    """A scene of one band, and the true fluxes (3,)."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-2, 2, (3, 2))
    while not all(APART[0] < np.hypot(*(places[i] - places[i - 1])) < APART[1] for i in range(3)):
        places = rng.uniform(-2, 2, (3, 2))
    galaxies = [Galaxy(place, host_of("sersic", rng), {"r": 10 ** rng.uniform(3, 4)}) for place in places]
    psf = psf_of(rng.uniform(0.6, 0.9), rng.normal(scale=0.02))
    name = f"field {seed}, smoothed by {sigma:g}"
    seen = expose(galaxies, name, 0.2, 48, {"r": psf}, 1e-6, rng)
    rho = smoothed(sigma)
    weights = np.full(seen.images.shape, rho.sum() / NOISE**2)
    images = seen.images + draw(rho[None], weights, rng)
    observation = replace(seen, images=images, weights=weights, noise_correlation=rho)
    return Scene.from_catalog(observation, pixels(galaxies, seen, 0.02, rng)), np.array([g.flux["r"] for g in galaxies])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200, help="of fields, for each smoothing")
    parser.add_argument("--prior", choices=tuple(PRIORS), default="sersic", help="of the fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    deblender, document = Deblender(options.prior), {}
    print(f"{'smoothing':>9}  {'noise as':9}{'fluxes':>7}{'68% hold':>10}{'95%':>7}{'pulls':>7}{'chi2':>7}")
    for sigma in SMOOTHINGS:
        made = [field(1000 * options.seed + number, sigma) for number in range(options.number)]
        for way in ("given", "white"):
            scenes = [scene for scene, _ in made]
            if way == "white":
                alike = [replace(scene.observation, noise_correlation=None) for scene in scenes]
                scenes = [replace(scene, observations=(one,)) for scene, one in zip(scenes, alike, strict=True)]
            results = deblender.deblend(scenes)
            flux, error = (np.array([one.catalog[f"{name}_r"] for one in results]) for name in ("flux", "flux_err"))
            pulls = (flux - np.array([truth for _, truth in made])) / error
            row = {
                "fluxes": int(pulls.size),
                "coverage_68": float(np.mean(np.abs(pulls) < 0.9945)),
                "coverage_95": float(np.mean(np.abs(pulls) < 1.96)),
                "pull_spread": float(pulls.std()),
                "chi2": float(np.median([one.chi2 for one in results])),
            }
            document[f"{sigma:g} {way}"] = row
            print(
                f"{sigma:9g}  {way:9}{row['fluxes']:7d}{row['coverage_68']:10.3f}{row['coverage_95']:7.3f}"
                f"{row['pull_spread']:7.2f}{row['chi2']:7.3f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
