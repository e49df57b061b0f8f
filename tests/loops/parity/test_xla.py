"""Compiled by XLA, `loops.fit` gives the numbers of `model.fit` up to rounding, where no random op is involved."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import loops
from tests.loops.parity.harness import keras_fit, loops_fit, train

RNG = np.random.default_rng(14)
X = RNG.normal(size=(150, 6)).astype("float32")
DATA = {"x": X, "y": RNG.integers(0, 3, size=150), "epochs": 3}


def classifier(optimizer, *hidden, **options) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(3, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def by_xla(model, **arguments):
    return loops_fit(model, **{**arguments, "compile": "xla"})


def assert_close(expected, found, tolerance):
    assert list(expected.history) == list(found.history)
    for key, values in expected.history.items():
        np.testing.assert_allclose(found.history[key], values, rtol=tolerance, atol=tolerance, err_msg=key)
    for name, value in expected.state.items():
        if name.startswith("model"):
            np.testing.assert_allclose(found.state[name], value, rtol=tolerance, atol=tolerance, err_msg=expected.paths[name])


@pytest.mark.parametrize("batch_size", [50, 32], ids=["static", "ragged tail"])
@pytest.mark.parametrize(
    "make, tolerance",
    [
        (lambda: classifier("sgd", layers.Dense(8, activation="relu")), 1e-6),
        (lambda: classifier("adam", layers.Dense(8), layers.BatchNormalization(), layers.Activation("relu")), 1e-4),
    ],
    ids=["sgd", "adam and batch norm"],
)
def test_xla_agrees_up_to_rounding(make, tolerance, batch_size):
    arguments = {"batch_size": batch_size, "validation_data": (X[:70], DATA["y"][:70])}
    assert_close(*(train(fit, make, DATA, **arguments) for fit in (keras_fit, by_xla)), tolerance)


def test_jit_compile_is_respected():
    """A model compiled with `jit_compile=True` is compiled by XLA, as in `model.fit`."""

    def as_it_is(model, **arguments):
        return loops.fit(model, shuffle=False, verbose=0, **arguments)

    xla, given, graph = (
        train(fit, lambda: classifier("sgd", layers.Dense(64, activation="gelu"), jit_compile=True), DATA, epochs=20)
        for fit in (by_xla, as_it_is, loops_fit)
    )
    assert given.history == xla.history
    assert given.history != graph.history, "the case cannot tell XLA from a graph"
    assert_close(graph, given, 1e-5)
