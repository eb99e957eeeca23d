"""Metrics of the server, for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tfdeblend.export.embedded.refusal import Refusal

SECONDS = (0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter(
            "tfdeblend_requests", "Requests by their end.", ["model", "signature", "api", "status"], **own
        )
        self._seconds = Histogram(
            "tfdeblend_request_seconds",
            "From arrival to answer.",
            ["model", "signature", "api"],
            buckets=SECONDS,
            **own,
        )
        self._batch = Histogram(
            "tfdeblend_batch_blends", "Blends in a batch.", ["model"], buckets=(1, 2, 4, 8, 16, 32), **own
        )
        self._waiting = Gauge("tfdeblend_waiting_blends", "Blends that wait.", ["model"], **own)
        self._version = Gauge("tfdeblend_model_version", "In service; 0: none.", ["model"], **own)

    def text(self) -> bytes:
        """Returns the metrics in Prometheus' format."""
        return generate_latest(self.registry)

    def batches(self, model: str) -> Callable[[float], None]:
        """Returns a function that records how many blends a batch has."""
        return self._batch.labels(model).observe

    def serving(self, model: str, number: int, waiting: Callable[[], int]) -> None:
        """Records a version that is put into service. waiting: returns how many blends wait for it."""
        self._version.labels(model).set(number)
        self._waiting.labels(model).set_function(waiting)

    @contextmanager
    def request(self, api: str) -> Iterator[dict[str, str]]:
        """Counts and times what happens within; the caller fills in `model` and `signature` once they are known."""
        labels = {"model": "unknown", "signature": "unknown", "api": api}  # never a name that a client made up
        began, status = time.perf_counter(), "OK"
        try:
            yield labels
        except Refusal as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:  # the client has gone
            status = "CANCELLED"
            raise
        except BaseException:
            status = "INTERNAL"
            raise
        finally:
            self._requests.labels(**labels, status=status).inc()
            self._seconds.labels(**labels).observe(time.perf_counter() - began)
