"""What a walk over a task read, so that the next one need not be made: as long as all of this is the same, it would find the same.

A walk goes by the types of what objects, lists and dicts hold, and by the identity of what it does not ignore. Comparing these takes a
fraction of the time of a walk. Nothing that the walk ignores is kept alive by it.
"""

from __future__ import annotations

import itertools
import operator
import types
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras

from loops.tasks.object_parts import Kind, Kinds, attributes_of, bookkeeping_of_layers, has_attributes_only

__all__ = ["WalkSources"]


class WalkSources:
    """The sources of one walk.

    Args:
        kinds: the kinds of the walk.

    Example:
        >>> import types
        >>> held = types.SimpleNamespace(layer=keras.layers.Dense(1), count=1)
        >>> sources = WalkSources(Kinds(keras.Model))
        >>> sources.add_object(held)
        >>> held.count = 2
        >>> sources.unchanged
        True
        >>> held.layer = keras.layers.Dense(1)
        >>> sources.unchanged
        False
    """

    def __init__(self, kinds: Kinds):
        self._kinds = kinds
        self._layers: list[tuple[dict[str, Any], list[str], dict[str, type], list[tuple[str, Any]]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._held: list[tuple[dict[Any, Any], _Items]] = []
        self._containers: list[tuple[Any, _Items]] = []
        self._others: list[tuple[Callable[[], Iterable[tuple[Any, Any]]], _Items]] = []
        self._without_parts: list[Any] = []
        self._empty: list[list[Any]] = []

    def add_object(self, value: Any) -> None:
        """An object whose attributes were read."""
        if has_attributes_only(value):
            attributes = object.__getattribute__(value, "__dict__")
            self._held.append((attributes, _Items(attributes.items(), self._kinds)))
        else:
            self._add_other(lambda: attributes_of(value))

    def add_container(self, container: Any) -> None:
        """A list or dict whose items were read."""
        if not self._kinds.has_parts(container):
            self.add_without_parts(container)
        elif isinstance(container, dict):
            self._held.append((container, _Items(container.items(), self._kinds)))
        elif isinstance(container, types.MappingProxyType):
            self._add_other(container.items)
        else:
            self._containers.append((container, _Items(enumerate(container), self._kinds)))

    def add_without_parts(self, container: Any) -> None:
        """A list or dict that was found to hold nothing but what is ignored."""
        self._without_parts.append(container)

    def add_layer(self, layer: keras.layers.Layer, taken: Collection[str]) -> None:
        """A layer, of which the attributes `taken` were looked into, and the lists in which Keras has its variables, metrics and layers."""
        held, of_keras = vars(layer), bookkeeping_of_layers()
        lists = [(name, held[name]) for name in held.keys() & of_keras if isinstance(held[name], list)]
        own = {name: type(item) for name, item in held.items() if name not in of_keras}
        kept = [(name, held[name]) for name in ("optimizer", *taken) if name in held] + lists
        self._layers.append((held, list(held), own, kept))
        for _, value in lists:
            if value:
                self._lists.append((value, list(value)))
            else:
                self._empty.append(value)
        if isinstance(layer, keras.Model) or type(layer).metrics is not keras.layers.Layer.metrics:
            self.add_question(lambda: layer.metrics)

    def add_question(self, question: Callable[[], Iterable[Any]]) -> None:
        """Something else that was asked for; it has to give the same objects again."""
        self._add_other(lambda: enumerate(question()))

    def _add_other(self, read: Callable[[], Iterable[tuple[Any, Any]]]) -> None:
        self._others.append((read, _Items(read(), self._kinds)))

    @property
    def unchanged(self) -> bool:
        """Whether another walk would read the same."""
        return (
            not any(self._empty)
            and all(len(now) == len(before) and all(map(operator.is_, now, before)) for now, before in self._lists)
            and all(itertools.starmap(_is_as_it_was, self._layers))
            and all(items.are_those_of(held) for held, items in self._held)
            and all(items.are(container) for container, items in self._containers)
            and not any(map(self._kinds.has_parts, self._without_parts))
            and all(items == _Items(read(), self._kinds) for read, items in self._others)
        )


def _is_as_it_was(held: dict[str, Any], names: list[str], own: dict[str, type], kept: list[tuple[str, Any]]) -> bool:
    """Whether a layer has the same attributes: their names, the types of those that Keras does not give to every layer, and those kept."""
    return (
        len(held) == len(names)
        and all(map(operator.is_, held, names))
        and all(map(operator.is_, map(type, map(held.__getitem__, own)), own.values()))
        and all(held[name] is item for name, item in kept)
    )


class _Items:
    """Names and types of items, and the items that are not ignored."""

    __slots__ = ("_kept", "_names", "_types")

    def __init__(self, items: Iterable[tuple[Any, Any]], kinds: Kinds):
        items = list(items)
        self._names = [name for name, _ in items]
        self._types = [type(item) for _, item in items]
        self._kept = [(name, item) for name, item in items if kinds[type(item)] is not Kind.IGNORED]

    def are_those_of(self, held: dict[Any, Any]) -> bool:
        """Whether a dict has these items, in this order."""
        return (
            len(held) == len(self._names)
            and all(map(operator.is_, held, self._names))
            and all(map(operator.is_, map(type, held.values()), self._types))
            and all(held[name] is item for name, item in self._kept)
        )

    def are(self, values: Iterable[Any]) -> bool:
        """Whether a list has these items."""
        values = list(values)
        return (
            len(values) == len(self._types)
            and all(map(operator.is_, map(type, values), self._types))
            and all(values[place] is item for place, item in self._kept)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Items):
            return NotImplemented
        mine, others = [item for _, item in self._kept], [item for _, item in other._kept]
        return (
            self._names == other._names
            and self._types == other._types
            and len(mine) == len(others)
            and all(map(operator.is_, mine, others))
        )

    __hash__ = None  # type: ignore[assignment]
