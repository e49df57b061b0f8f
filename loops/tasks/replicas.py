"""What training on several replicas needs: whose strategy it is, who is chief, parts of a batch, variables with a copy on each replica.

It reduces no gradients and no logs: `gradients.py` and the engine's rows do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["average_moving_statistics", "backing", "is_chief", "local_variables", "split", "strategy_of"]


def backing(variable: Any) -> Any:
    """The TensorFlow variable behind a Keras variable; a TensorFlow variable as it is."""
    value = getattr(variable, "value", variable)
    return variable if callable(value) else value


def strategy_of(variables: Iterable[Any], given: tf.distribute.Strategy | None) -> tf.distribute.Strategy:
    """The strategy under which the variables were created. One that was `given` is checked against it.

    Raises:
        TypeError: if it is no strategy.
        ValueError: if they differ.
    """
    if given is not None and not isinstance(given, tf.distribute.Strategy):
        raise TypeError(f"`strategy` must be a tf.distribute.Strategy, such as tf.distribute.MirroredStrategy(); got {given!r}.")
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
    """First dimension of the first tensor in `batch` that has one; 1 if there is none."""
    return next((_size(leaf) for leaf in tf.nest.flatten(batch) if _has_examples(leaf)), 1)


def split(batch: Any, replicas: int) -> list[Any]:
    """The parts of a global batch, one for each replica, in order.

    Each tensor is cut along its own first dimension into consecutive parts. If all have one size, a part is `ceil(size / replicas)`
    examples, as `tf.distribute` cuts the batches of `model.fit`; the last parts may be smaller or empty. If sizes differ (16 labelled and
    48 unlabelled examples), every tensor is cut in the same proportions, so that a replica's share of one is its share of all, and its
    gradient has the right weight: units of `size / d` examples are handed out, where `d` is the greatest common divisor of the sizes.
    Tensors of rank 0, and None, go to every replica.

    Args:
        batch: nested structure of dense, sparse and ragged tensors.
        replicas: number of parts.
    """
    sizes = [_size(leaf) for leaf in tf.nest.flatten(batch) if _has_examples(leaf)]
    units = _common_divisor(sizes)
    bounds = [_bound(units, i, replicas) for i in range(replicas + 1)]

    def part(leaf: Any, first: Any, last: Any) -> Any:
        if not _has_examples(leaf):
            return leaf
        size = _size(leaf)
        if isinstance(size, int) and isinstance(units, int):
            each: Any = size // max(units, 1)
        else:
            each = tf.cast(size, tf.int64) // tf.maximum(tf.cast(units, tf.int64), 1)
            first, last = tf.cast(first, tf.int64), tf.cast(last, tf.int64)
        return _cut(leaf, first * each, last * each)

    return [tf.nest.map_structure(lambda leaf, i=i: part(leaf, bounds[i], bounds[i + 1]), batch) for i in range(replicas)]


def _has_examples(leaf: Any) -> bool:
    """Whether a part of a batch has a first dimension. A tensor of unknown rank is taken to have one."""
    return hasattr(leaf, "shape") and leaf.shape.rank != 0


def _size(leaf: Any) -> tf.Tensor | int:
    if leaf.shape.rank is not None and leaf.shape[0] is not None:
        return int(leaf.shape[0])
    if isinstance(leaf, tf.SparseTensor):
        return leaf.dense_shape[0]
    return leaf.nrows() if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf)[0]


def _common_divisor(sizes: list[Any]) -> tf.Tensor | int:
    """The greatest common divisor; an int if all sizes are."""
    if all(isinstance(size, int) for size in sizes):
        return math.gcd(*sizes)
    counts = [tf.cast(size, tf.int64) for size in sizes]

    def of_two(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda a, b: b > 0, lambda a, b: (b, a % b), (a, b))[0]

    def of_all() -> tf.Tensor:
        return functools.reduce(of_two, counts)

    if len(counts) == 1:
        return counts[0]
    return tf.cond(tf.reduce_all(tf.equal(tf.stack(counts), counts[0])), lambda: counts[0], of_all)


def _bound(units: Any, index: int, replicas: int) -> Any:
    """The first unit of part `index`, where each part has `ceil(units / replicas)` of them while there are any."""
    least = min if isinstance(units, int) else tf.minimum
    return least(index * (-(-units // replicas)), units)


def _cut(leaf: Any, begin: Any, end: Any) -> Any:
    if not isinstance(leaf, tf.SparseTensor):
        return leaf[begin:end]
    start = tf.concat([[tf.cast(begin, tf.int64)], tf.zeros_like(leaf.dense_shape[1:])], 0)
    extent = tf.concat([[tf.cast(end - begin, tf.int64)], leaf.dense_shape[1:]], 0)
    return tf.sparse.slice(leaf, start, extent)


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
