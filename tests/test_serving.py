"""The embedded server over gRPC and REST: answers, batches, refusals, versions; and the client against both."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hsc import small
from servers import BUCKET, Server
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from tfdeblend.app.cli import main
from tfdeblend.catalog.result import Deblended
from tfdeblend.client import Client
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.export import saved_model, warmup
from tfdeblend.export.check_saved_model import check
from tfdeblend.export.embedded import inputs
from tfdeblend.export.embedded.refusal import Refusal
from tfdeblend.export.layout import WARM_UP
from tfdeblend.export.proofs.figures import INDEPENDENT, difference


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved_model.write(BUCKET, folder)
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    running = Server(base, "--poll", "0.2", "--blends", "4")
    yield running
    running.process.kill()


@pytest.fixture(scope="module")
def expected(base: Path) -> dict[str, np.ndarray]:
    """Of `warmup.example`, by the model itself."""
    model = tf.saved_model.load(str(base / BUCKET.name / "1"))
    found = model.signatures["map"](**{k: tf.constant(v) for k, v in warmup.example(BUCKET, 3).items()})
    return {name: value.numpy() for name, value in found.items()}


def rows(arrays: dict[str, np.ndarray]) -> list[dict]:
    return [{name: value[i].tolist() for name, value in arrays.items()} for i in range(len(arrays["images"]))]


def test_grpc_answers_as_the_model_does(server: Server, expected):
    answer = server.predict(warmup.example(BUCKET, 3))
    assert answer.model_spec.version.value == 1
    assert set(answer.outputs) == set(expected)
    found = {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}
    assert difference(found, expected) <= INDEPENDENT  # on the server's threads sums round in another order


def test_rest_answers_in_columns_and_in_rows(server: Server, expected):
    given = warmup.example(BUCKET, 3)
    path = f"/v1/models/{BUCKET.name}:predict"
    _, columns = server.ask(path, {"inputs": {name: value.tolist() for name, value in given.items()}})
    _, answer = server.ask(path.replace(":", "/versions/1:"), {"signature_name": "map", "instances": rows(given)})
    in_columns = {name: np.array(value, expected[name].dtype) for name, value in columns["outputs"].items()}
    in_rows = {
        name: np.array([one[name] for one in answer["predictions"]], value.dtype) for name, value in expected.items()
    }
    assert difference(in_columns, expected) <= INDEPENDENT
    assert difference(in_rows, expected) <= INDEPENDENT


def test_numbers_that_are_not_finite_travel_as_bare_tokens(server: Server):
    given = warmup.example(BUCKET)
    given["pixel_scale"][:] = np.nan
    body = json.dumps({"instances": rows(given)})
    assert "NaN" in body
    status, answer = server.ask(f"/v1/models/{BUCKET.name}:predict", body.encode())
    assert status == 200 and not answer["predictions"][0]["usable"]
    assert np.isnan(answer["predictions"][0]["flux"]).all()


def test_blends_that_cannot_be_used_leave_their_batch_as_it_is(server: Server, expected):
    """Three blends are sent: one has no pixel with a weight, another zero points that no image has."""
    given = warmup.example(BUCKET, 3)
    given["images"][0], given["weights"][0] = np.nan, -1
    given["zeropoints"][2, 1] = -1000
    found = {name: tf.make_ndarray(proto) for name, proto in server.predict(given).outputs.items()}
    assert found["usable"].tolist() == [False, True, False]
    assert np.isnan(found["flux"][[0, 2]]).all()
    assert difference(*({name: value[1:2] for name, value in one.items()} for one in (found, expected))) <= INDEPENDENT


def test_status_metadata_metrics_and_health(server: Server):
    status = server.ask(f"/v1/models/{BUCKET.name}")[1]["model_version_status"][0]
    assert (status["version"], status["state"]) == ("1", "AVAILABLE")
    signatures = server.ask(f"/v1/models/{BUCKET.name}/metadata")[1]["metadata"]["signature_def"]["signature_def"]
    sizes = [dim["size"] for dim in signatures["serving_default"]["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "5", "32", "32"]
    request = GetModelStatusRequest()
    request.model_spec.name = BUCKET.name
    assert server.models.GetModelStatus(request).model_version_status[0].version == 1
    server.predict(warmup.example(BUCKET))
    with urlopen(server.rest + "/monitoring/prometheus/metrics") as answer:
        assert "tfdeblend_requests_total{" in answer.read().decode()
    assert server.ask("/healthz") == (200, {"models": [BUCKET.name]})


def changed(**changes: object) -> dict[str, object]:
    return {name: value.tolist() for name, value in warmup.example(BUCKET).items()} | changes


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "body: expected JSON"),
        (b"[" * 100_000, "body: expected JSON"),
        ({}, "body: expected an object with either instances or inputs"),
        ({"instances": []}, "instances: expected a list"),
        ({"instances": [3]}, "instances[0]: expected an object"),
        ({"inputs": {"images": [1]}}, "no weights"),
        ({"inputs": changed(extra=[1])}, "unknown 'extra'"),
        ({"inputs": changed(images=[[1.0]])}, "images: expected shape (B, 5, 32, 32), received (1, 1)"),
        ({"inputs": changed(images=[[1.0], [1.0, 2.0]])}, "images: expected a regular array"),
        ({"inputs": changed(images="text")}, "images: expected float32, received text"),
        ({"inputs": changed(is_source=[[1, 0, 0, 0]])}, "is_source: expected bool"),
        ({"inputs": changed(pixel_scale=[1.0, 1.0])}, "expected as many blends in each"),
        ({"inputs": changed(), "signature_name": "nonsense"}, "signature_name: expected one of map, serving_default"),
        ({"instances": rows(warmup.example(BUCKET)) * 5}, "expected at most 4 blends in a request, received 5"),
    ],
)
def test_rest_refuses_in_one_line(server: Server, body: object, told: str):
    status, answer = server.ask(f"/v1/models/{BUCKET.name}:predict", body)
    assert status == 400
    assert told in answer["error"] and "\n" not in answer["error"]


def test_what_is_not_there_is_not_found(server: Server):
    for path in ("/v1/models/other", f"/v1/models/{BUCKET.name}/versions/7", "/nowhere"):
        status, answer = server.ask(path)
        assert status == 404 and "expected" in answer["error"]
    with pytest.raises(grpc.RpcError) as raised:
        server.predict(warmup.example(BUCKET), model="other")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_grpc_refuses_in_one_line(server: Server):
    good = warmup.example(BUCKET)
    for wrong, told in (
        ({"images": good["images"].astype(np.float64)}, "images: expected float32, received float64"),
        ({"images": np.zeros([10**6, 5, 32, 32], np.float32)[:5]}, "at most 4 blends"),
        ({"positions": good["positions"][:, :2]}, "positions: expected shape (B, 4, 2)"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            server.predict(good | wrong)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert told in raised.value.details()


def test_a_shape_takes_no_memory_before_it_is_checked():
    proto = tf.make_tensor_proto(0.0, shape=[1])
    proto.tensor_shape.dim[0].size = 10**15
    spec = {"sigma": tf.TensorSpec([None], tf.float32)}
    with pytest.raises(Refusal, match="at most 8 blends"):
        inputs.of_protos({"sigma": proto}, spec, 8)
    proto.tensor_shape.dim[0].size, proto.tensor_content = 4, b"short"
    with pytest.raises(Refusal, match="as many numbers as its shape has"):
        inputs.of_protos({"sigma": proto}, spec, 8)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_client_gives_what_deblender_gives(server: Server, scheme: str):
    url = f"grpc://{server.grpc}" if scheme == "grpc" else server.rest
    one = small()
    found = Client(url, "exponential").deblend(one)
    local = Deblender("exponential").deblend(one)
    assert found.catalog.colnames == local.catalog.colnames
    assert set(found.header) == set(local.header)
    np.testing.assert_allclose(found.model, local.model, atol=1e-4 * local.model.max())
    for band in one.observation.bands:
        apart = np.asarray(found.catalog[f"flux_{band}"] - local.catalog[f"flux_{band}"])
        assert (np.abs(apart) < 0.03 * np.asarray(local.catalog[f"flux_err_{band}"])).all()


def test_command_line_takes_a_server(server: Server, tmp_path: Path, capsys):
    one = small()
    one.write(tmp_path / "blend.npz")
    command = ["deblend", str(tmp_path / "blend.npz"), "--prior", "exponential", "--no-figures", "--no-report"]
    assert main([*command, "--out", str(tmp_path / "here")]) == 0
    assert main([*command, "--out", str(tmp_path / "there"), "--server", server.rest]) == 0
    here, there = (Deblended.read(tmp_path / out / "blend.fits") for out in ("here", "there"))
    np.testing.assert_allclose(there.model, here.model, atol=1e-4 * here.model.max())
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "none"), "--server", "http://127.0.0.1:1"]) == 1
    assert "expected a model server" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "none"), "--server", "ftp://x", "--background"]) == 2
    assert "--background: expected none beside --server" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "none"), "--server", server.rest, "--optimizer", "adam"]) == 2
    assert "--optimizer: expected newton beside --server" in capsys.readouterr().err


def test_client_tells_what_the_server_lacks(server: Server):
    with pytest.raises(DataError, match="expected a model bulge-disk_SIDExSOURCES"):
        Client(server.rest, "bulge-disk").deblend(small())
    with pytest.raises(DataError, match="grpc://HOST:PORT or http://HOST:PORT"):
        Client("localhost:8500")


@pytest.mark.slow
def test_versions_roll_over_without_losing_a_request(base: Path, tmp_path: Path):
    """A broken version leaves the old one in service; a new one takes over under load; SIGTERM finishes what came."""
    shutil.copytree(base, tmp_path / "models")
    model = tmp_path / "models" / BUCKET.name
    server = Server(tmp_path / "models", "--poll", "0.1")
    given, answers, failures = warmup.example(BUCKET), [], []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                answers.append(server.predict(given).model_spec.version.value)
            except grpc.RpcError as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        shutil.copytree(model / "1", model / ".broken")
        (model / ".broken" / "saved_model.pb").write_bytes(b"nonsense")
        os.rename(model / ".broken", model / "2")
        shutil.copytree(model / "1", model / ".copy")
        os.rename(model / ".copy", model / "3")
        deadline = time.monotonic() + 240
        while 3 not in answers and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures and set(answers) == {1, 3}
    last = [server.predictions.Predict.future(_request(given), timeout=300) for _ in range(6)]
    time.sleep(0.5)  # on their way
    assert server.stop() == 0
    assert all(one.result().outputs["usable"].bool_val[0] for one in last)


@pytest.mark.slow
def test_a_server_that_is_full_or_asked_too_much_says_so(base: Path):
    server = Server(base, "--waiting", "4", "--blends", "4", "--threads", "1", "--megabytes", "1")
    given = warmup.example(BUCKET)
    try:
        calls = [server.predictions.Predict.future(_request(given), timeout=300) for _ in range(40)]
        status = GetModelStatusRequest()
        status.model_spec.name = BUCKET.name
        server.models.GetModelStatus(status, timeout=10)  # is told meanwhile
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert codes.count(grpc.StatusCode.OK) >= 5
        with ThreadPoolExecutor(40) as pool:
            body = {"instances": rows(given)}
            answers = list(pool.map(lambda _: server.ask(f"/v1/models/{BUCKET.name}:predict", body), range(40)))
        assert {code for code, _ in answers} == {200, 503}
        assert all("at most 4 blends to wait" in answer["error"] for code, answer in answers if code == 503)
        large = b" " * 2**21
        assert server.ask(f"/v1/models/{BUCKET.name}:predict", large)[0] == 413
        with pytest.raises(grpc.RpcError) as raised:
            server.predict({"images": np.arange(2.0**19, dtype=np.float32)})
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        assert server.stop() == 0


def _request(given: dict[str, np.ndarray]) -> PredictRequest:
    request = PredictRequest()
    request.model_spec.name = BUCKET.name
    warmup.fill(request, given)
    return request


@pytest.mark.slow
def test_every_proof_holds(base: Path, tmp_path: Path):
    assert check(base / BUCKET.name / "1")
    damaged = shutil.copytree(base / BUCKET.name / "1", tmp_path / BUCKET.name / "1")
    (damaged / WARM_UP).unlink()
    assert not check(damaged, ("configuration",))
