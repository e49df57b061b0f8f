"""Finds what belongs to a task by attribute: models, optimizers, metrics, variables, random generators, at any depth.

The walk goes through lists, tuples and dicts, objects of the user's classes, dataclasses, nested tasks, `tf.Module`s, bound methods, and
what hangs on Keras layers and models beside the things that Keras tracks. `object_parts.py` says what it looks into. The order is that of
the attributes, which is the same in every process. What it cannot find is a matter of `run_variables.py`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from loops import _private_api
from loops.tasks.object_parts import TENSORFLOWS_NOTES, Kind, Kinds, attributes_of, bookkeeping_of_layers, parts_of
from loops.tasks.walk_sources import WalkSources

__all__ = ["LastWalk", "Tracked", "apply_flags", "flags_of", "layers_of", "track"]


@dataclasses.dataclass
class Tracked:
    """What was found, in attribute order, each object once.

    Attributes:
        layers: models and layers, and `tf.Module`s.
        optimizers: attribute path -> optimizer; those of models as "<path of the model>.<attribute>".
        metrics: metrics, those of the layers included.
        loose: variables that belong to none of these, and states of random generators.
        own: ids of those layers and loose variables that are attributes of the task itself, or in lists, dicts and `tf.Module`s of it.
        random_states: ids of those loose variables that are states of random generators.
        inner_optimizers: optimizers inside other optimizers; they are state, and have no learning rate of their own.
        unlisted_metrics: metrics that a layer holds and does not list in `metrics`; they are state, and nobody resets them.
        not_saved: attribute paths of what has state that is in no variable: iterators, queues, generators.
    """

    layers: list[Any] = dataclasses.field(default_factory=list)
    optimizers: dict[str, keras.optimizers.Optimizer] = dataclasses.field(default_factory=dict)
    metrics: list[keras.metrics.Metric] = dataclasses.field(default_factory=list)
    loose: list[Any] = dataclasses.field(default_factory=list)
    own: set[int] = dataclasses.field(default_factory=set)
    random_states: set[int] = dataclasses.field(default_factory=set)
    inner_optimizers: list[keras.optimizers.Optimizer] = dataclasses.field(default_factory=list)
    unlisted_metrics: list[keras.metrics.Metric] = dataclasses.field(default_factory=list)
    not_saved: list[str] = dataclasses.field(default_factory=list)

    def model_variables(self) -> list[Any]:
        """Variables of layers and loose ones, without those of metrics and optimizers."""
        return _unique([*(v for layer in self._keras_layers() for v in layer.variables), *self.loose])

    def metric_variables(self) -> list[Any]:
        """Accumulators of all metrics."""
        return _unique(v for metric in (*self.metrics, *self.unlisted_metrics) for v in metric.variables)

    def optimizer_variables(self) -> list[Any]:
        """Slots, counters and learning rates of all optimizers."""
        return _unique(v for optimizer in (*self.optimizers.values(), *self.inner_optimizers) for v in optimizer.variables)

    def all_variables(self) -> list[Any]:
        """Everything found that a step may change."""
        return _unique([*self.model_variables(), *self.optimizer_variables(), *self.metric_variables()])

    def weights(self) -> list[Any]:
        """What is learned: `model_variables` without the states of random generators and the metrics inside layers."""
        loose = (v for v in self.loose if id(v) not in self.random_states)
        return _unique([*(w for layer in self._keras_layers() for w in layer.weights), *loose])

    def own_variables(self) -> list[Any]:
        """`model_variables` of layers and variables that the task itself holds, not those inside other objects."""
        own = [v for layer in self._keras_layers() if id(layer) in self.own for v in layer.variables]
        return _unique([*own, *(v for v in self.loose if id(v) in self.own)])

    def statistics(self) -> list[Any]:
        """The non-trainable variables of layers and those that the task itself holds: what replicas may update each by itself."""
        of_layers = (v for layer in self._keras_layers() for v in layer.variables)
        return [v for v in _unique([*of_layers, *(v for v in self.loose if id(v) in self.own)]) if not v.trainable]

    def own_layers(self) -> list[Any]:
        """The layers that the task itself holds."""
        return [layer for layer in self.layers if id(layer) in self.own]

    def _keras_layers(self) -> list[keras.layers.Layer]:
        return [layer for layer in self.layers if isinstance(layer, keras.layers.Layer)]


def track(root: Any, task: type) -> Tracked:
    """Walks over the attributes of `root`.

    Args:
        root: any object.
        task: the class of tasks, which are looked into as if they were the user's objects.

    Returns:
        What was found. What the task itself holds comes first, then what is inside other objects.
    """
    walk = _Walk(Kinds(task))
    walk.over(root)
    return walk.found


class LastWalk:
    """The last walk over an object: what it found stands as long as another one would read the same.

    Example:
        >>> import types
        >>> root, last = types.SimpleNamespace(layer=keras.layers.Dense(1)), LastWalk()
        >>> found = last.over(root, keras.Model)
        >>> last.over(root, keras.Model) is found
        True
        >>> root.layer = keras.layers.Dense(1)
        >>> last.over(root, keras.Model) is found
        False
    """

    def __init__(self) -> None:
        self._walk: tuple[Any, Tracked, WalkSources] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LastWalk, ()  # a copy of the object has other parts

    def over(self, root: Any, task: type) -> Tracked:
        """What `track` finds."""
        last = self._walk
        if last is not None and last[0] is root and last[2].unchanged:
            return last[1]
        walk = _Walk(Kinds(task))
        walk.over(root)
        self._walk = root, walk.found, walk.sources
        return walk.found


class _Walk:
    """One walk. `later` holds what is inside other objects, so that a model that a helper holds as well is found as the task's own."""

    def __init__(self, kinds: Kinds):
        self.found, self.sources = Tracked(), WalkSources(kinds)
        self._kinds = kinds
        self._seen: dict[int, Any] = {}  # with the objects, so that no id is used again
        self._layers_seen: set[int] = set()
        self._later: collections.deque[Callable[[], None]] = collections.deque()

    def over(self, root: Any) -> None:
        self._seen[id(root)] = root
        self._parts(self._attributes_of(root), "", own=True, within=None)
        while self._later:
            self._later.popleft()()

    def _parts(self, parts: Iterable[tuple[str, Any]], prefix: str, *, own: bool, within: type | None) -> None:
        """Takes each part; `within` is the class of a Keras object that tracks Keras's variables in its attributes itself."""
        open_parts = [(prefix, iter(parts), own)]
        while open_parts:  # not by recursion: lists may be nested deeply
            prefix, rest, own = open_parts[-1]
            for name, part in rest:
                kind = self._kinds[type(part)]
                if kind is not Kind.IGNORED and id(part) not in self._seen:
                    path = prefix + name
                    if kind is Kind.CONTAINER or (kind is Kind.MODULE and within is None):
                        self._seen[id(part)] = part
                        if kind is Kind.MODULE:
                            self._own(self.found.layers, part, own)
                        open_parts.append((path + ".", self._parts_of(part), own))
                        break
                    self._take(part, kind, path, own=own, within=within)
            else:
                open_parts.pop()

    def _take(self, part: Any, kind: Kind, path: str, *, own: bool, within: type | None) -> None:
        if within is not None and (kind is Kind.KERAS_VARIABLE or kind is Kind.SEED_GENERATOR or issubclass(type(part), within)):
            return
        self._seen[id(part)] = part
        found = self.found
        if kind is Kind.LAYER:
            self._own(found.layers, part, own)
            self._layer(part, path)
        elif kind is Kind.OPTIMIZER:
            found.optimizers[path] = part
            self._postpone(self._parts_of_optimizer(part), path, keras.optimizers.Optimizer)
        elif kind is Kind.METRIC:
            (found.metrics if within is None else found.unlisted_metrics).append(part)
            if self._kinds.is_users(part):
                self._postpone(self._attributes_of(part), path, keras.metrics.Metric)
        elif kind in (Kind.SEED_GENERATOR, Kind.RANDOM_GENERATOR):
            self.sources.add_question(lambda: [part.state])
            found.random_states.add(id(part.state))
            self._own(found.loose, part.state, own)
        elif kind is Kind.NOT_SAVED:
            found.not_saved.append(path)
        elif kind in (Kind.OBJECT, Kind.MODULE):
            if kind is Kind.MODULE:
                self._own(found.layers, part, own)
            self._postpone(self._parts_of(part), path, None)
        else:
            self._own(found.loose, part, own)

    def _own(self, items: list[Any], item: Any, own: bool) -> None:
        items.append(item)
        if own:
            self.found.own.add(id(item))

    def _postpone(self, parts: Iterable[tuple[str, Any]], path: str, within: type | None) -> None:
        self._later.append(lambda: self._parts(parts, path + ".", own=False, within=within))

    def _attributes_of(self, value: Any) -> Iterator[tuple[str, Any]]:
        self.sources.add_object(value)
        return attributes_of(value)

    def _parts_of(self, value: Any) -> Iterator[tuple[str, Any]]:
        if self._kinds.of(value) is Kind.CONTAINER:
            self.sources.add_container(value)
        else:
            self.sources.add_object(value)
        return parts_of(value, self._kinds)

    def _layer(self, layer: keras.layers.Layer, path: str) -> None:
        """What Keras tracks in a layer and the layers inside it, and what hangs on them beside that."""
        layers = _private_api.layers_within(layer)
        # `metrics` of a model leaves out those of models inside it, `metrics` of a layer does not; each object is taken once.
        for listed in layers:
            self._parts(((path, metric) for metric in listed.metrics), "", own=False, within=None)
        if (optimizer := vars(layer).get("optimizer")) is not None:
            self._parts([(f"{path}.optimizer", optimizer)], "", own=False, within=None)
        keras_own, kinds, ignored, tracked_by_keras = bookkeeping_of_layers(), self._kinds, Kind.IGNORED, Kind.KERAS_VARIABLE
        for i, inner in enumerate(layers):
            if id(inner) in self._layers_seen:
                continue
            self._layers_seen.add(id(inner))
            held = vars(inner)
            # Most attributes of most layers hold no part; they are passed over in a few operations, as models may have many layers.
            names = {
                name
                for name in held.keys() - keras_own
                if (kind := kinds[type(held[name])]) is not ignored
                and kind is not tracked_by_keras
                and not name.startswith(TENSORFLOWS_NOTES)
            }
            self.sources.add_layer(inner, names)
            if any(kinds.has_parts(held[name]) for name in names):
                self._postpone(
                    [(name, held[name]) for name in held if name in names], f"{path}.layers.{i}" if i else path, keras.layers.Layer
                )
            else:
                for name in names:
                    self.sources.add_without_parts(held[name])

    def _parts_of_optimizer(self, optimizer: keras.optimizers.Optimizer) -> Iterator[tuple[str, Any]]:
        self.sources.add_object(optimizer)
        yield "learning_rate", _private_api.learning_rate_setting(optimizer)
        parts = list(attributes_of(optimizer)) if self._kinds.is_users(optimizer) else [("", vars(optimizer).get("inner_optimizer"))]
        for name, part in parts:
            if isinstance(part, keras.optimizers.Optimizer) and id(part) not in self._seen:
                self._seen[id(part)] = part
                self.found.inner_optimizers.append(part)
                yield from self._parts_of_optimizer(part)
            else:
                yield name, part


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
