"""REST as TensorFlow Serving has it: predict in rows or columns, status, metadata, metrics, errors in JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict

from tfdeblend.export.embedded import inputs
from tfdeblend.export.embedded.batcher import Arrays
from tfdeblend.export.embedded.body import Body
from tfdeblend.export.embedded.metrics import Metrics
from tfdeblend.export.embedded.models import Models, Version, signature_of
from tfdeblend.export.embedded.refusal import Refusal, invalid
from tfdeblend.export.embedded.rpc import signature_map, status_of
from tfdeblend.export.embedded.work import IDLE, Work

log = logging.getLogger("tfdeblend.serve")
MODEL = "/v1/models/{model:[^/:]+}"
CLOSING = 5.0  # seconds for connections, once their requests are done
LINGERING = 1.0  # seconds for which what still comes of a refused body is read, so that its sender reads the answer
VERSION = MODEL + r"/versions/{version:\d{1,18}}"


class Rest:
    """The routes of a server, and the requests at work on them.

    Args: largest: bytes of a request. most: requests at work together.
    """

    def __init__(self, models: Models, metrics: Metrics, largest: int, most: int):
        self.models, self.metrics, self.largest, self.most = models, metrics, largest, most
        self.work, self._stopping = Work(), False
        self._runner: web.AppRunner | None = None

    async def start(self, address: str, port: int) -> int:
        """Listens, and returns the port. Raises: OSError for one that is taken."""
        # A handler ends where its client goes away; what it waits for is then not done.
        self._runner = web.AppRunner(
            self.application(),
            handler_cancellation=True,
            shutdown_timeout=CLOSING,
            keepalive_timeout=IDLE,
            lingering_time=LINGERING,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address, port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        return self._runner.addresses[0][1]

    async def stop(self, grace: float) -> None:
        """Takes no more requests, finishes those that have come, and closes. Bodies have a little time to become whole.

        aiohttp alone would drop what is still to come of a body.
        """
        assert self._runner
        self._stopping = True
        for site in list(self._runner.sites):
            await site.stop()
        self.work.end()
        if not await self.work.done(grace):
            log.warning("expected all requests to end in %g s, received %d that did not", grace, self.work.held)
        await self._runner.cleanup()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._counted, errors_as_json])
        for path in (MODEL, VERSION):
            app.router.add_post(path + ":predict", self.predict)
            app.router.add_get(path + "/metadata", self.metadata)
            app.router.add_get(path, self.status)
        app.router.add_get("/monitoring/prometheus/metrics", self.prometheus)
        app.router.add_get("/healthz", self.health)
        return app

    @web.middleware
    async def _counted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._stopping:  # on a connection that was open before
            answer = web.json_response({"error": "expected a server at work, received one that stops"}, status=503)
            answer.force_close()
            return answer
        with self.work.one():
            return await handler(request)

    async def predict(self, request: web.Request) -> web.Response:
        with self.metrics.request("rest") as labels:
            self._version(request.match_info)  # before any work
            if self.work.held > self.most:
                message = f"expected at most {self.most} requests at once, received one more: try again later"
                raise Refusal("UNAVAILABLE", message)
            text = await self.work.body(request.content.readany, self.largest)
            body = await asyncio.to_thread(_parsed, text)
            name = body.values.get("signature_name", "")
            if not isinstance(name, str):
                raise invalid("signature_name", "text", type(name).__name__)

            async def ask(version: Version) -> tuple[str, Arrays]:
                signature = signature_of(version, name)
                labels.update(model=version.name, signature=signature)
                specs, most = version.specs[signature], version.limits.blends
                return signature, await asyncio.to_thread(inputs.of_json, body, specs, most)

            _, _, outputs = await self.models.predict(lambda: self._version(request.match_info), ask)
            answer = await asyncio.to_thread(_written, outputs, "instances" in body.values)
        return web.Response(body=answer, content_type="application/json")

    async def status(self, request: web.Request) -> web.Response:
        answer = _plain(status_of(self._version(request.match_info)))
        for one in answer["model_version_status"]:
            one["status"] = {"error_code": "OK", "error_message": ""}
        return web.json_response(answer)

    async def metadata(self, request: web.Request) -> web.Response:
        version = self._version(request.match_info)
        spec = {"name": version.name, "signature_name": "", "version": str(version.number)}
        return web.json_response({"model_spec": spec, "metadata": {"signature_def": _plain(signature_map(version))}})

    async def prometheus(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def health(self, request: web.Request) -> web.Response:
        names = self.models.names
        return web.json_response({"models": names}, status=200 if names else 503)

    def _version(self, where: Any) -> Version:
        number = where.get("version")
        return self.models.find(where["model"], int(number) if number else None)


def _parsed(content: bytearray) -> Body:
    body = Body(content)
    values = body.values
    if not isinstance(values, dict) or ("instances" in values) == ("inputs" in values):
        keys = ", ".join(sorted(values)) or "neither" if isinstance(values, dict) else type(values).__name__
        raise invalid("body", "an object with either instances or inputs", keys[:200])
    return body


def _written(outputs: Arrays, rows: bool) -> bytes:
    columns = {key: value.tolist() for key, value in outputs.items()}
    if rows:
        each = zip(*columns.values(), strict=True)
        return json.dumps({"predictions": [dict(zip(columns, row, strict=True)) for row in each]}).encode()
    return json.dumps({"outputs": columns}).encode()


def _plain(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


@web.middleware
async def errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turns every error into an answer as TensorFlow Serving words it."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return web.json_response({"error": str(refusal)}, status=refusal.http)
    except web.RequestPayloadError as error:
        return web.json_response({"error": f"body: expected a whole one, received {error}"}, status=400)
    except web.HTTPException as error:
        message = f"expected a known path and method, received {request.method} {request.path[:200]}"
        return web.json_response({"error": message}, status=error.status)
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("a request failed")
        return web.json_response({"error": "the server failed; its log says why"}, status=500)


async def start(models: Models, metrics: Metrics, address: str, port: int, largest: int, most: int) -> tuple[Rest, int]:
    """Starts a server; returns it and its port. Args as `Rest` has them. Raises: OSError for a port in use."""
    server = Rest(models, metrics, largest, most)
    return server, await server.start(address, port)
