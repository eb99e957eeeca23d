"""Turn images into colours, the same way in every picture: an arcsinh of intensity, and residuals in sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize

from tfdeblend.data.observation import Observation

RESIDUAL_LIMIT = 5.0  # sigma
SKY = 0.035  # the grey of no light
MASKED = np.array([0.22, 0.24, 0.27])
RESIDUAL_MAP = colormaps["RdBu_r"].with_extremes(bad=MASKED)
HUE = 3.0  # softenings, below which colours fade to grey
RANGE = 50.0  # of noiseless light, from where it is white to where the stretch turns linear


@dataclass(frozen=True)
class Stretch:
    """Map images (C,H,W) to colours (H,W,3) by an arcsinh of the mean intensity, hue kept (Lupton et al. 2004).

    One band is grey, two are blue and red with their mean between them, and more are averaged in three groups.

    `scale` (C,) brings the bands to one unit. In that unit, `softening` is the intensity where the stretch turns from
    linear to logarithmic, and below a few times that the hue, then the noise's, fades to grey; `white` is shown at full
    brightness.
    """

    scale: np.ndarray
    softening: float
    white: float

    @classmethod
    def fit(cls, observation: Observation) -> Stretch:
        """Choose the stretch from the data: softening at 1 sigma of the sky, white at the brightest 0.3% of pixels."""
        images, weights, zeropoints = observation.images, observation.weights, observation.zeropoints
        bands, valid = len(images), weights > 0
        scale = np.ones(bands) if zeropoints is None else 10 ** (-0.4 * (np.asarray(zeropoints) - zeropoints[0]))
        variance = np.array([np.median(1 / w[v]) if v.any() else 0.0 for w, v in zip(weights, valid, strict=True)])
        share = cls.groups(np.eye(bands)).mean(0)  # of each band in the mean intensity
        sigma = float(np.sqrt(share**2 @ (scale**2 * variance)))
        intensity = np.tensordot(share * scale, np.where(valid, images, 0), 1)
        white = float(np.percentile(intensity[valid.any(0)], 99.7)) if valid.any() else 0.0
        softening = max(sigma, float(np.finfo(float).tiny))
        return cls(scale, softening, max(white, 15 * softening))

    @classmethod
    def of_light(cls, images: np.ndarray) -> Stretch:
        """Choose one stretch for images without noise, (...,C,H,W) in one unit: white at the brightest 0.1%."""
        white = max(float(np.percentile(images.mean(-3, dtype=float), 99.9)), float(np.finfo(np.float32).tiny))
        return cls(np.ones(images.shape[-3]), white / RANGE, white)

    @staticmethod
    def groups(images: np.ndarray) -> np.ndarray:
        """Average the bands (C,...), ordered from blue to red, into (red, green, blue); none is left out."""
        if len(images) < 3:
            return np.stack([images[-1], images.mean(0), images[0]])
        return np.stack([part.mean(0) for part in np.array_split(images[::-1], 3)])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Turn images (C,H,W) into colours (H,W,3) in [0, 1]; NaN is shown as 0."""
        colours = self.groups(np.nan_to_num(images, posinf=0, neginf=0) * self.scale[:, None, None])
        intensity = np.maximum(colours.mean(0), 1e-6 * self.softening)
        colours = intensity + (colours - intensity) * (intensity / (intensity + HUE * self.softening))
        shown = np.arcsinh(intensity / self.softening) / np.arcsinh(self.white / self.softening)
        colours = np.maximum(colours, 0) * (shown / intensity)
        colours /= np.maximum(colours.max(0), 1)  # a saturated pixel keeps its hue
        return SKY + (1 - SKY) * np.moveaxis(colours, 0, -1)

    def observed(self, observation: Observation) -> np.ndarray:
        """Show the data of an observation, darkened where all bands are masked."""
        colours = self(observation.images)
        colours[~observation.valid.any(0)] *= 0.35
        return colours


def significance(residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Combine the bands of a residual (C,H,W) to unit variance, in sigma: sum_c r_c sqrt(w_c) / sqrt(valid bands).

    NaN where every band is masked.
    """
    count = (weights > 0).sum(0)
    total = (np.nan_to_num(residual, posinf=0, neginf=0) * np.sqrt(weights)).sum(0)
    return np.where(count > 0, total / np.sqrt(np.maximum(count, 1)), np.nan)


def residual_colours(sigma: np.ndarray) -> np.ndarray:
    """Colour a residual (H,W) in sigma, red where the data are brighter than the model, blue where fainter."""
    return RESIDUAL_MAP(Normalize(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)(np.ma.masked_invalid(sigma)))[..., :3]


def as_bytes(colours: np.ndarray) -> np.ndarray:
    """Turn colours in [0, 1] into bytes; what lies beyond is clipped."""
    return (255 * np.clip(colours, 0, 1) + 0.5).astype(np.uint8)
