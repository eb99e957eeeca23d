"""The client of a model server, where there is none or nobody waits for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from helpers import make_scene
from hsc import small

from tfdeblend.client import Client
from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError


@pytest.fixture(params=["another protocol", "a page", "no model server", "no signature"])
def stranger(request) -> Iterator[tuple[str, str]]:
    """A URL, and the message expected of it."""
    kind = request.param
    if kind == "another protocol":
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def answer() -> None:
                one, _ = listening.accept()
                with one:
                    one.recv(65536)
                    one.sendall(b"\x00\x00\x12\x04\x00\n\n")

            threading.Thread(target=answer, daemon=True).start()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", "expected a model server that answers"
        return
    content = b'{"metadata": {"signature_def": {"signature_def": {"other": {}}}}}'
    code, body, told = {
        "a page": (200, b"<html>", "expected a model server, received another answer"),
        "no model server": (503, b"busy", "503"),
        "no signature": (200, content, "expected a model with the signature map, received other"),
    }[kind]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    server.server_close()


def test_a_stranger_at_the_url_is_told_in_one_line(stranger: tuple[str, str]):
    url, told = stranger
    with pytest.raises(DataError, match=told) as raised:
        Client(url, "exponential", timeout=10).deblend(small())
    assert "\n" not in str(raised.value)


def test_who_leaves_does_not_wait_for_the_other_scenes():
    client, done = Client("http://127.0.0.1:1", at_once=1), []

    def one(scene: Scene) -> Scene:
        time.sleep(0.05)
        done.append(scene)
        return scene

    client._one = one  # type: ignore[method-assign, assignment]
    results = client.iterate([make_scene()[0]] * 100)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(done) < 5
