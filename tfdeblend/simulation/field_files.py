"""The files of a field: images drawn into them tile by tile, in several processes, resumable, with a manifest.

In the folder are, of each band, `field_<band>.fits` (IMAGE, MASK, VARIANCE) and `field_<band>_psf.fits`; and
`field_truth.fits` and `manifest.json`. Until all tiles are drawn the images are in the folder `.unfinished`, beside a
list of the tiles that are done; no process ever holds more than a tile.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack

from tfdeblend.errors import DataError
from tfdeblend.io.atomic import remove_leftovers, sha256, written_whole
from tfdeblend.io.masks import LSST
from tfdeblend.simulation.field import TERMS, Box, Field, FieldConfig, Objects, field_of, tiles
from tfdeblend.simulation.parametric import BULGE, DISK, KINDS, KNOTS
from tfdeblend.simulation.production import (
    MANIFEST,
    REMEDY,
    check_same,
    description,
    in_processes,
    listed,
    progress,
    read_manifest,
    write_manifest,
)
from tfdeblend.simulation.scenes import PSF_SIDE

NAME = "field"
TRUTH = f"{NAME}_truth.fits"
UNFINISHED = ".unfinished"
DONE = "tiles.txt"
LAYERS = {"IMAGE": ">f4", "MASK": ">i4", "VARIANCE": ">f4"}
PSF_SPACING = 512  # pixels at most between two places of the grid of PSFs
FITS_BLOCK = 2880  # bytes
LAW_MEANING = {
    "FWHM": "FWHM(u,v) = FWHM0 (1 + sum), in arcsec, without the pixel",
    "E1": "e1(u,v) = sum; e = (a - b) / (a + b), e1 > 0 along x",
    "E2": "e2(u,v) = sum; e2 > 0 along x = y",
    "DEPTH": "variance of the sky = SKYVAR (1 + sum)",
}


def image_name(band: str) -> str:
    return f"{NAME}_{band}.fits"


def psf_name(band: str) -> str:
    return f"{NAME}_{band}_psf.fits"


@dataclass(frozen=True)
class FieldProduction:
    """Draws a field into files in the folder `out`.

    Args:
        config: what to draw.
        out: folder; created where missing.
        workers: processes.
        tile: pixels a side that a process draws at once; neither changes a byte of the files.
        overwrite: draw everything again.
        quiet: no progress bar.

    Raises:
        DataError: workers that are no positive number, tiles of less than 32 pixels.
    """

    config: FieldConfig
    out: Path
    workers: int = 1
    tile: int = 512
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for field, least in (("workers", 1), ("tile", 32)):
            if getattr(self, field) < least:
                raise DataError("simulate", field, f"expected at least {least}, received {getattr(self, field)}")

    def go(self) -> dict[str, Any]:
        """Draws the tiles that are missing and returns the manifest.

        Raises:
            DataError: `out` holds files of another configuration, or a damaged manifest. OSError: it cannot be written.
        """
        unfinished = self.out / UNFINISHED
        if self.overwrite:
            self._remove()
        manifest = self._kept()
        if manifest is not None:
            return manifest
        self.out.mkdir(parents=True, exist_ok=True)
        self._write_manifest({}, {}, complete=False)  # a killed run leaves files that belong to it
        for folder in (self.out, unfinished):
            remove_leftovers(folder, (*self._names(), MANIFEST))
        field, bands = Field(self.config), self.config.survey.bands
        if not all(any((at / image_name(band)).exists() for at in (unfinished, self.out)) for band in bands):
            (unfinished / DONE).unlink(missing_ok=True)
            for number, band in enumerate(bands):
                (self.out / image_name(band)).unlink(missing_ok=True)
                create_image(field, number, unfinished / image_name(band))
        self._draw_tiles(unfinished)
        for number, band in enumerate(bands):
            write_psfs(field, number, self.out / psf_name(band))
            if (unfinished / image_name(band)).exists():
                os.replace(unfinished / image_name(band), self.out / image_name(band))
        truth = write_truth(field, self.out / TRUTH)
        points = int((truth["kind"] == "point").sum())
        counts = {"objects": len(truth), "galaxies": len(truth) - points, "stars": points}
        done = {name: sha256(self.out / name) for name in self._names()}
        manifest = self._write_manifest(done, counts, complete=True)
        shutil.rmtree(unfinished)
        return manifest

    def _names(self) -> list[str]:
        bands = self.config.survey.bands
        return [TRUTH, *map(image_name, bands), *map(psf_name, bands)]

    def _kept(self) -> dict[str, Any] | None:
        """Returns the manifest where all its files are whole, and removes the files where some are not.

        Raises: DataError where they have another configuration.
        """
        manifest = read_manifest(self.out)
        if manifest is None:
            unlisted = [name for name in self._names() if (self.out / name).exists()]
            if unlisted:
                problem = f"expected a manifest beside {unlisted[0]}, received none"
                raise DataError(self.out / MANIFEST, "config", problem, REMEDY)
            return None
        check_same(self.out / MANIFEST, manifest, description("field", "fits", self.config))
        if not manifest.get("complete"):
            return None
        paths = {self.out / name: entry["sha256"] for name, entry in manifest["files"].items()}
        if all(path.exists() and sha256(path) == known for path, known in paths.items()):
            shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
            return manifest
        self._remove()
        return None

    def _remove(self) -> None:
        shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
        for name in {*self._names(), *listed(self.out), MANIFEST}:
            (self.out / name).unlink(missing_ok=True)

    def _draw_tiles(self, unfinished: Path) -> None:
        """Draws the tiles that the list of those that are done lacks, which it grows by."""
        done, plan = unfinished / DONE, tiles(self.config.side, self.tile)
        unfinished.mkdir(exist_ok=True)
        lines = set(done.read_text().splitlines(keepends=True)) if done.exists() else set()
        todo = [box for box in plan if _line(box) not in lines]
        tasks = [(self.config, box, unfinished) for box in todo]
        with progress(len(plan), "tile", self.quiet) as bar, done.open("a") as file:
            bar.update(len(plan) - len(todo))
            for box in in_processes(self.workers, write_tile, tasks):
                file.write(_line(box))
                file.flush()
                bar.update()

    def _write_manifest(self, done: dict[str, str], counts: dict[str, int], complete: bool) -> dict[str, Any]:
        manifest = {
            **description("field", "fits", self.config),
            "number": 1,
            "complete": complete,
            "counts": {"files": len(done), **counts},
            "files": {name: {"sha256": value} for name, value in done.items()},
        }
        write_manifest(self.out, manifest)
        return manifest


def _line(box: Box) -> str:
    return " ".join(map(str, box)) + "\n"


def create_image(field: Field, number: int, path: Path) -> None:
    """Makes the file of a band, `number`, with its headers and room for its pixels, which are 0."""
    survey, side = field.survey, field.config.side
    shared = field.wcs.to_header()
    shared["FILTER"] = survey.bands[number]
    about = {
        "IMAGE": {
            "BUNIT": ("electron", "unit of the pixels and the fluxes of the truth"),
            "MAGZERO": (field.zeropoints[number], "AB magnitude of flux 1"),
            "SATURATE": (field.levels[number], "electrons that a pixel holds"),
        },
        "MASK": {f"HIERARCH MP_{name}": (LSST.bits[name], "bit of the plane") for name in ("BAD", "SAT", "NO_DATA")},
        "VARIANCE": {
            "BUNIT": ("electron2", "unit of the pixels"),
            "SKYVAR": (survey.sky_variance[number], "mean variance of the sky and readout"),
            **_law_cards(field, "DEPTH", number),
        },
    }
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(fits.PrimaryHDU().header.tostring().encode())
        for name, type in LAYERS.items():
            header = fits.ImageHDU(np.zeros((1, 1), type), shared, name=name).header
            header["NAXIS1"] = header["NAXIS2"] = side
            header.update(about[name])
            file.write(header.tostring().encode())
            file.truncate(file.tell() + -(-4 * side**2 // FITS_BLOCK) * FITS_BLOCK)
            file.seek(0, os.SEEK_END)


def _law_cards(field: Field, law: str, number: int) -> dict[str, Any]:
    terms = ("u", "v", "u^2 - 1/3", "u v", "v^2 - 1/3")
    values = field.laws[law].coefficients[number].tolist()
    cards: dict[str, Any] = {
        f"{law}_{key}": (value, f"coefficient of {term}") for key, value, term in zip(TERMS, values, terms, strict=True)
    }
    return {"COMMENT": f"{LAW_MEANING[law]}; u, v: x, y from -1 to 1 over the field", **cards}


def write_tile(config: FieldConfig, box: Box, folder: Path) -> Box:
    """Draws a tile into the files of all bands, which are there, and returns it."""
    tile = field_of(config).tile(box)
    layers = (tile.images, tile.masks, tile.variances)
    for number, band in enumerate(config.survey.bands):
        path = folder / image_name(band)
        with fits.open(path, memmap=True) as hdus:
            starts = [hdus[name].fileinfo()["datLoc"] for name in LAYERS]
        with path.open("r+b") as file:
            for start, type, values in zip(starts, LAYERS.values(), layers, strict=True):
                for y, row in enumerate(values[number].astype(type), box.top):
                    file.seek(start + 4 * (y * config.side + box.left))
                    file.write(row.tobytes())
    return box


def write_psfs(field: Field, number: int, path: Path) -> None:
    """Writes a band's PSF (n, h, w), each image summing to 1, at places on a grid over the field (table POSITIONS)."""
    side = field.config.side
    line = np.linspace(0, side - 1, max(2, -(-side // PSF_SPACING) + 1))
    y, x = (places.ravel() for places in np.meshgrid(line, line, indexing="ij"))
    images = np.stack(
        [field.psf_images(*place, PSF_SIDE)[number] for place in zip(y.tolist(), x.tolist(), strict=True)]
    )
    header = fits.Header()
    header["FILTER"] = field.survey.bands[number]
    header["PIXSCALE"] = (field.survey.pixel_scale, "arcsec")
    header["FWHM0"] = (field.survey.psf_fwhm[number], "arcsec, mean over the field, without the pixel")
    for law in ("FWHM", "E1", "E2"):
        header.update(_law_cards(field, law, number))
    fwhm, e1, e2 = (values[number] for values in field.psf_shape(y, x))
    table = _hdu(
        {
            "x": (x + 1, "pixel", "place of the PSF; the centre of the first pixel is 1"),
            "y": (y + 1, "pixel", "place of the PSF; the centre of the first pixel is 1"),
            "fwhm": (fwhm, "arcsec", "FWHM without the pixel"),
            "e1": (e1, "", "(a - b) / (a + b) along x, without the pixel"),
            "e2": (e2, "", "(a - b) / (a + b) along x = y, without the pixel"),
        },
        "POSITIONS",
    )
    with written_whole(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(images.astype(np.float32), header), table]).writeto(temporary)


def truth_columns(field: Field, objects: Objects, first: int) -> dict[str, tuple[np.ndarray, str, str]]:
    """Returns values, unit and description by name of the columns of the truth, of objects numbered from `first` on."""
    galaxies, bands = objects.galaxies, field.survey.bands
    known = galaxies.catalog(bands)
    ra, dec = field.wcs.wcs_pix2world(objects.x, objects.y, 0)
    star = galaxies.is_star
    columns: dict[str, tuple[np.ndarray, str, str]] = {
        "id": (np.arange(first, first + len(objects)), "", "number of the object"),
        "kind": (np.where(star, "point", "galaxy"), "", "point (a star) or galaxy"),
        "type": (np.array(KINDS)[galaxies.kind].astype("U5"), "", "disk, early or star"),
        "ra": (ra, "deg", "right ascension, ICRS"),
        "dec": (dec, "deg", "declination, ICRS"),
        "x": (objects.x, "pixel", "the centre of the first pixel is 0"),
        "y": (objects.y, "pixel", "the centre of the first pixel is 0"),
    }
    for number, band in enumerate(bands):
        flux = known[f"flux_{band}"]
        columns[f"flux_{band}"] = (flux, "ct", "total flux in electrons, the unit of the image")
        columns[f"mag_{band}"] = (field.zeropoints[number] - 2.5 * np.log10(flux), "mag", "AB magnitude, total")
    columns |= {
        "magnitude": (galaxies.magnitude, "mag", "AB magnitude in the i band of LSST, total"),
        "redshift": (galaxies.redshift, "", "0 of stars"),
        "size": (known["radius"], "arcsec", "half-light radius of the circle of equal area, mean of bulge and disk"),
        "e1": (known["g1"], "", "(a - b) / (a + b) along x, mean of bulge and disk"),
        "e2": (known["g2"], "", "(a - b) / (a + b) along x = y, mean of bulge and disk"),
    }
    for part, name in ((BULGE, "bulge"), (DISK, "disk")):
        shape = galaxies.shear[:, part]
        columns[f"{name}_radius"] = (galaxies.radius[:, part], "arcsec", "half-light radius, circle of equal area")
        columns[f"{name}_index"] = (np.where(star, 0, galaxies.index[:, part]), "", "Sersic index; 0 of stars")
        columns[f"{name}_e1"] = (shape[:, 0], "", "(a - b) / (a + b) along x")
        columns[f"{name}_e2"] = (shape[:, 1], "", "(a - b) / (a + b) along x = y")
    total = galaxies.flux.sum((1, 2))
    for part, name in ((BULGE, "bulge"), (KNOTS, "knots")):
        share = galaxies.flux[:, part].sum(-1) / total
        columns[f"{name}_fraction"] = (share, "", f"share of the {name} in the light of all bands")
    return columns


def write_truth(field: Field, path: Path) -> Table:
    """Writes the table of all objects, whose centres lie in the image, and returns its columns of id and kind."""
    parts, about, count = [], {}, 0
    for objects in field.catalog():
        columns = truth_columns(field, objects, count)
        about = {name: column[1:] for name, column in columns.items()}
        parts.append(Table({name: column[0] for name, column in columns.items()}))
        count += len(objects)
    table = vstack(parts)
    hdu = _hdu({name: (np.asarray(table[name]), *about[name]) for name in about}, "CATALOG")
    hdu.header["RADESYS"] = "ICRS"
    for number, band in enumerate(field.survey.bands):
        hdu.header[f"FILTER{number + 1}"] = band
        hdu.header[f"MAGZERO{number + 1}"] = (field.zeropoints[number], f"AB magnitude of flux 1 in {band}")
    with written_whole(path) as temporary:
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(temporary)
    return table["id", "kind"]


def _hdu(columns: dict[str, tuple[np.ndarray, str, str]], name: str) -> fits.BinTableHDU:
    """Makes a table of columns (values, unit, description)."""
    hdu = fits.table_to_hdu(Table({key: values for key, (values, _, _) in columns.items()}))
    for number, (_, unit, about) in enumerate(columns.values(), 1):
        if unit:
            hdu.header[f"TUNIT{number}"] = unit
        hdu.header[f"TCOMM{number}"] = about
    hdu.header["EXTNAME"] = name
    return hdu
