"""Noise levels sigma: where a sampler steps (Karras et al. 2022, EDM), and which ones a denoiser is trained at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


def noise_levels(largest: float, smallest: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """(steps + 1,) from `largest` down to `smallest`: evenly spaced in sigma^(1/rho) (EDM, equation 5)."""
    if not 0 < smallest <= largest:
        raise ValueError(f"expected 0 < smallest <= largest, received {smallest} and {largest}")
    if steps < 1:
        raise ValueError(f"expected at least one step, received {steps}")
    levels = np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps + 1) ** rho
    levels[[0, -1]] = largest, smallest  # to the last bit
    return levels


@dataclass(frozen=True)
class LogNormalNoise:
    """log sigma ~ N(log median, spread^2): the levels seen in training."""

    median: float
    spread: float

    def sample(self, seed: tf.Tensor, number: int) -> tf.Tensor:
        """[number] levels, a pure function of `seed` [2]."""
        return self.median * tf.exp(self.spread * tf.random.stateless_normal([number], seed, alg="philox"))
