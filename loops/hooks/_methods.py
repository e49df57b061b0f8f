"""Checks the methods of a hook: one that is named, or takes its arguments, as in a Keras callback would never be called, or get others."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from loops.hooks.base import Hook
from loops.messages import warn
from loops.user_errors.near_names import did_you_mean

__all__ = ["check_hook"]

_HOW_HERE = {
    "on_train_batch_begin": "on_window_end(self, loop, window) with every = '1 step'",
    "on_train_batch_end": "on_window_end(self, loop, window) with every = '1 step'",
    "on_batch_begin": "on_window_end(self, loop, window) with every = '1 step'",
    "on_batch_end": "on_window_end(self, loop, window) with every = '1 step'",
    "on_test_begin": "on_evaluate_begin(self, loop, name)",
    "on_test_end": "on_evaluate_end(self, loop, name, logs)",
    "on_test_batch_begin": "on_evaluate_batch(self, batch, logs, last)",
    "on_test_batch_end": "on_evaluate_batch(self, batch, logs, last)",
}
_DERIVE = "or derive the class from keras.callbacks.Callback, which loops takes too"


def check_hook(item: Any) -> None:
    """Checks that something is a hook or a Keras callback that will be called as it expects.

    Raises:
        TypeError: if it is not.
    """
    if isinstance(item, type):
        kind = "hook" if issubclass(item, Hook) else "callback" if issubclass(item, keras.callbacks.Callback) else "hook or callback"
        raise TypeError(f"`hooks` lists the class {item.__name__}, not a {kind}: write {item.__name__}(...), with its arguments.")
    if isinstance(item, Hook):
        _check_methods(item)
    elif not isinstance(item, keras.callbacks.Callback):
        methods = sorted(name for name in dir(item) if name.startswith("on_"))
        also = f" It has {methods[0]}, so derive its class from one of these." if methods else ""
        raise TypeError(f"A hook must be a loops.hooks.Hook or a keras.callbacks.Callback object; got {item!r}.{also}")


def _check_methods(hook: Hook) -> None:
    if _is_ours(type(hook)):
        return
    ours = {name for kind in type(hook).__mro__ if _is_ours(kind) for name in vars(kind)}
    kind = type(hook).__name__
    if isinstance(hook, keras.callbacks.Callback):
        raise TypeError(
            f"{kind} is a loops.hooks.Hook and a keras.callbacks.Callback, which get other arguments: derive it from one of them."
        )
    for name in sorted(name for name in dir(hook) if name.startswith("on_") and callable(getattr(hook, name))):
        if name not in ours and hasattr(keras.callbacks.Callback, name):
            here = f"write {_HOW_HERE[name]}, " if name in _HOW_HERE else ""
            raise TypeError(f"{kind} has the method {name} of a Keras callback, which is never called on a hook: {here}{_DERIVE}.")
        if name not in ours and (near := did_you_mean(name, [one for one in ours if one.startswith("on_")])):
            warn(f"Warning: {kind}.{name} is no method of a hook, so the loop does not call it.{near}")
        if name in ours and hasattr(Hook, name):
            _check_arguments(hook, kind, name)


def _check_arguments(hook: Hook, kind: str, name: str) -> None:
    wanted = list(inspect.signature(getattr(Hook, name)).parameters)[1:]
    try:
        signature = inspect.signature(getattr(hook, name))
    except (TypeError, ValueError):
        return
    takes = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    as_in_keras = wanted[0] == "loop" and takes[:1] in (["epoch"], ["logs"], ["batch"])
    try:
        signature.bind(*wanted)
    except TypeError:
        fits = False
    else:
        fits = not as_in_keras
    if not fits:
        given = f"{name}(self, {', '.join(takes)})" if takes else f"{name}(self)"
        raise TypeError(f"{kind} has {given}, but a hook's is {name}(self, {', '.join(wanted)}): write that, {_DERIVE}.")


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == Hook.__module__.split(".")[0]
