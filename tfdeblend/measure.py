"""Catalogues: fluxes, magnitudes, positions, sizes, shapes, signal-to-noise, blendedness, and their errors.

Sizes and positions are in pixels, fluxes in the image's unit, ellipticities |e| = (a - b) / (a + b). The definitions of
signal-to-noise and blendedness hold for a source as observed, over all bands and unmasked pixels, with w the inverse
variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tfdeblend.batch import band_scales, choose_model_sigma, psf_fwhm
from tfdeblend.initialize import GAUSSIAN_HALF_LIGHT, adaptive_moments

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.deblended import Deblended
    from tfdeblend.scene import Scene

# Bits of the catalogue's `flags`.
NOT_CONVERGED, TRUNCATED, EDGE, MASKED, BAD_FIT, UNDECLARED, BEYOND_PRIOR = 1, 2, 4, 8, 16, 32, 64
FLAG_NAMES = {
    NOT_CONVERGED: "the fit stopped before it converged",
    TRUNCATED: "more than 5% of the flux lies outside of the stamp",
    EDGE: "within a PSF's width of the image's edge",
    MASKED: "the central pixel is masked in some band",
    BAD_FIT: "chi-square per pixel above 2 where this source shines",
    UNDECLARED: "an undeclared source shines on this one's light",
    BEYOND_PRIOR: "larger than the learned prior's stamps, or without light: near the bulge-disk fit",
}
LARGE_CHI2 = 2.0
TRUNCATED_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Shapes:
    """(K,) each: positions and half-light radius in pixels, e1, e2; `errors` (K, 5) in the order y, x, size, e1, e2."""

    y: np.ndarray
    x: np.ndarray
    size: np.ndarray
    e1: np.ndarray
    e2: np.ndarray
    errors: np.ndarray


def overlap(sources: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signal-to-noise sqrt(sum w m^2) and blendedness 1 - <m, m> / <m, all>, each (K,), of sources (K, C, H, W)."""
    total = sources.sum(0)
    own = np.einsum("kchw,kchw->k", sources, sources)
    shared = np.einsum("kchw,chw->k", sources, total)
    signal = np.sqrt(np.einsum("kchw,kchw,chw->k", sources, sources, weights))
    return signal, 1 - own / np.where(shared > 0, shared, np.inf)


