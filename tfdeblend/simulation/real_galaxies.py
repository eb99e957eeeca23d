"""Real galaxies: HST images that GalSim deconvolves by their own PSFs, from a folder the user names.

The folder holds what `galsim.RealGalaxyCatalog` reads: `catalog.fits` (or one whose name ends so), the galaxies' and
PSFs' images and their noise; beside it optionally `catalog_fits.fits`, with columns `ZPHOT` and `HSC_<band>` (AB).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import DISK, relative_magnitudes, structured
from tfdeblend.simulation.rendering import Component
from tfdeblend.simulation.surveys import Colors

TRAIN_SHARE = 0.7
SPLITS = ("train", "test", "all")
MAGNITUDES = "HSC_"


@dataclass(frozen=True, eq=False)
class RealGalaxies:
    """N drawn galaxies, rotated and mirrored at random, with the methods of `parametric.Galaxies`."""

    catalogue: Any  # galsim.RealGalaxyCatalog
    rows: np.ndarray  # (N,) of the catalogue
    flux: np.ndarray  # (N, C)
    magnitude: np.ndarray  # (N,)
    redshift: np.ndarray  # (N,)
    radius: np.ndarray  # (N,) arcsec, NaN where the catalogue has none
    turn: np.ndarray  # (N,) radian
    mirror: np.ndarray  # (N,) bool
    seeds: np.ndarray  # (N,) of the padding's noise
    padding: float  # arcsec
    shrinking: np.ndarray  # (N,) factor of all lengths

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_star(self) -> np.ndarray:
        return np.zeros(len(self), bool)

    def components(self, row: int) -> list[Component]:
        """Returns the one component of a galaxy: its deconvolved image, noise included."""
        import galsim

        noise = (
            {"noise_pad_size": self.padding, "rng": galsim.BaseDeviate(int(self.seeds[row]))} if self.padding else {}
        )
        galaxy = galsim.RealGalaxy(self.catalogue, index=int(self.rows[row]), **noise).withFlux(1.0)
        if self.mirror[row]:
            galaxy = galaxy.transform(-1, 0, 0, 1)
        profile = galaxy.rotate(float(self.turn[row]) * galsim.radians).dilate(float(self.shrinking[row]))
        return [Component(profile, self.flux[row], float(np.pi / profile.stepk))]

    def catalog(self, bands: tuple[str, ...]) -> np.ndarray:
        """Returns a structured array (N,): identity, magnitude, redshift, radius and total fluxes."""
        columns = {
            "type": np.array(["real"] * len(self)),
            "ident": np.asarray(self.catalogue.ident)[self.rows].astype(str),
            "magnitude": self.magnitude,
            "redshift": self.redshift,
            "radius": self.radius * self.shrinking,
            **{f"flux_{band}": self.flux[:, b] for b, band in enumerate(bands)},
        }
        return structured(columns)


@dataclass(frozen=True)
class RealPopulation:
    """Draws from the galaxies of a folder with F814W AB magnitudes from `bright` to `faint`.

    Args:
        folder: see above.
        bright, faint: AB magnitudes.
        split: "train" or "test", by the hash of each galaxy's name: 35 and 15 of 50; or "all".
        padding: arcsec around each image filled with noise like its own, so that no edge shows in images nearly as
            sharp as HST's. 0: none, as for images from the ground, whose noise is far above it.
        shrink: least and largest factor of the galaxies' sizes. Where stamps are to be as sharp as the images, the
            deconvolved noise is brighter than most galaxies, and far less so in galaxies half as large.

    Raises:
        DataError: a wrong split or factor; when drawing, a folder without a catalogue or such galaxies.
    """

    folder: str
    bright: float = 16.0
    faint: float = 26.0
    split: str = "train"
    padding: float = 0.0
    shrink: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.shrink[0] <= self.shrink[1]:
            raise DataError("galaxies", "shrink", f"expected positive factors that rise, received {self.shrink}")
        if self.split not in SPLITS:
            raise DataError("galaxies", "split", f"expected one of {', '.join(SPLITS)}, received {self.split!r}")

    def draw(
        self, rng: np.random.Generator, number: int, colors: Colors, zeropoints: np.ndarray, bands: Sequence[str]
    ) -> RealGalaxies:
        """Draws `number` galaxies with replacement, see `parametric.Population.draw`.

        Bands without a column `HSC_<band>` get the colours of a random disk galaxy.
        """
        catalogue = read_catalogue(self.folder)
        magnitude = np.asarray(catalogue.cat["MAG"], float)
        rows = np.flatnonzero(self._chosen(catalogue) & (magnitude >= self.bright) & (magnitude <= self.faint))
        if not len(rows):
            limits = f"F814W magnitudes from {self.bright:g} to {self.faint:g}"
            raise DataError(
                self.folder, "catalog", f"expected galaxies of {limits} in split {self.split}, received none"
            )
        rows = rng.choice(rows, number)
        extra = read_extra(self.folder, catalogue)
        redshift = np.clip(extra.get("ZPHOT", np.full(len(magnitude), 0.7))[rows], 0.01, 3.5)
        none = np.zeros(number, bool)
        colour = relative_magnitudes(rng, colors, magnitude[rows], redshift, none)[:, DISK]
        mags = magnitude[rows, None] + colour
        for b, band in enumerate(bands):
            known = extra.get(MAGNITUDES + band, np.full(len(magnitude), np.nan))[rows]
            mags[:, b] = np.where(np.isfinite(known), known, mags[:, b])
        return RealGalaxies(
            catalogue,
            rows,
            10 ** (0.4 * (zeropoints - mags)),
            magnitude[rows],
            redshift,
            radius=extra.get("flux_radius", np.full(len(magnitude), np.nan))[rows] * 0.03,  # of ACS pixels
            turn=rng.uniform(0, 2 * np.pi, number),
            mirror=rng.random(number) < 0.5,
            seeds=rng.integers(1, 2**31 - 1, number),
            padding=self.padding,
            shrinking=rng.uniform(*self.shrink, number),
        )

    def _chosen(self, catalogue: Any) -> np.ndarray:
        """Returns which galaxies of the catalogue (N,) belong to the split."""
        if self.split == "all":
            return np.ones(catalogue.nobjects, bool)
        hashes = [hashlib.sha256(str(ident).encode()).hexdigest() for ident in catalogue.ident]
        train = np.argsort(np.argsort(hashes)) < round(TRAIN_SHARE * len(hashes))
        return train if self.split == "train" else ~train


def read_catalogue(folder: str) -> Any:
    """Reads the `galsim.RealGalaxyCatalog` of a folder. Raises: DataError where there is none."""
    import galsim

    path = Path(folder)
    if not path.is_dir():
        raise DataError(folder, "galaxies", "expected parametric or a folder of real galaxies, received neither")
    names = sorted(p.name for p in path.glob("*.fits") if p.name.endswith("catalog.fits"))
    names = names or sorted(p.name for p in path.glob("real_galaxy_catalog_*.fits") if "fits.fits" not in p.name)
    if not names:
        raise DataError(folder, "catalog.fits", "expected a catalogue of galsim.RealGalaxyCatalog, received none")
    try:
        return galsim.RealGalaxyCatalog(names[0], dir=str(path))
    except Exception as error:  # of GalSim, Astropy or the file system, their kinds depending on what is broken
        raise DataError(path / names[0], "catalog", f"expected a GalSim catalogue, received {error}") from error


def read_extra(folder: str, catalogue: Any) -> dict[str, np.ndarray]:
    """Reads columns of `*_fits.fits`, a row for each galaxy of the catalogue, NaN where it has none; {} if absent."""
    from astropy.table import Table

    found = sorted(Path(folder).glob("*catalog*_fits.fits"))
    if not found:
        return {}
    try:
        table = Table.read(found[0])
        rows = {str(ident).strip(): row for row, ident in enumerate(table["IDENT"])}
        order = np.array([rows.get(str(ident).strip(), -1) for ident in catalogue.ident])
        names = [n for n in table.colnames if n in ("ZPHOT", "flux_radius") or n.startswith(MAGNITUDES)]
        return {name: np.where(order < 0, np.nan, np.asarray(table[name], float)[order]) for name in names}
    except Exception as error:  # as above
        raise DataError(found[0], "catalog", f"expected a table with IDENT, received {error}") from error
