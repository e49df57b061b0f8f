"""`loops.fit` gives the bits of `model.fit` for layers that do more than multiply: noise, statistics, penalties, masks, state."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.loops.parity.harness import assert_parity

ROWS = 70  # batches of 32, 32 and 6
RNG = np.random.default_rng(13)
X = RNG.normal(size=(ROWS, 6)).astype("float32")
IMAGES = RNG.uniform(size=(ROWS, 8, 8, 1)).astype("float32")
TOKENS = RNG.integers(0, 9, size=(ROWS, 5)).astype("int32")  # 0 is masked
CLASSES = RNG.integers(0, 3, size=ROWS)


def compiled(model: keras.Model, optimizer="sgd", **options) -> keras.Model:
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def classifier(*hidden: keras.Layer, shape=(6,), **options) -> keras.Model:
    """Input -> hidden layers -> 3 classes."""
    return compiled(keras.Sequential([keras.Input(shape), *hidden, layers.Dense(3, activation="softmax")]), **options)


def parity(make_model, x=X, y=CLASSES, **arguments):
    assert_parity(make_model, {"x": x, "y": y, "epochs": 2, **arguments})


NOISE = {
    "dropout": lambda: [layers.Dropout(0.5)],
    "two dropouts": lambda: [layers.Dropout(0.3), layers.Dense(6), layers.Dropout(0.3)],
    "seeded dropout": lambda: [layers.Dropout(0.5, seed=3)],
    "alpha dropout": lambda: [layers.Dense(6, activation="selu"), layers.AlphaDropout(0.2)],
    "gaussian noise": lambda: [layers.GaussianNoise(0.3), layers.GaussianDropout(0.2)],
}


@pytest.mark.parametrize("hidden", NOISE.values(), ids=NOISE)
def test_noise(hidden):
    parity(lambda: classifier(*hidden()), validation_split=0.2)


STATISTICS = {
    "batch norm": lambda: [layers.Dense(6), layers.BatchNormalization(), layers.Activation("relu"), layers.Dropout(0.3)],
    "layer norm": lambda: [layers.Dense(6), layers.LayerNormalization()],
    "spectral norm": lambda: [layers.SpectralNormalization(layers.Dense(6))],
}


@pytest.mark.parametrize("hidden", STATISTICS.values(), ids=STATISTICS)
def test_normalization(hidden):
    parity(lambda: classifier(*hidden(), optimizer="adam"), validation_split=0.2)


FROZEN = {
    "batch norm": lambda: [layers.Dense(6), layers.BatchNormalization(trainable=False)],
    "first layer": lambda: [layers.Dense(6, trainable=False), layers.Dense(6)],
}


@pytest.mark.parametrize("hidden", FROZEN.values(), ids=FROZEN)
def test_frozen_layers(hidden):
    """Slots of the optimizer included: there are none for frozen variables."""
    parity(lambda: classifier(*hidden(), optimizer="adam"))


PENALTIES = {
    "l2": lambda: [layers.Dense(6, kernel_regularizer="l2", bias_regularizer=keras.regularizers.L1(0.1))],
    "l1 and l2": lambda: [layers.Dense(6, kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02))],
    "activity": lambda: [layers.Dense(6, activity_regularizer=keras.regularizers.L2(0.1)), layers.ActivityRegularization(l1=0.01)],
    "constraint": lambda: [layers.Dense(6, kernel_constraint=keras.constraints.MaxNorm(0.5), bias_constraint="non_neg")],
}


@pytest.mark.parametrize("hidden", PENALTIES.values(), ids=PENALTIES)
def test_regularizers_and_constraints(hidden):
    parity(lambda: classifier(*hidden()), validation_split=0.2)


class Penalized(layers.Layer):
    """Adds a loss that depends on the batch."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        y = self.dense(x)
        self.add_loss(0.01 * ops.mean(ops.square(y)))
        self.add_loss(0.001 * ops.sum(ops.abs(self.dense.kernel)))
        return y


def test_add_loss():
    parity(lambda: classifier(Penalized(), Penalized()), validation_split=0.2)


def test_add_loss_alone():
    def make():
        model = keras.Sequential([keras.Input((6,)), Penalized()])
        model.compile("sgd")
        return model

    parity(make, y=None)


def test_images():
    parity(
        lambda: classifier(
            layers.RandomFlip("horizontal"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.SpatialDropout2D(0.2),
            layers.GlobalAveragePooling2D(),
            shape=(8, 8, 1),
            optimizer="adam",
        ),
        x=IMAGES,
    )


def test_masked_sequences():
    def make():
        tokens = keras.Input((5,), dtype="int32")
        states = layers.LSTM(4, return_sequences=True)(layers.Embedding(9, 4, mask_zero=True)(tokens))
        return compiled(keras.Model(tokens, layers.Dense(3, activation="softmax")(states)), weighted_metrics=["accuracy"])

    parity(make, x=TOKENS, y=np.repeat(CLASSES[:, None], 5, axis=1))


def test_attention():
    def make():
        tokens = keras.Input((5,), dtype="int32")
        states = layers.Embedding(9, 4, mask_zero=True)(tokens)
        states = layers.MultiHeadAttention(2, 3, dropout=0.1)(states, states)
        return compiled(
            keras.Model(tokens, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(states))), optimizer="adam"
        )

    parity(make, x=TOKENS)


def test_a_stateful_rnn_carries_its_state_over_batches_and_epochs():
    def make():
        model = keras.Sequential([keras.Input(batch_shape=(10, 6, 1)), layers.GRU(3, stateful=True), layers.Dense(3, activation="softmax")])
        return compiled(model)

    parity(make, x=X[..., None], batch_size=10)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(policy):
    parity(lambda: classifier(layers.Dense(6, dtype=policy), layers.Dense(3, dtype=policy), optimizer="adam"))
