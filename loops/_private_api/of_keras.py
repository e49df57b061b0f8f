"""Keras's functions, methods and attributes that are not public: layers, models, metrics, callbacks, data adapters, optimizers."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops._private_api.names import (
    ADAPTER_TOOLS,
    ADAPTERS,
    ATTRIBUTES_OF_CALLBACKS,
    COMPILE_TOOLS,
    GLOBAL_STATE,
    LOSS,
    LOSS_REDUCTION,
    LOSS_SCALING,
    SAVING,
    module,
)

# Layers, models and metrics.

# What `keras.Model` gets `fit` from. Keras's own tests mix it into layers that are no `keras.Model`, and so may others.
_TRAINER = next(base for base in keras.Model.__mro__ if "fit" in vars(base))


def is_model(item: Any) -> bool:
    """Whether something is a Keras model: a layer that can be compiled and trained."""
    return isinstance(item, keras.Model) or (isinstance(item, keras.layers.Layer) and isinstance(item, _TRAINER))


def layers_within(layer: keras.layers.Layer, *, include_self: bool = True) -> list[keras.layers.Layer]:
    """A layer or model and the layers inside it, at any depth."""
    return list(layer._flatten_layers(include_self=include_self))


def takes_training(model: keras.Model) -> bool:
    """Whether the model's `call` has an argument `training`."""
    return bool(model._call_has_training_arg)


def loss_in_step(model: keras.Model, **arguments: Any) -> tf.Tensor:
    """The compiled loss, computed by the model's `compute_loss`, whatever arguments an override takes."""
    return model._compute_loss(**arguments)


def compiled_loss(loss: Any, y: Any, y_pred: Any) -> keras.losses.Loss:
    """The loss object that `compile(loss=loss)` makes for these targets and predictions, of a loss object, a name or a function."""
    return module(COMPILE_TOOLS).get_loss(loss, y, y_pred)


_scaling = threading.local()
_DEFAULTS = (("by_keras", True), ("sums", None), ("tracked", None))


@contextlib.contextmanager
def loss_scaling(*, by_keras: bool, sums: Callable[[], Any] | None = None, tracked: Callable[[Any], Any] | None = None) -> Iterator[None]:
    """Within this context, in this thread: whether Keras divides losses by the number of replicas, as it does by default.

    Where it does not, a loss is the mean over the examples of its own replica.

    Args:
        by_keras: whether Keras divides.
        sums: called for each loss whose reduction is "sum"; returns what the loss is multiplied by, None for nothing. None keeps that of
            an outer context.
        tracked: where Keras does not divide: called with the loss of an output; returns what Keras's metric of that output gets.
    """
    losses = module(LOSS)
    outer: Any = tuple(getattr(_scaling, name, default) for name, default in _DEFAULTS)
    sums = None if by_keras else sums or outer[1]
    for name in LOSS_SCALING:
        if not hasattr(getattr(losses, name), "__wrapped__"):
            setattr(losses, name, _switched_off(getattr(losses, name)))
    if not hasattr(getattr(losses, LOSS_REDUCTION), "__wrapped__"):
        setattr(losses, LOSS_REDUCTION, _with_sums_multiplied(getattr(losses, LOSS_REDUCTION)))
    _scaling.by_keras, _scaling.sums, _scaling.tracked = by_keras, sums, tracked
    try:
        yield
    finally:
        _scaling.by_keras, _scaling.sums, _scaling.tracked = outer


def keras_scales_losses() -> bool:
    """Whether Keras divides losses by the number of replicas now, in this thread."""
    return getattr(_scaling, "by_keras", True)


