"""Serves exported models over gRPC and REST, as TensorFlow Serving does, for laptops and tests.

    python -m export.serve BASE

Prints one line of JSON when it is ready, with its ports. SIGTERM and SIGINT finish what was accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.embedded.models import Models

MEBIBYTE = 2**20


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.serve", description=str(__doc__).splitlines()[0])
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of models, BASE/<model>/<version>")
    parser.add_argument("--address", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8500, metavar="N", help="gRPC; 0: any (default: 8500)")
    parser.add_argument("--rest-port", type=int, default=8501, metavar="N", help="REST; 0: any (default: 8501)")
    parser.add_argument("--blends", type=int, default=8, metavar="N", help="in a batch or a request (default: 8)")
    parser.add_argument("--waiting", type=int, default=256, metavar="N", help="blends that may wait (default: 256)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="batches side by side (default: 2)")
    parser.add_argument("--megabytes", type=int, default=256, metavar="N", help="of a request (default: 256)")
    parser.add_argument("--poll", type=float, default=2.0, metavar="SECONDS", help="for new versions (default: 2)")
    parser.add_argument("--grace", type=float, default=600.0, metavar="SECONDS", help="to stop in (default: 600)")
    return parser


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    from export.embedded.metrics import Metrics
    from export.embedded.models import Limits, Models

    metrics = Metrics()
    try:
        models = Models(args.base, Limits(args.blends, args.waiting, args.threads), metrics)
        models.poll()
    except OSError as error:
        print(f"export.serve: error: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve(args, models))
    except OSError as error:
        print(f"export.serve: error: {error}", file=sys.stderr)
        return 2
    finally:
        models.close()
    return 0


async def _serve(args: argparse.Namespace, models: Models) -> None:
    from aiohttp import web

    from export.embedded import rest, rpc

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    largest = args.megabytes * MEBIBYTE
    calls, port = rpc.start(models, models.metrics, args.address, args.port, largest)
    runner = web.AppRunner(rest.Rest(models, models.metrics).application(largest), shutdown_timeout=args.grace)
    await runner.setup()
    try:
        site = web.TCPSite(runner, args.address, args.rest_port)
        await site.start()
        rest_port = runner.addresses[0][1]
        models.watch(args.poll)
        print(json.dumps({"grpc": port, "rest": rest_port, "models": models.names}), flush=True)
        await stop.wait()
        logging.getLogger("tfdeblend.serve").info("stopping: what was accepted is finished first")
    finally:
        ended = calls.stop(args.grace)  # takes no more calls at once
        await runner.cleanup()
        await asyncio.to_thread(ended.wait)


if __name__ == "__main__":
    raise SystemExit(main())
