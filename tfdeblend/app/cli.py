"""The command line: arguments and exit codes. What the commands do is in `commands.py`, heavy imports inside them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfdeblend.app import commands
from tfdeblend.app.commands import positive
from tfdeblend.errors import DataError
from tfdeblend.startup import silence_tensorflow
from tfdeblend.version import __version__

EXIT_CODES = "exit codes: 0 done, 1 some scenes or pictures failed, 2 bad usage or input, 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; usage errors leave through argparse with 2."""
    args = build_parser().parse_args(argv)
    if not getattr(args, "verbose", False):
        silence_tensorflow()
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster convolutions
    try:
        with terminated_as_interrupted():
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


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends what runs here as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tfdeblend", description="Takes blended galaxies apart.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"tfdeblend {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add, run in (
        (_add_deblend, commands.deblend),
        (_add_survey, commands.survey),
        (_add_simulate, commands.simulate),
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
    for add, run in (
        (commands.add_train, commands.train),
        (commands.add_em, commands.em),
        (commands.add_export, commands.export),
        (commands.add_serve, commands.serve),
    ):
        command = add(subparsers)
        command.set_defaults(run=run)
        _add_verbose(command)
    return parser


def _add_verbose(command: argparse.ArgumentParser) -> None:
    command.add_argument("--verbose", action="store_true", help="show TensorFlow's own lines on standard error, too")


def _add_deblend(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "deblend",
        help="model every source of every scene",
        description="Deblends scenes: DIR/<scene>.fits and .png of each, DIR/catalog.ecsv and DIR/index.html of all. "
        "Given again, the same command goes on where an interrupted one stopped. With --observation, given twice or "
        "more, files that show one field are fitted together, each on its own pixels, into one result: one file each "
        "for one field; folders or globs for many fields, where files of the same name show the same field.",
    )
    _add_inputs(parser, "*")
    parser.add_argument(
        "--observation",
        action="append",
        metavar="PATH",
        help="observations of one field each, or of many in a folder or glob, each with a WCS; give it once per "
        "survey or epoch; the model is on the finest pixels",
    )
    parser.add_argument(
        "--catalog",
        metavar="PATH",
        help="sources, as a table (.ecsv, .fits, .cat, .csv, .parquet) of ra, dec, or of x, y in the finest pixels; "
        "for several scenes a folder with a table of each scene's name (default: as the scenes' own files have them)",
    )
    parser.add_argument(
        "--out", type=_path, metavar="DIR", required=True, help="folder to write to; created where missing"
    )
    parser.add_argument(
        "--prior",
        default="auto",
        metavar="NAME",
        help="what galaxies look like, by a name of `tfdeblend info --priors` or a .keras or .npz file (default: auto)",
    )
    parser.add_argument(
        "--method",
        choices=["map", "sample"],
        default="map",
        help="the maximum of the posterior, or samples of it (default: map)",
    )
    _add_verbose(parser)
    parser.add_argument(
        "--optimizer",
        choices=["newton", "adam"],
        default="newton",
        help="how the maximum is found, where samples start, too; both find the same one (default: newton)",
    )
    parser.add_argument("--samples", type=positive, default=16, metavar="N", help="samples of each scene (default: 16)")
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="steps of a learned prior's reverse diffusion (default: 8)"
    )
    parser.add_argument(
        "--save-samples",
        action="store_true",
        help="keep the samples themselves in DIR/<scene>.fits, and show some in DIR/<scene>.samples.png",
    )
    parser.add_argument(
        "--detect",
        action=argparse.BooleanOptionalAction,
        help="detect sources in every scene, or refuse those without a catalogue (default: detect where there is none)",
    )
    parser.add_argument(
        "--background", action="store_true", help="fit a constant background in each band of each image"
    )
    parser.add_argument(
        "--no-stars", action="store_true", help="fit all that is not declared a point as a galaxy; servers always do"
    )
    parser.add_argument(
        "--trust-weights", action="store_true", help="take weights as they are, even where the sky contradicts them"
    )
    parser.add_argument(
        "--rescale-weights", action="store_true", help="rescale the weights of each band to the scatter of its sky"
    )
    parser.add_argument(
        "--sky-correlation", action="store_true", help="estimate the correlation of the noise from the empty sky"
    )
    parser.add_argument(
        "--assume-ab",
        action="store_true",
        help="take fluxes of bands without zero points as of one AB zero point, which learned priors need",
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="scenes fitted together")
    parser.add_argument(
        "--memory", type=_gigabytes, metavar="GB", help="that a scene's fit may take (default: 80%% of the machine's)"
    )
    parser.add_argument(
        "--server", metavar="URL", help="deblend on a model server: grpc://HOST:PORT or http://HOST:PORT"
    )
    parser.add_argument("--overwrite", action="store_true", help="do all scenes, also those done before")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="write no DIR/<scene>.png")
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no DIR/index.html")
    parser.add_argument(
        "--catalog-format",
        choices=["ecsv", "parquet", "fits"],
        default="ecsv",
        help="format of the joined catalogue (default: ecsv)",
    )
    return parser


