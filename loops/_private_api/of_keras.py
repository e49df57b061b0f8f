"""Keras's functions, methods and attributes that are not public: layers, models, metrics, callbacks, data adapters."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_DEFAULTS = (("by_keras", True), ("sums", None), ("scalars", None), ("tracked", None))


@contextlib.contextmanager
def loss_scaling(
    *,
    by_keras: bool,
    sums: Callable[[], Any] | None = None,
    scalars: Callable[[], Any] | None = None,
    tracked: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """Within this context, in this thread: whether Keras divides losses by the number of replicas, as it does by default.

    Where it does not, a loss is the mean over the examples of its own replica.

    Args:
        by_keras: whether Keras divides.
        sums: called for each loss whose reduction is "sum"; returns what the loss is multiplied by, None for nothing. None keeps that of
            an outer context.
        scalars: called for each loss whose function returns one number for the whole batch. None keeps that of an outer context.
        tracked: where Keras does not divide: called with the loss of an output; returns what Keras's metric of that output gets.
    """
    losses = module(LOSS)
    outer: Any = tuple(getattr(_scaling, name, default) for name, default in _DEFAULTS)
    sums, scalars = (None, None) if by_keras else (sums or outer[1], scalars or outer[2])
    for name in LOSS_SCALING:
        if not hasattr(getattr(losses, name), "__wrapped__"):
            setattr(losses, name, _switched_off(getattr(losses, name)))
    if not hasattr(getattr(losses, LOSS_REDUCTION), "__wrapped__"):
        setattr(losses, LOSS_REDUCTION, _told_of_sums_and_scalars(getattr(losses, LOSS_REDUCTION)))
    _scaling.by_keras, _scaling.sums, _scaling.scalars, _scaling.tracked = by_keras, sums, scalars, tracked
    try:
        yield
    finally:
        _scaling.by_keras, _scaling.sums, _scaling.scalars, _scaling.tracked = outer


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


def _told_of_sums_and_scalars(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """`reduce`, which calls what `loss_scaling` was given for sums and scalars."""

    @functools.wraps(reduce)
    def reduced(values: Any, sample_weight: Any = None, reduction: Any = "sum_over_batch_size") -> Any:
        loss = reduce(values, sample_weight, reduction)
        sums, scalars = getattr(_scaling, "sums", None), getattr(_scaling, "scalars", None)
        if sums is None or scalars is None:
            return loss
        if values.shape.rank == 0:  # Keras hands on what is a scalar already, whatever the reduction
            scalars()
            return loss
        if tuple(loss.shape) == (0,) and reduction not in (None, "none"):
            return tf.reduce_sum(loss)  # of a replica without examples, which Keras hands on as it is where the size is static
        factor = sums() if reduction == "sum" else None
        return loss if factor is None else loss * tf.cast(factor, loss.dtype)

    return reduced


def loss_tracker(model: keras.Model) -> Any:
    """The metric that averages the loss of a compiled model; None if it has none."""
    return getattr(model, "_loss_tracker", None)


def build_by_shapes(model: keras.Model, batch: Any) -> None:
    """Builds a compiled model with its metrics and optimizer for batches like `batch`, which may be made of type specs."""
    model._symbolic_build(data_batch=batch)


def given_to_compile(model: keras.Model) -> tuple[list[str], list[str]]:
    """The names of losses and of metrics that `compile` was given."""
    loss, metrics = getattr(model, "_compile_loss", None), getattr(model, "_compile_metrics", None)
    metric_parts = [getattr(metrics, f"_user_{kind}metrics", None) for kind in ("", "weighted_")]
    found = [keras.tree.flatten(given) for given in (getattr(loss, "_user_loss", None), metric_parts)]
    losses, named = ([one for one in leaves if isinstance(one, str)] for leaves in found)
    return losses, named


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


def find_direction(callback: keras.callbacks.Callback) -> None:
    """Has a callback that follows a metric find out now whether lower or higher is better.

    Raises:
        ValueError: if it cannot, as Keras says it after the first epoch.
    """
    if getattr(callback, "monitor_op", True) is None and getattr(callback, "save_best_only", True) and hasattr(callback, "_set_monitor_op"):
        callback._set_monitor_op()


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
