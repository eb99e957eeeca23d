"""Measure catalogues: fluxes, magnitudes, positions, sizes, shapes, blendedness, their errors, and flags.

Sizes and positions are in pixels of the first observation, fluxes in the unit of the first observation that has the
band, ellipticities |e| = (a - b) / (a + b). The definitions of signal-to-noise and blendedness hold for a source as
observed, over all bands and unmasked pixels, with w the inverse variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeblend.catalog.columns import describe
from tfdeblend.catalog.result import Deblended, positions_in_views
from tfdeblend.catalog.windows import Windows, box
from tfdeblend.data.observation import band_scales
from tfdeblend.data.photometry import WAVELENGTHS
from tfdeblend.data.psf import choose_model_sigma, fwhm
from tfdeblend.forward.shapes import fit_size
from tfdeblend.galaxies.moments import GAUSSIAN_HALF_LIGHT, adaptive_moments

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.catalog.result import View
    from tfdeblend.data.observation import Observation
    from tfdeblend.data.scene import Scene

LARGE_CHI2, SMALL_CHI2 = 2.0, 0.5
BY_CHANCE = 1e-4  # probability of a smaller chi-square: that of few pixels may well be below 0.5
BLUER = 0.1  # mag beyond the Rayleigh-Jeans law, for emission lines and the bands of other cameras
COLOUR_SNR = 5.0  # of a flux, for its colour, and of how far that is out
PARAMETERS = 7  # of a source beside its fluxes, which leave as many pixels fewer free
TRUNCATED_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Shapes:
    """Positions, half-light radii and ellipticities of K sources, in pixels of the model frame.

    y, x, size, e1, e2: (K,) each. errors: (K, 5) in this order.
    """

    y: np.ndarray
    x: np.ndarray
    size: np.ndarray
    e1: np.ndarray
    e2: np.ndarray
    errors: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """(K, 2) of (y, x)."""
        return np.stack([self.y, self.x], 1)


def flux_errors(flux_cov: np.ndarray) -> np.ndarray:
    """(K, C) standard deviations, from the covariances (C, K, K) of the fluxes."""
    return np.sqrt(np.diagonal(flux_cov, axis1=1, axis2=2)).T


def overlap(light: Windows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure signal-to-noise sqrt(sum w m^2) and blendedness 1 - <m, m> / <m, all>, (K,), of sources' light."""
    total = light.total()
    own, shared, power = np.zeros((3, len(light)))
    for k, (here, pixels) in enumerate(light):
        m = pixels.astype(float)
        own[k], shared[k], power[k] = (m**2).sum(), (m * total[here]).sum(), (m**2 * weights[here]).sum()
    return np.sqrt(power), 1 - own / np.where(shared > 0, shared, np.inf)


