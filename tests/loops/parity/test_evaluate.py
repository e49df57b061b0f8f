"""`loops.evaluate` gives the bits of `model.evaluate(return_dict=True)`, `loops.predict` those of `model.predict`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import loops
from tests.loops.parity.harness import assert_same_bits

RNG = np.random.default_rng(9)
X = RNG.normal(size=(100, 5)).astype("float32")
CLASSES = RNG.integers(0, 3, size=100)
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
WEIGHTS = RNG.uniform(0.1, 2, size=100)


def classifier(**options) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3, activation="softmax")]
    )
    model.compile("sgd", jit_compile=False, **{"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **options})
    return model


def two_heads() -> keras.Model:
    keras.utils.set_random_seed(1)
    x = keras.Input((5,))
    model = keras.Model(x, {"p": layers.Dense(2, activation="softmax", name="p")(x), "v": [layers.Dense(1, name="v")(x)]})
    model.compile("sgd", jit_compile=False)
    return model


def assert_equal_evaluation(model: keras.Model, *data, **arguments) -> None:
    expected = model.evaluate(*data, verbose=0, return_dict=True, **arguments)
    found = loops.evaluate(model, *data, **arguments)
    assert expected
    assert_same_bits(expected, dict(found))


ARGUMENTS = {
    "the default batch size": {},
    "static batches": {"batch_size": 50},
    "a ragged tail": {"batch_size": 33},
    "one row at a time": {"batch_size": 1},
    "some steps": {"batch_size": 20, "steps": 3},
    "sample weights": {"sample_weight": WEIGHTS, "batch_size": 40},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_evaluate(arguments):
    assert_equal_evaluation(classifier(weighted_metrics=["accuracy"]), X, CLASSES, **arguments)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_evaluate_a_dataset():
    rows = tf.data.Dataset.from_tensor_slices((X, CLASSES))
    model = classifier()
    for dataset in (rows.batch(32), rows.filter(lambda x, y: y < 2).batch(16)):
        assert_equal_evaluation(model, dataset)
    assert_equal_evaluation(model, rows.repeat().batch(32), steps=5)


def test_evaluate_a_model_that_was_trained():
    model = classifier()
    model.fit(X, CLASSES, epochs=2)
    assert_equal_evaluation(model, X, CLASSES)


def test_evaluate_vector_metrics():
    model = classifier(loss="mse", metrics=[keras.metrics.F1Score(name="f1")])
    expected = model.evaluate(X, ONE_HOT, verbose=0, return_dict=True)
    assert np.shape(expected["f1"]) == (3,)
    assert_equal_evaluation(model, X, ONE_HOT)


def test_evaluate_twice_gives_the_same():
    model = classifier()
    assert_same_bits(dict(loops.evaluate(model, X, CLASSES)), dict(loops.evaluate(model, X, CLASSES)))


def test_evaluate_a_test_step_of_its_own():
    class Own(keras.Model):
        def test_step(self, data):
            x, y = data
            return {"gap": ops.max(self(x, training=False) - y)}

    x = keras.Input((5,))
    model = Own(x, layers.Dense(1)(x))
    model.compile("sgd", "mse", jit_compile=False)
    assert_equal_evaluation(model, X, X[:, :1], batch_size=32)


def assert_equal_prediction(model: keras.Model, x, **arguments) -> None:
    expected = model.predict(x, verbose=0, **arguments)
    assert_same_bits(expected, loops.predict(model, x, **arguments))


@pytest.mark.parametrize("batch_size", [None, 50, 33, 1, 500])
def test_predict(batch_size):
    assert_equal_prediction(classifier(), X, batch_size=batch_size)


def test_predict_keeps_the_output_structure():
    assert_equal_prediction(two_heads(), X, batch_size=33)


def test_predict_a_dataset():
    model = classifier()
    rows = tf.data.Dataset.from_tensor_slices(X)
    assert_equal_prediction(model, rows.batch(33))
    assert_equal_prediction(model, tf.data.Dataset.from_tensor_slices((X, CLASSES)).batch(33))
    assert_equal_prediction(model, rows.filter(lambda x: x[0] > 0).batch(7))
    assert_equal_prediction(model, rows.repeat().batch(10), steps=4)


def test_predict_with_an_uncompiled_model():
    keras.utils.set_random_seed(1)
    assert_equal_prediction(keras.Sequential([keras.Input((5,)), layers.Dense(2)]), X)


def test_predict_with_a_predict_step_of_its_own():
    class Own(keras.Model):
        def predict_step(self, data):
            y = super().predict_step(data)
            return {"value": y, "label": ops.argmax(y, axis=-1)}

    x = keras.Input((5,))
    model = Own(x, layers.Dense(3)(x))
    model.compile("sgd", jit_compile=False)
    assert_equal_prediction(model, X)


def test_predict_outputs_with_a_first_dimension_of_their_own():
    class Flat(keras.Model):
        def call(self, x):
            return ops.reshape(x, (-1,))

    model = Flat()
    model.build((None, 5))
    assert_equal_prediction(model, X, batch_size=30)


def test_predict_outputs_of_changing_width():
    class Widths(keras.Model):
        def call(self, x):
            return tf.repeat(x, tf.shape(x)[0] // 10, axis=1)

    model = Widths()
    model.build((None, 5))
    expected = model.predict(X, batch_size=30, verbose=0)
    assert isinstance(expected, tf.RaggedTensor)
    assert expected.to_list() == loops.predict(model, X, batch_size=30).to_list()


def test_neither_leaves_a_trace():
    model = classifier()
    model.fit(X, CLASSES)
    before = [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]
    metrics = model.get_metrics_result()
    loops.evaluate(model, X[:40], CLASSES[:40])
    loops.predict(model, X[:40])
    assert_same_bits(before, [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)])
    assert_same_bits({k: np.asarray(v) for k, v in metrics.items()}, {k: np.asarray(v) for k, v in model.get_metrics_result().items()})
