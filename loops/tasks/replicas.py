"""What training on several replicas needs: whose strategy it is, who is chief, parts of a batch, variables with a copy on each replica.

It reduces no gradients and no logs: `gradients.py` and the engine's rows do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["average_moving_statistics", "backing", "is_chief", "local_variables", "shard", "strategy_of"]


def backing(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras variable; a TensorFlow variable as it is."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


def strategy_of(variables: Iterable[Any], given: tf.distribute.Strategy | None) -> tf.distribute.Strategy:
    """The strategy under which the variables were created. One that was `given` is checked against it.

    Raises:
        ValueError: if they differ.
    """
    made: tf.distribute.Strategy | None = None
    for variable in variables:
        made = getattr(backing(variable), "distribute_strategy", None) or made
    default = tf.distribute.get_strategy()
    if given is None:
        return made or default
    if given.num_replicas_in_sync > 1 and made is not given and any(True for _ in variables):
        raise ValueError(
            "The task's variables were not created under the given strategy: create model, optimizer and metrics inside "
            "`with strategy.scope():`."
        )
    return given


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this is the one process of a cluster that writes files; True without a cluster."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().as_dict()
    return bool(resolver.task_type == "chief" or (not has_chief and resolver.task_type == "worker" and resolver.task_id == 0))


def batch_size_of(batch: Any) -> tf.Tensor | int:
    """First dimension of the first tensor in `batch`; 1 if there is none."""
    for leaf in tf.nest.flatten(batch):
        if isinstance(leaf, tf.SparseTensor):
            return leaf.dense_shape[0]
        if isinstance(leaf, tf.RaggedTensor):
            return leaf.nrows()
        if hasattr(leaf, "shape") and leaf.shape.rank:
            return leaf.shape[0] if leaf.shape[0] is not None else tf.shape(leaf)[0]
    return 1


def shard(batch: Any, replica: int, replicas: int) -> Any:
    """The part of a global batch for one replica: `ceil(size / replicas)` consecutive examples; the last replicas may get fewer or none."""
    size = batch_size_of(batch)
    per_replica = -(-size // replicas)
    begin = min(replica * per_replica, size) if isinstance(size, int) else tf.minimum(replica * per_replica, size)
    end = min(begin + per_replica, size) if isinstance(size, int) else tf.minimum(begin + per_replica, size)

    def cut(leaf: Any) -> Any:
        if leaf is None:
            return None
        if isinstance(leaf, tf.SparseTensor):
            start = tf.concat([[tf.cast(begin, tf.int64)], tf.zeros_like(leaf.dense_shape[1:])], 0)
            extent = tf.concat([[tf.cast(end - begin, tf.int64)], leaf.dense_shape[1:]], 0)
            return tf.sparse.slice(leaf, start, extent)
        return leaf[begin:end] if leaf.shape.rank else leaf

    return tf.nest.map_structure(cut, batch)


def local_variables(variables: Iterable[Any]) -> list[tf.Variable]:
    """The plain `tf.Variable`s behind `variables`; for a variable with a copy on each replica, all copies."""
    out = []
    for variable in variables:
        value = _private_api.tensorflow_variable(variable) if not isinstance(variable, tf.Variable) else variable
        value = variable.value if value is None else value
        out += list(value.values) if isinstance(value, tf.distribute.DistributedValues) else [value]
    return out


def average_moving_statistics(variables: Iterable[Any]) -> None:
    """Sets non-trainable floating variables that each replica updates by itself (batch-norm statistics) to their mean over replicas."""
    for variable in variables:
        value = backing(variable)
        if not isinstance(value, tf.distribute.DistributedValues) or getattr(variable, "trainable", False) or not value.dtype.is_floating:
            continue
        if value.aggregation != tf.VariableAggregation.NONE:
            continue
        parts = list(value.values)
        mean = tf.add_n([tf.cast(p.read_value(), tf.float64) for p in parts]) / len(parts)
        for part in parts:
            part.assign(tf.cast(mean, part.dtype))
