"""Blends with truth for calibration: stamps of a prior, or of held-out galaxies, seen by HSC.

Truth is drawn as the sampler's model says: stamps at whole pixels, seen through the operator, in white noise. What is
wrong with samples is then the sampler's doing (stamps drawn from the prior), or the prior's (held-out galaxies).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeblend.data.observation import COADD_ZEROPOINT, Observation
from tfdeblend.data.psf import transfer_function
from tfdeblend.data.scene import Scene, Source
from tfdeblend.diffusion.denoisers import flux_scale
from tfdeblend.forward.operators import Convolve, Place
from tfdeblend.simulation.surveys import SURVEYS, Survey

SIDE, EDGE = 64, 12  # pixels of an image; none of its sources is nearer to the edge
NEAR = (3.0, 12.0)  # pixels between a source and one before it
MARGIN, PSF_SIDE = 48, 41
FAINTEST_SHARE = 0.6  # signal-to-noise is drawn from beyond the range named, whose edges would be a prior, too


@dataclass(frozen=True, eq=False)
class TrueBlend:
    """A scene, and its truth: stamps (K, C, P, P) in flux, their first pixels (K, 2), sources as observed
    (K, C, H, W), each alone's signal-to-noise (K,)."""

    scene: Scene
    stamps: np.ndarray
    corners: np.ndarray
    sources: np.ndarray
    snr: np.ndarray


def of_bands(survey: Survey, bands: Sequence[str]) -> Survey:
    """A survey of some of its bands. Raises: ValueError for others."""
    if not set(bands) <= set(survey.bands):
        raise ValueError(f"expected bands of {', '.join(survey.bands)}, received {', '.join(bands)}")
    rows = [survey.bands.index(band) for band in bands]
    names = ("bands", "zeropoints", "psf_fwhm", "sky", "exposure", "throughputs")
    some: dict[str, Any] = {name: tuple(getattr(survey, name)[row] for row in rows) for name in names}
    return replace(survey, **some)


def noise_deviation(survey: Survey) -> np.ndarray:
    """(C,) of a pixel's noise, in flux of COADD_ZEROPOINT."""
    zero = np.array(survey.flux_zeropoints)
    return np.sqrt(survey.sky_variance) * 10 ** (-0.4 * (zero - COADD_ZEROPOINT))


def psf_images(survey: Survey) -> np.ndarray:
    """(C, h, w) of sum 1, pixels included."""
    import galsim

    pixel = galsim.Pixel(survey.pixel_scale)
    drawn = [
        galsim.Convolve(psf, pixel)
        .drawImage(nx=PSF_SIDE, ny=PSF_SIDE, scale=survey.pixel_scale, method="no_pixel")
        .array
        for psf in survey.psfs()
    ]
    return np.stack([image / image.sum() for image in drawn]).astype(np.float32)


def blends(
    stamps: np.ndarray,
    model_sigma: float,
    number: int,
    sources: tuple[int, int] = (1, 6),
    snr: tuple[float, float] = (5, 500),
    survey: Survey = SURVEYS["hsc"],
    seed: int = 0,
    image: int = SIDE,
) -> list[TrueBlend]:
    """`number` blends of galaxies taken from stamps (N, C, P, P) in turn; signal-to-noise evenly in its logarithm,
    from FAINTEST_SHARE of the first of `snr` to the second over it.

    Images are of `image` pixels a side, stamps at the resolution of a Gaussian PSF of `model_sigma` pixels.

    Galaxies lie in clusters, each up to NEAR from one before it. Their given positions are off by an error like a
    detection's, 2 pixels over the signal-to-noise, at most half a pixel.
    """
    rng = np.random.default_rng(seed)
    psf, noise = psf_images(survey), noise_deviation(survey)
    kernel = transfer_function(psf.astype(float), model_sigma, image + 2 * MARGIN)
    side, found, used = stamps.shape[-1], [], 0
    for index in range(number):
        count = int(rng.integers(sources[0], sources[1] + 1))
        middle = _cluster(rng, count, image)
        own = stamps[(used + np.arange(count)) % len(stamps)].astype(float)
        used += count
        corners = middle - side // 2
        seen = _observe(own, corners, kernel, image)
        wanted = np.exp(rng.uniform(np.log(FAINTEST_SHARE * snr[0]), np.log(snr[1] / FAINTEST_SHARE), count))
        scale = wanted / np.sqrt(np.einsum("kcyx,c->k", seen**2, noise**-2.0))
        own, seen = own * scale[:, None, None, None], seen * scale[:, None, None, None]
        images = seen.sum(0) + noise[:, None, None] * rng.standard_normal(seen.shape[1:])
        weights = np.broadcast_to(noise[:, None, None] ** -2.0, images.shape)
        observation = Observation(
            images.astype(np.float32),
            weights.astype(np.float32),
            psf,
            survey.bands,
            zeropoints=np.full(len(survey.bands), COADD_ZEROPOINT),
            pixel_scale=survey.pixel_scale,
            name=f"blend_{seed}_{index}",
        )
        error = np.minimum(0.5, 2 / wanted)[:, None] * rng.standard_normal((count, 2))
        places = np.clip(_centroids(own) + corners + np.clip(error, -1, 1), 0, image - 1)
        scene = Scene((observation,), tuple(Source(float(y), float(x)) for y, x in places))
        found.append(TrueBlend(scene, own.astype(np.float32), corners, seen.astype(np.float32), wanted))
    return found


def _cluster(rng: np.random.Generator, count: int, image: int) -> np.ndarray:
    """(count, 2) whole pixels."""
    places = [rng.integers(EDGE + 8, image - EDGE - 8, 2)]
    while len(places) < count:
        distance, angle = rng.uniform(*NEAR), rng.uniform(0, 2 * np.pi)
        move = distance * np.array([np.sin(angle), np.cos(angle)])
        new = np.round(places[rng.integers(len(places))] + move).astype(int)
        inside = (new >= EDGE).all() and (new < image - EDGE).all()
        if inside and min(np.hypot(*(new - old)) for old in places) >= NEAR[0]:
            places.append(new)
    return np.array(places)


def _observe(stamps: np.ndarray, corners: np.ndarray, kernel: np.ndarray, image: int) -> np.ndarray:
    """(K, C, H, W) each source alone, in float64."""
    count, side = len(stamps), stamps.shape[-1]
    place = Place(tf.constant(corners[:, None] + MARGIN), side, image + 2 * MARGIN, tf.float64)
    kernels = tf.constant(np.broadcast_to(kernel, (count, *kernel.shape)), tf.complex128)
    convolve = Convolve(kernels, image + 2 * MARGIN, MARGIN, (image, image))
    return convolve(place(tf.constant(stamps[:, None], tf.float64))).numpy()


def _centroids(stamps: np.ndarray) -> np.ndarray:
    """(K, 2) flux-weighted, within each stamp."""
    light = np.maximum(stamps.sum(1), 0)
    t, total = np.arange(light.shape[-1]), light.sum((1, 2))
    return np.stack([light.sum(2) @ t / total, light.sum(1) @ t / total], 1)


def unit(stamps: np.ndarray) -> np.ndarray:
    """At unit scale."""
    return stamps / flux_scale(stamps)[:, None, None, None]
