"""What Python a traced step may have read: a trace takes it for constant, so a program may be used again only while all of it is the same.

The walk goes from the task through everything of the user's that its step can reach: attributes, lists and dicts, classes with their
methods, functions with the globals, closures and defaults that they read; and through Keras's layers, optimizers, metrics, losses,
regularizers and schedules with their settings. Numbers, strings and arrays are compared by value, other objects by identity. No
property is called.

`plain_values.py` takes a small part of this, which is cheap enough for every boundary of a run; this is for the beginning of one.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import marshal
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from loops.feeds.fingerprints import fingerprint
from loops.tasks.input_kinds import NOTES_OF_KERAS, InputKind, is_of_keras, is_plain, is_users, kind_of
from loops.tasks.input_sources import InputSources
from loops.tasks.object_parts import attributes_of
from loops.tasks.parts_of_code import bases_of, held_by_class, parts_of_function

__all__ = ["PythonInputs"]

_MOST = 100_000  # values; of a task with more than that nothing is known
_LONG = 32  # a longer list of plain values is compared as a whole
_WHOLE_ARRAY = 1 << 22  # bytes; of a larger one a part is looked at, see `fingerprint`


class PythonInputs:
    """What there was when it was made.

    Args:
        roots: name -> object to begin at; the name begins the paths of what is found there, and may be empty.
        apart: names of attributes of the roots that are not looked at.
        again: whether somebody will ask `stand`.

    Attributes:
        complete: whether all was looked at. There may be too much.

    Example:
        >>> import types
        >>> task = types.SimpleNamespace(temperature=0.5, sizes=[1, 2])
        >>> before = PythonInputs({"": task})
        >>> before.difference(PythonInputs({"": task})) is None
        True
        >>> task.temperature = 0.7
        >>> before.difference(PythonInputs({"": task}))
        ('temperature', 0.5, 0.7)
    """

    def __init__(self, roots: Mapping[str, Any], apart: Iterable[str] = (), *, again: bool = False):
        walk = _Walk(InputSources(_as_a_whole) if again else None)
        for name, root in roots.items():
            walk.root(name, root, frozenset(apart))
        self._found, self._slots = walk.found, walk.slots
        self.complete = len(walk.found) <= _MOST
        self._sources = walk.sources.end(_containers_in(roots)) if walk.sources is not None and self.complete else None

    def stand(self, roots: Mapping[str, Any]) -> bool:
        """Whether there is the same now, as far as identities tell, which takes a fraction of the time; False says nothing.

        Args:
            roots: as they would be given now; the objects have to be those that were.
        """
        return self._sources is not None and self._sources.unchanged(_containers_in(roots))

    def __len__(self) -> int:
        return len(self._found)

    def counted(self, after: PythonInputs, known: Iterable[str] = ()) -> dict[str, Any]:
        """What code counts and lists while it is traced, which decides nothing: path -> how it is compared, after the trace.

        Args:
            after: what there was after a trace that began with this.
            known: paths that earlier traces gave.
        """
        found = {path: after._found.get(path) for path in known}
        for path, token in sorted(after._found.items(), key=lambda item: len(item[0].removeprefix("len("))):
            before = self._found.get(path)
            if before == token:
                continue
            if isinstance(token, tuple) and isinstance(before, tuple):
                if token[0] is before[0] and token[0] in (int, list, dict):
                    found[path] = token
            elif before is None and any(f"len({container})" in found for container in _containers_of(path)):
                found[path] = token
        return found

    def difference(
        self, now: PythonInputs, apart: Mapping[str, Any] | None = None, counted: Mapping[str, Any] | None = None
    ) -> tuple[str, Any, Any] | None:
        """The first that differs: its path, and what it was and is; None if all is the same.

        Args:
            now: what there is now.
            apart: path -> plain value that does not count as a change.
            counted: what `counted` gave after the last trace; what is still so does not count either.
        """
        before, after = self._found, now._found
        if before == after:
            return None
        for path in {**before, **after}:
            if path not in before and path in now._slots:
                continue
            if counted and path in counted and after.get(path) == counted[path]:
                continue
            if apart and path in apart and after.get(path) == (type(apart[path]), apart[path]):
                continue
            if before.get(path, _ABSENT) != after.get(path, _ABSENT):
                return path.replace("._layers.", ".layers."), _shown(before.get(path, _ABSENT)), _shown(after.get(path, _ABSENT))
        return None


def _containers_in(roots: Mapping[str, Any]) -> list[Any]:
    return [root for root in roots.values() if kind_of(type(root)) is InputKind.SEQUENCE]


def _containers_of(path: str) -> Iterator[str]:
    """Paths of what may hold what a path leads to, or the length of it."""
    path = path.removeprefix("len(").removesuffix(")")
    while path:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
        yield path


class _Same:
    """Stands for an object that is compared by identity. It does not keep the object alive if that can be."""

    __slots__ = ("_object", "_reference")

    def __init__(self, value: Any):
        self._object, self._reference = None, None
        try:
            self._reference = weakref.ref(value)
        except TypeError:
            self._object = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same):
            return NotImplemented
        mine, theirs = self.value, other.value
        return mine is theirs and (mine is not None or self._reference is None)

    __hash__ = None  # type: ignore[assignment]

    @property
    def value(self) -> Any:
        return self._object if self._reference is None else self._reference()


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _shown(token: Any) -> Any:
    if isinstance(token, _Same):
        return token.value if token.value is not None else _ABSENT
    return token[1] if isinstance(token, tuple) else token


class _Walk:
    def __init__(self, sources: InputSources | None) -> None:
        self.sources = sources
        self.found: dict[str, Any] = {}
        # Paths of variables, and of lists of them, in Keras's own optimizers: that these are new means that the optimizer was built.
        self.slots: set[str] = set()
        self._seen: dict[int, Any] = {}
        self._open: collections.deque[tuple[str, Any]] = collections.deque()

    def root(self, name: str, root: Any, apart: frozenset[str]) -> None:
        if kind_of(type(root)) is InputKind.SEQUENCE:
            self._open.append((name, root))
        else:
            self._seen[id(root)] = root
            prefix = f"{name}." if name else ""
            self._open.extend((prefix + key, value) for key, value in self._attributes(root, apart))
            self._class(prefix + "class", type(root))
        while self._open and len(self.found) <= _MOST:
            self._take(*self._open.popleft())

    def _take(self, path: str, value: Any) -> None:
        kind = kind_of(type(value))
        if kind is InputKind.PLAIN:
            self.found[path] = (type(value), _comparable(value))
            return
        if kind is InputKind.OTHER or kind is InputKind.ENUM:
            self.found[path] = _Same(value)
            return
        if kind is InputKind.POLICY:
            self.found[path] = (type(value), str(value.name))
            return
        if kind is InputKind.ARRAY:
            self.found[path] = (np.ndarray, _array(value))
            return
        if kind in (InputKind.MAPPING, InputKind.SEQUENCE, InputKind.SET):
            self._container(path, value, kind)
            return
        if kind is InputKind.OURS:
            self.found[path] = (type(value), type(value).__name__)
        else:
            self.found[path] = _Same(_known_by(value))
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind is InputKind.FUNCTION:
            self._function(path, value)
        elif kind is InputKind.CLASS:
            self._class(path, value)
        elif kind is InputKind.VARIABLE:
            if path in self.slots:
                return
            if self.sources is not None:
                self.sources.add_variable(value)
            self._open.extend((f"{path}.{name}", getattr(value, name, None)) for name in ("regularizer", "constraint"))
        else:
            attributes = self._attributes(value, NOTES_OF_KERAS if is_of_keras(value) else frozenset())
            if isinstance(value, keras.optimizers.Optimizer) and not is_users(type(value)):
                self.slots.update(f"{path}.{name}" for name, item in attributes if _holds_variables(item))
            self._open.extend((f"{path}.{name}", item) for name, item in attributes)
            if is_users(type(value)):
                self._class(f"{path}.class", type(value))

    def _attributes(self, value: Any, apart: frozenset[str]) -> list[tuple[str, Any]]:
        def read(owner: Any) -> list[tuple[str, Any]]:
            return [(name, item) for name, item in attributes_of(owner) if name not in apart]

        if self.sources is not None:
            self.sources.add_attributes(value, apart, read)
        return read(value)

    def _container(self, path: str, value: Any, kind: InputKind) -> None:
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        items: Any = dict(value) if kind is InputKind.MAPPING else list(value)
        if len(items) > _LONG and (digest := _digest(items)) is not None:
            self.found[path] = (type(value), digest)
            return
        self.found[path], self.found[f"len({path})"] = (type(value), ...), (int, len(items))
        if kind is InputKind.SET:
            items = sorted((item for item in items), key=_order)
        if kind is InputKind.MAPPING:
            named = [(f"{path}.{key}" if isinstance(key, str) else f"{path}[{_order(key)}]", item) for key, item in items.items()]
        else:
            named = [(f"{path}.{i}", item) for i, item in enumerate(items)]
        if path in self.slots:
            self.slots |= {f"len({path})", *(name for name, _ in named)}
        self._open.extend(named)

    def _class(self, path: str, kind: type) -> None:
        """The user's classes among the bases of a class: their functions, and values that objects share."""
        if self.sources is not None and any(map(is_users, kind.__mro__)):
            self.sources.add_question(kind, bases_of)
        for base in kind.__mro__:
            if is_users(base) and id(base) not in self._seen:
                self._seen[id(base)] = base
                self.found[f"{path}.{base.__qualname__}"] = _Same(base)
                if self.sources is not None:
                    self.sources.add_question(base, held_by_class)
                self._open.extend((f"{path}.{base.__qualname__}.{name}", item) for name, item in held_by_class(base))

    def _function(self, path: str, function: Any) -> None:
        parts = list(parts_of_function(function))
        if parts and self.sources is not None:
            self.sources.add_question(function, parts_of_function)
        self._open.extend((f"{path}.{name}" if name else path, part) for name, part in parts)


