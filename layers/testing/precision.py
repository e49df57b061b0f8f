"""Half and double precision, extreme inputs: outputs in the policy's dtype, losses and metrics in float32, nothing infinite."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from layers._private_api import all_layers
from layers.testing.case import Batch, Case, Seen, close, double_precision
from layers.testing.modes import compiled

__all__ = ["extremes", "policies"]

HALF_CLOSE = {"rtol": 0.03, "atol": 0.03}


def policies(case: Case) -> str | None:
    """Under each policy: outputs in its dtype, all close to float32's; by house rules losses and metrics in float32.

    A policy that the constructor refuses, or for which TensorFlow has no kernel on this device, is passed over.
    """
    layer = case.layer
    training = case.modes()[0]
    # Numbers that half precision holds exactly, so that what differs was computed.
    batch = case.batch.map_floats(lambda a: a.astype("float16").astype("float32"))
    full = case.measure(layer, batch, training, gradients=False)
    for policy, dtype in (("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16"), ("float64", "float64")):
        if case.unsupported(policy):
            continue
        other = case.under(policy)
        handed: list[Any] = []
        _listen(other, handed)
        seen = case.measure(other, batch, training, gradients=False)
        if case.stochastic:
            case.measure(other, batch, True)
        precise = "full_precision" in case.rules
        half = [dtype.name for dtype in handed if dtype in (tf.float16, tf.bfloat16)]
        assert not (half and precise), f"a loss was computed in {half[0]} under {policy}: compute it from full_precision(...)"
        for name, value in seen.items():
            part = name.partition("/")[0]
            if part == "output" and full[name].dtype.kind == "f":
                assert value.dtype.name == dtype, f"{name} is {value.dtype.name} under {policy}, expected {dtype}"
            if part in ("loss", "metric") and precise:
                assert value.dtype.name == "float32", f"{name} is {value.dtype.name} under {policy}, expected float32"
            if part in ("output", "loss", "metric") and full[name].dtype.kind == "f":
                close(value, full[name], f"{name} under {policy}, against float32", **HALF_CLOSE)
    if case.unsupported("float64"):
        return None
    with double_precision():
        case.measure(case.make(), case.batch.map_floats(lambda a: a.astype("float64")), training, gradients=False)
    return None


def extremes(case: Case) -> str | None:
    """Zeros, ones, equal and very large numbers leave everything finite; so do float16 inputs as they are."""
    for name, batch in _extreme_batches(case):
        for training in case.trainings():
            _finite(_call(case, batch, training), f"{name} at training={training}")
    if case.unsupported("mixed_float16"):
        return None
    half = case.under("mixed_float16")
    for name, batch in (("the inputs", case.batch), ("zeros", case.batch.map_floats(np.zeros_like))):
        _finite(case.measure(half, batch), f"{name} in float16")
    return None


def _extreme_batches(case: Case) -> list[tuple[str, Batch]]:
    batches = [
        ("zeros", case.batch.map_floats(np.zeros_like)),
        ("ones", case.batch.map_floats(np.ones_like)),
        ("inputs times 1000", case.batch.map_floats(lambda a: a * np.float32(1000))),
    ]
    for i, arguments in enumerate(case.extremes):
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        batches.append((f"extremes[{i}]", Batch(arguments, case.batch.kwargs).map_floats(lambda a: a.astype("float32"))))
    return batches


def _call(case: Case, batch: Batch, training: bool) -> Seen:
    """In the graph that other checks use too, if the batch has the shapes for which it was traced."""
    kinds = [[(a.shape, a.dtype) for a in b.arrays] for b in (batch, case.batch)]
    return compiled(case, training)(batch) if kinds[0] == kinds[1] else case.measure(case.layer, batch, training)


def _finite(seen: Seen, what: str) -> None:
    for name, value in seen.items():
        if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            assert np.isfinite(value.astype("float64")).all(), f"{name} is not finite for {what}"


def _listen(layer: Any, dtypes: list[Any]) -> None:
    """Notes the dtypes in which losses are handed to `add_loss`, before it casts them."""
    for part in all_layers(layer):

        def heard(loss: Any, add: Any = part.add_loss) -> None:
            dtypes.extend(tf.convert_to_tensor(x).dtype for x in tf.nest.flatten(loss))
            add(loss)

        object.__setattr__(part, "add_loss", heard)
