"""Sparse gradients under several replicas: rows that are gathered from all of them, and handed to the optimizer once.

A Keras optimizer computes with the rows of a sparse gradient one by one: Adam adds up the squares of the rows of a token that occurs twice,
and does not square their sum. So the rows of all replicas have to reach it as they are on one device, neither merged nor cut into shares.
Rows of zeros change nothing, and make up for parts of different size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["of_one_length", "rows_for"]


def of_one_length(gradients: Sequence[Any], replicas: int) -> list[Any]:
    """The gradients of this replica; sparse ones have as many rows as those of the replica that has most.

    Args:
        gradients: tensors or `tf.IndexedSlices`.
        replicas: their number.
    """
    sparse = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
    if not sparse:
        return list(gradients)
    context = tf.distribute.get_replica_context()
    # A table of the rows on each replica: there is no collective for a maximum.
    here = tf.one_hot(tf.cast(context.replica_id_in_sync_group, tf.int32), replicas, dtype=tf.int32)
    # Not before the gradients are there: shapes are known earlier, and the collective of one step would meet that of another.
    with tf.control_dependencies([g.values for g in sparse]):
        counts = tf.stack([tf.identity(tf.shape(g.indices, tf.int32)[0]) for g in sparse])
    longest = iter(tf.unstack(tf.reduce_max(context.all_reduce(tf.distribute.ReduceOp.SUM, counts[:, None] * here[None]), 1)))
    return [_padded(g, next(longest)) if isinstance(g, tf.IndexedSlices) else g for g in gradients]


def rows_for(gradient: tf.IndexedSlices, replicas: int) -> tf.IndexedSlices:
    """The rows that this replica hands to the optimizer, which gathers them: each row of the gradient comes from one replica.

    Args:
        gradient: the same on all replicas.
        replicas: their number.
    """
    here = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    size = (tf.shape(gradient.indices, tf.int32)[0] + replicas - 1) // replicas
    whole = _padded(gradient, size * replicas)
    rows = slice(here * size, (here + 1) * size)
    return tf.IndexedSlices(whole.values[rows], whole.indices[rows], whole.dense_shape)


def _padded(gradient: tf.IndexedSlices, rows: tf.Tensor) -> tf.IndexedSlices:
    """The gradient with rows of zeros behind its own."""
    missing = rows - tf.shape(gradient.indices, tf.int32)[0]
    around = tf.concat([[[0, missing]], tf.zeros([tf.rank(gradient.values) - 1, 2], tf.int32)], 0)
    values = tf.ensure_shape(tf.pad(gradient.values, around), [None, *gradient.values.shape[1:]])
    return tf.IndexedSlices(values, tf.pad(gradient.indices, [[0, missing]]), gradient.dense_shape)
