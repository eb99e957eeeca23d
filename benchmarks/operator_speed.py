"""Time of the whole rendering operator, there and back, in units of the Fourier transforms that it cannot do without.

    python -m benchmarks.operator_speed [--sources 2 4 8 16 --bands 5 --side 64 --stamp 64 --blends 8 --repeats 60]

The unit is two `rfft2d` and two `irfft2d` of every band at the padded Fourier size. Whole: masks and weights, PSF
convolution and placing, sum_i T_i s_i, and the adjoint of all that. All are compiled graphs of the same batch in
float32; they take turns and the best of the repeats counts, as other work on the machine slows each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import BatchShape, scene_shape
from tfdeblend.linalg.operator import flatten

Task = Callable[[], object]
PSF_SIDE, PSF_SIGMA = 43, 1.7  # pixels


def blends(sources: int, bands: int, side: int, stamp: int, number: int) -> Batch:
    """Blends of noise with sources anywhere, exactly K = `sources` of them."""
    rng = np.random.default_rng(sources)
    t = np.arange(PSF_SIDE) - PSF_SIDE // 2
    psf = np.exp(-0.5 * (t[:, None] ** 2 + t**2) / PSF_SIGMA**2)
    images = rng.normal(size=(number, bands, side, side))
    observations = [Observation(image, np.ones_like(image), np.stack([psf / psf.sum()] * bands)) for image in images]
    positions = rng.uniform(0, side - 1, size=(number, sources, 2))
    scenes = [
        Scene((observation,), tuple(Source(y, x) for y, x in places))
        for observation, places in zip(observations, positions, strict=True)
    ]
    return Batch.build(scenes, scene_shape(scenes[0], stamp)._replace(blends=number, sources=sources))


def tasks(batch: Batch) -> dict[str, Task]:
    """The compiled graphs by name: transforms alone, with the convolution, and all of the operator."""
    shape, tensors = batch.shape, batch.tensors
    stamps = _noise(shape.blends, shape.sources, shape.bands, shape.stamp, shape.stamp)
    fluxes = tf.abs(_noise(shape.blends, shape.sources, shape.bands))[..., None, None]
    frames = _noise(shape.blends, shape.bands, shape.frame, shape.frame)
    images = tensors.exposures[0].images

    @tf.function(autograph=False)
    def convolution(frames: tf.Tensor, images: tf.Tensor, tensors: Tensors):
        project = Likelihood(tensors, shape).exposures[0].project
        return project.forward(frames), project.transpose(images)

    @tf.function(autograph=False)
    def whole(stamps: tf.Tensor, fluxes: tf.Tensor, images: tf.Tensor, tensors: Tensors):
        operator = Likelihood(tensors, shape).operator
        return operator.forward(fluxes * stamps), fluxes * operator.transpose(flatten([images]))

    return {
        "transforms": transforms(shape),
        "convolution": lambda: convolution(frames, images, tensors),
        "whole": lambda: whole(stamps, fluxes, images, tensors),
    }


def transforms(shape: BatchShape) -> Task:
    """The bare transforms: there and back twice."""
    size = [shape.fourier, shape.fourier]
    images = [_noise(shape.blends, shape.bands, *size) for _ in range(2)]
    spectra = [tf.signal.rfft2d(image) for image in images]

    @tf.function(autograph=False)
    def bare(images: list[tf.Tensor], spectra: list[tf.Tensor]):
        there = [tf.signal.rfft2d(image, fft_length=size) for image in images]
        return there, [tf.signal.irfft2d(spectrum, fft_length=size) for spectrum in spectra]

    return lambda: bare(images, spectra)


def best(tasks: dict[str, Task], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of `repeats` calls of each task, taken in turn, after one each to compile."""
    for task in tasks.values():
        task()
    seconds = dict.fromkeys(tasks, np.inf)
    for _ in range(repeats):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _noise(*shape: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[2, 4, 8, 16])
    for name, default in {"bands": 5, "side": 64, "stamp": 64, "blends": 8, "repeats": 60}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    print("sources  transforms  convolution / transforms  whole / transforms")
    for sources in arguments.sources:
        batch = blends(sources, arguments.bands, arguments.side, arguments.stamp, arguments.blends)
        seconds = best(tasks(batch), arguments.repeats)
        unit = seconds["transforms"]
        ratios = (seconds["convolution"] / unit, seconds["whole"] / unit)
        print(f"{sources:7d}  {1e3 * unit:7.2f} ms  {ratios[0]:24.2f}  {ratios[1]:18.2f}", flush=True)


if __name__ == "__main__":
    main()
