"""Runs of expectation-maximisation: what they write, a killed one ends where a whole one does, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfdeblend import cluster
from tfdeblend.app.cli import main
from tfdeblend.diffusion import registry
from tfdeblend.em import Stamps
from tfdeblend.errors import DataError
from tfdeblend.io import npz
from tfdeblend.training import train_em
from tfdeblend.training.config import FitConfig, NetworkConfig
from tfdeblend.training.datasets import read_records
from tfdeblend.training.em_blends import split_of
from tfdeblend.training.em_config import EMConfig, SamplingConfig, StartConfig
from tfdeblend.training.em_evaluation import rise

CONFIGS = sorted((Path(__file__).parents[1] / "training" / "configs" / "em").glob("*.json"))
NETWORK = NetworkConfig(widths=(8,), blocks=(1,), embedding=8)
FIT = FitConfig(steps=4, epoch=2, batch=8, warmup=1, ema=0.9)


def write_blends(folder: Path, number: int = 14) -> None:
    """Scenes of two round galaxies each."""
    rng = np.random.default_rng(0)
    y, x = np.indices((32, 32))
    t = np.arange(-7, 8)
    psf = np.exp(-(t[:, None] ** 2 + t**2) / (2 * 2.0**2))
    for index in range(number):
        places = np.array([[13, 13], [13, 20]]) + rng.uniform(-1, 1, (2, 2))
        size, flux = rng.uniform(2.2, 3.2, 2), rng.uniform(500, 2000, 2)
        image = sum(
            f * np.exp(-((y - p[0]) ** 2 + (x - p[1]) ** 2) / (2 * s**2)) / (2 * np.pi * s**2)
            for f, p, s in zip(flux, places, size, strict=True)
        )
        arrays = {
            "images": (image + rng.standard_normal(image.shape))[None].astype(np.float32),
            "weights": np.ones((1, 32, 32), np.float32),
            "psfs": (psf / psf.sum())[None].astype(np.float32),
            "filters": np.array(["i"]),
            "peaks": places[:, ::-1],
            "pixel_scale": np.array(0.168),
        }
        npz.write(folder / f"blend_{index}.npz", arrays)


def tiny(blends: Path) -> EMConfig:
    return EMConfig(
        name="tiny",
        blends=(str(blends),),
        bands=("i",),
        side=16,
        pixel_scale=0.168,
        start=StartConfig("gaussian", rank=2, iterations=1),
        mean_fit=FIT,
        head_fit=FIT,
        iterations=2,
        sampling=SamplingConfig(steps=2),
        validation=0.3,
        test=0.2,
        evaluation_samples=4,
        patience=5,
        least_dispersion=0.01,
        network=NETWORK,
        head=dataclasses.replace(NETWORK, patch=4, head_kernel=1),
        rank=2,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[EMConfig, Path]:
    folder = tmp_path_factory.mktemp("em")
    (folder / "blends").mkdir()
    write_blends(folder / "blends")
    config = tiny(folder / "blends")
    train_em.Run(config, folder / "out").run()
    return config, folder / "out"


def weights(path: Path) -> list[np.ndarray]:
    return registry.find(str(path)).load().get_weights()


@pytest.mark.slow
def test_a_run_leaves_what_it_says(whole: tuple[EMConfig, Path]):
    config, out = whole
    summary = json.loads((out / "summary.json").read_text())
    assert [one["iteration"] for one in summary["validation"]] == [0, 1, 2]
    assert np.isfinite([one["log_predictive"] for one in summary["validation"]]).all()
    assert all(one["kept"] > 0 for one in summary["validation"][1:])
    assert {"best", "rise", "test", "test_rise"} <= set(summary)
    assert (out / "iterations.png").stat().st_size > 1000 and list((out / "tensorboard").glob("events*"))
    assert (out / "iteration_000" / "prior.npz").exists() and (out / "iteration_002" / "prior.keras").exists()
    assert len(list(out.glob("tiny.*"))) == 1
    assert EMConfig.read(out / "em.json") == config


@pytest.mark.slow
def test_a_killed_run_ends_where_a_whole_one_does(whole: tuple[EMConfig, Path], tmp_path: Path):
    """Killed in the middle of the last iteration: some samples, no prior."""
    config, out = whole
    killed = tmp_path / "out"
    shutil.copytree(out, killed)
    iteration = killed / "iteration_002"
    for path in [*iteration.iterdir(), killed / "summary.json"]:
        if path.name != "samples":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (iteration / "samples" / "train_00000.tfrecord").unlink()
    train_em.Run(config, killed).run()
    for one, two in zip(
        weights(killed / "iteration_002/prior.keras"), weights(out / "iteration_002/prior.keras"), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.slow
def test_workers_draw_the_same_samples(whole: tuple[EMConfig, Path], tmp_path: Path):
    """To the last bit where threads agree: a file that is cut short is drawn again, by a worker, as it was."""
    pytest.importorskip("distributed")
    config, out = whole
    again = tmp_path / "out"
    shutil.copytree(out, again)
    (again / "iteration_002" / "scores.json").unlink()
    first, *rest = sorted((again / "iteration_002" / "samples").glob("*.tfrecord"))
    first.write_bytes(first.read_bytes()[:-100])
    for path in rest:
        path.unlink()
    with cluster.executor(1) as submit:
        train_em.Run(config, again, submit).expect(2)
    for path in (first, *rest):
        one, two = (read_records(folder / "iteration_002" / "samples" / path.name) for folder in (out, again))
        np.testing.assert_allclose(one, two, atol=1e-5)
        assert Stamps.is_whole(path)


def test_samples_are_whole_as_they_were_written(tmp_path: Path):
    path = tmp_path / "train_00000.tfrecord"
    images = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    assert not Stamps.is_whole(path)
    Stamps(images, np.full(3, "a"), np.arange(3)).write(path)
    assert Stamps.is_whole(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert not Stamps.is_whole(path)
    path.unlink()
    assert not Stamps.is_whole(path)


@pytest.mark.slow
def test_iterations_that_collapse_end_the_run(whole: tuple[EMConfig, Path], tmp_path: Path):
    """Samples that are all alike from the second iteration on: reported, and the first iteration's prior is kept."""
    config, out = whole
    killed = tmp_path / "out"
    shutil.copytree(out, killed)
    (killed / "iteration_002" / "scores.json").unlink()
    for path in (killed / "iteration_002" / "samples").glob("train_*"):
        images = read_records(path)
        same = np.repeat(images[:1], len(images), 0)
        Stamps(same, np.full(len(same), ""), np.zeros(len(same), int)).write(path)
    summary = train_em.Run(dataclasses.replace(config, least_dispersion=0.3), killed).run()
    assert "iteration 2: dispersion: expected at least 0.3" in summary["collapse"]
    assert summary["best"] < 2 and (killed / "summary.json").exists()


