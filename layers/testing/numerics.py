"""Values: the formula at float64, the case in which it becomes something simpler, derivatives, paths without a gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers.testing.case import Batch, Case, ask, close, double_precision, restore, state_kept, state_of, weighted_total

__all__ = ["degenerate", "gradient", "loss_oracle", "oracle", "stop_gradient"]

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
NEAR = {"rtol": 1e-5, "atol": 1e-6}


def oracle(case: Case) -> str | None:
    """The output is what the formula gives."""
    if case.oracle is None:
        return "no oracle was given"
    with _double_layer(case) as layer:
        for training in case.modes():
            batch = _double(case.batch)
            expected = tf.nest.flatten(ask(case.oracle, layer, batch, training))
            outputs = tf.nest.flatten(case.call(layer, batch.tensors(), training))
            assert len(outputs) == len(expected), f"{len(outputs)} outputs, the oracle has {len(expected)}"
            for i, (output, value) in enumerate(zip(outputs, expected, strict=True)):
                close(output, value, f"output/{i} at training={training}", **CLOSE)
    return None


def loss_oracle(case: Case) -> str | None:
    """The losses are what the formula gives."""
    if case.loss_oracle is None:
        assert not case.losses, "the layer adds losses: give a loss_oracle"
        return "the layer adds no losses"
    with _double_layer(case) as layer:
        for training in case.modes():
            batch = _double(case.batch)
            expected = np.ravel(np.asarray(ask(case.loss_oracle, layer, batch, training), "float64"))
            case.call(layer, batch.tensors(), training)
            losses = list(layer.losses)
            assert len(losses) == len(expected), f"{len(losses)} losses at training={training}, the oracle has {len(expected)}"
            for i, (loss, value) in enumerate(zip(losses, expected, strict=True)):
                close(loss, value, f"loss/{i} at training={training}", **CLOSE)
    return None


def degenerate(case: Case) -> str | None:
    """With special arguments or weights the layer becomes something simpler."""
    if not case.degenerate:
        return "no degenerate case was given"
    with double_precision():
        for name, (preparation, expected_of) in case.degenerate.items():
            layer = case.make(dtype="float64", **({} if callable(preparation) else preparation))
            if callable(preparation):
                preparation(layer)
            batch = _double(case.batch)
            expected = tf.nest.flatten(ask(expected_of, layer, batch, True))
            outputs = tf.nest.flatten(case.call(layer, batch.tensors(), True))
            for i, (output, value) in enumerate(zip(outputs, expected, strict=True)):
                close(output, value, f"output/{i} of the case {name!r}", **CLOSE)
    return None


def gradient(case: Case) -> str | None:
    """Gradients are the derivatives, by finite differences at float64 with the noise held fixed; or what `gradient_oracle` says."""
    if not case.layer.trainable_weights and not any(a.dtype.kind == "f" for a in case.batch.arrays):
        return "there is nothing to take a gradient of"
    if case.unsupported("float64"):
        return "it cannot be computed in float64"
    with _double_layer(case) as layer:
        batch = _double(case.batch)
        if case.gradient_oracle is not None:
            _compare_with_oracle(case, layer, batch)
        parts = [part for part in case.differentiable if not (part == "output" and case.gradient_oracle is not None)]
        if parts:
            _compare_with_differences(case, layer, batch, parts)
    return None


def stop_gradient(case: Case) -> str | None:
    """What was declared to have no gradient has none, or zero."""
    if not case.stop_gradient:
        return "no path without a gradient was declared"
    for part, source in case.stop_gradient:
        found = _gradients(case, case.layer, case.batch, [part])
        wanted = f"input {source}" if isinstance(source, int) else source
        assert wanted in found.names, f"stop_gradient names {source!r}, but there are {found.names}"
        gradient = found.gradients[0][found.names.index(wanted)]
        largest = 0.0 if gradient is None else float(np.max(np.abs(gradient), initial=0.0))
        assert largest == 0, f"the gradient of {part} with respect to {wanted} must be zero; its largest element is {largest:.6g}"
    return None


@contextlib.contextmanager
def _double_layer(case: Case) -> Iterator[keras.layers.Layer]:
    """The layer of all checks at float64; its state is put back."""
    with double_precision():
        layer = case.once("double precision", lambda: case.make(dtype="float64"))
        with state_kept(layer):
            yield layer


def _double(batch: Batch) -> Batch:
    return batch.map_floats(lambda a: a.astype("float64"))


def _totals(case: Case, layer: keras.layers.Layer, batch: Batch, parts: Sequence[str]) -> list[tf.Tensor]:
    """A scalar for each part of what one call gives."""
    found = {"output": tf.nest.flatten(case.call(layer, batch, True)), "loss": list(layer.losses)}

    def total(part: str) -> tf.Tensor:
        kind, index = _kind(part), part.partition("/")[2]
        values = [found[kind][int(index)]] if index else found[kind]
        return weighted_total(values, []) if kind == "output" else weighted_total([], values)

    return [total(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of each part (see `check_layer`), with respect to each floating input and trainable weight.

    Attributes:
        names: "input 0", ..., and the weights' names.
        sources: the tensors and variables themselves.
        gradients: an array for each part and source; None where no path leads from one to the other.
    """

    names: list[str]
    sources: list[Any]
    gradients: list[list[np.ndarray | None]]


