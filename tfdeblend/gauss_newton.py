"""The last steps to the maximum and its curvature: damped Gauss-Newton on latents and fluxes together.

Fluxes and background enter the image linearly. Ordered band by band their normal equations are small blocks, which a Schur
complement eliminates: what is left to factorise has the size of the latents alone, and the same factors give the Gaussian
approximation of the posterior (Laplace), flux covariances between neighbours included.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class NormalEquations(NamedTuple):
    """Curvature and gradient of -log posterior at one point, float64; Q = K + 1 linear terms a band (fluxes, background)."""

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
    tangents: tf.Tensor, templates: tf.Tensor, residual: tf.Tensor, latent: tf.Tensor, used: tf.Tensor
) -> NormalEquations:
    """Normal equations from whitened images.

    Args:
      tangents: [B, C, L, S, S] derivatives by the latents. templates: [B, C, Q, S, S] derivatives by fluxes and background.
      residual: [B, C, S, S]. latent: [B, L]. used: [B, Q] 1 where a linear term is real and free, 0 where it is padding.
    """
    batch, bands, number = tangents.shape[:3]
    flat = [tf.reshape(t, [batch, bands, t.shape[2], -1]) for t in (tangents, templates)]
    columns = tf.concat(flat, 2)
    gram = tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64)
    right = tf.linalg.matvec(columns, tf.reshape(residual, [batch, bands, -1]))
    right = tf.cast(right, tf.float64)
    z = tf.cast(latent, tf.float64)
    linear = gram[:, :, number:, number:]
    scale = tf.linalg.diag_part(linear)
    ridge = 1e-6 * scale + tf.where(scale > 0, tf.zeros_like(scale), tf.ones_like(scale))
    used = tf.cast(used, tf.float64)[:, None]
    linear = linear * used[..., None] * used[..., None, :] + tf.linalg.diag(ridge * used + 1 - used)
    return NormalEquations(
        latent=tf.reduce_sum(gram[:, :, :number, :number], 1) + tf.eye(number, dtype=tf.float64),
        mixed=gram[:, :, :number, number:] * used[..., None, :],
        linear=linear,
        latent_gradient=z - tf.reduce_sum(right[:, :, :number], 1),
        linear_gradient=-right[:, :, number:] * used,
    )


def eliminate(system: NormalEquations) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Schur complement: curvature [B, L, L] and gradient [B, L] of the latents with the linear terms at their best,
    linear^-1 mixed^T [B, C, Q, L] and linear^-1 linear_gradient [B, C, Q]."""
    root = tf.linalg.cholesky(system.linear)
    gain = tf.linalg.cholesky_solve(root, tf.linalg.matrix_transpose(system.mixed))
    move = tf.linalg.cholesky_solve(root, system.linear_gradient[..., None])[..., 0]
    curvature = system.latent - tf.reduce_sum(tf.matmul(system.mixed, gain), 1)
    gradient = system.latent_gradient - tf.reduce_sum(tf.linalg.matvec(system.mixed, move), 1)
    return curvature, gradient, gain, move


def solve(system: NormalEquations, damping: tf.Tensor, longest: float = 2.0) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One damped step (Levenberg, Marquardt): (latents [B, L], linear terms [B, C, Q], distance [B]).

    `distance` is the length of the undamped step in standard deviations, sqrt(g^T H^-1 g): the gradient's norm in the metric of the
    curvature, free of units and of parametrisation. `damping` [B] multiplies the diagonal; no latent moves by more than `longest`.
    """
    curvature, gradient, gain, move = eliminate(system)
    # Marquardt's damping acts on what the data alone say; the floor keeps the factorisation safe against rounding.
    diagonal = tf.linalg.diag_part(curvature)
    floor = tf.maximum(diagonal, 1.0)
    damped = curvature + tf.linalg.diag(floor * (damping[:, None] + 1e-9))
    root = tf.linalg.cholesky(damped)
    step = -tf.linalg.cholesky_solve(root, gradient[..., None])[..., 0]
    decrement = -tf.reduce_sum(step * gradient, -1)
    linear_part = tf.reduce_sum(move * system.linear_gradient, [1, 2])
    size = tf.reduce_max(tf.abs(step), -1, keepdims=True)
    step *= longest / tf.maximum(size, longest)
    linear = -move - tf.linalg.matvec(gain, step[:, None, :])
    return step, linear, tf.sqrt(tf.maximum(decrement + linear_part, 0))


def laplace(system: NormalEquations) -> Laplace:
    """Covariances by inverting the normal equations block by block."""
    curvature, _, gain, _ = eliminate(system)
    batch, bands, terms, number = gain.shape
    latent = tf.linalg.inv(curvature + 1e-9 * tf.eye(number, dtype=tf.float64))
    flat = tf.reshape(gain, [batch, bands * terms, number])
    shared = tf.reshape(tf.matmul(tf.matmul(flat, latent), flat, transpose_b=True), [batch, bands, terms, bands, terms])
    own = tf.linalg.inv(system.linear)
    eye = tf.eye(bands, dtype=tf.float64)
    return Laplace(latent, shared + own[:, :, :, None, :] * eye[None, :, None, :, None])
