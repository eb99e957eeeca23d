"""Run scarlet2 over scenes: a peer's answers, to be scored by `benchmarks.catsim --peer scarlet2=DIR`.

Runs inside scarlet2's own environment (see `benchmarks/environments.py`), as its pins clash with ours:

    python benchmarks/run_scarlet2.py --scenes scenes/hsc --out answers/scarlet2

The recipe is that of its quickstart (positive spectra stepping by 5% of their norm, morphologies in the unit interval
stepping by 0.1), made fair: as its steps depend on the units, images are scaled to a median sky sigma of 0.05; a
source starts from its Gaussian moments, or as compact where those fail or are not finite; starts are clipped into the
constraints; 1,000 iterations, or until no parameter changes by more than 1e-4. It is given the true positions.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scarlet2
from numpyro.distributions import constraints

SKY_SIGMA = 0.05
SMALL = 1e-6


def scale_of(weights: np.ndarray) -> float:
    """What to multiply the images by, so that the median noise of the unmasked pixels is SKY_SIGMA."""
    return SKY_SIGMA * float(np.sqrt(np.median(weights[weights > 0])))


def add_source(observation, center) -> None:
    """Add one source to the open scene, at `center` (y, x), started from moments or as compact."""
    try:
        spectrum, morphology = scarlet2.init.from_gaussian_moments(observation, center, min_corr=0.99)
        good = bool(jnp.isfinite(spectrum).all() & jnp.isfinite(morphology).all()) and morphology.size > 0
    except (ValueError, TypeError, AssertionError, IndexError):
        good = False
    if not good:
        spectrum = scarlet2.init.pixel_spectrum(observation, center, correct_psf=True)
        morphology = scarlet2.init.compact_morphology()
    spectrum = jnp.maximum(spectrum, 1e-3 * jnp.maximum(jnp.max(spectrum), SKY_SIGMA))
    scarlet2.Source(center, spectrum, jnp.clip(morphology, SMALL, 1 - SMALL))


def deblend(images: np.ndarray, weights: np.ndarray, psfs: np.ndarray, bands, centers, iterations: int) -> np.ndarray:
    """Sources (K,C,H,W) as observed; images, weights (C,H,W), psfs (C,h,w), centers (K,2) = (y, x)."""
    scale = scale_of(weights)
    observation = scarlet2.Observation(
        jnp.asarray(images * scale),
        jnp.asarray(weights / scale**2),
        psf=scarlet2.ArrayPSF(jnp.asarray(psfs)),
        channels=list(bands),
    )
    frame = scarlet2.Frame.from_observations(observation)
    with scarlet2.Scene(frame) as scene:
        for center in centers:
            add_source(observation, jnp.asarray(center, jnp.float32))
    with scarlet2.Parameters(scene):
        for number, source in enumerate(scene.sources):
            step = partial(scarlet2.relative_step, factor=0.05)
            scarlet2.Parameter(source.spectrum, f"spectrum:{number}", constraints.positive, stepsize=step)
            scarlet2.Parameter(source.morphology, f"morph:{number}", constraints.unit_interval, stepsize=0.1)
    fitted = scene.fit(observation, max_iter=iterations, e_rel=1e-4, progress_bar=False)
    rendered = [np.asarray(observation.render(fitted.evaluate_source(source))) for source in fitted.sources]
    return np.stack(rendered) / scale


def main() -> None:
    """Write `<scene>.npz` (`sources`, `seconds`, `version`) for every scene not answered yet; a failure is printed."""
    parser = argparse.ArgumentParser(description="Deblend a folder of NPZ scenes by scarlet2.")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of NPZ scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--iterations", type=int, default=1000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scarlet2.set_validation(False)
    for path in sorted(args.scenes.glob("*.npz")):
        if (args.out / path.name).exists():
            continue
        with np.load(path) as file:
            images, weights, psfs = (file[name] for name in ("images", "weights", "psfs"))
            bands, centers = [str(name) for name in file["filters"]], file["peaks"][:, ::-1]
        start = time.perf_counter()
        try:
            sources = deblend(images, weights, psfs, bands, centers, args.iterations)
        except Exception as error:  # a peer's failure on one scene is a figure of the benchmark, whatever its kind
            print(f"{path.name}: {error!r}")
            continue
        seconds = time.perf_counter() - start
        answer: dict[str, Any] = {
            "sources": sources.astype(np.float32),
            "seconds": seconds,
            "version": version("scarlet2"),
        }
        np.savez_compressed(args.out / path.name, **answer)
        print(f"{path.name}: {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
