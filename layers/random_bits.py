"""Random bits for masks and gates: a hash of (seed, element), a few integer operations that fuse with what uses them.

TensorFlow's own generator, Philox, costs a layer such as dropout ten times more than its arithmetic when XLA compiles it for the CPU.
Here the same bits come out in eager mode, in graphs and under XLA. Not for cryptography, and not for long Monte Carlo studies.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ["random_bits", "random_normal", "random_uniform"]

# Odd multipliers and shifts of integer hashes whose bias was measured by exhaustive search (C. Wellons, "hash-prospector", public domain).
_MULTIPLIERS = 0x21F0AAAD, 0xD35A2D97
_SHIFTS = 16, 15
_SPREAD = 0x9E3779B9  # 2^32 / golden ratio
# Both keys depend on seed and counter, no two pairs of these give the same keys (the matrix is invertible modulo 2^32), and (0, 0), which
# the hash would leave as it is, is away from 0.
_OWN, _OTHER, _OFFSETS = (0x9E3779B1, 0x85EBCA6B), (0xC2B2AE3C, 0x27D4EB2E), (0x9E3779B9, 0x7F4A7C15)


def random_bits(shape: Any, seed: Any) -> tf.Tensor:
    """Independent uniform integers; the upper bits are the most random ones.

    Args:
        shape: shape, a list or an int32 vector.
        seed: int32 `[2]`, such as `layers.replicas.replica_seed` gives: another one for each call and replica.

    Returns:
        uint32 of that shape.

    Example:
        >>> random_bits([2, 3], tf.constant([1, 0])).shape
        TensorShape([2, 3])
    """
    pair = tf.bitcast(tf.cast(seed, tf.int32), tf.uint32)
    own, other, offsets = (tf.constant(c, tf.uint32) for c in (_OWN, _OTHER, _OFFSETS))
    keys = _mix((pair * own + tf.gather(pair, [1, 0]) * other) ^ offsets)
    # Spread over all bits: two rounds alone leave elements correlated that are a power of two apart, such as rows of 4096.
    index = tf.bitcast(tf.range(tf.reduce_prod(tf.cast(shape, tf.int32))), tf.uint32) * tf.constant(_SPREAD, tf.uint32)
    # The second key between the rounds: with one only, two masks would be shifted copies of one sequence.
    return tf.reshape(_round(_round(index + keys[0], 0) + keys[1], 1), shape)


def random_uniform(shape: Any, seed: Any, dtype: Any = tf.float32) -> tf.Tensor:
    """Independent uniform numbers in the open interval (0, 1), odd multiples of 2^-24: logarithms of u and 1 - u are finite.

    Args:
        shape: as in `random_bits`.
        seed: as in `random_bits`.
        dtype: float32 or float64.
    """
    # 23 bits: with 24, the largest number would round to 1 in float32.
    high = tf.bitcast(tf.bitwise.right_shift(random_bits(shape, seed), tf.constant(9, tf.uint32)), tf.int32)
    return (tf.cast(high, dtype) + 0.5) * 2.0**-23


def random_normal(shape: Any, seed: Any, dtype: Any = tf.float32) -> tf.Tensor:
    """Independent numbers from the standard normal distribution, of absolute values up to 5.8.

        r = sqrt(-2 log u),  t = 2 pi v;  r cos t and r sin t are independent

    XLA on a CPU takes many times longer for those of TensorFlow.

    Args:
        shape: as in `random_bits`.
        seed: as in `random_bits`.
        dtype: float32 or float64.

    References:
        Box & Muller 1958, A note on the generation of random normal deviates.

    Example:
        >>> noise = random_normal([20_000], tf.constant([1, 0]))
        >>> bool(tf.abs(tf.reduce_mean(noise)) < 0.02), bool(tf.abs(tf.math.reduce_std(noise) - 1) < 0.02)
        (True, True)
    """
    size = tf.reduce_prod(tf.cast(shape, tf.int32))
    half = (size + 1) // 2
    radius, angle = tf.unstack(random_uniform([2, half], seed, dtype))
    radius, angle = tf.sqrt(-2.0 * tf.math.log(radius)), (2 * math.pi) * angle
    return tf.reshape(tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 0)[:size], shape)


def _mix(x: tf.Tensor) -> tf.Tensor:
    x = _round(_round(x, 0), 1)
    return x ^ tf.bitwise.right_shift(x, tf.constant(15, tf.uint32))


def _round(x: tf.Tensor, i: int) -> tf.Tensor:
    return (x ^ tf.bitwise.right_shift(x, tf.constant(_SHIFTS[i], tf.uint32))) * tf.constant(_MULTIPLIERS[i], tf.uint32)
