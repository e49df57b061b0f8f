"""What training on several replicas needs: whose strategy it is, and variables with a copy on each replica.

It reduces no gradients and no logs: `gradients.py` and the engine's rows do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.cluster import Cluster

__all__ = ["average_moving_statistics", "backing", "is_kept_alike", "local_variables", "strategy_of"]


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


def local_variables(variables: Iterable[Any]) -> list[tf.Variable]:
    """The plain `tf.Variable`s behind `variables`; for a variable with a copy on each replica, all copies."""
    out = []
    for variable in variables:
        value = _private_api.tensorflow_variable(variable) if not isinstance(variable, tf.Variable) else variable
        value = variable.value if value is None else value
        out += list(value.values) if isinstance(value, tf.distribute.DistributedValues) else [value]
    return out


def is_kept_alike(variable: Any) -> bool:
    """Whether all replicas are to hold the same value of a variable: it is trained, by gradients that are reduced."""
    value = backing(variable)
    if not variable.trainable or not isinstance(value, tf.distribute.DistributedValues):
        return False
    return getattr(value, "synchronization", None) != tf.VariableSynchronization.ON_READ


def average_moving_statistics(variables: Iterable[Any], cluster: Cluster) -> None:
    """Sets non-trainable floating variables that each replica updates by itself (batch-norm statistics) to their mean over replicas."""
    own = [value for variable in variables if _is_per_replica(value := backing(variable)) and not getattr(variable, "trainable", False)]
    means = [tf.add_n([tf.cast(p.read_value(), tf.float64) for p in value.values]) / len(value.values) for value in own]
    for value, mean in zip(own, cluster.mean(means) if cluster.several else means, strict=True):
        for part in value.values:
            part.assign(tf.cast(mean, part.dtype))


def _is_per_replica(value: Any) -> bool:
    return (
        isinstance(value, tf.distribute.DistributedValues)
        and bool(value.dtype.is_floating)
        and value.aggregation == tf.VariableAggregation.NONE
    )
