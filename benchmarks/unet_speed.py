"""Speed of the U-Net on a CPU against the same network in PyTorch: forward, gradient by the input, a training step.

    python -m benchmarks.unet_speed --work bench [--side 64 --channels 5 --batch 32 --threads 2]

They take turns, several rounds each, and the best of all repeats counts: other work on the machine slows all. Ours is
timed with bfloat16 products, too, as `training` takes them where a configuration says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from benchmarks import environments

TASKS = ("forward", "input_gradient", "training")
WIDTHS = (24, 48, 96, 160)


def best(task: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    task()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure(
    side: int, channels: int, batch: int, threads: int, repeats: int, precision: str = "float32"
) -> dict[str, float | int | str]:
    """Seconds a batch of ours for each of TASKS, in cached graphs; in a process of its own."""
    import keras

    from tfdeblend.networks import UNet

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.config.set_dtype_policy(precision)
    net = UNet(side, channels, channels, WIDTHS, gated=True)
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(net.trainable_variables)
    x, number = tf.random.stateless_normal([batch, side, side, channels], (0, 0)), tf.zeros([batch])

    def input_gradient() -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            loss = tf.reduce_mean(net((x, number)) ** 2)
        return tape.gradient(loss, x)

    def train() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net((x, number)) - x) ** 2)
        optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)
        return loss

    tasks = {"forward": lambda: net((x, number)), "input_gradient": input_gradient, "training": train}
    compiled = {name: tf.function(task, autograph=False) for name, task in tasks.items()}
    seconds = {name: best(functools.partial(_finish, task), repeats) for name, task in compiled.items()}
    return {"version": tf.__version__, "parameters": net.count_params(), **seconds}


def _finish(task: Callable[[], tf.Tensor]) -> None:
    task().numpy()


def run(command: list[str | Path]) -> dict[str, float]:
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("bench"), help="folder for everything made (default bench)")
    defaults = {"side": 64, "channels": 5, "batch": 32, "threads": 2, "repeats": 10}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, help="with PyTorch (default: an environment made below --work)")
    parser.add_argument("--precision", default="float32", help="of --ours, a policy of Keras")
    parser.add_argument("--ours", action="store_true", help="time ours only, in this process, and print JSON")
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in defaults}
    if args.ours:
        print(json.dumps(measure(**settings, precision=args.precision)))
        return
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    torch = args.python or environments.create("torch", args.work / "environments")
    peer = [torch, Path(__file__).parent / "torch_unet.py", *options, "--widths", *map(str, WIDTHS)]
    ours = [sys.executable, "-m", "benchmarks.unet_speed", "--ours", *options]
    mixed = [*ours, "--precision", "mixed_bfloat16"]
    commands: dict[str, list[str | Path]] = {"ours": [*ours], "mixed": [*mixed], "torch": [*peer]}
    rounds = [{name: run(command) for name, command in commands.items()} for _ in range(args.rounds)]
    table = {task: {name: min(r[name][task] for r in rounds) / args.batch * 1e3 for name in commands} for task in TASKS}
    print(f"{'ms a stamp':16}{'ours':>8}{'mixed':>8}{'torch':>8}{'torch / ours':>14}")
    for task, row in table.items():
        print(f"{task:16}{row['ours']:8.2f}{row['mixed']:8.2f}{row['torch']:8.2f}{row['torch'] / row['ours']:14.2f}")
    found = {name: {key: rounds[0][name][key] for key in ("version", "parameters")} for name in commands}
    args.work.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings, "milliseconds": table, "environments": found}
    (args.work / "unet_speed.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
