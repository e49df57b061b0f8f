"""Monitors: direction, improvement, fresh values, and what is said when the metric is not there."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops.hooks import EarlyStopping, Evaluate, MonitorHook, ReduceLROnPlateau
from tests.loops.hooks.fake_loop import FakeLoop, FakeTask, tiny_model


class Recorder(MonitorHook):
    def __init__(self, monitor, mode="auto", **kwargs):
        super().__init__(monitor, mode=mode, **kwargs)
        self.values = []

    def on_value(self, loop, value):
        self.values.append((loop.progress.step, value))


def direction(monitor, task=None, evaluations=("val",)):
    hook = Recorder(monitor)
    FakeLoop([hook], task=task or FakeTask(None), evaluations=evaluations).run([{monitor: 1.0}])
    return "max" if hook.is_improvement(2.0, 1.0) else "min"


@pytest.mark.parametrize(
    "monitor, expected",
    [
        ("loss", "min"),
        ("val_loss", "min"),
        ("test_head_loss", "min"),
        ("accuracy", "max"),
        ("val_auc", "max"),
        ("val_mse", "min"),
        ("test_r2_score", "max"),
        ("val_kl_divergence", "min"),
        ("acc", "max"),
    ],
)
def test_direction_of_known_names(monitor, expected):
    assert direction(monitor, evaluations=("val", "test")) == expected


def test_direction_is_asked_from_the_metric_objects_of_the_task():
    class Odd(keras.metrics.Mean):
        _direction = "up"

    assert direction("val_a_loss", FakeTask(None, metric=Odd(name="a_loss"))) == "max"
    assert direction("val_head_b", FakeTask(None, metrics=[Odd(name="b")])) == "max"


def test_direction_agrees_with_keras_for_every_metric_of_a_compiled_model():
    names = ["accuracy", "mae", "mse", "auc", "cosine_similarity", "kl_divergence", "precision", "root_mean_squared_error", "hinge"]
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, "sigmoid")])
    model.compile("sgd", "mse", metrics=[keras.metrics.get(name) for name in names])
    model.train_on_batch(np.ones([2, 1]), np.ones([2, 1]))
    for metric in model.get_metrics_result():
        callback = keras.callbacks.EarlyStopping(monitor=f"val_{metric}")
        callback.set_model(model)
        callback._set_monitor_op()
        expected = "max" if callback.monitor_op is keras.ops.greater or callback.monitor_op.__name__ == "greater" else "min"
        assert direction(f"val_{metric}", FakeTask(model)) == expected, metric


def test_an_unknown_direction_is_an_error_that_names_the_metric():
    with pytest.raises(ValueError, match="'val_oddness' should go up or down; pass mode='max'"):
        direction("val_oddness")


def test_asking_for_a_direction_does_not_move_keras_counter_of_unnamed_metrics():
    before = keras.metrics.Precision().name
    direction("val_precision")
    after = keras.metrics.Precision().name
    number = int(before.rpartition("_")[2]) if before != "precision" else 0
    assert after == f"precision_{number + 1}"


# Without numbers whose difference is subnormal, which TensorFlow takes for 0 and NumPy does not.
TENS, ONES = (st.floats(-bound, bound).filter(lambda value: value == 0 or abs(value) > 1e-20) for bound in (10, 1))


@given(value=TENS, reference=TENS, min_delta=ONES, mode=st.sampled_from(["min", "max"]))
def test_improvement_is_decided_as_keras_does_to_the_last_bit(value, reference, min_delta, mode):
    value, reference = float(np.float32(value)), float(np.float32(reference))
    callback = keras.callbacks.EarlyStopping(min_delta=min_delta, mode=mode)
    callback._set_monitor_op()
    assert EarlyStopping(min_delta=min_delta, mode=mode).is_improvement(value, reference) == bool(
        callback._is_improvement(value, reference)
    )


def test_nan_is_no_improvement_even_on_nothing():
    hook = Recorder("loss", "min")
    assert not hook.is_improvement(float("nan"), None)
    assert not hook.is_improvement(float("nan"), 1.0)
    assert hook.is_improvement(1.0, None)


def test_a_missing_metric_is_reported_once_with_the_nearest_names():
    hook = Recorder("val_acuracy", "max")
    with pytest.warns(UserWarning) as caught:
        FakeLoop([hook]).run([{"loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}] * 3)
    assert len(caught) == 1
    assert "Recorder waits for the metric 'val_acuracy'" in str(caught[0].message)
    assert "did you mean 'val_accuracy'?" in str(caught[0].message)


def test_without_validation_the_default_monitor_is_reported():
    with pytest.warns(UserWarning, match="'val_loss', which is not in the logs; did you mean 'loss'"):
        FakeLoop([EarlyStopping()], evaluations=()).run([{"loss": 1.0}])


def test_only_fresh_values_are_looked_at_and_waiting_for_one_is_no_reason_to_warn():
    hook = Recorder("val_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FakeLoop([hook]).run([{"loss": 1.0}, {"loss": 1.0, "val_loss": 2.0}, {"loss": 1.0}, {"loss": 1.0, "val_loss": 3.0}])
    assert hook.values == [(2, 2.0), (4, 3.0)]


def test_a_value_that_never_came_is_reported_at_the_end():
    with pytest.warns(UserWarning, match="never saw 'val_loss'"):
        FakeLoop([Recorder("val_loss", at="evaluation")]).run([{"loss": 1.0}])


def test_at_evaluation_every_evaluation_counts_whatever_its_cadence():
    class Falling:
        value = 9.0

        def __float__(self):
            self.value -= 1.0
            return self.value

    epochs, evaluations = Recorder("test_loss"), Recorder("test_loss", at="evaluation")
    FakeLoop([epochs, Evaluate(Falling(), "test", every="2 steps"), evaluations], steps=6).run([{"loss": 1.0}] * 2)
    assert evaluations.values == [(2, 8.0), (4, 7.0), (6, 6.0), (8, 5.0), (10, 4.0), (12, 3.0)]
    assert epochs.values == [(6, 6.0), (12, 3.0)]


def test_a_metric_with_several_values_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"EarlyStopping follows a single number, but 'f1_score' has the shape \(3,\)"):
        FakeLoop([EarlyStopping("f1_score")]).run([{"f1_score": np.zeros(3)}])


def test_unknown_modes_fall_back_to_auto_with_a_warning_as_in_keras():
    with pytest.warns(UserWarning, match="not 'lowest'"):
        assert ReduceLROnPlateau(mode="lowest").mode == "auto"
    with pytest.raises(ValueError, match="at='step'"):
        EarlyStopping(at="step")


def test_a_metric_in_the_model_is_found(monkeypatch):
    model = tiny_model()
    model.train_on_batch(np.ones([2, 1]), np.ones([2, 1]))
    assert direction("val_mae", FakeTask(model)) == "min"
