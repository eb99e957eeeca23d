"""Steps of the reverse diffusion, from noise level sigma to the next lower one, `after`, of a posterior denoiser.

All take x_t = x + sigma n [B, K, C, P, P], levels [B, K] and standard normals, and give x_s at the level `after` and,
where they draw one, x_0. Of p(x_s | x_t, y) the moment-matched step has mean and covariance right, the others only the
mean, to first order; all end at the same distribution for many steps.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfdeblend.diffusion.conditioning import PosteriorDenoiser
from tfdeblend.diffusion.denoisers import pixels
from tfdeblend.diffusion.random import StepNormals

StepResult = tuple[tf.Tensor, tf.Tensor | None]
Step = Callable[[PosteriorDenoiser, tf.Tensor, tf.Tensor, tf.Tensor, StepNormals], StepResult]


def moment_matched(posterior: PosteriorDenoiser, x, sigma, after, normals: StepNormals) -> StepResult:
    """Gives x_s ~ p(x_s | x_t, x_0) for a draw x_0 ~ p(x | x_t, y): exact for Gaussians in any number of steps."""
    x0 = posterior.draw(x, sigma, normals.draw)
    return bridge(x, x0, sigma, after, normals.back), x0


def ancestral(posterior: PosteriorDenoiser, x, sigma, after, normals: StepNormals) -> StepResult:
    """Gives x_s ~ p(x_s | x_t, x_0 = D_y) (Ho et al. 2020), which leaves out the spread of x_0."""
    return bridge(x, posterior.denoise(x, sigma), sigma, after, normals.back), None


def bridge(x, x0, sigma, after, eps) -> tf.Tensor:
    """Draws x_s = x_t + tau (x_0 - x_t) + after sqrt(tau) eps from p(x_s | x_t, x_0), tau = 1 - (after / sigma)^2."""
    tau = 1 - pixels(after / sigma) ** 2
    return x + tau * (x0 - x) + pixels(after) * tf.sqrt(tau) * eps


def euler_maruyama(posterior: PosteriorDenoiser, x, sigma, after, normals: StepNormals) -> StepResult:
    """Takes a step of the reverse SDE of exploding variance, dx = -g^2 grad log p_t(x | y) dt + g dw.

    There f = 0, g^2 = d sigma^2 / dt, and time runs backwards, so that g^2 dt = sigma^2 - after^2 over the step.
    """
    g2_dt = pixels(sigma**2 - after**2)
    return x + g2_dt * posterior.score(x, sigma) + tf.sqrt(g2_dt) * normals.back, None


def euler_maruyama_vp(posterior: PosteriorDenoiser, x, sigma, after, normals: StepNormals) -> StepResult:
    """Takes a step of the reverse SDE of preserved variance, dz = [f - g^2 grad log p_t(z | y)] dt + g dw.

    There z = x_t / sqrt(1 + sigma^2), f = -beta z / 2 and g^2 = beta, whose integral over the step is
    log((1 + sigma^2) / (1 + after^2)); time runs backwards.
    """
    wide, narrow = tf.sqrt(1 + pixels(sigma) ** 2), tf.sqrt(1 + pixels(after) ** 2)
    beta_dt = 2 * tf.math.log(wide / narrow)
    z, score = x / wide, wide * posterior.score(x, sigma)
    z += beta_dt * (z / 2 + score) + tf.sqrt(beta_dt) * normals.back
    return narrow * z, None


# By the names that files and command lines know them by.
STEPS: dict[str, Step] = {
    step.__name__.replace("_", "-"): step for step in (moment_matched, ancestral, euler_maruyama, euler_maruyama_vp)
}
