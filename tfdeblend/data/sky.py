"""The sky of an observation as its own pixels show it, whatever the weights say: its scatter, correlation and level.

Cut-outs are small and crowded, so that little of them is empty. Noise is therefore measured on mixed second
differences,

    d_p = sum_ij k_i k_j y_(p + lag (i, j)),    k = (1, -2, 1),

which feel neither a level of the sky nor a drift, and light only where it is curved along both axes within `lag`
pixels; of white noise of variance 1 they have variance 36. They are taken where the image is faint, and clipped. Noise
that is correlated between neighbours has smaller differences at lag 1 than at longer ones. With the correlation of
noise that was smoothed by a Gaussian of s pixels, exp(-d^2 / 4 s^2), their variance is

    36 (1 - 4/3 exp(-lag^2 / 4 s^2) + 1/3 exp(-lag^2 / s^2))^2,

by which the ratio of the scatters at the lags tells s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.psf import fwhm
from tfdeblend.data.validation import MAD_TO_SIGMA, sky_sigma

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation

KERNEL_SIGMAS = 3.0  # half width of a filter
GROWN = 0.05  # of the PSF's peak: how far around a bright pixel the sky is not empty
SECOND = np.array([1.0, -2.0, 1.0])
DIFFERENCE = np.outer(SECOND, SECOND)
LAGS = (1, 2, 3)  # pixels
CLIP, CLIPPED = 3.0, 0.9866  # sigma; what is left of a Gaussian's within
SPREAD = 3.78  # sum of the squared correlations of these differences, by which fewer of them are independent
LEAST = 40  # differences that tell a scatter
LEAST_SKY = 200  # pixels of empty sky that tell its scatter or level
SMOOTHINGS = np.linspace(0, 2.5, 251)  # pixels
SIGNIFICANT = 4.0  # sigma
NOISELESS = 4.0  # ratio of the scatters at one lag and the next: a smooth image's grow with the fourth power of the lag
BLOCKS = 20  # along the longer axis, in which a level is measured; of 4 pixels or more
LEAST_BLOCKS = 8
EMPTY = 0.3  # of an image: with less, what seems empty is wings
LEAST_LEVEL, CROWDED_LEVEL = 0.15, 1.0  # sigma a pixel; in 97 real HSC blends the faintest tenth is up to 0.7
STEEP = 2.0  # times the way from the tenth to the third part
OWN = 0.7  # of the median, that the level itself must be


def detection_image(images: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All bands in one image whose noise has unit variance.

    For a source of the same flux f in each band (a flat spectrum), y_b = f + n_b with variance 1 / w_b, the estimate of
    least variance is f = sum_b w_b y_b / sum_b w_b, of standard deviation sigma = 1 / sqrt(sum_b w_b). Their ratio,

        d = sum_b w_b y_b / sqrt(sum_b w_b),

    is the signal-to-noise of that source in a pixel, and no other weighting makes it larger. A source of another
    colour is found too, at less than its largest signal-to-noise: one seen in a single band of five equally deep ones
    at 45% of it.

    Args:
        images, weights: (C,H,W); weight 0 = masked.

    Returns:
        d (H,W), 0 where all bands are masked, and sigma (H,W) in units of the images, infinite there.
    """
    total = weights.sum(axis=0, dtype=float)
    sigma = np.full(total.shape, np.inf)
    np.divide(1, np.sqrt(total), out=sigma, where=total > 0)
    combined = (weights * images.astype(float)).sum(axis=0)
    return np.where(total > 0, combined * np.where(total > 0, sigma, 0), 0), sigma


def psf_kernel(psf: np.ndarray, width: float = 1.0) -> np.ndarray:
    """(n,n) of sum 1, n odd: the round Gaussian of `width` times the width of the mean PSF.

    That is the Gaussian of the same equivalent area, 4 pi sigma^2 = (sum p)^2 / sum p^2, which feels the PSF's wings
    less than second moments do.

    Args:
        psf: (C,h,w).
        width: 1 for the matched filter of a lone point source.
    """
    mean = psf.mean(axis=0, dtype=float)
    sigma = width * float(np.sqrt(mean.sum() ** 2 / (mean**2).sum() / (4 * np.pi)))
    half = max(int(np.ceil(KERNEL_SIGMAS * sigma)), 1)
    square = np.arange(-half, half + 1) ** 2
    kernel = np.exp(-(square[:, np.newaxis] + square) / (2 * sigma**2))
    return kernel / kernel.sum()


