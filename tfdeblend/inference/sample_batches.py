"""The samples of a batch of scenes, a few rows at a time: with a learned prior by the reverse diffusion, with a
closed-form one by NUTS. Either way a scene is done when its last sample is, and holds no memory then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.catalog.statistics import Sample, SampleStatistics
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import random
from tfdeblend.diffusion.initial import Seed
from tfdeblend.forward.batch import PER_SOURCE, BlendBatch
from tfdeblend.forward.operators import MOST_ONE_BY_ONE
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, Samples
from tfdeblend.inference.evidence import combine
from tfdeblend.inference.nuts import NutsResult, NutsSampler

# Of the Fourier grids of all bands of the stamps that a graph holds. With V's directions its arrays are then of some
# 20 MB; what is larger than 32 MB the C library maps anew, page by page, at every use, which takes longer than most of
# what is done with it.
PIXELS_AT_ONCE = 750_000

# The samples (by number) of some blends of a batch (by row).
Drawing = Callable[[np.ndarray, np.ndarray], Samples]


class Drawn(NamedTuple):
    """All samples of a scene. row: of the batch."""

    row: int
    statistics: SampleStatistics


def rows_at_once(shape: BatchShape, total: int) -> int:
    """Rows of a graph for `total` samples: a power of two, as numbers of samples are apt to be; of no more stamps than
    are placed one by one, which is faster."""
    stamps = min(PIXELS_AT_ONCE / (shape.bands * shape.fourier**2), MOST_ONE_BY_ONE)
    most = 2 ** np.floor(np.log2(max(stamps / shape.sources, 1)))
    return int(min(most, 2 ** np.ceil(np.log2(total))))


def learned(
    sampler: PosteriorSampler,
    tensors: dict,
    seed: Seed,
    scenes: Sequence[Scene],
    samples: int,
    number: int,
    common: dict | None = None,
) -> Drawing:
    """Of a batch of these tensors, seeded by a fit. number: the user's seed. common: further tensors, of all rows."""
    sources = sampler.shape.sources
    per_source = {name: tensors[name][:, :sources] for name in PER_SOURCE}
    given = tensors | per_source, seed.first(sources)
    keys = random.keys(number, [scene.name for scene in scenes], samples).reshape(-1, samples)

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        own, some = tf.nest.map_structure(lambda t: tf.gather(t, tf.constant(rows)), given)
        return sampler(own | (common or {}), some, tf.constant(keys[rows, which]))

    return draw


def closed_form(
    sampler: NutsSampler, tensors: dict, found: NutsResult, seed: tuple[int, int], common: dict | None = None
) -> Drawing:
    """Of a batch of these tensors that was sampled already: what its states look like. seed: its chains'. common: as of
    `learned`."""

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        own = tf.nest.map_structure(lambda t: tf.gather(t, tf.constant(rows)), tensors)
        take = tf.constant(np.stack([which, rows], 1))
        state = tf.nest.map_structure(lambda t: tf.gather_nd(t, take), found.state)
        seeds = np.stack([np.full_like(which, seed[0]), (seed[1] + which) % 2**31], 1)
        return sampler.render(own | (common or {}), state, tf.constant(seeds, tf.int32))

    return draw


def in_turn(draw: Drawing, rows: int, members: Sequence[int], samples: int) -> Iterator[tuple[list[int], Samples]]:
    """All samples of the batch's blends `members`, `rows` at a time.

    Yields which blend each row is of, and NumPy arrays, whose rows beyond those are to be ignored.
    """
    total = len(members) * samples
    for first in range(0, total, rows):
        number = np.minimum(np.arange(first, first + rows), total - 1)  # the last one fills up
        row, which = np.array(members)[number // samples], number % samples
        yield row[: total - first].tolist(), tf.nest.map_structure(lambda t: t.numpy(), draw(row, which))


def gather(
    draw: Drawing,
    rows: int,
    members: Sequence[int],
    scenes: Sequence[Scene],
    batch: BlendBatch,
    samples: int,
    keep: bool,
) -> Iterator[Drawn]:
    """All samples of the batch's blends `members`, `rows` at a time."""
    found: dict[int, SampleStatistics] = {}
    for row, drawn in in_turn(draw, rows, members, samples):
        for place, at in enumerate(row):
            scene = scenes[at]
            if at not in found:
                corners = batch.first_pixels(at)[: len(scene.sources)]
                found[at] = SampleStatistics(scene, corners, batch.shape.model_sigma, keep)
            found[at].add(_own_units(drawn, place, scene, batch.band_scale[at]))
            if found[at].count == samples:
                yield Drawn(at, found.pop(at))


def evidence(tally: SampleStatistics, scale: np.ndarray, jitter: float) -> dict[str, float]:
    """log p(y) in nats, y in the scene's units, and its standard error; see `evidence`."""
    scene = tally.scene
    galaxies = [source.kind != "point" for source in scene.sources]
    units = float(scene.observation.valid.sum((1, 2)) @ np.log(scale))
    log_evidence, error = combine(np.array(tally.log_evidence), np.array(tally.log_scale)[:, galaxies], jitter)
    return {"logevid": log_evidence - units, "logevide": error}


def _own_units(drawn: Samples, row: int, scene: Scene, scale: np.ndarray) -> Sample:
    """One sample, in the scene's units."""
    count, (_, height, width) = len(scene.sources), scene.observation.shape
    unit, summary = scale[:, None, None], drawn.summary[row, :count]
    return Sample(
        models=[drawn.model[row, :, :height, :width] * unit],
        sources=[drawn.sources[row, :count, :, :height, :width] * unit],
        backgrounds=[drawn.background[row] * scale],
        stamps=drawn.stamps[row, :count] * unit,
        flux=drawn.flux[row, :count] * scale,
        prior_variance=drawn.prior_variance[row, :count] * unit**2,
        beyond_prior=drawn.large[row, :count],
        summary=summary if summary.shape[1] else None,
        log_evidence=drawn.log_evidence[row],
        log_scale=drawn.log_scale[row, :count],
    )
