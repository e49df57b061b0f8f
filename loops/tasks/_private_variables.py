"""Names that are not public and say which variables a step uses; `loops/_private_api.py` has all others, and the checks.

All of these are optional: without them it is not seen which variables an eager step uses, and it is not noticed that one draws random
numbers from hidden state.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["hidden_draws", "is_global_seed", "is_trackable_object", "uses_of_variables", "wraps_container"]

_VARIABLES = "tensorflow.python.ops.resource_variable_ops"
_SEEDS = "tensorflow.python.framework.random_seed"
# It keeps collectives in order by variables of its own, whose values mean nothing.
_COLLECTIVES = "tensorflow.python.distribute.cross_device_utils"
_WRAPPERS = "tensorflow.python.trackable.data_structures"
_GLOBAL_STATE = "keras.src.backend.common.global_state"

OPTIONAL: dict[str, tuple[str, ...]] = {
    _VARIABLES: ("BaseResourceVariable", "variable_accessed", "_UnreadVariable"),
    _SEEDS: ("get_seed",),
    _WRAPPERS: ("_DictWrapper", "_TupleWrapper"),
    _GLOBAL_STATE: ("get_global_attribute",),
    "tensorflow.__internal__.tracking": ("AutoTrackable",),
}


@contextlib.contextmanager
def uses_of_variables(noticed: Callable[[Any], object], *, traces: bool = False) -> Iterator[None]:
    """Within this context `noticed(variable)` is called before each operation on a plain TensorFlow variable, in any thread.

    The operations that a `tf.function` holds do not ask the variable again; of these the variables are noticed when the function is called.

    Args:
        noticed: gets the variable.
        traces: whether a function is traced in the context.
    """
    module = _private_api.op_module(_VARIABLES)
    if _private_api.missing({_VARIABLES: OPTIONAL[_VARIABLES]}):
        yield
        return
    kind, results = module.BaseResourceVariable, module._UnreadVariable  # what assigning returns stands for the variable
    of_variable, of_function = kind.handle, module.variable_accessed

    def handle(variable: Any) -> Any:
        if not isinstance(variable, results) and sys._getframe(1).f_globals.get("__name__") != _COLLECTIVES:
            noticed(variable)
        return of_variable.fget(variable)

    def accessed(variable: Any) -> None:
        if isinstance(variable, kind) and not isinstance(variable, results):
            noticed(variable)
        of_function(variable)

    kind.handle, module.variable_accessed = property(handle), accessed
    try:
        # A function that is called eagerly says what it uses only while a tape listens. This one watches nothing.
        with contextlib.nullcontext() if traces else tf.GradientTape(watch_accessed_variables=False):
            yield
    finally:
        kind.handle, module.variable_accessed = of_variable, of_function


@contextlib.contextmanager
def hidden_draws(noticed: Callable[[], None]) -> Iterator[None]:
    """Within this context `noticed()` is called when an operation is made that draws from hidden random state."""
    module = _private_api.op_module(_SEEDS)
    if _private_api.missing({_SEEDS: OPTIONAL[_SEEDS]}):
        yield
        return
    original = module.get_seed

    def get_seed(seed: Any) -> Any:
        noticed()
        return original(seed)

    module.get_seed = get_seed
    try:
        yield
    finally:
        module.get_seed = original


def is_global_seed(variable: Any) -> bool:
    """Whether this is the state of the seed generator that Keras uses where none is given; `variable` is a plain TensorFlow variable."""
    module = _private_api.op_module(_GLOBAL_STATE)
    generator = getattr(module, "get_global_attribute", lambda name: None)("global_seed_generator")
    value = getattr(getattr(generator, "state", None), "value", None)
    return value is variable or any(copy is variable for copy in getattr(value, "values", ()))


def wraps_container(kind: type) -> bool:
    """Whether objects of this class stand for a dict or a tuple, which TensorFlow put into them, without being one."""
    module = _private_api.op_module(_WRAPPERS)
    return issubclass(kind, tuple(getattr(module, name) for name in OPTIONAL[_WRAPPERS] if hasattr(module, name)))


def is_trackable_object(kind: type) -> bool:
    """Whether TensorFlow made the class for objects that hold variables by attributes, such as loaded models and checkpoints."""
    return issubclass(kind, getattr(tf.__internal__.tracking, "AutoTrackable", ()))
