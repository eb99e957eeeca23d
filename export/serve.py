"""Serves exported models over gRPC and REST, as TensorFlow Serving does, for laptops and tests.

    tfdeblend serve BASE

Prints one line of JSON when it is ready, with its ports. SIGTERM and SIGINT finish what was accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal

from tfdeblend.export.embedded import rest, rpc
from tfdeblend.export.embedded.metrics import Metrics
from tfdeblend.export.embedded.models import Limits, Models

MEBIBYTE = 2**20


def serve(options: argparse.Namespace) -> None:
    """Serves the models below `options.base`, with the options of `tfdeblend serve`, until a signal ends it.

    Raises: OSError where the folder or a port cannot be used.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    limits = Limits(options.blends, options.waiting, options.threads)
    with contextlib.closing(Models(options.base, limits, Metrics())) as models:
        models.poll()
        asyncio.run(_serve(options, models))


async def _serve(options: argparse.Namespace, models: Models) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    size = options.megabytes * MEBIBYTE, options.requests
    calls, port = await rpc.start(models, models.metrics, options.address, options.port, *size)
    try:
        pages, rest_port = await rest.start(models, models.metrics, options.address, options.rest_port, *size)
    except OSError:
        await calls.stop(0)
        raise
    models.watch(options.poll)
    print(json.dumps({"grpc": port, "rest": rest_port, "models": models.names}), flush=True)
    await stop.wait()
    logging.getLogger("tfdeblend.serve").info("stopping: what was accepted is finished first")
    models.leave()
    # Neither takes more while the other finishes, nor ends it by failing.
    for result in await asyncio.gather(calls.stop(options.grace), pages.stop(options.grace), return_exceptions=True):
        if isinstance(result, Exception):
            raise result
