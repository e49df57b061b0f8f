"""The metrics of a model reset, and their results asked for, in one compiled call each: when epochs are short, many small ops are dear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["MetricCalls"]


class MetricCalls:
    """`model.reset_metrics()` and `model.get_metrics_result()`, with the same values.

    Metrics that are not Keras's own may do in Python what a trace would do once. With one of them, and under several replicas, both are
    left to Keras.

    Args:
        model: a compiled model.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> loss = model.evaluate(np.ones([4, 1]), np.ones([4, 1]), verbose=0)
        >>> calls = MetricCalls(model)
        >>> float(calls.results()["loss"]) == loss
        True
        >>> calls.reset()
        >>> float(calls.results()["loss"])
        0.0
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._known: tuple[int, ...] = ()
        self._compiled: dict[str, Callable[[], Any]] = {}

    def reset(self) -> None:
        """Clears all metrics."""
        self._call("reset_metrics")

    def results(self) -> dict[str, Any]:
        """Name -> result of each metric, as Keras nests them."""
        return dict(self._call("get_metrics_result"))

    def _call(self, name: str) -> Any:
        metrics = self._model.metrics
        variables = [v for metric in metrics for v in metric.variables]  # there are more once a metric is built
        known = (*map(id, metrics), 0, *map(id, variables))
        if known != self._known:
            self._known, self._compiled = known, {}
        if not all(_is_keras_own(metric) for metric in metrics) or any(_is_distributed(v) for v in variables):
            return getattr(self._model, name)()
        if name not in self._compiled:
            self._compiled[name] = tf.function(getattr(self._model, name), autograph=False)
        return self._compiled[name]()


def _is_keras_own(metric: keras.metrics.Metric) -> bool:
    parts = [metric, *getattr(metric, "metrics", [])]
    return all(type(part).__module__.startswith("keras.") for part in parts)


def _is_distributed(variable: Any) -> bool:
    return isinstance(variable.value, tf.distribute.DistributedValues)
