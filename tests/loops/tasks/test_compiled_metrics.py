"""Compiled calls give what Keras's give, of whatever metrics there are now; metrics of a user's own are left to Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from loops.tasks.compiled_metrics import MetricCalls

X, Y = np.linspace(-1, 1, 24, dtype="float32").reshape(12, 2), (np.arange(12) % 3).astype("int32")


class Counting(keras.metrics.Metric):
    """Does something in Python whenever it is reset."""

    def __init__(self):
        super().__init__(name="counting")
        self.resets = 0
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y, y_pred, sample_weight=None):
        self.total.assign_add(1.0)

    def result(self):
        return self.total

    def reset_state(self):
        self.resets += 1
        self.total.assign(0.0)


def model_with(*metrics):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=list(metrics))
    return model


@pytest.mark.parametrize("own", [False, True])
def test_results_and_resets_are_those_of_keras_every_time(own):
    model = model_with("accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2), *([Counting()] if own else []))
    calls, resets = MetricCalls(model), 0
    calls.reset()  # before there is anything to reset
    for epoch in range(5):
        model.fit(X, Y, epochs=1, verbose=0)
        expected = {name: np.asarray(value) for name, value in model.get_metrics_result().items()}
        assert expected["loss"] > 0
        found = calls.results()
        assert list(found) == list(expected) and all(np.array_equal(found[name], expected[name]) for name in expected), epoch
        if own:
            resets = model.metrics[-1].metrics[-1].resets
        calls.reset()
        assert all(float(value) == 0 for value in model.get_metrics_result().values()), epoch
        assert not own or model.metrics[-1].metrics[-1].resets == resets + 1


def test_a_model_that_was_compiled_anew_has_its_new_metrics_asked():
    model = model_with("accuracy")
    calls = MetricCalls(model)
    for _ in range(4):
        model.fit(X, Y, epochs=1, verbose=0)
        assert set(calls.results()) == {"loss", "accuracy"}
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["sparse_top_k_categorical_accuracy"])
    model.fit(X, Y, epochs=1, verbose=0)
    assert set(calls.results()) == {"loss", "sparse_top_k_categorical_accuracy"}


def test_only_what_is_keras_own_is_compiled_and_that_is_after_two_calls(monkeypatch):
    class Reporting(keras.Sequential):
        epoch = 0

        def get_metrics_result(self):
            return {**super().get_metrics_result(), "epoch": self.epoch}

    plain, reporting = model_with("accuracy"), Reporting([keras.Input([2]), keras.layers.Dense(3, activation="softmax")])
    reporting.compile("sgd", "sparse_categorical_crossentropy")
    plain.evaluate(X, Y, verbose=0), reporting.evaluate(X, Y, verbose=0)
    calls, left_to_keras = MetricCalls(plain), MetricCalls(reporting)
    for epoch in range(5):
        reporting.epoch = epoch
        assert left_to_keras.results()["epoch"] == epoch
        calls.results()
    monkeypatch.setattr(keras.Model, "get_metrics_result", lambda model: pytest.fail("asked in Python"))
    assert float(calls.results()["loss"]) > 0


def other_beta(model):
    model.metrics[-1].metrics[-1].beta = 4.0


def other_epsilon(model):
    keras.config.set_epsilon(0.5)


def other_method(model):
    model.get_metrics_result = lambda: {"f": 7.0}


@pytest.mark.parametrize("change", [other_beta, other_epsilon, other_method])
def test_what_only_a_result_reads_may_change_between_two_passes(change):
    """Whoever makes the passes: a loop of the user's own asks nothing else of the metrics."""
    model = model_with()
    model.compile("sgd", "mse", metrics=[keras.metrics.FBetaScore(average="macro", threshold=0.2, name="f")])
    targets, calls, epsilon = np.eye(3, dtype="float32")[Y], MetricCalls(model), keras.config.epsilon()

    def result():
        calls.reset()
        model.test_on_batch(X, targets)
        return float(calls.results()["f"])

    try:
        before = [result() for _ in range(4)][-1]
        change(model)
        after = result()
        assert after == float(model.get_metrics_result()["f"]) and abs(after - before) > 1e-3
    finally:
        keras.config.set_epsilon(epsilon)
