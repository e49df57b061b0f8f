"""`loops.fit` gives the bits of `model.fit` for `tf.data` of any kind: known and unknown length, shuffled, repeated, ragged, sparse.

Making a dataset's iterator advances the seed of its next reshuffle, pulled from or not: as many have to be made as Keras makes.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.loops.parity.harness import assert_parity, differences, keras_fit, loops_fit, train

RNG = np.random.default_rng(8)
X = RNG.normal(size=(90, 4)).astype("float32")
CLASSES = RNG.integers(0, 3, size=90)
WEIGHTS = RNG.uniform(0.1, 2, size=90).astype("float32")

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")


def classifier() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation="relu"), layers.Dropout(0.2), layers.Dense(3, activation="softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def deterministic_classifier() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def rows(*more: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, CLASSES, *more))


def keep_some(x, y):
    return y < 2


DATASETS = {
    "static batches": lambda: {"x": rows().batch(15)},
    "a ragged tail": lambda: {"x": rows().batch(32)},
    "a dropped tail": lambda: {"x": rows().batch(32, drop_remainder=True)},
    "sample weights": lambda: {"x": rows(WEIGHTS).batch(32)},
    "a seeded shuffle": lambda: {"x": rows().shuffle(90, seed=3).batch(32), "epochs": 3},
    "a seeded shuffle that is the same in each epoch": lambda: {"x": rows().shuffle(90, seed=3, reshuffle_each_iteration=False).batch(32)},
    "repeated": lambda: {"x": rows().batch(32).repeat(), "steps_per_epoch": 2, "epochs": 3},
    "repeated, shuffled": lambda: {"x": rows().shuffle(90, seed=3).repeat().batch(32), "steps_per_epoch": 2, "epochs": 4},
    "repeated twice": lambda: {"x": rows().shuffle(90, seed=3).batch(32).repeat(2)},
    "steps of a pass, shuffled": lambda: {"x": rows().shuffle(90, seed=3).batch(18), "steps_per_epoch": 3, "epochs": 4},
    "mapped, cached, prefetched": lambda: {"x": rows().map(lambda x, y: (x * 2, y)).cache().shuffle(50, seed=1).batch(32).prefetch(2)},
    "one batch": lambda: {"x": rows().batch(90)},
}


@pytest.mark.parametrize("make_data", DATASETS.values(), ids=DATASETS)
def test_datasets(make_data):
    assert_parity(classifier, lambda: {"epochs": 2, **make_data()})


UNKNOWN = {
    "filtered": lambda: {"x": rows().filter(keep_some).batch(16)},
    "filtered, shuffled": lambda: {"x": rows().shuffle(90, seed=3).filter(keep_some).batch(16)},
    "one batch": lambda: {"x": rows().filter(keep_some).batch(90)},
    "interleaved": lambda: {"x": tf.data.Dataset.range(3).interleave(lambda i: rows().shard(3, i), cycle_length=2).batch(20)},
    "some steps, 3 + 1 + 3": lambda: {"x": rows().filter(keep_some).batch(LENGTH // 4 + 1), "steps_per_epoch": 3, "ends": 1},
    "more steps than there are": lambda: {"x": rows().filter(keep_some).batch(16), "steps_per_epoch": 9},
}
LENGTH = int(keep_some(X, CLASSES).sum())


@pytest.mark.parametrize("make_data", UNKNOWN.values(), ids=UNKNOWN)
def test_datasets_of_unknown_length(make_data):
    """With `steps_per_execution=1`, Keras finds the end by running one step more, on nothing.

    What needs no data of that step is done: the optimizer counts it (and all seed generators move on, see below).
    """
    epochs = 3
    ends = make_data().get("ends", epochs)

    def plain(model, *, ends=None, **arguments):
        return keras_fit(model, **arguments)

    def ours(model, *, ends=None, **arguments):
        return loops_fit(model, **arguments)

    expected, found = (train(fit, deterministic_classifier, make_data, epochs=epochs) for fit in (plain, ours))
    count = "optimizer variable 0"
    assert expected.paths[count] == "sgd/iteration"
    expected.state[count] -= ends
    assert differences(expected, found) == []


def test_dropout_over_data_of_unknown_length():
    """The same as on the same batches with their number known, which spares Keras the step on nothing."""

    def known(model, x, **arguments):
        return keras_fit(model, x=x.apply(tf.data.experimental.assert_cardinality(-(-LENGTH // 16))), **arguments)

    assert_parity(classifier, lambda: {"x": rows().filter(keep_some).batch(16), "epochs": 3}, reference=known)


def test_an_epoch_is_never_empty():
    """Where 2 of 4 batches are an epoch and the length is unknown, Keras records a third epoch without a step, of loss 0."""
    data = {"steps_per_epoch": 2, "epochs": 3}
    expected, found = (
        train(fit, deterministic_classifier, lambda: {"x": rows().filter(keep_some).batch(-(-LENGTH // 4)), **data})
        for fit in (keras_fit, loops_fit)
    )
    assert expected.history["loss"][:2] == found.history["loss"][:2]
    assert expected.history["loss"][2] == 0.0 < found.history["loss"][2]


VALIDATIONS = {
    "known": lambda: {"validation_data": rows().batch(32)},
    "unknown, weighted": lambda: {"validation_data": rows(WEIGHTS).filter(lambda x, y, w: y < 2).batch(32)},
    "shuffled, some steps": lambda: {"validation_data": rows().shuffle(90, seed=5).batch(10), "validation_steps": 3},
    "shuffled, unknown, some steps": lambda: {
        "validation_data": rows().filter(keep_some).shuffle(90, seed=5).batch(10),
        "validation_steps": 3,
        "validation_freq": 2,
    },
    # (shuffled after it is repeated: the other way round, the seed moves on whenever reading ahead comes to the end of a pass)
    "repeated, some steps": lambda: {"validation_data": rows().repeat().shuffle(90, seed=5).batch(16), "validation_steps": 4},
    "arrays": lambda: {"validation_data": (X[:50], CLASSES[:50]), "validation_batch_size": 20},
}


@pytest.mark.parametrize("make_validation", VALIDATIONS.values(), ids=VALIDATIONS)
def test_validation_datasets(make_validation):
    assert_parity(classifier, lambda: {"x": rows().shuffle(90, seed=3).batch(32), "epochs": 3, **make_validation()})


def test_batches_of_changing_length():
    def make():
        model = keras.Sequential([keras.Input((None, 1)), layers.GRU(3), layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    lengths = 1 + np.arange(90) % 7
    sequences = tf.ragged.constant([[[float(i)]] * n for i, n in enumerate(lengths)], ragged_rank=1, inner_shape=(1,))

    def data():
        ragged = tf.data.Dataset.from_tensor_slices((sequences / 90.0, CLASSES))
        return {"x": ragged.map(lambda x, y: (x, y)).padded_batch(8), "epochs": 2}

    assert_parity(make, data)


def test_ragged_batches():
    class Bag(keras.Model):
        """The mean of as many embedded tokens as a row has."""

        def __init__(self):
            super().__init__()
            self.embedding, self.head = layers.Embedding(9, 2), layers.Dense(3, activation="softmax")

        def call(self, tokens):
            if isinstance(tokens, tf.RaggedTensor):
                tokens = tokens.to_tensor()
            return self.head(tf.reduce_mean(self.embedding(tokens), axis=1))

    def make():
        model = Bag()
        model(np.zeros((1, 2), "int32"))
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    tokens = tf.ragged.constant([[t % 9] * (1 + t % 4) for t in range(90)])
    assert_parity(make, lambda: {"x": tf.data.Dataset.from_tensor_slices((tokens, CLASSES)).batch(16), "epochs": 2})


def test_sparse_features():
    mask = X * (X > 0.5)

    def make():
        x = keras.Input((4,), sparse=True)
        model = keras.Model(x, layers.Dense(3, activation="softmax")(x))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    assert_parity(make, lambda: {"x": tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(mask), CLASSES)).batch(32), "epochs": 2})


def test_a_dataset_that_holds_strings():
    words = np.array(["red", "green", "blue"])[CLASSES]

    def make():
        x = keras.Input((), dtype="string")
        index = layers.StringLookup(vocabulary=["blue", "green"])(x)
        model = keras.Model(x, layers.Dense(3, activation="softmax")(layers.Embedding(3, 2)(index)))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    assert_parity(make, lambda: {"x": tf.data.Dataset.from_tensor_slices((words, CLASSES)).shuffle(90, seed=3).batch(32), "epochs": 2})
