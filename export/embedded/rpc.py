"""gRPC: TensorFlow Serving's PredictionService and ModelService."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfdeblend.export.embedded import inputs
from tfdeblend.export.embedded.batcher import Arrays
from tfdeblend.export.embedded.metrics import Metrics
from tfdeblend.export.embedded.models import Models, Version, signature_of
from tfdeblend.export.embedded.refusal import Refusal
from tfdeblend.export.embedded.work import IDLE, UNFINISHED, Work

log = logging.getLogger("tfdeblend.serve")
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


def found(models: Models, spec: Any) -> Version:
    """Finds the version that a ModelSpec means."""
    pinned = spec.WhichOneof("version_choice") == "version"
    return models.find(spec.name, spec.version.value if pinned else None, spec.version_label)


def answered(call):
    """Turns every error into a status of gRPC."""

    async def handler(self, request, context):
        try:
            with self.work.one():
                return await call(self, request)
        except Refusal as refusal:
            await context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        except asyncio.CancelledError:  # the client has gone
            raise
        except Exception:
            log.exception("a request failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says why")

    return handler


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers Predict and GetModelMetadata; other methods are not implemented."""

    def __init__(self, models: Models, metrics: Metrics, work: Work):
        self.models, self.metrics, self.work = models, metrics, work

    @answered
    async def Predict(self, request):
        with self.metrics.request("grpc") as labels:

            async def ask(version: Version) -> tuple[str, Arrays]:
                signature = signature_of(version, request.model_spec.signature_name)
                labels.update(model=version.name, signature=signature)
                known = version.signatures[signature].outputs
                if unknown := sorted(set(request.output_filter) - set(known)):
                    expected = f"expected among {', '.join(sorted(known))}"
                    raise Refusal("INVALID_ARGUMENT", f"output_filter: {expected}, received {unknown[0][:80]!r}")
                return signature, inputs.of_protos(request.inputs, version.specs[signature], version.limits.blends)

            version, signature, outputs = await self.models.predict(lambda: found(self.models, request.model_spec), ask)
            answer = predict_pb2.PredictResponse()
            answer.model_spec.name, answer.model_spec.signature_name = version.name, signature
            answer.model_spec.version.value = version.number
            for name in request.output_filter or outputs:
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
            return answer

    @answered
    async def GetModelMetadata(self, request):
        if list(request.metadata_field) != ["signature_def"]:
            received = ", ".join(request.metadata_field) or "none"
            raise Refusal("INVALID_ARGUMENT", f"metadata_field: expected signature_def, received {received[:80]}")
        version = found(self.models, request.model_spec)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name, answer.model_spec.version.value = version.name, version.number
        answer.metadata["signature_def"].Pack(signature_map(version))
        return answer


class ModelStatus(model_service_pb2_grpc.ModelServiceServicer):
    """Answers GetModelStatus."""

    def __init__(self, models: Models, work: Work):
        self.models, self.work = models, work

    @answered
    async def GetModelStatus(self, request):
        return status_of(found(self.models, request.model_spec))


def signature_map(version: Version):
    """Makes the SignatureDefMap of a version."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in version.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    return signatures


def status_of(version: Version):
    """Makes the GetModelStatusResponse of a version."""
    answer = get_model_status_pb2.GetModelStatusResponse()
    status = answer.model_version_status.add(version=version.number, state=AVAILABLE)
    status.status.error_code = 0
    return answer


class Calls:
    """A server, and the requests at work on it.

    Args: largest: bytes of a request. most: requests at work together; gRPC refuses others with RESOURCE_EXHAUSTED.
    """

    def __init__(self, models: Models, metrics: Metrics, largest: int, most: int):
        milliseconds = int(1000 * IDLE)
        options = [
            ("grpc.max_receive_message_length", largest),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_idle_ms", milliseconds),
            ("grpc.server_handshake_timeout_ms", milliseconds),
            ("grpc.so_reuseport", 0),
        ]
        self.work = Work()
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most)
        prediction = Prediction(models, metrics, self.work)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelStatus(models, self.work), self._server)

    async def start(self, address: str, port: int) -> int:
        """Listens, and returns the port. Raises: OSError for one that is taken."""
        try:
            bound = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise OSError(f"expected a free port, received {address}:{port}, which is taken") from error
        await self._server.start()
        return bound

    async def stop(self, grace: float) -> None:
        """Takes no more requests, finishes those that are whole, or soon will be, and closes."""
        ending = asyncio.create_task(self._server.stop(grace))
        await asyncio.wait({ending}, timeout=min(UNFINISHED, grace))
        await self.work.done(grace)
        await self._server.stop(None)
        await ending


async def start(
    models: Models, metrics: Metrics, address: str, port: int, largest: int, most: int
) -> tuple[Calls, int]:
    """Starts a server; returns it and its port. Args as `Calls` has them. Raises: OSError for a port in use."""
    server = Calls(models, metrics, largest, most)
    return server, await server.start(address, port)
