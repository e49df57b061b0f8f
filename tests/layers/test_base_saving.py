"""A layer that reports survives every way of saving: files, checkpoints with its metrics' state, export, clone, deepcopy, pickle."""

from __future__ import annotations

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from tests.layers.reporters import Reporter, ReportingModel, Wrapper, results

X = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")


def functional():
    inputs = keras.Input([4])
    return keras.Model(inputs, Wrapper(name="wrapper")(inputs))


def ours():
    inputs = keras.Input([4])
    return layers.Model(inputs, ReportingModel(name="inner")(inputs), name="outer")


def subclassed():
    model = ReportingModel(name="model")
    model(X)
    return model


MODELS = {f.__name__: f for f in (functional, ours, subclassed)}


def through_keras_file(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def through_weights_file(model, path):
    model.save_weights(path / "model.weights.h5")
    other = MODELS[{"outer": "ours", "model": "subclassed"}.get(model.name, "functional")]()
    other.load_weights(path / "model.weights.h5")
    return other


def through_clone(model, path):
    other = keras.models.clone_model(model)
    other(X)
    other.set_weights(model.get_weights())
    return other


WAYS = {
    "keras file": through_keras_file,
    "weights file": through_weights_file,
    "clone_model": through_clone,
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
}


#: Copies in memory are made by way of a `.keras` file in memory.
IN_MEMORY = ["clone_model", "deepcopy", "pickle"]
COPIES = [
    pytest.param(kind, way, marks=pytest.mark.matrix if kind == "functional" and way in IN_MEMORY else [])
    for kind in MODELS
    for way in WAYS
]


@pytest.mark.parametrize("kind, way", COPIES)
def test_a_copy_behaves_and_reports_as_the_original(kind, way, tmp_path):
    model = MODELS[kind]()
    model(X)
    other = WAYS[way](model, tmp_path)
    assert type(other) is type(model)
    np.testing.assert_array_equal(other(2 * X), model(2 * X))
    model(2 * X)  # only now both reported in calls of their own
    for metric in [*model.metrics, *other.metrics]:
        metric.reset_state()
    model(X), other(X)
    assert results(other) == results(model)
    assert all(np.isfinite(value) for value in results(model).values())
    assert [float(loss) for loss in other.losses] == [float(loss) for loss in model.losses]


@pytest.mark.parametrize("when", ["before it is built", "after it was built"])
def test_a_checkpoint_restores_weights_and_metrics_and_nothing_is_left_over(when, tmp_path):
    layer = Reporter(name="layer")
    layer(X), layer(2 * X)
    tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    other = Reporter(name="layer")
    if when == "after it was built":
        other.build(X.shape)
    status = tf.train.Checkpoint(layer=other).read(str(tmp_path / "checkpoint"))
    if when == "before it is built":
        other.build(X.shape)
    status.assert_consumed()
    assert results(other) == results(layer)
    assert results(layer)["layer/max"] == 2 * X.max()
    np.testing.assert_array_equal(other.kernel, layer.kernel)


def test_metrics_that_a_symbolic_call_makes_are_restored_when_they_appear(tmp_path):
    class Outer(keras.Model):
        """Has no `build`: Keras runs `call` on symbols to build what is inside."""

        def __init__(self):
            super().__init__()
            self.reporter = Reporter(declare=False, name="reporter")
            self.reporter.compute_output_spec = lambda x: keras.layers.Layer.compute_output_spec(self.reporter, x)

        def call(self, inputs):
            return self.reporter(inputs)

    model, other = Outer(), Outer()
    model(X), model(X)
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=other).read(str(tmp_path / "checkpoint"))
    other(X), model(X)
    assert results(other) == results(model)


def test_a_checkpoint_holds_the_metrics_of_models_and_of_layers_in_them(tmp_path):
    model = subclassed()
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    other = ReportingModel(name="model")
    other.build(X.shape)
    tf.train.Checkpoint(model=other).read(str(tmp_path / "checkpoint")).assert_existing_objects_matched()
    assert results(other) == results(model)
    assert results(model)["model/top"] == X.max()


def test_a_checkpoint_holds_the_state_of_a_seed_generator(tmp_path):
    class Noisy(layers.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, inputs):
            return inputs + keras.random.normal(tf.shape(inputs), seed=self.seeds)

    layer, other = Noisy(), Noisy()
    layer(X)
    tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(layer=other).read(str(tmp_path / "checkpoint")).assert_consumed()
    np.testing.assert_array_equal(other(X), layer(X))


@pytest.mark.parametrize("kind", [pytest.param("functional", marks=pytest.mark.matrix), "ours", "subclassed"])
def test_an_exported_model_serves_and_leaves_the_metrics_behind(kind, tmp_path):
    model = MODELS[kind]()
    model(X)
    before = results(model)
    model.export(str(tmp_path / "exported"), verbose=False)
    assert results(model) == before
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(X), model(X), rtol=1e-6)
    if kind == "ours":
        tf.saved_model.save(model, str(tmp_path / "saved"))
        restored = tf.saved_model.load(str(tmp_path / "saved"))
        np.testing.assert_allclose(restored.signatures["serving_default"](tf.constant(X))["output_0"], model(X), rtol=1e-6)
