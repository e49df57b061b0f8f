"""What a walk over Python values read, by identity: as long as all of it is the same, the next walk would find the same, and is not made.

Comparing identities takes a fraction of the time of a walk, which names each value by its path. What differs here need not differ in value:
then another walk tells. It keeps no object alive but numbers, strings, and what Python can hold in no other way.
"""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from loops.tasks.input_kinds import InputKind, kind_of
from loops.tasks.object_parts import TENSORFLOWS_NOTES, has_attributes_only

__all__ = ["InputSources"]

_MOST, _DEEPEST = 100_000, 50  # items of containers, and levels of them; what goes beyond counts as changed
_CONTAINERS = (InputKind.MAPPING, InputKind.SEQUENCE, InputKind.SET)
_OF_VARIABLES = ("regularizer", "constraint")
Named = Iterable[tuple[str, Any]]
Reference = Callable[[], Any]


class _Attributes(NamedTuple):
    """The `__dict__` of an object."""

    owner: Reference
    kind: type
    apart: frozenset[str]
    all_names: list[str]
    names: list[str]
    values: _Values


class InputSources:
    """The sources of one walk.

    Args:
        digest: by what an array, or a container of many plain values, is compared; None for others.

    Attributes:
        items: how many items of containers were looked at.

    Example:
        >>> import types
        >>> held = types.SimpleNamespace(rate=0.5, sizes=[1, 2])
        >>> sources = InputSources(lambda value: None)
        >>> sources.add_attributes(held, frozenset(), lambda held: vars(held).items())
        >>> sources.unchanged([])
        True
        >>> held.sizes.append(3)
        >>> sources.unchanged([])
        False
    """

    def __init__(self, digest: Callable[[Any], Any]):
        self.digest, self.items = digest, 0
        self._roots: _Values | None = None
        self._attributes: list[_Attributes] = []
        self._questions: list[tuple[Reference, Callable[[Any], Named], list[str], _Values]] = []
        self._variables: list[Reference] = []
        self._of_variables: list[tuple[Any, ...]] = []
        self._values_of_variables: list[_Values] = []

    def add_attributes(self, value: Any, apart: frozenset[str], read: Callable[[Any], Named]) -> None:
        """An object whose attributes were read.

        Args:
            value: the object.
            apart: names of attributes that do not count.
            read: reads the others.
        """
        kind = type(value)
        if not has_attributes_only(value):
            self.add_question(value, lambda owner: read(owner) if type(owner) is kind else ())
            return
        held = object.__getattribute__(value, "__dict__")
        names = _names_in(held, apart)
        values = _Values([held[name] for name in names], self)
        self._attributes.append(_Attributes(_reference(value), kind, apart, list(held), names, values))

    def add_question(self, value: Any, read: Callable[[Any], Named]) -> None:
        """An object of which something else was read, that `read` reads again."""
        found = list(read(value))
        values = _Values([item for _, item in found], self)
        self._questions.append((_reference(value), read, [name for name, _ in found], values))

    def add_variable(self, variable: keras.Variable) -> None:
        """A variable, whose regularizer and constraint were read."""
        self._variables.append(_reference(variable))
        self._of_variables.append(tuple(getattr(variable, name, None) for name in _OF_VARIABLES))

    def end(self, roots: Iterable[Any]) -> InputSources:
        """Itself, after the walk: `roots` are the containers at which it began, which are made anew for each."""
        self._roots = _Values(roots, self)
        self._values_of_variables = [_Values(values, self) for values in zip(*self._of_variables, strict=True)]
        self._of_variables = []
        return self

    def unchanged(self, roots: Iterable[Any]) -> bool:
        """Whether another walk, beginning at these containers, would read the same."""
        return (
            (self._roots is None or self._roots.are(list(roots)))
            and all(map(_has_same_attributes, self._attributes))
            and self._variables_have_the_same()
            and all(itertools.starmap(_answers_the_same, self._questions))
        )

    def _variables_have_the_same(self) -> bool:
        variables = [reference() for reference in self._variables]
        of_each = zip(_OF_VARIABLES, self._values_of_variables, strict=False)
        return all(values.are([getattr(variable, name, None) for variable in variables]) for name, values in of_each)


