"""An installed wheel simulates, deblends, trains, exports and serves, away from the clone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("LICENSE", "README.md", "export", "pyproject.toml", "setup.cfg", "setup.py", "tfdeblend", "training")
FIT = {"steps": 2, "epoch": 1, "batch": 8, "warmup": 1}
NETWORK = {"widths": [8], "blocks": [1], "embedding": 8}
TRAINING = {
    "name": "tiny",
    "stamps": "stamps",
    "train": "*.npz",
    "held_out": "*.npz",
    "evaluation_stamps": 8,
    "bands": ["g", "r", "i", "z", "y"],
    "side": 16,
    "pixel_scale": 0.168,
    "model_sigma": 1.0,
    "mean_fit": FIT,
    "head_fit": FIT,
    "network": NETWORK,
    "head": NETWORK | {"patch": 4, "head_kernel": 1},
    "rank": 1,
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel alone; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    clone.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(clone)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "No matching distribution found for setuptools" in built.stdout + built.stderr:
        pytest.skip("no package index to build a wheel with")
    assert built.returncode == 0, built.stdout + built.stderr
    shutil.rmtree(clone)
    venv.create(folder / "environment")
    packages = next((folder / "environment").glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    python = folder / "environment" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, env=outside())
    return python.parent


def outside() -> dict[str, str]:
    """Environment variables without this clone's."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
def test_every_command_of_a_wheel(programs: Path, tmp_path: Path):
    use_every_command(programs, tmp_path)


def use_every_command(programs: Path, folder: Path) -> None:
    """From blends to a served model's answer, in an empty folder. programs: the `bin` of an environment."""

    def run(*arguments: str) -> str:
        command = [str(programs / "tfdeblend"), *arguments]
        done = subprocess.run(command, cwd=folder, env=outside(), capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    where = [str(programs / "python"), "-c", "import tfdeblend.training.card as c; print(c.__file__)"]
    found = subprocess.run(where, cwd=folder, env=outside(), capture_output=True, text=True, check=True).stdout
    assert programs.parent in Path(found).parents
    run("simulate", "--number", "2", "--size", "32", "--sources", "1-2", "--out", "blends")
    run("simulate", "--stamps", "--number", "16", "--size", "16", "--out", "stamps")
    deblend = ["deblend", "blends", "--prior", "exponential", "--json", "--quiet"]
    here = json.loads(run(*deblend, "--out", "here"))
    (folder / "tiny.json").write_text(json.dumps(TRAINING))
    run("train", "--config", "tiny.json", "--out", "trained")
    assert (folder / "trained" / "tiny.keras").stat().st_size > 1000
    run("export", "--prior", "exponential", "--side", "32", "--out", "models")
    command = [str(programs / "tfdeblend"), "serve", "models", "--port", "0", "--rest-port", "0"]
    with subprocess.Popen(command, cwd=folder, env=outside(), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = json.loads(server.stdout.readline())["grpc"]
            there = json.loads(run(*deblend, "--out", "there", "--server", f"grpc://127.0.0.1:{port}"))
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=120) == 0
    assert here["counts"] == there["counts"] and here["counts"]["done"] == 2
