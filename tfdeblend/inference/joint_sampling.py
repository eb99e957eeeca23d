"""Samples of galaxies in several observations of one field together, around the maximum that `joint` finds."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
import tensorflow as tf

from tfdeblend.catalog.builder import Facts
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.forward.field import Exposures, JointShape
from tfdeblend.forward.operators import MOST_ONE_BY_ONE
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference import sample_batches
from tfdeblend.inference.diffusion_sampler import LEAST_NORM, PosteriorSampler, SampleOptions
from tfdeblend.inference.map_fit import MapFit, MapResult
from tfdeblend.inference.nuts import NutsOptions, NutsSampler
from tfdeblend.inference.sample_batches import Drawing, in_turn

COMMON = ("kernel", "low_kernel", "points", "gain")  # tensors that all samples of a field share
PIXELS_AT_ONCE = 2**27  # of the Fourier grids of all sources, bands, directions and samples side by side, 4 bytes each


class FieldSamples(NamedTuple):
    """S samples of one field, in the units of the fit, without padding.

    stamps: (S, K, C, P, P). flux: (S, K, C). prior_variance: (S, K, C, P, P). summary: (S, K, 5) or (S, K, 0), see
    `Samples`. large: (S, K) galaxies that the prior does not know. sources: E times (S, K, C_e, H_e, W_e). models: E
    times (S, C_e, H_e, W_e), with their constants: E times (S, C_e).
    """

    stamps: np.ndarray
    flux: np.ndarray
    prior_variance: np.ndarray
    summary: np.ndarray
    large: np.ndarray
    sources: tuple[np.ndarray, ...]
    models: tuple[np.ndarray, ...]
    constants: tuple[np.ndarray, ...]


def drawn_by_diffusion(
    exposures: Exposures,
    shape: JointShape,
    tensors: dict,
    found: MapResult,
    prior: registry.LearnedPrior,
    options: SampleOptions,
    samples: int,
    seed: int,
) -> tuple[FieldSamples, Facts]:
    """Under a learned prior, with the calibration that `tensors` hold."""
    rows = rows_at_once(shape, prior.load().rank + 2, samples)  # one for an open scale
    sampler = _diffusion(prior, shape._replace(blends=rows), options, depth(exposures, shape, tensors))
    own, common = _apart(tensors)
    draw = sample_batches.learned(sampler, own, InitialFit.of(found), [exposures.scene], samples, seed, common)
    return _gathered(exposures, draw, rows, samples), dict(options.facts())


def drawn_by_chains(
    exposures: Exposures,
    fit: MapFit,
    tensors: dict,
    found: MapResult,
    options: NutsOptions,
    samples: int,
    seed: int,
) -> tuple[FieldSamples, Facts]:
    """Under a closed-form prior."""
    sampler, key = _chains(fit, samples, options), (seed, zlib.crc32(exposures.scene.name.encode()) >> 1)
    chains = sampler(tensors, found.state, key)
    facts: Facts = {"sampler": "nuts", "rhat": float(chains.rhat[0]), "ess": float(chains.ess[0])}
    own, common = _apart(tensors)
    draw = sample_batches.closed_form(sampler, own, chains, key, common)
    return _gathered(exposures, draw, rows_at_once(cast(JointShape, fit.shape), 1, samples), samples), facts


def rows_at_once(shape: JointShape, images: int, samples: int) -> int:
    """Samples of one graph, in which each source has so many images, of all bands, at a time."""
    pixels = shape.sources * images * shape.bands * shape.fourier**2
    most = min(PIXELS_AT_ONCE / pixels, MOST_ONE_BY_ONE / shape.sources)
    return int(np.clip(2 ** np.floor(np.log2(max(most, 1))), 1, samples))


def depth(exposures: Exposures, shape: JointShape, tensors: dict) -> float:
    """By how much all exposures together have less noise in a pixel of the model than the deepest band's first, to half
    a factor of two: noise levels end below it."""
    total = np.zeros(shape.bands)
    for own, pixels, weights in zip(shape.exposures, exposures.maps, tensors["weights"], strict=True):
        for band, seen in zip(own.bands, weights[0].numpy(), strict=True):
            total[band] += pixels.area * (np.median(seen[seen > 0]) if (seen > 0).any() else 0)
    return float(2 ** (np.ceil(2 * max(np.log2(total.max()) / 2, 0)) / 2))


def _apart(tensors: dict) -> tuple[dict, dict]:
    """Tensors of each row, and those that all rows share."""
    return {n: t for n, t in tensors.items() if n not in COMMON}, {name: tensors[name] for name in COMMON}


@lru_cache(maxsize=4)
def _diffusion(
    prior: registry.LearnedPrior, shape: JointShape, options: SampleOptions, depth: float
) -> PosteriorSampler:
    """The sampler that serves all fields of a shape; what its thresholds are in units of is the noise of them all."""
    schedule = replace(options.schedule, smallest=options.schedule.smallest / depth)
    options, bucket = replace(options, schedule=schedule), cast(BatchShape, shape)
    return PosteriorSampler(bucket, prior.load(), options, LEAST_NORM / depth)


@lru_cache(maxsize=4)
def _chains(fit: MapFit, samples: int, options: NutsOptions) -> NutsSampler:
    return NutsSampler(fit, samples, options)


def _gathered(exposures: Exposures, draw: Drawing, rows: int, samples: int) -> FieldSamples:
    """All samples, without padding."""
    count, sides = len(exposures.scene.sources), [one.shape[1:] for one in exposures.observations]

    def cut(images: np.ndarray, side: tuple[int, int]) -> np.ndarray:
        return images[..., : side[0], : side[1]]

    parts = []
    for taken, found in in_turn(draw, rows, [0], samples):
        n = len(taken)
        parts.append(
            FieldSamples(
                stamps=found.stamps[:n, :count],
                flux=found.flux[:n, :count],
                prior_variance=found.prior_variance[:n, :count],
                summary=found.summary[:n, :count],
                large=found.large[:n, :count],
                sources=tuple(cut(each[:n, :count], side) for each, side in zip(found.sources, sides, strict=True)),
                models=tuple(cut(each[:n], side) for each, side in zip(found.models, sides, strict=True)),
                constants=tuple(each[:n] for each in found.constants),
            )
        )
    return tf.nest.map_structure(lambda *each: np.concatenate(each), *parts)
