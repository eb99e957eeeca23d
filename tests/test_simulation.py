"""Simulated galaxies, blends and stamps: what GalSim draws, whatever the order, the workers and the interruptions."""

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

from tfdeblend import cli
from tfdeblend.colors import Colors
from tfdeblend.errors import DataError
from tfdeblend.galaxies import Galaxies, Population
from tfdeblend.production import MANIFEST, Production, read_manifest
from tfdeblend.real_galaxies import RealPopulation, read_catalogue
from tfdeblend.rendering import Camera, Component, Knots
from tfdeblend.scene import Scene
from tfdeblend.shards import decode, encode, sha256
from tfdeblend.simulated_files import SceneFiles, StampFiles
from tfdeblend.simulation import NOISE_REACH, SceneConfig, Simulator, draw_positions, noise_kernel, unit_noise
from tfdeblend.stamps import COADD_ZEROPOINT, StampConfig, draw_stamps
from tfdeblend.surveys import SURVEYS

HSC = SURVEYS["hsc"]
CONFIG = SceneConfig(HSC, Population(), sources=(1, 3), size=32)
ZEROPOINTS = np.full(5, 27.0)


def galaxies(number: int, seed: int = 0, survey: str = "hsc", **population: float) -> Galaxies:
    colors = Colors.of(SURVEYS[survey].throughputs)
    rng = np.random.default_rng(seed)
    return Population(**population).draw(rng, number, colors, np.full(len(colors.wavelengths), 27.0))


def by_galsim(components: list[Component], psf: galsim.GSObject, band: int, y: float, x: float, scale: float):
    """(71,71): what GalSim draws by itself at its default accuracy; the pixel is part of the PSF, where it has one."""
    image = galsim.ImageD(71, 71, scale=scale)
    for component in components:
        profile = component.profile
        if isinstance(profile, Knots):
            parts = zip(profile.share, profile.offset, profile.sigma, strict=True)
            profile = galsim.Sum([galsim.Gaussian(sigma=s, flux=f).shift(dx, dy) for f, (dy, dx), s in parts])
        profile = galsim.Convolve(profile * float(component.flux[band]), psf)
        center = galsim.PositionD(x + 1, y + 1)
        profile.drawImage(image, center=center, method="no_pixel", add_to_image=True)
    return image.array


@pytest.mark.parametrize("survey", ["hsc", "lsst", "euclid-vis", "hst-acs"])
@pytest.mark.parametrize("frame", ["observed", "model"])
def test_images_are_within_a_thousandth_of_the_peak_of_galsims(survey: str, frame: str):
    scale = SURVEYS[survey].pixel_scale
    camera = Camera.of_survey(SURVEYS[survey]) if frame == "observed" else Camera.of_model(1.0, scale)
    found = galaxies(12, 4, survey, bright=18, faint=25, slope=0.0, stars=0.2)
    for row, (y, x) in enumerate(np.random.default_rng(1).uniform(8, 62, (12, 2))):
        components = found.components(row)
        drawn = camera.draw(components, y, x, (71, 71))
        for band in (0, len(drawn) - 1):
            expected = by_galsim(components, camera.psfs[min(band, len(camera.psfs) - 1)], band, y, x, scale)
            assert np.abs(drawn[band] - expected).max() < 1e-3 * expected.max()


def test_flux_is_conserved():
    found = galaxies(40, 2, bright=22, faint=25)
    for camera in (Camera.of_survey(HSC), Camera.of_model(1.0, 0.168)):
        for row in range(len(found)):
            total = camera.draw(found.components(row), 127.3, 128.4, (256, 256)).sum((1, 2))
            np.testing.assert_allclose(total, found.flux[row].sum(0), rtol=1e-4)


def test_a_point_in_the_model_frame_is_the_gaussian_sampled_at_pixel_centres():
    point = Component(galsim.DeltaFunction(), np.ones(1), 0.0)
    for sigma in (0.7, 1.0, 1.5):
        drawn = Camera.of_model(sigma, 0.2).draw([point], 16, 16, (33, 33))[0]
        gauss = np.exp(-0.5 * ((np.arange(33) - 16) / sigma) ** 2)
        expected = gauss[:, None] * gauss / (2 * np.pi * sigma**2)
        np.testing.assert_allclose(drawn, expected, atol=3e-4 * expected.max())


