"""`loops.fit` gives the bits of `model.fit` for every way of making a Keras model out of layers."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from tests.loops.parity.harness import assert_parity

ROWS = 70  # batches of 32, 32 and 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 6)).astype("float32")
X2 = RNG.normal(size=(ROWS, 3)).astype("float32")
CLASSES = RNG.integers(0, 3, size=ROWS)
TARGETS = RNG.normal(size=(ROWS, 2)).astype("float32")


def compiled(model: keras.Model, loss="sparse_categorical_crossentropy", optimizer="sgd", metrics=("accuracy",), **options) -> keras.Model:
    model.compile(optimizer, loss, metrics=list(metrics) if isinstance(metrics, tuple) else metrics, **options)
    return model


def classifier(*hidden: keras.Layer, shape=(6,), **options) -> keras.Model:
    """Input -> hidden layers -> 3 classes."""
    return compiled(keras.Sequential([keras.Input(shape), *hidden, layers.Dense(3, activation="softmax")]), **options)


def parity(make_model, x=X, y=CLASSES, **arguments):
    assert_parity(make_model, {"x": x, "y": y, "epochs": 2, **arguments})


def test_sequential():
    parity(lambda: classifier(layers.Dense(8, activation="relu"), layers.Dense(8, activation="selu"), optimizer="adam"))


def test_a_sequential_model_that_is_built_by_its_first_batch():
    parity(
        lambda: compiled(keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")]), optimizer="adam")
    )


def test_functional_with_one_shared_layer_and_a_skip():
    def make():
        x = keras.Input((6,))
        shared = layers.Dense(6, activation="tanh")
        return compiled(keras.Model(x, layers.Dense(3, activation="softmax")(layers.concatenate([x, shared(shared(x))]))))

    parity(make)


def two_by_two(as_dict: bool) -> keras.Model:
    a, b = keras.Input((6,), name="a"), keras.Input((3,), name="b")
    joined = layers.concatenate([a, layers.Dense(4, activation="relu")(b)])
    label = layers.Dense(3, activation="softmax", name="label")(joined)
    value = layers.Dense(2, name="value")(joined)
    if as_dict:
        return keras.Model({"a": a, "b": b}, {"value": value, "label": label})
    return keras.Model([a, b], [label, value])


def test_functional_with_lists_of_inputs_and_outputs():
    def make():
        return compiled(
            two_by_two(False), ["sparse_categorical_crossentropy", "mse"], metrics=[["accuracy"], ["mae", "mse"]], loss_weights=[1.0, 0.3]
        )

    parity(make, [X, X2], [CLASSES, TARGETS], validation_split=0.2)


def test_functional_with_dicts_of_inputs_and_outputs():
    def make():
        return compiled(
            two_by_two(True),
            {"label": "sparse_categorical_crossentropy", "value": keras.losses.Huber()},
            metrics={"label": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)], "value": "mae"},
            loss_weights={"label": 0.7, "value": 2.0},
        )

    parity(make, {"b": X2, "a": X}, {"label": CLASSES, "value": TARGETS}, validation_split=0.2)


def test_an_output_without_a_loss():
    parity(lambda: compiled(two_by_two(False), [None, "mse"], metrics=[["accuracy"], None]), [X, X2], [CLASSES, TARGETS])


class Residual(keras.Model):
    """A subclassed model with a training argument, dropout, and layers in a list."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(6, activation="relu") for _ in range(2)]
        self.dropout = layers.Dropout(0.4)
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        for block in self.blocks:
            x = x + self.dropout(block(x), training=training)
        return self.head(x)


def test_subclassed():
    parity(lambda: compiled(Residual(), keras.losses.SparseCategoricalCrossentropy(from_logits=True), "adam"), validation_split=0.3)


def test_subclassed_without_a_training_argument():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3, activation="softmax")

        def call(self, inputs):
            return self.head(inputs["a"]) * ops.sigmoid(ops.sum(inputs["b"], axis=-1, keepdims=True))

    parity(lambda: compiled(Plain()), {"a": X, "b": X2})


def test_a_model_inside_a_model():
    def make():
        inner = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.BatchNormalization()])
        inner.compile("sgd", "mse", metrics=["mae"])  # what an inner model was compiled with must not show
        x = keras.Input((6,))
        return compiled(keras.Model(x, layers.Dense(3, activation="softmax")(inner(x))))

    parity(make, validation_split=0.2)
