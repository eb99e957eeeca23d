"""Which options of `tfdeblend deblend` go together: refused before work starts where they do not."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from tfdeblend.inference.priors import AutomaticPrior, Prior

PRIORS = {
    "auto": "the learned one for the data's bands and pixel scale, else bulge-disk",
    "sersic": "one Sersic profile a galaxy, with its own colour",
    "exponential": "one exponential disk a galaxy",
    "bulge-disk": "an exponential disk and a de Vaucouleurs bulge, each with its own colour",
    "nonparametric": "a non-negative, smooth image a galaxy, of no given shape",
}


def priors() -> dict[str, str]:
    """Every prior that has a name, with one line of description."""
    from tfdeblend.diffusion import registry

    return PRIORS | {name: prior.description for name, prior in registry.shipped().items()}


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, and a package that is missing. Raises: DataError."""
    if args.catalog_format == "parquet" and find_spec("pyarrow") is None:
        raise DataError("--catalog-format", None, "expected the package pyarrow for parquet, which is not installed")
    if args.samples < 2:
        raise DataError("--samples", None, f"expected at least 2, received {args.samples}")
    if args.method == "map":
        for name, value in (("--steps", args.steps), ("--save-samples", args.save_samples)):
            if value:
                raise DataError(name, None, "expected --method sample beside it, received map")
    if args.catalog and args.detect:
        raise DataError("--detect", None, "expected none beside --catalog, received both")
    if args.observation:
        _check_observations(args)
    elif not args.inputs:
        raise DataError("INPUT", None, "expected files, folders or globs, or --observation twice, received none")


def _check_observations(args: argparse.Namespace) -> None:
    if args.inputs:
        raise DataError("INPUT", None, f"expected none beside --observation, received {args.inputs[0]}")
    for name, value in (("--server", args.server), ("--psf", args.psf)):
        if value is not None:
            raise DataError(name, None, f"expected none beside --observation, received {value}")


def find_prior(args: argparse.Namespace) -> Prior | AutomaticPrior:
    """The prior of --prior, read where it is a file.

    Raises: DataError for none of that name, a damaged file, and a prior that the other options do not go with.
    """
    from tfdeblend.inference import priors

    try:
        prior = priors.find(args.prior)
    except DataError:
        raise
    except ValueError as error:
        raise DataError("--prior", None, str(error).removeprefix("prior: ")) from error
    if isinstance(prior, priors.LearnedPrior):
        prior.denoiser  # noqa: B018  read before work starts, as it may be damaged
    if args.method == "sample" and isinstance(prior, priors.Prior) and not prior.samples:
        expected = "expected auto, a learned or a closed-form prior to sample with"
        raise DataError("--prior", None, f"{expected}, received {args.prior!r}")
    if args.steps and isinstance(prior, priors.ClosedFormPrior):
        raise DataError("--steps", None, f"expected a learned prior beside it, received {args.prior!r}")
    if args.server:
        _check_server(args, isinstance(prior, priors.NonparametricPrior))
    return prior


def _check_server(args: argparse.Namespace, nonparametric: bool) -> None:
    """Refuses what no exported model does, a URL that is none, and packages that are missing. Raises: DataError."""
    from tfdeblend.transport import SAMPLES, STEPS, connect

    fixed = {
        "--background": (args.background, None),
        "--samples": (args.method == "sample" and args.samples != SAMPLES, SAMPLES),
        "--steps": (args.steps not in (None, STEPS), STEPS),
        "--prior": (nonparametric, "another"),
    }
    for name, (given, only) in fixed.items():
        if given:
            received = vars(args)[name.removeprefix("--")]
            raise DataError(name, None, f"expected {only or 'none'} beside --server, received {received}")
    connect(args.server, timeout=1)
