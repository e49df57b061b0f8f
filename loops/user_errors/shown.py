"""How objects present themselves: their class and the arguments that matter, in one line."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["call_text"]

_LONGEST = 60
_ALWAYS = ("monitor",)  # which is what a hook is about
_SECRET = ("headers",)
_PATH_OF_URL = re.compile(r"(https?://)[^'\"]+")


def call_text(thing: Any) -> str:
    """The call that makes an object like this one, as far as its attributes have the names of the arguments; defaults are left out.

    Example:
        >>> class Fade:
        ...     def __init__(self, steps, to=0.0):
        ...         self.steps, self.to = steps, to
        >>> call_text(Fade(10)), call_text(Fade(10, to=0.5))
        ('Fade(steps=10)', 'Fade(steps=10, to=0.5)')
    """
    try:
        parameters = list(inspect.signature(type(thing).__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        parameters = []
    given = []
    for parameter in parameters:
        value = vars(thing).get(parameter.name, parameter.default)
        if value is not parameter.empty and (parameter.name in _ALWAYS or not _same(value, parameter.default)):
            given.append(f"{parameter.name}={_text(parameter.name, value)}")
    return f"{type(thing).__name__}({', '.join(given)})"


def _text(name: str, value: Any) -> str:
    text = repr(value)
    if name in _SECRET or len(text) > _LONGEST or "\n" in text:
        return f"<{type(value).__name__}>"
    return _PATH_OF_URL.sub(r"\1...", text)  # where a message goes to may be a secret


def _same(value: Any, default: Any) -> bool:
    if value is default or (not isinstance(value, (bool, int, float)) and not default and _is_empty(value)):
        return True
    try:
        return bool(value == default) or repr(value) == repr(default)
    except Exception:  # arrays, and whatever else cannot be compared
        return False


def _is_empty(value: Any) -> bool:
    return isinstance(value, (str, tuple, list, dict, set, frozenset)) and not value
