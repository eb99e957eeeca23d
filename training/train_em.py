"""Learns a prior from blends alone: laps of posterior samples of all galaxies, and of fitting the network to them.

    python -m training.train_em --config training/configs/em/demo.json --out runs/em-demo

Everything goes below `--out`: each lap's prior, samples, scores and pictures, `laps.png`, `summary.json`, TensorBoard's
logs and, in the end, the best lap's prior. A run that was killed goes on where it stopped when the same command is
given again, in the middle of a lap too, and ends at the same prior.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdeblend import em
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.datasets import read_records, read_stamps
from tfdeblend.diffusion.denoisers import PriorDenoiser
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.errors import DataError
from tfdeblend.io.shards import write_whole
from training.em_blends import Blends, progress, read_scenes, seeded
from training.em_config import EMConfig
from training.em_judge import SCORES, Judge, rise
from training.train_denoiser import train

CHECKED = 4  # shards that a lap's dispersion is checked on
DRAWN = 1000  # of that Gaussian prior's own galaxies
TWIN_RANK = 32  # of the Gaussian prior that it is compared with


class Collapse(DataError):
    """A lap that lost dispersion."""


class Run:
    """All laps below `out`.

    Raises: DataError where `out` was begun with other settings or blends, and for a start that does not fit.
    """

    def __init__(self, config: EMConfig, out: Path):
        self.config, self.out = config, out
        check_start(config)
        self._keep_config()
        self.blends = Blends.prepare(config, read_scenes(config), out / "seeds")
        self.judge = Judge(config, self.blends.shards["validation"], self.blends.halves, out)
        self._expectations: dict[type, em.Expectation] = {}
        self._twin: em.Expectation | None = None

    def _keep_config(self) -> None:
        path = self.out / "em.json"
        if path.exists():
            if EMConfig.read(path).lasting() != self.config.lasting():
                raise DataError(path, "config", "expected the configuration that this folder was begun with")
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_text(self.config.text()))

    def folder(self, lap: int) -> Path:
        return self.out / f"lap_{lap:03d}"

    def expectation(self, lap: int) -> em.Expectation:
        """With the prior of that lap. Graphs are kept: one lap's prior is handed to the next's sampler."""
        prior = read_prior(self.folder(lap))
        if type(prior) not in self._expectations:
            self._expectations[type(prior)] = em.Expectation(prior, self.config.sampling.options())
        found = self._expectations[type(prior)]
        found.use(prior)
        return found

    def shards_of(self, lap: int) -> list[int]:
        """Which training shards a lap sees: laps of a share go through all of them in turn."""
        number = len(self.blends.shards["training"])
        laps = max(1, round(1 / self.config.share))
        turn, place = divmod(lap - 1, laps)
        order = np.random.default_rng([self.config.seed, turn]).permutation(number)
        return sorted(np.array_split(order, min(laps, number))[place % number].tolist())

    # -- steps of a lap

    def start(self) -> None:
        """The prior of lap 0."""
        folder, start = self.folder(0), self.config.start
        folder.mkdir(exist_ok=True)
        if prior_file(folder) is not None:
            return
        if start.kind == "prior":
            assert start.prior is not None
            prior = registry.find(start.prior).network()
            write_whole(folder / "prior.keras", prior.save)
        elif start.kind == "gaussian":
            self._start_gaussian(folder)
        else:
            self._start_fits(folder)

    def _start_gaussian(self, folder: Path) -> None:
        config, training = self.config, self.blends.shards["training"]
        images = np.concatenate([em.seed_stamps(shard, config.side, config.least_signal) for shard in training])
        rank = max(min(config.start.rank, len(images) // 4), 1)
        prior = em.fit_gaussian(images, config, config.seed, rank)
        expectation = em.Expectation(prior, config.sampling.options())
        for lap in progress(range(config.start.laps), "laps of the Gaussian prior"):
            path = folder / f"gaussian_{lap:02d}.npz"
            if path.exists():
                prior.assign(GaussianDenoiser.load(path))
                continue
            em.gaussian_lap(expectation, training, em.lap_seed(config.seed + 1, lap), config.least_signal)
            write_whole(path, prior.save)
        write_whole(folder / "prior.npz", prior.save)

    def _start_fits(self, folder: Path) -> None:
        config, seeding = self.config, em.Seeding(nonparametric=True)
        for kind, split in (("train", "training"), ("heldout", "validation")):
            scenes = [scene for shard in self.blends.shards[split] for scene in shard.scenes]
            for number, shard in enumerate(seeded(config, kind, scenes, folder / "fits", seeding)):
                images = em.seed_stamps(shard, config.side, config.least_signal).astype(np.float32)
                stamps = em.Stamps(images, np.full(len(images), ""), np.zeros(len(images), int))
                stamps.write(_samples(folder) / f"{kind}_{number:05d}.tfrecord")
        train(config.denoiser(_samples(folder), None, config.seed), folder)

    def expect(self, lap: int) -> None:
        """Posterior samples under the prior of the lap before, in files; those that are there are kept."""
        config, shards = self.config, self.blends.shards
        folder, seed = _samples(self.folder(lap)), em.lap_seed(config.seed, lap)
        work = [("train", i, config.samples) for i in self.shards_of(lap)]
        work += [("heldout", i, 1) for i in range(len(shards["validation"]))]
        expectation = None
        for kind, number, samples in progress(work, f"lap {lap}: sampling"):
            path = folder / f"{kind}_{number:05d}.tfrecord"
            if path.exists():
                continue
            expectation = expectation or self.expectation(lap - 1)
            shard = shards["training" if kind == "train" else "validation"][number]
            expectation.stamps(shard, samples, seed, config.least_signal).write(path)

    def dispersion(self, lap: int) -> float:
        """The factor by which a lap changed the galaxies' dispersion, over that of an exact lap of a Gaussian prior
        from the same galaxies: below 1, samples shrink, which compounds over laps."""
        config = self.config
        if lap == 1:
            before = self.judge.population(self.expectation(0).denoiser)[1]
        else:
            before = read_stamps(_samples(self.folder(lap - 1)), "train_*.tfrecord")
        own = {}
        for number in self.shards_of(lap):
            path = _samples(self.folder(lap)) / f"train_{number:05d}.tfrecord"
            if len(images := read_records(path)):
                own[number] = images
        if not own:
            received = f"received none above least_signal {config.least_signal:g}"
            raise DataError(f"lap {lap}", "galaxies", f"expected some to learn from, {received}")
        checked = list(own)[:: max(1, len(own) // CHECKED)]
        seed = em.lap_seed(config.seed + 2, lap)
        twin = em.fit_gaussian(before, config, seed, max(min(TWIN_RANK, len(before) // 4), 1))
        if self._twin is None or self._twin.denoiser.rank != twin.rank:
            self._twin = em.Expectation(twin, em.SAMPLING)  # for a Gaussian any number of steps will do
        self._twin.use(twin)
        shards = [self.blends.shards["training"][number] for number in checked]
        parts = [self._twin.stamps(shard, config.samples, seed, config.least_signal).images for shard in shards]
        own_factor = em.dispersion(np.concatenate([own[number] for number in checked])) / em.dispersion(before)
        return own_factor / (em.dispersion(np.concatenate(parts)) / em.dispersion(twin.draw(DRAWN, seed)))

    def check_dispersion(self, lap: int, ratio: float) -> float:
        """The product over the laps so far. Raises: Collapse where it is too small, or not a number."""
        before = [json.loads((self.folder(k) / "scores.json").read_text())["dispersion"] for k in range(1, lap)]
        kept = float(np.prod([*before, ratio]))
        if not kept >= self.config.least_dispersion:
            expected = f"expected at least {self.config.least_dispersion:g} of what a Gaussian prior's laps keep"
            raise Collapse(f"lap {lap}", "dispersion", f"{expected}, received {kept:.2f}: the samples collapse")
        return kept

    def maximise(self, lap: int) -> None:
        """Fits the network to the lap's samples, from the weights of the lap before where there are any."""
        before = prior_file(self.folder(lap - 1))
        start = before if before is not None and before.suffix == registry.SUFFIX else None
        train(
            self.config.denoiser(_samples(self.folder(lap)), start, em.lap_seed(self.config.seed, lap)),
            self.folder(lap),
        )

    def lap(self, lap: int) -> dict:
        """One lap, or what there is of it already: its scores."""
        scores = self.folder(lap) / "scores.json"
        if scores.exists():
            return json.loads(scores.read_text())
        began, facts = time.perf_counter(), {}
        if lap == 0:
            self.start()
        else:
            self.expect(lap)
            sampled = time.perf_counter()
            facts["dispersion"] = self.dispersion(lap)
            facts["kept"] = self.check_dispersion(lap, facts["dispersion"])
            checked = time.perf_counter()
            self.maximise(lap)
            facts |= {"seconds_expectation": sampled - began, "seconds_maximisation": time.perf_counter() - checked}
        told = self.judge(lap, self.expectation(lap), self.folder(lap), facts)
        shown = {name: told[name] for name in (*SCORES, *facts)} | told["distances"]
        print(f"lap {lap}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)
        return told

    def run(self) -> dict:
        """Laps until the last one, until the held-out score rises no more, or until one collapses."""
        told, best, collapse = [self.lap(0)], 0, None
        for lap in range(1, self.config.laps + 1):
            try:
                told.append(self.lap(lap))
            except Collapse as error:
                collapse = str(error)
                print(f"error: {collapse}", file=sys.stderr)
                break
            if told[lap]["log_predictive"] > told[best]["log_predictive"]:
                best = lap
            elif lap - best >= self.config.patience:
                print(f"lap {lap}: no better than lap {best} for {self.config.patience} laps, done")
                break
        self.judge.figure(range(len(told)))
        return self._end(told, best, collapse)

    def _end(self, told: list[dict], best: int, collapse: str | None) -> dict:
        """Writes the best lap's prior and the summary, with the test blends, which no lap has seen."""
        summary: dict = {
            "best": best,
            "collapse": collapse,
            "validation": [{key: value for key, value in one.items() if key != "blends"} for one in told],
            "rise": rise(told[0]["blends"], told[best]["blends"]),
        }
        if self.blends.shards["test"]:
            test = [self.judge.blends(self.expectation(lap), self.blends.shards["test"])[0] for lap in (0, best)]
            summary["test"] = [{key: one[key] for key in SCORES} for one in test]
            summary["test_rise"] = rise(*(one["blends"] for one in test))
        file = prior_file(self.folder(best))
        assert file is not None
        shutil.copy(file, self.out / f"{self.config.name}{file.suffix}")
        write_whole(self.out / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))
        return summary


