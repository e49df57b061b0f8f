"""What is not public and says which variables a step uses, and whether it draws random numbers from hidden state.

All of it is optional: without these names it is not seen which variables an eager step uses, nor noticed that one draws random numbers so.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from loops._private_api.names import COLLECTIVES, GLOBAL_STATE, OPTIONAL, RANDOM_SEEDS, VARIABLES, WRAPPERS, missing, module


@contextlib.contextmanager
def uses_of_variables(noticed: Callable[[Any], object], *, traces: bool = False) -> Iterator[None]:
    """Within this context `noticed(variable)` is called before each operation on a plain TensorFlow variable, in any thread.

    The operations that a `tf.function` holds do not ask the variable again; of these the variables are noticed when the function is called.

    Args:
        noticed: gets the variable.
        traces: whether a function is traced in the context.
    """
    variables = module(VARIABLES)
    if missing({VARIABLES: OPTIONAL[VARIABLES]}):
        yield
        return
    kind, results = variables.BaseResourceVariable, variables._UnreadVariable  # what assigning returns stands for the variable
    of_variable, of_function = kind.handle, variables.variable_accessed

    def handle(variable: Any) -> Any:
        if not isinstance(variable, results) and sys._getframe(1).f_globals.get("__name__") != COLLECTIVES:
            noticed(variable)
        return of_variable.fget(variable)

    def accessed(variable: Any) -> None:
        if isinstance(variable, kind) and not isinstance(variable, results):
            noticed(variable)
        of_function(variable)

    kind.handle, variables.variable_accessed = property(handle), accessed
    try:
        # A function that is called eagerly says what it uses only while a tape listens. This one watches nothing.
        with contextlib.nullcontext() if traces else tf.GradientTape(watch_accessed_variables=False):
            yield
    finally:
        kind.handle, variables.variable_accessed = of_variable, of_function


@contextlib.contextmanager
def hidden_draws(noticed: Callable[[], None]) -> Iterator[None]:
    """Within this context `noticed()` is called when an operation is made that draws from hidden random state."""
    seeds = module(RANDOM_SEEDS)
    if missing({RANDOM_SEEDS: OPTIONAL[RANDOM_SEEDS]}):
        yield
        return
    original = seeds.get_seed

    def get_seed(seed: Any) -> Any:
        noticed()
        return original(seed)

    seeds.get_seed = get_seed
    try:
        yield
    finally:
        seeds.get_seed = original


def global_seed_generator() -> Any:
    """The seed generator that Keras uses where none is given; None if none was needed yet."""
    return getattr(module(GLOBAL_STATE), "get_global_attribute", lambda name: None)("global_seed_generator")


def is_global_seed(variable: Any) -> bool:
    """Whether this is the state of the seed generator that Keras uses where none is given; `variable` is a plain TensorFlow variable."""
    value = getattr(getattr(global_seed_generator(), "state", None), "value", None)
    return value is variable or any(copy is variable for copy in getattr(value, "values", ()))


def wraps_container(kind: type) -> bool:
    """Whether objects of this class stand for a dict or a tuple, which TensorFlow put into them, without being one."""
    wrappers = module(WRAPPERS)
    return issubclass(kind, tuple(getattr(wrappers, name) for name in OPTIONAL[WRAPPERS] if hasattr(wrappers, name)))


def is_trackable_object(kind: type) -> bool:
    """Whether TensorFlow made the class for objects that hold variables by attributes, such as loaded models and checkpoints."""
    return issubclass(kind, getattr(tf.__internal__.tracking, "AutoTrackable", ()))
