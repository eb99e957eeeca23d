"""Steps of the reverse diffusion, from noise level sigma to the next lower one, `after`, over any posterior denoiser.

With tau = 1 - (after / sigma)^2 and x_t = x + sigma n. All take stamps [B, K, C, P, P] and levels [B, K], and give the
stamps at the next level and, where they draw one, x_0.
Of p(x_s | x_t, y) the moment-matched step has mean and covariance right, the ancestral one and those of stochastic
differential equations only the mean, to first order; all end at the same distribution for many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfdeblend.diffusion.conditioning import PosteriorDenoiser
from tfdeblend.diffusion.denoisers import pixels
from tfdeblend.diffusion.linear_gaussian import Normals

CORRECTION = 0.1  # of sigma^2: the step of Langevin's corrections


class Noise(NamedTuple):
    """Of one step. normals: of a draw; back: [B, K, C, P, P] of the noise that is put back."""

    normals: Normals
    back: tf.Tensor


Step = Callable[[PosteriorDenoiser, tf.Tensor, tf.Tensor, tf.Tensor, Noise], tuple[tf.Tensor, tf.Tensor | None]]


def _tau(sigma: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    return 1 - pixels(after / sigma) ** 2


def moment_matched(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """x_s = x_t + tau (x_0 - x_t) + after sqrt(tau) eps, x_0 ~ p(x | x_t, y): exact for Gaussians in any steps."""
    x0 = posterior.draw(x, sigma, noise.normals).stamps
    return bridge(x, x0, sigma, after, noise.back), x0


def bridge(x, x0, sigma, after, eps):
    """A draw of p(x_s | x_t, x_0)."""
    tau = _tau(sigma, after)
    return x + tau * (x0 - x) + pixels(after) * tf.sqrt(tau) * eps


def renoised(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """x_s = x_0 + after eps, x_0 ~ p(x | x_t, y): forgets x_t (DAPS, Zhang et al. 2024)."""
    x0 = posterior.draw(x, sigma, noise.normals).stamps
    return x0 + pixels(after) * noise.back, x0


def ancestral(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """x_s = x_t - tau (x_t - D_y) + after sqrt(tau) eps (Ho et al. 2020): of p(x_s | x_t, y) without V's spread."""
    return bridge(x, posterior.mean(x, sigma).stamps, sigma, after, noise.back), None


def ddim(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """x_s = D_y + (after / sigma) (x_t - D_y) (Song et al. 2021): Euler's method on the probability flow."""
    mean = posterior.mean(x, sigma).stamps
    return mean + pixels(after / sigma) * (x - mean), None


def heun(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """The same equation to second order (Karras et al. 2022); two evaluations."""
    slope = (x - posterior.mean(x, sigma).stamps) / pixels(sigma)
    guess = x + pixels(after - sigma) * slope
    second = (guess - posterior.mean(guess, after).stamps) / pixels(after)
    return x + pixels(after - sigma) * (slope + second) / 2, None


def predictor_corrector(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """An ancestral step, then one of Langevin's at the new level (Song et al. 2021); two evaluations."""
    x, _ = ancestral(posterior, x, sigma, after, noise)
    towards = posterior.mean(x, after).stamps - x
    return x + CORRECTION * towards + (2 * CORRECTION) ** 0.5 * pixels(after) * noise.normals.stamps, None


def euler_maruyama(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """dx = -g^2 grad log p_t(x | y) dt + g dw with g^2 = d sigma^2 / dt: the variance-exploding equation."""
    drop = pixels(sigma**2 - after**2)
    return x + drop / pixels(sigma) ** 2 * (posterior.mean(x, sigma).stamps - x) + tf.sqrt(drop) * noise.back, None


def euler_maruyama_vp(posterior: PosteriorDenoiser, x, sigma, after, noise: Noise):
    """dz = [-beta z / 2 - beta grad log p_t(z | y)] dt + sqrt(beta) dw, z = x_t / sqrt(1 + sigma^2): the
    variance-preserving equation.

    beta's integral over the step is log((1 + sigma^2) / (1 + after^2)).
    """
    wide, narrow = tf.sqrt(1 + pixels(sigma) ** 2), tf.sqrt(1 + pixels(after) ** 2)
    beta = 2 * tf.math.log(wide / narrow)
    score = wide * (posterior.mean(x, sigma).stamps - x) / pixels(sigma) ** 2
    return narrow * (x / wide + beta * (x / wide / 2 + score) + tf.sqrt(beta) * noise.back), None


SAMPLERS: dict[str, Step] = {
    "moment-matched": moment_matched,
    "renoised": renoised,
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "predictor-corrector": predictor_corrector,
    "euler-maruyama": euler_maruyama,
    "euler-maruyama-vp": euler_maruyama_vp,
}
DRAWS_X0 = ("moment-matched", "renoised")  # steps that give one
