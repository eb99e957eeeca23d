"""Chooses the galaxies on which expectation-maximisation is tested: small, blue ones, and large, red ones.

    tfdeblend simulate --stamps --slope 0.22 --number 40000 --seed 101 --out stamps
    python -m benchmarks.em_galaxies --stamps stamps --out galaxies

writes `blue/` and `red/`, each with `train_0.npy` and `heldout_0.npy` (N, 3, 32, 32) in gri. The red ones, blurred,
train a wrong prior to start from; the blue ones make the blends, and train the prior that is to be reached.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from tfdeblend.io.atomic import written_whole
from tfdeblend.training import two_sample
from tfdeblend.training.datasets import read_stamps

BANDS, SIDE, PIXEL_SCALE = ("g", "r", "i"), 32, 0.168
MODEL_SIGMA = 1.0  # pixels
HELD_OUT = 10  # of so many files of stamps, one


@dataclass(frozen=True)
class Choice:
    """color: least and most g - i in magnitudes. radius: of half the light, in arcsec. inside: least share of the light
    within SIDE pixels. blur: pixels."""

    color: tuple[float, float]
    radius: tuple[float, float]
    inside: float
    blur: float = 0.0

    def of(self, stamps: np.ndarray) -> np.ndarray:
        """(M, 3, SIDE, SIDE) of stamps (N, C >= 3, P, P), whose first bands are BANDS."""
        middle = slice(stamps.shape[-1] // 2 - SIDE // 2, stamps.shape[-1] // 2 + SIDE // 2)
        every = stamps[:, : len(BANDS)]
        cut = every[..., middle, middle]
        found = two_sample.properties(every, BANDS, MODEL_SIGMA)
        color, radius = found["g-r"] + found["r-i"], found["size"] * PIXEL_SCALE
        chosen = cut.sum((1, 2, 3)) >= self.inside * every.sum((1, 2, 3))
        for value, (least, most) in ((color, self.color), (radius, self.radius)):
            chosen &= (value > least) & (value < most)
        return gaussian_filter(cut[chosen], (0, 0, self.blur, self.blur), mode="constant")


CHOICES = {
    "blue": Choice(color=(-np.inf, 0.8), radius=(0.1, 0.45), inside=0.95),
    "red": Choice(color=(1.1, np.inf), radius=(0.3, np.inf), inside=0.9, blur=1.0),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder that `tfdeblend simulate --stamps` wrote")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    chosen: dict[Path, list[np.ndarray]] = {}
    for number, path in enumerate(sorted(options.stamps.glob("*.npz"))):
        stamps = read_stamps(options.stamps, path.name)
        part = "heldout" if number % HELD_OUT == 0 else "train"
        for name, choice in CHOICES.items():
            chosen.setdefault(options.out / name / f"{part}_0.npy", []).append(choice.of(stamps))
    for path, parts in sorted(chosen.items()):
        galaxies = np.concatenate(parts)
        with written_whole(path) as temporary:
            np.save(temporary, galaxies)
        print(f"{path}: {len(galaxies)}", flush=True)


if __name__ == "__main__":
    main()
