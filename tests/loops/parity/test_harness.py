"""The comparison that the parity tests rest on: equal runs pass, and the smallest difference fails."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from tests.loops.parity.harness import Outcome, assert_parity, assert_same_bits, differences, keras_fit, same_bits, train

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")
DATA = {"x": X, "y": Y, "batch_size": 16, "epochs": 2}


def small_model() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.3), keras.layers.Dense(1, activation="sigmoid")]
    )
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def test_model_fit_equals_itself():
    assert_parity(small_model, DATA, candidate=keras_fit)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return train(keras_fit, small_model, DATA)


def test_one_bit_of_one_weight_is_found():
    def twin(model, **arguments):
        history = keras_fit(model, **arguments)
        kernel = model.layers[0].kernel.numpy()
        kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(9))
        model.layers[0].kernel.assign(kernel)
        return history

    with pytest.raises(AssertionError, match=r"model variable 0 .*kernel.*1 of 12 values differ"):
        assert_parity(small_model, DATA, candidate=twin)


@pytest.mark.parametrize(
    "change",
    [{"shuffle": True}, {"batch_size": 8}, {"epochs": 1}, {"sample_weight": np.linspace(0.5, 1.5, 40)}, {"validation_data": (X, Y)}],
    ids=lambda change: next(iter(change)),
)
def test_a_run_that_trains_differently_is_found(outcome, change):
    assert differences(outcome, train(keras_fit, small_model, DATA, **change))


@pytest.mark.parametrize("part", ["seed_generator", "optimizer variable 0", "metric variable 0", "velocity"])
def test_every_kind_of_state_is_compared(outcome, part):
    name = next(name for name in outcome.state if part in f"{name} {outcome.paths[name]}")
    other = dataclasses.replace(outcome, state={**outcome.state, name: outcome.state[name] + 1})
    assert differences(outcome, outcome) == []
    assert [problem.split(" (")[0] for problem in differences(outcome, other)] == [name]


def test_a_history_value_a_key_and_their_order_are_compared(outcome):
    def found(history):
        return differences(outcome, dataclasses.replace(outcome, history=history))[0]

    losses = outcome.history["loss"]
    assert "history['loss'][1]" in found({**outcome.history, "loss": [losses[0], np.nextafter(losses[1], 9)]})
    assert "expected 2 values, found 1" in found({**outcome.history, "loss": losses[:1]})
    assert "history keys" in found({"loss": losses})
    assert "history keys" in found(dict(reversed(outcome.history.items())))


def test_bits_are_compared_not_values():
    nan = np.array([np.nan, 1.0], "float32")
    assert same_bits(nan, -nan * np.array([1, -1], "float32"))
    assert not same_bits(np.float32(0.0), np.float32(-0.0))
    assert not same_bits(np.float32(1.0), np.float64(1.0))
    assert not same_bits(np.zeros((2, 1)), np.zeros((1, 2)))
    assert_same_bits({"a": [np.arange(3)]}, {"a": [np.arange(3)]})
    for wrong in ({"a": [np.arange(4)]}, {"b": [np.arange(3)]}, {"a": (np.arange(3),)}, {"a": []}):
        with pytest.raises(AssertionError):
            assert_same_bits({"a": [np.arange(3)]}, wrong)
