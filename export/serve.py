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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.embedded.models import Models

MEBIBYTE = 2**20
LONGEST = 1e6  # seconds


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, received {number}")
    return number


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most {LONGEST:g}, received {text}")
    return number


OPTIONS: tuple[tuple[str, Callable[[str], float], float, str, str], ...] = (
    ("--blends", at_least_one, 8, "N", "in a batch or a request"),
    ("--waiting", at_least_one, 256, "N", "blends that may wait"),
    ("--threads", at_least_one, 2, "N", "batches side by side"),
    ("--megabytes", at_least_one, 256, "N", "of a request"),
    ("--poll", positive, 2.0, "SECONDS", "for new versions"),
    ("--grace", positive, 600.0, "SECONDS", "to stop in"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.serve", description=str(__doc__).splitlines()[0])
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of models, BASE/<model>/<version>")
    parser.add_argument("--address", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8500, metavar="N", help="gRPC; 0: any (default: 8500)")
    parser.add_argument("--rest-port", type=int, default=8501, metavar="N", help="REST; 0: any (default: 8501)")
    for name, kind, default, unit, text in OPTIONS:
        parser.add_argument(name, type=kind, default=default, metavar=unit, help=f"{text} (default: {default:g})")
    return parser


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.waiting < args.blends:
        parser.error(f"argument --waiting: expected at least --blends, {args.blends}, received {args.waiting}")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    from export.embedded.metrics import Metrics
    from export.embedded.models import Limits, Models

    models = None
    try:
        models = Models(args.base, Limits(args.blends, args.waiting, args.threads), Metrics())
        models.poll()
        asyncio.run(_serve(args, models))
    except OSError as error:
        print(f"export.serve: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before it listened
        return 130
    finally:
        if models:
            models.close()
    return 0


async def _serve(args: argparse.Namespace, models: Models) -> None:
    from export.embedded import rest, rpc

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    largest = args.megabytes * MEBIBYTE
    calls, port = await rpc.start(models, models.metrics, args.address, args.port, largest)
    try:
        pages, rest_port = await rest.start(models, models.metrics, args.address, args.rest_port, largest)
    except OSError:
        await calls.stop(None)
        raise
    models.watch(args.poll)
    print(json.dumps({"grpc": port, "rest": rest_port, "models": models.names}), flush=True)
    await stop.wait()
    logging.getLogger("tfdeblend.serve").info("stopping: what was accepted is finished first")
    models.leave()
    # Neither takes more while the other finishes, nor ends it by failing.
    for result in await asyncio.gather(calls.stop(args.grace), pages.stop(args.grace), return_exceptions=True):
        if isinstance(result, Exception):
            raise result


if __name__ == "__main__":
    raise SystemExit(main())
