"""Fits a Gaussian prior, its covariance a diagonal and a few directions, to stamps of galaxies: no network.

tfdeblend simulate --stamps --survey survey.json --size 96 --number 2000 --out stamps
python -m tfdeblend.training.fit_gaussian --stamps stamps --bands F814W,g,r,i,z,y --pixel-scale 0.05 --out joint.npz
tfdeblend deblend --observation space.fits --observation ground.fits --method sample --prior joint.npz --out field
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfdeblend.diffusion.denoisers import flux_scale
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.io.atomic import written_whole
from tfdeblend.training.datasets import read_stamps


def fit(
    stamps: np.ndarray, bands: Sequence[str], pixel_scale: float, rank: int, model_sigma: float, jitter: float
) -> GaussianDenoiser:
    """Fits stamps (N, C, P, P) and their mirror images and quarter turns, each at unit scale."""
    unit = stamps / np.asarray(flux_scale(stamps))[:, None, None, None]
    # The middle is pixel P // 2, about which mirror images and turns of an even stamp lose its first row and column.
    odd = unit[:, :, 1:, 1:] if unit.shape[-1] % 2 == 0 else unit
    turned = np.concatenate([np.rot90(half, turns, (2, 3)) for half in (odd, odd.swapaxes(2, 3)) for turns in range(4)])
    every = np.zeros((len(turned), *unit.shape[1:]), np.float32)
    every[:, :, -odd.shape[2] :, -odd.shape[3] :] = turned
    return GaussianDenoiser.fit(
        every, rank, bands=tuple(bands), pixel_scale=pixel_scale, model_sigma=model_sigma, scale_jitter=jitter
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pattern", default="*", help="of its files")
    parser.add_argument("--bands", required=True, help="their names, with commas between")
    parser.add_argument("--pixel-scale", type=float, required=True, help="arcsec")
    parser.add_argument("--model-sigma", type=float, default=1.0, help="pixels, of the stamps' PSF (default: 1)")
    parser.add_argument("--rank", type=int, default=24, help="directions of the covariance (default: 24)")
    parser.add_argument("--jitter", type=float, default=0.1, help="of the log flux scale (default: 0.1)")
    parser.add_argument("--most", type=int, default=1000, help="stamps that are used (default: 1000)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    options = parser.parse_args(arguments)
    bands = options.bands.split(",")
    try:
        stamps = read_stamps(options.stamps, options.pattern)[: options.most]
    except (FileNotFoundError, ValueError) as error:
        parser.error(f"--stamps: {error}")
    if stamps.shape[1] != len(bands):
        parser.error(f"--bands: expected {stamps.shape[1]} names, received {options.bands}")
    if options.out.suffix != ".npz":
        parser.error(f"--out: expected a name that ends in .npz, received {options.out}")
    prior = fit(stamps, bands, options.pixel_scale, options.rank, options.model_sigma, options.jitter)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(options.out) as temporary:
        prior.save(temporary)
    share = float((np.asarray(prior.prior.factor) ** 2).sum() / np.asarray(prior.variance).sum())
    print(f"{options.out}: {len(stamps)} galaxies, {options.rank} directions with {share:.2f} of the variance")


if __name__ == "__main__":
    main()
