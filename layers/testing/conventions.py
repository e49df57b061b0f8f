"""Keras's conventions: constructor, weights that do not depend on the way of building, shapes told beforehand, loss counts."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers._private_api import has_default_build
from layers.testing.case import NAME, Batch, Case, close, local_name, restore, state_of

__all__ = ["build", "constructor", "loss_count", "output_spec"]


def constructor(case: Case) -> str | None:
    """Wrong values are refused with a sentence that names the argument; by house rules arguments are keywords, the class is registered."""
    kind = type(case.factory())
    if "registered" in case.rules:
        assert ">" in keras.saving.get_registered_name(kind), f"{kind.__name__} is not registered: decorate it with layers.base.register"
    parameters = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name != "self"]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "layer"]
    if "keywords" in case.rules:
        assert not positional, f"arguments {positional} are not keyword-only"
    for arguments in case.invalid:
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        try:
            case.factory(**arguments)
        except (ValueError, TypeError) as error:
            named = any(name in str(error) for name in arguments)
            assert named, f"the message for {given} does not name the argument: {str(error)!r}"
        else:
            raise AssertionError(f"{given} was accepted")
    return None


def build(case: Case) -> str | None:
    """`build`, a symbolic and an eager first call make the same weights; nothing appears later; metrics are there before the first call."""
    symbolic = case.layer
    eager = case.factory()
    case.call(eager, case.batch.tensors(), True)
    built = case.factory()
    _build_by_shapes(built, case.batch)
    shapes = [(v.name, tuple(v.shape), v.trainable) for v in symbolic.weights]
    for way, layer in (("an eager call", eager), ("build()", built)):
        other = [(v.name, tuple(v.shape), v.trainable) for v in layer.weights]
        assert other == shapes, f"weights after {way} are {other}, after a symbolic call {shapes}"
    names = sorted(local_name(m) for m in built.metrics)
    assert names == sorted(case.metrics), f"metrics after build() are {names}, expected {sorted(case.metrics)}: use declare_metric"
    after = sorted(local_name(m) for m in eager.metrics)
    assert after == names, f"metrics after a call are {after}, before it {names}"
    return None


def output_spec(case: Case) -> str | None:
    """Shapes and dtypes that Keras is told beforehand are those of the outputs."""
    layer = case.factory(name=NAME)
    symbols, _ = case.batch.symbols()
    specs = tf.nest.flatten(case.call(layer, symbols, False))
    outputs = tf.nest.flatten(case.call(layer, case.batch.tensors(), False))
    assert len(specs) == len(outputs), f"{len(specs)} outputs were announced, {len(outputs)} came"
    for i, (spec, output) in enumerate(zip(specs, outputs, strict=True)):
        assert output.shape.is_compatible_with(spec.shape), f"output/{i} was announced with shape {spec.shape} and has {output.shape}"
        assert output.dtype.name == spec.dtype, f"output/{i} was announced as {spec.dtype} and is {output.dtype.name}"
        known = sum(d is not None for d in spec.shape) if "exact_shapes" in case.rules else output.shape.rank
        assert known >= output.shape.rank - len(case.axes()), f"output/{i} was announced with the vague shape {spec.shape}"
    return None


def loss_count(case: Case) -> str | None:
    """A call leaves its own losses: no more after three calls, twice as many from two calls in one model, the same when nested."""
    layer = case.make()
    tensors = case.batch.tensors()
    before = state_of(layer)
    for calls in (1, 2, 3):
        restore(layer, before)
        case.call(layer, tensors, True)
        assert len(layer.losses) == case.losses, f"{len(layer.losses)} losses after {calls} calls, expected {case.losses}"
    for loss in layer.losses:
        assert loss.shape == (), f"a loss has shape {loss.shape}, it has to be a scalar"
    alone = [float(loss) for loss in layer.losses]
    restore(layer, before)
    nested = _Nest(layer)
    nested(tensors.arrays[0], batch=_Opaque(case, tensors))
    assert len(nested.losses) == case.losses, f"{len(nested.losses)} losses inside of another layer, expected {case.losses}"
    if not case.stochastic:
        close([float(loss) for loss in nested.losses], alone, "losses inside of another layer")
    symbols, inputs = case.batch.symbols()
    twice = [case.call(layer, symbols, True), case.call(layer, symbols, True)]
    model = keras.Model(inputs, tf.nest.flatten(twice))
    model([np.asarray(a) for a in case.batch.arrays], training=True)
    count = len(model.losses)
    assert count == 2 * case.losses, f"{count} losses from two calls in one model, expected {2 * case.losses}"
    return None


class _Opaque:
    """Hides a batch from Keras's handling of arguments."""

    def __init__(self, case: Case, batch: Batch):
        self.case, self.batch = case, batch


class _Nest(keras.layers.Layer):
    def __init__(self, inner: keras.layers.Layer):
        super().__init__()
        self.inner = inner
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Any, batch: Any = None) -> Any:
        return batch.case.call(self.inner, batch.batch, True)


def _build_by_shapes(layer: keras.layers.Layer, batch: Batch) -> None:
    if has_default_build(type(layer)):
        layer.build(tuple(batch.arrays[0].shape))
        return
    parameters = inspect.signature(type(layer).build).parameters
    bound = inspect.signature(layer.call).bind(*batch.args, **batch.kwargs).arguments
    shapes = {k: tf.nest.map_structure(lambda a: tuple(a.shape), v) for k, v in bound.items() if _is_array(v)}
    if len(parameters) == 2:
        layer.build(next(iter(shapes.values())))
    else:
        layer.build(**{f"{k}_shape": v for k, v in shapes.items() if f"{k}_shape" in parameters})


def _is_array(value: Any) -> bool:
    return all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in tf.nest.flatten(value))
