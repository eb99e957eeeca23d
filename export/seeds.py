"""The keys of a blend's samples from its seed, as `random.keys` makes them, but in TensorFlow.

That is NumPy's `SeedSequence([seed, name])`: a hash of 32-bit words (O'Neill's seed_seq), here in the low halves of
64-bit integers, whose products wrap around without harm.
"""

from __future__ import annotations

import tensorflow as tf

WORD = 0xFFFFFFFF
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = 0xCA01F9DD, 0x4973F715
POOL = 4


def keys(seeds: tf.Tensor, samples: int) -> tf.Tensor:
    """[B, 2] int32, the user's seed and the 32 bits of the name's CRC-32 -> [B, samples] int64."""
    words = _word(tf.cast(seeds, tf.int64))
    state = _generate(_pool(words), 2 * samples)
    low, high = state[:, 0::2], state[:, 1::2]
    # The 64 bits (high, low) less their last one: what is left fits a signed integer.
    return tf.bitwise.bitwise_or(_shift(low, 1), tf.bitwise.left_shift(high, tf.constant(31, tf.int64)))


def _pool(words: tf.Tensor) -> list[tf.Tensor]:
    """The entropy of two words, mixed into four."""
    constant = INIT_A

    def scramble(value: tf.Tensor) -> tf.Tensor:
        nonlocal constant
        value = tf.bitwise.bitwise_xor(value, tf.constant(constant, tf.int64))
        constant = constant * MULT_A & WORD
        return _fold(_word(value * constant))

    none = tf.zeros_like(words[:, 0])
    pool = [scramble(word) for word in (words[:, 0], words[:, 1], none, none)]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = MIX_LEFT * pool[target] - MIX_RIGHT * scramble(pool[source])
                pool[target] = _fold(_word(mixed))
    return pool


def _generate(pool: list[tf.Tensor], number: int) -> tf.Tensor:
    """[B, number] words."""
    constant, words = INIT_B, []
    for index in range(number):
        value = tf.bitwise.bitwise_xor(pool[index % POOL], tf.constant(constant, tf.int64))
        constant = constant * MULT_B & WORD
        words.append(_fold(_word(value * constant)))
    return tf.stack(words, 1)


def _word(value: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(value, tf.constant(WORD, tf.int64))


def _shift(value: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(value, tf.constant(bits, tf.int64))


def _fold(value: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(value, _shift(value, 16))
