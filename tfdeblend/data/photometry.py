"""Scales of fluxes in each band: the noise, and the flux of a reference magnitude."""

from __future__ import annotations

import numpy as np

from tfdeblend.data.observation import Observation

COADD_ZEROPOINT = 27.0  # AB magnitude of one flux unit of the stamps, as in HSC's coadds


def band_scales(observation: Observation) -> np.ndarray:
    """Measure each band's typical noise, (C,) in the observation's unit: the median of 1 / sqrt(weights) where valid.

    A band that is all masked gets the other bands' geometric mean, taken at the same AB magnitude; all get 1 where all
    are masked.
    """
    weights, reference = observation.weights.astype(float), reference_flux(observation)
    seen = np.array([bool((band > 0).any()) for band in weights])
    if not seen.any():
        return np.ones(len(weights))
    noise = np.array([np.sqrt(1 / np.median(w[w > 0])) if (w > 0).any() else 1.0 for w in weights])
    typical = np.exp(np.log(noise / reference)[seen].mean())
    return np.where(seen, noise, typical * reference)


def reference_flux(observation: Observation) -> np.ndarray:
    """The flux of AB magnitude COADD_ZEROPOINT, (C,) in the observation's unit; 1 where zero points are not known."""
    zeropoints = observation.zeropoints
    return np.ones(observation.shape[0]) if zeropoints is None else 10 ** (0.4 * (zeropoints - COADD_ZEROPOINT))
