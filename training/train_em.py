"""Learns a prior from blends alone: laps of posterior samples of all galaxies, and of fitting the network to them.

    python -m training.train_em --config training/configs/em-demo.json --out runs/em-demo

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
from tqdm import tqdm

from tfdeblend import em, learned
from tfdeblend.datasets import read_stamps
from tfdeblend.denoisers import Denoiser
from tfdeblend.errors import DataError
from tfdeblend.gaussian import GaussianDenoiser
from tfdeblend.shards import write_whole
from training.em_blends import Blends, read_scenes, seeded
from training.em_config import EMConfig
from training.em_judge import Judge, rise
from training.train_denoiser import train

CHECKED = 4  # shards that a lap's dispersion is checked on
DRAWN = 1000  # of that Gaussian prior's own galaxies
TWIN_RANK = 32  # of the Gaussian prior that it is compared with


class Run:
    """All laps below `out`."""

    def __init__(self, config: EMConfig, out: Path):
        self.config, self.out = config, out
        self._keep_config()
        self.blends = Blends.prepare(config, read_scenes(config), out / "seeds")
        self.judge = Judge(config, self.blends.shards["validation"], self.blends.judged, out)
        self._expectations: dict[type, em.Expectation] = {}

    def _keep_config(self) -> None:
        """Raises: DataError where `out` is another configuration's."""
        path = self.out / "em.json"
        if path.exists() and path.read_text() != self.config.text():
            raise DataError(path, "config", "expected the configuration that this folder was begun with")
        self.out.mkdir(parents=True, exist_ok=True)
        path.write_text(self.config.text())

    def folder(self, lap: int) -> Path:
        return self.out / f"lap_{lap:03d}"

    def expectation(self, lap: int) -> em.Expectation:
        """With the prior of that lap. Graphs are kept: one lap's prior is handed to the next's sampler."""
        prior = read_prior(self.folder(lap))
        if type(prior) not in self._expectations:
            self._expectations[type(prior)] = em.Expectation(prior, self.config.sampling)
        found = self._expectations[type(prior)]
        found.use(prior)
        return found

    def shards_of(self, lap: int) -> list[int]:
        """Which training shards a lap sees: laps of a share go through all of them in turn."""
        number = len(self.blends.shards["training"])
        count = max(1, round(self.config.share * number))
        places = (lap - 1) * count + np.arange(count)
        orders = {
            turn: np.random.default_rng([self.config.seed, int(turn)]).permutation(number)
            for turn in set(places // number)
        }
        return sorted(int(orders[place // number][place % number]) for place in places)

    # -- steps of a lap

    def start(self) -> None:
        """The prior of lap 0."""
        folder, start = self.folder(0), self.config.start
        folder.mkdir(exist_ok=True)
        if prior_file(folder) is not None:
            return
        if start.kind == "prior":
            assert start.prior is not None
            prior = learned.find(start.prior).load().without_optimizer()
            write_whole(folder / "prior.keras", prior.save)
        elif start.kind == "gaussian":
            self._start_gaussian(folder)
        else:
            self._start_fits(folder)

    def _start_gaussian(self, folder: Path) -> None:
        config, training = self.config, self.blends.shards["training"]
        images = np.concatenate([em.seed_stamps(shard, config.side, config.least_signal) for shard in training])
        names = ("bands", "pixel_scale", "model_sigma", "scale_jitter")
        kind = {name: getattr(config, name) for name in names}
        rank = min(config.start.rank, len(images) // 2)
        prior = GaussianDenoiser.fit(images.astype(np.float32), rank, **kind)
        expectation = em.Expectation(prior, config.sampling)
        for lap in tqdm(range(config.start.laps), "laps of the Gaussian prior", disable=None):
            path = folder / f"gaussian_{lap:02d}.npz"
            if path.exists():
                prior.assign(GaussianDenoiser.load(path))
                continue
            em.gaussian_lap(expectation, training, em.lap_seed(config.seed + 1, lap), config.least_signal)
            write_whole(path, prior.save)
        write_whole(folder / "prior.npz", prior.save)

    def _start_fits(self, folder: Path) -> None:
        config = self.config
        for kind, split in (("train", "training"), ("heldout", "validation")):
            scenes = [scene for shard in self.blends.shards[split] for scene in shard.scenes]
            found = seeded(config, kind, scenes, folder / "fits", True)
            for number, shard in enumerate(found):
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
        for kind, number, samples in tqdm(work, f"lap {lap}: sampling", disable=None):
            path = folder / f"{kind}_{number:05d}.tfrecord"
            if path.exists():
                continue
            expectation = expectation or self.expectation(lap - 1)
            shard = shards["training" if kind == "train" else "validation"][number]
            expectation.stamps(shard, samples, seed, config.least_signal).write(path)

    def dispersion(self, lap: int) -> float:
        """By what factor this lap changed the samples' dispersion, over that by which a Gaussian prior's lap does, from
        where the one before ended; NaN of the first.

        Shrinkage of samples compounds over laps, and nothing else tells. Raises: DataError for a lap that lost
        dispersion.
        """
        if lap == 1:
            return float("nan")
        config, numbers = self.config, self.shards_of(lap)[:CHECKED]
        before = read_stamps(_samples(self.folder(lap - 1)), "train_*.tfrecord")
        own = np.concatenate(
            [read_stamps(_samples(self.folder(lap)), f"train_{number:05d}.tfrecord") for number in numbers]
        )
        seed = em.lap_seed(config.seed + 2, lap)
        like = self.expectation(lap - 1).denoiser
        twin = em.fit_gaussian(before, like, seed, min(TWIN_RANK, len(before) // 2))
        shards = [self.blends.shards["training"][number] for number in numbers]
        expectation = em.Expectation(twin, config.sampling)
        parts = [expectation.stamps(shard, config.samples, seed, config.least_signal).images for shard in shards]
        own_factor = em.dispersion(own) / em.dispersion(before)
        twin_factor = em.dispersion(np.concatenate(parts)) / em.dispersion(twin.draw(DRAWN, seed))
        if own_factor < config.least_dispersion * twin_factor:
            expected = f"expected at least {config.least_dispersion:g} of a Gaussian prior's lap"
            received = f"received {own_factor / twin_factor:.2f}: the samples collapse"
            raise DataError(f"lap {lap}", "dispersion", f"{expected}, {received}")
        return own_factor / twin_factor

    def maximise(self, lap: int) -> None:
        """Fits the network to the lap's samples, from the weights of the lap before where there are any."""
        before = prior_file(self.folder(lap - 1))
        start = before if before is not None and before.suffix == learned.SUFFIX else None
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
            checked = time.perf_counter()
            self.maximise(lap)
            facts |= {"seconds_expectation": sampled - began, "seconds_maximisation": time.perf_counter() - checked}
        told = self.judge(lap, self.expectation(lap), self.folder(lap), facts)
        shown = {name: told[name] for name in ("log_predictive", "chi2")} | told["distances"]
        print(f"lap {lap}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)
        return told

    def run(self) -> dict:
        """Laps until the last one, or until the held-out score rises no more."""
        told = [self.lap(0)]
        best = 0
        for lap in range(1, self.config.laps + 1):
            told.append(self.lap(lap))
            self.judge.figure(range(lap + 1))
            if told[lap]["log_predictive"] > told[best]["log_predictive"]:
                best = lap
            elif lap - best >= self.config.patience:
                print(f"lap {lap}: no better than lap {best} for {self.config.patience} laps, done")
                break
        return self._end(told, best)

    def _end(self, told: list[dict], best: int) -> dict:
        """Writes the best lap's prior and the summary, with the test blends, which no lap has seen."""
        summary: dict = {
            "best": best,
            "validation": [{key: one[key] for key in ("lap", "log_predictive", "chi2", "distances")} for one in told],
            "rise": rise(told[0]["blends"], told[best]["blends"]),
        }
        if self.blends.shards["test"]:
            test = [self.judge.blends(self.expectation(lap), self.blends.shards["test"])[0] for lap in (0, best)]
            summary["test"] = [{key: one[key] for key in ("log_predictive", "chi2")} for one in test]
            summary["test_rise"] = rise(*(one["blends"] for one in test))
        file = prior_file(self.folder(best))
        assert file is not None
        shutil.copy(file, self.out / f"{self.config.name}{file.suffix}")
        write_whole(self.out / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=1) + "\n"))
        return summary


def _samples(folder: Path) -> Path:
    found = folder / "samples"
    found.mkdir(parents=True, exist_ok=True)
    return found


def prior_file(folder: Path) -> Path | None:
    """A lap's prior, if it is there: a network's or a Gaussian's."""
    return next((path for suffix in (".keras", ".npz") if (path := folder / f"prior{suffix}").exists()), None)


def read_prior(folder: Path) -> Denoiser:
    """A copy that may be changed."""
    path = prior_file(folder)
    if path is None:
        raise DataError(folder, "prior", "expected a prior, received none")
    if path.suffix == learned.SUFFIX:
        return learned.find(str(path)).load().without_optimizer()
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
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"best lap {summary['best']}: held-out log p(y' | y) rose by {summary['rise']['mean']:.3g} nats a blend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
