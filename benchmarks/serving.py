"""A model server under load: right answers, refusals, throughput against direct batches, latency, memory.

    python -m benchmarks.serving BASE --requests 200

Starts `tfdeblend serve` on a copy of a folder of exported models and asks all of them in turn, over gRPC and REST; then
puts a new version of each into service under load; then stops the server while it is at work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.errors import DataError
from tfdeblend.export import warmup
from tfdeblend.export.layout import versions
from tfdeblend.export.proofs.figures import difference
from tfdeblend.export.proofs.reference import bucket_of
from tfdeblend.transport import Arrays, ServerError, connect

CLIENTS, BATCH = 16, 8
MALFORMED = 0.05
LARGEST = 1e-5
REFUSED = ("INVALID_ARGUMENT", "400")
ROUND, ROUNDS = 200, 100  # requests while versions roll over, and how often at most
SHORTEST = 5.0  # seconds that direct batches are timed for


class Case(NamedTuple):
    """A request, what the model itself answers, and the seconds that this takes in batches."""

    model: str
    signature: str
    request: Arrays
    answer: Arrays
    seconds: float


@dataclass
class Tally:
    """What came back. seconds: of each request that was answered. direct: of all of them in direct batches."""

    seconds: list[float] = field(default_factory=list)
    direct: float = 0.0
    wrong: int = 0
    refused: int = 0
    not_refused: int = 0
    failed: list[str] = field(default_factory=list)

    def facts(self, wall: float) -> dict[str, float | int | list[str]]:
        p50, p99 = np.percentile(self.seconds or [np.nan], [50, 99])
        return {
            "answered": len(self.seconds),
            "wrong": self.wrong,
            "malformed_refused": self.refused,
            "malformed_not_refused": self.not_refused,
            "failed": len(self.failed),
            "first_failures": self.failed[:3],
            "per_second": len(self.seconds) / wall,
            "ratio": self.direct / wall,
            "p50": float(p50),
            "p99": float(p99),
        }


def resident(process: int) -> float:
    """Megabytes of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def newest(base: Path, model: str) -> Path:
    return base / model / str(versions(base / model)[-1])


def requests_of(folder: Path, signature: str, number: int) -> list[Arrays]:
    """Different requests of one blend each."""
    bucket = bucket_of(folder)
    given = warmup.example(bucket, number, seed=2)
    if signature == "denoise":
        rng = np.random.default_rng(3)
        sizes = json.loads((folder / "assets" / "prior.json").read_text())
        shape = [1, bucket.channels, sizes["side"], sizes["side"]]
        one = np.ones([1], np.float32)
        return [{"x": rng.normal(size=shape).astype(np.float32), "sigma": one * 0.1 * (i + 1)} for i in range(number)]
    if signature.startswith("sample"):
        given["seed"] = np.arange(2 * number, dtype=np.int32).reshape(number, 2)
    return [{name: value[i : i + 1] for name, value in given.items()} for i in range(number)]


def direct(folder: Path, signature: str, requests: list[Arrays]) -> list[Case]:
    """The model's own answers."""
    model = tf.saved_model.load(str(folder))
    function = model.signatures[signature]

    def run(given: list[Arrays]) -> Arrays:
        inputs = {name: tf.constant(np.concatenate([one[name] for one in given])) for name in given[0]}
        return {name: value.numpy() for name, value in function(**inputs).items()}

    size = min(BATCH, len(requests))
    run(requests[:size])  # warms up
    answers = [run([one]) for one in requests]
    began, blends = time.perf_counter(), 0
    while time.perf_counter() - began < SHORTEST:
        run(requests[:size])
        blends += size
    seconds = (time.perf_counter() - began) / blends
    pairs = zip(requests, answers, strict=True)
    return [Case(folder.parent.name, signature, request, answer, seconds) for request, answer in pairs]


def mixed(cases: list[Case], number: int) -> list[Case]:
    """Requests of 1 to BATCH blends each."""
    rng, found = np.random.default_rng(5), []
    for _ in range(number):
        one = cases[rng.integers(len(cases))]
        alike = [case for case in cases if (case.model, case.signature) == (one.model, one.signature)]
        parts = [alike[i] for i in rng.integers(len(alike), size=rng.integers(1, BATCH + 1))]
        request, answer = (
            {name: np.concatenate([part[name] for part in each]) for name in each[0]}
            for each in ([part.request for part in parts], [part.answer for part in parts])
        )
        found.append(one._replace(request=request, answer=answer, seconds=len(parts) * one.seconds))
    return found


def load(url: str, cases: list[Case], number: int) -> dict:
    """`number` requests from CLIENTS clients, some malformed."""
    tally, rng, lock = Tally(), np.random.default_rng(4), threading.Lock()
    broken = rng.random(number) < MALFORMED
    clients = [connect(url, timeout=3600) for _ in range(CLIENTS)]

    def one(index: int) -> None:
        case = cases[index % len(cases)]
        request = malformed(case.request, index) if broken[index] else case.request
        began = time.perf_counter()
        try:
            found = clients[index % CLIENTS].predict(case.model, case.signature, request)
        except (ServerError, DataError) as error:
            with lock:
                if broken[index] and str(error).startswith(REFUSED):
                    tally.refused += 1
                else:
                    tally.failed.append(str(error))
            return
        seconds, wrong = time.perf_counter() - began, difference(found, case.answer) > LARGEST
        with lock:
            tally.seconds.append(seconds)
            tally.direct += case.seconds
            tally.not_refused += int(broken[index])
            tally.wrong += int(wrong)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(number)))
    return tally.facts(time.perf_counter() - began)


