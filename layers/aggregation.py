"""The Keras metrics behind `add_metric`: how values of many calls, batches and replicas become one number. In float32, whatever came in.

A weight of 0 takes an element out, even if it is NaN. Before the first value every result is 0, as that of `keras.metrics.Mean`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from layers._private_api import replica_variables

__all__ = ["AGGREGATIONS", "Aggregate", "aggregate"]


class Aggregate(keras.metrics.Metric):
    """Base of the aggregations: weights, precision, variables that autocasting does not touch.

    Args:
        name: name in the logs.
    """

    def __init__(self, name: str):
        super().__init__(name=name, dtype="float32")

    def add(self, value: Any, sample_weight: Any = None) -> None:
        """Adds a value. Only `add_metric` does."""
        raise NotImplementedError

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Changes nothing. Steps after Keras's guides update all of `self.metrics` with `(y, y_pred)`, which is not what a layer counts."""

    def state(self, name: str, initial: float, aggregation: str) -> keras.Variable:
        """A float32 scalar, one on each replica. Autocasting would count in half precision inside of a layer with a mixed policy."""
        with keras.name_scope(self.name.replace("/", ">"), caller=self):
            return keras.Variable(
                lambda shape, dtype: tf.constant(initial, dtype, shape),
                shape=(),
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation=aggregation,
                synchronization="on_read",
                name=name,
            )

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class Mean(Aggregate):
    """sum w*v / sum w over all elements of all calls."""

    def __init__(self, name: str):
        super().__init__(name)
        self.total = self.state("total", 0.0, "sum")
        self.count = self.state("count", 0.0, "sum")

    def add(self, value: Any, sample_weight: Any = None) -> None:
        total, count = _sums(value, sample_weight)
        self.total.assign(self.total + total)
        self.count.assign(self.count + count)

    def result(self) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.convert_to_tensor(self.total), tf.convert_to_tensor(self.count))


class Last(Mean):
    """sum w*v / sum w over the elements of the latest call; under replicas, of the latest call on each."""

    def add(self, value: Any, sample_weight: Any = None) -> None:
        total, count = _sums(value, sample_weight)
        self.total.assign(total)
        self.count.assign(count)


class Sum(Aggregate):
    """sum w*v over all elements of all calls."""

    def __init__(self, name: str):
        super().__init__(name)
        self.total = self.state("total", 0.0, "sum")

    def add(self, value: Any, sample_weight: Any = None) -> None:
        self.total.assign(self.total + _sums(value, sample_weight)[0])

    def result(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.total)


class Max(Aggregate):
    """Greatest element with a weight above 0 of all calls."""

    sign = 1.0

    def __init__(self, name: str):
        super().__init__(name)
        # Strategies know no aggregation by maximum: the replicas' values are kept apart and joined in `result`.
        self.extreme = self.state("extreme", -float("inf"), "only_first_replica")

    def add(self, value: Any, sample_weight: Any = None) -> None:
        counted = self.sign * tf.cast(value, tf.float32)
        if sample_weight is not None:
            counted = tf.where(_weights(counted, sample_weight) > 0, counted, -float("inf"))
        self.extreme.assign(tf.maximum(tf.convert_to_tensor(self.extreme), tf.reduce_max(counted)))

    def reset_state(self) -> None:
        self.extreme.assign(-float("inf"))

    def result(self) -> tf.Tensor:
        extreme = tf.reduce_max(_replica_values(self.extreme))
        return tf.where(extreme == -float("inf"), 0.0, self.sign * extreme)


class Min(Max):
    """Least element with a weight above 0 of all calls."""

    sign = -1.0


#: The names that `add_metric` takes. None is Keras 2's "already aggregated".
AGGREGATIONS: dict[str | None, type[Aggregate]] = {"mean": Mean, "sum": Sum, "max": Max, "min": Min, "last": Last, None: Last}


def aggregate(aggregation: str | None, name: str) -> Aggregate:
    """A new metric.

    Args:
        aggregation: one of `AGGREGATIONS`.
        name: name in the logs.

    Raises:
        ValueError: if there is no such aggregation.
    """
    if aggregation not in AGGREGATIONS:
        known = ", ".join(repr(key) for key in AGGREGATIONS)
        raise ValueError(f"Metric {name!r}: aggregation={aggregation!r} is not known; use one of {known}.")
    return AGGREGATIONS[aggregation](name=name)


def _sums(value: Any, sample_weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the weighted values and sum of the weights."""
    value = tf.cast(value, tf.float32)
    if sample_weight is None:
        return tf.reduce_sum(value), tf.cast(tf.size(value), tf.float32)
    weight = _weights(value, sample_weight)
    return tf.reduce_sum(tf.math.multiply_no_nan(value, weight)), tf.reduce_sum(weight)


def _weights(value: tf.Tensor, sample_weight: Any) -> tf.Tensor:
    """Weights of the values' shape; they are broadcast along the trailing dimensions, as Keras does."""
    weight = tf.cast(sample_weight, tf.float32)
    missing = value.shape.rank - weight.shape.rank
    if missing < 0:
        raise ValueError(f"add_metric: `sample_weight` has shape {weight.shape}, which does not fit to a value of shape {value.shape}.")
    if missing and weight.shape.rank:
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), tf.ones([missing], tf.int32)], 0))
    return tf.broadcast_to(weight, tf.shape(value))


def _replica_values(variable: keras.Variable) -> tf.Tensor:
    parts = replica_variables(variable)
    inside_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if parts is None or inside_replica:
        return tf.convert_to_tensor(variable)
    return tf.stack([part.read_value() for part in parts])
