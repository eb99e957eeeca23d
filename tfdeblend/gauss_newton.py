"""The last steps to the maximum and its curvature: damped Gauss-Newton on latents and fluxes together.

Fluxes and background enter the image linearly. Ordered band by band their normal equations are small blocks, which a
Schur complement eliminates: what is left to factorise has the size of the latents alone, and the same factors give
the Gaussian approximation of the posterior (Laplace), flux covariances between neighbours included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class NormalEquations(NamedTuple):
    """Curvature and gradient of -log posterior at one point, float64; Q = K + 1 linear terms (fluxes, constant)."""

    latent: tf.Tensor  # [B, L, L], L = K S, prior included
    mixed: tf.Tensor  # [B, C, L, Q]
    linear: tf.Tensor  # [B, C, Q, Q]
    latent_gradient: tf.Tensor  # [B, L]
    linear_gradient: tf.Tensor  # [B, C, Q]


class Laplace(NamedTuple):
    """Gaussian approximation of the posterior at its maximum, float64.

    latent: [B, L, L] covariance of the latents. linear: [B, C, Q, C, Q] covariance of fluxes and background.
    """

    latent: tf.Tensor
    linear: tf.Tensor


def assemble(
    gram: tf.Tensor,
    right: tf.Tensor,
    flux: tf.Tensor,
    latent: tf.Tensor,
    bend: tf.Tensor,
    used: tf.Tensor,
    held: tf.Tensor,
) -> NormalEquations:
    """Normal equations from whitened images.

    The curvature is J^T J + 1 (Gauss-Newton, prior) and that part of the data's second derivative which comes from bent
    parametrisations, gradient * theta'' / theta', where it is positive: without it the steps oscillate wherever a
    bounded parameter is pushed to its bound.

    Args:
      gram: [B, C, N, N], right: [B, C, N]: `Likelihood.normal` of each source's unit-flux derivatives by its S latents
        followed by its unit-flux image; N = K (S + 1) + 1, the constant last.
      flux: [B, K, C]. latent: [B, K, S].
      bend: [B, K, S] theta'' / theta' of the latents' bijectors.
      used: [B, Q] 1 where a linear term is real and free, 0 where it is padding. held: [B, C, Q] prior curvature of the
        linear terms.
    """
    batch, bands, count = right.shape
    sources, size = latent.shape[1:]
    gram, right = tf.cast(gram, tf.float64), tf.cast(right, tf.float64)
    # Latents first, then fluxes and the constant; derivatives by latents scale with the flux.
    order = np.arange(count - 1).reshape(sources, size + 1)
    order = np.concatenate([order[:, :-1].ravel(), order[:, -1], [count - 1]])
    by_flux = tf.repeat(tf.linalg.matrix_transpose(tf.cast(flux, tf.float64)), size, axis=-1)
    scale = tf.concat([by_flux, tf.ones([batch, bands, sources + 1], tf.float64)], -1)
    gram = tf.gather(tf.gather(gram, order, axis=2), order, axis=3) * scale[..., None] * scale[..., None, :]
    right = tf.gather(right, order, axis=2) * scale
    number = sources * size
    data_gradient = -tf.reduce_sum(right[:, :, :number], 1)
    bent = tf.nn.relu(data_gradient * tf.cast(tf.reshape(bend, [batch, -1]), tf.float64))
    used = tf.cast(used, tf.float64)[:, None]
    return NormalEquations(
        latent=tf.reduce_sum(gram[:, :, :number, :number], 1) + tf.linalg.diag(1 + bent),
        mixed=gram[:, :, :number, number:] * used[..., None, :],
        linear=regular(gram[:, :, number:, number:], used) + tf.linalg.diag(held),
        latent_gradient=tf.cast(tf.reshape(latent, [batch, -1]), tf.float64) + data_gradient,
        linear_gradient=-right[:, :, number:] * used,
    )


def regular(gram: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """[..., Q, Q] normal matrix of linear terms, safe to factorise: unused ones apart, a ridge of 1e-6."""
    scale = tf.linalg.diag_part(gram)
    ridge = 1e-6 * scale + tf.where(scale > 0, tf.zeros_like(scale), tf.ones_like(scale))
    return gram * used[..., None] * used[..., None, :] + tf.linalg.diag(ridge * used + 1 - used)


class Factors(NamedTuple):
    """Factorised curvature: solves for a step from any gradient near the point where it was taken.

    root, damped_root: [B, L, L] Cholesky factors of the latents' Schur complement, as it is and damped.
    gain: [B, C, Q, L] linear^-1 mixed^T.
    linear_root: [B, C, Q, Q] Cholesky factors. mixed: [B, C, L, Q].
    """

    root: tf.Tensor
    damped_root: tf.Tensor
    gain: tf.Tensor
    linear_root: tf.Tensor
    mixed: tf.Tensor


def eliminate(system: NormalEquations) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The latents' curvature [B, L, L] with the linear terms at their best, and `gain` and `linear_root` of Factors."""
    root = tf.linalg.cholesky(system.linear)
    gain = tf.linalg.cholesky_solve(root, tf.linalg.matrix_transpose(system.mixed))
    return system.latent - tf.reduce_sum(tf.matmul(system.mixed, gain), 1), gain, root


