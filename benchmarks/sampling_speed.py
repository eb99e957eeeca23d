"""Seconds a sample and source: `python -m benchmarks.sampling_speed --out DIR`.

Blends of galaxies drawn from the prior, 64 x 64 pixels in 5 bands, sampled with the graphs warm: by number of sources,
of blends and of samples, the first fit included. Instead, `--memory N` samples N blends of one galaxy, to see that
memory is bounded; `--azula FOLDER` times MMPS and DPS of azula with the same network, in an environment made there,
and ours with one galaxy a blend beside them.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks import environments, worlds
from benchmarks.calibration import truths
from benchmarks.unet_speed import WIDTHS, run
from tfdeblend.deblender import Deblender
from tfdeblend.diffusion import registry
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.simulation.surveys import SURVEYS

SOURCES, BLENDS, SAMPLES = (1, 2, 4, 8), (1, 8), (4, 32)


def seconds(blends: list[worlds.TrueBlend], samples: int, prior: str, sampling: SampleOptions) -> float:
    """A sample and source, warm."""
    deblender = Deblender(prior, "sample", samples=samples, sampling=sampling)
    scenes = [blend.scene for blend in blends]
    deblender.deblend(scenes)
    began = time.perf_counter()
    deblender.deblend(scenes)
    return (time.perf_counter() - began) / samples / sum(len(scene.sources) for scene in scenes)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default="hsc-grizy-64")
    parser.add_argument("--steps", type=int, default=SampleOptions.steps)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--azula", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    stamps = truths(Namespace(truth="prior", prior=options.prior, seed=options.seed), 128)
    denoiser, sampling = registry.find(options.prior).load(), SampleOptions(options.steps)
    survey = worlds.of_bands(SURVEYS["hsc"], denoiser.bands)

    def blends(number: int, sources: int) -> list[worlds.TrueBlend]:
        return worlds.blends(stamps, denoiser.model_sigma, number, (sources, sources), survey=survey, seed=options.seed)

    document: dict = {}
    if options.memory:
        began, done = time.perf_counter(), 0
        deblender = Deblender(options.prior, "sample", samples=16, sampling=sampling)
        for _ in deblender.iterate([blend.scene for blend in blends(options.memory, 1)]):
            done += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        document["memory"] = {"blends": done, "peak_gib": peak, "seconds": time.perf_counter() - began}
    elif options.azula:
        python = environments.create("azula", options.azula)
        settings = {"side": 64, "channels": 5, "batch": 16, "threads": 2, "steps": options.steps}
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        script = Path(__file__).parent / "run_azula.py"
        document["azula"] = run([python, script, *words, "--widths", *map(str, WIDTHS)])
        document["ours"] = seconds(blends(16, 1), 16, options.prior, sampling)
    else:
        rows = [(4, k, 16) for k in SOURCES] + [(b, 4, 16) for b in BLENDS] + [(4, 4, s) for s in SAMPLES]
        document["speed"] = []
        for number, sources, samples in rows:
            value = seconds(blends(number, sources), samples, options.prior, sampling)
            document["speed"].append({"blends": number, "sources": sources, "samples": samples, "seconds": value})
            print(f"{number:3d} blends of {sources} sources, {samples:3d} samples: {value:.4f} s", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sampling_speed.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
