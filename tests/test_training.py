"""The training script: settings are checked, everything is written, and a killed run ends where a whole one does."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import ks_2samp
from trainings import tiny

from tfdeblend.diffusion.denoisers import NeuralDenoiser, flux_scale
from tfdeblend.errors import DataError
from tfdeblend.networks import UNet
from tfdeblend.training import card
from tfdeblend.training.config import DenoiserConfig
from tfdeblend.training.datasets import Augmentation, moments
from tfdeblend.training.monitors import draw

CONFIGS = Path(__file__).parents[1] / "training" / "configs"


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tfdeblend", "train", "--config", str(config), "--out", str(out)]
    return subprocess.Popen(command, cwd=CONFIGS.parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_configurations_are_valid(path: Path, tmp_path: Path):
    config = DenoiserConfig.read(path)
    config.write(tmp_path / "config.json")
    assert DenoiserConfig.read(tmp_path / "config.json") == config
    assert config.name == path.stem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "received sead"),
        ({"mean_fit": {"steps": 4, "bach": 2}}, "expected keys of FitConfig .* received bach"),
        ({"mean_fit": None}, "expected a FitConfig, received None"),
        ({"precision": "mixed_float16"}, "expected one of float32, mixed_bfloat16, received 'mixed_float16'"),
    ],
)
def test_misspelt_keys_fail(change: dict, message: str, tmp_path: Path):
    values = json.loads((CONFIGS / "hsc-grizy-64.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=rf"bad.json: .*{message}"):
        DenoiserConfig.read(tmp_path / "bad.json")


def test_missing_keys_fail(tmp_path: Path):
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match=r"bad.json: .*missing .*'stamps'"):
        DenoiserConfig.read(tmp_path / "bad.json")


def test_trains_and_writes(tmp_path: Path):
    from tfdeblend.training.train_denoiser import train

    config = tiny(tmp_path)
    denoiser = train(config, tmp_path / "out")
    again = keras.saving.load_model(tmp_path / "out" / "tiny.keras")
    for one, two in zip(denoiser.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert getattr(again, "optimizer", None) is None
    assert again.bands == ("g", "r")
    assert DenoiserConfig.read(tmp_path / "out" / "config.json") == config
    rows = (tmp_path / "out" / "mean" / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    assert {"held_out", "held_out_0.1", "loss"} <= set(rows[0].split(","))
    assert {"denoised.png", "generated.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert list((tmp_path / "out" / "tensorboard" / "pictures").iterdir())
    with pytest.raises(DataError, match=r"config\.json: expected the settings .* received another rank, seed"):
        train(dataclasses.replace(config, seed=1, rank=3), tmp_path / "out")


def test_training_starts_from_the_gaussian_of_its_stamps(tmp_path: Path):
    """Before a fit D is that of the Gaussian fitted to augmented stamps."""
    from tfdeblend.training.train_denoiser import build, gaussian, read

    config = dataclasses.replace(tiny(tmp_path), base_rank=3)
    stamps = read(config, "heldout_*.npy")
    denoiser = build(config, stamps)
    exact = gaussian(stamps, Augmentation(config.flips, config.shift, config.scale_jitter), 3, config.seed)
    noise = np.random.default_rng(0).standard_normal(stamps[:4].shape).astype("float32")
    for sigma in (1e-4, 0.01, 1.0, 1e3):
        x, level = stamps[:4] + sigma * noise, np.full(4, sigma, "float32")
        expected = exact.denoise(x, level)
        np.testing.assert_allclose(denoiser.denoise(x, level), expected, atol=2e-3 * min(sigma, 0.1) + 1e-6)


@pytest.mark.slow
def test_a_base_trains_as_networks_do(tmp_path: Path):
    from tfdeblend.training.train_denoiser import train

    denoiser = train(dataclasses.replace(tiny(tmp_path), base_rank=3), tmp_path / "out")
    again = keras.saving.load_model(tmp_path / "out" / "tiny.keras")
    assert again.base_rank == 3
    for one, two in zip(denoiser.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, "tiny.keras"])
def test_mixed_precision_is_of_training_alone(start: str | None, tmp_path: Path):
    """Products of bfloat16; the denoiser around them, what is saved and what starts from it are float32."""
    from tfdeblend.training.train_denoiser import build, read, train

    config = dataclasses.replace(tiny(tmp_path), precision="mixed_bfloat16")
    stamps = read(config, config.held_out)
    exact = build(dataclasses.replace(config, precision="float32"), stamps)
    if start is not None:
        exact.save(tmp_path / start)
        config = dataclasses.replace(config, start=str(tmp_path / start))
    mixed, sigma = build(config, stamps), np.full(4, 0.1, "float32")
    assert {layer.compute_dtype for layer in mixed.network.layers if "first" in layer.name} == {"bfloat16"}
    assert mixed.compute_dtype == keras.config.dtype_policy().name == "float32"
    for one, two in zip(exact.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    (mean, v), (expected, expected_v) = (each.posterior(stamps[:4], sigma) for each in (mixed, exact))
    assert mean.dtype == v.diagonal.dtype == v.factor.dtype == "float32"
    np.testing.assert_allclose(mean, expected, atol=0.02 * np.sqrt(exact.prior_variance(sigma)).max())
    np.testing.assert_allclose(v.variance, expected_v.variance, rtol=0.05)
    trained = train(config, tmp_path / "out")
    assert {layer.compute_dtype for layer in trained.network.layers} == {"float32"}
    assert all(np.isfinite(one).all() for one in trained.get_weights())


def test_pictures_show_every_band(tmp_path: Path):
    """A galaxy of the bluest, middle or reddest band alone is blue, green or red; one band is grey."""
    galaxy = np.exp(-((np.arange(16) - 8) ** 2 + (np.arange(16)[:, None] - 8) ** 2) / 8)
    draw(np.eye(3)[:, :, None, None] * galaxy, 3, tmp_path / "three.png")
    draw(galaxy[None, None], 1, tmp_path / "one.png")
    three, one = (imread(tmp_path / name)[..., :3] for name in ("three.png", "one.png"))
    assert [int(np.argmax(part.mean((0, 1)))) for part in np.split(three, 3, axis=1)] == [2, 1, 0]
    assert np.ptp(one, axis=-1).max() == 0 and one.std() > 0.05


def test_two_samples_of_one_distribution_and_of_two():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal(400), rng.standard_normal(300)
    same, other = card.two_sample(one, two), card.two_sample(one, two + 0.5)
    expected = ks_2samp(one, two, method="asymp")
    np.testing.assert_allclose([same["distance"], same["level"]], [expected.statistic, expected.pvalue], rtol=0.05)
    assert other["level"] < 1e-4 < 0.05 < same["level"]


def test_a_card_of_a_prior(tmp_path: Path):
    """All parts of it, for a prior that was hardly trained."""
    rng = np.random.default_rng(1)
    r = np.hypot(*np.mgrid[-8:8, -8:8])
    stamps = np.exp(-r / rng.uniform(1, 3, (96, 1, 1, 1))).astype(np.float32)
    for name, part in (("train_0", stamps[:64]), ("heldout_0", stamps[64:])):
        np.save(tmp_path / f"{name}.npy", part)
    denoiser = NeuralDenoiser(UNet(16, 1, 1, widths=(8, 8), blocks=(1, 1), gated=True), bands=("i",), name="tiny")
    unit = stamps / flux_scale(stamps)[:, None, None, None]
    denoiser.set_moments(*moments(unit, Augmentation()))
    denoiser.save(tmp_path / "tiny.keras")
    options = ["--number", "32", "--gaussian", "64", "--out", str(tmp_path / "card")]
    card.main(["--prior", str(tmp_path / "tiny.keras"), "--stamps", str(tmp_path), *options])
    told = json.loads((tmp_path / "card" / "tiny.json").read_text())
    assert (tmp_path / "card" / "tiny.png").stat().st_size > 1000
    assert set(told["two_sample"]) >= {"flux", "size", "ellipticity"}
    losses = told["losses"]["0.1"]
    assert losses["gaussian"]["nats"] > losses["prior"]["nats"]  # the first knows that pixels go together
    np.testing.assert_allclose(losses["prior"]["nats"], losses["prior"]["nats_alone"], rtol=0.01)  # untrained: not


@pytest.mark.slow
def test_killed_twice_ends_at_the_same_weights(tmp_path: Path):
    tiny(tmp_path).write(tmp_path / "tiny.json")
    whole = start(tmp_path / "tiny.json", tmp_path / "whole")
    assert whole.wait(600) == 0
    for phase, rows in (("mean", 3), ("head", 2)):  # killed after so many lines of the log
        run = start(tmp_path / "tiny.json", tmp_path / "killed")
        log = tmp_path / "killed" / phase / "log.csv"
        limit = time.monotonic() + 600
        while run.poll() is None and time.monotonic() < limit:
            if log.exists() and len(log.read_text().splitlines()) >= rows:
                break
            time.sleep(0.02)
        assert run.poll() is None, "ended before it could be killed"
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert start(tmp_path / "tiny.json", tmp_path / "killed").wait(600) == 0
    first, second = (keras.saving.load_model(tmp_path / name / "tiny.keras") for name in ("whole", "killed"))
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