def test_light_moves_with_its_source_and_is_cut_at_the_edge():
    components = galaxies(1, 3, bright=22, faint=23).components(0)
    camera = Camera.of_survey(HSC)
    middle, moved = camera.draw(components, 20.25, 20.5, (41, 41)), camera.draw(components, 23.25, 16.5, (41, 41))
    np.testing.assert_allclose(moved[:, 3:, :-4], middle[:, :-3, 4:], atol=1e-4 * middle.max())
    edge = camera.draw(components, 0.25, 0.5, (41, 41))
    np.testing.assert_allclose(edge[:, :20, :20], middle[:, 20:40, 20:40], atol=1e-4 * middle.max())


def test_populations_keep_to_their_limits_and_slopes():
    found = galaxies(40_000, 5, bright=20.0, faint=25.0, slope=0.31, stars=0.25)
    assert found.magnitude.min() >= 20 and found.magnitude.max() <= 25
    counts, edges = np.histogram(found.magnitude, np.arange(20, 25.5, 0.5))
    assert np.polyfit(edges[:-1], np.log10(counts), 1)[0] == pytest.approx(0.31, abs=0.02)
    assert found.is_star.mean() == pytest.approx(0.25, abs=0.01)
    i_flux = found.flux.sum(1)[:, 2]
    np.testing.assert_allclose(27 - 2.5 * np.log10(i_flux), found.magnitude, atol=1e-9)
    faint = np.median(found.radius[found.magnitude > 24.5, 1])
    assert faint < np.median(found.radius[found.magnitude < 21, 1])
    assert np.hypot(*np.moveaxis(found.shear, -1, 0)).max() < 0.81


def test_knots_share_their_light():
    found = galaxies(50, 6)
    np.testing.assert_allclose(found.knot_flux.sum(1), 1)
    np.testing.assert_allclose(found.take(slice(3, 5)).flux, found.flux[3:5])


def test_a_scene_depends_on_its_number_only():
    first, second = Simulator(CONFIG), Simulator(CONFIG)
    late = first.scene(7)
    for number in (3, 5, 7):
        scene = second.scene(number)
    for name, values in late.arrays().items():
        np.testing.assert_array_equal(values, scene.arrays()[name])
    other = Simulator(replace(CONFIG, seed=1)).scene(7)
    assert other.images.shape == late.images.shape and not np.array_equal(other.images, late.images)


@pytest.mark.parametrize("noise", ["white", "correlated"])
def test_data_minus_truth_is_noise_of_the_weights(noise: str):
    simulator = Simulator(replace(CONFIG, noise=noise, size=64))
    scenes = [simulator.scene(number) for number in range(12)]
    chi2 = [np.mean((s.images - s.truth.sum(0)) ** 2 * s.weights) for s in scenes]
    assert np.mean(chi2) == pytest.approx(1, abs=0.01 if noise == "white" else 0.03)
    bright = scenes[0].weights[0].min() < scenes[0].weights[0].max()
    assert bright  # the sources' own light adds noise


def test_correlated_noise_has_the_power_of_its_kernel():
    field = unit_noise(np.random.default_rng(0), (40, 64, 64), "correlated")
    assert field.var() == pytest.approx(1, abs=0.01)
    kernel = noise_kernel()
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (0, 5)):
        side = 2 * NOISE_REACH + 1
        expected = (kernel[: side - dy, : side - dx] * kernel[dy:, dx:]).sum()
        found = (field[:, : 64 - dy, : 64 - dx] * field[:, dy:, dx:]).mean()
        assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("positions", ["uniform", "clustered"])
def test_thirty_sources_find_their_places(positions: str):
    config = replace(CONFIG, sources=(30, 30), positions=positions, size=71)
    places = draw_positions(np.random.default_rng(0), 30, config)
    distance = np.hypot(*np.moveaxis(places[:, None] - places, -1, 0)) + 100 * np.eye(30)
    assert places.shape == (30, 2) and distance.min() >= 2 and places.min() > 0 and places.max() < 70


