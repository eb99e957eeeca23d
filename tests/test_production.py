"""Simulations as files: whole, the same for any number of workers and interruptions, and listed in a manifest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfdeblend.app import cli
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import sha256
from tfdeblend.io.tfrecords import decode, encode
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.production import MANIFEST, Production, SceneFiles, StampFiles, read_manifest
from tfdeblend.simulation.scenes import SceneConfig
from tfdeblend.simulation.stamps import StampConfig
from tfdeblend.simulation.surveys import SURVEYS

HSC = SURVEYS["hsc"]
CONFIG = SceneConfig(HSC, Population(), sources=(1, 3), size=32)


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
    listed = {"number": 2, "config": {}, "files": {"scene_000000.npz": {"sha256": "a"}}}
    odd = [{"number": "2"}, {"config": []}, {"files": ["a"]}, {"files": {"a": 3}}, {"files": {"a": {"sha256": []}}}]
    texts = ["{", "[]", "3", "\0", "[" * 100_000, *(json.dumps(listed | change) for change in odd)]
    for text in texts:
        (tmp_path / MANIFEST).write_text(text)
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
