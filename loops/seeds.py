"""Stateless seeds: the same run seed, step, replica and call site give the same random numbers, after any restart."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["mix", "stateless_seed"]

_MASK = 2**64 - 1


def mix(*numbers: int) -> int:
    """Mixes integers into one signed 64-bit integer; different inputs give different, unrelated-looking outputs.

    References:
        SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Example:
        >>> mix(0, 1) != mix(1, 0)
        True
    """
    state = 0
    for number in numbers:
        state = (state ^ (int(number) & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def stateless_seed(run_seed: int, site: int, replica: int, step: tf.Tensor) -> tf.Tensor:
    """The seed pair for one call site in one step on one replica.

    Args:
        run_seed: seed of the run.
        site: number of the call site within the step.
        replica: replica number.
        step: int64 scalar, completed steps.

    Returns:
        int64 tensor `[2]` for the `seed` argument of `tf.random.stateless_*`.
    """
    return tf.stack([tf.constant(mix(run_seed, site, replica), tf.int64), tf.cast(step, tf.int64)])
