"""A model server under load: right answers, refusals, throughput over gRPC against direct batches, latency, memory.

    python -m benchmarks.serving BASE --requests 200

Starts `export.serve` on a folder of exported models, of which it takes the one of 32-pixel images.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from export import warmup
from export.layout import versions
from export.proofs.figures import difference
from export.proofs.reference import bucket_of

Arrays = dict[str, np.ndarray]
CLIENTS, BATCH = 16, 8
MALFORMED = 0.05
LARGEST = 1e-5


@dataclass
class Tally:
    """What came back. seconds: of each request that was answered."""

    seconds: list[float] = field(default_factory=list)
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
            "p50": float(p50),
            "p99": float(p99),
        }


def resident(process: int) -> float:
    """Megabytes of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def blends(folder: Path, signature: str, number: int) -> list[Arrays]:
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


def direct(folder: Path, signature: str, requests: list[Arrays], repeat: int) -> tuple[list[Arrays], float]:
    """The model's own answers, and blends a second in batches."""
    model = tf.saved_model.load(str(folder))
    function = model.signatures[signature]

    def run(given: list[Arrays]) -> Arrays:
        inputs = {name: tf.constant(np.concatenate([one[name] for one in given])) for name in given[0]}
        return {name: value.numpy() for name, value in function(**inputs).items()}

    size = min(BATCH, len(requests))
    run(requests[:size])  # warms up
    answers = [run([one]) for one in requests]
    began = time.perf_counter()
    for _ in range(repeat):
        run(requests[:size])
    return answers, repeat * size / (time.perf_counter() - began)


def load(address: str, model: str, signature: str, requests: list[Arrays], answers: list[Arrays], number: int) -> dict:
    """`number` requests from CLIENTS clients, some malformed."""
    tally, rng = Tally(), np.random.default_rng(4)
    broken = rng.random(number) < MALFORMED
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    stubs = [PredictionServiceStub(grpc.insecure_channel(address, options)) for _ in range(CLIENTS)]

    def one(index: int) -> None:
        which = index % len(requests)
        request = PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        warmup.fill(request, malformed(requests[which], index) if broken[index] else requests[which])
        began = time.perf_counter()
        try:
            answer = stubs[index % CLIENTS].Predict(request, timeout=3600)
        except grpc.RpcError as error:
            if broken[index] and error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                tally.refused += 1
            else:
                tally.failed.append(f"{error.code()}: {error.details()}")
            return
        tally.seconds.append(time.perf_counter() - began)
        found = {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}
        tally.not_refused += int(broken[index])
        tally.wrong += int(difference(found, answers[which]) > LARGEST)

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(number)))
    return tally.facts(time.perf_counter() - began)


def malformed(request: Arrays, index: int) -> Arrays:
    """Another dtype, another shape, or an input missing."""
    name = next(iter(request))
    value = request[name]
    changes = (
        {name: value.astype(np.float64)},
        {name: value[:, :1]},
        {name: np.repeat(value, 2, 0)},
    )
    if index % 4 == 3:
        return {key: one for key, one in request.items() if key != name}
    return request | changes[index % 4 % 3]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=str(__doc__).split("\n")[0])
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("--model", default="hsc-grizy-64_32x4")
    parser.add_argument("--signature", action="append", help="may be repeated (default: map, denoise, sample_16)")
    parser.add_argument("--requests", type=int, default=10_000, help="(default: 10000; of sample_16 a fiftieth)")
    parser.add_argument("--different", type=int, default=16, help="blends (default: 16)")
    args = parser.parse_args(argv)
    folder = args.base / args.model / str(versions(args.base / args.model)[-1])
    command = [sys.executable, "-m", "export.serve", str(args.base), "--port", "0", "--rest-port", "0"]
    began = time.perf_counter()
    facts: dict = {"model": args.model}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        ports = json.loads(server.stdout.readline())
        facts["cold_start"] = time.perf_counter() - began
        for signature in args.signature or ["map", "denoise", "sample_16"]:
            number = max(args.requests // 50, 1) if signature.startswith("sample") else args.requests
            different = 2 if signature.startswith("sample") else args.different
            requests = blends(folder, signature, different)
            answers, speed = direct(folder, signature, requests, repeat=1 if signature.startswith("sample") else 3)
            before = resident(server.pid)
            found = load(f"127.0.0.1:{ports['grpc']}", args.model, signature, requests, answers, number)
            found |= {"direct_per_second": speed, "ratio": found["per_second"] / speed}
            found["megabytes"] = [before, resident(server.pid)]
            facts[signature] = found
            print(json.dumps({signature: found}), flush=True)
        server.send_signal(signal.SIGTERM)
        facts["exit"] = server.wait()
    print(json.dumps(facts, indent=2))
    bad = ("wrong", "failed", "malformed_not_refused")
    good = all(not v[name] for v in facts.values() if isinstance(v, dict) for name in bad)
    return 0 if good and facts["exit"] == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