def test_clusters_are_tighter_than_fields():
    rng, config = np.random.default_rng(0), replace(CONFIG, size=71)
    spread = {
        positions: np.std([draw_positions(rng, 4, replace(config, positions=positions)) for _ in range(50)])
        for positions in ("uniform", "clustered")
    }
    assert spread["clustered"] < 0.7 * spread["uniform"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sources": (0, 3)}, "sources: expected 1 to 30, received 0 to 3"),
        ({"sources": (4, 3)}, "sources: expected 1 to 30, received 4 to 3"),
        ({"positions": "random"}, "positions: expected uniform or clustered, received 'random'"),
        ({"noise": "pink"}, "noise: expected white or correlated, received 'pink'"),
        ({"size": 4}, "size: expected 16 to 512 pixels, received 4"),
        ({"seed": -1}, "seed: expected a number from 0, received -1"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(change: dict, problem: str):
    with pytest.raises(DataError) as error:
        replace(CONFIG, **change)
    assert str(error.value) == f"simulate: {problem}"


def test_bad_populations_and_stamps_are_refused():
    with pytest.raises(
        DataError, match="magnitude: expected a bright and a faint limit within 10 to 32, received 25 to"
    ):
        Population(25, 20)
    with pytest.raises(DataError, match="stars: expected a share from 0 to 1, received 2"):
        Population(stars=2)
    with pytest.raises(DataError, match="model_sigma: expected"):
        StampConfig(Population(), HSC, model_sigma=0.1)
    with pytest.raises(DataError, match="split: expected one of train, test, all"):
        RealPopulation(".", split="training")


def test_stamps_are_isolated_galaxies_near_the_middle():
    images, catalog = draw_stamps(Population(bright=22), HSC, 60, side=48, seed=3)
    assert images.shape == (60, 5, 48, 48) and images.dtype == np.float32 and len(catalog) == 60
    assert np.abs(catalog["x"] - 24).max() <= 0.5 and np.abs(catalog["y"] - 24).max() <= 0.5
    small = catalog["radius"] < 0.3
    np.testing.assert_allclose(images[small, 2].sum((1, 2)), catalog["flux_i"][small], rtol=0.05)
    np.testing.assert_allclose(catalog["magnitude"], COADD_ZEROPOINT - 2.5 * np.log10(catalog["flux_i"]), atol=1e-9)
    fewer, _ = draw_stamps(Population(bright=22), HSC, 10, side=48, seed=3)
    np.testing.assert_array_equal(fewer, images[:10])


def test_files_are_read_back_as_the_scenes_they_hold(tmp_path: Path):
    for format in ("npz", "fits"):
        files = SceneFiles(replace(CONFIG, model_sigma=1.0, noise="correlated"), format)
        Production(files, 2, tmp_path / format, quiet=True).go()
        expected = files.simulator.scene(1)
        scene = Scene.read(tmp_path / format / f"scene_000001.{format}")
        np.testing.assert_array_equal(scene.observation.images, expected.images)
        np.testing.assert_allclose(scene.observation.psf, expected.psfs, rtol=1e-5)
        np.testing.assert_allclose(scene.positions, expected.scene.positions)
        np.testing.assert_allclose(scene.observation.zeropoints, HSC.flux_zeropoints)
        assert scene.observation.bands == HSC.bands
        assert scene.observation.pixel_scale == pytest.approx(HSC.pixel_scale)
    with np.load(tmp_path / "npz" / "scene_000001.npz") as archive:
        np.testing.assert_array_equal(archive["truth"], expected.truth)
        np.testing.assert_allclose(archive["truth_model"].sum((2, 3)), expected.truth_model.sum((2, 3)), rtol=1e-6)


def test_manifest_and_growth(tmp_path: Path):
    files = SceneFiles(CONFIG)
    manifest = Production(files, 3, tmp_path, quiet=True).go()
    assert manifest == read_manifest(tmp_path) and manifest["complete"] and manifest["counts"]["scenes"] == 3
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        path.name: sha256(path) for path in tmp_path.glob("scene_*.npz")
    }
    sources = sum(len(np.load(path)["catalog"]) for path in tmp_path.glob("*.npz"))
    assert manifest["counts"]["sources"] == sources
    first = (tmp_path / "scene_000000.npz").stat().st_mtime_ns
    (tmp_path / "scene_000001.npz").write_bytes(b"damaged")
    grown = Production(files, 5, tmp_path, quiet=True).go()
    assert grown["counts"]["scenes"] == 5
    assert (tmp_path / "scene_000000.npz").stat().st_mtime_ns == first  # kept
    assert sha256(tmp_path / "scene_000001.npz") == manifest["files"]["scene_000001.npz"]["sha256"]  # mended
    with pytest.raises(DataError, match="number: expected at least 5, received 4"):
        Production(files, 4, tmp_path, quiet=True).go()


def test_other_configurations_are_refused_unless_overwritten(tmp_path: Path):
    Production(SceneFiles(CONFIG), 3, tmp_path, quiet=True).go()
    other = SceneFiles(replace(CONFIG, seed=2))
    with pytest.raises(DataError, match=r"config.seed: expected 0 as before, received 2; give --overwrite or another"):
        Production(other, 3, tmp_path, quiet=True).go()
    assert Production(other, 2, tmp_path, overwrite=True, quiet=True).go()["config"]["seed"] == 2
    assert not (tmp_path / "scene_000002.npz").exists()
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"manifest.json: manifest: expected the manifest of a simulation"):
        Production(other, 2, tmp_path, quiet=True).go()
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"expected a manifest beside scene_000000.npz, received none"):
        Production(other, 2, tmp_path, quiet=True).go()


