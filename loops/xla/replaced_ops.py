"""Functions of TensorFlow replaced, while the step of an XLA program for a CPU is traced, by ones that XLA compiles well.

Layers of Keras and steps of users call ops through Python functions of TensorFlow. Those that XLA:CPU makes slow programs of (a dense
network with random numbers ran at a tenth of its speed, one with convolutions at a thirtieth) are replaced for the time of a trace, by what
`random.py`, `convolutions.py` and `pooling.py` have in their place. Under XLA that is done which they have; if what was
traced is called from a graph, TensorFlow's kernel is.

Only functions that look as they did in TensorFlow 2.21 are replaced. The others stay as they are: slow, but right.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.xla import convolutions, pooling, random

__all__ = ["FastOps", "replaceable"]

Function = Callable[..., Any]

# A replacement is called with the function that it replaces, a function `choose` (see `_chosen_by_compiler`) and all arguments by name.
_KNOWN: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    **random.REPLACEMENTS,
    **convolutions.REPLACEMENTS,
    **pooling.REPLACEMENTS,
}

_here = threading.local()
_lock = threading.Lock()
_entered = 0
_replaced: list[tuple[Any, str, Function]] = []


class FastOps:
    """While it is entered, this thread traces ops into a form that is fast under XLA on a CPU.

    It may be entered in several threads at once, and within itself. Where there is a GPU or TPU nothing is replaced.

    Example:
        >>> import tensorflow as tf
        >>> def noise():
        ...     with FastOps():
        ...         return tf.random.stateless_uniform([5], seed=[1, 2])
        >>> bool(tf.reduce_all(tf.function(noise, jit_compile=True)() == tf.random.stateless_uniform([5], seed=[1, 2])))
        True
    """

    def __enter__(self) -> FastOps:
        global _entered
        with _lock:
            if _entered == 0 and not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
                _replace()
            _entered += 1
        _here.depth = getattr(_here, "depth", 0) + 1
        return self

    def __exit__(self, *exception: object) -> None:
        global _entered
        _here.depth -= 1
        with _lock:
            _entered -= 1
            if _entered == 0:
                _put_back()


def replaceable() -> dict[str, bool]:
    """For each function that has a replacement, whether TensorFlow still has it, with the parameters that it had."""
    return {name: _found(module, name) is not None for module, name in _KNOWN}


def _found(module: str, name: str) -> tuple[Any, Function] | None:
    """The module and the function in it, or None if it is not what is expected."""
    home = _private_api.op_module(module)
    try:
        function = getattr(home, name)
        parameters = tuple(inspect.signature(function).parameters)
    except (AttributeError, TypeError, ValueError):
        return None
    return (home, function) if parameters == _KNOWN[module, name][0] else None


def _replace() -> None:
    for (module, name), (_, replacement) in _KNOWN.items():
        found = _found(module, name)
        if found is not None:
            home, stock = found
            _replaced.append((home, name, stock))
            setattr(home, name, _switch(stock, replacement))


def _put_back() -> None:
    while _replaced:
        setattr(*_replaced.pop())


def _switch(stock: Function, replacement: Function) -> Function:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def op(*args: Any, **kwargs: Any) -> Any:
        if not _wanted() or _has_tangents([*args, *kwargs.values()]):
            return stock(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        with tf.name_scope(given.arguments.pop("name") or stock.__name__):
            return replacement(stock, _chosen_by_compiler, **given.arguments)

    return op


def _wanted() -> bool:
    """Whether this thread traces what will be in a program; initial values of variables are drawn eagerly."""
    return getattr(_here, "depth", 0) > 0 and not tf.executing_eagerly() and not _is_vectorized()


def _is_vectorized() -> bool:
    """Whether `tf.vectorized_map` or a Jacobian traces this: they rewrite what was traced, and have no rule for `DeviceIndex`."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if any(part.startswith("loop_body") for part in graph.get_name_scope().split("/")):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _has_tangents(values: Any) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches one of the values: it does not go through conditionals."""
    tensors = [value for value in values if isinstance(value, tf.Tensor)]
    return bool(tensors) and _private_api.have_tangents(tensors)


def _chosen_by_compiler(stock: Function, fast: Function) -> Any:
    """What `fast` returns where XLA compiles it, what `stock` returns elsewhere.

    A `tf.function` within the step keeps its trace, and may be called from a graph later.
    """
    if _is_vectorized():  # a gradient of what was replaced outside
        return stock()
    # To XLA devices have no names: it takes the default, and drops the rest.
    return tf.switch_case(tf.raw_ops.DeviceIndex(device_names=["CPU"]), {0: stock}, default=fast)
