"""Eager, graph and XLA do the same, at unknown batch and time dimensions too; a coefficient that changes retraces nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers._private_api import autocast_scope
from layers.testing.case import Batch, Case, Seen, agree, arrays_of, restore, state_kept

__all__ = ["coefficients", "function", "unknown_dimensions", "xla"]


def function(case: Case) -> str | None:
    """`tf.function` gives what eager mode gives: outputs, losses, gradients, metrics, state."""
    for training in case.trainings():
        agree(case.eager(training), compiled(case, training)(), f"eager mode and tf.function at training={training}")
    return None


def xla(case: Case) -> str | None:
    """XLA gives what eager mode gives; of noise only that it is finite. Gradients once, at training=True unless noise hides them there."""
    with_gradients = {training: training or case.stochastic for training in case.trainings()}
    try:
        found = Compiled(case, with_gradients, jit_compile=True).run(case.batch)
    except tf.errors.InvalidArgumentError as error:
        if (lacking := re.search(r"No registered '(\w+)' OpKernel for XLA", str(error))) and "compiles" not in case.rules:
            return f"XLA has no {lacking[1]}"
        raise
    for training, seen in zip(with_gradients, found, strict=True):
        if training in case.modes():
            eager = case.eager(training, gradients=with_gradients[training])
            agree(eager, seen, f"eager mode and XLA at training={training}", rtol=1e-3, atol=1e-4)
        else:
            bad = [name for name, value in seen.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
            assert not bad, f"under XLA at training={training}, {bad} are not finite"
    return None


def unknown_dimensions(case: Case) -> str | None:
    """One trace serves batches of several sizes (and times): batch and time may be unknown."""
    training = case.modes()[0]
    traced = compiled(case, training)
    if not traced.unknown:  # because it cannot be traced so: to see why
        traced = Compiled(case, {training: True}, unknown=case.axes())
    agree(case.eager(training), traced(), "eager mode and a trace for unknown sizes, with a batch")
    shorter = case.shorter()
    eager = case.measure(case.layer, shorter, training)
    agree(eager, traced(shorter), "eager mode and a trace for unknown sizes, with a shorter batch")
    assert traced.traces == 1, f"{traced.traces} traces for two sizes"
    return None


def coefficients(case: Case) -> str | None:
    """A coefficient is a float32 weight that no gradient or autocasting reaches; assigning it works at once and retraces nothing."""
    if not case.coefficients:
        return "no coefficients were named"
    mixed = case.make(dtype="mixed_float16")
    layer = case.layer
    training = case.modes()[0] if not case.stochastic else True
    for name in case.coefficients:
        variable = getattr(layer, name)
        assert isinstance(variable, keras.Variable), f"{name} is no weight but {type(variable).__name__}: use add_coefficient"
        assert any(v is variable for v in layer.non_trainable_weights), f"{name} is not among the non-trainable weights"
        with autocast_scope("float16"):
            kept = getattr(mixed, name).value.dtype.name
        assert kept == "float32", f"{name} becomes {kept} in half precision: use add_coefficient"
        # Keras's autocasting of a layer reaches its weights at every call; the compiled ones must see the new value too.
        traced = compiled(case, training)
        before, value = traced(), float(variable.numpy())
        with state_kept(layer):
            variable.assign(value / 2 if value else 0.5)
            after, eager = traced(), case.measure(layer, training=training)
        assert traced.traces == 1, f"assigning {name} retraced"
        agree(eager, after, f"eager mode and tf.function after {name} was assigned")
        moved = [k for k in after if not k.startswith("state/") and not np.allclose(before[k], after[k], rtol=1e-6, atol=0, equal_nan=True)]
        assert moved or {*before} != {*after}, f"assigning {name} changed nothing"
    return None


def compiled(case: Case, training: bool) -> Compiled:
    """The call as a `tf.function`, traced once for all checks.

    For unknown sizes where `unknown_dimensions` needs them, unless that fails or differs: it breaks `unknown_dimensions`, no other check.
    """

    def make() -> Compiled:
        if training == case.modes()[0]:
            traced = Compiled(case, {training: True}, unknown=case.axes())
            with contextlib.suppress(Exception):
                agree(case.eager(training), traced(), "")
                return traced
        return Compiled(case, {training: True})

    traced: Compiled = case.once(("compiled", training), make)
    return traced


class Compiled:
    """Calls of the case's layer as one compiled function, and how often it was traced.

    Args:
        case: the layer under test.
        calls: for each value of `training` one from the same state, and whether with gradients. XLA shares what they have in common.
        unknown: axis -> size of the dimensions that are unknown to the trace.
        **options: those of `tf.function`.
    """

    def __init__(self, case: Case, calls: Mapping[bool, bool], *, unknown: dict[int, int] | None = None, **options: Any):
        self.case, self.layer, self.unknown, self.traces = case, case.layer, unknown, 0

        def run(arrays: list[tf.Tensor]) -> list[dict[str, tf.Tensor]]:
            self.traces += 1
            before = [tf.identity(variable.value) for variable in self.layer.variables]
            found: list[dict[str, tf.Tensor]] = []
            for training, gradients in calls.items():
                if found:
                    restore(self.layer, before)
                found.append(case.left(self.layer, case.batch.replace(arrays), training, gradients=gradients))
            return found

        def spec(array: np.ndarray) -> tf.TensorSpec:
            shape = [None if (unknown or {}).get(axis) == size else size for axis, size in enumerate(array.shape)]
            return tf.TensorSpec(shape, array.dtype)

        self._function = tf.function(run, input_signature=[[spec(a) for a in case.batch.arrays]], autograph=False, **options)

    def run(self, batch: Batch) -> list[Seen]:
        """What each call leaves. The state is put back."""
        with state_kept(self.layer):
            return [arrays_of(found) for found in self._function([tf.convert_to_tensor(a) for a in batch.arrays])]

    def __call__(self, batch: Batch | None = None) -> Seen:
        """What the only call leaves."""
        (seen,) = self.run(batch or self.case.batch)
        return seen
