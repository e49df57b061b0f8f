"""Checks of what `Task.minimize` and `Task.apply_gradients` are given: Python's own sentence would be about an attribute of a string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from loops.user_errors.near_names import did_you_mean

__all__ = ["check_gradients", "check_minimize", "check_optimizer"]


def check_minimize(loss: Any, tape: Any, optimizer: Any, variables: Any) -> list[Any]:
    """Checks the arguments of `Task.minimize`; returns the variables as a list.

    Raises:
        TypeError: if they are in another order, or one of them is something else.
    """
    given = (loss, tape, optimizer, variables)
    if _is_tape(loss) or _is_optimizer(tape) or _is_optimizer(variables) or (_is_tape(optimizer) and not _is_tape(tape)):
        raise TypeError(
            "minimize takes (loss, tape, optimizer, variables) in this order; "
            f"got ({', '.join(map(_kind, given))}): give them in that order."
        )
    if not _is_tape(tape):
        raise TypeError(f"`tape` of minimize must be the tf.GradientTape that recorded the loss; got {_kind(tape)}.")
    check_optimizer(optimizer)
    return _checked_variables(variables)


def check_gradients(gradients: Any, variables: Any, optimizer: Any) -> tuple[list[Any], list[Any]]:
    """Checks the arguments of `Task.apply_gradients`; returns gradients and variables as lists.

    Raises:
        TypeError: if they are in another order, or one of them is something else.
        ValueError: if there are not as many gradients as variables.
    """
    order = "apply_gradients takes (grads, variables, optimizer) in this order"
    if _is_optimizer(gradients) or _is_optimizer(variables):
        raise TypeError(f"{order}; got ({', '.join(map(_kind, (gradients, variables, optimizer)))}): give them in that order.")
    check_optimizer(optimizer)
    gradients = [gradients] if tf.is_tensor(gradients) else list(gradients)
    if gradients and all(isinstance(pair, tuple) and len(pair) == 2 for pair in gradients):
        raise TypeError(f"{order}; got pairs of both, as Keras takes them: give the gradients and the variables apart.")
    if gradients and all(_is_variable(one) for one in gradients):
        raise TypeError(f"{order}; the first argument holds variables: give the gradients first.")
    variables = _checked_variables(variables)
    if len(gradients) != len(variables):
        raise ValueError(f"apply_gradients was given {len(gradients)} gradients for {len(variables)} variables; it takes one for each.")
    return gradients, variables


def check_optimizer(optimizer: Any) -> None:
    """Checks that something is an optimizer.

    Raises:
        TypeError: if it is not.
    """
    if _is_optimizer(optimizer):
        return
    hold = "make an optimizer once, in the task's constructor, as in self.optimizer = keras.optimizers.SGD(0.1)"
    if isinstance(optimizer, str):
        near = did_you_mean(optimizer, [n.lower() for n in dir(keras.optimizers) if n[0].isupper()]) if not _known(optimizer) else ""
        raise TypeError(f"`optimizer` must be a keras optimizer, not its name {optimizer!r}: {hold}.{near}")
    raise TypeError(f"`optimizer` must be a keras optimizer; got {_kind(optimizer)}: {hold}.")


def _checked_variables(variables: Any) -> list[Any]:
    wanted = "`variables` must be a list of variables, such as model.trainable_variables"
    if isinstance(variables, keras.layers.Layer):
        raise TypeError(f"{wanted}; got the {'model' if isinstance(variables, keras.Model) else 'layer'} {variables.name!r}.")
    if callable(variables) and not _is_variable(variables):
        raise TypeError(f"{wanted}; got the {_kind(variables)} {getattr(variables, '__name__', '')!r}.")
    if _is_variable(variables):
        return [variables]
    if not isinstance(variables, Sequence) or isinstance(variables, str):
        try:
            variables = list(variables)
        except TypeError:
            raise TypeError(f"{wanted}; got {_kind(variables)}.") from None
    if bad := [one for one in variables if not _is_variable(one)]:
        raise TypeError(f"{wanted}; got {_kind(bad[0])} among them.")
    return list(variables)


def _known(name: str) -> bool:
    return name.lower() in {n.lower() for n in dir(keras.optimizers)}


def _is_tape(value: Any) -> bool:
    return isinstance(value, tf.GradientTape) or callable(getattr(value, "gradient", None))


def _is_optimizer(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "apply_gradients", None)) and hasattr(value, "built")


def _is_variable(value: Any) -> bool:
    return isinstance(value, (keras.Variable, tf.Variable)) or (hasattr(value, "assign") and hasattr(value, "dtype"))


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if tf.is_tensor(value) and not _is_variable(value):
        return "a tensor"
    return type(value).__name__
