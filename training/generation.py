"""Generates stamps from a prior alone: Heun's method on dx / dsigma = (x - D) / sigma (EDM, Algorithm 1)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion.denoisers import Denoiser
from tfdeblend.diffusion.schedules import noise_levels


class Generator:
    """Draws stamps at unit scale by the probability flow; compiled once for each number of stamps.

    Args:
      shape: (C, P, P). levels: noise levels to step through, falling; the last step goes on to its denoised mean.
    """

    def __init__(self, denoiser: Denoiser, shape: tuple[int, int, int], levels: np.ndarray | None = None):
        self.denoiser, self.shape = denoiser, shape
        self.levels = tf.constant(noise_levels(10.0, 1e-3, 32) if levels is None else levels, tf.float32)
        self._run = tf.function(self._integrate, autograph=False)

    def __call__(self, number: int, seed: tuple[int, int]) -> tf.Tensor:
        """Draws stamps [number, C, P, P], a pure function of `seed`."""
        normal = tf.random.stateless_normal([number, *self.shape], seed, alg="philox")
        return self._run(self.levels[0] * normal)

    def _slope(self, x: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        return (x - self.denoiser.denoise(x, tf.fill([x.shape[0]], sigma))) / sigma

    def _integrate(self, x: tf.Tensor) -> tf.Tensor:
        def step(i: tf.Tensor, x: tf.Tensor):
            sigma, after = self.levels[i], self.levels[i + 1]
            slope = self._slope(x, sigma)
            guess = x + (after - sigma) * slope
            return i + 1, x + (after - sigma) * (slope + self._slope(guess, after)) / 2

        steps = self.levels.shape[0] - 1
        _, x = tf.while_loop(lambda i, x: i < steps, step, [tf.constant(0), x])
        return self.denoiser.denoise(x, tf.fill([x.shape[0]], self.levels[-1]))
