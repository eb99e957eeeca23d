"""Random numbers that depend on the blend, its sample, the step, the source and the pixel, and on nothing else.

A blend's samples are then the same alone, in a batch, and padded to a larger bucket. Every stamp has a stream of its
own, and images are drawn in tiles counted from their first pixel, of which those of a smaller image are the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion.linear_gaussian import Normals
from tfdeblend.linalg.operator import flatten

TILE = 32
ANOTHER = 0x2545F4914F6CDD1D  # added to a key for each further exposure's images
STREAMS, PIECES = 4, 4096  # of one step, of one stream: sources and tiles
STAMPS, IMAGES, POSITIONS, LATENTS = range(STREAMS)


def keys(seed: int, names: Sequence[str], samples: int) -> np.ndarray:
    """Makes a key for each sample of each blend, by the blend's name: [B * samples] int64."""
    rows = [
        np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(samples, np.uint64) for name in names
    ]
    return (np.concatenate(rows) >> 1).astype(np.int64)


class StepNormals(NamedTuple):
    """Standard normals of one step: of a draw of the unknowns; of the noise that is put back [B, K, C, P, P]; of the
    flux scales [B, K]."""

    draw: Normals
    back: tf.Tensor
    scale: tf.Tensor


class RandomNumbers(Protocol):
    """Standard normals of each step, as a sampler asks for them."""

    def normals(self, step: tf.Tensor) -> StepNormals: ...

    def positions(self, step: tf.Tensor) -> tf.Tensor: ...


class KeyedNormals:
    """Standard normals that follow from a key for each sample.

    Args:
      keys: [B] int64. stamps: (B, K, C, P, P). images: bands and side of each exposure's. rank: R, of the covariances'
        factors.
    """

    def __init__(
        self,
        keys: tf.Tensor,
        stamps: Sequence[int],
        images: Sequence[tuple[int, int]],
        rank: int,
        dtype: tf.DType = tf.float32,
    ):
        self.keys, self.stamps, self.images, self.rank, self.dtype = keys, tuple(stamps), images, rank, dtype

    def normals(self, step: tf.Tensor) -> StepNormals:
        batch, sources, bands, side, _ = self.stamps
        pixels = bands * side**2
        sizes = [pixels, pixels, self.rank, bands, 1]
        flat = self._streams(self.keys, step, STAMPS, sources, sum(sizes))
        one, two, factor, amplitude, scale = tf.split(flat, sizes, 2)
        seen = [self._image(step, number, *image) for number, image in enumerate(self.images)]
        shape = [batch, sources, bands, side, side]
        drawn = Normals(tf.reshape(one, shape), factor, amplitude, flatten(seen))
        return StepNormals(drawn, tf.reshape(two, shape), scale[..., 0])

    def positions(self, step: tf.Tensor) -> tf.Tensor:
        """Gives the normals of the sources' positions at a step [B, K, 2]."""
        return self._streams(self.keys, step, POSITIONS, self.stamps[1], 2)

    def latents(self, number: int) -> tf.Tensor:
        """Gives `number` normals of each source, of a draw of closed-form galaxies [B, K, number]."""
        return self._streams(self.keys, tf.constant(0), LATENTS, self.stamps[1], number)

    def _image(self, step: tf.Tensor, number: int, bands: int, side: int) -> tf.Tensor:
        """Gives the normals of one exposure's image [B, C_e, S_e, S_e]."""
        batch, tiles = self.stamps[0], -(-side // TILE)
        flat = self._streams(self.keys + number * ANOTHER % 2**63, step, IMAGES, tiles**2, bands * TILE**2)
        images = tf.transpose(tf.reshape(flat, [batch, tiles, tiles, bands, TILE, TILE]), [0, 3, 1, 4, 2, 5])
        return tf.reshape(images, [batch, bands, tiles * TILE, tiles * TILE])[..., :side, :side]

    def _streams(self, keys: tf.Tensor, step: tf.Tensor, stream: int, pieces: int, number: int) -> tf.Tensor:
        """Gives `number` normals of each of so many pieces [B, pieces, number]."""
        piece = shells(round(pieces**0.5)) if stream == IMAGES else np.arange(pieces)
        label = (tf.cast(step, tf.int64) * STREAMS + stream) * PIECES + tf.constant(piece, tf.int64)
        seeds = tf.stack([tf.repeat(keys, pieces), tf.tile(label, [self.stamps[0]])], 1)
        flat = tf.map_fn(
            lambda seed: tf.random.stateless_normal([number], seed, dtype=self.dtype, alg="philox"),
            seeds,
            fn_output_signature=tf.TensorSpec([number], self.dtype),
            parallel_iterations=8,
        )
        return tf.reshape(flat, [self.stamps[0], pieces, number])


def shells(side: int) -> np.ndarray:
    """Numbers the tiles of a square of `side`, row by row (side^2,), shell by shell, as larger squares do too."""
    y, x = np.divmod(np.arange(side**2), side)
    shell = np.maximum(y, x)
    return shell**2 + np.where(y == shell, x, shell + 1 + y)