def malformed(request: Arrays, index: int) -> Arrays:
    """Another dtype, another shape, or an input missing."""
    name = next(iter(request))
    value = request[name]
    changes = ({name: value > 0}, {name: value[:, :1]}, {name: np.concatenate([value, value])})
    if index % 4 == 3:
        return {key: one for key, one in request.items() if key != name}
    return request | changes[index % 4]


def roll_over(url: str, base: Path, cases: list[Case], log: Path) -> dict:
    """Load from before new versions are there until they are in service, which the server tells in its log."""
    wanted = []
    for model in sorted({case.model for case in cases}):
        folder = newest(base, model)
        copy = folder.parent / ".copy"
        shutil.copytree(folder, copy)
        wanted.append(f"{model}: version {int(folder.name) + 1} in service")
        copy.rename(folder.parent / str(int(folder.name) + 1))
    total: dict = {"rounds": 0, "wrong": 0, "failed": 0, "malformed_not_refused": 0, "answered": 0}
    while total["rounds"] < ROUNDS:
        found = load(url, cases, ROUND)
        total = {name: value + found.get(name, 1) for name, value in total.items()}
        if all(line in log.read_text() for line in wanted):
            return total
    return total | {"failed": total["failed"] + 1}


def stop(url: str, cases: list[Case], server: subprocess.Popen) -> dict:
    """SIGTERM while requests are at work: what was accepted is answered."""
    results: list[bool] = []

    def one(case: Case) -> None:
        try:
            found = connect(url, timeout=3600).predict(case.model, case.signature, case.request)
        except (ServerError, DataError) as error:
            print(error, file=sys.stderr)
            results.append(False)
        else:
            results.append(difference(found, case.answer) <= LARGEST)

    threads = [threading.Thread(target=one, args=(cases[i % len(cases)],)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(1)  # on their way, and none of them done
    done = len(results)
    server.send_signal(signal.SIGTERM)
    code = server.wait()
    for thread in threads:
        thread.join()
    return {"done_before": done, "failed": results.count(False), "answered": results.count(True), "exit": code}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=str(__doc__).split("\n")[0])
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument(
        "--requests", type=int, default=10_000, help="(default: 10000, 1 in 10 of map; sample_16: 1 in 50)"
    )
    parser.add_argument("--different", type=int, default=16, help="blends of each model (default: 16)")
    args = parser.parse_args(argv)
    names = sorted(path.name for path in args.base.iterdir() if versions(path))
    facts: dict = {"models": {name: megabytes(newest(args.base, name)) for name in names}}
    cases: dict[str, list[Case]] = {}
    for signature in ("map", "denoise", "sample_16"):
        different = 4 if signature == "sample_16" else args.different
        folders = [newest(args.base, name) for name in names]
        found = [direct(one, signature, requests_of(one, signature, different)) for one in folders]
        cases[signature] = [case for each in zip(*found, strict=True) for case in each]
    cases["mixed"] = mixed(cases["map"] + cases["denoise"], max(args.requests // 50, 1))
    with tempfile.TemporaryDirectory() as scratch:
        base, log = Path(scratch) / "models", Path(scratch) / "log"
        for name in names:
            shutil.copytree(newest(args.base, name), base / name / "1")
        command = [sys.executable, "-m", "tfdeblend", "serve", str(base), "--port", "0", "--rest-port", "0"]
        began = time.perf_counter()
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
            ExitStack() as end,
        ):
            end.callback(server.kill)  # whatever fails here; without effect on one that has stopped
            assert server.stdout
            ports = json.loads(server.stdout.readline())
            facts["cold_start"] = time.perf_counter() - began
            grpc, rest = f"grpc://127.0.0.1:{ports['grpc']}", f"http://127.0.0.1:{ports['rest']}"
            few, fits = max(args.requests // 50, 1), max(args.requests // 10, 1)
            plan = [("denoise", grpc, args.requests - fits), ("map", grpc, fits)]
            plan += [("mixed", grpc, len(cases["mixed"])), ("sample_16", grpc, few)]
            plan += [("map", rest, few), ("denoise", rest, few)]
            for signature, url, number in plan:
                before = resident(server.pid)
                told_of = load(url, cases[signature], number)
                told_of["megabytes"] = [before, resident(server.pid)]
                facts[f"{signature} {url.split(':')[0]}"] = told_of
                print(json.dumps({signature: told_of}), flush=True)
            facts["roll_over"] = roll_over(grpc, base, cases["map"], log)
            facts["stop"] = stop(grpc, cases["sample_16"], server)
    print(json.dumps(facts, indent=2))
    bad = ("wrong", "failed", "malformed_not_refused", "exit")
    return int(any(v.get(name) for v in facts.values() if isinstance(v, dict) for name in bad))


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
