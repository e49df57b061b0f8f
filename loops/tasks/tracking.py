"""Finds what belongs to a task by attribute, through lists and dicts: models, optimizers, metrics, variables, seed generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api

__all__ = ["Tracked", "apply_flags", "flags_of", "layers_of", "track"]


@dataclasses.dataclass
class Tracked:
    """What was found, in attribute order, each object once.

    Attributes:
        layers: models and layers (also `tf.Module`s).
        optimizers: attribute path -> optimizer.
        metrics: metrics, those of the layers included.
        loose: variables and seed-generator states that belong to none of these.
    """

    layers: list[Any] = dataclasses.field(default_factory=list)
    optimizers: dict[str, keras.optimizers.Optimizer] = dataclasses.field(default_factory=dict)
    metrics: list[keras.metrics.Metric] = dataclasses.field(default_factory=list)
    loose: list[Any] = dataclasses.field(default_factory=list)

    def model_variables(self) -> list[Any]:
        """Variables of layers and loose ones, without those of metrics and optimizers."""
        return _unique([*(v for layer in self.layers for v in layer.variables), *self.loose])

    def metric_variables(self) -> list[Any]:
        """Accumulators of all metrics."""
        return _unique(v for metric in self.metrics for v in metric.variables)

    def optimizer_variables(self) -> list[Any]:
        """Slots, counters and learning rates of all optimizers."""
        return _unique(v for optimizer in self.optimizers.values() for v in optimizer.variables)

    def all_variables(self) -> list[Any]:
        """Everything that a step may change."""
        return _unique([*self.model_variables(), *self.optimizer_variables(), *self.metric_variables()])


def track(root: Any) -> Tracked:
    """Walks over the attributes of `root`.

    Args:
        root: any object with a `__dict__`.

    Returns:
        What was found.
    """
    found = Tracked()
    seen: set[int] = set()
    for name, value in vars(root).items():
        _visit(value, name, found, seen)
    return found


def _visit(value: Any, path: str, found: Tracked, seen: set[int]) -> None:
    if isinstance(value, (str, bytes, int, float, type(None))) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, keras.optimizers.Optimizer):
        found.optimizers[path] = value
    elif isinstance(value, keras.metrics.Metric):
        found.metrics.append(value)
    elif isinstance(value, keras.random.SeedGenerator):
        found.loose.append(value.state)
    elif isinstance(value, (tf.Variable, keras.Variable)):
        found.loose.append(value)
    elif isinstance(value, keras.layers.Layer):
        found.layers.append(value)
        for metric in _metrics_of(value):
            _visit(metric, path, found, seen)
        if getattr(value, "optimizer", None) is not None:
            _visit(value.optimizer, f"{path}.optimizer", found, seen)
    elif isinstance(value, tf.Module):
        found.layers.append(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _visit(item, f"{path}.{key}", found, seen)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _visit(item, f"{path}.{i}", found, seen)


def _metrics_of(layer: keras.layers.Layer) -> Iterator[Any]:
    # `metrics` of a model leaves out those of models inside it, `metrics` of a layer does not; `_visit` takes each object once.
    yield from layer.metrics
    for inner in _private_api.layers_within(layer, include_self=False):
        yield from inner.metrics


def layers_of(models: Iterable[Any]) -> list[Any]:
    """The Keras layers among `models` and those inside them, each once."""
    inner = [layer for outer in models if isinstance(outer, keras.layers.Layer) for layer in _private_api.layers_within(outer)]
    return list({id(layer): layer for layer in inner}.values())


def flags_of(tracked: Tracked) -> dict[str, list[bool]]:
    """The `trainable` flags of layers and variables."""
    return {
        "layers": [bool(layer.trainable) for layer in layers_of(tracked.layers)],
        "variables": [bool(v.trainable) for v in _keras_variables(tracked)],
    }


def apply_flags(tracked: Tracked, flags: Mapping[str, list[bool]]) -> None:
    """Sets the flags that `flags_of` gave. Layers, or variables, are left as they are if their number differs: not all are built yet."""
    for items, wanted in ((layers_of(tracked.layers), flags["layers"]), (_keras_variables(tracked), flags["variables"])):
        if len(items) == len(wanted):
            # Setting a layer's flag also sets those of the layers inside it. These come later in the list and get their own flags.
            for item, flag in zip(items, wanted, strict=True):
                if item.trainable != flag:
                    item.trainable = flag


def _keras_variables(tracked: Tracked) -> list[Any]:
    return [v for v in tracked.model_variables() if isinstance(v, keras.Variable)]


def _unique(items: Any) -> list[Any]:
    return list({id(item): item for item in items}.values())
