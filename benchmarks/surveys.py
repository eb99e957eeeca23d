"""Survey runs where they are hardest: galaxies of another catalogue, a crowd, and tiles of other sizes.

    python -m benchmarks.surveys cosmodc2 --out field --catalogue cosmodc2.npz
    python -m benchmarks.surveys crowd --out crowd
    tfdeblend survey field/coadd_[grizy].fits --out run --truth field/truth.fits
    tfdeblend survey field/coadd_[grizy].fits --out other --tile 256
    python -m benchmarks.surveys compare run other

The first two draw coadds with their truth, as HSC-Wide would see them under one PSF a band: `cosmodc2` scatters
galaxies of the cosmoDC2 simulation (Korytov et al. 2019; bulge, disk and knots), 60 arcmin^-2 of i < 26, and `crowd`
exponential galaxies around the middle of an image. `compare` says how far two runs of one field
agree: which detections are alike to 1e-6 pixels, and by how many of its errors a flux differs, 16 pixels and more from
all edges of tiles, and nearer to one. The file of cosmoDC2 galaxies has `rows` (N,30): id, redshift, half-light
semi-axes of bulge and disk in arcsec (major, minor of each), position angle, number of knots, shear (2), fluxes in
grizy in photons/s/cm^2, and the shares of bulge, disk and knots in grizy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from tfdeblend.survey import tables
from tfdeblend.survey.truth import match

BANDS, SCALE, ZEROPOINT = "grizy", 0.168, 27.0
SEEING = (0.77, 0.74, 0.62, 0.67, 0.68)  # arcsec
DEPTH = (26.5, 26.1, 25.9, 25.1, 24.4)  # AB magnitude of a point source at 5 sigma, HSC-Wide
# AB = 0 in photons/s/cm^2 of each band, as the catalogue's fluxes are.
AB_ZERO = 5.48e6 * np.array([0.29, 0.22, 0.17, 0.12, 0.085]) * np.array([0.4, 0.5, 0.5, 0.45, 0.25])
DENSITY, FAINTEST = 60.0, 26.0  # arcmin^-2, i
STAMP = 129  # pixels that a galaxy is drawn on
SAME, AWAY = 1e-6, 16.0  # pixels

Galaxy = Sequence[galsim.GSObject]  # in each band, of its flux


def cosmodc2(catalogue: Path, side: int, rng: np.random.Generator) -> Iterator[tuple[Galaxy, np.ndarray, np.ndarray]]:
    """Yield galaxies of a catalogue of cosmoDC2, with their places (y, x) and magnitudes."""
    rows = np.load(catalogue)["rows"]
    with np.errstate(divide="ignore"):
        magnitudes = -2.5 * np.log10(rows[:, 10:15] / AB_ZERO)
    rows, magnitudes = (part[(magnitudes[:, 2] > 19) & (magnitudes[:, 2] < FAINTEST)] for part in (rows, magnitudes))
    for _ in range(rng.poisson(DENSITY * (side * SCALE / 60) ** 2)):
        k = rng.integers(len(rows))
        yield _three_parts(rows[k], magnitudes[k], rng), rng.uniform(0, side - 1, 2), magnitudes[k]


def _three_parts(row: np.ndarray, magnitude: np.ndarray, rng: np.random.Generator) -> Galaxy:
    """A bulge, a disk and the disk's knots, sheared, at a random angle."""
    bulge, disk = (float(np.clip(np.sqrt(a * b), 0.02, 3)) for a, b in (row[2:4], row[4:6]))
    shapes = [galsim.DeVaucouleurs(half_light_radius=bulge), galsim.Exponential(half_light_radius=disk)]
    seed = galsim.BaseDeviate(int(rng.integers(1, 1 << 31)))
    shapes.append(galsim.RandomKnots(max(int(row[7]), 1), half_light_radius=disk, rng=seed))
    angle, lens = rng.uniform(0, np.pi) * galsim.radians, galsim.Shear(g1=row[8], g2=row[9])
    round_to = [float(np.clip(b / max(a, 1e-3), 0.1, 1)) for a, b in (row[2:4], row[4:6], row[4:6])]
    shapes = [each.shear(q=q, beta=angle).shear(lens) for each, q in zip(shapes, round_to, strict=True)]
    shares = row[15:].reshape(3, 5)
    shares = np.where(np.array([1, 1, row[7] > 0])[:, None] > 0, shares, 0)
    fluxes = 10 ** (-0.4 * (magnitude - ZEROPOINT)) * shares / shares.sum(0)
    return [galsim.Add([each.withFlux(f) for each, f in zip(shapes, flux, strict=True) if f > 0]) for flux in fluxes.T]


def crowd(
    number: int, radius: float, side: int, rng: np.random.Generator
) -> Iterator[tuple[Galaxy, np.ndarray, np.ndarray]]:
    """Yield exponential galaxies of i = 20 to 25 in a Gaussian of `radius` pixels around the middle."""
    for _ in range(number):
        magnitude = 20 + 5 * rng.beta(3, 1.2) + np.array([0.6, 0.25, 0, -0.15, -0.2]) + rng.normal(0, 0.2, 5)
        size = np.clip(0.25 * np.exp(rng.normal(0, 0.4)) * 10 ** (-0.1 * (magnitude[2] - 24)), 0.12, 1.2)
        e1, e2 = np.clip(rng.normal(0, 0.2, 2), -0.5, 0.5)
        shape = galsim.Exponential(half_light_radius=size).shear(g1=e1, g2=e2)
        place = np.clip(side / 2 + radius * rng.normal(size=2), 10, side - 10)
        yield [shape.withFlux(10 ** (-0.4 * (m - ZEROPOINT))) for m in magnitude], place, magnitude