class Scatter(NamedTuple):
    """The scatter of a band in units of the noise that its weights state, by several estimates.

    value: their median. low, high: their range. error: relative, of one. noiseless: whether nothing is seen but what is
    smooth.
    """

    value: float
    low: float
    high: float
    error: float
    noiseless: bool

    @property
    def seen(self) -> bool:
        """Whether there is noise that tells a scatter."""
        return self.value > 0 and not self.noiseless


class Level(NamedTuple):
    """The level of a band's sky in units of its scatter, and how far it must be from 0 to be certain."""

    value: float
    doubt: float

    @property
    def certain(self) -> bool:
        return abs(self.value) > self.doubt


def empty(observation: Observation, threshold: float = 3.0) -> np.ndarray:
    """(H,W) bool: pixels away from whatever stands out of the noise, and masked in no band.

    Args:
        threshold: in sigma of the detection image through the PSF's filter, as its own scatter about the sky's level
            tells, whatever the noise's correlation; what is above grows by a PSF's width.
    """
    flat = observation.images - observation.sky_levels()[:, None, None]
    image, sigma = detection_image(flat, observation.weights)
    kernel = psf_kernel(observation.psf)
    filtered = convolved(image, kernel)
    bright = filtered > threshold * sky_sigma(filtered[np.isfinite(sigma)])
    valid = observation.valid[observation.valid.any((1, 2))]  # a band that is all masked tells nothing
    return valid.all(0) & np.isfinite(sigma) & (convolved(bright.astype(float), kernel) < GROWN * kernel.max())


def scatters(observation: Observation, sky: np.ndarray) -> tuple[list[Scatter | None], float]:
    """The scatter of each band, None where too few pixels tell; and the smoothing of the noise in pixels.

    That is 0 where the noise's correlation is given, or the smoothing not certain.

    Args:
        sky: (H,W) bool, the empty pixels.
    """
    flat = observation.images - observation.sky_levels()[:, None, None]  # else weights that vary make a level scatter
    values, valid = flat * np.sqrt(observation.weights), observation.valid
    pairs = list(zip(values, valid, strict=True))
    measured = np.array([[_differences(*pair, lag) for lag in LAGS] for pair in pairs])  # (C, lags, 2)
    sizes, number = measured[..., 0], measured[..., 1]
    known = observation.noise_correlation
    if known is None:
        smoothing = _smoothing(sizes, number)
        expected = np.array([[_variance(lag, smoothing) for lag in LAGS]] * len(pairs))
    else:
        smoothing = 0.0
        expected = np.array([[_variance_of(lag, correlation) for lag in LAGS] for correlation in known])
    rows = zip(sizes / np.sqrt(expected), number, sizes, values, valid, strict=True)
    white = known is None and not smoothing
    return [_combined(*row[:3], row[3][sky & row[4]], white) for row in rows], smoothing


def _combined(
    scaled: np.ndarray, number: np.ndarray, sizes: np.ndarray, sky: np.ndarray, white: bool
) -> Scatter | None:
    """One band's estimates, where its sky is not `white` also the sky's own, which wings of galaxies may widen."""
    if number[1] < LEAST:
        return None
    estimates = [float(each) for each, count in zip(scaled, number, strict=True) if count >= LEAST]
    error = float(np.sqrt(SPREAD / (2 * number[1])))
    noiseless = len(estimates) > 2 and bool(sizes[2] >= NOISELESS * sizes[1] >= NOISELESS**2 * sizes[0])
    if len(sky) >= LEAST_SKY:
        own = sky_sigma(sky)
        estimates.append(min(own, max(estimates)) if white else own)
    return Scatter(float(np.median(estimates)), min(estimates), max(estimates), error, noiseless)


