"""Every way of saving brings back a layer that behaves the same."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from layers.testing.case import NAME, Case, Seen, agree, local_name, state_kept

__all__ = ["checkpoint", "copies", "export", "keras_file", "weights_file"]


def keras_file(case: Case) -> str | None:
    """A model in a `.keras` file comes back; by house rules without custom objects."""
    with _folder() as folder:
        _used(case).model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras", custom_objects=_custom(case))
    _same(_used(case), again, "a model from a .keras file")
    return None


def weights_file(case: Case) -> str | None:
    """`.weights.h5` holds all weights."""
    _, other = _functional(case)
    with _folder() as folder:
        _used(case).model.save_weights(f"{folder}/model.weights.h5")
        other.load_weights(f"{folder}/model.weights.h5")
    _same(_used(case), other, "a model with weights from a file")
    return None


def copies(case: Case) -> str | None:
    """`clone_model`, `deepcopy` and `pickle` make a layer that behaves the same."""
    used = _used(case)
    clone = keras.models.clone_model(used.model)
    clone.set_weights(used.model.get_weights())
    _same(used, clone, "a clone_model with the same weights")
    with keras.saving.custom_object_scope(_custom(case)):
        _same(used, copy.deepcopy(used.model), "a deepcopy of a model")
        _same(used, pickle.loads(pickle.dumps(used.model)), "a pickled model")
    return None


def export(case: Case) -> str | None:
    """An exported SavedModel serves the same outputs."""
    used = _used(case)
    with _folder() as folder:
        used.model.export(f"{folder}/saved", verbose=False)
        served = tf.saved_model.load(f"{folder}/saved")
        outputs = served.serve(used.inputs)
    agree(used.outputs, _numbered(outputs), "the model and what it exported")
    return None


def checkpoint(case: Case) -> str | None:
    """`tf.train.Checkpoint` restores weights and metrics into a layer that is built, and into one that is built later.

    By house rules also seeds, and weights of layers in lists, which it does not find in Keras's layers.
    """
    layer = case.make()
    case.call(layer, case.batch.tensors(), True)
    with _folder() as folder:
        tf.train.Checkpoint(layer=layer).write(f"{folder}/checkpoint")
        held = None if "checkpoints" in case.rules else _held(layer, f"{folder}/checkpoint")
        if held is not None and len(held) < len(layer.weights):
            return "tf.train.Checkpoint does not find all of its weights, as of any layer of Keras with layers in lists"
        saved = _variables(layer, held)
        expected = case.measure(layer, training=False, gradients=False)
        for when in ("before", "after"):
            other = case.make() if when == "after" else case.factory(name=layer.name)
            status = tf.train.Checkpoint(layer=other).read(f"{folder}/checkpoint")
            if when == "before":
                symbols, _ = case.batch.symbols()
                case.call(other, symbols, False)
            agree(saved, _variables(other, held), f"a layer and its checkpoint, read {when} building", rtol=0, atol=0)
            seen = case.measure(other, training=False, gradients=False)
            agree(_of(expected, held), _of(seen, held), f"calls of a layer and its checkpoint, read {when} building")
            status.expect_partial()
    return None


def _held(layer: keras.layers.Layer, path: str) -> set[str]:
    """The variables that the checkpoint of a layer holds: those that it brings back."""
    before = {name: v.numpy() for name, v in _named(layer)}
    for _, variable in _named(layer):
        variable.assign(np.zeros(variable.shape) if np.any(variable.numpy()) else np.ones(variable.shape))
    tf.train.Checkpoint(layer=layer).read(path).expect_partial()
    held = {name for name, v in _named(layer) if np.array_equal(before[name], v.numpy(), equal_nan=v.dtype[:3] != "int")}
    for name, variable in _named(layer):
        variable.assign(before[name])
    return held


def _of(seen: Seen, held: set[str] | None) -> Seen:
    """Without the state of what a checkpoint does not hold."""
    return seen if held is None else {k: v for k, v in seen.items() if not k.startswith("state/") or k.removeprefix("state/") in held}


def _custom(case: Case) -> dict[str, type]:
    return {} if "registered" in case.rules else {type(case.layer).__name__: type(case.layer)}


@dataclasses.dataclass(frozen=True)
class Used:
    """A model around a layer that has been called for training, so that moving state is not what it began as.

    Attributes:
        model: a functional model.
        inputs: what it is called with.
        outputs: what it then gives at training=False, by number.
        losses: what it adds.
    """

    model: keras.Model
    inputs: list[np.ndarray]
    outputs: dict[str, np.ndarray]
    losses: list[float]


def _used(case: Case) -> Used:
    def make() -> Used:
        layer, model = _functional(case)
        case.call(layer, case.batch.tensors(), True)
        inputs = [np.asarray(a) for a in case.batch.arrays]
        with state_kept(model):
            outputs = _numbered(model(inputs, training=False))
        return Used(model, inputs, outputs, [float(loss) for loss in model.losses])

    used: Used = case.once("used model", make)
    return used


def _functional(case: Case) -> tuple[keras.layers.Layer, keras.Model]:
    """A new layer and a functional model of it."""
    layer = case.factory(name=NAME)
    symbols, inputs = case.batch.symbols()
    return layer, keras.Model(inputs, tf.nest.flatten(case.call(layer, symbols, False)))


def _same(used: Used, other: keras.Model, what: str) -> None:
    model = used.model
    assert len(model.weights) == len(other.weights), f"{what} has {len(other.weights)} weights, expected {len(model.weights)}"
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        assert np.array_equal(mine, theirs), f"{what} has another {mine.path}"
    agree(used.outputs, _numbered(other(used.inputs, training=False)), f"a model and {what}")
    losses = [float(loss) for loss in other.losses]
    assert np.allclose(used.losses, losses, rtol=1e-4), f"{what} has the losses {losses}, expected {used.losses}"
    names = [sorted(m.name for m in x.metrics) for x in (model, other)]
    assert names[0] == names[1], f"{what} reports {names[1]}, expected {names[0]}"


def _numbered(outputs: object) -> dict[str, np.ndarray]:
    return {f"output/{i}": np.asarray(x) for i, x in enumerate(tf.nest.flatten(outputs))}


def _variables(layer: keras.layers.Layer, held: set[str] | None = None) -> dict[str, np.ndarray]:
    found = {name: v.numpy() for name, v in _named(layer) if held is None or name in held}
    return found | {f"metric {local_name(m)} {v.name}": v.numpy() for m in layer.metrics for v in m.variables}


def _named(layer: keras.layers.Layer) -> list[tuple[str, keras.Variable]]:
    return [(f"{i} {v.name}", v) for i, v in enumerate(layer.variables)]


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield os.fspath(folder)
