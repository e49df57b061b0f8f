"""What classes and functions of the user's hold and read: a trace may have taken any of it for constant. For `python_inputs.py`."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from loops.tasks.input_kinds import is_users, is_users_module

__all__ = ["bases_of", "held_by_class", "parts_of_function"]


def bases_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The class and its bases, in the order in which Python looks for attributes."""
    return ((str(place), base) for place, base in enumerate(kind.__mro__))


def held_by_class(kind: type) -> Iterator[tuple[str, Any]]:
    """What a class holds itself: its functions, and values that its objects share."""
    return ((name, item) for name, item in list(vars(kind).items()) if not (name.startswith("__") and name != "__call__"))


def parts_of_function(function: Any) -> Iterable[tuple[str, Any]]:
    """What a function, a method or a wrapper of one holds and reads; nothing of functions that are not the user's."""
    if isinstance(function, types.MethodType):
        return [("__self__", function.__self__), ("__func__", function.__func__)]
    if isinstance(function, functools.partial):
        return [("func", function.func), ("args", function.args), ("keywords", function.keywords)]
    if isinstance(function, (staticmethod, classmethod)):
        return [("__func__", function.__func__)]
    if isinstance(function, property):
        return [("fget", function.fget)]
    if isinstance(function, functools.cached_property):
        return [("func", function.func)]
    return _read_by(function) if is_users(function) else []


def _read_by(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function of the user's reads beside its arguments: its code, defaults, closure, globals, and what it names of modules."""
    yield "code", function.__code__
    yield "defaults", function.__defaults__
    yield "keyword defaults", function.__kwdefaults__
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # an empty cell
            continue
    names = _names_in(function.__code__)
    for name in names:
        if name in function.__globals__ and not isinstance(function.__globals__[name], types.ModuleType):
            yield f"globals.{name}", function.__globals__[name]
        elif isinstance(module := function.__globals__.get(name, sys.modules.get(name)), types.ModuleType):  # or imported by the function
            yield from _read_of_module(name, module, names, frozenset())


def _read_of_module(path: str, module: types.ModuleType, names: tuple[str, ...], within: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """What has one of these names in a module of the user's, and in modules in it."""
    if not is_users_module(module.__name__) or module.__name__ in within:
        return
    held, within = vars(module), within | {module.__name__}
    for name, value in ((name, held[name]) for name in names if name in held):
        if isinstance(value, types.ModuleType):
            yield from _read_of_module(f"{path}.{name}", value, names, within)
        else:
            yield f"{path}.{name}", value


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names_in(constant)))
    return tuple(names)
