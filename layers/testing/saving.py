"""Every way of saving brings back a layer that behaves the same."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from layers.testing.case import Case, agree, local_name

__all__ = ["checkpoint", "copies", "export", "keras_file", "weights_file"]


def keras_file(case: Case) -> str | None:
    """A model in a `.keras` file comes back, without custom objects."""
    model, inputs = _model(case)
    with _folder() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
    _same(model, again, inputs, "a model from a .keras file")
    return None


def weights_file(case: Case) -> str | None:
    """`.weights.h5` holds all weights."""
    model, inputs = _model(case)
    other, _ = _model(case, used=False)
    with _folder() as folder:
        model.save_weights(f"{folder}/model.weights.h5")
        other.load_weights(f"{folder}/model.weights.h5")
    _same(model, other, inputs, "a model with weights from a file")
    return None


def copies(case: Case) -> str | None:
    """`clone_model`, `deepcopy` and `pickle` make a layer that behaves the same."""
    model, inputs = _model(case)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    _same(model, clone, inputs, "a clone_model with the same weights")
    _same(model, copy.deepcopy(model), inputs, "a deepcopy of a model")
    _same(model, pickle.loads(pickle.dumps(model)), inputs, "a pickled model")
    return None


def export(case: Case) -> str | None:
    """An exported SavedModel serves the same outputs."""
    model, inputs = _model(case)
    with _folder() as folder:
        model.export(f"{folder}/saved", verbose=False)
        served = tf.saved_model.load(f"{folder}/saved")
        outputs = served.serve(inputs)
    agree(_numbered(model(inputs, training=False)), _numbered(outputs), "the model and what it exported")
    return None


def checkpoint(case: Case) -> str | None:
    """`tf.train.Checkpoint` restores weights, seeds and metrics into a layer that is built, and into one that is built later."""
    layer = case.make()
    case.call(layer, case.batch.tensors(), True)
    saved = _variables(layer)
    with _folder() as folder:
        tf.train.Checkpoint(layer=layer).write(f"{folder}/checkpoint")
        for when in ("before", "after"):
            other = case.make() if when == "after" else case.factory(name=layer.name)
            status = tf.train.Checkpoint(layer=other).read(f"{folder}/checkpoint")
            if when == "before":
                symbols, _ = case.batch.symbols()
                case.call(other, symbols, False)
            agree(saved, _variables(other), f"a layer and its checkpoint, read {when} building", rtol=0, atol=0)
            calls = case.measure(layer, training=False), case.measure(other, training=False)
            agree(*calls, f"calls of a layer and its checkpoint, read {when} building")
            status.expect_partial()
    return None


def _model(case: Case, *, used: bool = True) -> tuple[keras.Model, list[np.ndarray]]:
    layer = case.make()
    if used:
        case.call(layer, case.batch.tensors(), True)  # so that moving state is not what it began as
    symbols, inputs = case.batch.symbols()
    model = keras.Model(inputs, tf.nest.flatten(case.call(layer, symbols, False)))
    return model, [np.asarray(a) for a in case.batch.arrays]


def _same(model: keras.Model, other: keras.Model, inputs: list[np.ndarray], what: str) -> None:
    assert len(model.weights) == len(other.weights), f"{what} has {len(other.weights)} weights, expected {len(model.weights)}"
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        assert np.array_equal(mine, theirs), f"{what} has another {mine.path}"
    agree(_numbered(model(inputs, training=False)), _numbered(other(inputs, training=False)), f"a model and {what}")
    losses = [float(loss) for loss in model.losses], [float(loss) for loss in other.losses]
    assert np.allclose(*losses, rtol=1e-4), f"{what} has the losses {losses[1]}, expected {losses[0]}"
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