@pytest.mark.slow
def test_other_settings_or_blends_are_refused(whole: tuple[EMConfig, Path], tmp_path: Path):
    config, out = whole
    with pytest.raises(DataError, match="expected the configuration that this folder was begun with"):
        train_em.Run(dataclasses.replace(config, samples=3), out)
    other = tmp_path / "out"
    shutil.copytree(out, other)
    (other / "initial_fits" / "blends.sha256").write_text("0")
    with pytest.raises(DataError, match="expected the blends that this folder was begun with"):
        train_em.Run(config, other)


def test_a_start_for_other_stamps_is_refused(tmp_path: Path):
    config = dataclasses.replace(tiny(tmp_path), start=StartConfig("prior", "hsc-grizy-64"))
    with pytest.raises(DataError, match=r"expected bands, side, .*\('i',\), 16"):
        train_em.Run(config, tmp_path / "out")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_valid(path: Path, tmp_path: Path):
    config = EMConfig.read(path)
    (tmp_path / "again.json").write_text(config.text())
    assert EMConfig.read(tmp_path / "again.json") == config


def test_what_is_not_said_of_samples_is_as_iterations_have_it(tmp_path: Path):
    document = json.loads(CONFIGS[0].read_text())
    (tmp_path / "em.json").write_text(json.dumps(document | {"sampling": {"steps": 5}}))
    assert EMConfig.read(tmp_path / "em.json").sampling == SamplingConfig(steps=5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"share": 0.0}, "share: expected"),
        ({"iterations": 0}, "iterations: expected at least 1"),
        ({"validation": 0.6, "test": 0.5}, "expected less than all blends"),
        ({"start": {"kind": "prior"}}, "expected a prior for kind"),
        ({"start": {"kind": "hst"}}, "expected gaussian, fits, prior"),
        ({"evaluation_samples": 2}, "evaluation_samples: expected at least 4"),
        ({"iteration": 3}, "received iteration"),
    ],
)
def test_wrong_settings_are_told_in_one_line(changes: dict, expected: str, tmp_path: Path):
    document = json.loads(CONFIGS[0].read_text())
    (tmp_path / "em.json").write_text(json.dumps(document | changes))
    with pytest.raises(ValueError, match=expected):
        EMConfig.read(tmp_path / "em.json")


def test_the_command_tells_errors(tmp_path: Path, capsys):
    config = tmp_path / "em.json"
    config.write_text(dataclasses.replace(tiny(tmp_path / "none"), name="x").text())
    assert main(["em", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err


def test_splits_are_by_name_and_of_the_shares_asked_for(tmp_path: Path):
    config = tiny(tmp_path)
    splits = [split_of(f"scene_{i}", config) for i in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(config.test, abs=0.03)
    assert splits.count("validation") / 4000 == pytest.approx(config.validation, abs=0.03)


def test_iterations_of_a_share_go_through_all_shards():
    run = object.__new__(train_em.Run)
    run.config = dataclasses.replace(tiny(Path()), share=0.3)
    run.blends = type("Blends", (), {"shards": {"training": list(range(10))}})()
    iterations = [run.shards_of(iteration) for iteration in range(1, 10)]
    for turn in (iterations[:3], iterations[3:6], iterations[6:]):
        assert sorted(number for iteration in turn for number in iteration) == list(range(10))
    assert iterations[:3] != iterations[3:6]


def test_a_rise_has_an_interval():
    rng = np.random.default_rng(0)
    before = {str(i): (rng.normal(), 1.0) for i in range(200)}
    after = {name: (value + 0.5 + 0.1 * rng.standard_normal(), 1.0) for name, (value, _) in before.items()}
    told = rise(before, after)
    assert told["low"] < told["mean"] < told["high"] and told["mean"] == pytest.approx(0.5, abs=0.03)
    assert told["risen"] > 0.99
