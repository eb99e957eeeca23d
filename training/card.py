"""A learned prior's model card: its losses on held-out galaxies, and galaxies drawn from it.

    python -m tfdeblend.training.card --prior hsc-grizy-64 --stamps stamps/hsc-grizy-64 --out docs/priors

writes `<name>.json` and `<name>.png`: held-out galaxies above, galaxies drawn from the prior alone below. The stamps
are those that the prior was trained with; the Gaussian prior beside it is fitted to `--gaussian` of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import NeuralDenoiser, PriorDenoiser, flux_scale
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank
from tfdeblend.training.datasets import read_stamps
from tfdeblend.training.generation import Generator
from tfdeblend.training.monitors import LEVELS, draw
from tfdeblend.training.two_sample import properties, two_sample

BATCH = 32
RANK = 32
BRIGHT = 0.1  # of a stamp's peak: pixels whose calibration is measured
MEDIAN_CHI2 = 0.455  # of one degree of freedom


def losses(
    denoiser: PriorDenoiser, prior: NeuralDenoiser, stamps: np.ndarray, sigma: float, seed: int
) -> dict[str, float]:
    """Measures a denoiser on held-out stamps at one noise level.

    Returns:
      mean: squared error over that of the best denoiser that sees one pixel at a time. nats, nats_alone:
      log-likelihood a pixel of the covariance, and of that denoiser's variance. spread, flux: x - D over the
      covariance's standard deviation, in bright pixels (from the median) and of a stamp's sum (rms): 1 if right.
    """
    run = tf.function(lambda x, s: _parts(*denoiser.posterior(x, s)), autograph=False)
    rows = []
    for first in range(0, len(stamps) - BATCH + 1, BATCH):
        x = stamps[first : first + BATCH]
        noise = np.random.default_rng([seed, first]).standard_normal(x.shape).astype(np.float32)
        level = np.full(BATCH, sigma, np.float32)
        mean, diagonal, factor = run(x + sigma * noise, level)
        error, v = x - mean, DiagonalPlusLowRank(diagonal, factor)
        v0 = prior.prior_variance(level)
        single = prior.mean + prior.variance / (prior.variance + sigma**2) * (x + sigma * noise - prior.mean)
        alone = DiagonalPlusLowRank(v0, 0 * v0[:, None]).log_prob(x - single)
        ratio = (error**2 / v.variance).numpy()[x > BRIGHT * x.max((1, 2, 3), keepdims=True)]
        sums = tf.reduce_sum(diagonal, (1, 2, 3)) + tf.reduce_sum(tf.reduce_sum(factor, (2, 3, 4)) ** 2, 1)
        flux = tf.reduce_sum(error, (1, 2, 3)) / tf.sqrt(sums)
        rows.append(
            (
                np.mean(error**2) / np.mean(v0),
                np.mean(v.log_prob(error)) / x[0].size,
                np.mean(alone) / x[0].size,
                np.sqrt(np.median(ratio) / MEDIAN_CHI2),
                np.mean(flux**2),
            )
        )
    found = dict(zip(("mean", "nats", "nats_alone", "spread", "flux"), np.mean(rows, 0).tolist(), strict=True))
    return found | {"flux": found["flux"] ** 0.5}


def _parts(mean: tf.Tensor, v: DiagonalPlusLowRank) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return mean, v.diagonal, v.factor


def read(folder: Path, pattern: str, limit: int) -> np.ndarray:
    """Reads some of every file's stamps, at unit scale."""
    stamps = read_stamps(folder, pattern)
    stamps = stamps[:: max(1, len(stamps) // limit)][:limit]
    return stamps / flux_scale(stamps)[:, None, None, None]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, help="name of a shipped prior, or a .keras file")
    parser.add_argument("--stamps", type=Path, required=True, help="folder of the stamps it was trained with")
    parser.add_argument("--train", default="train_*", help="pattern of those it was trained with")
    parser.add_argument("--held-out", default="heldout_*", help="pattern of those it was not")
    parser.add_argument("--number", type=int, default=512, help="held-out and generated galaxies, at least 32")
    parser.add_argument("--gaussian", type=int, default=4000, help="stamps that the Gaussian prior is fitted to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    known = registry.find(options.prior)
    denoiser = known.load()
    held_out = read(options.stamps, options.held_out, options.number)
    gaussian = GaussianDenoiser.fit(read(options.stamps, options.train, options.gaussian), RANK)

    card: dict = {"prior": known.name, "parameters": denoiser.count_params(), "held_out": len(held_out), "losses": {}}
    for sigma in LEVELS:
        card["losses"][f"{sigma:g}"] = {
            name: losses(one, denoiser, held_out, sigma, options.seed)
            for name, one in (("prior", denoiser), ("gaussian", gaussian))
        }
    generator = Generator(denoiser, denoiser.stamp_shape)
    groups = range(0, options.number, BATCH)
    samples = np.concatenate([generator(BATCH, (options.seed, first)).numpy() for first in groups])
    data, drawn = (properties(x, known.bands, known.model_sigma) for x in (held_out, samples))
    card["two_sample"] = {name: two_sample(data[name], drawn[name]) for name in data}
    card["negative_flux"] = {
        name: float(np.median(-np.minimum(x, 0).sum((1, 2, 3)) / np.abs(x).sum((1, 2, 3))))
        for name, x in (("data", held_out), ("samples", samples))
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{known.name}.json").write_text(json.dumps(card, indent=1) + "\n")
    draw(np.concatenate([samples[:32], held_out[:32]]), 16, options.out / f"{known.name}.png")  # drawn from below


if __name__ == "__main__":
    main()