def _differences(values: np.ndarray, valid: np.ndarray, lag: int) -> tuple[float, int]:
    """The scatter, over 6, of the differences at a lag whose nine pixels are all valid, and their number: those in the
    fainter half of the image."""
    if min(values.shape) <= 2 * lag:
        return 0.0, 0
    first, middle, last = (slice(start, start - 2 * lag or None) for start in (0, lag, 2 * lag))
    a, b, c = values[first], values[middle], values[last]
    curved, light, seen = a - 2 * b + c, a + b + c, valid[first] & valid[middle] & valid[last]
    difference = curved[:, first] - 2 * curved[:, middle] + curved[:, last]
    light = light[:, first] + light[:, middle] + light[:, last]
    seen = seen[:, first] & seen[:, middle] & seen[:, last]
    if not seen.any():
        return 0.0, 0
    difference, light = np.abs(difference[seen]), light[seen]
    size = difference[light <= np.median(light)]
    sigma = MAD_TO_SIGMA * float(np.median(size)) or float(np.sqrt((size**2).mean()))
    for _ in range(3):
        kept = size[size <= CLIP * sigma]
        sigma = float(np.sqrt((kept**2).mean())) / CLIPPED
    return sigma / 6, len(size)


def _variance(lag: int, smoothing: float) -> float:
    """The variance of a difference, over 36, for noise of variance 1 that was smoothed."""
    if not smoothing:
        return 1.0
    near = np.exp(-((lag / smoothing) ** 2) / 4)
    return float((1 - 4 / 3 * near + near**4 / 3) ** 2)


def _variance_of(lag: int, correlation: np.ndarray) -> float:
    """The variance of a difference, over 36, for noise of variance 1 and a correlation (h,w)."""
    half = max(correlation.shape) // 2
    kernel = np.zeros((2 * lag + 1, 2 * lag + 1))
    kernel[::lag, ::lag] = DIFFERENCE
    kernel = np.pad(kernel, half)
    return max(float((kernel * convolved(kernel, correlation)).sum()) / 36, 1e-4)


def _smoothing(sizes: np.ndarray, number: np.ndarray) -> float:
    """The s, in pixels, of noise by the scatters at the lags, (C, lags), from so many differences; 0 if not certain.

    It is that of the first two lags. Light of crowded sources makes scatters grow with the lag too, but more so at the
    last: then there is no telling.
    """
    measured = ((number >= LEAST) & (sizes > 0)).all(1)
    if not measured.any():
        return 0.0
    first, last = np.log(sizes[measured][:, [0, 2]] / sizes[measured, 1:2]).mean(0)
    error = float(np.sqrt(SPREAD / number[measured].sum(0).min()))
    if first > -SIGNIFICANT * error:
        return 0.0
    expected = np.log([[_variance(lag, one) for lag in LAGS] for one in SMOOTHINGS]) / 2
    best = int(np.argmin(np.abs(expected[:, 0] - expected[:, 1] - first)))
    grown = last - (expected[best, 2] - expected[best, 1])
    return float(SMOOTHINGS[best]) if grown < 0.1 + 2 * error else 0.0


