"""The samples of a batch of scenes, a few rows at a time.

With a learned prior they are drawn by the reverse diffusion, with a closed-form one by NUTS. Either way a scene is done
when its last sample is, and holds no memory then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion import random
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.operators import MOST_ONE_BY_ONE
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference.diffusion_sampler import Samples
from tfdeblend.inference.nuts import NutsResult, NutsSampler

# Of the Fourier grids of all bands of the stamps that a graph holds. With V's directions its arrays are then of some
# 20 MB; what is larger than 32 MB the C library maps again, page by page, at every use, which takes longer than most of
# what is done with it.
PIXELS_AT_ONCE = 750_000

# The samples (by number) of some blends of a batch (by row).
Draw = Callable[[np.ndarray, np.ndarray], Any]
# The initial fits of rows, by their tensors, their blends' numbers and their keys.
Starts = Callable[[Tensors, np.ndarray, tf.Tensor], InitialFit]


def rows_at_once(shape: BatchShape, blends: int, samples: int) -> int:
    """Rows of a graph for so many samples of each of some blends, see `in_turn`.

    They are a power of two, as numbers of samples are apt to be, of no more stamps than are placed one by one, which is
    faster.
    """
    total = samples * (blends if len(shape.exposures) == 1 else 1)
    stamps = min(PIXELS_AT_ONCE / (shape.bands * shape.fourier**2), MOST_ONE_BY_ONE)
    most = 2 ** np.floor(np.log2(max(stamps / shape.sources, 1)))
    return int(min(most, 2 ** np.ceil(np.log2(total))))


def by_diffusion(
    sampler: Any,
    tensors: Tensors,
    initial: InitialFit | Starts,
    names: Sequence[str],
    samples: int,
    seed: int,
) -> Draw:
    """Draws of the reverse diffusion that starts from an initial fit.

    Args:
      sampler: a compiled `PosteriorSampler`, or what has its shape and is called like it. initial: the fits [B, ...],
        or what draws one for each row. names: of the blends, by which their random numbers differ. seed: the user's.
    """
    sources = sampler.shape.sources
    tensors, keys = tensors.first_sources(sources), random.keys(seed, names, samples).reshape(-1, samples)
    if isinstance(initial, InitialFit):
        initial = partial(_same_start, initial.first(sources))

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        own, row_keys = tensors.take(rows), tf.constant(keys[rows, which])
        return sampler(own, initial(own, rows, row_keys), row_keys)

    return draw


def _same_start(initial: InitialFit, tensors: Tensors, rows: np.ndarray, keys: tf.Tensor) -> InitialFit:
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), initial)


def by_chains(
    sampler: NutsSampler, tensors: Tensors, found: NutsResult, members: Sequence[int], seeds: np.ndarray
) -> Draw:
    """What the states of chains that were run already look like.

    members: the rows of the batch that were sampled. seeds: [B, S, 2] int32 of their samples, for constants.
    """
    places = {row: place for place, row in enumerate(members)}

    def draw(rows: np.ndarray, which: np.ndarray) -> Samples:
        at = np.array([places[row] for row in rows])
        state = tf.nest.map_structure(lambda tensor: tf.gather_nd(tensor, np.stack([at, which], 1)), found.state)
        return sampler.render(tensors.take(rows), state, tf.constant(seeds[at, which]))

    return draw


def in_turn(draw: Draw, shape: BatchShape, members: Sequence[int], samples: int) -> Iterator[tuple[list[int], Any]]:
    """All samples of the batch's blends `members`, as many rows at a time as `shape` has blends.

    Samples of several exposures are drawn blend by blend, since they share what shows the exposures.

    Yields which blend each row is of, and NumPy arrays, whose rows beyond those are to be ignored.
    """
    groups = [list(members)] if len(shape.exposures) == 1 else [[member] for member in members]
    for group in groups:
        total = len(group) * samples
        for first in range(0, total, shape.blends):
            number = np.minimum(np.arange(first, first + shape.blends), total - 1)  # the last one fills up
            row, which = np.array(group)[number // samples], number % samples
            yield row[: total - first].tolist(), tf.nest.map_structure(lambda t: t.numpy(), draw(row, which))
