"""`loops.fit` gives the bits of `model.fit` for every optimizer and every loss that Keras knows by a string.

The names are read from Keras's own tables, so that a new one fails here until it has data. What cannot be made from a string alone is
listed with the reason, and `model.fit` has to refuse it too.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from keras.src import losses, optimizers
from keras.src.utils.naming import to_snake_case

from tests.loops.parity.harness import assert_parity, keras_fit

ROWS = 44  # batches of 16, 16 and 12
RNG = np.random.default_rng(5)
X = RNG.normal(size=(ROWS, 6)).astype("float32")
SPARSE = RNG.integers(0, 3, size=(ROWS, 1))
ONE_HOT = np.eye(3, dtype="float32")[SPARSE[:, 0]]
BINARY = (SPARSE > 0).astype("float32")
POSITIVE = RNG.uniform(0.1, 2, size=(ROWS, 2)).astype("float32")

HEADS = {  # kind of data -> (targets, layers that make fitting predictions)
    "binary": (BINARY, lambda: [layers.Dense(1, activation="sigmoid")]),
    "sign": (2 * BINARY - 1, lambda: [layers.Dense(1, activation="tanh")]),
    "one hot": (ONE_HOT, lambda: [layers.Dense(3, activation="softmax")]),
    "class index": (SPARSE, lambda: [layers.Dense(3, activation="softmax")]),
    "positive": (POSITIVE, lambda: [layers.Dense(2, activation="softplus")]),
    "mask": ((X > 0).astype("float32"), lambda: [layers.Dense(6, activation="sigmoid")]),
    "embedding": (SPARSE[:, 0], lambda: [layers.Dense(4), layers.UnitNormalization()]),
    "transcript": (RNG.integers(1, 4, size=(ROWS, 2)), lambda: [layers.Dense(32), layers.Reshape((8, 4))]),
}


def sequential(kind: str) -> keras.Sequential:
    return keras.Sequential([keras.Input((6,)), *HEADS[kind][1]()])


NO_OPTIMIZERS = {
    "optimizer": "the base class",
    "multioptimizer": "needs an OptimizerMap",
    "optimizermap": "is no optimizer",
    "lossscaleoptimizer": "needs an inner optimizer",
}


@pytest.mark.parametrize("name", sorted(set(optimizers.ALL_OBJECTS_DICT) - set(NO_OPTIMIZERS)))
def test_optimizers(name):
    def make():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(2)])
        model.compile(name, "mse")
        if name == "schedulefreeadamw":
            # Its slots begin as the weights. `model.fit` builds an optimizer within a first trace that it throws away, and this with it.
            model.optimizer.build(model.trainable_variables)
        return model

    assert_parity(make, {"x": X, "y": POSITIVE, "batch_size": 16, "epochs": 2})


@pytest.mark.parametrize("name", NO_OPTIMIZERS)
def test_what_keras_makes_no_optimizer_of(name):
    with pytest.raises((ValueError, TypeError, KeyError, NotImplementedError)):
        model = sequential("positive")
        model.compile(name, "mse")
        keras_fit(model, x=X, y=POSITIVE)


LOSSES = {
    "binary": ["binary_crossentropy", "binary_focal_crossentropy"],
    "sign": ["hinge", "squared_hinge"],
    "one hot": ["categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge", "kl_divergence"],
    "class index": ["sparse_categorical_crossentropy"],
    "positive": [
        "cosine_similarity",
        "huber",
        "log_cosh",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_logarithmic_error",
        "poisson",
    ],
    "mask": ["dice", "tversky"],
    "embedding": ["circle"],
    "transcript": ["ctc"],
}
NO_LOSSES = {"Loss": "the base class", "LossFunctionWrapper": "needs a function"}
CHOSEN_BY_SHAPE = {"binary": ["ce", "crossentropy"], "one hot": ["ce", "crossentropy"], "class index": ["ce", "crossentropy"]}


def names_of(kind: str) -> list[str]:
    """Class names, function names and aliases of the losses of a kind."""
    return sorted(name for name, loss in losses.ALL_OBJECTS_DICT.items() if to_snake_case(loss.__name__) in LOSSES[kind])


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(kind):
    """Every loss under one of its names, and the name that Keras chooses a loss for by the shapes."""
    assert_all_losses(kind, [*LOSSES[kind], *CHOSEN_BY_SHAPE.get(kind, [])[:1]])


@pytest.mark.matrix
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_under_all_their_names(kind):
    assert_all_losses(kind, names_of(kind) + CHOSEN_BY_SHAPE.get(kind, []))


def assert_all_losses(kind, names):
    """Two losses in one model; its outputs share nothing, so each proves its own.

    Not more than two: the total of three or more is an AddN, which begins with whichever of its inputs is free first, so that `model.fit`
    itself may differ in the last bit from run to run.
    """
    for first in range(0, len(names), 2):
        assert_losses(kind, names[first : first + 2])


def assert_losses(kind, names):
    target, head = HEADS[kind]

    def make():
        x = keras.Input((6,))
        outputs = []
        for i, name in enumerate(names):
            output = x
            for layer in head():
                output = layer(output)
            outputs.append(layers.Identity(name=f"{name}_{i}")(output))
        model = keras.Model(x, outputs)
        model.compile("sgd", names if len(names) > 1 else names[0])
        return model

    data = {"x": X, "y": [target] * len(names) if len(names) > 1 else target, "batch_size": 16, "epochs": 2}
    expected, _ = assert_parity(make, data)
    assert len(expected.history) == len(names) + (len(names) > 1)


@pytest.mark.parametrize("name", NO_LOSSES)
def test_what_keras_makes_no_loss_of(name):
    with pytest.raises((ValueError, TypeError, KeyError, NotImplementedError)):
        model = sequential("positive")
        model.compile("sgd", name)
        keras_fit(model, x=X, y=POSITIVE)


def test_every_loss_name_is_covered():
    covered = {name for kind in LOSSES for name in names_of(kind)}
    assert all(set(LOSSES[kind]) <= set(names_of(kind)) for kind in LOSSES)
    assert covered | set(NO_LOSSES) == set(losses.ALL_OBJECTS_DICT)
