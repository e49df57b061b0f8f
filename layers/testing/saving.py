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

from layers.testing.case import NAME, Case, agree, local_name, state_kept

__all__ = ["checkpoint", "copies", "export", "keras_file", "weights_file"]


def keras_file(case: Case) -> str | None:
    """A model in a `.keras` file comes back, without custom objects."""
    with _folder() as folder:
        _used(case).model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
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
    """`tf.train.Checkpoint` restores weights, seeds and metrics into a layer that is built, and into one that is built later."""
    layer = case.make()
    case.call(layer, case.batch.tensors(), True)
    saved = _variables(layer)
    with _folder() as folder:
        tf.train.Checkpoint(layer=layer).write(f"{folder}/checkpoint")
        expected = case.measure(layer, training=False, gradients=False)
        for when in ("before", "after"):
            other = case.make() if when == "after" else case.factory(name=layer.name)
            status = tf.train.Checkpoint(layer=other).read(f"{folder}/checkpoint")
            if when == "before":
                symbols, _ = case.batch.symbols()
                case.call(other, symbols, False)
            agree(saved, _variables(other), f"a layer and its checkpoint, read {when} building", rtol=0, atol=0)
            seen = case.measure(other, training=False, gradients=False)
            agree(expected, seen, f"calls of a layer and its checkpoint, read {when} building")
            status.expect_partial()
    return None


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


def _variables(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    found = {f"{i} {v.name}": v.numpy() for i, v in enumerate(layer.variables)}
    return found | {f"metric {local_name(m)} {v.name}": v.numpy() for m in layer.metrics for v in m.variables}


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield os.fspath(folder)
