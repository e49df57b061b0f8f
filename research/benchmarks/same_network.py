"""How peers of other libraries in `scripts/benchmark.py` make the network of a workload from its Keras model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

__all__ = ["activation_of", "learning_rate_of", "walk"]


def walk(model: keras.Model, x: Any, apply: Callable[[keras.Layer, list[Any]], Any]) -> Any:
    """The model's output, where `apply(layer, inputs)` gives a layer's."""
    values = {id(model.inputs[0]): x}
    for layer in model.layers[1:]:
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        values[id(layer.output)] = apply(layer, [values[id(tensor)] for tensor in given])
    return values[id(model.outputs[0])]


def activation_of(layer: keras.Layer) -> str:
    """The name of a layer's activation; "linear" if it has none."""
    return getattr(layer, "activation", keras.activations.linear).__name__


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