def _switched_off(scale: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`scale`, which returns its argument as it is in threads that have switched it off."""

    @functools.wraps(scale)
    def switch(value: Any) -> Any:
        if keras_scales_losses():
            return scale(value)
        tracked = getattr(_scaling, "tracked", None) if scale.__name__ == LOSS_SCALING[1] else None
        return value if tracked is None else tracked(value)

    return switch


def _with_sums_multiplied(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """`reduce`, with `sums` of `loss_scaling` applied."""

    @functools.wraps(reduce)
    def reduced(values: Any, sample_weight: Any = None, reduction: Any = "sum_over_batch_size") -> Any:
        loss = reduce(values, sample_weight, reduction)
        sums = getattr(_scaling, "sums", None)
        # Keras hands on what is a scalar already, whatever the reduction.
        factor = sums() if sums is not None and reduction == "sum" and tuple(values.shape) != () else None
        return loss if factor is None else loss * tf.cast(factor, loss.dtype)

    return reduced


def loss_tracker(model: keras.Model) -> Any:
    """The metric that averages the loss of a compiled model; None if it has none."""
    return getattr(model, "_loss_tracker", None)


def build_by_shapes(model: keras.Model, batch: Any) -> None:
    """Builds a compiled model with its metrics and optimizer for batches like `batch`, which may be made of type specs."""
    model._symbolic_build(data_batch=batch)


def logs_in_order(model: keras.Model, logs: Mapping[str, Any]) -> Any:
    """The values of logs as `model.evaluate` returns them without `return_dict`: a list, or the only value."""
    return model._flatten_metrics_in_order(dict(logs))


def jit_compile_setting(model: keras.Model) -> Any:
    """What `compile(jit_compile=...)` was given: True, False, "auto", or None if that is not known."""
    return getattr(model, "_jit_compile", None)


def epoch_to_begin_with(model: keras.Model) -> int | None:
    """The epoch that `keras.callbacks.BackupAndRestore` wants to begin with; None or 0 if it wants none."""
    return getattr(model, "_initial_epoch", None)


def direction_of_metric(metric: keras.metrics.Metric) -> str | None:
    """Whether a metric should go "up" or "down"; None if it does not say."""
    return getattr(metric, "_direction", None)


def does_nothing(method: Callable[..., Any]) -> bool:
    """Whether a method of a callback is the empty one of its base class."""
    return bool(getattr(method, "_is_default", False))


def remembering_attributes(callback: keras.callbacks.Callback) -> list[str]:
    """Which attributes decide how one of Keras's own callbacks goes on, those that it has."""
    names = [name for kind, names in ATTRIBUTES_OF_CALLBACKS.items() if isinstance(callback, kind) for name in names]
    return [name for name in names if hasattr(callback, name)]


def tensorflow_variable(variable: Any) -> Any:
    """The TensorFlow variable in a Keras variable, whatever scope is entered; None if it has none."""
    return getattr(variable, "_value", None)


def remember_what_is_not_saved(kinds: Iterable[str]) -> None:
    """Tells Keras's writer of weights, in this thread, which attributes of these kinds of objects are none that it saves.

    To find that out the writer makes an object of each kind, every time. It has a cache for the answer, but writes it under another name
    than it reads it.

    Raises:
        Exception: whatever comes up if Keras does this in another way now.
    """
    for kind in kinds:
        module(GLOBAL_STATE).set_global_attribute(f"saving_attr_skiplist_{kind}", module(SAVING).get_attr_skipset(kind))


# Data.


def data_adapter(**arguments: Any) -> Any:
    """Keras's adapter for whatever `model.fit` takes as data; the arguments are those of `fit`."""
    return module(ADAPTERS).get_data_adapter(**arguments)


def sample_weights_of_classes(y: Any, class_weight: Mapping[int, float]) -> Any:
    """The weight of each example by its class, computed as Keras does."""
    return module(ADAPTER_TOOLS).class_weight_to_sample_weights(y, class_weight)


def is_scipy_sparse(value: Any) -> bool:
    """Whether the value is a sparse matrix of SciPy, which need not be installed."""
    return bool(module(ADAPTER_TOOLS).is_scipy_sparse(value))


# Optimizers.


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
