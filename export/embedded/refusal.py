"""Refusal: the answer to a request that gets no result."""

from __future__ import annotations

HTTP = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "DEADLINE_EXCEEDED": 408,
    "RESOURCE_EXHAUSTED": 413,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
}


class Refusal(Exception):
    """A status by gRPC's name, one of `HTTP`, and one line: what was expected, what came, where."""

    def __init__(self, status: str, message: str):
        super().__init__(message)
        self.status = status

    @property
    def http(self) -> int:
        return HTTP[self.status]


def invalid(where: str, expected: str, received: object) -> Refusal:
    return Refusal("INVALID_ARGUMENT", f"{where}: expected {expected}, received {received}")