def is_truncated(stamps: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Return (K,) whether more than TRUNCATED_SHARE of the fluxes (K, C) is missing from the stamps (K, C, P, P)."""
    return np.abs(stamps.sum((1, 2, 3), dtype=float)) < (1 - TRUNCATED_SHARE) * np.abs(flux.sum(1))


def border_snr(observation: Observation, stamps: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Measure (K,) the signal-to-noise of each source's light on the outermost pixels of its stamp.

    Pixels outside of the image do not count.

    Args: stamps (K, C, P, P) in the observation's bands, corners (K, 2), see `Deblended`.
    """
    weights, side = observation.weights, stamps.shape[-1]
    inside = np.zeros((side, side), bool)
    inside[1:-1, 1:-1] = True
    rows, columns = np.nonzero(~inside)
    y, x = (corners[:, axis, None] + part for axis, part in enumerate((rows, columns)))
    seen = (y >= 0) & (y < weights.shape[1]) & (x >= 0) & (x < weights.shape[2])
    weight = np.where(seen, weights[:, np.where(seen, y, 0), np.where(seen, x, 0)], 0)  # (C, K, border)
    return np.sqrt(np.einsum("ckn,kcn->k", weight, stamps[:, :, rows, columns].astype(float) ** 2))


def local_chi2(light: Windows, residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Measure (K,) chi-square per unmasked pixel where each source shines.

    A pixel counts by s / (s + 1), s being the source's own signal-to-noise^2 there.
    """
    total, count = _local_chi2(light, residual, weights)
    return total / np.where(count > 0, count, 1)


def _local_chi2(light: Windows, residual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum (2, K) the chi-square and the pixels whose ratio is `local_chi2`."""
    inverse = np.sqrt(weights.astype(float))  # of the noise: squares are of numbers without a unit
    squares, found = (inverse * residual) ** 2, np.zeros((2, len(light)))
    for k, (here, pixels) in enumerate(light):
        power = (np.maximum(pixels, 0) * inverse[here]) ** 2
        share = power / (power + 1)
        found[:, k] = (share * squares[here]).sum(), share[weights[here] > 0].sum()
    return found


def _chi2_of_views(views: Sequence[View]) -> np.ndarray:
    """Sum (2, K) the chi-square and the pixels of `local_chi2` over what all observations show."""
    pairs = ((view, np.nan_to_num(view.residual)) for view in views)
    return np.sum([_local_chi2(view.light, left, view.observation.weights) for view, left in pairs], 0)


def chi2_flags(chi2: np.ndarray, count: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """Raise (K,) the bits BAD_FIT and OVERSTATED for chi-squares per pixel (K,) over so many pixels (K,).

    A pixel counts less where its noise is correlated with its neighbours': n pixels as n / sum of rho^2.
    """
    from scipy.special import gammaincinv

    known = [view.observation.noise_correlation for view in views]
    repeated = max(1.0 if one is None else float((one**2).sum((1, 2)).max()) for one in known)
    free = np.maximum(count - PARAMETERS - sum(len(view.observation.bands) for view in views), 1) / repeated
    least = 2 * gammaincinv(free / 2, BY_CHANCE) * repeated / np.maximum(count, 1)
    small = (count > 0) & (chi2 < np.minimum(least, SMALL_CHI2))
    return np.where(chi2 > LARGE_CHI2, BAD_FIT, 0) | np.where(small, OVERSTATED, 0)


def with_chi2(table: Table, chi2: np.ndarray, views: Sequence[View]) -> Table:
    """Replace the chi-square (K,) of a catalogue by that of samples, the mean of their own, and its flags."""
    table["chi2"][:] = chi2
    table["flags"] = (table["flags"] & ~(BAD_FIT | OVERSTATED)) | chi2_flags(chi2, _chi2_of_views(views)[1], views)
    return table


def bluer_than_anything(scene: Scene, flux: np.ndarray, error: np.ndarray) -> tuple[str, str] | None:
    """Find two bands in which most of two and more sources are bluer than the Rayleigh-Jeans law, f ~ nu^2.

    That is the limit of what is hot; stars and galaxies at any redshift are redder but for their lines. It tells bands
    in the wrong order, and zero points that are none of AB.

    Args: flux, error (K, C) in the bands of the scene, whose names end in u, g, r, i, z, y, j, h or k.
    """
    known = [(index, WAVELENGTHS.get(band[-1:].lower())) for index, band in enumerate(scene.bands)]
    placed = sorted(((wave, index) for index, wave in known if wave is not None))
    if scene.zeropoints is None or len({wave for wave, _ in placed}) < len(placed):
        return None
    bright = np.where(flux > COLOUR_SNR * error, flux, np.nan)
    magnitude, spread = scene.zeropoints - 2.5 * np.log10(bright), 2.5 / np.log(10) * error / bright
    for (short, blue), (long, red) in combinations(placed, 2):
        colour = magnitude[:, blue] - magnitude[:, red]
        excess = -5 * np.log10(long / short) - BLUER - colour
        seen = np.isfinite(colour)
        if seen.sum() > 1 and (excess > COLOUR_SNR * np.hypot(spread[:, blue], spread[:, red])).sum() > seen.sum() / 2:
            return scene.bands[blue], scene.bands[red]
    return None


def catalog(
    result: Deblended,
    shapes: Shapes,
    flux: np.ndarray,
    runtime_ms: float,
    converged: bool | np.ndarray,
    taken: np.ndarray | bool = False,
) -> Table:
    """Measure the catalogue of a scene, a row a source.

    Args:
      result: everything but its catalogue. What its views show of the sources becomes positions, signal-to-noise,
        chi-square and flags; `flux_cov` the errors of the fluxes.
      shapes: sizes, ellipticities and all errors; the positions are those of the first view.
      flux: (K, C) in the bands of the scene. runtime_ms: of the scene.
      converged: of all sources or (K,) of each; else they are flagged. taken: (K,) as points, though not declared so.
    """
    from astropy.table import Table

    scene, observation, views = result.scene, result.scene.observation, result.views
    y, x = views[0].positions.T
    columns: dict[str, Any] = {}
    columns["id"] = [source.id for source in scene.sources]
    columns["x"], columns["y"] = x, y
    nowhere = unseen(views, scene.bands, shapes.size)
    columns |= _fluxes(scene, *(np.where(nowhere, np.nan, part) for part in (flux, flux_errors(result.flux_cov))))
    if observation.wcs is not None:
        sky = observation.sky(y, x)
        columns["ra"], columns["dec"] = sky.ra.deg, sky.dec.deg
    for column, name in enumerate(("y", "x", "size", "e1", "e2")):
        if name not in ("x", "y"):
            columns[name] = getattr(shapes, name)
        columns[f"{name}_err"] = shapes.errors[:, column]
    columns["runtime_ms"] = np.full(len(x), runtime_ms / max(len(x), 1))
    columns["stamp_size"] = np.full(len(x), result.stamps.shape[-1])
    columns["stamp_x0"], columns["stamp_y0"] = result.corners[:, 1], result.corners[:, 0]
    overlaps = [overlap(view.light, view.observation.weights) for view in views]
    columns["blendedness"] = overlaps[0][1]
    columns["kind"] = np.where(taken, "point", _kinds(scene))
    columns["snr"] = np.sqrt(np.sum([signal**2 for signal, _ in overlaps], 0))
    total, count = _chi2_of_views(views)
    columns["chi2"] = total / np.where(count > 0, count, 1)
    raised = _flags(result, flux) | from_views(views, scene.bands) | np.where(nowhere.any(1), UNSEEN, 0)
    raised |= chi2_flags(columns["chi2"], count, views)
    raised |= np.where(converged, 0, NOT_CONVERGED) | np.where(taken, TAKEN_AS_POINT, 0)
    columns["primary"], columns["flags"] = (raised & (EDGE | MASKED)) == 0, raised
    return describe(Table(columns), scene)


def remeasure(result: Deblended) -> Table:
    """Measure the catalogue of a saved result on its stamps: fluxes as their sums, shapes from weighted moments.

    Errors of positions and shapes are the saved catalogue's, since stamps alone do not tell them.
    """
    flux = result.stamps.sum((2, 3), dtype=float)
    sigma = float(result.header.get("modelsig") or choose_model_sigma(result.scene))
    measured = stamp_shapes(result.stamps, result.corners, sigma)
    places = positions_in_views(result.scene, measured.positions, result.calibration)
    views = tuple(replace(view, positions=place) for view, place in zip(result.views, places, strict=True))
    saved = result.catalog
    names = ("y_err", "x_err", "size_err", "e1_err", "e2_err")
    known = [np.asarray(saved[name], float) if name in saved.colnames else np.full(len(flux), np.nan) for name in names]
    converged = (np.asarray(saved["flags"]) & NOT_CONVERGED) == 0 if "flags" in saved.colnames else True
    runtime = float(np.sum(saved["runtime_ms"])) if "runtime_ms" in saved.colnames else 0.0
    measured = replace(measured, errors=np.stack(known, 1))
    taken = (np.asarray(saved["flags"]) & TAKEN_AS_POINT) > 0 if "flags" in saved.colnames else False
    table = catalog(replace(result, views=views), measured, flux, runtime, converged, taken)
    if "flags" in saved.colnames:
        table["flags"] |= np.asarray(saved["flags"]) & BEYOND_PRIOR
    return with_left_out(table[~result.scene.left_out], result.scene)


def with_left_out(table: Table, scene: Scene) -> Table:
    """Add a row for each source that was left out of the fit to the catalogue of the others, in the scene's order.

    It has the declared position, no number that is measured, and the flag LEFT_OUT alone.
    """
    out = scene.left_out
    if not out.any():
        return table
    full = table[np.maximum(np.cumsum(~out) - 1, 0)]
    for name in full.colnames:
        column = full[name]
        column[out] = np.nan if column.dtype.kind == "f" else np.zeros((), column.dtype)
    full["id"] = [source.id for source in scene.sources]
    full["kind"] = np.where(out, _kinds(scene), full["kind"])
    y, x = scene.positions[out].T
    full["x"][out], full["y"][out], full["flags"][out] = x, y, LEFT_OUT
    if scene.observation.wcs is not None:
        sky = scene.observation.sky(y, x)
        full["ra"][out], full["dec"][out] = sky.ra.deg, sky.dec.deg
    return full


def _kinds(scene: Scene) -> list[str]:
    """Name what each source was fitted as at first: what is not declared a point, as a galaxy."""
    return ["point" if source.kind == "point" else "galaxy" for source in scene.sources]


def stamp_shapes(stamps: np.ndarray, corners: np.ndarray, model_sigma: float) -> Shapes:
    """Measure stamps (K, C, P, P) in the model frame, summed over bands; the model PSF is taken off in quadrature.

    Positions are flux-weighted means, ellipticities adaptive moments (Bernstein and Jarvis 2002), sizes the half-light
    radius along the ellipse of these moments. Exact for Gaussians; for a Sersic profile the size is good to some 5%
    above one pixel.
    """
    light = np.maximum(stamps.sum(1, dtype=float), 0)
    t = np.arange(light.shape[-1])
    total = np.maximum(light.sum((1, 2)), np.finfo(float).tiny)
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
    """Measure the noise and the PSF's width in each band of the first observation, for a result's header."""
    header: dict[str, float] = {}
    observation = scene.observation
    for index, (noise, width) in enumerate(zip(band_scales(observation), fwhm(observation.psf), strict=True)):
        header[f"noise{index}"], header[f"fwhm{index}"] = float(noise), float(width)
    return header


def _fluxes(scene: Scene, flux: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """Make columns of fluxes, magnitudes and colours from fluxes and errors (K, C), NaN where there are none."""
    columns = {}
    for index, band in enumerate(scene.bands):
        columns[f"flux_{band}"], columns[f"flux_err_{band}"] = flux[:, index], error[:, index]
        if scene.zeropoints is not None:
            positive = np.where(flux[:, index] > 0, flux[:, index], np.nan)
            columns[f"mag_{band}"] = scene.zeropoints[index] - 2.5 * np.log10(positive)
            columns[f"mag_err_{band}"] = 2.5 / np.log(10) * error[:, index] / positive
    if scene.zeropoints is not None:
        for blue, red in pairwise(scene.bands):
            columns[f"color_{blue}_{red}"] = columns[f"mag_{blue}"] - columns[f"mag_{red}"]
    return columns


def _flags(result: Deblended, flux: np.ndarray) -> np.ndarray:
    """Raise (K,) the bits TRUNCATED and EDGE, by what the first observation shows. flux: (K, C)."""
    scene, view = result.scene, result.views[0]
    own, (_, height, width) = list(scene.band_indices(scene.observation)), scene.observation.shape
    raised = np.where(is_truncated(result.stamps[:, own], flux[:, own]), TRUNCATED, 0)
    y, x = view.positions.T
    away = np.min([y, x, height - 1 - y, width - 1 - x], axis=0)
    return raised | np.where(away < fwhm(view.observation.psf).max(), EDGE, 0)


LARGER_STAMPS = (96, 128, 160, 192)  # pixels a side, where a galaxy needs them; what is larger still is cut

VISIBLE = 3.0  # signal-to-noise of a galaxy's light on its stamp's outermost pixels, above which a cut shows


def side_wanted(scene: Scene, stamps: np.ndarray, corners: np.ndarray, flux: np.ndarray) -> int:
    """Return the side P of stamps that would hold what a fit lost at their edges: up to twice as large, or the same.

    It is larger only where the first observation sees the cut: in 21 of 97 real HSC blends some galaxy is flagged, most
    of them faint ones with a broad fit; larger stamps then change the image by less than a tenth of its noise (rms),
    for three times the time.

    Args: stamps (K, C, P, P), corners (K, 2), flux (K, C), see `Deblended`.
    """
    side, (_, height, width) = stamps.shape[-1], scene.observation.shape
    own = list(scene.band_indices(scene.observation))
    stamps, flux = stamps[:, own], flux[:, own]
    cut = is_truncated(stamps, flux)
    if not cut.any() or border_snr(scene.observation, stamps[cut], corners[cut]).max() <= VISIBLE:
        return side
    wanted = min(2 * side, 2 * max(height, width), LARGER_STAMPS[-1])
    return fit_size(wanted, LARGER_STAMPS) if wanted > side else side


NOT_CONVERGED, TRUNCATED, EDGE, MASKED, BAD_FIT, UNDECLARED, BEYOND_PRIOR, UNSEEN, SATURATED, LEFT_OUT = (
    2**bit for bit in range(10)
)
OVERSTATED, TAKEN_AS_POINT = 2**10, 2**11
FLAG_NAMES = {
    NOT_CONVERGED: "the fit stopped before it converged",
    TRUNCATED: "more than 5% of the flux lies outside of the stamp",
    EDGE: "within a PSF's width of the image's edge",
    MASKED: "the central pixel is masked in some band",
    BAD_FIT: "chi-square per pixel above 2 where this source shines",
    UNDECLARED: "an undeclared source shines on this one's light",
    BEYOND_PRIOR: "larger than the learned prior's stamps, or without light: near the bulge-disk fit",
    UNSEEN: "all masked in some band: its flux there is NaN",
    SATURATED: "saturated pixels within a PSF's width of its centre",
    LEFT_OUT: "not fitted: outside of the image, without data in any band, or without a position",
    OVERSTATED: "chi-square per pixel below 0.5 where this source shines: the noise is overstated",
    TAKEN_AS_POINT: "taken as a point, which no kind was declared for: declare it a galaxy if it is one",
}


def from_views(views: Sequence[View], bands: Sequence[str]) -> np.ndarray:
    """Raise (K,) the bits MASKED, UNDECLARED and SATURATED of each source.

    A source is masked if, in some band, all views that have the band mask it; it is saturated, or an undeclared source
    shines on it, if some view shows so.
    """
    count = len(views[0].positions)
    masked, undeclared, saturated = np.ones((count, len(bands)), bool), np.zeros(count, bool), np.zeros(count, bool)
    for number, view in enumerate(views):
        own, (_, height, width) = [bands.index(band) for band in view.observation.bands], view.observation.shape
        row, column = np.round(view.positions).astype(int).T
        beyond = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        masked[:, own] &= (view.observation.weights[:, row, column] <= 0).T | (beyond[:, None] & (number > 0))
        if view.observation.saturated is not None:
            radius = np.full(count, fwhm(view.observation.psf).max())
            saturated |= _near(view.positions, view.observation.saturated, radius).any(1)
        if view.undeclared is not None and len(view.undeclared):
            y = np.clip(np.round(np.asarray(view.undeclared["y"])).astype(int), 0, height - 1)
            x = np.clip(np.round(np.asarray(view.undeclared["x"])).astype(int), 0, width - 1)
            inverse = np.sqrt(view.observation.weights[:, y, x])
            for k, ((_, rows, columns), pixels) in enumerate(view.light):
                on = (y >= rows.start) & (y < rows.stop) & (x >= columns.start) & (x < columns.stop)
                light = np.maximum(pixels[:, y[on] - rows.start, x[on] - columns.start], 0) * inverse[:, on]
                undeclared[k] |= (light.sum(0) > 1).any()
    return np.where(masked.any(1), MASKED, 0) | np.where(undeclared, UNDECLARED, 0) | np.where(saturated, SATURATED, 0)


def unseen(views: Sequence[View], bands: Sequence[str], size: np.ndarray) -> np.ndarray:
    """Tell (K, C) which source has no unmasked pixel in which band within its half-light radius and a PSF's width.

    size: (K,) half-light radii in pixels of the first observation.
    """
    nowhere = np.ones((len(size), len(bands)), bool)
    for view in views:
        radius = np.nan_to_num(size) * view.scale + fwhm(view.observation.psf).max()
        own = [bands.index(band) for band in view.observation.bands]
        nowhere[:, own] &= ~_near(view.positions, view.observation.valid, radius)
    return nowhere


def _near(positions: np.ndarray, pixels: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Tell (K, C) whether some of `pixels` (C, H, W) bool is within `radius` (K,) pixels, at least 1, of a position."""
    found = np.zeros((len(positions), len(pixels)), bool)
    for k, (place, most) in enumerate(zip(positions, np.maximum(radius, 1), strict=True)):
        first, last = (np.clip(edge, 0, pixels.shape[1:]).astype(int) for edge in (place - most, place + most + 1))
        window = pixels[box(first, last)]
        y, x = np.indices(window.shape[1:]) + (first - place)[:, None, None]
        found[k] = window[:, np.hypot(y, x) < most].any(1)
    return found
