"""Layers and models that report, for the tests of the base."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import layers
from layers.base import masked_mean, register


@register
class Reporter(layers.Layer):
    """Dense, with a loss and a metric of each aggregation; `declare=False` leaves them to the first call."""

    def __init__(self, *, units=2, declare=True, **kwargs):
        super().__init__(**kwargs)
        self.units, self.declare = units, declare
        self.supports_masking = True
        self.rate = self.add_coefficient("rate", 0.5)
        if declare:
            for kind in ("mean", "sum", "max", "min", "last"):
                self.declare_metric(kind, kind)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, inputs):
        for kind in ("mean", "sum", "max", "min", "last"):
            self.add_metric(inputs, kind, kind)
        mean = masked_mean(inputs)
        self.add_loss(tf.cast(self.rate, mean.dtype) * mean)
        return inputs @ tf.cast(self.kernel, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "declare": self.declare}


@register
class Wrapper(keras.layers.Layer):
    """A plain Keras layer around a reporter."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner if isinstance(inner, keras.layers.Layer) else Reporter(name=f"{self.name}_inner")

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)

    def compute_output_shape(self, input_shape):
        return self.inner.compute_output_shape(input_shape)


@register
class ReportingModel(layers.Model):
    """A subclassed model that reports by itself and has a reporter inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.reporter = Reporter(units=3, name=f"{self.name}_reporter")
        self.head = keras.layers.Dense(1)
        self.declare_metric("top", "max")

    def build(self, input_shape):
        self.reporter.build(input_shape)
        self.head.build((*input_shape[:-1], 3))
        self.built = True

    def call(self, inputs):
        self.add_metric(inputs, "top", "max")
        return self.head(self.reporter(inputs))


def results(layer):
    return {metric.name: float(metric.result()) for metric in layer.metrics}


def expected(name, *batches):
    """What NumPy makes of the inputs of several calls."""
    elements = np.concatenate([np.ravel(b) for b in batches])
    values = {"mean": elements.mean(), "sum": elements.sum(), "max": elements.max(), "min": elements.min(), "last": batches[-1].mean()}
    return {f"{name}/{kind}": float(value) for kind, value in values.items()}
