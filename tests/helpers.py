"""Synthetic scenes and results, drawn with NumPy alone, for tests that need no deblender."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter

from tfdeblend.catalog.result import Calibration, Deblended, View, positions_in_views
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source

STAMP = 15  # pixels, side


def gaussian(shape: tuple[int, int], y: float, x: float, sigma: float) -> np.ndarray:
    """(H, W) Gaussian of unit flux."""
    rows, columns = np.indices(shape)
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def elliptical(side: int, y: float, x: float, covariance: tuple[float, float, float]) -> np.ndarray:
    """(side, side) Gaussian of unit flux with covariance yy, yx, xx."""
    yy, yx, xx = covariance
    rows, columns = np.indices((side, side))
    dy, dx, determinant = rows - y, columns - x, yy * xx - yx**2
    quadratic = (xx * dy**2 - 2 * yx * dy * dx + yy * dx**2) / determinant
    return np.exp(-0.5 * quadratic) / (2 * np.pi * np.sqrt(determinant))


def smooth_correlation(sigma: float, window: int = 12) -> np.ndarray:
    """(2 window + 1, 2 window + 1) of white noise smoothed by SciPy with a Gaussian of `sigma` pixels; 0: not."""
    point = np.zeros((2 * window + 41, 2 * window + 41))
    point[window + 20, window + 20] = 1
    kernel = gaussian_filter(point, sigma) if sigma else point
    covariance = np.fft.fftshift(np.fft.ifft2(np.abs(np.fft.fft2(kernel)) ** 2).real)
    return covariance[20:-20, 20:-20] / covariance.max()


def smooth_noise(shape: tuple[int, ...], sigma: float, seed: int) -> np.ndarray:
    """White noise (..., H, W) smoothed by SciPy, of variance 1, cut so that nothing of its edges is left."""
    height, width = shape[-2:]
    white = np.random.default_rng(seed).normal(size=(*shape[:-2], height + 40, width + 40))
    if not sigma:
        return white[..., 20:-20, 20:-20]
    smooth = gaussian_filter(white, [0] * (len(shape) - 2) + [sigma] * 2)[..., 20:-20, 20:-20]
    point = np.zeros((41, 41))
    point[20, 20] = 1
    return smooth / np.sqrt((gaussian_filter(point, sigma) ** 2).sum())


def make_scene(
    name: str = "blend",
    bands: str = "grizy",
    shape: tuple[int, int] = (40, 50),
    sources: int = 3,
    seed: int = 0,
) -> tuple[Scene, np.ndarray]:
    """A scene with noise of sigma 1 and a masked corner, and its noiseless sources (K, C, H, W)."""
    rng = np.random.default_rng(seed)
    positions = np.column_stack([rng.uniform(2, size - 3, sources) for size in shape])
    fluxes = rng.lognormal(6, 1, (sources, 1)) * np.linspace(1, rng.uniform(0.5, 3, sources), len(bands)).T
    widths = rng.uniform(1.5, 4, sources)
    images = np.stack([gaussian(shape, y, x, width) for (y, x), width in zip(positions, widths, strict=True)])
    truth = (fluxes[:, :, None, None] * images[:, None]).astype(np.float32)
    weights = np.ones_like(truth[0])
    weights[:, : shape[0] // 6, : shape[1] // 6] = 0
    observation = Observation(
        images=truth.sum(0) + rng.normal(size=weights.shape),
        weights=weights,
        psf=np.stack([gaussian((15, 15), 7, 7, 1.5)] * len(bands)),
        bands=tuple(bands),
        name=name,
        zeropoints=np.full(len(bands), 27.0),
    )
    return Scene(observation, tuple(Source(y, x, id=str(i)) for i, (y, x) in enumerate(positions))), truth


def on_sky(pixels: float, degrees: float = 0.0, shape: tuple[int, int] = (40, 50)) -> WCS:
    """A WCS of pixels of so many arcsec, turned about the middle of an image."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    wcs = WCS(naxis=2)
    wcs.wcs.cd, wcs.wcs.crval = pixels / 3600 * np.array([[-c, s], [s, c]]), [150, 2]
    wcs.wcs.crpix, wcs.wcs.ctype = (np.array(shape[::-1]) + 1) / 2, ["RA---TAN", "DEC--TAN"]
    return wcs


