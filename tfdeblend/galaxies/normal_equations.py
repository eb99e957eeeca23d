"""The last steps to the maximum and its curvature: Gauss-Newton and Newton on latents and fluxes, in a trust region.

Fluxes enter the image linearly. Ordered band by band their normal equations are small blocks, which a
Schur complement eliminates: what is left to factorise has the size of the latents alone. The same gives the Gaussian
approximation of the posterior (Laplace), flux covariances between neighbours included.

Gauss-Newton is the better guide far from the maximum. Near it, beside a bright galaxy that no profile fits, residuals
are so large that only the exact second derivatives converge; where these curve downwards they are taken as if they
curved upwards (saddle-free Newton, Dauphin et al. 2014). Both steps stay within a trust region of the latents, whose
natural length is one. The second is taken where the loss falls as it predicts, else the better of the two.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfdeblend.galaxies import fluxes
from tfdeblend.linalg.operator import shape_of
from tfdeblend.linalg.solvers import FLATTEST, trust_region_step


class NormalEquations(NamedTuple):
    """Curvature of -log posterior at one point, float64."""

    latent: tf.Tensor  # [B, L, L], L = K S, prior included
    mixed: tf.Tensor  # [B, C, L, K]
    linear: tf.Tensor  # [B, C, K, K] of the fluxes, by the data alone
    now: tf.Tensor  # [B, C, K], the fluxes themselves: where negative, their prior curves too


class SecondOrder(NamedTuple):
    """The data's second derivatives that Gauss-Newton leaves out, residuals times the model's own; float64.

    latent: [B, K, S, S], of the latents of each source. mixed: [B, K, S, C], of its latents and its fluxes.
    """

    latent: tf.Tensor
    mixed: tf.Tensor


class Laplace(NamedTuple):
    """Gaussian approximation of the posterior at its maximum, of fluxes without their prior; float64.

    latent: [B, L, L] covariance of the latents. linear: [B, C, K, C, K] covariance of the fluxes.
    """

    latent: tf.Tensor
    linear: tf.Tensor


def mix(gram: tf.Tensor, mixing: tf.Tensor) -> tf.Tensor:
    """Products [B, C, N', N'] of the images that span all derivatives, as those [B, C, N, N] of the derivatives.

    mixing: [B, C, K, S + 1, I] what each derivative holds of its own source's images. N' = K I, N = K (S + 1).
    """
    _, bands, sources, size, images = shape_of(mixing)
    mixing = tf.cast(mixing, tf.float64)

    def rows(g: tf.Tensor) -> tf.Tensor:
        """Mixes the rows [B, C, K I, N] of a matrix."""
        columns = shape_of(g)[-1]
        blocks = tf.reshape(g, [-1, bands, sources, images, columns])
        return tf.reshape(tf.matmul(mixing, blocks), [-1, bands, sources * size, columns])

    return rows(tf.linalg.matrix_transpose(rows(gram)))


def assemble(gram: tf.Tensor, flux: tf.Tensor, used: tf.Tensor, size: int, stiffness: tf.Tensor) -> NormalEquations:
    """Normal equations from whitened images: curvature J^T J (Gauss-Newton) and the prior's.

    Args:
      gram: [B, C, N, N]: `Likelihood.gram` of each source's unit-flux derivatives by its S latents followed by its
        unit-flux image; N = K (S + 1). flux: [B, K, C].
      used: [B, K] 1 for a source, 0 for padding. size: S. stiffness: [B] the curvature of the latents' prior.
    """
    _, sources, bands = shape_of(flux)
    number = sources * size
    used, by_band = tf.cast(used, tf.float64)[:, None], tf.linalg.matrix_transpose(tf.cast(flux, tf.float64))
    blocks = tf.reshape(tf.cast(gram, tf.float64), [-1, bands, sources, size + 1, sources, size + 1])
    # Derivatives by latents scale with the flux.
    scaled = blocks[:, :, :, :size] * by_band[..., None, None, None]
    latent = tf.reduce_sum(scaled[..., :size] * by_band[:, :, None, None, :, None], 1)
    latent, mixed = (
        tf.reshape(latent, [-1, number, number]),
        tf.reshape(scaled[..., size], [-1, bands, number, sources]),
    )
    return NormalEquations(
        latent=latent + stiffness[:, None, None] * tf.eye(number, dtype=tf.float64),
        mixed=mixed * used[..., None, :],
        linear=regular(blocks[:, :, :, size, :, size], used),
        now=by_band,
    )


def regular(gram: tf.Tensor, used: tf.Tensor) -> tf.Tensor:
    """[..., K, K] normal matrix of fluxes, safe to factorise: a ridge of 1e-6, and 1 for padding."""
    scale = tf.linalg.diag_part(gram)
    ridge = 1e-6 * scale + tf.where(scale > 0, tf.zeros_like(scale), tf.ones_like(scale))
    return gram * used[..., None] * used[..., None, :] + tf.linalg.diag(ridge * used + 1 - used)


class Factors(NamedTuple):
    """Factorised curvature: solves for a step from any gradient near the point where it was taken.

    values: [B, L] and vectors: [B, L, L] of the latents' Schur complement. errors: [B, C, K] of the fluxes, by the
    curvature with its sign taken as positive. system: what was factorised.
    """

    values: tf.Tensor
    vectors: tf.Tensor
    errors: tf.Tensor
    system: NormalEquations


def eliminate(system: NormalEquations) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The latents' curvature [B, L, L] with the fluxes at their best, linear^-1 mixed^T [B, C, K, L], and the curvature
    of the fluxes themselves [B, C, K, K], its prior included."""
    linear = system.linear + tf.linalg.diag(fluxes.curvature(system.now))
    gain = tf.linalg.cholesky_solve(tf.linalg.cholesky(linear), tf.linalg.matrix_transpose(system.mixed))
    return system.latent - tf.reduce_sum(tf.matmul(system.mixed, gain), 1), gain, linear


