"""Recognises the results of metrics among what a step returns, so that `return {"acc": metric.result()}` means the metric.

Keras resets metrics when an epoch begins, so the result after a step covers the epoch up to it. A mean over steps of such results is a
number that nobody asked for. The result itself therefore stands for the metric, and what is computed from results alone (the square root
of one, an F1 score) counts as it is after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from loops.graphs.dependence import EagerOps, computed_from_variables
from loops.tasks.reductions import Collect, Last, Reduction
from loops.tasks.replicas import local_variables
from loops.tasks.step_context import StepContext, current, inside_step

__all__ = ["ResultsRecorded", "with_metrics"]


class ResultsRecorded:
    """A context in which every call of `result` of the metrics is recorded in the context of the step that makes it.

    Args:
        metrics: metrics, and through them those inside (of a compiled model).
    """

    def __init__(self, metrics: Iterable[keras.metrics.Metric]):
        self._metrics, self._replaced = list(metrics), list[Any]()

    def __enter__(self) -> None:
        self._record(self._metrics)

    def __exit__(self, *exception: object) -> None:
        for metric in self._replaced:
            del vars(metric)["result"]

    def _record(self, metrics: Iterable[keras.metrics.Metric]) -> None:
        for metric in _with_inner(metrics):
            if "result" not in vars(metric):
                self._replaced.append(metric)
                vars(metric)["result"] = self._recording(metric, metric.result)  # not by setattr: Keras would track it

    def _recording(self, metric: keras.metrics.Metric, result: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._record([metric])  # a compiled model makes the metrics inside when the first batch is there
            value = result(*args, **kwargs)
            if inside_step():
                current("Metric.result").results.append((metric, value))
            return value

        return recorded


def with_metrics(
    logs: Mapping[str, Any], context: StepContext, metrics: Iterable[keras.metrics.Metric], batch: Any, ops: EagerOps | None
) -> dict[str, Any]:
    """What a step returned, with metrics in the place of their results.

    Args:
        logs: name -> what the step returned.
        context: the context of the step.
        metrics: the metrics of the task.
        batch: the batch of the step.
        ops: what the step ran eagerly, None in a graph.

    Raises:
        ValueError: under several replicas, for a value that is computed from results: each replica knows its own examples only.
    """
    handles = [v.handle for metric in _with_inner(metrics) for v in local_variables(metric.variables)]
    results = [leaf for _, value in context.results for leaf in tf.nest.flatten(value)]

    def from_results(value: Any) -> bool:
        if not handles or not tf.is_tensor(value) or isinstance(value, tf.Variable):
            return False
        if ops is not None:
            return ops.computed_from_variables(value, handles, batch=tf.nest.flatten(batch), known=results)
        return isinstance(value, tf.Tensor) and not hasattr(value, "numpy") and computed_from_variables(value, handles)

    found: dict[str, Any] = {}
    for name, entry in logs.items():
        found[name] = entry
        if entry is None or isinstance(entry, (Reduction, Collect, keras.metrics.Metric)):
            continue
        metric = next((metric for metric, value in context.results if value is entry), None)
        if metric is not None:
            found[name] = metric
        elif from_results(entry):
            if context.replicas > 1:
                raise ValueError(
                    f"The step returned {name!r}, which is computed from the results of metrics. Each of {context.replicas} replicas knows "
                    "the results for its own examples only: return the metrics themselves, and compute the value from the logs in a hook."
                )
            found[name] = Last(entry)
    return found


def _with_inner(metrics: Iterable[keras.metrics.Metric]) -> Iterator[keras.metrics.Metric]:
    for metric in metrics:
        yield metric
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, (list, tuple)):
            yield from _with_inner(m for m in inner if isinstance(m, keras.metrics.Metric))