def error_factor(smoothing: float, psf: np.ndarray) -> float:
    """The factor by which smoothed noise makes a point source's flux error larger than white noise of its variance."""
    if not smoothing:
        return 1.0
    kernel = psf_kernel(psf)
    offset = np.arange(-int(4 * smoothing) - 1, int(4 * smoothing) + 2)
    line = np.exp(-((offset / smoothing) ** 2) / 4)
    kernel = np.pad(kernel, len(offset) // 2)
    return float(np.sqrt((kernel * convolved(kernel, np.outer(line, line))).sum() / (kernel**2).sum()))


def noise_seen(observation: Observation) -> np.ndarray:
    """(C,): the noise of each band by its scatter in units of the images, or that of the weights where none is seen."""
    found, _ = scatters(observation, empty(observation))
    return stated_noise(observation) * [each.value if each and each.seen else 1.0 for each in found]


def stated_noise(observation: Observation) -> np.ndarray:
    """(C,): the noise that the weights of each band state, their median; 1 where all is masked."""
    pairs = zip(observation.weights, observation.valid, strict=True)
    return np.array([float(np.median(w[v])) ** -0.5 if v.any() else 1.0 for w, v in pairs])


def levels(observation: Observation, sky: np.ndarray, scatter: np.ndarray) -> list[Level | None]:
    """The level of each band's sky, in units of its scatter (C,); None where too few pixels tell.

    The wings of galaxies and of the PSF raise the sky around them. With T_p the light of all that is not empty, spread
    as r^-p, the pixels of the empty sky, averaged in blocks, are fitted by

        y = level + a_2 T_2 + a_3 T_3,    a >= 0.

    Where most of the median is wings, or less than EMPTY of the image is empty, wings look like a level. Then only a
    level is certain that raises even the faintest tenth of the image, in means of nine pixels, and by more where the
    image rises steeply from there, as a galaxy does.

    Args:
        sky: (H,W) bool, the empty pixels.
        scatter: (C,) in units of the images.
    """
    side = max(4, -(-max(sky.shape) // BLOCKS))
    rows, columns = (np.arange(-(-size // side)) * side for size in sky.shape)
    y, x = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    softened = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 + float(fwhm(observation.psf).mean()) ** 2
    spread = np.stack([1 / softened, softened**-1.5])
    found: list[Level | None] = []
    for image, valid, sigma in zip(observation.images, observation.valid, scatter, strict=True):
        seen = valid & sky
        count = _blocks(seen.astype(float), side)
        use = count >= side**2 / 2
        faint = _faintest(image / sigma, valid)
        if faint is None:
            found.append(None)
            continue
        raised = Level(max(float(faint[0] - STEEP * (faint[1] - faint[0])), 0.0), CROWDED_LEVEL)
        if seen.sum() < max(EMPTY * sky.size, LEAST_SKY) or use.sum() < LEAST_BLOCKS:
            found.append(raised)
            continue
        median = float(np.median(image[seen]))
        above = (image - median) / sigma
        light = _blocks(np.where(valid & ~sky, np.maximum(above, 0), 0), side)
        mean = _blocks(np.where(seen, np.clip(above, -4, 4), 0), side)[use] / count[use]
        constant, error = _constant(mean, (spread @ light)[:, use], count[use])
        level, doubt = median / sigma + constant, max(LEAST_LEVEL, SIGNIFICANT * error)
        if median < 0:  # wings only raise it
            found.append(Level(median / sigma, doubt))
        else:
            own = OWN * median / sigma < level < faint[0] + CROWDED_LEVEL
            found.append(Level(level, doubt) if own else raised)
    return found


def _faintest(image: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
    """The means of nine pixels that a tenth and a third of all do not reach; None of too few."""
    if min(image.shape) < 3:
        return None
    total, count = (_sums_of_nine(part) for part in (np.where(valid, image, 0), valid.astype(float)))
    means = total[count > 8.5] / 9
    return np.percentile(means, (10, 30)) if len(means) >= LEAST else None


def _sums_of_nine(image: np.ndarray) -> np.ndarray:
    rows = image[:-2] + image[1:-1] + image[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def _constant(mean: np.ndarray, wings: np.ndarray, count: np.ndarray) -> tuple[float, float]:
    """The constant beside positive amounts of `wings` (2,n) in the means (n,) of so many pixels each, and its error."""
    from scipy.optimize import nnls

    root = np.sqrt(count)
    peaks = wings.max(1)
    columns = [np.ones_like(mean), -np.ones_like(mean), *(wings / np.where(peaks > 0, peaks, 1)[:, None])]
    design = np.stack(columns, 1) * root[:, None]
    solution, _ = nnls(design, mean * root)
    active = [0, *(2 + np.flatnonzero(solution[2:]))]
    left = mean * root - design @ solution
    variance = (left**2).sum() / max(len(left) - len(active), 1)
    covariance = np.linalg.pinv(design[:, active].T @ design[:, active]) * variance
    return float(solution[0] - solution[1]), float(np.sqrt(covariance[0, 0]))


def _blocks(image: np.ndarray, side: int) -> np.ndarray:
    """The sums of an image in squares of pixels, (n,) row by row; those at the end may be cut."""
    height, width = image.shape
    padded = np.pad(image, ((0, -height % side), (0, -width % side)))
    return padded.reshape(len(padded) // side, side, -1, side).sum((1, 3)).ravel()