@pytest.mark.slow
def test_workers_do_not_matter(tmp_path: Path):
    for workers in (1, 3):
        Production(SceneFiles(CONFIG), 40, tmp_path / str(workers), workers=workers, quiet=True).go()
    assert read_manifest(tmp_path / "1") == read_manifest(tmp_path / "3")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path):
    options = ["--number", "60", "--size", "32", "--sources", "1-3", "--quiet", "--seed", "4", "--workers", "2"]
    command = [sys.executable, "-m", "tfdeblend", "simulate", *options, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, str(cut)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(cut.glob("scene_*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the workers end with their parent
    left = len(list(cut.glob("scene_*.npz")))
    assert 0 < left < 60 and read_manifest(cut) is not None
    time.sleep(0.5)
    assert len(list(cut.glob("scene_*.npz"))) == left
    subprocess.run([*command, str(cut)], check=True, stdout=subprocess.DEVNULL)
    assert read_manifest(cut) == read_manifest(tmp_path / "whole")
    assert sorted(path.name for path in cut.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_records_give_arrays_back(tmp_path: Path):
    import tensorflow as tf

    files = SceneFiles(CONFIG, "tfrecord")
    Production(files, 3, tmp_path, quiet=True).go()
    serialized = [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "scenes_00000.tfrecord"))]
    assert len(serialized) == 3
    expected, found = files.simulator.scene(2).arrays(), decode(serialized[2])
    assert encode(expected) == serialized[2]
    for name, values in expected.items():
        if values.dtype.names:
            np.testing.assert_allclose(found[f"{name}/x"], values["x"], rtol=1e-6)
            np.testing.assert_array_equal(found[f"{name}/type"], values["type"])
        else:
            np.testing.assert_array_equal(np.squeeze(found[name]), values)
    spec = {"images": tf.io.FixedLenFeature([], tf.string), "catalog/x": tf.io.VarLenFeature(tf.float32)}
    parsed = tf.io.parse_single_example(serialized[2], spec)
    np.testing.assert_array_equal(tf.io.parse_tensor(parsed["images"], tf.float32), expected["images"])


def test_stamp_files(tmp_path: Path):
    config = StampConfig(Population(), HSC, side=16, seed=1)
    manifest = Production(StampFiles(config), 30, tmp_path, quiet=True).go()
    with np.load(tmp_path / "stamps_00000.npz") as archive:
        assert archive["stamps"].shape == (30, 5, 16, 16) and len(archive["catalog"]) == 30
    assert manifest["counts"] == {"files": 1, "stamps": 30} and manifest["kind"] == "stamps"
    with pytest.raises(DataError, match="format: expected npz or tfrecord, received 'fits'"):
        StampFiles(config, "fits")


def test_real_galaxies(data: Path):
    folder = str(data / "hst_galaxies")
    every = np.asarray(read_catalogue(folder).ident).astype(str)
    parts = {}
    for split in ("train", "test"):
        rng, colors = np.random.default_rng(0), Colors.of(HSC.throughputs)
        drawn = RealPopulation(folder, split=split).draw(rng, 600, colors, ZEROPOINTS, HSC.bands)
        parts[split] = set(drawn.catalog(HSC.bands)["ident"])
    assert len(parts["train"]) == 35 and len(parts["test"]) == 15
    assert parts["train"] | parts["test"] == set(every)
    camera = Camera.of_survey(HSC)
    for row in range(5):
        image = camera.draw(drawn.components(row), 40, 40, (81, 81))
        np.testing.assert_allclose(image.sum((1, 2)), drawn.flux[row], rtol=0.02)
    with pytest.raises(
        DataError, match="expected galaxies of F814W magnitudes from 10 to 12 in split all, received none"
    ):
        draw_stamps(RealPopulation(folder, 10, 12, "all"), HSC, 1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    arguments = ["simulate", "--number", "2", "--size", "32", "--sources", "2", "--quiet", "--json"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"files": 2, "scenes": 2, "sources": 4} and document["complete"]
    for extra, problem in (
        (["--survey", "sdss"], "survey: expected hsc"),
        (["--galaxies", str(tmp_path)], "catalog.fits: expected a catalogue"),
        (["--seed", "5"], "config.seed: expected 0 as before, received 5"),
        (["--bright", "30"], "magnitude: expected"),
    ):
        assert cli.main([*arguments, "--out", str(tmp_path), *extra]) == 2
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1
