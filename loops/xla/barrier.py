"""A border that XLA for CPUs does not fuse across, so that what is dear to compute is computed once and not anew by each of its readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["computed_once"]


def computed_once(compute: Callable[[], tf.Tensor], *, witness: tf.Tensor, dtype: Any, shape: Any) -> tf.Tensor:
    """`compute()`, as an array of its own in memory.

    XLA fuses elementwise ops into every loop that reads them, forward and backward, however long they are. It fuses nothing across the
    borders of a conditional, and does not see that the condition of this one always holds. But of a conditional that has only elementwise
    ops in its branches it makes a selection, which is no border; hence the sort in the branch that is never taken.

    Args:
        compute: makes a tensor.
        witness: a tensor of numbers that are not known before the program runs, at least one.
        dtype: of the result.
        shape: of the result, a list or a tensor.
    """
    first = tf.reshape(witness, [-1])[0]
    first = tf.cast(first, tf.float32) if first.dtype.size < 4 else first
    word = tf.bitcast(first, tf.uint64 if first.dtype.size == 8 else tf.uint32)
    bit = tf.bitwise.bitwise_and(word, tf.ones([], word.dtype))

    def never() -> tf.Tensor:
        return tf.fill(shape, tf.cast(tf.sort(tf.stack([bit, bit + 1]))[0], dtype))

    return tf.cond(bit < 2, compute, never)
