"""What the commands do: each takes the parsed arguments and returns an exit code; standard output is for results."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend.app import options
from tfdeblend.errors import DataError
from tfdeblend.version import __version__

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.client import Client
    from tfdeblend.data.observation import Observation
    from tfdeblend.deblender import Deblender

PACKAGES = (
    "tensorflow",
    "tensorflow-probability",
    "tf-keras",
    "keras",
    "numpy",
    "astropy",
    "galsim",
    "sep",
    "matplotlib",
)
SHARP = 0.06  # arcsec a pixel, below which the noise of real galaxies shows and must have no edge
DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes


def deblend(args: argparse.Namespace) -> int:
    from tfdeblend.app import inputs
    from tfdeblend.app.runs import Run, Settings

    options.check(args)
    settings = Settings(
        prior=args.prior,
        method=args.method,
        background=args.background,
        seed=args.seed,
        detect=args.detect,
        mask_planes=None if args.mask_planes is None else tuple(args.mask_planes),
        psf=args.psf,
        samples=args.samples if args.method == "sample" else None,
        steps=args.steps,
        keep_samples=args.save_samples,
        server=args.server,
    )
    catalog = Path(args.catalog) if args.catalog else None
    if args.observation:
        found = inputs.find_fields(args.observation, catalog, settings)
    else:
        found = inputs.find(args.inputs, catalog)
    if args.catalog_format == "fits" and "catalog" in (one.name for one in found):
        raise DataError(
            "--catalog-format", None, "expected ecsv or parquet, received fits, but a scene is named catalog"
        )
    how = {"overwrite": args.overwrite, "figures": args.figures, "quiet": args.quiet}
    run = Run(found, Path(args.out), settings, make_deblender(args), **how)
    try:
        run.go()
    except KeyboardInterrupt:
        kept = sum(state != "failed" for state in run.status.values())
        print(
            f"tfdeblend: {kept} of {len(run.inputs)} scenes are done; give the same command to go on", file=sys.stderr
        )
        raise
    summary = run.finish(args.catalog_format, args.report)
    if args.json:
        print_json(summary)
    else:
        print("scenes:", ", ".join(f"{count} {state}" for state, count in summary["counts"].items() if count))
        print("priors:", ", ".join(f"{name} ({count})" for name, count in sorted(summary["priors"].items())))
        for key in ("catalog", "report"):
            if key in summary:
                print(f"{key}: {summary[key]}")
    return SOME_FAILED if summary["counts"]["failed"] else DONE


def make_deblender(args: argparse.Namespace) -> Deblender | Client:
    """The deblender of this machine, or a server's. Raises: DataError for what `options.find_prior` refuses."""
    prior = options.find_prior(args)
    if args.server:
        from tfdeblend.client import Client

        return Client(args.server, args.prior, args.method, args.seed, args.save_samples)
    from tfdeblend.deblender import Deblender
    from tfdeblend.inference.diffusion_sampler import SampleOptions

    return Deblender(
        prior,
        args.method,
        seed=args.seed,
        background=args.background,
        batch_size=args.batch_size,
        samples=args.samples,
        keep_samples=args.save_samples,
        sampling=SampleOptions(args.steps) if args.steps else SampleOptions(),
    )


