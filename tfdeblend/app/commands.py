"""What the commands do: each takes the parsed arguments and returns an exit code; standard output is for results."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend.errors import DataError, one_line
from tfdeblend.startup import start_tensorflow
from tfdeblend.version import __version__

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.client import Client
    from tfdeblend.data.observation import Observation
    from tfdeblend.deblender import Deblender
    from tfdeblend.inference.priors import AutomaticPrior, Prior
    from tfdeblend.io import Reading

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

    check(args)
    settings = Settings(
        prior=args.prior,
        method=args.method,
        optimizer=args.optimizer,
        background=args.background,
        seed=args.seed,
        detect=args.detect,
        reading=reading(args),
        trust_weights=args.trust_weights,
        stars=not args.no_stars and not args.server,
        rescale_weights=args.rescale_weights,
        sky_correlation=args.sky_correlation,
        assume_ab=args.assume_ab,
        samples=args.samples if args.method == "sample" else None,
        steps=args.steps,
        keep_samples=args.save_samples,
        server=args.server,
    )
    catalog = Path(args.catalog) if args.catalog else None
    if args.observation:
        found = inputs.find_fields(args.observation, catalog, settings)
    else:
        found = inputs.find(args.inputs, catalog, args.psf)
    if args.catalog_format == "fits" and "catalog" in (one.name for one in found):
        raise DataError(
            "--catalog-format", None, "expected ecsv or parquet, received fits, but a scene is named catalog"
        )
    how = {"overwrite": args.overwrite, "figures": args.figures, "quiet": args.quiet}
    run = Run(found, Path(args.out), settings, make_deblender(args), **how)
    try:
        run.go()
    except (KeyboardInterrupt, OSError):
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
        reasons = [
            f"{used['prior']} ({used['scenes']}{': ' if used['reason'] else ''}{used['reason']})"
            for used in summary["prior_reasons"]
        ]
        print("priors:", ", ".join(reasons))
        for key in ("catalog", "report"):
            if key in summary:
                print(f"{key}: {summary[key]}")
    return SOME_FAILED if any("error" in scene for scene in summary["scenes"]) else DONE


def reading(args: argparse.Namespace) -> Reading:
    """What the options say of the files."""
    from tfdeblend.io import Reading

    return Reading(args.psf, args.psf_position, args.mask_planes, args.bands, args.zeropoints, args.pixel_scale)


def make_deblender(args: argparse.Namespace) -> Deblender | Client:
    """The deblender of this machine, or a server's. Raises: DataError for what `find_prior` refuses."""
    prior = find_prior(args)
    if args.server:
        from tfdeblend.client import Client

        kept, trust, assume = args.save_samples, args.trust_weights, args.assume_ab
        return Client(args.server, args.prior, args.method, args.seed, kept, trust, assume)
    from tfdeblend.deblender import Deblender
    from tfdeblend.inference.diffusion_sampler import SampleOptions
    from tfdeblend.inference.map_fit import MapOptions

    return Deblender(
        prior,
        args.method,
        seed=args.seed,
        background=args.background,
        trust_weights=args.trust_weights,
        stars=not args.no_stars,
        assume_ab=args.assume_ab,
        batch_size=args.batch_size,
        memory=args.memory,
        options=MapOptions(optimizer=args.optimizer),
        samples=args.samples,
        keep_samples=args.save_samples,
        sampling=SampleOptions(args.steps) if args.steps else SampleOptions(),
        progress=not args.quiet,
    )


