"""The commands that train, export and serve models: their options; the work is in `training/` and `export/`."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from tfdeblend.errors import DataError

LONGEST = 1e6  # seconds
SERVE_PACKAGES = ("aiohttp", "grpc", "prometheus_client", "tensorflow_serving")


def add_train(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    return _add_training(
        subparsers,
        "train",
        "train a prior on images of single galaxies",
        "Trains a learned prior on stamps of single galaxies: DIR/<name>.keras, logs and pictures. "
        "A killed run continues when the same command is given again, and ends at the same weights.",
    )


def add_em(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    return _add_training(
        subparsers,
        "em",
        "learn a prior from blends alone",
        "Learns a prior from blends alone by expectation-maximisation: DIR/<name>.keras, the scores and pictures of "
        "every iteration, and summary.json. A killed run continues when the same command is given again.",
    )


def add_export(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "export",
        help="write a model for a model server",
        description="Writes a model for TensorFlow Serving or `tfdeblend serve`: BASE/<model>/<version>, complete or "
        "not at all.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BASE", help="folder of models")
    parser.add_argument("--prior", default="hsc-grizy-64", metavar="NAME", help="(default: hsc-grizy-64)")
    parser.add_argument("--bands", metavar="NAMES", help="of a closed-form prior, such as g,r,i (default: g,r,i,z,y)")
    parser.add_argument("--side", type=positive, default=64, metavar="N", help="largest image, pixels (default: 64)")
    parser.add_argument("--sources", type=positive, default=4, metavar="N", help="at most (default: 4)")
    parser.add_argument("--psf", type=positive, metavar="N", help="largest PSF image, pixels (default: 43)")
    parser.add_argument("--version", type=positive, metavar="N", help="(default: one more than the last)")
    return parser


def add_serve(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "serve",
        help="serve exported models over gRPC and REST",
        description="Serves exported models over gRPC and REST, as TensorFlow Serving does, for laptops and tests. "
        "Prints one line of JSON with its ports when it is ready. SIGTERM and SIGINT finish what was accepted.",
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="folder of models, BASE/<model>/<version>")
    parser.add_argument("--address", default="127.0.0.1", help="to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8500, metavar="N", help="gRPC; 0: any (default: 8500)")
    parser.add_argument("--rest-port", type=int, default=8501, metavar="N", help="REST; 0: any (default: 8501)")
    for name, default, text in (
        ("--blends", 8, "in a batch or a request"),
        ("--waiting", 256, "blends that may wait"),
        ("--threads", 2, "batches side by side"),
        ("--megabytes", 256, "of a request"),
    ):
        parser.add_argument(name, type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    for name, duration, text in (("--poll", 2.0, "for new versions"), ("--grace", 600.0, "to stop in")):
        help = f"{text} (default: {duration:g})"
        parser.add_argument(name, type=_seconds, default=duration, metavar="SECONDS", help=help)
    return parser


def train(args: argparse.Namespace) -> int:
    from tfdeblend.training import train_denoiser
    from tfdeblend.training.config import DenoiserConfig

    config = DenoiserConfig.read(args.config)
    train_denoiser.train(config, args.out or Path("runs") / config.name)
    return 0


def em(args: argparse.Namespace) -> int:
    from tfdeblend.training import train_em
    from tfdeblend.training.em_config import EMConfig

    config = EMConfig.read(args.config)
    summary = train_em.Run(config, args.out or Path("runs") / config.name).run()
    print(train_em.conclusion(summary))
    return 1 if summary["collapse"] else 0


def export(args: argparse.Namespace) -> int:
    _require_serve_packages()
    from tfdeblend.export import saved_model
    from tfdeblend.export.bucket import PSF_SIDE, Bucket

    bands = tuple(args.bands.split(",")) if args.bands else None
    bucket = Bucket(args.prior, args.side, args.sources, args.psf or PSF_SIDE, bands)
    path = saved_model.write(bucket, args.out, args.version)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{path}: {size / 1e6:.1f} MB")
    return 0


def serve(args: argparse.Namespace) -> int:
    if args.waiting < args.blends:
        raise DataError("--waiting", None, f"expected at least --blends, {args.blends}, received {args.waiting}")
    _require_serve_packages()
    from tfdeblend.export import serve as server

    server.serve(args)
    return 0


def positive(text: str) -> int:
    """A whole number from 1, as an option gives it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most {LONGEST:g}, received {text}")
    return value


def _add_training(
    subparsers: argparse._SubParsersAction, name: str, help: str, description: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=help, description=description)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: runs/<name>)")
    return parser


def _require_serve_packages() -> None:
    """Raises: DataError where a package of the extra `serve` is not installed."""
    missing = [name for name in SERVE_PACKAGES if find_spec(name) is None]
    if missing:
        raise DataError(
            "serve", None, f"expected {', '.join(missing)}, see pip install 'tfdeblend[serve]', received none"
        )
