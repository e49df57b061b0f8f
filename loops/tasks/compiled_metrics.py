"""Resets the metrics of a model, and computes their results, in one compiled call each.

Keras runs many small eager ops for either, which costs much where epochs are short.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from loops.cluster import Cluster
from loops.tasks.python_inputs import PythonInputs

__all__ = ["MetricCalls"]

_OF_KERAS = ("metrics", "reset_metrics", "get_metrics_result")
_CALLS_BEFORE_COMPILING = 2  # for few epochs or evaluations, tracing costs more than it saves


class MetricCalls:
    """`model.reset_metrics()` and `model.get_metrics_result()`, with the same values.

    Code that is not Keras's own may do things in Python that a trace would do only once. So nothing is compiled for a model that overrides
    one of these methods or has a metric that is not Keras's. Under several replicas of one process nothing is; in several processes only
    results, of which each variable is summed by a collective: many eager ops around each would take longer than the collective.

    Args:
        model: a compiled model.

    Attributes:
        model: that model.

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
        self.model = model
        self._known: list[Any] = []
        self._compiled: dict[str, Callable[[], Any]] = {}
        self._calls = collections.Counter[str]()
        self._inputs: PythonInputs | None = None
        self._same: PythonInputs | None = None  # what there was when it was last found to be the same

    def reset(self) -> None:
        """Clears all metrics. What is compiled stays if they are set as they were."""
        if self._compiled and not self._are_set_as_they_were():
            self._compiled = {}
        self._call("reset_metrics")

    def results(self) -> dict[str, Any]:
        """Name -> result of each metric, as Keras nests them."""
        return dict(self._call("get_metrics_result"))

    def _call(self, name: str) -> Any:
        metrics, plain = self.model.metrics, getattr(self.model, name)
        known = [*metrics, *(v for metric in metrics for v in metric.variables)]  # building a metric adds some
        if len(known) != len(self._known) or any(a is not b for a, b in zip(known, self._known, strict=True)):
            self._known, self._compiled, self._calls = known, {}, collections.Counter()
        self._calls[name] += 1
        if (name not in self._compiled and self._calls[name] <= _CALLS_BEFORE_COMPILING) or not self._may_compile(name, metrics):
            return plain()
        if name not in self._compiled:
            self._inputs, self._same = PythonInputs(_roots(metrics)), None
            self._compiled[name] = tf.function(plain, autograph=False).get_concrete_function()
        return self._compiled[name]()

    def _are_set_as_they_were(self) -> bool:
        roots = _roots(self.model.metrics)
        if self._same is not None and self._same.stand(roots):
            return True
        now = PythonInputs(roots, again=True)
        same = self._inputs is not None and self._inputs.difference(now) is None
        self._same = now if same else None
        return same

    def _may_compile(self, name: str, metrics: list[Any]) -> bool:
        kind, own = type(self.model), vars(self.model)
        if any(one in own or getattr(kind, one) is not getattr(keras.Model, one) for one in _OF_KERAS):
            return False
        parts = [part for metric in metrics for part in (metric, *getattr(metric, "metrics", []))]
        values = [v.value for metric in metrics for v in metric.variables]
        strategies = {v.distribute_strategy for v in values if isinstance(v, tf.distribute.DistributedValues)}
        if any(name != "get_metrics_result" or not Cluster.of(strategy).several for strategy in strategies):
            return False
        return all(type(part).__module__.startswith("keras.") for part in parts)


def _roots(metrics: list[Any]) -> dict[str, Any]:
    """What a compiled call may have taken for constant: settings of the metrics, and of Keras."""
    return {"metrics": list(metrics), "settings of Keras": (keras.config.epsilon(), keras.config.floatx())}