def survey(args: argparse.Namespace) -> int:
    from tfdeblend import io
    from tfdeblend.io.companions import by_field

    if args.psf_position is not None:
        raise DataError("--psf-position", None, "expected none, as each tile has a place of its own, received one")
    files, *others = by_field(io.find_inputs(args.inputs))
    if others:
        received = ", ".join(str(path) for path in (files[0], *(other[0] for other in others)))
        raise DataError("inputs", "files", f"expected the images of one field, received several: {received}")
    start_tensorflow(args.verbose)
    from tfdeblend.app import survey_page
    from tfdeblend.survey import Survey, SurveySettings, hats, psf_function, truth

    settings = SurveySettings(
        tuple(str(file.resolve()) for file in files),
        psf=args.psf and psf_function.absolute(args.psf),
        mask_planes=args.mask_planes,
        bands=args.bands,
        zeropoints=args.zeropoints,
        pixel_scale=args.pixel_scale,
        prior=args.prior,
        method=args.method,
        samples=args.samples,
        sample_above=args.sample_above,
        models=args.models,
        seed=args.seed,
        trust_weights=args.trust_weights,
        sky_correlation=args.sky_correlation,
        threshold=args.threshold,
        tile=args.tile,
    )
    if args.detect_only and (args.hats or args.truth):
        raise DataError("--detect-only", None, "expected neither --hats nor --truth beside it, which need a catalogue")
    survey, catalogue = Survey(settings, Path(args.out).resolve()), args.hats and Path(args.hats).resolve()
    if catalogue:
        hats.check(catalogue, settings.key)  # before a run that may take days
    true = None if args.truth is None else truth.read(args.truth, settings)
    page = args.report and not args.detect_only
    how = {"progress": not args.quiet, "pictures": page, "verbose": args.verbose, "fit": not args.detect_only}
    report = survey.run(args.workers, args.scheduler, **how)
    if catalogue:
        survey.write_hats(catalogue)
    compared = {} if true is None else dict(survey_page.comparisons(survey.out, true))
    if page:
        survey_page.write_page(survey.out, compared)
    if args.json:
        against = {"truth": {band: comparison.document() for band, comparison in compared.items()}} if compared else {}
        print_json({"out": args.out, **report.as_dict(), **against})
    else:
        print(f"{args.out}: {report}")
        if compared:
            print([*compared.values()][len(compared) // 2])
    return SOME_FAILED if report.failures else DONE


def simulate(args: argparse.Namespace) -> int:
    from tfdeblend.simulation.production import Production, SceneFiles, StampFiles

    out, how = Path(args.out), {name: getattr(args, name) for name in ("workers", "overwrite", "quiet")}
    if args.field is not None:
        from tfdeblend.simulation.field_files import FieldProduction

        manifest = FieldProduction(field_config(args), out, **how).go()
    else:
        if args.density is not None:
            raise DataError("--density", None, "expected --field SIDE beside it, received scenes or stamps")
        files = StampFiles if args.stamps else SceneFiles
        number = 10 if args.number is None else args.number
        manifest = Production(files(simulated_config(args), args.format or "npz"), number, out, **how).go()
    if args.json:
        print_json({"out": args.out, **manifest})
    else:
        print(f"{args.out}:", ", ".join(f"{count} {what}" for what, count in manifest["counts"].items()))
    return DONE


def field_config(args: argparse.Namespace) -> Any:
    """The configuration of a field to simulate. Raises: DataError, also for options that fields do not have."""
    from tfdeblend.simulation.field import FieldConfig
    from tfdeblend.simulation.parametric import Population
    from tfdeblend.simulation.surveys import Survey

    others = {
        "--stamps": args.stamps,
        "--number": args.number is not None,
        "--size": args.size is not None,
        "--sources": args.sources is not None,
        "--model-sigma": args.model_sigma is not None,
        "--galaxies": args.galaxies != "parametric",
        "--split": args.split != "all",
        "--shrink": args.shrink != (1, 1),
        "--format": args.format not in (None, "fits"),
    }
    for option, given in others.items():
        if given:
            raise DataError(option, None, "expected scenes or stamps beside it, received --field")
    stars = 0.1 if args.stars is None else args.stars
    return FieldConfig(
        Survey.find(args.survey),
        Population(args.bright, args.faint, args.slope, stars),
        side=args.field,
        density=60.0 if args.density is None else args.density,
        clustering=0.5 if args.positions == "clustered" else 0.0,
        noise=args.noise,
        seed=args.seed,
    )


def simulated_config(args: argparse.Namespace) -> Any:
    """The configuration of what to simulate. Raises: DataError."""
    from tfdeblend.simulation.parametric import Population
    from tfdeblend.simulation.real_galaxies import RealPopulation, read_catalogue
    from tfdeblend.simulation.scenes import SceneConfig
    from tfdeblend.simulation.stamps import StampConfig
    from tfdeblend.simulation.surveys import Survey

    survey = Survey.find(args.survey)
    population: Population | RealPopulation = Population(args.bright, args.faint, args.slope, args.stars or 0.0)
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
    choices = {
        "sources": args.sources or (1, 5),
        "positions": args.positions,
        "noise": args.noise,
        "size": args.size or 71,
    }
    return SceneConfig(survey, population, **choices, model_sigma=args.model_sigma, seed=args.seed)


def detect(args: argparse.Namespace) -> int:
    from tfdeblend import io
    from tfdeblend.data.detection import detect as find_sources

    def catalog(path: Path) -> Table:
        observation, _ = io.read(path, **vars(reading(args)))
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
    from tfdeblend import io, plots
    from tfdeblend.catalog import files
    from tfdeblend.plots import bitmap

    def draw(path: Path) -> str:
        target = (Path(args.out) if args.out else path.parent) / f"{io.scene_name(path)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        result = files.read(path)
        bitmap.plot(result, target)
        if result.samples is not None:
            plots.write(plots.samples(result), target.with_suffix(".samples.png"))
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

        documents, code = each(io.find_inputs(args.inputs), lambda path: describe(path, reading(args)))
        show(documents)
        return code
    installed = {} if args.priors else packages()
    show({"version": __version__, **installed, "priors": priors()})
    return DONE


def packages() -> dict[str, Any]:
    """Versions, looked up without importing the packages."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), "packages": {package: installed(package) for package in PACKAGES}}


def describe(path: Path, how: Reading) -> dict[str, Any]:
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
            "notes": [note for one in result.scene.observations for note in one.notes],
            **result.header,
        }
        first, *others = result.scene.observations
        further = {"observations": {one.name: describe_observation(one) for one in others}} if others else {}
        return {"file": str(path), "content": "result", **describe_observation(first), **found, **further}
    read, catalog = io.read(path, **vars(how))
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
        except Exception as error:
            message = one_line(error) if isinstance(error, DataError) else one_line(f"{path}: {error!r}")
            print(f"tfdeblend: {message}", file=sys.stderr)
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
    start_tensorflow(args.verbose)
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
        "--optimizer": (args.optimizer != "newton", "newton"),
    }
    for name, (given, only) in fixed.items():
        if given:
            received = vars(args)[name.removeprefix("--")]
            raise DataError(name, None, f"expected {only or 'none'} beside --server, received {received}")
    connect(args.server, timeout=1)


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
    parser = _add_training(
        subparsers,
        "em",
        "learn a prior from blends alone",
        "Learns a prior from blends alone by expectation-maximisation: DIR/<name>.keras, the scores and pictures of "
        "every iteration, and summary.json. A killed run continues when the same command is given again.",
    )
    add_workers(parser, "blends")
    return parser


def add_workers(parser: argparse.ArgumentParser, work: str) -> None:
    """Adds the options of where work is done: in this process, on a local cluster of Dask, or on another one."""
    where = parser.add_mutually_exclusive_group()
    help = "processes of a local Dask cluster; 0: this process alone (default: 0)"
    where.add_argument("--workers", type=_number, default=0, metavar="N", help=help)
    where.add_argument("--scheduler", metavar="ADDRESS", help=f"Dask scheduler to send {work} to")


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
        ("--requests", 64, "at work at once, over gRPC and over REST"),
    ):
        parser.add_argument(name, type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    for name, duration, text in (("--poll", 2.0, "for new versions"), ("--grace", 600.0, "to stop in")):
        help = f"{text} (default: {duration:g})"
        parser.add_argument(name, type=_seconds, default=duration, metavar="SECONDS", help=help)
    return parser


def train(args: argparse.Namespace) -> int:
    start_tensorflow(args.verbose)
    from tfdeblend.training import train_denoiser
    from tfdeblend.training.config import DenoiserConfig

    config = DenoiserConfig.read(args.config)
    train_denoiser.train(config, args.out or Path("runs") / config.name)
    return 0


def em(args: argparse.Namespace) -> int:
    start_tensorflow(args.verbose)
    from tfdeblend.training import train_em
    from tfdeblend.training.em_config import EMConfig

    config = EMConfig.read(args.config)
    summary = train_em.run(config, args.out or Path("runs") / config.name, args.workers, args.scheduler)
    if summary is None:  # of the process that is followed
        return 0
    print(train_em.conclusion(summary))
    return 1 if summary["collapse"] else 0


def export(args: argparse.Namespace) -> int:
    _require_serve_packages()
    start_tensorflow(args.verbose)
    from tfdeblend.export import saved_model
    from tfdeblend.export.bucket import PSF_SIDE, Bucket

    bands = tuple(args.bands.split(",")) if args.bands else None
    try:
        bucket = Bucket(args.prior, args.side, args.sources, args.psf or PSF_SIDE, bands)
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError("export", None, error) from error
    path = saved_model.write(bucket, args.out, args.version)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{path}: {size / 1e6:.1f} MB")
    return 0


def serve(args: argparse.Namespace) -> int:
    if args.waiting < args.blends:
        raise DataError("--waiting", None, f"expected at least --blends, {args.blends}, received {args.waiting}")
    _require_serve_packages()
    start_tensorflow(args.verbose)
    from tfdeblend.export import serve as server

    server.serve(args)
    return 0


def positive(text: str) -> int:
    """A whole number from 1, as an option gives it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, received {text}")
    return value


def _number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, received {text}")
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
