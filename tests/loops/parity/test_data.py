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


def classifier_of(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> keras.Model:
    """A kernel for each array of features, so that each proves its own; an output for each array of labels."""
    inputs = {name: keras.Input(np.shape(x)[1:] or (1,), name=name) for name, x in features.items()}
    hidden = layers.concatenate([layers.Dense(2, activation="relu", name=f"dense_{name}")(x) for name, x in inputs.items()])
    hidden = layers.Dropout(0.2)(hidden)
    model = keras.Model(inputs, {name: layers.Dense(3, activation="softmax", name=name)(hidden) for name in labels})
    model.compile("sgd", dict.fromkeys(labels, "sparse_categorical_crossentropy"), metrics=dict.fromkeys(labels, "accuracy"))
    return model


def arrays_parity(features, labels, **arguments):
    assert_parity(lambda: classifier_of(features, labels), {"x": features, "y": labels, "epochs": 2}, **arguments)


@pytest.mark.parametrize("labels", [("int8", "uint16"), ("float64", "bool")], ids="-".join)
def test_features_and_labels_of_several_dtypes(labels):
    features = {dtype: (10 * np.abs(X)).astype(dtype) for dtype in ("float16", "int32", "uint8", "bool")}
    features["float64"] = X.astype("float64") / 3
    arrays_parity(features, {f"label_{dtype}": CLASSES.astype(dtype) for dtype in labels}, sample_weight=WEIGHTS)


def test_forms_of_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "x", "float32", "w+", shape=X.shape)
    mapped[:] = X
    features = {
        "strides": np.repeat(X, 2, axis=0)[::2],
        "fortran_order": np.asfortranarray(X),
        "big_endian": X.astype(">f4"),
        "memory_map": mapped,
        "vector": X[:, 0],
    }
    arrays_parity(features, {"strided": np.repeat(CLASSES, 2)[::2], "column": CLASSES[:, None]})


def test_tensors_and_class_weights_on_a_column_of_labels():
    assert_parity(
        classifier, lambda: {"x": tf.constant(X), "y": tf.constant(CLASSES[:, None]), "class_weight": {0: 2.0, 2: 0.5}, "epochs": 2}
    )


@pytest.mark.matrix  # a vector beside other features is tried in every run
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
