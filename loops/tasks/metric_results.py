"""Recognises the results of metrics among what a step returns, so that `return {"acc": metric.result()}` means the metric.

Keras resets metrics when an epoch begins, so the result after a step covers the epoch up to it. A mean over steps of such results is a
number that nobody asked for. The result itself therefore stands for the metric, and what is computed from results alone (the square root
of one, an F1 score) counts as it is after the last step.
"""

from __future__ import annotations

import functools
import inspect
import threading
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
    """A context in which every call of `result` of a Keras metric is recorded in the context of the step that makes it."""

    _lock, _users = threading.Lock(), 0
    _replaced: list[tuple[type, Any]] = []

    def __enter__(self) -> None:
        kind = ResultsRecorded
        with kind._lock:
            kind._users += 1
            if kind._users == 1:
                for one in _kinds(keras.metrics.Metric):
                    if inspect.isfunction(result := vars(one).get("result")):
                        kind._replaced.append((one, result))
                        type.__setattr__(one, "result", _recording(result))

    def __exit__(self, *exception: object) -> None:
        kind = ResultsRecorded
        with kind._lock:
            kind._users -= 1
            while not kind._users and kind._replaced:
                one, result = kind._replaced.pop()
                type.__setattr__(one, "result", result)


def _kinds(kind: type) -> Iterator[type]:
    """A class and those derived from it; one that derives twice is given twice."""
    yield kind
    derived: list[type] = kind.__subclasses__()
    for one in derived:
        yield from _kinds(one)


def _recording(result: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(result)
    def recorded(metric: keras.metrics.Metric, *args: Any, **kwargs: Any) -> Any:
        value = result(metric, *args, **kwargs)
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
        ValueError: for a metric that is not among `metrics`, which would not be reset. Under several replicas, for a value that is
            computed from results: each replica knows its own examples only.
    """
    known = {id(metric): metric for metric in _with_inner(metrics)}
    strangers = {id(metric): metric for metric, _ in context.results if id(metric) not in known}

    def from_results(value: Any, of: Mapping[int, Any]) -> bool:
        handles = [v.handle for metric in of.values() for v in local_variables(metric.variables)]
        if not handles or not tf.is_tensor(value) or isinstance(value, tf.Variable):
            return False
        if ops is not None:
            results = [leaf for metric, value in context.results if id(metric) in of for leaf in tf.nest.flatten(value)]
            others = [leaf for metric, value in context.results if id(metric) not in of for leaf in tf.nest.flatten(value)]
            return ops.computed_from_variables(value, handles, batch=[*tf.nest.flatten(batch), *others], known=results)
        return isinstance(value, tf.Tensor) and not hasattr(value, "numpy") and computed_from_variables(value, handles, also=[context.step])

    found: dict[str, Any] = {}
    for name, entry in logs.items():
        found[name] = entry
        if isinstance(entry, keras.metrics.Metric):
            _check_known(name, entry, known)
        if entry is None or isinstance(entry, (Reduction, Collect, keras.metrics.Metric)):
            continue
        metric = next((metric for metric, value in context.results if value is entry), None)
        if metric is not None:
            _check_known(name, metric, known)
            found[name] = metric
        elif strangers and from_results(entry, known | strangers) and not from_results(entry, known):
            _check_known(name, next(iter(strangers.values())), known)
        elif from_results(entry, known):
            if context.replicas > 1:
                raise ValueError(
                    f"The step returned {name!r}, which is computed from the results of metrics. Each of {context.replicas} replicas knows "
                    "the results for its own examples only: return the metrics themselves, and compute the value from the logs in a hook."
                )
            found[name] = Last(entry)
    return found


def _check_known(name: str, metric: keras.metrics.Metric, known: Mapping[int, Any]) -> None:
    if id(metric) not in known:
        raise ValueError(
            f"The step returned {name!r}, which is a metric ({metric.name!r}) or comes from one that no attribute of the task leads to: it "
            "would not be reset when an epoch or an evaluation begins. Hold it by an attribute, as in self.accuracy = metric."
        )


def _with_inner(metrics: Iterable[keras.metrics.Metric]) -> Iterator[keras.metrics.Metric]:
    for metric in metrics:
        yield metric
        inner = getattr(metric, "metrics", None)
        if isinstance(inner, (list, tuple)):
            yield from _with_inner(m for m in inner if isinstance(m, keras.metrics.Metric))
