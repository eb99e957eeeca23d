"""Fluxes, colours and images against the truth, and how often intervals hold it, by signal-to-noise and blendedness.

    python -m benchmarks.truth DIR --prior hsc-grizy-64 --method sample --samples 16 --number 32

DIR/scenes/NAME.npz are scenes as `tfdeblend.io` reads them, DIR/truth/NAME.npz has `isolated` (K,C,H,W): each of their
sources as observed, without noise. Sources below a signal-to-noise of 5 are left out, of intervals also fluxes below.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import numpy as np

import tfdeblend
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.inference.map_fit import OPTIMIZERS, MapOptions

FAINTEST = 5.0
BINS = ((5.0, 20.0), (20.0, 50.0), (50.0, 100.0), (100.0, np.inf))
HEAVY = 0.5  # blendedness


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--prior", default="auto")
    parser.add_argument("--method", choices=("map", "sample"), default="map")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--closed-form", action="store_true", help="begin at draws of the closed-form posterior")
    parser.add_argument("--number", type=int, help="of scenes, the first by name (default: all)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="newton", help="of the maximum (default: newton)")
    parser.add_argument("--warm", action="store_true", help="also the CPU-seconds of a second run, nothing to compile")
    args = parser.parse_args(argv)
    files = sorted((args.folder / "scenes").glob("*.npz"))[: args.number]
    scenes = [tfdeblend.Scene.read(file) for file in files]
    sampling = SampleOptions.from_closed_form() if args.closed_form else SampleOptions()
    deblender = tfdeblend.Deblender(
        args.prior, args.method, samples=args.samples, sampling=sampling, options=MapOptions(optimizer=args.optimizer)
    )
    results, seconds = timed(deblender, scenes)
    truths = [np.load(args.folder / "truth" / file.name)["isolated"] for file in files]
    rows, pulls = zip(*map(compare, results, truths), strict=True)
    show(np.concatenate(rows), np.concatenate(pulls))
    print(f"{seconds / sum(map(len, truths)):.2f} CPU-seconds a source, start-up included")
    if args.warm:
        print(f"{timed(deblender, scenes)[1] / sum(map(len, truths)):.3f} CPU-seconds a source, warm")
    if args.method == "map":
        steps, converged = zip(*((one.header["steps"], one.header["converged"]) for one in results), strict=True)
        print(f"{np.median(steps):g} steps (median; {max(steps)} at most), {np.mean(converged):.3f} converged")
    return 0


def timed(deblender: tfdeblend.Deblender, scenes: list[tfdeblend.Scene]) -> tuple[list[tfdeblend.Deblended], float]:
    """Results, and the CPU-seconds that they took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    results = deblender.deblend(scenes)
    return results, resource.getrusage(resource.RUSAGE_SELF).ru_utime - before


def compare(result: tfdeblend.Deblended, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row a source and a row a flux of one scene.

    Args:
        truth: (K,C,H,W).

    Returns:
        (n, 5): signal-to-noise, blendedness, |dF / F| in the middle band, |d colour| of the first two bands in mag,
        relative L2 of the image. (m, 2): signal-to-noise of a flux, and its pull.
    """
    weights, bands = result.scene.observation.weights, result.scene.bands
    band_snr = np.sqrt((weights * truth**2).sum((2, 3)))
    whole = truth.sum(0)
    blended = 1 - (truth**2).sum((1, 2, 3)) / np.maximum((truth * whole).sum((1, 2, 3)), 1e-30)
    light, true = result.sources.sum((2, 3), dtype=float), truth.sum((2, 3))
    ratio = np.maximum(light / true, 1e-3)
    colour = np.abs(2.5 * np.log10(ratio[:, 0] / ratio[:, min(1, len(bands) - 1)]))
    distance = np.sqrt(((result.sources - truth) ** 2).sum((1, 2, 3)) / (truth**2).sum((1, 2, 3)))
    snr, middle = np.sqrt((band_snr**2).sum(1)), len(bands) // 2
    rows = np.stack([snr, blended, np.abs(ratio[:, middle] - 1), colour, distance], 1)
    flux, error = (
        np.stack([np.asarray(result.catalog[f"{name}_{band}"], float) for band in bands], 1)
        for name in ("flux", "flux_err")
    )
    pull = (flux - true) / error
    good = (snr > FAINTEST)[:, None] & (band_snr > FAINTEST)
    return rows[snr > FAINTEST], np.stack([band_snr[good], pull[good]], 1)


def show(rows: np.ndarray, pulls: np.ndarray) -> None:
    """Prints medians over sources, and shares of fluxes within 1 and 1.96 of their errors."""
    selections = {"all": rows[:, 0] > 0, f"blendedness > {HEAVY}": rows[:, 1] > HEAVY}
    selections |= {f"S/N {a:g} to {b:g}": (rows[:, 0] >= a) & (rows[:, 0] < b) for a, b in BINS}
    print(f"{'':22}{'n':>5}{'flux':>8}{'colour':>8}{'L2':>8}")
    for name, chosen in selections.items():
        if chosen.any():
            flux, colour, distance = np.median(rows[chosen, 2:], 0)
            print(f"{name:22}{chosen.sum():5}{flux:8.3f}{colour:8.3f}{distance:8.3f}")
    within = {name: (np.abs(pulls[:, 1]) < wide).mean() for name, wide in (("68%", 1), ("95%", 1.96))}
    print("intervals hold", ", ".join(f"{share:.3f} ({name})" for name, share in within.items()))
    for a, b in BINS:
        chosen = (pulls[:, 0] >= a) & (pulls[:, 0] < b)
        if chosen.any():
            share = (np.abs(pulls[chosen, 1]) < 1).mean()
            print(f"  S/N of the band {a:g} to {b:g}: {share:.2f} of {chosen.sum()} within one error")


if __name__ == "__main__":
    raise SystemExit(main())
