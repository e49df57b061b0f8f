"""`Layer` and `Model`: the Keras classes, with `add_metric` that works everywhere and `add_loss` that is safe under replicas.

Conventions of the layers in this package:

- A constructor takes keywords only and checks them; `get_config` is complete; classes are decorated with `register`.
- A loss is one scalar, averaged over what is not masked (`masked_mean`), computed from `full_precision(...)` inputs.
- Metrics are declared in `__init__` (`declare_metric`) and added in `call` (`add_metric`).
- What people schedule is made by `add_coefficient`, in `__init__`. A sublayer that reports takes its parent's name into its own.
- Moving state is updated only when training, from sums over all replicas (`layers.replicas`). Noise differs between replicas.
- `supports_masking` is set on purpose, True or False.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from layers import _private_api, metric_names
from layers.aggregation import Aggregate
from layers.reporting import Reporting

__all__ = ["FunctionalModel", "Layer", "Model", "full_precision", "masked_mean", "register"]

#: Class decorator that lets `.keras` files name a class, as "tapeloops>Name".
register = keras.saving.register_keras_serializable("tapeloops")

Functional: Any = _private_api.functional_class()


class Layer(Reporting, keras.layers.Layer):
    """`keras.layers.Layer` with a working `add_metric`, and losses that replicas do not share.

    Works in eager mode, `tf.function` and XLA; in functional, sequential and subclassed models; nested; called several times; in
    `model.fit` and custom loops; under replicas; and in every way of saving.

    Example:
        >>> import numpy as np
        >>> @register
        ... class Scale(Layer):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.factor = self.add_coefficient("factor", 2.0)
        ...         self.declare_metric("size")
        ...     def call(self, inputs):
        ...         self.add_metric(tf.abs(inputs), "size")
        ...         return inputs * tf.cast(self.factor, inputs.dtype)
        >>> layer = Scale(name="scale")
        >>> _ = layer(np.array([[1.0, -3.0]]))
        >>> {metric.name: float(metric.result()) for metric in layer.metrics}
        {'scale/size': 2.0}
    """


class Model(Reporting, keras.Model):
    """`keras.Model` with a working `add_metric`, subclassed or functional; see `Layer`.

    Example:
        >>> inputs = keras.Input([3])
        >>> isinstance(Model(inputs, keras.layers.Dense(1)(inputs)), Model)
        True
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(FunctionalModel if cls is Model and _is_functional(args, kwargs) else cls)

    def __init__(self, *args: Any, **kwargs: Any):
        if _is_functional(args, kwargs) and not isinstance(self, FunctionalModel):
            _make_functional(type(self))
        super().__init__(*args, **kwargs)

    @property
    def layers(self) -> list[Any]:
        """The model's layers; the one that holds the metrics is not among them."""
        return [layer for layer in super().layers if layer is not self.__dict__.get("_metric_holder")]

    @layers.setter
    def layers(self, layers: Any) -> None:
        raise AttributeError("`Model.layers` is reserved; use another name.")

    def _track_metric(self, metric: Aggregate) -> None:
        # A model leaves out the metrics of models inside it, but asks every layer inside these: so the metrics belong to a layer.
        if "_metric_holder" not in self.__dict__:
            holder = _MetricHolder(name="metrics")
            holder.built = True
            self.__dict__["_metric_holder"] = holder
            _private_api.track(self, "layers", holder)
        _private_api.track(self.__dict__["_metric_holder"], "metrics", metric)


class _MetricHolder(keras.layers.Layer):
    """Holds the metrics of a model, for the models around it to list."""

    @property
    def metrics(self) -> list[Any]:
        metric_names.settle(_private_api.who_lists_metrics(self))
        return super().metrics


@register
class FunctionalModel(Model, Functional):
    """What `Model(inputs, outputs)` makes, and what subclasses are that call `super().__init__(inputs, outputs)`."""

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any):
        super().__init__(inputs, outputs, name=name, **kwargs)


def _is_functional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) == 2 or {"inputs", "outputs"} <= {*kwargs} or (len(args) == 1 and "outputs" in kwargs)


def _make_functional(kind: type) -> None:
    """Puts `FunctionalModel` in the place of `Model` below a class. Keras would change `Model` itself, and with it all other subclasses."""
    kind.__bases__ = tuple(FunctionalModel if base is Model else base for base in kind.__bases__)
    for base in kind.__bases__:
        if issubclass(base, Model) and not issubclass(base, FunctionalModel):
            _make_functional(base)


def full_precision(value: Any) -> tf.Tensor:
    """`value` for computing losses and metrics: half precision becomes float32; float32 and float64 stay as they are."""
    value = tf.convert_to_tensor(value)
    return tf.cast(value, tf.float32) if value.dtype in (tf.float16, tf.bfloat16) else value


def masked_mean(value: Any, mask: Any = None, *, keep_last: bool = False) -> tf.Tensor:
    """Mean over the elements that are not masked; 0 if there are none.

    Args:
        value: floating tensor of any shape.
        mask: bool (or weights) whose dimensions are the first ones of `value`; None takes all elements.
        keep_last: whether to take a mean for each index of the last dimension, which the mask must not have.

    Returns:
        Scalar, or `[D]`, in `value`'s precision, at least float32. Masked elements do not count, whatever they are.

    Example:
        >>> float(masked_mean(tf.constant([[1.0, 3.0], [5.0, float("nan")]]), tf.constant([[True, True], [True, False]])))
        3.0
    """
    value = full_precision(value)
    axes = list(range(value.shape.rank - 1)) if keep_last else None
    if mask is None:
        count = tf.reduce_prod(tf.shape(value)[:-1]) if keep_last else tf.size(value)
        return tf.math.divide_no_nan(tf.reduce_sum(value, axes), tf.cast(count, value.dtype))
    weight = tf.cast(mask, value.dtype)
    if weight.shape.rank != value.shape.rank:
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), tf.ones([value.shape.rank - weight.shape.rank], tf.int32)], 0))
    weight = tf.broadcast_to(weight, tf.shape(value))
    # Selected, not multiplied by 0: a NaN under the mask would reach the mean.
    kept = tf.where(weight == 0, tf.zeros_like(value), value) * weight
    return tf.math.divide_no_nan(tf.reduce_sum(kept, axes), tf.reduce_sum(weight, axes))
