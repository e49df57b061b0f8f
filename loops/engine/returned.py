"""Checks of what a step returned: names, and values that can become a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops.tasks.reductions import Collect, Reduction

__all__ = ["checked_logs"]


def checked_logs(returned: Any, who: str, *, collects: bool) -> dict[str, Any]:
    """What a step returned.

    Args:
        returned: anything.
        who: the step, for the sentence.
        collects: whether it may return `loops.Collect`.

    Raises:
        TypeError: if it is no dict from names to scalars.

    Example:
        >>> checked_logs({"loss": None}, "MyTask.train_step", collects=False)
        Traceback (most recent call last):
            ...
        TypeError: MyTask.train_step returned {'loss': None}; 'loss' has to be a scalar: leave it out if there is none.
    """
    if not isinstance(returned, Mapping):
        raise TypeError(f"{who} returned {_kind(returned)}; it has to return a dict of scalars, such as {{'loss': loss}}.")
    if bad := [name for name in returned if not isinstance(name, str)]:
        raise TypeError(f"{who} returned the keys {bad}; names of logs must be strings, as in {{'loss': loss}}.")
    for name, entry in returned.items():
        if isinstance(entry, Collect) and not collects:
            raise TypeError(f"{who} returned {name!r} as loops.Collect, which is for eval_step; return a scalar, or self.observe it.")
        values = [entry.value, entry.weight] if isinstance(entry, Reduction) else [entry]
        for value in values[: 1 if values[-1] is None and len(values) == 2 else 2]:
            if (advice := _advice(value)) is not None:
                raise TypeError(f"{who} returned {{{name!r}: {_shown(entry)}}}; {name!r} has to be a scalar: {advice}.")
    return dict(returned)


def _advice(value: Any) -> str | None:
    """What to do about a value that is no number; None for one that is."""
    if value is None:
        return "leave it out if there is none"
    if isinstance(value, (str, bytes)) or (tf.is_tensor(value) and value.dtype == tf.string):
        return "text is for a hook to log, by loop.log"
    if isinstance(value, Mapping):
        return "give each of its values a name of its own"
    if isinstance(value, (list, tuple, set)):
        return "reduce it, as in tf.reduce_mean"
    if isinstance(value, type):
        return "make an object of the class"
    numbers = (int, float, np.ndarray, np.generic, keras.Variable, tf.Variable, keras.metrics.Metric, Collect)
    if tf.is_tensor(value) or isinstance(value, numbers):
        return None
    if callable(value):
        return "call it, and return the result"
    return None if hasattr(value, "__array__") or hasattr(value, "__tf_tensor__") else "convert it to a number"


def _shown(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 60 and "\n" not in text else _kind(entry)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
