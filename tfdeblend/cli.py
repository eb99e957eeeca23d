"""The command line: arguments and exit codes. What the commands do is in `commands.py`, heavy imports inside them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tfdeblend import commands
from tfdeblend.errors import DataError
from tfdeblend.version import __version__

EXIT_CODES = "exit codes: 0 done, 1 some scenes failed, 2 bad usage or input, 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; usage errors leave through argparse with 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("tfdeblend: interrupted", file=sys.stderr)
        return commands.INTERRUPTED
    except BrokenPipeError:  # the reader of standard output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return commands.DONE
    except (DataError, OSError) as error:
        print(f"tfdeblend: error: {error}", file=sys.stderr)
        return commands.BAD_INPUT


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tfdeblend", description="Takes blended galaxies apart.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"tfdeblend {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add, run in (
        (_add_deblend, commands.deblend),
        (_add_detect, commands.detect),
        (_add_measure, commands.measure),
        (_add_plot, commands.plot),
        (_add_info, commands.info),
    ):
        command = add(subparsers)
        command.epilog = EXIT_CODES
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON document to standard output")
        command.add_argument("--quiet", action="store_true", help="no notes and no progress on standard error")
    return parser


def _add_deblend(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "deblend",
        help="model every source of every scene",
        description="Deblends scenes: DIR/<scene>.fits and .png of each, DIR/catalog.ecsv and DIR/index.html of all. "
        "An interrupted run goes on where it stopped when the same command is given again.",
    )
    _add_inputs(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to; created where missing")
    parser.add_argument(
        "--prior",
        choices=commands.PRIORS,
        default="auto",
        help="galaxy model (default: auto); see `tfdeblend info --priors`",
    )
    parser.add_argument(
        "--method", choices=["map"], default="map", help="inference (default: map, the posterior's maximum)"
    )
    parser.add_argument(
        "--detect",
        action=argparse.BooleanOptionalAction,
        help="detect sources in every scene, or refuse those without a catalogue (default: detect where there is none)",
    )
    parser.add_argument("--background", action="store_true", help="fit a constant background in each band")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="scenes fitted together")
    parser.add_argument("--overwrite", action="store_true", help="do all scenes again")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="write no DIR/<scene>.png")
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no DIR/index.html")
    parser.add_argument(
        "--catalog-format",
        choices=["ecsv", "parquet", "fits"],
        default="ecsv",
        help="of the joined catalogue (default: ecsv)",
    )
    return parser


def _add_detect(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "detect", help="find sources", description="Detects sources and prints or writes a catalogue."
    )
    _add_inputs(parser)
    parser.add_argument(
        "--threshold", type=float, default=3.0, metavar="SIGMA", help="detection threshold (default: 3)"
    )
    parser.add_argument("--out", metavar="FILE", help="catalogue to write: .ecsv, .parquet or .fits")
    return parser


def _add_measure(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "measure",
        help="measure saved results anew",
        description="Measures saved results anew and prints or writes a catalogue.",
    )
    _add_results(parser)
    parser.add_argument("--out", metavar="FILE", help="catalogue to write: .ecsv, .parquet or .fits")
    return parser


def _add_plot(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser("plot", help="draw saved results", description="Draws saved results as <scene>.png.")
    _add_results(parser)
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: beside each result)")
    return parser


def _add_info(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "info",
        help="say what is installed, or what a file holds",
        description="Without a file: version, packages and priors. With files: what they hold, and reading's warnings.",
    )
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="scene or result")
    parser.add_argument("--priors", action="store_true", help="list the priors")
    _add_reading(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="NPZ or FITS files, folders of them, or globs")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--psf", metavar="FILE", help="PSF for scenes that bring none")
    parser.add_argument(
        "--mask-planes",
        metavar="PLANE,...",
        type=_planes,
        help="names or bits of the mask planes to mask (default: BAD,SAT,EDGE,SUSPECT,NO_DATA)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="RESULT", help="FITS files that `tfdeblend deblend` wrote")


def _planes(text: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in text.split(",") if part]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value