def _add_survey(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "survey",
        help="make the catalogue of a large image",
        description="Finds and models the sources of FITS images of any size, tile by tile, and writes their catalogue "
        "as Parquet files. Images are one of all bands, or one a band. Given again, the same command goes on where an "
        "interrupted one stopped.",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--out", type=_path, metavar="DIR", required=True, help="folder to write to; created where missing"
    )
    commands.add_workers(parser, "tiles")
    parser.add_argument("--prior", default="bulge-disk", metavar="NAME", help="see deblend (default: bulge-disk)")
    parser.add_argument("--method", choices=["map", "sample"], default="map", help="see deblend (default: map)")
    parser.add_argument("--samples", type=positive, default=16, metavar="N", help="of each source (default: 16)")
    parser.add_argument(
        "--sample-above",
        type=float,
        metavar="BLENDEDNESS",
        help="with --method sample: sample only blends with a source above this blendedness",
    )
    parser.add_argument("--models", action="store_true", help="also write images of model and residual, tile by tile")
    parser.add_argument(
        "--hats", type=_path, metavar="DIR", help="also write the catalogue to this folder as HATS, for LSDB"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--trust-weights", action="store_true", help="take weights as they are, see deblend")
    parser.add_argument("--sky-correlation", action="store_true", help="measure the noise's correlation on each tile")
    parser.add_argument(
        "--threshold", type=float, default=3.25, metavar="SIGMA", help="detection threshold (default: 3.25)"
    )
    parser.add_argument("--tile", type=positive, default=512, metavar="PIXELS", help="side of a tile (default: 512)")
    parser.add_argument(
        "--truth",
        metavar="FILE",
        help="table of true sources (.fits, .ecsv, .parquet), as simulate --field writes it, to compare with",
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="write no DIR/index.html")
    parser.add_argument(
        "--detect-only",
        action="store_true",
        help="stop after DIR/detections.parquet; the command without this option goes on from there",
    )
    _add_verbose(parser)
    return parser


def _add_simulate(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "simulate",
        help="draw blends with their truth",
        description="Draws blends with their truth, with --stamps single galaxies to train on, or with --field a wide "
        "image with a catalogue of all that is in it; and manifest.json. Given again, the same command goes on where "
        "an interrupted one stopped.",
    )
    parser.add_argument(
        "--out", type=_path, metavar="DIR", required=True, help="folder to write to; created where missing"
    )
    parser.add_argument("--number", type=positive, metavar="N", help="scenes or stamps (default: 10)")
    parser.add_argument(
        "--survey", default="hsc", metavar="NAME", help="hsc, lsst, euclid-vis, hst-acs or a JSON file (default: hsc)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="random seed (default: 0)")
    _add_population(parser)
    parser.add_argument("--stamps", action="store_true", help="single galaxies in the model frame, not scenes")
    parser.add_argument(
        "--field", type=positive, metavar="SIDE", help="one image of SIDE x SIDE pixels in files of a band each"
    )
    parser.add_argument(
        "--density", type=float, metavar="N", help="sources in a square arcmin of the field (default: 60)"
    )
    parser.add_argument(
        "--model-sigma",
        type=float,
        metavar="PIXELS",
        help="sigma of the Gaussian model PSF of stamps (default: 1), or of truth_model in scenes (default: none)",
    )
    parser.add_argument(
        "--format", choices=["npz", "fits", "tfrecord"], help="of files (default: npz; a field is always FITS)"
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="draw all, also those drawn before")
    return parser


def _add_population(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the sources that a simulation draws."""
    parser.add_argument("--sources", type=_span, metavar="A-B", help="in a scene (default: 1-5)")
    parser.add_argument(
        "--positions",
        choices=["uniform", "clustered"],
        default="clustered",
        help="where sources are (default: clustered)",
    )
    parser.add_argument(
        "--noise", choices=["white", "correlated"], default="white", help="of the images (default: white)"
    )
    parser.add_argument("--size", type=positive, metavar="N", help="pixels a side (default: 71; stamps 64)")
    parser.add_argument(
        "--galaxies",
        default="parametric",
        metavar="parametric|DIR",
        help="bulges, disks and knots, or the HST galaxies of a folder that galsim.RealGalaxyCatalog reads",
    )
    parser.add_argument(
        "--split", choices=["train", "test", "all"], default="all", help="part of the HST galaxies (default: all)"
    )
    parser.add_argument(
        "--shrink",
        type=_factors,
        default=(1.0, 1.0),
        metavar="A-B",
        help="factor of the HST galaxies' sizes, so that their noise shows less (default: 1)",
    )
    parser.add_argument("--bright", type=float, default=18.0, metavar="MAG", help="brightest, i band (default: 18)")
    parser.add_argument("--faint", type=float, default=25.5, metavar="MAG", help="faintest (default: 25.5)")
    parser.add_argument(
        "--slope", type=float, default=0.31, metavar="DEX", help="of log10 counts, a magnitude (default: 0.31)"
    )
    parser.add_argument(
        "--stars", type=float, metavar="SHARE", help="of stars among the sources (default: 0; in a field 0.1)"
    )


def _add_detect(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "detect", help="find sources", description="Detects sources and prints or writes a catalogue."
    )
    _add_inputs(parser)
    parser.add_argument(
        "--threshold", type=float, default=3.0, metavar="SIGMA", help="detection threshold (default: 3)"
    )
    parser.add_argument("--out", type=_path, metavar="FILE", help="catalogue to write: .ecsv, .parquet or .fits")
    return parser


def _add_measure(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "measure",
        help="measure saved results again",
        description="Measures saved results again, and prints or writes a catalogue.",
    )
    _add_results(parser)
    parser.add_argument("--out", type=_path, metavar="FILE", help="catalogue to write: .ecsv, .parquet or .fits")
    return parser


def _add_plot(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser("plot", help="draw saved results", description="Draws saved results as <scene>.png.")
    _add_results(parser)
    parser.add_argument("--out", type=_path, metavar="DIR", help="folder to write to (default: beside each result)")
    return parser


def _add_info(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "info",
        help="show what is installed, or what a file holds",
        description="Without a file: version, packages and priors. With files: what they hold, and warnings.",
    )
    parser.add_argument("inputs", nargs="*", metavar="FILE", help="scene or result")
    parser.add_argument("--priors", action="store_true", help="list the priors")
    _add_reading(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser, number: str = "+") -> None:
    parser.add_argument("inputs", nargs=number, metavar="INPUT", help="NPZ or FITS files, folders of them, or globs")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--psf",
        metavar="FILE",
        help="PSF in place of the scenes' own; for survey also a function of x, y and band, such as model.py:psf",
    )
    parser.add_argument(
        "--mask-planes",
        metavar="PLANE,...",
        type=_planes,
        help="names or bits of the mask planes to mask (default: BAD,SAT,EDGE,SUSPECT,NO_DATA)",
    )
    parser.add_argument(
        "--psf-position",
        metavar="X,Y",
        type=_position,
        help="the image's centre in the image that a varying PSF model was made for, whose first pixel is 1,1",
    )
    parser.add_argument("--bands", metavar="NAME,...", type=_names, help="names of the bands, in order")
    parser.add_argument(
        "--zeropoints",
        metavar="MAG|NAME=MAG,...",
        type=_zeropoints,
        help="AB magnitude of flux 1, of all bands or of each by name",
    )
    parser.add_argument("--pixel-scale", metavar="ARCSEC", type=float, help="side of a pixel")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="RESULT", help="FITS files that `tfdeblend deblend` wrote")


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, received an empty one; give . for this folder")
    return text


def _planes(text: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in text.split(",") if part)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _position(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected two numbers, such as 4200.5,1033, received {text}") from error
    return x, y


def _zeropoints(text: str) -> float | dict[str, float]:
    try:
        if "=" not in text:
            return float(text)
        pairs = (part.rpartition("=") for part in text.split(","))
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or NAME=MAG,..., received {text}") from error


def _factors(text: str) -> tuple[float, float]:
    return _pair(text, float, "0.3-0.5")


def _span(text: str) -> tuple[int, int]:
    return _pair(text, int, "2-5")


def _pair(text: str, kind: Callable[[str], Any], example: str) -> tuple[Any, Any]:
    """A-B, or A alone for both."""
    least, dash, most = text.partition("-")
    try:
        return kind(least), kind(most if dash else least)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or two, such as {example}, received {text}") from error


def _gigabytes(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected 0 to {2**31 - 1}, received {text}")
    return value
