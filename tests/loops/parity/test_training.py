"""`loops.fit` gives the bits of `model.fit` for every argument of `fit` and every setting of `compile` that changes what is learnt."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import loops
from tests.loops.parity.harness import assert_outcomes, assert_parity, keras_fit, loops_fit, same_bits, train

RNG = np.random.default_rng(2)
X = RNG.normal(size=(160, 6)).astype("float32")
CLASSES = RNG.integers(0, 3, size=160)
WEIGHTS = RNG.uniform(0.1, 3, size=160)
DATA = {"x": X, "y": CLASSES}  # 5 batches of 32
VALIDATION = (X[::2] + 1, CLASSES[::2])


def classifier(optimizer="sgd", units=6, **options) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(units, activation="relu"), layers.Dropout(0.2), layers.Dense(3)])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **{"metrics": ["accuracy"], **options})
    return model


def two_heads(**options) -> keras.Model:
    x = keras.Input((6,))
    model = keras.Model(x, {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(2, name="b")(x)})
    model.compile("sgd", {"a": "mse", "b": "mae"}, **options)
    return model


HEADS = {"x": X, "y": {"a": X[:, :1], "b": X[:, :2] ** 2}, "epochs": 2}

ARGUMENTS = {
    "class weights": {"class_weight": {0: 1.0, 1: 5.0, 2: 0.2}},
    "class weights of some": {"class_weight": {1: 5.0}},
    "sample weights": {"sample_weight": WEIGHTS},
    "sample weights of zero": {"sample_weight": (np.arange(160) % 3 == 0).astype("float32")},
    "validation data": {"validation_data": VALIDATION},
    "weighted validation data": {"validation_data": (*VALIDATION, WEIGHTS[:80]), "sample_weight": WEIGHTS},
    "validation split": {"validation_split": 0.25},
    "weighted validation split": {"validation_split": 0.21, "sample_weight": WEIGHTS},
    "validation every 2 epochs": {"validation_data": VALIDATION, "validation_freq": 2, "epochs": 5},
    "validation in epochs 1 and 4": {"validation_data": VALIDATION, "validation_freq": [1, 4], "epochs": 4},
    "validation never due": {"validation_data": VALIDATION, "validation_freq": 9},
    "validation steps": {"validation_data": VALIDATION, "validation_steps": 2, "epochs": 3},
    "validation batch size": {"validation_data": VALIDATION, "validation_batch_size": 7},
    "initial epoch": {"initial_epoch": 3, "epochs": 5, "validation_split": 0.2},
    "one epoch left": {"initial_epoch": 3, "epochs": 4, "batch_size": 160},
    "steps per epoch, 3 + 2 + 3 + 2": {"steps_per_epoch": 3, "epochs": 4},
    "steps per epoch, a whole pass": {"steps_per_epoch": 5, "epochs": 2},
    "steps per epoch, one of five": {"steps_per_epoch": 1, "epochs": 7},
    "steps per epoch without a batch size": {"steps_per_epoch": 4, "batch_size": None, "epochs": 2},
    "steps per epoch with validation": {"steps_per_epoch": 2, "epochs": 3, "validation_data": VALIDATION},
    "ragged last batch": {"batch_size": 50},
    "ragged last batch of one": {"batch_size": 53, "epochs": 3},
    "one batch": {"batch_size": 160},
    "batch larger than the data": {"batch_size": 999},
    "batch of one": {"batch_size": 1, "epochs": 1},
    "ragged training, static validation": {"batch_size": 48, "validation_data": VALIDATION, "validation_batch_size": 40},
    "static training, ragged validation": {"batch_size": 40, "validation_data": VALIDATION, "validation_batch_size": 48},
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_fit(arguments):
    assert_parity(classifier, DATA, **{"epochs": 2, **arguments})


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"epochs": 2, "initial_epoch": 2}], ids=["no epochs", "none left"])
def test_nothing_to_do(arguments):
    expected, found = (train(fit, lambda: classifier("adam"), DATA, **arguments) for fit in (keras_fit, loops_fit))
    assert found.history == expected.history == {}
    assert found.epochs == expected.epochs == []
    weights = [name for name in expected.state if name.startswith("model")]
    assert all(same_bits(expected.state[name], found.state[name]) for name in weights)


def test_a_model_compiled_to_run_eagerly():
    def as_it_is(model, **arguments):
        return loops.fit(model, shuffle=False, verbose=0, **arguments)

    assert_parity(lambda: classifier(run_eagerly=True), DATA, candidate=as_it_is, epochs=2, validation_split=0.2)


COMPILED = {
    "weighted metrics": lambda: classifier(metrics=None, weighted_metrics=["accuracy"]),
    "weighted and plain metrics": lambda: classifier(weighted_metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="ce")]),
    "no metrics": lambda: classifier(metrics=None),
    "steps_per_execution is ignored": lambda: classifier(steps_per_execution=2),
    "loss scaling": lambda: classifier("sgd", auto_scale_loss=True),
}


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_settings_of_compile(make):
    assert_parity(make, DATA, epochs=2, sample_weight=WEIGHTS)


@pytest.mark.parametrize(
    "weights",
    [WEIGHTS, {"a": WEIGHTS, "b": WEIGHTS[::-1] ** 2}],
    ids=["one array for all outputs", "an array for each output"],
)
def test_sample_weights_of_several_outputs(weights):
    assert_parity(lambda: two_heads(weighted_metrics={"a": ["mae"], "b": ["mse"]}), HEADS, sample_weight=weights)


def test_loss_weights():
    assert_parity(lambda: two_heads(loss_weights={"a": 0.3, "b": 3.0}, metrics={"b": ["mse"]}), HEADS, validation_split=0.2)


def test_a_weight_for_each_time_step():
    def make():
        model = keras.Sequential([keras.Input((6, 1)), layers.SimpleRNN(3, return_sequences=True), layers.Dense(1)])
        model.compile("sgd", "mse", weighted_metrics=["mae"])
        return model

    assert_parity(make, {"x": X[..., None], "y": X[..., None] ** 2, "sample_weight": RNG.uniform(size=X.shape), "epochs": 2})


def twice(fit):
    def fit_twice(model, **arguments):
        fit(model, **arguments)
        return fit(model, **{**arguments, "initial_epoch": 2, "epochs": 4})

    return fit_twice


def test_a_second_call_goes_on_where_the_first_ended():
    assert_parity(lambda: classifier("adam"), DATA, reference=twice(keras_fit), candidate=twice(loops_fit), epochs=2, validation_split=0.2)


def test_model_fit_and_loops_fit_take_turns():
    def turns(first, second):
        def fit(model, **arguments):
            first(model, **arguments)
            return second(model, **{**arguments, "initial_epoch": 2, "epochs": 4})

        return fit

    expected = train(twice(keras_fit), lambda: classifier("adam"), DATA, epochs=2)
    for order in (turns(keras_fit, loops_fit), turns(loops_fit, keras_fit)):
        assert_outcomes(expected, train(order, lambda: classifier("adam"), DATA, epochs=2))