def factorise(system: NormalEquations, damping: tf.Tensor) -> Factors:
    """Factors of the curvature plus `damping` [B] times its diagonal, at least one, the prior's (Marquardt)."""
    curvature, gain, linear_root = eliminate(system)
    diagonal = tf.maximum(tf.linalg.diag_part(curvature), 1.0)
    safe = curvature + tf.linalg.diag(1e-9 * diagonal)
    damped = safe + tf.linalg.diag(diagonal * damping[:, None])
    return Factors(tf.linalg.cholesky(safe), tf.linalg.cholesky(damped), gain, linear_root, system.mixed)


def solve(
    factors: Factors, latent_gradient: tf.Tensor, linear_gradient: tf.Tensor, longest: float = 2.0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The step down a gradient: (latents [B, L], linear terms [B, C, Q], distance [B]).

    `distance` is the length of the undamped step in standard deviations, sqrt(g^T H^-1 g): the gradient's norm in the
    metric of the curvature, free of units and of parametrisation. No latent moves by more than `longest`.
    """
    move = tf.linalg.cholesky_solve(factors.linear_root, linear_gradient[..., None])[..., 0]
    reduced = latent_gradient - tf.reduce_sum(tf.linalg.matvec(factors.mixed, move), 1)
    undamped = tf.linalg.cholesky_solve(factors.root, reduced[..., None])[..., 0]
    decrement = tf.reduce_sum(move * linear_gradient, [1, 2]) + tf.reduce_sum(undamped * reduced, -1)
    step = -tf.linalg.cholesky_solve(factors.damped_root, reduced[..., None])[..., 0]
    size = tf.reduce_max(tf.abs(step), -1, keepdims=True)
    step *= longest / tf.maximum(size, longest)
    linear = -move - tf.linalg.matvec(factors.gain, step[:, None, :])
    return step, linear, tf.sqrt(tf.maximum(decrement, 0))


def laplace(system: NormalEquations) -> Laplace:
    """Covariances by inverting the normal equations block by block."""
    curvature, gain, _ = eliminate(system)
    batch, bands, terms, number = gain.shape
    latent = tf.linalg.inv(curvature + 1e-9 * tf.eye(number, dtype=tf.float64))
    flat = tf.reshape(gain, [batch, bands * terms, number])
    shared = tf.reshape(tf.matmul(tf.matmul(flat, latent), flat, transpose_b=True), [batch, bands, terms, bands, terms])
    own = tf.linalg.inv(system.linear)
    eye = tf.eye(bands, dtype=tf.float64)
    return Laplace(latent, shared + own[:, :, :, None, :] * eye[None, :, None, :, None])
