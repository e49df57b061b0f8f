"""`loops.fit` gives the bits of `model.fit` whatever the data come as: arrays of any dtype and layout, dicts, strings, Python batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.loops.parity.harness import assert_parity

RNG = np.random.default_rng(7)
X = RNG.normal(size=(90, 4)).astype("float32")
CLASSES = RNG.integers(0, 3, size=90)
WEIGHTS = RNG.uniform(0.1, 2, size=90)


def classifier() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation="relu"), layers.Dropout(0.2), layers.Dense(3, activation="softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_float64_features():
    assert_parity(classifier, {"x": X.astype("float64") / 3, "y": CLASSES, "epochs": 2, "sample_weight": WEIGHTS})


@pytest.mark.parametrize("dtype", ["float16", "int32", "uint8", "bool"])
def test_features_of_other_dtypes(dtype):
    assert_parity(classifier, {"x": (10 * np.abs(X)).astype(dtype), "y": CLASSES, "epochs": 2})


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float64", "bool"])
def test_labels_of_several_dtypes(dtype):
    assert_parity(classifier, {"x": X, "y": CLASSES.astype(dtype), "epochs": 2})


STRUCTURES = {
    "a column of labels": lambda: {"x": X, "y": CLASSES[:, None]},
    "tensors": lambda: {"x": tf.constant(X), "y": tf.constant(CLASSES)},
    "a view with strides": lambda: {"x": np.repeat(X, 2, axis=0)[::2], "y": np.repeat(CLASSES, 2)[::2]},
    "fortran order": lambda: {"x": np.asfortranarray(X), "y": CLASSES},
    "a big-endian array": lambda: {"x": X.astype(">f4"), "y": CLASSES},
    "class weights on one-hot labels of one column": lambda: {"x": X, "y": CLASSES[:, None], "class_weight": {0: 2.0, 2: 0.5}},
}


@pytest.mark.parametrize("make_data", STRUCTURES.values(), ids=STRUCTURES)
def test_forms_of_arrays(make_data):
    assert_parity(classifier, make_data, epochs=2)


def test_a_memory_map(tmp_path):
    mapped = np.memmap(tmp_path / "x", "float32", "w+", shape=X.shape)
    mapped[:] = X
    assert_parity(classifier, {"x": mapped, "y": CLASSES, "epochs": 2})


def test_a_vector_of_features():
    def make():
        model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    assert_parity(make, {"x": X[:, 0], "y": X[:, 1], "epochs": 2})


def test_dicts_of_columns():
    def make():
        columns = {name: keras.Input((1,), name=name) for name in ("age", "height")}
        model = keras.Model(columns, layers.Dense(1)(layers.concatenate(list(columns.values()))))
        model.compile("sgd", "mse", metrics=["mae"])
        return model

    assert_parity(make, {"x": {"height": X[:, 0], "age": X[:, 1]}, "y": X[:, 2], "epochs": 2, "validation_split": 0.2})


def test_strings():
    words = np.array(["red", "green", "blue"])[CLASSES]

    def make():
        x = keras.Input((1,), dtype="string")
        index = layers.StringLookup(vocabulary=["blue", "green"])(x)
        model = keras.Model(x, layers.Dense(3, activation="softmax")(layers.Flatten()(layers.Embedding(3, 2)(index))))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    assert_parity(make, lambda: {"x": tf.constant(words[:, None]), "y": tf.constant(CLASSES), "epochs": 2})


class Batches(keras.utils.PyDataset):
    """Batches of 25 from Python."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return X[25 * i : 25 * (i + 1)], CLASSES[25 * i : 25 * (i + 1)]


def test_a_py_dataset():
    assert_parity(classifier, lambda: {"x": Batches(), "epochs": 2, "validation_data": Batches()})


def test_a_generator():
    def batches():
        while True:
            yield from (Batches()[i] for i in range(4))

    assert_parity(classifier, lambda: {"x": batches(), "steps_per_epoch": 3, "epochs": 3})