def exact(system: NormalEquations, second: SecondOrder) -> NormalEquations:
    """`system` with the exact second derivatives."""
    _, sources, size, bands = shape_of(second.mixed)
    number = sources * size
    own = tf.eye(sources, dtype=tf.float64)[:, None, :, None] * second.latent[:, :, :, None, :]
    own_flux = tf.einsum("bksc,kq->bcksq", second.mixed, tf.eye(sources, dtype=tf.float64))
    return system._replace(
        latent=system.latent + tf.reshape(own, [-1, number, number]),
        mixed=system.mixed + tf.reshape(own_flux, [-1, bands, number, sources]),
    )


def factorise(system: NormalEquations) -> Factors:
    """Factors of a curvature, which may curve downwards."""
    curvature, gain, linear = eliminate(system)
    values, vectors = tf.linalg.eigh(0.5 * (curvature + tf.linalg.matrix_transpose(curvature)))
    _, bands, sources, number = shape_of(gain)
    along = tf.matmul(tf.reshape(gain, [-1, bands * sources, number]), vectors) ** 2
    along = tf.reduce_sum(along / tf.maximum(tf.abs(values), FLATTEST)[:, None], -1)
    variance = tf.linalg.diag_part(tf.linalg.inv(linear)) + tf.reshape(along, [-1, bands, sources])
    return Factors(values, vectors, tf.sqrt(variance), system)


def solve(
    factors: Factors, gradient: tf.Tensor, linear_gradient: tf.Tensor, now: tf.Tensor, radius: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The step down a gradient: (latents [B, L], fluxes [B, C, K], distance [B]).

    No latent moves by more than `radius` [B]: where the full step would, all directions are damped by the same addition
    to the curvature, which holds back the flat ones most. `distance` is the length of the full step in standard
    deviations, sqrt(g^T |H|^-1 g): the gradient's norm in the metric of the curvature, free of units and of
    parametrisation.

    Args:
      gradient: [B, L] of -log posterior by the latents. linear_gradient: [B, C, K] of the data's part by the fluxes,
        which are `now` [B, C, K]. radius: [B].
    """
    _, mixed, linear, _ = factors.system
    held = fluxes.curvature(now)
    whole = linear + tf.linalg.diag(held)
    by_linear = linear_gradient + held * now
    move = -tf.linalg.cholesky_solve(tf.linalg.cholesky(whole), by_linear[..., None])[..., 0]
    reduced = gradient + tf.reduce_sum(tf.linalg.matvec(mixed, move), 1)
    step, decrement = trust_region_step(factors.values, factors.vectors, reduced, radius)
    decrement -= tf.reduce_sum(move * by_linear, [1, 2])
    right = tf.linalg.matvec(linear, now) - linear_gradient - tf.linalg.matvec(mixed, step[:, None], transpose_a=True)
    return step, fluxes.solve(linear, right, now) - now, tf.sqrt(tf.maximum(decrement, 0))


def laplace(system: NormalEquations) -> Laplace:
    """Covariances by inverting the normal equations block by block.

    Those of the data alone: at a flux that its prior holds near zero, the prior's curvature would promise an error that
    no measurement made.
    """
    curvature, gain, linear = eliminate(system._replace(now=tf.ones_like(system.now)))
    _, bands, terms, number = shape_of(gain)
    latent = tf.linalg.inv(curvature + 1e-9 * tf.eye(number, dtype=tf.float64))
    flat = tf.reshape(gain, [-1, bands * terms, number])
    shared = tf.reshape(tf.matmul(tf.matmul(flat, latent), flat, transpose_b=True), [-1, bands, terms, bands, terms])
    own = tf.linalg.inv(linear)
    eye = tf.eye(bands, dtype=tf.float64)
    return Laplace(latent, shared + own[:, :, :, None, :] * eye[None, :, None, :, None])
