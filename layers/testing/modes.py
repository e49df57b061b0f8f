"""Eager, graph and XLA do the same, at unknown batch and time dimensions too; a coefficient that changes retraces nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope

from layers.testing.case import Batch, Case, Seen, agree

__all__ = ["coefficients", "function", "unknown_dimensions", "xla"]


def function(case: Case) -> str | None:
    """`tf.function` gives what eager mode gives: outputs, losses, gradients, metrics, state."""
    layer = case.make()
    for training in (True, False):
        compiled = Compiled(case, layer, training)
        agree(case.measure(layer, training=training), compiled(), f"eager mode and tf.function at training={training}")
    return None


def xla(case: Case) -> str | None:
    """XLA gives what eager mode gives; of noise only that it is finite."""
    layer = case.make()
    for training in (True, False):
        if training not in case.modes():
            seen = Compiled(case, layer, training, jit_compile=True)()
            bad = [name for name, value in seen.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
            assert not bad, f"under XLA at training={training}, {bad} are not finite"
            continue
        compiled = Compiled(case, layer, training, jit_compile=True)
        agree(case.measure(layer, training=training), compiled(), f"eager mode and XLA at training={training}", rtol=1e-3, atol=1e-4)
    return None


def unknown_dimensions(case: Case) -> str | None:
    """One trace serves batches of several sizes (and times): batch and time may be unknown."""
    layer = case.make()
    training = case.modes()[0]
    compiled = Compiled(case, layer, training, unknown=case.axes())
    for name, batch in (("batch", case.batch), ("shorter batch", case.shorter())):
        agree(case.measure(layer, batch, training), compiled(batch), f"eager mode and a trace for unknown sizes, with a {name}")
    assert compiled.traces == 1, f"{compiled.traces} traces for two sizes"
    return None


def coefficients(case: Case) -> str | None:
    """A coefficient is a float32 weight that no gradient or autocasting reaches; assigning it works at once and retraces nothing."""
    if not case.coefficients:
        return "no coefficients were named"
    for name in case.coefficients:
        mixed = getattr(case.make(dtype="mixed_float16"), name)
        layer = case.make()
        variable = getattr(layer, name)
        assert isinstance(variable, keras.Variable), f"{name} is no weight but {type(variable).__name__}: use add_coefficient"
        assert any(v is variable for v in layer.non_trainable_weights), f"{name} is not among the non-trainable weights"
        with AutocastScope("float16"):
            kept = mixed.value.dtype.name
        assert kept == "float32", f"{name} becomes {kept} in half precision: use add_coefficient"
        # Keras's autocasting of a layer reaches its weights at every call; the compiled ones must see the new value too.
        training = case.modes()[0] if not case.stochastic else True
        compiled = Compiled(case, layer, training)
        before = compiled()
        value = float(variable.numpy())
        variable.assign(value / 2 if value else 0.5)
        after = compiled()
        assert compiled.traces == 1, f"assigning {name} retraced"
        agree(case.measure(layer, training=training), after, f"eager mode and tf.function after {name} was assigned")
        moved = [k for k in after if not k.startswith("state/") and not np.allclose(before[k], after[k], rtol=1e-6, atol=0, equal_nan=True)]
        assert moved or {*before} != {*after}, f"assigning {name} changed nothing"
    return None


class Compiled:
    """A compiled call of a layer, and how often it was traced."""

    def __init__(self, case: Case, layer: keras.layers.Layer, training: bool, *, unknown: dict[int, int] | None = None, **options: Any):
        self.case, self.layer, self.traces = case, layer, 0

        def call(arrays: list[tf.Tensor]) -> dict[str, tf.Tensor]:
            self.traces += 1
            return case.seen(layer, case.batch.replace(arrays), training)

        def spec(array: np.ndarray) -> tf.TensorSpec:
            shape = [None if (unknown or {}).get(axis) == size else size for axis, size in enumerate(array.shape)]
            return tf.TensorSpec(shape, array.dtype)

        self._function = tf.function(call, input_signature=[[spec(a) for a in case.batch.arrays]], autograph=False, **options)

    def __call__(self, batch: Batch | None = None) -> Seen:
        return self.case.measure(self.layer, batch, how=lambda b: self._function([tf.convert_to_tensor(a) for a in b.arrays]))
