"""What the options of `tfdeblend deblend` may be, beside one another: told before work starts."""

from __future__ import annotations

import argparse

from tfdeblend.errors import DataError

PRIORS = {
    "auto": "the learned one for the data's bands and pixel scale, else bulge-disk",
    "sersic": "one Sersic profile a galaxy, with its own colour",
    "exponential": "one exponential disk a galaxy",
    "bulge-disk": "an exponential disk and a de Vaucouleurs bulge, each with its own colour",
    "nonparametric": "a non-negative, smooth image a galaxy, of no given shape",
}


def check_prior(name: str) -> None:
    """Tells a wrong prior, and a file that holds none, before work starts. Errors: DataError."""
    from tfdeblend.diffusion import registry

    if registry.is_learned(name):
        registry.find(name).load()
    elif name not in PRIORS:
        known = ", ".join([*PRIORS, *registry.shipped()])
        raise DataError(
            "--prior", f"expected {known} or a {registry.SUFFIX} or {registry.GAUSSIAN} file, received {name!r}"
        )


def check_sampling(args: argparse.Namespace) -> None:
    """Errors: DataError for options of the other method, a prior that cannot be sampled, and a single sample."""
    from tfdeblend.diffusion import registry

    if args.method == "map":
        options = {"--steps": args.steps, "--save-samples": args.save_samples}
        given = [name for name, value in options.items() if value]
        if given:
            raise DataError(given[0], "expected --method sample beside it, received map")
        return
    if args.prior == "nonparametric":
        expected = "expected auto, a learned or a closed-form prior to sample with"
        raise DataError("--prior", f"{expected}, received {args.prior!r}")
    if args.prior != "auto" and not registry.is_learned(args.prior):
        if args.steps:
            raise DataError("--steps", f"expected a learned prior beside it, received {args.prior!r}")
    if args.samples < 2:
        raise DataError("--samples", f"expected at least 2, received {args.samples}")


def check_field(args: argparse.Namespace) -> None:
    """Errors: DataError for what fits of several observations cannot do, and for a catalogue that belongs to none."""
    from tfdeblend.diffusion import registry

    if not args.observation:
        if args.catalog:
            raise DataError("--catalog", "expected --observation beside it, as scenes bring their own, received none")
        if not args.inputs:
            raise DataError("INPUT", "expected files, folders or globs, or --observation twice, received none")
        return
    if args.inputs:
        raise DataError("INPUT", f"expected none beside --observation, received {args.inputs[0]}")
    alone = {
        "--server": args.server,
        "--psf": args.psf,
        "--batch-size": args.batch_size,
    }
    if args.catalog and args.detect:
        raise DataError("--detect", "expected none beside --catalog, received both")
    for name, value in alone.items():
        if value is not None:
            raise DataError(name, f"expected none beside --observation, received {value}")
    if args.prior == "nonparametric" or (args.method == "map" and registry.is_learned(args.prior)):
        expected = "expected auto or a closed-form prior beside --observation, or a learned one with --method sample"
        raise DataError("--prior", f"{expected}, received {args.prior!r}")
    if args.steps and not registry.is_learned(args.prior):
        raise DataError("--steps", f"expected a learned prior beside it, received {args.prior!r}")


def check_server(args: argparse.Namespace) -> None:
    """Errors: DataError for what no exported model does, a wrong URL, and packages that are missing."""
    from tfdeblend.transport import SAMPLES, STEPS, connect

    fixed = {
        "--background": (args.background, None),
        "--samples": (args.method == "sample" and args.samples != SAMPLES, SAMPLES),
        "--steps": (args.steps not in (None, STEPS), STEPS),
        "--prior": (args.prior == "nonparametric", "another"),
    }
    for name, (given, only) in fixed.items():
        if given:
            received = vars(args)[name.removeprefix("--")]
            raise DataError(name, f"expected {only or 'none'} beside --server, received {received}")
    connect(args.server, timeout=1)


def priors() -> dict[str, str]:
    """Every prior in a line, by name."""
    from tfdeblend.diffusion import registry

    return PRIORS | {name: prior.description for name, prior in registry.shipped().items()}
