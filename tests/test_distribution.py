"""One training on several devices or processes ends at the weights of one, and where it cannot it is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trainings import tiny

from tfdeblend.diffusion import registry
from tfdeblend.errors import DataError
from tfdeblend.training import distribution
from tfdeblend.training.config import DenoiserConfig, FitConfig

TRAIN = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
from tfdeblend.app.cli import main
sys.exit(main(["train", "--config", sys.argv[2], "--out", sys.argv[3]]))
"""


def start(config: DenoiserConfig, folder: Path, devices: int = 1, cluster: dict | None = None) -> subprocess.Popen:
    """Trains in a process of its own, on so many devices, or as one of a cluster's processes."""
    file = folder / f"{config.strategy}.json"
    config.write(file)
    env = os.environ | ({"TF_CONFIG": json.dumps(cluster)} if cluster else {})
    command = [sys.executable, "-c", TRAIN, str(devices), str(file), str(folder / f"out_{config.strategy}")]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def weights(folder: Path, strategy: str | None) -> list[np.ndarray]:
    return registry.find(str(folder / f"out_{strategy}" / "tiny.keras")).load().get_weights()


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[DenoiserConfig, Path]:
    """The training of one process on one device. Gradients are clipped, averaged weights kept."""
    folder = tmp_path_factory.mktemp("one")
    fit = FitConfig(steps=4, epoch=2, batch=4, warmup=1, ema=0.5, clip=0.1)
    config = dataclasses.replace(tiny(folder), mean_fit=fit, head_fit=fit)
    process = start(config, folder)
    assert process.wait(900) == 0, process.stderr and process.stderr.read()
    return config, folder


def assert_the_same(folder: Path, strategy: str) -> None:
    for mine, theirs in zip(weights(folder, None), weights(folder, strategy), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.slow
def test_two_devices_equal_one(one: tuple[DenoiserConfig, Path]) -> None:
    config, folder = one
    process = start(dataclasses.replace(config, strategy="mirrored"), folder, devices=2)
    assert process.wait(900) == 0, process.stderr and process.stderr.read()
    assert_the_same(folder, "mirrored")


@pytest.mark.slow
def test_two_processes_equal_one(one: tuple[DenoiserConfig, Path]) -> None:
    """On the loopback; the first one writes, and both end well."""
    config, folder = one
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    clusters = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in (0, 1)]
    config = dataclasses.replace(config, strategy="multi_worker")
    processes = [start(config, folder, cluster=cluster) for cluster in clusters]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_the_same(folder, "multi_worker")


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("{}", "the addresses of the workers alone, received none"),
        (
            '{"cluster": {"chief": ["one:1"], "worker": ["two:1"]}}',
            "the addresses of the workers alone, received chief, worker",
        ),
        ('{"cluster": ', "a readable, whole file, received JSONDecodeError"),
    ],
)
def test_processes_without_addresses_of_workers_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, received: str
) -> None:
    """Of a chief beside workers the first worker would think that it writes the files, too."""
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(DataError, match=f"TF_CONFIG: cluster: expected {received}"):
        distribution.strategy("multi_worker")


def test_one_process_is_its_own_chief() -> None:
    strategy = distribution.strategy(None)
    assert distribution.is_chief(strategy) and distribution.of_chief(strategy, 3) == 3


def test_unknown_strategies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="strategy: expected null, mirrored or multi_worker, received 'tpu'"):
        dataclasses.replace(tiny(tmp_path), strategy="tpu")


def test_a_training_goes_on_in_other_places(tmp_path: Path) -> None:
    """Where it is trained is none of the settings that a run is begun with."""
    from tfdeblend.training.train_denoiser import begin

    begin(tiny(tmp_path), tmp_path / "config.json")
    begin(dataclasses.replace(tiny(tmp_path), strategy="mirrored"), tmp_path / "config.json")
    with pytest.raises(DataError, match="received another seed"):
        begin(dataclasses.replace(tiny(tmp_path), seed=1), tmp_path / "config.json")