def make_joint(samples: int = 0) -> Deblended:
    """A perfect result for two observations: the second has coarser, turned pixels, another unit and other bands."""
    scene, truth = make_scene("first", "gr")
    first = replace(scene.observation, wcs=on_sky(0.2), unit="adu", notes=("cut",))
    shape, rng = (30, 34), np.random.default_rng(1)
    second = Observation(
        images=np.zeros((2, *shape)),
        weights=np.full((2, *shape), 0.25),
        psf=np.stack([gaussian((15, 15), 7, 7, 1.5)] * 2),
        bands=("r", "i"),
        name="second",
        wcs=on_sky(0.3, 20, shape),
        zeropoints=np.array([27.0, 26.0]),
        unit="electron",
        noise_correlation=smooth_correlation(0.5),
        saturated=np.indices((2, *shape)).sum(0) < 3,
    )
    calibration = Calibration(
        np.array([[0.1, -0.2], [-0.1, 0.2]]), (np.array([1.0, 0.99]), np.array([1.01, 1.0])), np.full((2, 2), 0.01)
    )
    joint = Scene((first, second), scene.sources)
    places = positions_in_views(joint, scene.positions + calibration.shift[0], calibration)[1]
    fluxes = truth.sum((2, 3))
    models = np.stack([gaussian(shape, y, x, 2.0) for y, x in places])
    models = (fluxes[:, :, None, None] * models[:, None]).astype(np.float32)
    images = models.sum(0) + 3 + rng.normal(scale=2, size=models.shape[1:])
    joint = Scene((first, replace(second, images=images)), scene.sources)
    alone = result_of(Scene(first, scene.sources), truth, samples)
    stamps = np.concatenate([alone.stamps, alone.stamps[:, 1:]], 1)
    table = alone.catalog
    table["flux_i"], table["flux_err_i"] = fluxes[:, 1], np.full(len(fluxes), 5.0)
    undeclared = Table({"x": [3.0, 20.0], "y": [4.0, 2.0], "snr": [9.0, 8.0]})
    view = View(
        observation=joint.fitted(1),
        model=models.sum(0) + np.float32(3),
        light=Windows.whole(models),
        background=np.full(2, 3.0),
        positions=places,
        scale=joint.maps[1].area ** -0.5,
        light_std=Windows.whole(np.abs(models) + 1) if samples else None,
        undeclared=undeclared,
    )
    return replace(
        alone,
        scene=joint,
        views=(*alone.views, view),
        stamps=stamps,
        flux_cov=np.concatenate([alone.flux_cov, alone.flux_cov[1:]]),
        catalog=table,
        calibration=calibration,
        samples=None if alone.samples is None else np.concatenate([alone.samples, alone.samples[:, :, 1:]], 2),
    )


def with_view(result: Deblended, **changes: object) -> Deblended:
    """The result with changes to what its first observation shows, and to the observation itself."""
    first, *others = result.views
    views = (replace(first, **changes), *others)  # type: ignore[arg-type]
    observations = (views[0].observation, *result.scene.observations[1:])
    return replace(result, views=views, scene=Scene(observations, result.scene.sources))


def make_deblended(samples: int = 0, **scene: object) -> Deblended:
    """A perfect result, whose residual is the noise of the data."""
    return result_of(*make_scene(**scene), samples=samples)  # type: ignore[arg-type]


def result_of(scene: Scene, models: np.ndarray, samples: int = 0) -> Deblended:
    """The result that takes the models (K, C, H, W) for the sources of a scene."""
    count, bands = models.shape[:2]
    positions = scene.positions
    corners = np.clip(positions.astype(int) - STAMP // 2, 0, None)
    padded = np.pad(models, ((0, 0), (0, 0), (0, STAMP), (0, STAMP)))
    stamps = np.stack([m[:, y : y + STAMP, x : x + STAMP] for m, (y, x) in zip(padded, corners, strict=True)])
    table = Table({"id": [source.id for source in scene.sources], "x": positions[:, 1], "y": positions[:, 0]})
    table["kind"] = [source.kind for source in scene.sources]
    for band, flux in zip(scene.observation.bands, models.sum((2, 3)).T, strict=True):
        table[f"flux_{band}"], table[f"flux_err_{band}"] = flux, np.full(count, 5.0)
    table["snr"] = models.sum((1, 2, 3)) / 10
    table["flags"] = np.zeros(count, int)
    table["stamp_size"], table["stamp_x0"], table["stamp_y0"] = np.full(count, STAMP), corners[:, 1], corners[:, 0]
    noise = np.random.default_rng(0).normal(scale=0.1, size=(samples, *stamps.shape)).astype(np.float32)
    view = View(
        observation=scene.observation,
        model=models.sum(0),
        light=Windows.whole(models),
        background=np.zeros(bands),
        positions=positions,
        light_std=Windows.whole(np.abs(models) + 1) if samples else None,
        undeclared=Table({"x": [scene.observation.shape[2] / 2], "y": [5.0], "snr": [6.0]}),
    )
    result = Deblended(
        scene=scene,
        views=(view,),
        stamps=stamps,
        corners=corners,
        flux_cov=np.stack([25 * np.eye(count)] * bands),
        catalog=table,
        header={"method": "map", "prior": "sersic", "version": "0", "seed": 0, "converged": True},
        samples=stamps + noise if samples else None,
    )
    result.header["chi2"] = result.chi2  # type: ignore[index]
    return result


def write_scene(folder: Path, name: str = "blend", **kwargs: object) -> Path:
    """A scene as `<folder>/<name>.npz`; keywords of `make_scene`."""
    path = folder / f"{name}.npz"
    make_scene(name=name, **kwargs)[0].write(path)  # type: ignore[arg-type]
    return path
