"""Correlated noise: its correlation function, estimated or from a power spectrum, drawing it, and whitening it.

Noise of pixel variances 1 / w is n = c / sqrt(w), c Gaussian of variance 1 and correlation function rho(d): one number
for each offset d between two pixels. Each pixel is predicted from those before it, row by row, within `reach` pixels:

    z_p = (c_p - sum_d b_d c_(p + d)) / s,

where b is the best linear prediction and s^2 the variance that it leaves. All z have variance 1 and are nearly
independent, so that log p(n) is that of white noise, with log s for the determinant (Vecchia 1988). Beside an edge or a
masked pixel, only the pixels that exist predict: nothing is filled in, nothing wraps around, and chi-square per pixel
is 1 whatever the reach. White noise has b = 0 and s = 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.data.validation import numbers
from tfdeblend.errors import DataError

REACHES = (0, 2, 4, 6)  # pixels; the shortest that predicts as well as the longest is taken
SAME_VARIANCE = 1.02  # ratio of two variances up to which they count as equal
FLOOR = 1e-7  # of the variance: no combination of neighbouring pixels is quieter
NEGATIVE = -0.05  # an eigenvalue of neighbours' covariance may be as low, by the error of an estimate
ROUNDING = 1e-3  # by which a given correlation may be off
WINDOW = 12  # pixels: the longest offset that is estimated, twice the longest reach
APODISATION = (8, 4, 2, 0)  # pixels over which the sky fades at its edges; the widest that keeps KEPT of it is taken
KEPT = 0.3
LEAST_SKY = 400  # pixels of sky that an estimate needs
AT_ONCE = 2000  # patterns of masked neighbours that are solved together


def as_correlation(where: str | Path, correlation: Any, bands: tuple[str, ...]) -> np.ndarray | None:
    """Convert `Observation.noise_correlation` to (C,h,w), a correlation function a band; None is white noise.

    Raises: DataError, about `where`, for what is no correlation function: another shape, values beyond 1 or not 1 in
    the middle, other values at opposite offsets, negative power.
    """
    field = "noise_correlation"
    if correlation is None:
        return None
    array = numbers(where, field, correlation).astype(float)
    array = np.repeat(array[np.newaxis], len(bands), axis=0) if array.ndim == 2 else array
    if array.ndim != 3 or len(array) != len(bands) or not all(size % 2 for size in array.shape[1:]):
        expected = f"expected shape ({len(bands)}, height, width) or (height, width), odd"
        raise DataError(where, field, f"{expected}, received {array.shape}")
    largest = array.flat[np.argmax(np.abs(array))]
    if not np.abs(largest) <= 1 + ROUNDING:  # so written that NaN is refused too
        raise DataError(where, field, f"expected values from -1 to 1, received {largest:g}")
    middle = array[:, array.shape[1] // 2, array.shape[2] // 2]
    if np.abs(middle - 1).max() > ROUNDING:
        raise DataError(where, field, f"expected 1 in the middle, received {middle[np.argmax(np.abs(middle - 1))]:g}")
    uneven = np.abs(array - array[:, ::-1, ::-1]).max()
    if uneven > ROUNDING:
        raise DataError(where, field, f"expected the same for opposite offsets, received {uneven:g} of difference")
    for name, band in zip(bands, array, strict=True):
        smallest = np.linalg.eigvalsh(neighbour_covariance(band, REACHES[-1])).min()
        if smallest < NEGATIVE:
            received = f"received an eigenvalue of {smallest:.3g} in band {name} (a window cut too small?)"
            raise DataError(where, field, f"expected a correlation without negative power, {received}")
    return array


def stencil(reach: int) -> np.ndarray:
    """List the offsets (M, 2), (y, x), of a pixel and those before it within `reach`: M = 1 + 2 reach (reach + 1)."""
    before = [(-y, x) for y in range(reach + 1) for x in range(-reach, reach + 1) if y > 0 or x < 0]
    return np.array([(0, 0), *before])


def neighbour_covariance(correlation: np.ndarray, reach: int) -> np.ndarray:
    """The covariance (M, M) of the pixels of a stencil, from a correlation function (h, w), 0 beyond its window."""
    offsets = stencil(reach)
    half = np.array(correlation.shape) // 2
    place = offsets[:, None] - offsets + half
    seen = ((place >= 0) & (place < correlation.shape)).all(-1)
    y, x = np.where(seen[..., None], place, half).T
    return np.where(seen, correlation[y, x].T, 0.0)


def reach_of(correlation: np.ndarray | None) -> int:
    """Choose the shortest of REACHES from which each band (C, h, w) is predicted as well as from the longest.

    None, white noise, has 0.
    """
    if correlation is None:
        return 0
    covariances = [[_positive(neighbour_covariance(band, reach)) for band in correlation] for reach in REACHES]
    left = np.array([[_unexplained(covariance) for covariance in bands] for bands in covariances])
    return REACHES[int(np.argmax((left < SAME_VARIANCE * left[-1]).all(axis=1)))]


def whitening(correlation: np.ndarray | None, valid: np.ndarray, reach: int) -> np.ndarray:
    """Solve for the matrix that whitens c, by its rows (C, M, H, W): z_p = sum_i rows_i c_(p + stencil_i).

    Rows are 0 where pixels are not valid.

    Args:
      correlation: (C, h, w), or None for white noise. valid: (C, H, W) bool. reach: pixels; if 0, M = 0 and c is white.
    """
    bands, height, width = valid.shape
    if reach == 0:
        return np.zeros((bands, 0, height, width))
    correlation = np.ones((bands, 1, 1)) if correlation is None else correlation
    return np.stack([_rows(*pair, reach) for pair in zip(correlation, valid, strict=True)])


def whitening_transfer(correlation: np.ndarray | None, reach: int, ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """The transfer function (C or 1, ...) of `whitening` where no pixel is masked.

    ky, kx: (...) frequencies, radian / pixel.
    """
    if reach == 0 or correlation is None:
        return np.ones((1, 1, 1))
    offsets, present = stencil(reach), np.ones((1, len(stencil(reach))), bool)
    rows = [_predict(_positive(neighbour_covariance(band, reach)), present)[0] for band in correlation]
    waves = np.exp(1j * (ky[..., None] * offsets[:, 0] + kx[..., None] * offsets[:, 1]))
    return np.einsum("cm,...m->c...", rows, waves)


def from_power(power: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Transform power spectra (C, n, m), in any unit, on FFT grids to correlation functions (C, h, w).

    window: pixels of the longest offset.
    """
    covariance = np.fft.ifft2(power).real
    half = [min(window, (size - 1) // 2) for size in power.shape[1:]]
    rows, columns = (np.arange(-n, n + 1) for n in half)
    cut = covariance[:, rows[:, None], columns]
    return cut / covariance[:, :1, :1]


def from_sky(noise: np.ndarray, sky: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Estimate the correlation function (2 window + 1, 2 window + 1) of one band from its empty sky.

    It is the autocorrelation of the noise over that of the sky's pixels. The sky fades at its edges: steps there would
    leak into frequencies at which smooth noise has no power.

    Args:
      noise: (H, W) in units of its standard deviation. sky: (H, W) bool. window: pixels.

    Raises: ValueError for less than LEAST_SKY pixels of sky.
    """
    if sky.sum() < LEAST_SKY:
        raise ValueError(f"expected at least {LEAST_SKY} pixels of empty sky, received {int(sky.sum())}")
    seen = next(faded for width in APODISATION if (faded := _fade(sky, width)).sum() >= KEPT * sky.sum() or not width)
    values = np.where(sky, noise, 0)
    values = seen * (values - (seen * values).sum() / seen.sum())
    products, pairs = (_autocorrelation(image, window) for image in (values, seen))
    ratio = products / np.maximum(pairs, 1e-3 * pairs.max())
    return ratio / ratio[window, window]


def draw(correlation: np.ndarray, weights: np.ndarray, seed: int | np.random.Generator) -> np.ndarray:
    """Draw noise (C, H, W) of variance 1 / weights, 0 where masked.

    It is cut from a periodic field that is larger by the window, so that opposite edges are independent.

    Args:
      correlation: (C, h, w). weights: (C, H, W), inverse variance. seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    noise = np.zeros(weights.shape)
    for band, rho in enumerate(correlation):
        half = np.array(rho.shape) // 2
        side = np.array(weights.shape[1:]) + 2 * half
        periodic = np.zeros(side)
        rows, columns = (np.arange(-n, n + 1) for n in half)
        periodic[rows[:, None], columns] = rho
        power = np.maximum(np.fft.rfft2(periodic).real, 0)
        field = np.fft.irfft2(np.sqrt(power) * np.fft.rfft2(rng.normal(size=side)), side)
        scale = np.sqrt(np.fft.irfft2(power, side)[0, 0])
        noise[band] = field[: weights.shape[1], : weights.shape[2]] / scale
    root = np.sqrt(weights)
    return np.divide(noise, root, out=np.zeros_like(noise), where=root > 0)


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve an image (H,W), with zeros around it, with a kernel of odd sides."""
    side = tuple(np.add(image.shape, kernel.shape).tolist())
    full = np.fft.irfft2(np.fft.rfft2(image, side) * np.fft.rfft2(kernel, side), side)
    y, x = (size // 2 for size in kernel.shape)
    return full[y : y + image.shape[0], x : x + image.shape[1]]


def _unexplained(covariance: np.ndarray) -> float:
    """The variance of the first pixel of a stencil given the others."""
    return float(1 / np.linalg.inv(covariance)[0, 0])


def _positive(covariance: np.ndarray) -> np.ndarray:
    """The nearest covariance matrix without eigenvalues below FLOOR."""
    values, vectors = np.linalg.eigh(covariance)
    return covariance if values[0] >= FLOOR else (vectors * np.maximum(values, FLOOR)) @ vectors.T


def _rows(correlation: np.ndarray, valid: np.ndarray, reach: int) -> np.ndarray:
    """`whitening` of one band (M, H, W); each pattern of unmasked neighbours is solved once."""
    (height, width), offsets = valid.shape, stencil(reach)
    padded = np.pad(valid, reach)
    here = [padded[reach + y : reach + y + height, reach + x : reach + x + width] for y, x in offsets]
    present = np.stack(here, -1)[valid]  # (n, M)
    patterns, which = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    patterns = np.unpackbits(patterns, axis=1, count=len(offsets)).astype(bool)
    covariance = _positive(neighbour_covariance(correlation, reach))
    parts = [_predict(covariance, patterns[i : i + AT_ONCE]) for i in range(0, len(patterns), AT_ONCE)]
    rows = np.zeros((len(offsets), height, width))
    rows[:, valid] = np.concatenate([*parts, np.zeros((0, len(offsets)))])[which.ravel()].T
    return rows


def _predict(covariance: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The rows (1, -b) / s, (n, M), for patterns (n, M) of pixels that are present; the first of each always is."""
    known = present[:, 1:].astype(float)
    inner = covariance[1:, 1:] * known[:, :, None] * known[:, None] + (1 - known)[:, :, None] * np.eye(known.shape[1])
    cross = covariance[0, 1:] * known
    b = np.linalg.solve(inner, cross[..., None])[..., 0]
    left = covariance[0, 0] - (b * cross).sum(1)
    return np.column_stack([np.ones(len(b)), -b]) / np.sqrt(left)[:, None]


def _fade(sky: np.ndarray, width: int) -> np.ndarray:
    """A window (H, W) that is 1 well inside of the sky and 0 outside, and falls smoothly over `width` pixels."""
    t = np.arange(-width, width + 1) / (width + 1)
    radius = np.hypot(t[:, None], t)
    bump = np.where(radius < 1, np.cos(0.5 * np.pi * radius) ** 2, 0)
    deep = convolved(sky.astype(float), (radius < 1).astype(float)) > (radius < 1).sum() - 0.5
    return np.maximum(convolved(deep.astype(float), bump / bump.sum()), 0) * sky


def _autocorrelation(image: np.ndarray, window: int) -> np.ndarray:
    """The autocorrelation sum_p image_p image_(p + d), (2 window + 1, 2 window + 1) over the offsets d."""
    side = tuple(size + window for size in image.shape)
    full = np.fft.irfft2(np.abs(np.fft.rfft2(image, side)) ** 2, side)
    offsets = np.arange(-window, window + 1)
    return full[offsets[:, None], offsets]
