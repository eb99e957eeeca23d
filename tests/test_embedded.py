"""The embedded server's parts, where things go wrong: without a model."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef, TensorInfo
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tfdeblend.app.cli import main
from tfdeblend.export.embedded import inputs, models, rest, rpc, work
from tfdeblend.export.embedded.batcher import Batcher, Closed
from tfdeblend.export.embedded.body import Body
from tfdeblend.export.embedded.metrics import Metrics
from tfdeblend.export.embedded.models import DEFAULT, WHOLE, Limits, Models
from tfdeblend.export.embedded.refusal import Refusal

# -- batches


class Held:
    """A batcher whose batches are done when `go` is set; `sizes` are theirs."""

    def __init__(self) -> None:
        self.go, self.sizes = threading.Event(), []
        self.batcher = Batcher(self.run, 8, 64, 1, lambda blends: None)
        self.first = self.submit(0.0)
        while not self.first.running():
            time.sleep(0.01)  # until it is at work, so that all others wait

    def run(self, signature: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.go.wait(10)
        self.sizes.append(len(arrays["x"]))
        return {"y": 2 * arrays["x"]}

    def submit(self, *values: float) -> Future:
        return self.batcher.submit("double", {"x": np.array(values)})

    def end(self) -> list[int]:
        self.go.set()
        self.batcher.close()
        return self.sizes


def test_a_small_request_overtakes_one_that_does_not_fit():
    held = Held()
    futures = [held.submit(*np.arange(size)) for size in (6, 7, 2)]
    sizes = held.end()
    assert [len(future.result()["y"]) for future in futures] == [6, 7, 2]
    assert sizes == [1, 8, 7] and held.batcher.held() == 0


def test_what_is_cancelled_while_it_waits_is_not_done():
    held = Held()
    gone, kept = held.submit(1.0, 2.0), held.submit(3.0)
    assert held.batcher.held() == 3
    assert gone.cancel()
    assert held.end() == [1, 1] and held.batcher.held() == 0
    assert kept.result()["y"].tolist() == [6.0]


def test_requests_that_wait_share_a_batch_and_get_their_own_answers():
    sizes, first = [], threading.Event()

    def run(signature: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        first.wait(10)
        sizes.append(len(arrays["x"]))
        if (arrays["x"] < 0).any():
            raise ValueError("negative")
        return {"y": 2 * arrays["x"]}

    batcher = Batcher(run, largest=4, waiting=8, threads=1, watch=lambda blends: None)
    held = batcher.submit("double", {"x": np.array([0.0])})
    time.sleep(0.1)  # the first is at work; these wait
    futures = [batcher.submit("double", {"x": np.array([value, value])}) for value in (1.0, 2.0, -3.0)]
    with pytest.raises(Refusal, match="expected at most 8 blends to wait"):
        batcher.submit("double", {"x": np.zeros(3)})
    first.set()
    assert [future.result()["y"].tolist() for future in (held, *futures[:2])] == [[0.0], [2.0, 2.0], [4.0, 4.0]]
    with pytest.raises(ValueError, match="negative"):
        futures[2].result()
    assert sizes == [1, 4, 2]
    batcher.close()
    with pytest.raises(Closed):
        batcher.submit("double", {"x": np.zeros(1)})


# -- versions


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a version, whose content says whether it loads; `Models` takes them for models."""

    class Version:
        def __init__(self, folder: Path, limits: Limits, metrics: Metrics):
            if (folder / WHOLE[0]).read_text() == "broken":
                raise ValueError("broken")
            self.name, self.number, self.limits = folder.parent.name, int(folder.name), limits
            self.specs = {DEFAULT: {"x": tf.TensorSpec([None], tf.float32)}}
            self.signatures = {DEFAULT: SignatureDef(outputs={"x": TensorInfo()})}
            self.go = threading.Event()
            self.batcher = Batcher(self.run, 8, 8, 1, lambda blends: None)

        def run(self, signature: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.go.wait(10)
            return arrays

        def close(self) -> None:
            self.go.set()
            self.batcher.close()

    def write(number: int, content: str = "whole", files: tuple[Path, ...] = WHOLE) -> Path:
        for file in files:
            path = tmp_path / "base" / "model" / str(number) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "base" / "model" / str(number)

    monkeypatch.setattr(models, "Version", Version)
    return write


@pytest.fixture
def served(versions, tmp_path: Path) -> Iterator[Models]:
    versions(1)
    found = Models(tmp_path / "base", Limits(), Metrics())
    yield found
    found.close()


def test_the_newest_version_that_loads_is_served(versions, served: Models):
    versions(2, "broken")
    served.poll()
    assert served.find("model").number == 1
    versions(3, files=WHOLE[:1])  # not all of it is there yet
    served.poll()
    assert served.find("model").number == 1
    versions(3)
    served.poll()
    assert served.find("model").number == 3


def test_a_version_that_was_mended_is_tried_again(versions, served: Models):
    broken = versions(2, "broken")
    served.poll()
    shutil.rmtree(broken)
    versions(2)
    for file in WHOLE:
        os.utime(broken / file, (1, 2))  # whatever the clock's grain is
    served.poll()
    assert served.find("model").number == 2


def test_polling_goes_on_where_the_folder_was_away(versions, served: Models, tmp_path: Path):
    served.poll()
    served.watch(0.01)
    (tmp_path / "base").rename(tmp_path / "away")
    time.sleep(0.1)
    assert served.find("model").number == 1  # in memory
    (tmp_path / "away").rename(tmp_path / "base")
    versions(2)
    deadline = time.monotonic() + 10
    while served.find("model").number != 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.find("model").number == 2


def test_a_request_that_meets_a_replaced_version_is_asked_of_the_next(versions, served: Models):
    served.poll()
    asked = []

    def find():
        version = served.find("model")
        version.go.set()
        return version

    async def ask(version):
        asked.append(version.number)
        if version.number == 1:
            versions(2)
            served.poll()  # before the request is submitted
        return "map", {"x": np.ones(1)}

    version, signature, outputs = asyncio.run(served.predict(find, ask))
    assert (asked, version.number, signature) == ([1, 2], 2, "map") and outputs["x"] == 1


async def soon(holds: Callable[[], object]) -> None:
    """Waits until something holds, for ten seconds."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("expected it to hold within ten seconds")


def http(value: float) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    body = json.dumps({"instances": [{"x": value}]}).encode()
    head = f"POST /v1/models/model:predict HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode(), body


def test_who_goes_away_is_forgotten_and_who_came_is_answered(served: Models):
    """A deadline over gRPC and a closed connection over REST while a batch works; a stop in the middle of a body."""
    served.poll()
    version = served.find("model")
    busy = version.batcher.submit(DEFAULT, {"x": np.ones(1, np.float32)})

    async def serve_and_leave() -> None:
        await soon(busy.running)
        calls, port = await rpc.start(served, served.metrics, "127.0.0.1", 0, 2**20, 8)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = PredictRequest()
            request.model_spec.name = "model"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones(1, np.float32)))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await PredictionServiceStub(channel).Predict(request, timeout=0.3)
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await soon(lambda: version.batcher.held() == 0)

        pages, port = await rest.start(served, served.metrics, "127.0.0.1", 0, 2**20, 8)
        _, leaving = await asyncio.open_connection("127.0.0.1", port)
        leaving.writelines(http(2.0))
        await soon(lambda: version.batcher.held() == 1)
        leaving.close()
        await soon(lambda: version.batcher.held() == 0 and pages.work.held == 0)

        head, body = http(3.0)
        answer, staying = await asyncio.open_connection("127.0.0.1", port)
        staying.write(head + body[:5])
        await soon(lambda: pages.work.held == 1)
        stopping = asyncio.gather(calls.stop(10), pages.stop(10))
        await asyncio.sleep(0.1)
        staying.write(body[5:])
        await soon(lambda: version.batcher.held() == 1)
        version.go.set()
        assert b"200 OK" in await answer.readline()
        assert b'"predictions": [{"x": 3.0}]' in await answer.read()
        await stopping

    asyncio.run(serve_and_leave())


# -- requests


def body(value: object) -> Body:
    """A request's body; text is taken as it is."""
    return Body(bytearray(value if isinstance(value, bytes) else json.dumps(value).encode()))


def test_texts_among_numbers_take_no_memory():
    specs = {"x": tf.TensorSpec([None, 4], tf.float32)}
    text = json.dumps({"inputs": {"x": ["a"] * 10_000 + ["b" * 100_000]}}).encode()
    tracemalloc.start()
    with pytest.raises(Refusal, match="x: expected float32, received text"):
        inputs.of_json(body(text), specs, 8)
    assert tracemalloc.get_traced_memory()[1] < 1.5e6
    tracemalloc.stop()


@pytest.mark.parametrize("number", [b"0", b"0.0", b"-1.234567890123e-07"])
@pytest.mark.parametrize("row", [32, 2**17])
def test_a_body_takes_four_times_its_memory_at_most(number: bytes, row: int):
    """Itself included, in rows and in columns, whatever the rows' length."""
    rows = 2**17 // row
    array = b"[" + b",".join([b"[" + b",".join([number] * row) + b"]"] * rows) + b"]"
    specs = {"x": tf.TensorSpec([None, rows, row], tf.float32)}
    for text in (b'{"instances": [{"x": %b}]}' % array, b'{"inputs": {"x": [%b]}}' % array):
        tracemalloc.start()
        found = inputs.of_json(Body(bytearray(text)), specs, 8)["x"]
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text) + 2e6
        tracemalloc.stop()
        assert (found == np.float32(number)).all()