def check_start(config: EMConfig) -> None:
    """Raises: DataError for a prior to start from that is not there, or for other stamps."""
    if config.start.prior is None:
        return
    known = registry.find(config.start.prior)
    denoiser = known.load()
    found = known.bands, known.side, known.pixel_scale, known.model_sigma, denoiser.scale_jitter
    expected = config.bands, config.side, config.pixel_scale, config.model_sigma, config.scale_jitter
    if found != expected:
        told = "bands, side, pixel scale, model PSF and scale jitter"
        raise DataError(config.start.prior, "prior", f"expected {told} {expected}, received {found}")


def _samples(folder: Path) -> Path:
    found = folder / "samples"
    found.mkdir(parents=True, exist_ok=True)
    return found


def prior_file(folder: Path) -> Path | None:
    """A lap's prior, if it is there: a network's or a Gaussian's."""
    return next((path for suffix in (".keras", ".npz") if (path := folder / f"prior{suffix}").exists()), None)


def read_prior(folder: Path) -> PriorDenoiser:
    """A copy that may be changed."""
    path = prior_file(folder)
    if path is None:
        raise DataError(folder, "prior", "expected a prior, received none")
    if path.suffix == registry.SUFFIX:
        return registry.find(str(path)).network()
    return GaussianDenoiser.load(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="JSON, see training/em_config.py")
    parser.add_argument("--out", type=Path, help="where to write; default: runs/<name>")
    options = parser.parse_args(arguments)
    tf.get_logger().setLevel("ERROR")  # it takes a graph for each shape for a mistake
    try:
        config = EMConfig.read(options.config)
        summary = Run(config, options.out or Path("runs") / config.name).run()
    except (DataError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    blends, gain = ("test", summary["test_rise"]) if "test_rise" in summary else ("validation", summary["rise"])
    interval = f"{gain['low']:.3g} to {gain['high']:.3g}"
    print(f"best lap {summary['best']}: log p(t | y) of {blends} blends rose by {gain['mean']:.3g} nats ({interval})")
    return 1 if summary["collapse"] else 0


if __name__ == "__main__":
    sys.exit(main())
