"""The scales of fluxes: the noise of each band, and what zero points make of a flux."""

from __future__ import annotations

import numpy as np

from tfdeblend.data.observation import Observation

COADD_ZEROPOINT = 27.0  # AB: of the stamps' flux unit, as in HSC's coadds


def band_scales(observation: Observation) -> np.ndarray:
    """(C,) each band's typical noise: the median of 1 / sqrt(weights) over its valid pixels.

    Of one that is all masked, the same in AB as the other bands' geometric mean; 1 if all are masked.
    """
    weights, reference = observation.weights.astype(float), reference_flux(observation)
    seen = np.array([bool((band > 0).any()) for band in weights])
    if not seen.any():
        return np.ones(len(weights))
    noise = np.array([np.sqrt(1 / np.median(w[w > 0])) if (w > 0).any() else 1.0 for w in weights])
    typical = np.exp(np.log(noise / reference)[seen].mean())
    return np.where(seen, noise, typical * reference)


def reference_flux(observation: Observation) -> np.ndarray:
    """(C,) of AB magnitude COADD_ZEROPOINT, in the observation's unit; 1 where its zero points are not known."""
    zeropoints = observation.zeropoints
    return np.ones(observation.shape[0]) if zeropoints is None else 10 ** (0.4 * (zeropoints - COADD_ZEROPOINT))
