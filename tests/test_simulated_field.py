"""Fields: the same bytes however they are cut and drawn, all light of the truth, and laws of places, PSF and noise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.spatial import KDTree

from tfdeblend import io
from tfdeblend.app import cli
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.simulation import field_files
from tfdeblend.simulation.field import BAD, BLOCK, CELL, MEMBERS, NO_DATA, SAT, SPREAD, Box, Field, FieldConfig, tiles
from tfdeblend.simulation.field_files import FieldProduction
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.production import read_manifest
from tfdeblend.simulation.rendering import Knots
from tfdeblend.simulation.scenes import noise_kernel
from tfdeblend.simulation.surveys import Survey

SURVEY = Survey(
    "two", ("g", "i"), 0.168, (28.9, 28.61), (0.79, 0.61), (21.4, 19.7), (600, 1200), ("LSST_g.dat", "LSST_i.dat")
)
SMALL = FieldConfig(SURVEY, Population(stars=0.2), side=192, density=60.0, seed=3)
SPARSE = FieldConfig(SURVEY, Population(bright=20, stars=0.3), side=600, density=4, clustering=0, border=0, seed=1)
WIDE = FieldConfig(SURVEY, Population(stars=0.1), side=4096, density=60, seed=5)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    FieldProduction(SMALL, folder, tile=96, quiet=True).go()
    return folder


def whole(field: Field) -> Box:
    return Box(0, 0, field.config.side, field.config.side)


def test_neither_workers_nor_tiles_change_a_byte(drawn: Path, tmp_path: Path):
    FieldProduction(SMALL, tmp_path, workers=2, tile=131, quiet=True).go()
    assert read_manifest(tmp_path) == read_manifest(drawn)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*read_manifest(drawn)["files"], "manifest.json"])
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_goes_on_to_the_same_files(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    boxes: list[Box] = []

    def interrupted(config: FieldConfig, box: Box, folder: Path) -> Box:
        if len(boxes) == 3:
            raise KeyboardInterrupt
        boxes.append(box)
        return write(config, box, folder)

    write = field_files.write_tile
    production = FieldProduction(SMALL, tmp_path, tile=64, quiet=True)
    monkeypatch.setattr(field_files, "write_tile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        production.go()
    assert not read_manifest(tmp_path)["complete"] and not list(tmp_path.glob("*.fits"))
    with pytest.raises(DataError, match=r"config.density: expected 60.0 as before, received 50"):
        FieldProduction(replace(SMALL, density=50.0), tmp_path, quiet=True).go()
    boxes.append(Box(0, 0, 0, 0))  # no further interruption
    production.go()
    assert len(boxes) == 1 + len(tiles(SMALL.side, 64)) and len({*boxes}) == len(boxes)
    assert read_manifest(tmp_path) == read_manifest(drawn)
    (tmp_path / "field_i.fits").write_bytes(b"damaged")
    assert FieldProduction(SMALL, tmp_path, tile=96, quiet=True).go() == read_manifest(drawn)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path):
    command = [sys.executable, "-m", "tfdeblend", "simulate", "--field", "1280", "--workers", "2", "--quiet", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL)
    done, deadline = cut / field_files.UNFINISHED / field_files.DONE, time.monotonic() + 60
    while not (done.exists() and done.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the workers end with their parent
    assert 0 < done.read_text().count("\n") < len(tiles(1280, 512))
    subprocess.run([*command, str(cut)], check=True, stdout=subprocess.DEVNULL)
    assert read_manifest(cut) == read_manifest(tmp_path / "whole")


def test_light_that_crosses_tiles_is_all_there():
    field = Field(SPARSE)
    light = np.zeros((2, SPARSE.side, SPARSE.side))
    for box in tiles(SPARSE.side, 150):
        light[:, box.top : box.bottom, box.left : box.right] = field.light(box)[0]
    np.testing.assert_array_equal(field.light(Box(100, 33, 170, 310))[0], light[:, 100:170, 33:310])
    objects = [(cell, row) for cell in field.catalog() for row in range(len(cell))]
    windows = []
    for cell, row in objects:
        y, x, half = int(cell.y[row]), int(cell.x[row]), int(cell.half[row])
        windows.append(Box(y - half, x - half, y + half + 1, x + half + 1))
    isolated = crossing = 0
    for (cell, row), window in zip(objects, windows, strict=True):
        inside = min(window) >= 0 and max(window) <= SPARSE.side
        if inside and sum(window.overlap(other) is not None for other in windows) == 1:
            found = light[:, window.top : window.bottom, window.left : window.right].sum((1, 2))
            np.testing.assert_allclose(found, cell.galaxies.flux[row].sum(0), rtol=1e-3)
            isolated += 1
            crossing += window.top // 150 < window.bottom // 150 or window.left // 150 < window.right // 150
    assert isolated >= 5 and crossing >= 2


def test_bright_objects_are_galsims_to_a_tenth_of_the_skys_noise():
    """The brightest star and galaxy, under the PSF of their places, to where their light ends."""
    field = Field(replace(WIDE, side=1024))
    cells = [(cell, row) for cell in field.catalog() for row in range(len(cell))]
    accuracy = galsim.GSParams(folding_threshold=1e-3, maxk_threshold=1e-6, kvalue_accuracy=1e-8)
    for star in (True, False):
        found = [(cell, row) for cell, row in cells if cell.galaxies.is_star[row] == star]
        cell, row = min(found, key=lambda each: each[0].galaxies.magnitude[each[1]])
        where, image = field._image(cell, row)
        fwhm, e1, e2 = (float(values[1]) for values in field.psf_shape(cell.y[row], cell.x[row]))
        psf = galsim.Moffat(beta=3, fwhm=fwhm, gsparams=accuracy).shear(g1=e1, g2=e2)
        drawn = galsim.ImageD(*image.shape[1:], scale=SURVEY.pixel_scale)
        center = galsim.PositionD(cell.x[row] - where.left + 1, cell.y[row] - where.top + 1)
        for part in cell.galaxies.components(row):
            profile = part.profile
            if isinstance(profile, Knots):
                parts = zip(profile.share, profile.offset, profile.sigma, strict=True)
                profile = galsim.Sum([galsim.Gaussian(sigma=s, flux=f).shift(dx, dy) for f, (dy, dx), s in parts])
            profile = galsim.Convolve(profile * float(part.flux[1]), psf, gsparams=accuracy)
            profile.drawImage(drawn, center=center, add_to_image=True)
        assert np.abs(drawn.array - image[1]).max() < 0.1 * np.sqrt(SURVEY.sky_variance[1])
        assert drawn.array[0].max() < 0.2 * np.sqrt(SURVEY.sky_variance[1])  # nothing ends at the image's edge


def test_places_have_their_density_and_clustering():
    arcmin = WIDE.side * SURVEY.pixel_scale / 60
    for clustering in (0.0, 0.5):
        field = Field(replace(WIDE, clustering=clustering))
        cells = list(field.catalog())
        y, x = (np.concatenate([getattr(cell, name) for cell in cells]) for name in "yx")
        star = np.concatenate([cell.galaxies.is_star for cell in cells])
        expected = WIDE.density * arcmin**2
        assert len(y) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 + MEMBERS * clustering)))
        assert star.mean() == pytest.approx(0.1, abs=0.02)
        assert min(y.min(), x.min()) >= -0.5 and max(y.max(), x.max()) < WIDE.side - 0.5
        edge = ((x < CELL / 2) | (x >= WIDE.side - CELL / 2)).mean()
        assert edge == pytest.approx(CELL / WIDE.side, abs=0.015)
        places = np.stack([y, x], -1)[~star] * SURVEY.pixel_scale
        inner = places[np.all((places > 20) & (places < 60 * arcmin - 20), axis=1)]
        edges, n = np.array([1.0, 6.0, 12.0]), len(places) / (60 * arcmin) ** 2
        pairs = KDTree(inner).count_neighbors(KDTree(places), edges)
        by_chance = len(inner) * n * np.pi * np.diff(edges**2)
        beyond = np.exp(-(edges**2) / (4 * SPREAD**2))  # of the Gaussian, its share beyond a radius
        expected = clustering * MEMBERS * -np.diff(beyond) * len(inner)
        assert np.diff(pairs) / by_chance - 1 == pytest.approx(expected / by_chance, abs=0.03)


def test_positions_on_the_sky_are_those_of_the_pixels(drawn: Path):
    truth = Table.read(drawn / "field_truth.fits")
    for band in SURVEY.bands:
        wcs = WCS(fits.getheader(drawn / f"field_{band}.fits", "IMAGE"))
        np.testing.assert_allclose(wcs.wcs_world2pix(truth["ra"], truth["dec"], 0), [truth["x"], truth["y"]], atol=1e-6)
    assert wcs.wcs_pix2world([[95.5, 95.5]], 0)[0] == pytest.approx(SMALL.center)
    sky = SkyCoord(truth["ra"], truth["dec"])
    distance = np.hypot(truth["x"] - truth["x"][0], truth["y"] - truth["y"][0]) * SURVEY.pixel_scale
    np.testing.assert_allclose(sky.separation(sky[0]).arcsec, distance, atol=1e-4)
    assert np.corrcoef(truth["x"], truth["ra"])[0, 1] == pytest.approx(-1)
    assert np.corrcoef(truth["y"], truth["dec"])[0, 1] == pytest.approx(1)


def test_truth_says_what_the_image_shows(drawn: Path):
    truth = Table.read(drawn / "field_truth.fits")
    header = fits.getheader(drawn / "field_i.fits", "IMAGE")
    np.testing.assert_allclose(header["MAGZERO"] - 2.5 * np.log10(truth["flux_i"]), truth["mag_i"])
    np.testing.assert_allclose(truth["mag_i"], truth["magnitude"], atol=0.1)  # of the same band
    assert list(truth["id"]) == list(range(len(truth))) and {*truth["kind"]} == {"point", "galaxy"}
    for name in truth.colnames:
        number = truth.colnames.index(name) + 1
        assert fits.getheader(drawn / "field_truth.fits", 1)[f"TCOMM{number}"]
    manifest = read_manifest(drawn)
    assert (
        manifest["counts"]["objects"] == len(truth) and manifest["counts"]["stars"] == (truth["kind"] == "point").sum()
    )


def test_psf_follows_its_law(drawn: Path):
    for band, fwhm in zip(SURVEY.bands, SURVEY.psf_fwhm, strict=True):
        with fits.open(drawn / f"field_{band}_psf.fits") as hdus:
            images, header, table = hdus[0].data, hdus[0].header, Table(hdus["POSITIONS"].data)
        u, v = (2 * (table[name] - 1) / (SMALL.side - 1) - 1 for name in "xy")
        terms = {"U": u, "V": v, "UU": u**2 - 1 / 3, "UV": u * v, "VV": v**2 - 1 / 3}
        law = {
            name: sum(header[f"{name}_{key}"] * term for key, term in terms.items()) for name in ("FWHM", "E1", "E2")
        }
        np.testing.assert_allclose(table["fwhm"], fwhm * (1 + law["FWHM"]))
        np.testing.assert_allclose([table["e1"], table["e2"]], [law["E1"], law["E2"]])
        assert np.hypot(table["e1"], table["e2"]).max() <= SMALL.psf_ellipticity + 1e-9
        np.testing.assert_allclose(images.sum((1, 2)), 1, atol=1e-6)
        for image, row in zip(images, table, strict=True):
            psf = galsim.Moffat(beta=3, fwhm=row["fwhm"]).shear(g1=row["e1"], g2=row["e2"])
            expected = psf.drawImage(nx=43, ny=43, scale=SURVEY.pixel_scale).array
            assert np.abs(image - expected / expected.sum()).max() < 1e-3 * image.max()
    grid = np.linspace(0, WIDE.side - 1, 65)
    size = Field(WIDE).psf_shape(grid[:, None], grid)[0] / np.array(SURVEY.psf_fwhm)[:, None, None]
    assert np.abs(size - 1).max((1, 2)) == pytest.approx(WIDE.psf_variation)
    assert size.mean((1, 2)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("noise", ["white", "correlated"])
def test_noise_has_the_variance_that_the_files_state(noise: str):
    config = replace(SPARSE, noise=noise, population=Population(stars=0), depth_variation=0.4)
    field = Field(config)
    tile = field.tile(Box(100, 150, 400, 550))
    good = tile.masks == 0
    chi = np.where(good, (tile.images - tile.light) / np.sqrt(tile.variances), 0)
    assert (chi[good] ** 2).mean() == pytest.approx(1, abs=0.015)
    for half in (slice(0, 150), slice(150, 300)):
        assert (chi[:, half] ** 2).sum() / good[:, half].sum() == pytest.approx(1, abs=0.025)
    edge = BLOCK - 150 if noise == "white" else 2 * BLOCK - 150  # neighbours in two blocks, as in one
    neighbours = (chi[:, :, 1:] * chi[:, :, :-1]).mean((0, 1))
    assert neighbours[edge - 1] == pytest.approx(neighbours.mean(), abs=0.15)
    kernel = noise_kernel()
    expected = 0 if noise == "white" else (kernel[:, 1:] * kernel[:, :-1]).sum()
    assert neighbours.mean() == pytest.approx(expected, abs=0.02)
    sky = np.array(SURVEY.sky_variance)[:, None, None] * (
        1 + field.laws["DEPTH"](np.arange(100, 400)[:, None], np.arange(150, 550))
    )
    np.testing.assert_allclose(tile.variances[good], (sky + np.maximum(tile.light, 0))[good], rtol=1e-6)


def test_bright_stars_saturate_and_bleed_along_columns():
    config = replace(SPARSE, population=Population(14, 16, stars=1.0), brightest_star=14.0, saturation=17.0)
    field = Field(config)
    tile = field.tile(whole(field))
    level = field.levels[:, None, None]
    full, bad = (tile.masks & SAT) > 0, (tile.masks & BAD) > 0
    assert full.sum() > 50 and (full | (tile.light < level)).all()
    assert (tile.images < level)[~full & ~bad].all()
    np.testing.assert_allclose((tile.images / level)[full & ~bad], 1, rtol=1e-6)
    excess = np.maximum(tile.light - level, 0).sum(1) / field.levels[:, None]  # pixels to be filled, by column
    core = (tile.light >= level).sum(1)
    longest = np.unravel_index(excess.argmax(), excess.shape)
    assert full.sum(1)[longest] == pytest.approx(core[longest] + excess[longest], rel=0.1, abs=3)


def test_masks_of_bad_pixels_and_borders(drawn: Path):
    with fits.open(drawn / "field_g.fits") as hdus:
        image, mask, variance = (hdus[name].data for name in ("IMAGE", "MASK", "VARIANCE"))
    border = np.ones(mask.shape, bool)
    border[16:-16, 16:-16] = False
    np.testing.assert_array_equal(mask == NO_DATA, border)
    np.testing.assert_array_equal(np.isnan(image), border)
    np.testing.assert_array_equal(np.isnan(variance), border)
    bad = Field(WIDE).bad_pixels(Box(0, 0, 64, WIDE.side))
    assert bad.all(1).mean() == pytest.approx(5e-4, abs=5e-4)  # columns
    holes = (
        Field(WIDE).bad_pixels(Box(0, 0, 1024, 1024)) & ~Field(WIDE).bad_pixels(Box(0, 0, 1024, 1024)).all(1)[:, None]
    )
    area = 2e-5 * np.pi * (8**3 - 1) / (3 * 7)  # mean of pi r^2
    assert holes.mean() == pytest.approx(area, rel=0.5)


def test_a_field_is_read_as_one_observation(drawn: Path):
    paths = [drawn / f"field_{band}.fits" for band in SURVEY.bands]
    psf = np.stack([fits.getdata(drawn / f"field_{band}_psf.fits")[0] for band in SURVEY.bands])
    observation, _ = io.read(paths, psf=psf)
    assert observation.bands == SURVEY.bands and observation.shape == (2, 192, 192)
    np.testing.assert_allclose(observation.zeropoints, SURVEY.flux_zeropoints)
    with fits.open(paths[1]) as hdus:
        usable = hdus["MASK"].data == 0
        np.testing.assert_array_equal(observation.weights[1] > 0, usable)
        np.testing.assert_allclose(observation.weights[1][usable], 1 / hdus["VARIANCE"].data[usable], rtol=1e-6)
    truth = io.read_catalog(drawn / "field_truth.fits")
    scene = Scene.from_catalog(observation, truth)
    assert [source.kind for source in scene.sources] == list(truth["kind"])
    rows, columns = section = slice(100, 180), slice(10, 90)
    part, _ = io.read(paths, section=section)  # with the PSF of the place nearest to its middle
    middle = (columns.start + columns.stop + 1) / 2, (rows.start + rows.stop + 1) / 2
    for band, found in zip(SURVEY.bands, part.psf, strict=True):
        with fits.open(drawn / f"field_{band}_psf.fits") as hdus:
            at = hdus["POSITIONS"].data
            nearest = np.argmin(np.hypot(at["x"] - middle[0], at["y"] - middle[1]))
            expected = hdus[0].data[nearest]
        assert np.abs(found - expected / expected.sum()).max() < 0.02 * found.max()  # about one origin


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["simulate", "--field", "64", "--density", "100", "--quiet", "--json", "--out", str(tmp_path)]
    assert cli.main([*arguments, "--survey", "hsc"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "field" and document["complete"] and len(document["files"]) == 11
    assert cli.main([*arguments, "--number", "3"]) == 2
    assert "--number: expected scenes or stamps beside it, received --field" in capsys.readouterr().err
    assert cli.main(["simulate", "--density", "3", "--out", str(tmp_path)]) == 2
    assert "--density: expected --field SIDE beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"side": 32}, "side: expected 64 to 65536, received 32"),
        ({"density": -1.0}, "density: expected 0 to 1000, received -1"),
        ({"clustering": 2.0}, "clustering: expected 0 to 1, received 2"),
        ({"noise": "pink"}, "noise: expected white or correlated, received 'pink'"),
        ({"brightest_star": 8.0}, "brightest_star: expected 12 to 24.5, received 8"),
        ({"psf_variation": 0.5}, "psf_variation: expected 0 to 0.3, received 0.5"),
        ({"border": 100}, "border: expected 0 to 48, received 100"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(change: dict, problem: str):
    with pytest.raises(DataError) as error:
        replace(SMALL, **change)
    assert str(error.value) == f"field: {problem}"