def _gradients(case: Case, layer: keras.layers.Layer, batch: Batch, parts: Sequence[str]) -> Gradients:
    batch = batch.tensors()
    inputs = [a for a in batch.arrays if a.dtype.is_floating]
    weights = list(layer.trainable_weights)
    with state_kept(layer):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            totals = _totals(case, layer, batch, parts)
        found = [tape.gradient(total, [*inputs, *(w.value for w in weights)]) for total in totals]
    names = [*(f"input {i}" for i in range(len(inputs))), *(w.name for w in weights)]
    return Gradients(names, [*inputs, *weights], [[None if g is None else np.asarray(tf.convert_to_tensor(g)) for g in p] for p in found])


def _compare_with_differences(case: Case, layer: keras.layers.Layer, batch: Batch, parts: Sequence[str]) -> None:
    """Moves each source along one random direction: the slope along it is wrong unless the whole gradient is right."""
    found = _gradients(case, layer, batch, parts)
    declared = [{f"input {s}" if isinstance(s, int) else s for p, s in case.stop_gradient if _kind(p) == _kind(part)} for part in parts]
    before = state_of(layer)
    random = np.random.default_rng(0)
    step = 1e-5

    def values(index: int, moved: np.ndarray) -> np.ndarray:
        restore(layer, before)
        moving = batch.tensors()
        if index < len(found.sources) - len(layer.trainable_weights):
            floats = iter(range(len(found.sources)))
            moving = moving.replace([tf.constant(moved) if _floats(a) and next(floats) == index else a for a in moving.arrays])
        else:
            found.sources[index].assign(moved)
        return np.array([float(total) for total in _totals(case, layer, moving, parts)])

    for index, (source, name) in enumerate(zip(found.sources, found.names, strict=True)):
        if all(name in names for names in declared):
            continue
        here = source.numpy()
        direction = random.standard_normal(here.shape)

        def difference(step: float) -> np.ndarray:
            found: np.ndarray = (values(index, here + step * direction) - values(index, here - step * direction)) / (2 * step)  # noqa: B023
            restore(layer, before)
            return found

        differences, others = difference(step), None
        for at, (part, names, gradients) in enumerate(zip(parts, declared, found.gradients, strict=True)):
            if name in names:
                continue
            gradient = gradients[index]
            slope = 0.0 if gradient is None else float(np.sum(gradient * direction))
            if not np.isclose(slope, differences[at], rtol=NEAR["rtol"], atol=NEAR["atol"]):
                others = difference(10 * step) if others is None else others
                # Where the two differ the function has a jump, or is not computed in double precision: no difference is its slope.
                if np.isclose(others[at], differences[at], rtol=1e-3, atol=1e-4):
                    close(slope, differences[at], f"slope of {part} along {name} by the gradient, against finite differences", **NEAR)


def _compare_with_oracle(case: Case, layer: keras.layers.Layer, batch: Batch) -> None:
    tensors = batch.tensors()
    inputs = [a for a in tensors.arrays if a.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = tf.nest.flatten(case.call(layer, tensors, True))[0]
    upstream = np.cos(np.arange(np.size(output))).reshape(output.shape)
    found = tape.gradient(output, inputs, output_gradients=tf.constant(upstream, output.dtype))
    assert case.gradient_oracle is not None
    expected = case.gradient_oracle(layer, *batch.args, **batch.kwargs, upstream=upstream)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    for i, (gradient, value) in enumerate(zip(found, expected, strict=True)):
        assert gradient is not None, f"the output has no gradient with respect to input {i}"
        close(gradient, value, f"gradient of the output with respect to input {i}", **CLOSE)


def _kind(part: str) -> str:
    return part.partition("/")[0].replace("losses", "loss")


def _floats(tensor: tf.Tensor) -> bool:
    return bool(tensor.dtype.is_floating)