def local_chi2(sources: np.ndarray, residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(K,) chi-square per unmasked pixel; a pixel counts by s / (s + 1), s the source's own signal-to-noise^2 there."""
    power = np.maximum(sources, 0) ** 2 * weights
    share = power / (power + 1)
    count = np.einsum("kchw,chw->k", share, (weights > 0).astype(float))
    return np.einsum("kchw,chw->k", share, weights * residual**2) / np.where(count > 0, count, 1)


def catalog(result: Deblended, shapes: Shapes, flux: np.ndarray, runtime_ms: float, converged: bool) -> Table:
    """The catalogue of one scene, a row a source. flux: (K, C) in the image's unit; errors are from `flux_cov`."""
    from astropy.table import Table

    scene, observation = result.scene, result.scene.observation
    weights, sources = observation.weights.astype(float), result.sources.astype(float)
    snr, blendedness = overlap(sources, weights)
    table = Table()
    table["id"] = [source.id for source in scene.sources]
    table["x"], table["y"] = shapes.x, shapes.y
    if observation.wcs is not None:
        sky = observation.wcs.celestial.pixel_to_world(shapes.x, shapes.y).icrs
        table["ra"], table["dec"] = sky.ra.deg, sky.dec.deg
    table["kind"] = [source.kind for source in scene.sources]
    seen = (weights > 0).any((1, 2))  # a band that is all masked tells nothing
    errors = np.sqrt(np.diagonal(result.flux_cov, axis1=1, axis2=2)).T
    _add_fluxes(table, observation, np.where(seen, flux, np.nan), np.where(seen, errors, np.nan))
    table["snr"] = snr
    for column, name in enumerate(("y", "x", "size", "e1", "e2")):
        if name not in ("x", "y"):
            table[name] = getattr(shapes, name)
        table[f"{name}_err"] = shapes.errors[:, column]
    table["blendedness"] = blendedness
    residual = np.nan_to_num(result.residual.astype(float))
    table["chi2"] = local_chi2(sources, residual, weights)
    table["flags"] = _flags(result, flux, table["chi2"], shapes, converged)
    table["primary"] = (np.asarray(table["flags"]) & (EDGE | MASKED)) == 0
    table["runtime_ms"] = np.full(len(table), runtime_ms / max(len(table), 1))
    table["stamp_size"] = np.full(len(table), result.stamps.shape[-1])
    table["stamp_x0"], table["stamp_y0"] = result.corners[:, 1], result.corners[:, 0]
    for name in ("x", "y", "x_err", "y_err", "size", "size_err"):
        table[name].unit = "pix"
    return table


def remeasure(result: Deblended) -> Table:
    """The catalogue of a saved result, measured on its stamps: fluxes as their sums, shapes from weighted moments.

    Errors of positions and shapes are the saved catalogue's, since stamps alone do not tell them.
    """
    flux = result.stamps.sum((2, 3), dtype=float)
    sigma = float(result.header.get("modelsig") or choose_model_sigma(result.scene))
    measured = stamp_shapes(result.stamps, result.corners, sigma)
    saved = result.catalog
    names = ("y_err", "x_err", "size_err", "e1_err", "e2_err")
    known = [np.asarray(saved[name], float) if name in saved.colnames else np.full(len(flux), np.nan) for name in names]
    converged = not (np.asarray(saved["flags"]) & NOT_CONVERGED).any() if "flags" in saved.colnames else True
    runtime = float(np.sum(saved["runtime_ms"])) if "runtime_ms" in saved.colnames else 0.0
    table = catalog(result, replace(measured, errors=np.stack(known, 1)), flux, runtime, converged)
    if "flags" in saved.colnames:
        table["flags"] |= np.asarray(saved["flags"]) & BEYOND_PRIOR
    return table


def stamp_shapes(stamps: np.ndarray, corners: np.ndarray, model_sigma: float) -> Shapes:
    """Shapes of stamps (K, C, P, P) in the model frame, summed over bands; the model PSF is taken off in quadrature.

    Positions are flux-weighted means, ellipticities adaptive moments (Bernstein and Jarvis 2002), sizes the half-light
    radius along the ellipse of these moments. Exact for Gaussians; for a Sersic profile the size is good to some 5%
    above one pixel.
    """
    light = np.maximum(stamps.sum(1, dtype=float), 0)
    t = np.arange(light.shape[-1])
    total = np.maximum(light.sum((1, 2)), 1e-30)
    y, x = (light.sum(2) @ t) / total, (light.sum(1) @ t) / total
    covariance = adaptive_moments(light, np.stack([y, x], 1))
    radius = np.empty(len(light))
    for k, (yy, yx, xx) in enumerate(covariance):
        dy, dx = t[:, None] - y[k], t[None] - x[k]
        r2 = xx * dy**2 - 2 * yx * dy * dx + yy * dx**2  # up to a factor
        # The n innermost pixels cover the area n, which unlike their radii grows evenly.
        growth = np.cumsum(light[k].ravel()[np.argsort(r2, axis=None)]) / total[k]
        radius[k] = np.sqrt(np.interp(0.5, np.append(0, growth), np.arange(growth.size + 1)) / np.pi)
    yy, yx, xx = covariance.T
    seen_area = np.sqrt(yy * xx - yx**2)
    yy, yx, xx = (covariance - model_sigma**2 * np.array([1, 0, 1])).T
    area = np.sqrt(np.maximum(yy * xx - yx**2, 0))
    size = np.maximum(yy + xx + 2 * area, 1e-6)
    seeing = GAUSSIAN_HALF_LIGHT * np.sqrt(seen_area - area)
    return Shapes(
        y=corners[:, 0] + y,
        x=corners[:, 1] + x,
        size=np.sqrt(np.maximum(radius**2 - seeing**2, 0)),
        e1=np.clip((xx - yy) / size, -1, 1),
        e2=np.clip(2 * yx / size, -1, 1),
        errors=np.full((len(light), 5), np.nan),
    )


def describe_scene(scene: Scene) -> dict[str, float]:
    """Noise and PSF of each band, for a result's header."""
    header: dict[str, float] = {}
    observation = scene.observation
    for index, (noise, width) in enumerate(zip(band_scales(observation), psf_fwhm(observation.psf), strict=True)):
        header[f"noise{index}"], header[f"fwhm{index}"] = float(noise), float(width)
    return header


def _add_fluxes(table: Table, observation, flux: np.ndarray, error: np.ndarray) -> None:
    for index, band in enumerate(observation.bands):
        table[f"flux_{band}"], table[f"flux_err_{band}"] = flux[:, index], error[:, index]
        if observation.unit:
            table[f"flux_{band}"].description = table[f"flux_err_{band}"].description = observation.unit
        if observation.zeropoints is not None:
            positive = np.where(flux[:, index] > 0, flux[:, index], np.nan)
            table[f"mag_{band}"] = observation.zeropoints[index] - 2.5 * np.log10(positive)
            table[f"mag_err_{band}"] = 2.5 / np.log(10) * error[:, index] / positive
    bands = observation.bands
    if observation.zeropoints is None:
        return
    for blue, red in pairwise(bands):
        table[f"color_{blue}_{red}"] = table[f"mag_{blue}"] - table[f"mag_{red}"]


def _flags(result: Deblended, flux: np.ndarray, chi2: np.ndarray, shapes: Shapes, converged: bool) -> np.ndarray:
    observation = result.scene.observation
    _, height, width = observation.shape
    flags = np.zeros(len(flux), int)
    flags |= np.where(converged, 0, NOT_CONVERGED)
    kept = np.abs(result.stamps.sum((1, 2, 3), dtype=float))
    flags |= np.where(kept < (1 - TRUNCATED_SHARE) * np.abs(flux.sum(1)), TRUNCATED, 0)
    reach = float(psf_fwhm(observation.psf).max())
    rows, columns = shapes.y, shapes.x
    away = np.min([rows, columns, height - 1 - rows, width - 1 - columns], axis=0)
    flags |= np.where(away < reach, EDGE, 0)
    row = np.clip(np.round(rows).astype(int), 0, height - 1)
    column = np.clip(np.round(columns).astype(int), 0, width - 1)
    flags |= np.where((observation.weights[:, row, column] <= 0).any(0), MASKED, 0)
    flags |= np.where(np.asarray(chi2) > LARGE_CHI2, BAD_FIT, 0)
    if result.undeclared is not None and len(result.undeclared):
        y = np.clip(np.round(np.asarray(result.undeclared["y"])).astype(int), 0, height - 1)
        x = np.clip(np.round(np.asarray(result.undeclared["x"])).astype(int), 0, width - 1)
        light = (np.maximum(result.sources, 0) * np.sqrt(observation.weights)).sum(1)[:, y, x]
        flags |= np.where((light > 1).any(1), UNDECLARED, 0)
    return flags
