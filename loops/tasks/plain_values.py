"""Python numbers and strings that hang on a task: a traced step takes them for constants, and changes them only while it is traced."""

from __future__ import annotations

import collections
import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["before_trace", "changed_while_traced", "changes_by_trace", "drew_random_numbers", "plain_values"]

_DEPTH = 4
_MOST_ITEMS, _MOST_VALUES = 50, 200
_OF_KERAS = ("built", "stop_training")  # set by Keras itself

_LARGEST_ARRAY = 64

# Task -> path -> value after the last trace, of what some trace has changed.
_told: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def plain_values(task: Any) -> dict[str, Any]:
    """Path -> number or string, among the attributes of a task, of its models, and of plain objects, lists and dicts in them.

    Of a list or dict the length is one of the values. The first 200 are taken, because this is looked at again and again.

    Example:
        >>> import types
        >>> plain_values(types.SimpleNamespace(rate=0.5, state={"n": 1}, layers=["a"]))
        {'rate': 0.5, 'state.n': 1, 'len(state)': 1, 'layers.0': 'a', 'len(layers)': 1}
    """
    return dict(itertools.islice(_values(task, "", _DEPTH, {id(task)}), _MOST_VALUES))


def before_trace(task: Any) -> dict[str, Any]:
    """What `changes_by_trace` compares: plain values, small arrays, and the states of NumPy's random numbers.

    Hooks may well change arrays that no step uses, so they are not among the values that are looked at again and again.
    """
    found = plain_values(task)
    for name, value in vars(task).items():
        if isinstance(value, np.ndarray) and value.size <= _LARGEST_ARRAY:
            found[name] = value.tolist()
        elif isinstance(value, (collections.deque, set)):
            found[f"len({name})"] = len(value)
        elif isinstance(value, (np.random.Generator, np.random.RandomState)):
            found[_DRAWN + f"self.{name}"] = _state_of(value)
    return {**found, _DRAWN + "np.random": _state_of(np.random)}


_DRAWN = "Random numbers of "


def _state_of(source: Any) -> str:
    state = source.bit_generator.state if isinstance(source, np.random.Generator) else source.get_state(legacy=False)
    return str({name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in state["state"].items()})


def changes_by_trace(task: Any, before: Mapping[str, Any]) -> list[str]:
    """A sentence for each value that differs from `before`, what `before_trace` returned; each is told once for a task."""
    told, sentences = _told.setdefault(task, {}), []
    after = before_trace(task)
    told.update((path, after.get(path)) for path in told)
    for path, value in after.items():
        if path in before and before[path] != value and path not in told:
            told[path] = value
            if path.startswith(_DRAWN):
                sentences.append(
                    f"{path} were drawn while the step was traced. If {type(task).__name__} drew them (and no data in another thread), "
                    "every step uses the same numbers, because a traced step runs its Python code once: draw with tf.random.stateless_* "
                    "and self.seed()."
                )
                continue
            sentences.append(
                f"{type(task).__name__}.{path} changed from {before[path]!r} to {value!r} while the step was traced. A traced step runs "
                "its Python code once, not in every step: keep what changes in a tf.Variable, or use self.step."
            )
    return sentences


def drew_random_numbers(task: Any, before: Mapping[str, Any]) -> bool:
    """Whether NumPy has drawn random numbers since `before`, what `before_trace` returned: a trace holds those that it drew."""
    return any(before.get(path) != state for path, state in before_trace(task).items() if path.startswith(_DRAWN))


def changed_while_traced(task: Any) -> dict[str, Any]:
    """Path -> value after the last trace, of what a trace has changed at some time: as long as it has that value, it only counts traces."""
    return dict(_told.get(task, {}))


def _values(owner: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    items = list(_items(owner))
    for name, value in items[:_MOST_ITEMS]:
        inner = f"{path}.{name}" if path else str(name)
        if isinstance(value, (bool, int, float, str, np.generic)):
            yield inner, value
        elif depth and id(value) not in seen and _is_plain(value):
            seen.add(id(value))
            yield from _values(value, inner, depth - 1, seen)
            if isinstance(value, (list, Mapping)):
                yield f"len({inner})", len(value)


def _items(owner: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(owner, Mapping):
        yield from owner.items()
    elif isinstance(owner, (list, tuple)):
        yield from enumerate(owner)
    elif isinstance(owner, keras.layers.Layer):
        yield from (
            (n, v) for n, v in vars(owner).items() if not n.startswith("_") and n not in _OF_KERAS and isinstance(v, (int, float, str))
        )
    else:
        yield from vars(owner).items()


def _is_plain(value: Any) -> bool:
    """Whether a value is a container or an object of the user's own class."""
    if isinstance(value, (list, tuple, dict)):
        return True
    if isinstance(value, (type, tf.Variable, keras.Variable, np.ndarray)) or not hasattr(value, "__dict__") or callable(value):
        return isinstance(value, keras.layers.Layer) and _is_users(value)
    return _is_users(value)


def _is_users(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] not in ("builtins", "keras", "tensorflow", "numpy", "loops", "layers", "functools")
