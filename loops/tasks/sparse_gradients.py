"""Sparse gradients under several replicas: the rows of all of them, one behind the other.

A Keras optimizer computes with the rows of a sparse gradient one by one: Adam adds up the squares of the rows of a token that occurs twice,
and does not square their sum. So the rows of all replicas have to reach it as they are on one device, neither merged nor cut into shares.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["gathered"]


def gathered(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """The sum over replicas of a sparse gradient, of which each may have another number of rows; call it on every replica.

    Args:
        gradient: this replica's.

    Returns:
        The same on all replicas: the rows of the first, then those of the next, and so on.
    """
    strategy = tf.distribute.get_strategy()
    if len(strategy.extended.worker_devices) < strategy.num_replicas_in_sync:  # others are in other processes
        (summed,) = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [gradient])
        return summed
    # Not by collectives: within one call theirs have one shape, and the number of rows changes from step to step.
    values, indices = tf.distribute.get_replica_context().merge_call(_joined, args=(gradient.values, gradient.indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)


def _joined(strategy: tf.distribute.Strategy, *parts: Any) -> list[tf.Tensor]:
    return [tf.concat(strategy.experimental_local_results(part), 0) for part in parts]