def _known_by(value: Any) -> Any:
    """The object by whose identity a value is known: bound methods are made anew at each access."""
    return value.__func__ if isinstance(value, types.MethodType) else value


def _comparable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    return "nan" if isinstance(value, (float, complex)) and value != value else value  # no NaN equals another


def _as_a_whole(value: Any) -> Any:
    """What an array, or a container of many plain values, is compared by; None for other containers."""
    if isinstance(value, np.ndarray):
        return _array(value)
    return _digest(dict(value) if kind_of(type(value)) is InputKind.MAPPING else list(value)) if len(value) > _LONG else None


def _digest(items: Any) -> str | None:
    """A digest of a list or dict of plain values, nested or not; None if there is something else in it."""
    try:
        return hashlib.blake2b(marshal.dumps(items, 2)).hexdigest()
    except ValueError:
        return None


def _array(array: np.ndarray) -> tuple[Any, ...]:
    if array.dtype.hasobject:
        return (array.shape, repr(array.tolist())) if array.size <= _LONG else (array.shape, id(array))
    if array.nbytes <= _WHOLE_ARRAY:
        return array.shape, array.dtype.str, hashlib.blake2b(array.tobytes()).digest()
    return array.shape, array.dtype.str, fingerprint(array)


def _holds_variables(item: Any) -> bool:
    if kind_of(type(item)) is InputKind.SEQUENCE:
        return all(part is None or isinstance(part, keras.Variable) for part in item)
    return isinstance(item, keras.Variable)


def _order(item: Any) -> str:
    return repr(item) if is_plain([item]) or isinstance(item, (tuple, enum.Enum)) else f"{type(item).__qualname__} {id(item)}"
