"""Layer metrics in training: `model.fit`, `loops.fit`, `SupervisedTask` and a task of one's own report the same numbers."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
import loops
from tests.layers.reporters import Reporter, ReportingModel, Wrapper, expected

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((20, 4)).astype("float32"), RANDOM.standard_normal((20, 1)).astype("float32")
VALIDATION = RANDOM.standard_normal((6, 4)).astype("float32"), RANDOM.standard_normal((6, 1)).astype("float32")


def functional():
    inputs = keras.Input([4])
    return layers.Model(inputs, keras.layers.Dense(1)(Wrapper(Reporter(name="reporter"), name="wrapper")(inputs)))


def sequential():
    return keras.Sequential([Reporter(units=1, name="reporter", declare=False)])


def subclassed():
    return ReportingModel(name="model")


def nested():
    inputs = keras.Input([4])
    return keras.Model(inputs, ReportingModel(name="model")(inputs))


MODELS = {f.__name__: f for f in (functional, sequential, subclassed, nested)}


def compiled(kind):
    keras.utils.set_random_seed(1)
    model = MODELS[kind]()
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"], jit_compile=False)
    return model


@functools.cache
def history_of(kind, mode):
    """Of `model.fit`, or of `loops.fit` in one of its modes."""
    settings = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, "validation_data": VALIDATION}
    fit = keras.Model.fit if mode == "keras" else functools.partial(loops.fit, compile=mode)
    return fit(compiled(kind), X, Y, **settings).history


def models(*names):
    """These, and the others for `pytest -m matrix`."""
    return [kind if kind in names else pytest.param(kind, marks=pytest.mark.matrix) for kind in MODELS]


@pytest.mark.parametrize("kind", models("functional", "sequential", "nested"))
def test_layer_metrics_of_training_and_validation_are_reported(kind):
    history = history_of(kind, "graph")
    name = "reporter" if "reporter/mean" in history else "model_reporter"
    # Inputs do not change while training, so each epoch has the numbers of the data; "last" are the 4 of the ragged last batch.
    wanted = expected(name, X[:8], X[8:16], X[16:]) | {f"val_{k}": v for k, v in expected(name, VALIDATION[0]).items()}
    for key, value in wanted.items():
        np.testing.assert_allclose(history[key], [value] * 2, rtol=1e-4, atol=1e-5, err_msg=key)
    if kind in ("subclassed", "nested"):
        np.testing.assert_allclose(history["val_model/top"], [VALIDATION[0].max()] * 2)


@pytest.mark.parametrize("kind", models("functional", "nested"))
def test_model_fit_reports_the_same_to_the_bit(kind):
    history, keras_history = history_of(kind, "graph"), history_of(kind, "keras")
    assert {*history} == {*keras_history}
    for key, values in keras_history.items():
        np.testing.assert_array_equal(history[key], values, err_msg=key)


def test_loops_reports_them_under_xla_too():
    plain, xla = history_of("functional", "graph"), history_of("functional", "xla")
    assert {*plain} == {*xla}
    for key, values in plain.items():
        np.testing.assert_allclose(xla[key], values, rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_supervised_task_reports_them():
    keras.utils.set_random_seed(1)
    task = loops.SupervisedTask(MODELS["nested"](), loss="mse", optimizer=keras.optimizers.SGD(0.05), metrics=["mae"])
    feeds = loops.ArrayFeed((X, Y), 8), loops.ArrayFeed(VALIDATION, 8)
    history = loops.TrainLoop(task, feeds[0], evaluate={"val": feeds[1]}, compile="graph").run(epochs=2).history
    reference = history_of("nested", "keras")
    assert {*history} == {*reference}
    for key, values in reference.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_task_of_ones_own_returns_the_layers_metrics_and_they_are_reset_every_epoch():
    class Task(loops.Task):
        def __init__(self):
            super().__init__()
            self.model = MODELS["functional"]()
            self.optimizer = keras.optimizers.SGD(0.05)

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss("mse", y, self.model(x, training=True)) + self.losses_of(self.model)
            self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
            return {"loss": loss, **{metric.name: metric for metric in self.model.metrics}}

    history = loops.TrainLoop(Task(), loops.ArrayFeed((X, Y), 8), compile="graph").run(epochs=2).history
    for key, value in expected("reporter", X[:8], X[8:16], X[16:]).items():
        np.testing.assert_allclose(history[key], [value] * 2, rtol=1e-4, atol=1e-5, err_msg=key)


def test_evaluate_reports_them():
    model = compiled("functional")
    for logs in (model.evaluate(*VALIDATION, verbose=0, return_dict=True), loops.evaluate(model, *VALIDATION)):
        for key, value in expected("reporter", VALIDATION[0]).items():
            if key != "reporter/last":  # of the last batch
                np.testing.assert_allclose(logs[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