def simulate(args: argparse.Namespace) -> int:
    from tfdeblend.simulation.production import Production, SceneFiles, StampFiles

    files = StampFiles if args.stamps else SceneFiles
    production = Production(
        files(simulated_config(args), args.format),
        args.number,
        Path(args.out),
        workers=args.workers,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    manifest = production.go()
    if args.json:
        print_json({"out": args.out, **manifest})
    else:
        print(f"{args.out}:", ", ".join(f"{count} {what}" for what, count in manifest["counts"].items()))
    return DONE


def simulated_config(args: argparse.Namespace) -> Any:
    """The configuration of what to simulate. Raises: DataError."""
    from tfdeblend.simulation.parametric import Population
    from tfdeblend.simulation.real_galaxies import RealPopulation, read_catalogue
    from tfdeblend.simulation.scenes import SceneConfig
    from tfdeblend.simulation.stamps import StampConfig
    from tfdeblend.simulation.surveys import Survey

    survey = Survey.find(args.survey)
    population: Population | RealPopulation = Population(args.bright, args.faint, args.slope, args.stars)
    if args.galaxies == "parametric" and args.shrink != (1, 1):
        raise DataError("--shrink", None, "expected --galaxies DIR beside it, received parametric galaxies")
    if args.galaxies != "parametric":
        read_catalogue(args.galaxies)  # refused before work starts, where it is none
        # Shrunk, the noise is no longer as bright as to need a continuation beyond its image.
        sharp = survey.pixel_scale < SHARP and args.shrink == (1, 1)
        padding = 2 * (args.size or 71) * survey.pixel_scale if sharp else 0.0
        population = RealPopulation(args.galaxies, args.bright, args.faint, args.split, padding, args.shrink)
    if args.stamps:
        return StampConfig(population, survey, args.size or 64, model_sigma=args.model_sigma or 1.0, seed=args.seed)
    choices = {"sources": args.sources, "positions": args.positions, "noise": args.noise, "size": args.size or 71}
    return SceneConfig(survey, population, **choices, model_sigma=args.model_sigma, seed=args.seed)


def detect(args: argparse.Namespace) -> int:
    from tfdeblend import io
    from tfdeblend.data.detection import detect as find_sources

    def catalog(path: Path) -> Table:
        observation, _ = io.read(path, psf=args.psf, mask_planes=args.mask_planes)
        print_notes(args, observation)
        return find_sources(observation, args.threshold)

    tables, code = each(io.find_inputs(args.inputs), catalog)
    print_catalog(args, tables)
    return code


def measure(args: argparse.Namespace) -> int:
    from tfdeblend import io
    from tfdeblend.catalog import files
    from tfdeblend.catalog.measure import remeasure

    tables, code = each(io.find_inputs(args.inputs), lambda path: remeasure(files.read(path)))
    print_catalog(args, tables)
    return code


def plot(args: argparse.Namespace) -> int:
    from tfdeblend import io
    from tfdeblend.app import plots
    from tfdeblend.catalog import files

    def draw(path: Path) -> str:
        target = (Path(args.out) if args.out else path.parent) / f"{io.scene_name(path)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        result = files.read(path)
        plots.plot(result, target)
        if result.samples is not None:
            plots.plot_samples(result, target.with_suffix(".samples.png"))
        return str(target)

    figures, code = each(io.find_inputs(args.inputs), draw)
    if args.json:
        print_json({"figures": figures})
    else:
        print("".join(f"{figure}\n" for figure in figures.values()), end="")
    return code


def info(args: argparse.Namespace) -> int:
    show = print_json if args.json else print_nested
    if args.inputs:
        from tfdeblend import io

        reading = {"psf": args.psf, "mask_planes": args.mask_planes}
        documents, code = each(io.find_inputs(args.inputs), lambda path: describe(path, **reading))
        show(documents)
        return code
    installed = {} if args.priors else packages()
    show({"version": __version__, **installed, "priors": options.priors()})
    return DONE


def packages() -> dict[str, Any]:
    """Versions, looked up without importing the packages."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), "packages": {package: installed(package) for package in PACKAGES}}


def describe(path: Path, psf: str | None = None, mask_planes: Sequence[str | int] | None = None) -> dict[str, Any]:
    """What a scene or a result holds. Raises: DataError where it cannot be read."""
    from tfdeblend import io
    from tfdeblend.catalog import files

    if is_result(path):
        result = files.read(path)
        undeclared = None if result.undeclared is None else len(result.undeclared)
        found: dict[str, Any] = {
            "sources": len(result.catalog),
            "chi2": result.chi2,
            "undeclared": undeclared,
            **result.header,
        }
        first, *others = result.scene.observations
        further = {"observations": {one.name: describe_observation(one) for one in others}} if others else {}
        return {"file": str(path), "content": "result", **describe_observation(first), **found, **further}
    read, catalog = io.read(path, psf=psf, mask_planes=mask_planes)
    found = {"sources": "no catalogue" if catalog is None else len(catalog), "notes": read.notes}
    return {"file": str(path), "content": "scene", **describe_observation(read), **found}


def is_result(path: Path) -> bool:
    """Whether a file was written by `tfdeblend.catalog.files.write`."""
    from astropy.io import fits

    if path.suffix == ".npz":
        return False
    try:
        with fits.open(path) as hdus:
            return "STAMPS" in hdus
    except OSError:
        return False


def describe_observation(observed: Observation) -> dict[str, Any]:
    """Shape, bands, PSF width, noise and masks."""
    import numpy as np

    from tfdeblend.data.psf import fwhm

    valid, scale = observed.valid, observed.pixel_scale
    noise = [np.median(w[v] ** -0.5) if v.any() else None for w, v in zip(observed.weights, valid, strict=True)]
    return {
        "shape": observed.shape,
        "bands": observed.bands,
        "unit": observed.unit,
        "zeropoints": observed.zeropoints,
        "pixel_scale": scale,
        "psf_fwhm": fwhm(observed.psf) * (scale or 1),
        "psf_fwhm_unit": "arcsec" if scale else "pixel",
        "noise": noise,
        "masked": 1 - valid.mean(),
    }


def each(paths: Sequence[Path], work: Callable[[Path], Any]) -> tuple[dict[str, Any], int]:
    """`work` of every file by scene name, and the exit code; a bad file is reported in a line, the others are done."""
    from tfdeblend.io import scene_name

    results = {}
    for path in paths:
        try:
            results[scene_name(path)] = work(path)
        except DataError as error:
            print(f"tfdeblend: {error}", file=sys.stderr)
    failed = len(paths) - len(results)
    return results, DONE if not failed else SOME_FAILED if results else BAD_INPUT


def print_notes(args: argparse.Namespace, observation: Observation) -> None:
    if not args.quiet:
        for note in observation.notes:
            print(f"tfdeblend: {observation.name}: {note}", file=sys.stderr)


def print_catalog(args: argparse.Namespace, tables: dict[str, Table]) -> None:
    """Writes the joined catalogue to --out where given, else prints it; as JSON in any case with --json."""
    from tfdeblend.catalog import files
    from tfdeblend.io.json_values import rows

    if args.out and tables:
        files.write_catalog(tables, args.out)
    if args.json:
        print_json({"catalog": args.out, "scenes": {name: rows(table) for name, table in tables.items()}})
    elif args.out and tables:
        print(f"catalog: {args.out}")
    else:
        for name, table in tables.items():
            print("\n".join([name, *table.pformat(max_lines=-1, max_width=-1), ""]))


def print_json(document: Any) -> None:
    from tfdeblend.io.json_values import dumps

    print(dumps(document))


def print_nested(document: dict[str, Any], indent: str = "") -> None:
    """Plain lines, a key each."""
    from tfdeblend.io.json_values import plain

    width = max(map(len, document), default=0) + 2
    for key, value in plain(document).items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            print_nested(value, indent + "  ")
        elif value is not None and value != []:
            values = value if isinstance(value, list) else [value]
            print(f"{indent}{key:{width}}" + ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