def draw(out: Path, galaxies: Iterator[tuple[Galaxy, np.ndarray, np.ndarray]], side: int, seed: int) -> None:
    """Write a coadd of each band, with its variance and PSF, and the table of what is there."""
    rng = np.random.default_rng(seed)
    psfs = [galsim.Moffat(beta=3.5, fwhm=fwhm) for fwhm in SEEING]
    images, rows = [galsim.ImageD(side, side, scale=SCALE) for _ in BANDS], []
    for galaxy, (y, x), magnitude in galaxies:
        rows.append((y, x, *magnitude))
        for image, shape, psf in zip(images, galaxy, psfs, strict=True):
            drawn = galsim.Convolve(shape, psf).drawImage(
                nx=STAMP, ny=STAMP, scale=SCALE, center=galsim.PositionD(x + 1, y + 1)
            )
            overlap = drawn.bounds & image.bounds
            image[overlap] += drawn[overlap]
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [side / 2, side / 2]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    out.mkdir(parents=True, exist_ok=True)
    for band, image, psf, depth in zip(BANDS, images, psfs, DEPTH, strict=True):
        star = psf.drawImage(nx=43, ny=43, scale=SCALE, dtype=float).array
        star /= star.sum()
        variance = 10 ** (0.8 * (ZEROPOINT - depth)) / 25 * (star**2).sum() + np.maximum(image.array, 0) / 30
        noisy = image.array + rng.normal(size=variance.shape) * np.sqrt(variance)
        header = wcs.to_header()
        header.update({"FILTER": band, "MAGZERO": ZEROPOINT})
        planes = [("IMAGE", noisy, header), ("VARIANCE", variance, header), ("PSF", star, None)]
        hdus = [fits.ImageHDU(pixels.astype(np.float32), head, name=name) for name, pixels, head in planes]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(out / f"coadd_{band}.fits", overwrite=True)
    names = ["y", "x", *(f"mag_{band}" for band in BANDS)]
    Table(np.array(rows), names=names).write(out / "truth.fits", overwrite=True)


def compare(first: Path, other: Path) -> str:
    """Say how far two runs of one field, with tiles of other sizes, agree."""
    runs = [json.loads((run / "run.json").read_text()) for run in (first, other)]
    sizes = [run["settings"]["tile"] for run in runs]
    found = [tables.read(run / "detections.parquet") for run in (first, other)]
    places = [np.stack([each["y"], each["x"]], 1) for each in found]
    same = int((cKDTree(places[1]).query(places[0])[0] < SAME).sum())
    text = (
        f"tiles of {sizes[0]} and {sizes[1]} pixels: {same} of {len(places[0])} and {len(places[1])} detections alike"
    )
    objects = [
        vstack([tables.read_astropy(file) for file in sorted(run.glob("objects/**/*.parquet"))])
        for run in (first, other)
    ]
    spots = [np.stack([each["y"], each["x"]], 1) for each in objects]
    mine, theirs = match(spots[0], spots[1], 1.0)
    one, two = objects[0][mine], objects[1][theirs]
    edges = [np.abs((one[axis] + size / 2) % size - size / 2) for axis in "yx" for size in sizes]
    away = np.min(edges, 0) > AWAY
    bands = [name.removesuffix("_flux") for name in one.colnames if name.endswith("_flux")]
    moved = np.concatenate(
        [np.abs(one[f"{band}_flux"] - two[f"{band}_flux"]) / one[f"{band}_fluxErr"] for band in bands]
    )
    moved, away = np.asarray(moved, float), np.tile(away, len(bands))
    for name, chosen in ((f"{AWAY:g} pixels and more from edges", away), ("nearer", ~away)):
        values = moved[chosen & np.isfinite(moved)]
        quantiles = ", ".join(f"{np.quantile(values, q):.4f}" for q in (0.5, 0.99, 1))
        text += f"\n{len(values)} fluxes {name}: {quantiles} errors apart in the median, at 99% and at most"
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    own = ways.add_parser("cosmodc2", help="draw galaxies of cosmoDC2")
    own.add_argument("--catalogue", type=Path, required=True)
    dense = ways.add_parser("crowd", help="draw galaxies around the middle of an image")
    dense.add_argument("--number", type=int, default=800)
    dense.add_argument("--radius", type=float, default=95.0, help="pixels")
    for each, side in ((own, 2048), (dense, 640)):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--side", type=int, default=side)
        each.add_argument("--seed", type=int, default=5)
    two = ways.add_parser("compare", help="compare two runs of one field")
    two.add_argument("runs", type=Path, nargs=2)
    options = parser.parse_args(arguments)
    if options.way == "compare":
        print(compare(*options.runs))
        return
    rng = np.random.default_rng(options.seed)
    if options.way == "cosmodc2":
        galaxies = cosmodc2(options.catalogue, options.side, rng)
    else:
        galaxies = crowd(options.number, options.radius, options.side, rng)
    draw(options.out, galaxies, options.side, options.seed + 1)


if __name__ == "__main__":
    main()
