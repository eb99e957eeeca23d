"""The samples of a batch of scenes, a few rows at a time: with a learned prior by the reverse diffusion, with a
closed-form one by NUTS. Either way a scene is done when its last sample is, and holds no memory then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfdeblend.catalog.statistics import Tally
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import random
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.forward.batch import PER_SOURCE, BlendBatch
from tfdeblend.forward.operators import MOST_ONE_BY_ONE
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference.diffusion_sampler import Samples
from tfdeblend.inference.nuts import NutsResult, NutsSampler

# Of the Fourier grids of all bands of the stamps that a graph holds. With V's directions its arrays are then of some
# 20 MB; what is larger than 32 MB the C library maps anew, page by page, at every use, which takes longer than most of
# what is done with it.
PIXELS_AT_ONCE = 750_000

# The samples (by number) of some blends of a batch (by row).
Drawing = Callable[[np.ndarray, np.ndarray], Any]


class Sampler(Protocol):
    """Draws samples of rows, from their initial fit and a key for each."""

    shape: BatchShape

    def __call__(self, tensors: dict[str, tf.Tensor], fit: InitialFit, keys: tf.Tensor) -> Any: ...


class Drawn(NamedTuple):
    """All samples of a scene. row: of the batch. beyond: (K,) galaxies that the prior does not know."""

    row: int
    tally: Tally
    beyond: np.ndarray


def rows_at_once(shape: BatchShape, total: int) -> int:
    """Rows of a graph for `total` samples: a power of two, as numbers of samples are apt to be; of no more stamps than
    are placed one by one, which is faster."""
    stamps = min(PIXELS_AT_ONCE / (shape.bands * shape.fourier**2), MOST_ONE_BY_ONE)
    most = 2 ** np.floor(np.log2(max(stamps / shape.sources, 1)))
    return int(min(most, 2 ** np.ceil(np.log2(total))))


def learned(
    sampler: Sampler,
    tensors: dict,
    fit: InitialFit,
    scenes: Sequence[Scene],
    samples: int,
    number: int,
    common: dict | None = None,
) -> Drawing:
    """Draws from a batch of these tensors about a fit. number: the user's seed. common: tensors that all rows share."""
    sources = sampler.shape.sources
    per_source = {name: tensors[name][:, :sources] for name in PER_SOURCE}
    given = tensors | per_source, fit.first(sources)
    keys = random.keys(number, [scene.name for scene in scenes], samples).reshape(-1, samples)

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        own, some = tf.nest.map_structure(lambda t: tf.gather(t, tf.constant(rows)), given)
        return sampler(own | (common or {}), some, tf.constant(keys[rows, which]))

    return draw


def closed_form(
    sampler: NutsSampler, tensors: dict, found: NutsResult, seed: tuple[int, int], common: dict | None = None
) -> Drawing:
    """Shows states of a batch of these tensors that was sampled already. seed: its chains'. common: as of `learned`."""

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        own = tf.nest.map_structure(lambda t: tf.gather(t, tf.constant(rows)), tensors)
        take = tf.constant(np.stack([which, rows], 1))
        state = tf.nest.map_structure(lambda t: tf.gather_nd(t, take), found.state)
        seeds = np.stack([np.full_like(which, seed[0]), (seed[1] + which) % 2**31], 1)
        return sampler.render(own | (common or {}), state, tf.constant(seeds, tf.int32))

    return draw


def in_turn(draw: Drawing, rows: int, members: Sequence[int], samples: int) -> Iterator[tuple[list[int], Any]]:
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
    tallies: dict[int, Tally] = {}
    large: dict[int, np.ndarray] = {}  # in any sample: their positions differ
    for row, drawn in in_turn(draw, rows, members, samples):
        for place, at in enumerate(row):
            scene = scenes[at]
            if at not in tallies:
                corners = batch.first_pixels(at)[: len(scene.sources)]
                tallies[at] = Tally(scene, corners, batch.shape.model_sigma, keep)
            tallies[at].add(*_own_units(drawn, place, scene, batch.band_scale[at]))
            large[at] = large.get(at, False) | drawn.large[place, : len(scene.sources)]
            if tallies[at].count == samples:
                yield Drawn(at, tallies.pop(at), large.pop(at))


def _own_units(drawn: Samples, row: int, scene: Scene, scale: np.ndarray) -> tuple[np.ndarray, ...]:
    """One sample, as `Tally.add` takes it."""
    count, (_, height, width) = len(scene.sources), scene.observation.shape
    unit = scale[:, None, None]
    return (
        drawn.stamps[row, :count] * unit,
        drawn.sources[0][row, :count, :, :height, :width] * unit,
        drawn.flux[row, :count] * scale,
        drawn.constants[0][row] * scale,
        drawn.models[0][row, :, :height, :width] * unit,
        drawn.prior_variance[row, :count] * unit**2,
        drawn.summary[row, :count],
    )
