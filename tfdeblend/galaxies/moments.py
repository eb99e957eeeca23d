"""Rough sizes and shapes to start a fit from: weighted second moments of each source's symmetric part."""

from __future__ import annotations

import numpy as np

from tfdeblend.data.psf import pixels_per_arcsec
from tfdeblend.data.scene import Scene
from tfdeblend.data.sky import detection_image

HALF = 12  # pixels: half the side of the cut-outs less one half
ITERATIONS = 8
GAUSSIAN_HALF_LIGHT = 1.1774  # half-light radius of a Gaussian of sigma 1


def moments(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Half-light radius in arcsec (K,) and ellipticity (K, 2) of every source, free of the PSF where moments can.

    Neighbours are suppressed as scarlet does: of each pair of pixels opposite to each other across the source the
    fainter counts. The moments are those of Bernstein and Jarvis (2002), weighted by the Gaussian that they describe.
    Where they fail (no light, no convergence) the result is a small round source, from which every fit can start.
    """
    observation = scene.observation
    image = np.where(observation.valid.any(0), detection_image(observation.images, observation.weights)[0], 0)
    stamps = np.stack([_symmetric_cutout(image, *np.round(position).astype(int)) for position in scene.positions])
    covariance = adaptive_moments(stamps)
    psf = adaptive_moments(_center(observation.psf.mean(0))[None])
    intrinsic = np.clip(np.nan_to_num(covariance - psf), -1e3, 1e3)
    yy, yx, xx = intrinsic.T
    area = np.sqrt(np.maximum(yy * xx - yx**2, 0.05**2))
    trace = np.maximum(yy + xx, 1e-3)
    e1, e2 = (xx - yy) / (trace + 2 * area), 2 * yx / (trace + 2 * area)
    shrink = 0.8 / np.maximum(np.hypot(e1, e2), 0.8)
    radius = GAUSSIAN_HALF_LIGHT * np.sqrt(area) / pixels_per_arcsec(scene)
    return radius, np.stack([e1 * shrink, e2 * shrink], 1)


def adaptive_moments(stamps: np.ndarray, centers: np.ndarray | None = None) -> np.ndarray:
    """(K, P, P) stamps -> (K, 3) covariance (yy, yx, xx) in pixel^2 of the Gaussian that matches each best.

    centers: (K, 2) pixel (y, x) about which it is taken; None: pixel P // 2.
    """
    count, side, _ = stamps.shape
    middle = np.full((count, 2), float(side // 2)) if centers is None else centers
    y, x = (np.arange(side) - middle[:, axis, None] for axis in (0, 1))
    y, x = np.broadcast_arrays(y[:, :, None], x[:, None, :])
    products = np.stack([y * y, y * x, x * x], 1).reshape(count, 3, -1)
    flat = np.maximum(stamps, 0).reshape(len(stamps), -1)
    covariance = np.tile([4.0, 0.0, 4.0], (len(stamps), 1))
    for _ in range(ITERATIONS):
        yy, yx, xx = covariance.T
        inverse = np.stack([xx, -2 * yx, yy], 1) / np.maximum(yy * xx - yx**2, 1e-3)[:, None]
        weighted = flat * np.exp(-0.5 * np.einsum("ki,kin->kn", inverse, products))
        total = weighted.sum(1)
        # The product of two equal Gaussians has half their covariance.
        measured = 2 * np.einsum("kn,kin->ki", weighted, products) / np.maximum(total, 1e-30)[:, None]
        covariance = np.where((total > 0)[:, None], measured, covariance)
        covariance[:, [0, 2]] = np.clip(covariance[:, [0, 2]], 0.5, HALF**2)
        limit = 0.9 * np.sqrt(covariance[:, 0] * covariance[:, 2])
        covariance[:, 1] = np.clip(covariance[:, 1], -limit, limit)
    return covariance


def _symmetric_cutout(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """The fainter of each two opposite pixels around (row, column), which may lie outside of the image."""
    rows, columns = (
        np.clip(np.arange(at - HALF, at + HALF + 1), -1, side) + 1
        for at, side in zip((row, column), image.shape, strict=True)
    )
    cutout = np.pad(image, 1)[np.ix_(rows, columns)]
    return np.minimum(cutout, cutout[::-1, ::-1])


def _center(psf: np.ndarray) -> np.ndarray:
    """The PSF on an odd grid with its brightest pixel in the middle."""
    row, column = np.unravel_index(np.argmax(psf), psf.shape)
    return np.pad(psf, HALF)[row : row + 2 * HALF + 1, column : column + 2 * HALF + 1]