@pytest.mark.parametrize("shape", [(3,), (1, 1), (2, 3), (2, 1, 4, 3)])
def test_arrays_are_read_as_json_has_them(shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal(shape).astype(np.float32),
        "n": rng.integers(-9, 9, shape, np.int32),
        "b": rng.random(shape) < 0.5,
    }
    arrays["x"].flat[:3] = np.nan, -np.inf, np.inf
    specs = {name: tf.TensorSpec([None, *shape[1:]], value.dtype) for name, value in arrays.items()}
    lists = {name: value.tolist() for name, value in arrays.items()}
    rows = [{name: value[i] for name, value in lists.items()} for i in range(shape[0])]
    for value in ({"inputs": lists}, {"instances": rows}):
        for indent in (None, 1):
            text = json.dumps({"signature_name": 'a "[1, 2]" NaN'} | value, indent=indent).encode()
            found = inputs.of_json(body(text), specs, 8)
            for name, expected in arrays.items():
                np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize(
    "value",
    [
        *("[[1,2],[3,4]", "[1,2,]", "[01]", "[1 2]", "[1,,2]", "[[1],2]", "[1],[2]", "[[1]]]", "[[1],[]]", "[]", "["),
        *("[NaN", '[NaN, "a"]', "[NaN, {}]"),
    ],
)
def test_arrays_that_are_none_are_refused(value: str):
    specs = {"x": tf.TensorSpec([None, 2], tf.float32)}
    with pytest.raises(Refusal) as raised:
        inputs.of_json(body(b'{"inputs": {"x": %b}}' % value.encode()), specs, 8)
    assert raised.value.status == "INVALID_ARGUMENT" and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'"' * 10**6, b'"' + b'\\"' * 10**6, b"[[],{" * 10**5, b'{"":' * 10**6])
