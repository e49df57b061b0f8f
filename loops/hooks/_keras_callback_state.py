"""The state of Keras callbacks: what a callback remembers from one call to the next, so that a resumed run can go on with it.

For Keras's own callbacks we know the attributes that hold it. A user's callback says it by `state_dict()` and `load_state_dict(state)`, the
methods that hooks have. The state of any other callback is unknown, and `notices` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from loops import _private_api, json_values

__all__ = ["arrays_of", "class_of", "load", "load_arrays", "notices", "state_of"]

_kc = keras.callbacks
_REWRITE_ON_RESUME = (_kc.CSVLogger, _kc.TensorBoard)
_METHODS = [name for name in dir(_kc.Callback) if name.startswith("on_")]


def class_of(callback: keras.callbacks.Callback) -> str:
    """Module and name of the callback's class; a saved state is given to a callback of the same class only."""
    return f"{type(callback).__module__}.{type(callback).__qualname__}"


def state_of(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What the callback remembers, JSON-able, without the arrays; `arrays_of` returns these."""
    names = _private_api.remembering_attributes(callback)
    state: dict[str, Any] = {name: json_values.encode(getattr(callback, name)) for name in names}
    return {"attributes": state, "own": callback.state_dict() if _has_own_state(callback) else None}


def load(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    """Restores what `state_of` returned."""
    for name, value in state["attributes"].items():
        setattr(callback, name, json_values.decode(value))
    if isinstance(callback, _kc.EarlyStopping):
        callback.best_weights = None
    if state["own"] is not None and _has_own_state(callback):
        callback.load_state_dict(state["own"])


def arrays_of(callback: keras.callbacks.Callback) -> list[np.ndarray]:
    """The weights that `EarlyStopping` keeps; an empty list for other callbacks."""
    kept = callback.best_weights if isinstance(callback, _kc.EarlyStopping) else None
    return [np.asarray(array) for array in kept or []]


def load_arrays(callback: keras.callbacks.Callback, arrays: Sequence[np.ndarray]) -> None:
    """Restores what `arrays_of` returned."""
    callback.best_weights = list(arrays)


def notices(callbacks: Sequence[keras.callbacks.Callback]) -> list[str]:
    """A sentence for each kind of callback whose state or files a resumed run cannot restore."""
    unknown = [type(c).__name__ for c in callbacks if _may_remember(c) and not _has_own_state(c)]
    writing = [type(c).__name__ for c in callbacks if isinstance(c, _REWRITE_ON_RESUME)]
    sentences = []
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        what = "callback" if len(set(unknown)) == 1 else "callbacks"
        sentences.append(f"The state of the Keras {what} {names} is not part of snapshots; give it state_dict and load_state_dict.")
    if writing:
        names = " and ".join(dict.fromkeys(writing))
        sentences.append(f"Keras's {names} will begin anew, or write twice, when this run is resumed; loops.hooks has it without that.")
    return sentences


def _has_own_state(callback: Any) -> bool:
    return callable(getattr(callback, "state_dict", None)) and callable(getattr(callback, "load_state_dict", None))


def _may_remember(callback: keras.callbacks.Callback) -> bool:
    kind = type(callback)
    return not kind.__module__.startswith("keras.") and any(getattr(kind, name) is not getattr(_kc.Callback, name) for name in _METHODS)
