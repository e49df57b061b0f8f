"""A barrier for the fusion of XLA on a CPU: an expensive value is computed once, and not again in each loop that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["computed_once"]


def computed_once(compute: Callable[[], tf.Tensor], *, unknown: tf.Tensor, dtype: Any, shape: Any) -> tf.Tensor:
    """The tensor that `compute()` makes, as an array of its own in memory.

    XLA fuses elementwise ops, however many, into every loop that reads their result, forward and backward. It does not fuse across a
    conditional, so the value is computed in one. Its condition always holds, which XLA cannot see. XLA turns a conditional with only
    elementwise ops in its branches into a select, which would be no barrier; the sort in the branch that is never taken prevents that.

    Args:
        compute: makes a tensor.
        unknown: a tensor with at least one element, whose values XLA does not know when it compiles.
        dtype: of the result.
        shape: of the result, a list or a tensor.
    """
    first = tf.reshape(unknown, [-1])[0]
    first = tf.cast(first, tf.float32) if first.dtype.size < 4 else first
    word = tf.bitcast(first, tf.uint64 if first.dtype.size == 8 else tf.uint32)
    bit = tf.bitwise.bitwise_and(word, tf.ones([], word.dtype))

    def never() -> tf.Tensor:
        return tf.fill(shape, tf.cast(tf.sort(tf.stack([bit, bit + 1]))[0], dtype))

    return tf.cond(bit < 2, compute, never)
