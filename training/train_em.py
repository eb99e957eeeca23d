"""Learns a prior from blends alone: each iteration samples all galaxies and fits the network to the samples.

    tfdeblend em --config training/configs/em/demo.json --out runs/em-demo

Everything goes below `--out`: each iteration's prior, samples, scores and pictures, `iterations.png`, `summary.json`,
TensorBoard's logs and, in the end, the best iteration's prior. A killed run continues when the same command is given
again, in the middle of an iteration too, and ends at the same prior.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from tfdeblend import cluster, em
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import PriorDenoiser
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.errors import DataError
from tfdeblend.io.atomic import sha256, written_whole
from tfdeblend.training import distribution
from tfdeblend.training.datasets import read_records, read_stamps
from tfdeblend.training.em_blends import Blends, initial_fits, progress, read_scenes
from tfdeblend.training.em_config import EMConfig
from tfdeblend.training.em_evaluation import SCORES, Evaluator, rise
from tfdeblend.training.train_denoiser import train

CHECKED = 4  # shards that an iteration's dispersion is checked on
DRAWN = 1000  # of that Gaussian prior's own galaxies
TWIN_RANK = 32  # of the Gaussian prior that it is compared with
END = -1  # in place of an iteration, for those that follow


class Collapse(DataError):
    """An iteration that lost dispersion."""


class Run:
    """Runs all iterations, with their files below `out`.

    Samples are drawn, and scored, where `submit` does tasks; networks are fitted here, and where `follow` runs.

    Raises: DataError where `out` was begun with other settings or blends, and for a start that does not fit.
    """

    def __init__(self, config: EMConfig, out: Path, submit: cluster.Submit = cluster.here):
        self.config, self.out = config, out.resolve()  # which the trainings below it keep in their settings
        self.submit, self.strategy = submit, distribution.strategy(config.strategy)
        check_start(config)
        self._keep_config()
        self.blends = Blends.prepare(config, read_scenes(config), self.out / "initial_fits")
        self.evaluator = Evaluator(config, self.blends.shards["validation"], self.out)
        self._twin: em.Expectation | None = None

    def _keep_config(self) -> None:
        path = self.out / "em.json"
        if path.exists():
            if EMConfig.read(path).lasting() != self.config.lasting():
                raise DataError(path, "config", "expected the configuration that this folder was begun with")
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(self.config.text())

    def folder(self, iteration: int) -> Path:
        return iteration_folder(self.out, iteration)

    def prior(self, iteration: int) -> PriorDenoiser:
        """Returns the prior of an iteration, until another one's is asked for."""
        return expectation(self.config, self.out, iteration).denoiser

    def scored(self, iteration: int, shards: Sequence[em.Shard]) -> Iterator[tuple[str, em.Score]]:
        """Scores thinned blends under an iteration's prior: their names and scores, in the order of the shards."""
        work = []
        for number, shard in enumerate(shards):
            halves = {name: self.blends.halves[name] for name in shard.names}
            work.append((self.config, self.out, iteration, number, shard, halves))
        done = {number: found for (_, _, _, number, *_), found in cluster.results(self.submit(score_shard, work))}
        return (each for number in range(len(work)) for each in done[number])

    def shards_of(self, iteration: int) -> list[int]:
        """Returns which training shards an iteration sees: with a share below 1, all of them in turn."""
        number = len(self.blends.shards["training"])
        iterations = max(1, round(1 / self.config.share))
        turn, place = divmod(iteration - 1, iterations)
        order = np.random.default_rng([self.config.seed, turn]).permutation(number)
        return sorted(np.array_split(order, min(iterations, number))[place % number].tolist())

    # -- steps of an iteration

    def start(self) -> None:
        """Makes the prior of iteration 0."""
        folder, start = self.folder(0), self.config.start
        folder.mkdir(exist_ok=True)
        if prior_file(folder) is not None:
            return
        if start.kind == "prior":
            assert start.prior is not None
            prior = registry.find(start.prior).network()
            with written_whole(folder / "prior.keras") as temporary:
                prior.save(temporary)
        elif start.kind == "gaussian":
            self._start_gaussian(folder)
        else:
            self._start_fits(folder)

    def _start_gaussian(self, folder: Path) -> None:
        config, training = self.config, self.blends.shards["training"]
        images = np.concatenate([em.initial_stamps(shard, config.side, config.least_signal) for shard in training])
        rank = max(min(config.start.rank, len(images) // 4), 1)
        prior = em.fit_gaussian(images, config, config.seed, rank)
        expectation = em.Expectation(prior, config.sampling.options())
        for iteration in progress(range(config.start.iterations), "iterations of the Gaussian prior"):
            path = folder / f"gaussian_{iteration:02d}.npz"
            if path.exists():
                prior.assign(GaussianDenoiser.load(path))
                continue
            seed = em.iteration_seed(config.seed + 1, iteration)
            em.gaussian_iteration(expectation, training, seed, config.least_signal)
            with written_whole(path) as temporary:
                prior.save(temporary)
        with written_whole(folder / "prior.npz") as temporary:
            prior.save(temporary)

    def _start_fits(self, folder: Path) -> None:
        config, fit = self.config, em.InitialFits(nonparametric=True)
        for kind, split in (("train", "training"), ("heldout", "validation")):
            scenes = [scene for shard in self.blends.shards[split] for scene in shard.scenes]
            for number, shard in enumerate(initial_fits(config, kind, scenes, folder / "fits", fit)):
                images = em.initial_stamps(shard, config.side, config.least_signal).astype(np.float32)
                stamps = em.Stamps(images, np.full(len(images), ""), np.zeros(len(images), int))
                stamps.write(_samples(folder) / f"{kind}_{number:05d}.tfrecord")
        self.maximise(0)

    def expect(self, iteration: int) -> None:
        """E-step: writes posterior samples under the previous iteration's prior; files that are whole are kept."""
        config, shards, folder = self.config, self.blends.shards, _samples(self.folder(iteration))
        files = [(f"train_{i:05d}", shards["training"][i], config.samples) for i in self.shards_of(iteration)]
        files += [(f"heldout_{i:05d}", shard, 1) for i, shard in enumerate(shards["validation"])]
        work = []
        for name, shard, samples in files:
            path = folder / f"{name}.tfrecord"
            if not em.Stamps.is_whole(path):
                work.append((config, self.out, iteration, path, shard, samples))
        done = cluster.results(self.submit(sample_shard, work))
        for _ in progress(done, f"iteration {iteration}: sampling", len(work)):
            pass

    def dispersion(self, iteration: int) -> float:
        """Returns the factor by which an iteration changed the galaxies' dispersion, over that of an exact iteration
        of a Gaussian prior of the same galaxies: below 1 samples shrink, which compounds over iterations."""
        config = self.config
        if iteration == 1:
            before = self.evaluator.population(self.prior(0))[1]
        else:
            before = read_stamps(_samples(self.folder(iteration - 1)), "train_*.tfrecord")
        own = {}
        for number in self.shards_of(iteration):
            path = _samples(self.folder(iteration)) / f"train_{number:05d}.tfrecord"
            if len(images := read_records(path)):
                own[number] = images
        if not own:
            received = f"received none above least_signal {config.least_signal:g}"
            raise DataError(f"iteration {iteration}", "galaxies", f"expected some to learn from, {received}")
        checked = list(own)[:: max(1, len(own) // CHECKED)]
        seed = em.iteration_seed(config.seed + 2, iteration)
        twin = em.fit_gaussian(before, config, seed, max(min(TWIN_RANK, len(before) // 4), 1))
        if self._twin is None or self._twin.denoiser.rank != twin.rank:
            self._twin = em.Expectation(twin, em.SAMPLING)  # for a Gaussian any number of steps will do
        self._twin.use(twin)
        shards = [self.blends.shards["training"][number] for number in checked]
        parts = [self._twin.stamps(shard, config.samples, seed, config.least_signal).images for shard in shards]
        own_factor = em.dispersion(np.concatenate([own[number] for number in checked])) / em.dispersion(before)
        return own_factor / (em.dispersion(np.concatenate(parts)) / em.dispersion(twin.draw(DRAWN, seed)))

    def check_dispersion(self, iteration: int, ratio: float) -> float:
        """Returns the product over the iterations so far. Raises: Collapse where it is too small, or not a number."""
        before = [json.loads((self.folder(k) / "scores.json").read_text())["dispersion"] for k in range(1, iteration)]
        kept = float(np.prod([*before, ratio]))
        if not kept >= self.config.least_dispersion:
            expected = f"expected at least {self.config.least_dispersion:g} of what a Gaussian prior's iterations keep"
            problem = f"{expected}, received {kept:.2f}: the samples collapse"
            raise Collapse(f"iteration {iteration}", "dispersion", problem)
        return kept

    def maximise(self, iteration: int) -> None:
        """M-step, together with the processes that follow."""
        distribution.of_chief(self.strategy, iteration)
        maximise(self.config, self.out, iteration)

    def iteration(self, iteration: int) -> dict:
        """Runs one iteration, or what is missing of it, and returns its scores."""
        scores = self.folder(iteration) / "scores.json"
        if scores.exists():
            return json.loads(scores.read_text())
        began, facts = time.perf_counter(), {}
        if iteration == 0:
            self.start()
        else:
            self.expect(iteration)
            sampled = time.perf_counter()
            facts["dispersion"] = self.dispersion(iteration)
            facts["kept"] = self.check_dispersion(iteration, facts["dispersion"])
            checked = time.perf_counter()
            self.maximise(iteration)
            facts |= {"seconds_expectation": sampled - began, "seconds_maximisation": time.perf_counter() - checked}
        scored = self.scored(iteration, self.blends.shards["validation"])
        found = self.evaluator(iteration, scored, self.prior(iteration), self.folder(iteration), facts)
        shown = {name: found[name] for name in (*SCORES, *facts)} | found["distances"]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        print(f"iteration {iteration}: {figures}", flush=True)
        return found

    def run(self) -> dict:
        """Runs iterations until the last one, until the held-out score rises no more, or until one collapses."""
        scores, best, collapse = [self.iteration(0)], 0, None
        for iteration in range(1, self.config.iterations + 1):
            try:
                scores.append(self.iteration(iteration))
            except Collapse as error:
                collapse = str(error)
                print(f"error: {collapse}", file=sys.stderr)
                break
            if scores[iteration]["log_predictive"] > scores[best]["log_predictive"]:
                best = iteration
            elif iteration - best >= self.config.patience:
                print(f"iteration {iteration}: no better than {best} for {self.config.patience} iterations, done")
                break
        distribution.of_chief(self.strategy, END)
        self.evaluator.figure(range(len(scores)))
        return self._end(scores, best, collapse)

    def _end(self, scores: list[dict], best: int, collapse: str | None) -> dict:
        """Writes the best iteration's prior and the summary, with scores on the test blends, not seen before."""
        summary: dict = {
            "best": best,
            "collapse": collapse,
            "validation": [{key: value for key, value in one.items() if key != "blends"} for one in scores],
            "rise": rise(scores[0]["blends"], scores[best]["blends"]),
        }
        if self.blends.shards["test"]:
            shards = self.blends.shards["test"]
            test = [self.evaluator.blends(self.scored(k, shards))[0] for k in (0, best)]
            summary["test"] = [{key: one[key] for key in SCORES} for one in test]
            summary["test_rise"] = rise(*(one["blends"] for one in test))
        file = prior_file(self.folder(best))
        assert file is not None
        shutil.copy(file, self.out / f"{self.config.name}{file.suffix}")
        with written_whole(self.out / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n")
        return summary


def run(config: EMConfig, out: Path, workers: int = 0, scheduler: str | None = None) -> dict | None:
    """Runs all iterations, and returns their summary; None in a process that follows another.

    Args:
      workers, scheduler: where samples are drawn, see `cluster.executor`.
    """
    if not distribution.is_chief(distribution.strategy(config.strategy)):
        follow(config, out.resolve())
        return None
    with cluster.executor(workers, scheduler) as submit:
        return Run(config, out, submit).run()


def follow(config: EMConfig, out: Path) -> None:
    """Takes part in the M-steps of a run, whose other steps are those of the chief."""
    strategy = distribution.strategy(config.strategy)
    while (iteration := distribution.of_chief(strategy, 0)) != END:
        maximise(config, out, iteration)


# -- tasks: functions of the run's files and their arguments


def sample_shard(config: EMConfig, out: Path, iteration: int, path: Path, shard: em.Shard, samples: int) -> Path:
    """Writes the samples of a shard for an iteration, under the prior of the one before, and gives their file."""
    seed = em.iteration_seed(config.seed, iteration)
    expectation(config, out, iteration - 1).stamps(shard, samples, seed, config.least_signal).write(path)
    return path


def score_shard(
    config: EMConfig, out: Path, iteration: int, number: int, shard: em.Shard, halves: Mapping[str, np.ndarray]
) -> list[tuple[str, em.Score]]:
    """Scores a shard of thinned blends under an iteration's prior; halves: their other images, by name."""
    own = expectation(config, out, iteration)
    return [(scene.name, one) for scene, one in em.score(own, shard, halves, config.evaluation_samples, config.seed)]


def maximise(config: EMConfig, out: Path, iteration: int) -> None:
    """Fits the network to an iteration's samples, from the weights of the one before where there are any.

    The samples of iteration 0 are fits of the blends.
    """
    folder, start, seed = iteration_folder(out, iteration), None, config.seed
    if iteration:
        before = prior_file(iteration_folder(out, iteration - 1))
        if before is None:
            raise DataError(iteration_folder(out, iteration - 1), "prior", "expected a prior, received none")
        start = before if before.suffix == registry.SUFFIX else None
        seed = em.iteration_seed(config.seed, iteration)
    train(config.denoiser(_samples(folder), start, seed), folder)


def expectation(config: EMConfig, out: Path, iteration: int) -> em.Expectation:
    """Returns the E-step under an iteration's prior. A process keeps the graphs; only the weights change."""
    path = prior_file(iteration_folder(out, iteration))
    if path is None:
        raise DataError(iteration_folder(out, iteration), "prior", "expected a prior, received none")
    kept = _expectations(config.lasting(), out)
    digest = sha256(path)
    known, found = kept.get(path.suffix, (None, None))
    if found is None:
        found = em.Expectation(read_prior(path), config.sampling.options())
    elif digest != known:
        found.use(read_prior(path))
    kept[path.suffix] = digest, found
    return found


@lru_cache(1)
def _expectations(config: EMConfig, out: Path) -> dict[str, tuple[str, em.Expectation]]:
    """Keeps the E-steps of a run in this process, by the kind of prior, with the checksum of the prior's file."""
    return {}


def iteration_folder(out: Path, iteration: int) -> Path:
    return out / f"iteration_{iteration:03d}"


def check_start(config: EMConfig) -> None:
    """Raises: DataError for a prior to start from that is not there, or for other stamps."""
    if config.start.prior is None:
        return
    known = registry.find(config.start.prior)
    denoiser = known.load()
    found = known.bands, known.side, known.pixel_scale, known.model_sigma, denoiser.scale_jitter
    expected = config.bands, config.side, config.pixel_scale, config.model_sigma, config.scale_jitter
    if found != expected:
        fields = "bands, side, pixel scale, model PSF and scale jitter"
        raise DataError(config.start.prior, "prior", f"expected {fields} {expected}, received {found}")


def _samples(folder: Path) -> Path:
    found = folder / "samples"
    found.mkdir(parents=True, exist_ok=True)
    return found


def prior_file(folder: Path) -> Path | None:
    """Returns the path of an iteration's prior, if it is there: a network's or a Gaussian's."""
    return next((path for suffix in (".keras", ".npz") if (path := folder / f"prior{suffix}").exists()), None)


def read_prior(path: Path) -> PriorDenoiser:
    """Returns a copy of a prior in a file that may be changed."""
    if path.suffix == registry.SUFFIX:
        return registry.find(str(path)).network()
    return GaussianDenoiser.load(path)


def conclusion(summary: dict) -> str:
    """Returns in one line what a run reached."""
    blends, gain = ("test", summary["test_rise"]) if "test_rise" in summary else ("validation", summary["rise"])
    rise = f"rose by {gain['mean']:.3g} nats ({gain['low']:.3g} to {gain['high']:.3g})"
    return f"best iteration {summary['best']}: log p(t | y) of {blends} blends {rise}"