def test_hostile_bodies_are_refused_at_once(text: bytes):
    began = time.process_time()  # whatever else the machine does
    with pytest.raises(Refusal, match="body: expected"):
        body(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([[2**40]], "numbers that fit into int32"),
        ([[1.5]], "expected int32, received float"),
        ([[True]], "received true or false"),
        ([[None]], "received null"),
        ([[1], [1, 2]], "a regular array"),
        ([{"a": 1}], "received objects"),
        (7, r"expected shape \(B, 1\), received \(\)"),
    ],
)
def test_values_of_another_kind_are_told(value: object, told: str):
    with pytest.raises(Refusal, match=told):
        inputs.of_json(body({"inputs": {"x": value}}), {"x": tf.TensorSpec([None, 1], tf.int32)}, 8)


# -- connections


def test_connections_and_bodies_that_stand_still_are_closed(served: Models, monkeypatch: pytest.MonkeyPatch):
    """An idle one, a body that stops, one too many; and a stop does not wait for a body that is not whole."""
    served.poll()
    monkeypatch.setattr(work, "IDLE", 0.5)
    monkeypatch.setattr(rest, "IDLE", 0.5)
    monkeypatch.setattr(work, "UNFINISHED", 0.2)
    monkeypatch.setattr(rpc, "UNFINISHED", 0.2)
    head, text = http(1.0)

    async def serve() -> None:
        pages, port = await rest.start(served, served.metrics, "127.0.0.1", 0, 100, 1)

        async def send(*parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            answer, sender = await asyncio.open_connection("127.0.0.1", port)
            sender.writelines(parts)
            return answer, sender

        idle, one = await send()
        halfway, two = await send(head[:9])
        stopped, three = await send(head, text[:5])
        await soon(lambda: pages.work.held == 1)
        refused, four = await send(head, text)
        assert b"503" in await refused.readline()
        assert b"at most 1 requests at once" in await refused.read()
        assert b"408" in await stopped.readline()
        assert await idle.read() == b"" == await halfway.read()
        large, five = await send(head.replace(b"%d" % len(text), b"999"), b" " * 200)
        assert b"413" in await large.readline()
        monkeypatch.setattr(work, "IDLE", 60)
        last, six = await send(head, text[:5])
        await soon(lambda: pages.work.held == 1)
        began = time.perf_counter()
        await pages.stop(60)
        assert time.perf_counter() - began < 3 and b"408" in await last.readline()
        for writer in (one, two, three, four, five, six):
            writer.close()

        calls, port = await rpc.start(served, served.metrics, "127.0.0.1", 0, 100, 1)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = "/tensorflow.serving.PredictionService/Predict"
            open_one = channel.stream_unary(method)()  # a message that never comes
            await open_one.wait_for_connection()
            began = time.perf_counter()
            await calls.stop(60)
            assert time.perf_counter() - began < 3
            assert await open_one.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

    asyncio.run(serve())


@pytest.mark.parametrize(
    "options",
    [["--threads", "0"], ["--poll", "0"], ["--blends", "9", "--waiting", "8"], ["--grace", "nan"], ["--poll", "inf"]],
)
def test_options_that_would_serve_nothing_are_refused(options: list[str], tmp_path: Path, capsys):
    try:
        code = main(["serve", str(tmp_path), *options])
    except SystemExit as ended:  # by argparse
        code = ended.code
    assert code == 2 and f"{options[-2]}: expected" in capsys.readouterr().err
