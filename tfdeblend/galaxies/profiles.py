"""Galaxy profiles as Gaussian mixtures: exact to convolve, to differentiate and to take moments of.

A Sersic profile of index n is a mixture of J concentric Gaussians whose widths and amplitudes are smooth functions of n
(Hogg & Lang 2013 use fixed mixtures; these are fitted by `training/fit_sersic_mixture.py`: largest error 4.5e-4 of the
convolved peak for 0.5 <= n <= 6.2 and half-light radii from 0.4 to 40 times the model PSF's sigma). Shear and
convolution with the Gaussian model PSF act on each component's covariance, so a stamp is rendered at the model PSF's
resolution without any oversampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.linalg.operator import shape_of

SERSIC_INDEX_RANGE = (0.5, 6.2)

# log of the smallest and largest sigma, in half-light radii: quadratics in log n.
LOG_SIGMA_RANGE = np.array([[-3.3190549, -1.2603025, 0.3073268], [0.631051, 0.7857347, 0.2193954]])

# [J, D + 1] Chebyshev coefficients of the amplitudes in log n over SERSIC_INDEX_RANGE.
# fmt: off
AMPLITUDES = np.array([
    [0.0035027, 0.0057823, 0.0034612, 0.0016727, 0.0005455, 0.0001614, 0.0000086, -0.0000007, -0.000004],
    [0.0047008, 0.0075458, 0.0042849, 0.0012207, 0.0004378, -0.0001425, 0.0000275, -0.0000333, 0.0000078],
    [0.0137578, 0.0219672, 0.0089567, 0.0033892, -0.0005846, 0.0002227, -0.0003285, 0.0001008, -0.0000275],
    [0.0312381, 0.040577, 0.0173047, -0.001114, 0.0006761, -0.0017312, 0.0007469, -0.0002975, 0.0001178],
    [0.0562938, 0.0820401, 0.006939, 0.001466, -0.0072705, 0.003185, -0.0016424, 0.0009055, -0.0003077],
    [0.1112716, 0.0877262, 0.0058437, -0.0259667, 0.0100218, -0.0059446, 0.0043103, -0.0021059, 0.0006478],
    [0.1373207, 0.1349803, -0.0959205, 0.0290668, -0.0188522, 0.0154261, -0.0089341, 0.004008, -0.0012932],
    [0.2756361, -0.1001178, -0.0170487, -0.0119126, 0.0246531, -0.0180809, 0.0098151, -0.0046191, 0.0015768],
    [0.3185041, -0.3132332, 0.1022677, -0.0196134, -0.0016277, 0.0052105, -0.0040292, 0.0024074, -0.0008819],
    [0.0477522, 0.0327479, -0.0360949, 0.02183, -0.0080368, 0.0017037, 0.0000288, -0.0003695, 0.0001656],
])
# fmt: on

# [2, J] amplitudes and sigmas, in half-light radii, of the two profiles of fixed index, which need fewer Gaussians: the
# largest error is 5e-4 of the convolved peak.
EXPONENTIAL = np.array(
    [
        [0.002892, 0.000188, 0.026941, 0.163377, 0.484117, 0.322329],
        [0.095658, 0.033913, 0.215997, 0.439826, 0.82655, 1.456146],
    ]
)
DE_VAUCOULEURS = np.array(
    [
        [0.009234, 0.024865, 0.058672, 0.124332, 0.21287, 0.26953, 0.217832, 0.082649],
        [0.015159, 0.045142, 0.101293, 0.221627, 0.49556, 1.149788, 2.847883, 8.456492],
    ]
)


# The products of two of the six monomials (1, y, x, y^2, yx, x^2): the 15 of degree at most four, each once as a pair
# of factors, and which of them [m, n] is.
_DEGREES = np.array([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])
_, _FIRST, _WHICH = np.unique(
    (_DEGREES[:, None] + _DEGREES[None]).reshape(-1, 2), axis=0, return_index=True, return_inverse=True
)
FACTORS = np.stack([_FIRST // 6, _FIRST % 6])
PRODUCTS = _WHICH.reshape(6, 6)


class Mixture(NamedTuple):
    """J Gaussians around one centre, in pixels.

    amplitude: [..., C, J] flux of each component in each band (C may be 1: the same in all bands).
    covariance: [..., J, 3] (yy, yx, xx) in pixel^2, model PSF included.
    center: [..., 2] (y, x) relative to stamp pixel (P // 2, P // 2).
    """

    amplitude: tf.Tensor
    covariance: tf.Tensor
    center: tf.Tensor


def sersic(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixture of the unit-flux Sersic profile of half-light radius 1: amplitudes and variances, each [..., J]."""
    dtype = index.dtype
    log_n = tf.math.log(index)
    lo, hi = np.log(SERSIC_INDEX_RANGE)
    x = (log_n - lo) * (2 / (hi - lo)) - 1
    polynomials = [tf.ones_like(x), x]
    for _ in range(AMPLITUDES.shape[1] - 2):
        polynomials.append(2 * x * polynomials[-1] - polynomials[-2])
    amplitude = tf.linalg.matvec(tf.constant(AMPLITUDES, dtype), tf.stack(polynomials, -1))
    amplitude /= tf.reduce_sum(amplitude, -1, keepdims=True)
    powers = tf.stack([tf.ones_like(log_n), log_n, log_n**2], -1)
    log_range = tf.linalg.matvec(tf.constant(LOG_SIGMA_RANGE, dtype), powers)
    step = tf.constant(np.linspace(0, 1, len(AMPLITUDES)), dtype)
    log_sigma = log_range[..., :1] + (log_range[..., 1:] - log_range[..., :1]) * step
    return amplitude, tf.exp(2 * log_sigma)


def fixed(table: np.ndarray, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixture of one of the tables above, as `sersic` gives it: amplitudes and variances, each [J]."""
    amplitude, sigma = table
    return tf.constant(amplitude / amplitude.sum(), dtype), tf.constant(sigma**2, dtype)


def ellipse(ellipticity: tf.Tensor) -> tf.Tensor:
    """[..., 2] (e1, e2) with |e| = (a - b) / (a + b) < 1 -> [..., 3] (yy, yx, xx) of a matrix of determinant 1.

    e1 > 0 stretches along x, e2 > 0 along x = y: GalSim's reduced shear.
    """
    e1, e2 = ellipticity[..., 0], ellipticity[..., 1]
    square = e1**2 + e2**2
    return tf.stack([1 + square - 2 * e1, 2 * e2, 1 + square + 2 * e1], -1) / (1 - square)[..., None]


def half_light_radius(share: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """[...]: the radius that holds half of the light of concentric circular Gaussians, [..., J] each.

    Newton's method on sum_j a_j exp(-r^2 / 2 v_j) = 1/2 in log r, from the share-weighted geometric mean.
    """
    weight = share / tf.reduce_sum(share, -1, keepdims=True)
    log_r2 = tf.reduce_sum(weight * tf.math.log(variance), -1)
    for _ in range(12):
        scaled = tf.exp(log_r2)[..., None] / (2 * variance)
        left = weight * tf.exp(-scaled)
        slope = tf.maximum(tf.reduce_sum(left * scaled, -1), 1e-3)
        log_r2 += tf.clip_by_value((tf.reduce_sum(left, -1) - 0.5) / slope, -1.5, 1.5)
    return tf.exp(0.5 * log_r2)


def coefficients(mixture: Mixture) -> tuple[tf.Tensor, tf.Tensor]:
    """A mixture as weights [..., C, J] and exponents [..., J, 6]: sum_j w_j exp(e_j . (1, y, x, y^2, yx, x^2))."""
    yy, yx, xx = tf.unstack(mixture.covariance, axis=-1)
    determinant = yy * xx - yx**2
    p_yy, p_yx, p_xx = xx / determinant, -yx / determinant, yy / determinant
    cy, cx = mixture.center[..., 0, None], mixture.center[..., 1, None]
    by, bx = p_yy * cy + p_yx * cx, p_yx * cy + p_xx * cx
    exponent = tf.stack([-0.5 * (by * cy + bx * cx), by, bx, -0.5 * p_yy, -p_yx, -0.5 * p_xx], -1)
    weight = mixture.amplitude / (2 * np.pi * tf.sqrt(determinant))[..., None, :]
    return weight, exponent


def monomials(side: int | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """[6, P * P]: (1, y, x, y^2, yx, x^2) at every stamp pixel, measured from pixel (P // 2, P // 2)."""
    t = tf.cast(tf.range(side) - side // 2, dtype)
    y, x = (tf.reshape(a, [-1]) for a in tf.meshgrid(t, t, indexing="ij"))
    return tf.stack([tf.ones_like(y), y, x, y * y, y * x, x * x])


def _rows_times(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """[..., J, N], [N, M] -> [..., J, M], as one product of two matrices.

    Left to `tf.matmul`, oneDNN's kernel corrupts memory where the axes before are two and one of them is 1:
    https://github.com/tensorflow/tensorflow/issues/123109.
    """
    _, *between, inner = shape_of(x)
    flat = tf.matmul(tf.reshape(x, [-1, inner]), matrix)
    return tf.reshape(flat, [-1, *between, shape_of(matrix)[-1]])


@tf.custom_gradient
def evaluate(weight: tf.Tensor, exponent: tf.Tensor, basis: tf.Tensor):
    """sum_j w_cj exp(e_j . basis): [..., C, J], [..., J, 6], [6, N] -> [..., C, N].

    The gradient re-uses the exponentials and is two matrix products; automatic differentiation would hold [..., J, N]
    several times.
    """
    gaussians = tf.exp(_rows_times(exponent, basis))

    def gradient(dy: tf.Tensor):
        d_weight = tf.matmul(dy, gaussians, transpose_b=True)
        pulled = gaussians * tf.matmul(weight, dy, transpose_a=True)  # [..., J, N]
        return d_weight, _rows_times(pulled, tf.transpose(basis)), None

    return tf.matmul(weight, gaussians), gradient


def render(mixture: Mixture, side: int | tf.Tensor) -> tf.Tensor:
    """Stamps [..., C, P, P] of a mixture, in flux per pixel, sampled at pixel centres."""
    weight, exponent = coefficients(mixture)
    flat = evaluate(weight, exponent, monomials(side, weight.dtype))
    return tf.reshape(flat, [-1, *shape_of(flat)[1:-1], side, side])


def render_tangents(
    weight: tf.Tensor, exponent: tf.Tensor, d_weight: tf.Tensor, d_exponent: tf.Tensor, side: int | tf.Tensor
) -> tf.Tensor:
    """A rendered mixture and its derivatives along S directions, at the price of one rendering and a matrix product.

    Args:
      weight: [..., C, J], exponent: [..., J, 6]: the `coefficients`; d_weight: [..., S, C, J], d_exponent:
        [..., S, J, 6]: their derivatives; at least one leading axis.
    Returns:
      [..., S + 1, C, P, P], the mixture itself last.
    """
    basis = monomials(side, weight.dtype)
    gaussians = tf.exp(_rows_times(exponent, basis))
    # d(w_cj G_j) = (dw_cj + w_cj sum_m de_jm basis_m) G_j, where the first basis function is 1
    mixed = weight[..., None, :, None, :] * tf.linalg.matrix_transpose(d_exponent)[..., None, :, :]  # [..., S, C, 6, J]
    constant = mixed[..., :1, :] + d_weight[..., None, :]
    rows = tf.concat([constant, mixed[..., 1:, :]], -2)
    directions, bands, count, parts = rows.shape[-4:]
    lead = [-1, *shape_of(rows)[1:-4]]
    derivatives = tf.matmul(tf.reshape(rows, [*lead, directions * bands * count, parts]), gaussians)
    derivatives = tf.reshape(derivatives, [*lead, directions, bands, count, side * side])
    derivatives = tf.reduce_sum(derivatives * basis, -2)
    flat = tf.concat([derivatives, tf.expand_dims(tf.matmul(weight, gaussians), -3)], -3)
    return tf.reshape(flat, [*lead, *flat.shape[-3:-1], side, side])


class Contraction(NamedTuple):
    """phi_c = <pulled_c, sum_j w_cj G_j> of stamps with a mixture, and what its derivatives need.

    slope: [..., S, C] d phi_c / d z_s. second: [..., S, S] sum_c f_c d^2 phi_c / dz dz' as far as it comes from first
    derivatives of the coefficients. by_weight: [..., C, J], by_exponent: [..., J, 6]: d (sum_c f_c phi_c) by the
    coefficients, with which their second derivatives are to be contracted.
    """

    slope: tf.Tensor
    second: tf.Tensor
    by_weight: tf.Tensor
    by_exponent: tf.Tensor


def contract(
    coefficients: Sequence[tf.Tensor], d_weight: tf.Tensor, d_exponent: tf.Tensor, pulled: tf.Tensor, flux: tf.Tensor
) -> Contraction:
    """Second derivatives of <pulled, render(mixture)> by moments of the stamps up to the fourth order.

    Args:
      coefficients: of the mixture, weight [..., C or 1, J] and exponent [..., J, 6]; d_weight: [..., S, C or 1, J],
        d_exponent: [..., S, J, 6]: their derivatives along S directions.
      pulled: [..., C, P, P]. flux: [..., C], f_c. At least one leading axis.
    """
    weight, exponent = coefficients
    side, bands = shape_of(pulled)[-1], pulled.shape[-3]
    basis = monomials(side, weight.dtype)
    fourth = tf.gather(basis, FACTORS[0]) * tf.gather(basis, FACTORS[1])
    gaussians = tf.exp(_rows_times(exponent, basis))
    seen = tf.reshape(pulled, [-1, *shape_of(pulled)[1:-2], side * side])
    first = _moments(seen, basis, gaussians)  # [..., C, 6, J]
    slope = tf.einsum("...scj,...cj->...sc", tf.repeat(d_weight, bands // d_weight.shape[-2], -2), first[..., 0, :])
    slope += tf.einsum("...sjm,...cj,...cmj->...sc", d_exponent, _in_bands(weight, bands), first)
    coloured = flux[..., None, None] * first
    weighted = flux[..., None] * _in_bands(weight, bands)
    if weight.shape[-2] == 1:  # one shape in all bands: so is its second derivative
        coloured = tf.reduce_sum(coloured, -3, keepdims=True)
    pulled = gaussians * tf.matmul(weighted, seen, transpose_a=True)  # [..., J, N]
    second = tf.linalg.matrix_transpose(_rows_times(pulled, tf.transpose(fourth)))
    second = tf.gather(second, PRODUCTS, axis=-2)  # [..., 6, 6, J]
    second = tf.einsum("...sjm,...tjn,...mnj->...st", d_exponent, d_exponent, second)
    crossed = tf.einsum("...scj,...tjm,...cmj->...st", d_weight, d_exponent, coloured)
    by_exponent = tf.einsum("...cj,...cmj->...jm", weight, coloured)
    second += crossed + tf.linalg.matrix_transpose(crossed)
    return Contraction(slope, second, coloured[..., 0, :], by_exponent)


def _moments(stamps: tf.Tensor, basis: tf.Tensor, gaussians: tf.Tensor) -> tf.Tensor:
    """sum_n stamps_cn basis_mn gaussians_jn: [..., C, N], [M, N], [..., J, N] -> [..., C, M, J]."""
    *lead, bands, pixels = shape_of(stamps)[1:]
    weighted = tf.reshape(stamps[..., None, :] * basis, [-1, *lead, bands * basis.shape[0], pixels])
    moments = tf.matmul(weighted, gaussians, transpose_b=True)
    return tf.reshape(moments, [-1, *lead, bands, basis.shape[0], gaussians.shape[-2]])


def _in_bands(weight: tf.Tensor, bands: int) -> tf.Tensor:
    """[..., C or 1, J] -> [..., C, J]."""
    return tf.repeat(weight, bands // weight.shape[-2], -2)
