"""`loops.fit` gives the bits of `model.fit` where a model overrides `train_step` or another of the methods that Keras offers for it."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.loops.parity.harness import assert_parity

RNG = np.random.default_rng(1)
X = RNG.normal(size=(70, 6)).astype("float32")
Y = RNG.normal(size=(70, 1)).astype("float32")
DATA = {"x": X, "y": Y, "epochs": 3}


def regression(cls: type[keras.Model], **compile_arguments) -> keras.Model:
    x = keras.Input((6,))
    model = cls(x, layers.Dense(1)(layers.Dropout(0.2)(layers.Dense(5, activation="relu")(x))))
    model.compile(**{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], **compile_arguments})
    return model


class ReportsMetrics(keras.Model):
    """The tutorial's train_step: returns the model's own metrics."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        for metric in self.metrics:
            metric.update_state(loss) if metric.name == "loss" else metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


def test_a_train_step_that_returns_metrics():
    assert_parity(lambda: regression(ReportsMetrics), DATA, validation_split=0.2)


class ReportsOtherKeys(ReportsMetrics):
    """Returns what is no metric: Keras records the last batch's values."""

    def train_step(self, data):
        super().train_step(data)
        x, y = data
        return {"gap": tf.reduce_mean(self(x) - y), "kernel_norm": tf.norm(self.layers[1].kernel)}

    def test_step(self, data):
        x, y = data
        return {"gap": tf.reduce_max(self(x) - y)}


def test_a_train_step_that_returns_other_keys():
    assert_parity(lambda: regression(ReportsOtherKeys), DATA)


def test_a_test_step_that_returns_other_keys():
    assert_parity(lambda: regression(ReportsOtherKeys), DATA, validation_data=(X[:50], Y[:50]), validation_freq=2)


class ReportsOnlyItsLoss(keras.Model):
    """Returns a loss of its own beside Keras's untouched loss tracker, and a nested dict."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.abs(y - self(x, training=True)))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return {"my_loss": loss, "more": {"squared": loss**2}}


def test_a_train_step_that_returns_a_loss_of_its_own():
    assert_parity(lambda: regression(ReportsOnlyItsLoss, metrics=None), DATA)


class OwnTrackers(keras.Model):
    """Compiled with an optimizer only; keeps its trackers as attributes and lists them in `metrics`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = ops.mean((y - y_pred) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    def test_step(self, data):
        x, y = data
        self.mae_metric.update_state(y, self(x, training=False))
        return {"mae": self.mae_metric.result()}


def test_trackers_of_its_own_and_no_compiled_loss():
    assert_parity(lambda: regression(OwnTrackers, loss=None, metrics=None), DATA)


def test_trackers_of_its_own_with_validation():
    assert_parity(lambda: regression(OwnTrackers, loss=None, metrics=None), DATA, validation_data=(X[:40], Y[:40]))


class OwnLossAndMetrics(keras.Model):
    """Overrides compute_loss and compute_metrics instead of train_step."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training=training) + 0.1 * ops.mean(ops.abs(y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        results["twice_mae"] = 2 * results["mae"]
        return results


def test_compute_loss_and_compute_metrics_are_respected():
    assert_parity(lambda: regression(OwnLossAndMetrics), DATA, validation_split=0.2)


class TwoOptimizers(keras.Model):
    """A GAN: two networks, two optimizers, a seed generator, losses of its own; `compile` takes what it needs."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(6)])
        self.critic = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dropout(0.2), layers.LeakyReLU(), layers.Dense(1)])
        self.noise = keras.random.SeedGenerator(5)
        self.built = True

    def compile(self, critic_optimizer, generator_optimizer):
        super().compile()
        self.critic_optimizer, self.generator_optimizer = critic_optimizer, generator_optimizer
        self.critic_loss, self.generator_loss = keras.metrics.Mean("critic_loss"), keras.metrics.Mean("generator_loss")

    def train_step(self, real):
        if isinstance(real, tuple):
            real = real[0]
        noise = keras.random.normal((tf.shape(real)[0], 2), seed=self.noise)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.critic(self.generator(noise), training=True)) - tf.reduce_mean(self.critic(real, training=True))
        weights = self.critic.trainable_variables
        self.critic_optimizer.apply(tape.gradient(loss, weights), weights)
        self.critic_loss.update_state(loss)
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.critic(self.generator(noise), training=True))
        weights = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(loss, weights), weights)
        self.generator_loss.update_state(loss)
        return {"c": self.critic_loss.result(), "g": self.generator_loss.result()}


def test_two_optimizers():
    def make():
        model = TwoOptimizers()
        model.compile(keras.optimizers.Adam(1e-2), keras.optimizers.RMSprop(1e-3))
        return model

    assert_parity(make, {"x": X, "epochs": 3})
