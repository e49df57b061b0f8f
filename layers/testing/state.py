"""What a layer remembers: in variables that Keras knows, and nowhere else."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers._private_api import all_layers
from layers.testing.case import Case, state_kept

__all__ = ["python_state", "variables"]


def variables(case: Case) -> str | None:
    """Every variable that the layer holds or uses is one that Keras lists, saves, and trains if it is trainable."""
    layer = case.make()
    arrays = [tf.TensorSpec(a.shape, a.dtype) for a in case.batch.arrays]
    known = {id(v.value.handle) for part in (layer, *layer.metrics) for v in part.variables}
    unknown = {id(v.handle): name for name, v in _held(layer) if id(v.handle) not in known}
    for training in case.trainings():

        def call(arrays: list[tf.Tensor], training: bool = training) -> list[Any]:
            return tf.nest.flatten(case.call(layer, case.batch.replace(arrays), training))

        with state_kept(layer):
            graph = tf.function(call, autograph=False).get_concrete_function(arrays).graph
        names = {id(v.handle): v.name.removesuffix(":0") for v in graph.variables}  # those that are read
        for captured in graph.external_captures:
            if captured.dtype == tf.resource and id(captured) not in known and tf.raw_ops.VarIsInitializedOp(resource=captured):
                unknown.setdefault(id(captured), f"{names.get(id(captured), 'a variable')}, which `call` uses")
    found = ", ".join(sorted(unknown.values()))
    assert not unknown, f"{found}: a variable that Keras does not know, and so neither trains nor saves; make it by add_weight"
    return None


def python_state(case: Case) -> str | None:
    """A call changes no Python attribute: compiled, it would do so only while it is traced."""
    layer = case.make()
    tensors = case.batch.tensors()
    for training in case.trainings():
        case.call(layer, tensors, training)  # what is made once, is made
        before = _attributes(layer)
        with state_kept(layer):
            case.call(layer, tensors, training)
        _assert_same(before, _attributes(layer), "a call")

        def call(arrays: list[tf.Tensor], training: bool = training) -> list[Any]:
            return tf.nest.flatten(case.call(layer, case.batch.replace(arrays), training))

        tf.function(call, autograph=False).get_concrete_function([tf.TensorSpec(a.shape, a.dtype) for a in case.batch.arrays])
        _assert_same(before, _attributes(layer), "a call that is traced")
    return None


def _assert_same(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        first, names = changed[0], ", ".join(f"`self.{name}`" for name in changed)
        raise AssertionError(
            f"{what} changes {names} (from {before.get(first, 'nothing')} to {after.get(first, 'nothing')}): compiled code does this only "
            "while it is traced; what changes belongs into a weight"
        )


def _attributes(layer: keras.layers.Layer) -> dict[str, Any]:
    """What can be compared of the Python attributes of a layer and those inside it, but for what every layer has."""
    common = {*vars(_plain_layer()), "_losses_of_replicas", "_reported_metrics", "_names_in_file", "_metric_holder"}
    found: dict[str, Any] = {}
    for number, part in enumerate(all_layers(layer)):
        where = "" if number == 0 else f"{part.name}."
        found |= {f"{where}{name}": _comparable(value) for name, value in vars(part).items() if name not in common}
    return found


def _plain_layer() -> keras.layers.Layer:
    """A layer that was called, with the attributes that calls of any layer give."""
    layer = keras.layers.Identity(name="plain")
    layer(np.zeros([1, 1], "float32"))
    return layer


def _comparable(value: Any, depth: int = 3) -> Any:
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return value
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes()) if value.dtype != object else ("array", id(value))
    if isinstance(value, tf.Tensor):
        return ("tensor", value.shape.as_list(), value.numpy().tobytes()) if hasattr(value, "numpy") else "a tensor of a graph"
    if depth and isinstance(value, dict):
        return {repr(k) if isinstance(k, (str, int)) else id(k): _comparable(v, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [_comparable(v, depth - 1) for v in value]
    if isinstance(value, (set, frozenset)):
        return len(value)
    plain = type(value).__module__.partition(".")[0] not in ("keras", "tensorflow", "numpy") and not isinstance(
        value, (keras.KerasTensor, type)
    )
    if depth and plain and hasattr(value, "__dict__") and not callable(value):
        return {k: _comparable(v, depth - 1) for k, v in vars(value).items()}
    return id(value)


def _held(layer: keras.layers.Layer) -> Iterator[tuple[str, tf.Variable]]:
    """Plain TensorFlow variables among the attributes of a layer and of those inside it, at any depth."""
    seen: set[int] = set()

    def visit(name: str, value: Any) -> Iterator[tuple[str, tf.Variable]]:
        if id(value) in seen or isinstance(value, (keras.Variable, keras.metrics.Metric, keras.layers.Layer, weakref.ref)):
            return
        seen.add(id(value))
        if isinstance(value, tf.Variable):
            yield name, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from visit(f"{name}[{key!r}]", inner)
        elif isinstance(value, (list, tuple)):
            for i, inner in enumerate(value):
                yield from visit(f"{name}[{i}]", inner)
        elif isinstance(value, tf.Module):
            for inner_name, inner in vars(value).items():
                yield from visit(f"{name}.{inner_name}", inner)

    for number, part in enumerate(all_layers(layer)):
        for name, value in vars(part).items():
            if name != "_beside_weights" and not name.startswith("_self_"):  # of tf.Module and TensorFlow's tracking
                yield from visit(f"self.{name}" if number == 0 else f"{part.name}.{name}", value)