def _names_in(held: dict[str, Any], apart: frozenset[str]) -> list[str]:
    return [name for name in list(held) if name not in apart and not name.startswith(TENSORFLOWS_NOTES)]


def _has_same_attributes(before: _Attributes) -> bool:
    owner = before.owner()
    if type(owner) is not before.kind:
        return False
    held = object.__getattribute__(owner, "__dict__")
    now = list(held)
    if (len(now) != len(before.all_names) or not all(map(operator.is_, now, before.all_names))) and (
        _names_in(held, before.apart) != before.names
    ):
        return False
    return before.values.are(list(map(held.get, before.names)))


def _answers_the_same(reference: Reference, read: Callable[[Any], Named], names: list[str], values: _Values) -> bool:
    owner = reference()
    if owner is None:
        return False
    found = list(read(owner))
    return [name for name, _ in found] == names and values.are([item for _, item in found])


class _Values:
    """Values in an order: numbers and strings, which it keeps, other objects, which it does not, and containers by what they hold."""

    __slots__ = ("_checks", "_count", "_objects", "_objects_at", "_plain", "_plain_at")

    def __init__(self, values: Iterable[Any], sources: InputSources, within: tuple[int, ...] = ()):
        values = list(values)
        self._count = len(values)
        self._plain, self._plain_at = list[Any](), list[int]()
        self._objects, self._objects_at = list[Reference](), list[int]()
        self._checks: list[tuple[int, Callable[[Any], bool]]] = []
        for place, value in enumerate(values):
            kind = kind_of(type(value))
            if isinstance(value, np.void):  # a row of a structured array, which can be written to
                self._checks.append((place, _check_of_record(value)))
            elif kind is InputKind.PLAIN:
                self._plain.append(value)
                self._plain_at.append(place)
            elif kind in _CONTAINERS:
                self._checks.append((place, _check_of_container(value, sources, within)))
            elif kind is InputKind.ARRAY:
                self._checks.append((place, _check_by_digest(value, sources.digest)))
            else:
                self._objects.append(_reference(value))
                self._objects_at.append(place)
                if kind is InputKind.POLICY:
                    self._checks.append((place, _check_of_name(value)))

    def are(self, values: list[Any]) -> bool:
        """Whether these values are the same."""
        if len(values) != self._count or not all(map(operator.is_, map(values.__getitem__, self._plain_at), self._plain)):
            return False
        objects = list(map(values.__getitem__, self._objects_at))
        return (
            all(map(operator.is_, objects, map(operator.call, self._objects)))
            and not any(map(operator.is_, objects, itertools.repeat(None)))  # what a reference gives whose object has gone
            and all([check(values[place]) for place, check in self._checks])
        )


def _check_of_container(value: Any, sources: InputSources, within: tuple[int, ...]) -> Callable[[Any], bool]:
    kind = type(value)
    if not len(value):
        return lambda now: type(now) is kind and not len(now)
    if id(value) in within or len(within) == _DEEPEST or sources.items > _MOST:  # it may hold itself, or be held many times
        return lambda now: False
    if sources.digest(value) is not None:
        return _check_by_digest(value, sources.digest)
    within = (*within, id(value))
    sources.items += len(value)
    if kind_of(kind) is not InputKind.MAPPING:
        items = _Values(value, sources, within)
        return lambda now: type(now) is kind and items.are(list(now))
    keys, values = _Values(dict(value), sources, within), _Values(dict(value).values(), sources, within)

    def check(now: Any) -> bool:
        if type(now) is not kind:
            return False
        now = dict(now)
        return keys.are(list(now)) and values.are(list(now.values()))

    return check


def _check_by_digest(value: Any, digest: Callable[[Any], Any]) -> Callable[[Any], bool]:
    kind, before = type(value), digest(value)
    return lambda now: type(now) is kind and digest(now) == before


def _check_of_record(record: np.void) -> Callable[[Any], bool]:
    kind, before = record.dtype, record.tobytes()
    return lambda now: isinstance(now, np.void) and now.dtype == kind and now.tobytes() == before


def _check_of_name(policy: keras.DTypePolicy) -> Callable[[Any], bool]:
    name = str(policy.name)
    return lambda now: bool(now.name == name)


def _reference(value: Any) -> Reference:
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value
