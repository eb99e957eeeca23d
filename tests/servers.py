"""The command `tfdeblend serve` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceStub
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from tfdeblend.export import warmup
from tfdeblend.export.bucket import Bucket

BUCKET = Bucket("exponential", 32)


class Server:
    """A running server, and what asks it."""

    def __init__(self, base: Path, *options: str):
        command = [sys.executable, "-m", "tfdeblend", "serve", str(base), "--port", "0", "--rest-port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self.process.stdout
        facts = json.loads(self.process.stdout.readline())
        self.grpc, self.rest = f"127.0.0.1:{facts['grpc']}", f"http://127.0.0.1:{facts['rest']}"
        channel = grpc.insecure_channel(self.grpc, [("grpc.max_receive_message_length", -1)])
        self.predictions, self.models = PredictionServiceStub(channel), ModelServiceStub(channel)

    def predict(self, arrays: dict[str, np.ndarray], model: str = BUCKET.name, signature: str = "map"):
        request = PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        warmup.fill(request, arrays)
        return self.predictions.Predict(request, timeout=300)

    def ask(self, path: str, body: object = None) -> tuple[int, dict]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urlopen(Request(self.rest + path, data), timeout=300) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)
