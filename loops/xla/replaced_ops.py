"""Replaces functions of TensorFlow, while the step of an XLA program for a CPU is traced, by ones that XLA compiles to fast programs.

Layers of Keras and steps of users call ops through Python functions of TensorFlow. XLA:CPU compiles some of these to slow programs: a dense
network with random numbers ran at a tenth of its speed, one with convolutions at a thirtieth. While a step is traced, the functions in
`random.py`, `convolutions.py` and `pooling.py` replace them. XLA compiles the replacement; in a plain graph TensorFlow's kernel runs.

Only functions with the parameters that they have in TensorFlow 2.21 are replaced. The others stay as they are: slow, but correct.
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

# A replacement gets the function that it replaces, a function `choose` (see `_chosen_by_compiler`), and all arguments by name.
_REPLACEMENTS: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    **random.REPLACEMENTS,
    **convolutions.REPLACEMENTS,
    **pooling.REPLACEMENTS,
}

_local = threading.local()
_lock = threading.Lock()
_entered = 0
_replaced: list[tuple[Any, str, Function]] = []


class FastOps:
    """While it is entered, this thread traces ops into a form that is fast under XLA on a CPU.

    Several threads may enter it at once, and it may be nested. If there is a GPU or TPU, nothing is replaced.

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
        _local.depth = getattr(_local, "depth", 0) + 1
        return self

    def __exit__(self, *exception: object) -> None:
        global _entered
        _local.depth -= 1
        with _lock:
            _entered -= 1
            if _entered == 0:
                _put_back()


def replaceable() -> dict[str, bool]:
    """Name of each function with a replacement -> whether TensorFlow has it, with the expected parameters."""
    return {name: _found(module, name) is not None for module, name in _REPLACEMENTS}


def _found(module: str, name: str) -> tuple[Any, Function] | None:
    """The module and the function in it; None if there is none with the expected parameters."""
    home = _private_api.op_module(module)
    try:
        function = getattr(home, name)
        parameters = tuple(inspect.signature(function).parameters)
    except (AttributeError, TypeError, ValueError):
        return None
    return (home, function) if parameters == _REPLACEMENTS[module, name][0] else None


def _replace() -> None:
    for (module, name), (_, replacement) in _REPLACEMENTS.items():
        found = _found(module, name)
        if found is not None:
            home, original = found
            _replaced.append((home, name, original))
            setattr(home, name, _with_replacement(original, replacement))


def _put_back() -> None:
    while _replaced:
        setattr(*_replaced.pop())


def _with_replacement(original: Function, replacement: Function) -> Function:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def op(*args: Any, **kwargs: Any) -> Any:
        if not _traces_for_program() or _has_tangents([*args, *kwargs.values()]):
            return original(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        with tf.name_scope(given.arguments.pop("name") or original.__name__):
            return replacement(original, _chosen_by_compiler, **given.arguments)

    return op


def _traces_for_program() -> bool:
    """Whether this thread traces ops for a program. Initial values of variables are not traced, but computed eagerly."""
    return getattr(_local, "depth", 0) > 0 and not tf.executing_eagerly() and not _is_vectorized()


def _is_vectorized() -> bool:
    """Whether `tf.vectorized_map` or a Jacobian traces this: they rewrite the traced graph, and have no rule for `DeviceIndex`."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if any(part.startswith("loop_body") for part in graph.get_name_scope().split("/")):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _has_tangents(values: Any) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches one of the values: it does not support conditionals."""
    tensors = [value for value in values if isinstance(value, tf.Tensor)]
    return bool(tensors) and _private_api.have_tangents(tensors)


def _chosen_by_compiler(original: Function, fast: Function) -> Any:
    """The result of `fast` where XLA compiles it, and of `original` elsewhere.

    The choice is made in the graph, because a `tf.function` within the step keeps its trace and may be called from a plain graph later.
    """
    if _is_vectorized():  # the gradient of an op that was replaced outside of the vectorized function
        return original()
    # XLA knows no device names: it takes the default branch and drops the other.
    return tf.switch_case(tf.raw_ops.DeviceIndex(device_names=["CPU"]), {0: original}, default=fast)
