"""The batch dimension is known to the compiled step exactly when it is in `model.fit`.

A step that is traced for an unknown batch size rounds batch statistics otherwise than one that is traced for 50. Powers of two and data
with a tail hide it; 50 of 3,000 rows with batch norm does not, and the decisions of a plateau make the difference grow.
"""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.loops.parity.harness import assert_parity, keras_fit

X = np.random.default_rng(3).normal(size=(3000, 8)).astype("float32")
Y = np.sin(X.sum(axis=1, keepdims=True)).astype("float32")
DATA = {"x": X, "y": Y, "batch_size": 50}
CASES = [f"{training} training, {validation} validation" for training in ("static", "ragged") for validation in ("static", "ragged")]


def batch_norm_model() -> keras.Model:
    model = keras.Sequential([keras.Input((8,)), layers.Dense(30, activation="relu"), layers.BatchNormalization(), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "mse", metrics=["mae"])
    return model


def test_the_case_tells_a_known_batch_size_from_an_unknown_one():
    def unknown(model, x, y, batch_size, **arguments):
        return keras_fit(model, x=tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size), **arguments)

    with pytest.raises(AssertionError, match="not the bits of model.fit"):
        assert_parity(batch_norm_model, DATA, candidate=unknown)


def test_batch_50_on_3000_rows_over_a_long_run():
    expected, _ = assert_parity(
        batch_norm_model,
        DATA,
        epochs=14,
        validation_data=(X[:750], Y[:750]),
        validation_batch_size=50,
        callbacks=lambda: [keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=1e-3)],
    )
    assert len(set(expected.history["learning_rate"])) > 2, "no decision of the plateau was put to the test"


@pytest.mark.parametrize("rows, validated", list(itertools.product([2950, 2951], [675, 670])), ids=CASES)
def test_training_and_validation_each_have_their_own_rule(rows, validated):
    data = {"x": X[:rows], "y": Y[:rows], "batch_size": 50}
    assert_parity(batch_norm_model, data, validation_data=(X[:validated], Y[:validated]), validation_batch_size=45)
