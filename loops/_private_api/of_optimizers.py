"""What of Keras's optimizers is not public: their variables, the place of each, their update steps, clipping and accumulation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras


def variables_to_update(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer was built for."""
    return optimizer._trainable_variables


def is_built_for(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Whether an optimizer that is built can update the variable, a Keras or a TensorFlow variable."""
    return optimizer._var_key(variable) in optimizer._trainable_variables_indices


def forget_what_it_was_built_for(optimizer: keras.optimizers.Optimizer, slots: Sequence[keras.Variable]) -> None:
    """Makes an optimizer one that is not built.

    Args:
        optimizer: the optimizer.
        slots: the variables that it made when it was built; they are taken from its list of variables.
    """
    for slot in slots:
        optimizer._untrack_variable(slot)
    optimizer._trainable_variables_indices.clear()
    optimizer.built = False


def own_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables of an optimizer in the order in which it made them, without those of an optimizer inside it."""
    return list(optimizer._variables)


@contextlib.contextmanager
def slots_from(optimizer: keras.optimizers.Optimizer, make: Callable[..., keras.Variable]) -> Iterator[None]:
    """Within this context the optimizer takes its slots from `make(reference_variable, name=None, initializer="zeros")`.

    What `make` returns is added to the variables of the optimizer, unless `make` did that.
    """

    def tracked(reference_variable: Any, name: Any = None, initializer: Any = "zeros") -> keras.Variable:
        count = len(optimizer._variables)
        slot = make(reference_variable, name=name, initializer=initializer)
        if len(optimizer._variables) == count:
            optimizer._track_variable(slot)
        return slot

    vars(optimizer)["add_variable_from_reference"] = tracked  # not by setattr: Keras would track it
    try:
        yield
    finally:
        del vars(optimizer)["add_variable_from_reference"]


def learning_rate_setting(optimizer: keras.optimizers.Optimizer) -> Any:
    """What the learning rate comes from: a variable, a schedule or a callable. The public attribute gives the current value instead."""
    return optimizer._learning_rate


def place_of(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> int:
    """The index of a variable in the lists of the optimizer's slots."""
    return optimizer._get_variable_index(variable)


def adam_slots(optimizer: keras.optimizers.Adam, index: int) -> tuple[keras.Variable, keras.Variable]:
    """First and second moment of the variable with that index."""
    return optimizer._momentums[index], optimizer._velocities[index]


def update_step_of(optimizer: keras.optimizers.Optimizer) -> Callable[[Sequence[Any], Sequence[Any], Any], None]:
    """What the optimizer calls to update variables: (gradients, variables, learning rate)."""
    return optimizer._backend_update_step


@contextlib.contextmanager
def update_step_replaced(
    optimizer: keras.optimizers.Optimizer, step: Callable[[Sequence[Any], Sequence[Any], Any], None]
) -> Iterator[None]:
    """Within this context the optimizer calls `step` in place of `update_step_of(optimizer)`."""
    vars(optimizer)["_backend_update_step"] = step  # not by setattr: Keras would track it
    try:
        yield
    finally:
        del vars(optimizer)["_backend_update_step"]


@contextlib.contextmanager
def clipping_replaced(optimizer: keras.optimizers.Optimizer, clip: Callable[[Sequence[Any]], Sequence[Any]]) -> Iterator[None]:
    """Within this context the optimizer calls `clip` in place of its own clipping, on gradients that it has accumulated."""
    vars(optimizer)["_clip_gradients"] = clip
    try:
        yield
    finally:
        del vars(optimizer)["_clip_gradients"]


def own_clipping_of(optimizer: keras.optimizers.Optimizer) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What the optimizer clips gradients with."""
    return optimizer._clip_gradients


def accumulators_of(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The sums of gradients of an optimizer with `gradient_accumulation_steps`, one for each of `variables_to_update`."""
    return optimizer._accumulated_gradients


def counter_of(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable that counts the calls of the optimizer. `iterations` counts updates, which are fewer if it accumulates gradients."""
    return optimizer._iterations


@contextlib.contextmanager
def reduction_off(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within this context the optimizer takes its gradients for sums over all replicas; the replicas' threads take turns in it."""
    vars(optimizer)["_all_reduce_sum_gradients"] = list  # not by setattr: Keras would track it
    try:
        yield
    finally:
        vars(optimizer).pop("_all_reduce_sum_gradients", None)


@contextlib.contextmanager
def accumulation_off(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Within this context the optimizer, which keeps no average of the weights, updates variables at every call.

    The threads of several replicas may enter it at a time. Each has called the optimizer by the time that another one leaves.
    """

    def apply_at_once(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        gradients = optimizer._clip_gradients(gradients)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)

    vars(optimizer)["_backend_apply_gradients"] = apply_at_once
    try:
        yield
    finally:
        vars(optimizer).pop("_backend_apply_gradients", None)
