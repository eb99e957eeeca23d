"""Carries requests to a model server by gRPC (`PredictionService`) or REST, with named arrays in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

from tfdeblend.errors import DataError

Arrays = dict[str, np.ndarray]
SAMPLES, STEPS = 16, 8  # of the signature `sample_16`
LARGEST_MESSAGE = 2**31 - 1  # bytes: samples are larger than gRPC's 4 MiB
KINDS = {"DT_FLOAT": np.float32, "DT_DOUBLE": np.float64, "DT_INT32": np.int32, "DT_INT64": np.int64, "DT_BOOL": bool}


class ServerError(Exception):
    """Says what a server answered in place of a result, in one line."""


@dataclass(frozen=True)
class Model:
    """Describes a served model: side, sources, bands and psf are the sizes of its inputs; model_sigma in pixels."""

    name: str
    side: int
    sources: int
    bands: int
    psf: int
    model_sigma: float

    @classmethod
    def of(cls, name: str, shapes: dict[str, list[int]], model_sigma: float) -> Model:
        """Reads the sizes off the shapes of its inputs."""
        _, bands, side, _ = shapes["images"]
        return cls(name, side, shapes["positions"][1], bands, shapes["psfs"][2], model_sigma)


class Transport(Protocol):
    """A connection to a server. `model` is None where the server has none of that name."""

    def model(self, name: str, model_sigma: float) -> Model | None: ...

    def predict(self, model: str, signature: str, arrays: Arrays) -> Arrays: ...


def connect(url: str, timeout: float) -> Transport:
    """Connects to grpc://HOST:PORT or http(s)://HOST:PORT. Raises: DataError for another URL, or a missing package."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in ("grpc", "http", "https") or not parts.hostname or (parts.scheme == "grpc" and not port):
        raise DataError("server", None, f"expected grpc://HOST:PORT or http://HOST:PORT, received {url!r}")
    return Grpc(parts.netloc, timeout) if parts.scheme == "grpc" else Rest(url.rstrip("/"), timeout)


class Grpc:
    """Args: address: HOST:PORT. timeout: seconds a request."""

    def __init__(self, address: str, timeout: float):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            expected = "expected the packages grpcio and tensorflow-serving-api for grpc://"
            raise DataError("server", None, f"{expected}: pip install tfdeblend[serve]; {error}") from error
        limits = [(f"grpc.max_{way}_message_length", LARGEST_MESSAGE) for way in ("receive", "send")]
        self.address, self.timeout, self._error, self._grpc = address, timeout, grpc.RpcError, grpc
        channel = grpc.insecure_channel(address, limits)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def model(self, name: str, model_sigma: float) -> Model | None:
        from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap

        request = GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = name
        try:
            answer = self._stub.GetModelMetadata(request, timeout=self.timeout)
        except self._error as error:
            if error.code() == self._grpc.StatusCode.NOT_FOUND:
                return None
            raise self._error_of(error) from error
        signatures = SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        inputs = _signature(signatures.signature_def, "map").inputs
        shapes = {key: [dim.size for dim in info.tensor_shape.dim] for key, info in inputs.items()}
        return Model.of(name, shapes, model_sigma)

    def predict(self, model: str, signature: str, arrays: Arrays) -> Arrays:
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        request = PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for name, value in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        try:
            answer = self._stub.Predict(request, timeout=self.timeout)
        except self._error as error:
            raise self._error_of(error) from error
        return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}

    def _error_of(self, error: Any) -> Exception:
        if error.code() in (self._grpc.StatusCode.UNAVAILABLE, self._grpc.StatusCode.DEADLINE_EXCEEDED):
            received = f"received {error.code().name}: {error.details()}"
            return DataError(f"grpc://{self.address}", None, f"expected a model server that answers, {received}")
        return ServerError(f"{error.code().name}: {error.details()}")


class Rest:
    """Args: url: http://HOST:PORT. timeout: seconds a request."""

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url, timeout
        self._outputs: dict[tuple[str, str], dict[str, Any]] = {}

    def model(self, name: str, model_sigma: float) -> Model | None:
        try:
            signatures = self._metadata(name)
        except ServerError as error:
            if str(error).startswith("404"):
                return None
            raise
        inputs = _signature(signatures, "map")["inputs"]
        shapes = {key: [int(dim["size"]) for dim in info["tensor_shape"]["dim"]] for key, info in inputs.items()}
        return Model.of(name, shapes, model_sigma)

    def predict(self, model: str, signature: str, arrays: Arrays) -> Arrays:
        if (model, signature) not in self._outputs:
            self._outputs[model, signature] = _signature(self._metadata(model), signature)["outputs"]
        kinds = self._outputs[model, signature]
        body = {"signature_name": signature, "inputs": {name: value.tolist() for name, value in arrays.items()}}
        outputs = self._ask(f"/v1/models/{model}:predict", body, "outputs")
        return {name: np.array(value, KINDS[kinds[name]["dtype"]]) for name, value in outputs.items()}

    def _metadata(self, name: str) -> dict[str, Any]:
        return self._ask(f"/v1/models/{name}/metadata", None, "metadata", "signature_def", "signature_def")

    def _ask(self, path: str, body: dict[str, Any] | None, *keys: str) -> Any:
        """What an answer holds below `keys`."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data), timeout=self.timeout) as response:
                answer = json.load(response)
            for key in keys:
                answer = answer[key]
            return answer
        except HTTPError as error:
            try:
                reason = json.load(error)["error"]
            except (ValueError, KeyError, TypeError, HTTPException, OSError):
                reason = error.reason
            raise ServerError(f"{error.code}: {reason}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(self.url, None, f"expected a model server, received another answer at {path}") from error
        except (HTTPException, OSError) as error:
            raise DataError(self.url, None, f"expected a model server that answers, received {error}") from error


def _signature(signatures: Mapping[str, Any], name: str) -> Any:
    """One of a model's. Raises: ServerError."""
    if name not in signatures:
        raise ServerError(f"expected a model with the signature {name}, received {', '.join(signatures) or 'none'}")
    return signatures[name]
