"""What layers need to know of replicas: which one this is, sums over all of them, random numbers that differ between them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = ["replica_index", "replica_seed", "sum_over_replicas"]


def replica_index() -> int:
    """Which replica runs or traces this, from 0; 0 outside of replicas."""
    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return 0
    index = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group)
    return 0 if index is None else int(index)


def replica_count() -> int:
    """How many replicas run this together; 1 outside of replicas."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def sum_over_replicas(*tensors: Any) -> Any:
    """All-reduces statistics, for moving state that has to stay equal on all replicas.

    Every replica has to come here, so not inside of `tf.cond`.

    Args:
        *tensors: tensors of equal shapes on all replicas.

    Returns:
        Their sums; a single tensor for a single argument.
    """
    sums = list(tensors)
    if replica_count() > 1:
        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
    return sums[0] if len(tensors) == 1 else sums


def replica_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """The next seed pair for `tf.random.stateless_*`, another one on every replica.

    Args:
        generator: seed generator of the layer, saved with it. Its own numbers repeat on every replica.

    Returns:
        int32 `[2]`.
    """
    seed = tf.cast(generator.next(), tf.int32)
    index = replica_index()
    return seed if index == 0 else tf.random.experimental.stateless_fold_in(seed, index)
