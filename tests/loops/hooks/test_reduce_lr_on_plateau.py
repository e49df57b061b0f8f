"""ReduceLROnPlateau drops the rate where Keras's callback does, except for its faults."""

from __future__ import annotations

import itertools
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.hooks import Evaluate, LearningRateScheduler, ReduceLROnPlateau
from tests.loops.hooks.fake_loop import FakeLoop, tiny_model

# TensorFlow compares numbers below 1e-38 as if they were 0.
VALUES = st.one_of(
    st.none(), st.sampled_from([0.5, 0.50005, 1.0, 1.0001, math.inf, math.nan]), st.floats(-2, 2, width=32, allow_subnormal=False)
)
OPTIONS = st.fixed_dictionaries(
    {
        "factor": st.sampled_from([0.1, 0.5, 0.3]),
        "patience": st.integers(0, 3),
        "mode": st.sampled_from(["min", "max", "auto"]),
        "min_delta": st.sampled_from([1e-4, 0.0, 0.2]),
        "cooldown": st.integers(0, 3),
        "min_lr": st.sampled_from([0.0, 0.1, 0.25]),
    }
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def logs_of(values):
    return [{"loss": 1.0} if v is None else {"loss": 1.0, "val_loss": v} for v in values]


def run_keras(callback, model, values):
    model.optimizer.learning_rate = 1.0
    callback.set_model(model)
    callback.on_train_begin()
    recorded = []
    for epoch, logs in enumerate(logs_of(values)):
        callback.on_epoch_end(epoch, logs)
        recorded.append(logs["learning_rate"])
    return recorded, float(model.optimizer.learning_rate.numpy()), callback.best, callback.wait, callback.cooldown_counter


def run_ours(hook, model, values):
    model.optimizer.learning_rate = 1.0
    loop = FakeLoop([hook], model)
    history = loop.run(logs_of(values))
    return history.history["learning_rate"], float(loop.learning_rate), hook.best, hook.wait, hook.cooldown_counter


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=80)
@given(values=st.lists(VALUES, min_size=1, max_size=14), options=OPTIONS)
def test_drops_and_logs_the_rate_where_keras_does(model, values, options):
    present = [v for v in values if v is not None]
    if present and math.isnan(present[0]):
        values = [1.0 if v is not None and math.isnan(v) else v for v in values]
    expected = run_keras(keras.callbacks.ReduceLROnPlateau(**options), model, values)
    assert run_ours(ReduceLROnPlateau(**options), model, values) == expected


def test_nan_as_first_value_does_not_poison_the_best_value(model):
    rates, last, best, _, _ = run_ours(ReduceLROnPlateau(patience=2, factor=0.5), model, [math.nan, 2.0, 1.0, 1.0, 1.0])
    assert (rates, last, best) == ([1.0] * 5, 0.5, 1.0)


def test_the_logged_rate_is_the_one_of_the_epoch_whatever_the_order_of_hooks(model):
    results = []
    for order in itertools.permutations(range(3)):
        model.optimizer.learning_rate = 1.0
        hooks = [
            ReduceLROnPlateau("loss", factor=0.5, patience=1),
            LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            ReduceLROnPlateau("val_loss", factor=0.1, patience=2),
        ]
        history = FakeLoop([hooks[i] for i in order], model).run([{"loss": 1.0, "val_loss": 1.0}] * 5)
        results.append((history.history["learning_rate"], float(model.optimizer.learning_rate.numpy())))
    assert all(result == results[0] for result in results)
    expected, rate = [], 1.0
    for epoch in range(5):
        rate *= 0.9
        expected.append(rate)
        rate *= (0.5 if epoch >= 1 else 1.0) * (0.1 if epoch in (2, 4) else 1.0)
    np.testing.assert_allclose(results[0][0], expected, rtol=1e-5)


def test_a_schedule_and_a_plateau_compose():
    schedule = keras.optimizers.schedules.InverseTimeDecay(1.0, 1, 1.0)
    model = tiny_model(keras.optimizers.SGD(schedule))
    loop = FakeLoop([hook := ReduceLROnPlateau("loss", factor=0.5, patience=1)], model)
    history = loop.run([{"loss": 1.0}] * 4)
    np.testing.assert_allclose(history.history["learning_rate"], [1 / 2, 1 / 3, 1 / 4 / 2, 1 / 5 / 4], rtol=1e-6)
    assert hook.wait == 0 and loop.learning_rate.state_dict()["multipliers"] == {"model.optimizer": 0.125}


def test_a_restarted_run_goes_on_with_its_counters(model):
    values = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    undisturbed = run_ours(ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1), model, values)
    model.optimizer.learning_rate = 1.0
    first = ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1)
    before = FakeLoop([first], model)
    rates = before.run(logs_of(values[:3])).history["learning_rate"]
    second = ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = FakeLoop([second], model)
    after.progress.load_state_dict(before.progress.state_dict())
    rates = rates + after.run(logs_of(values[3:])).history["learning_rate"]
    assert (rates, float(after.learning_rate), second.best, second.wait, second.cooldown_counter) == undisturbed


def test_evaluations_within_an_epoch_can_reduce_the_rate_and_the_log_keeps_the_epochs_last_one(model):
    model.optimizer.learning_rate = 1.0
    loop = FakeLoop([Evaluate(1.0, every="2 steps"), ReduceLROnPlateau(patience=1, factor=0.5, at="evaluation")], model, steps=4)
    history = loop.run([{"loss": 1.0}] * 2)
    # Evaluations after steps 2, 4, 6, 8; the fake loop counts an optimizer's steps by epochs.
    assert float(loop.learning_rate) == 0.125
    assert history.history["learning_rate"] == [1.0, 0.5]


def test_factors_that_do_not_reduce_are_refused():
    with pytest.raises(ValueError, match="less than 1, got 1.0"):
        ReduceLROnPlateau(factor=1.0)


def test_verbose_says_what_happened(model, capsys):
    run_ours(ReduceLROnPlateau("loss", patience=1, verbose=1), model, [None, None])
    assert capsys.readouterr().out == "\nEpoch 2: ReduceLROnPlateau reduces the learning rate of model.optimizer 0.1.\n"


def test_a_rate_that_cannot_be_scaled_is_refused_before_the_first_step():
    model = tiny_model(keras.optimizers.SGD(lambda: 1e-9))
    with pytest.raises(ValueError, match="'model.optimizer' follows the function .*<lambda>, which cannot be scaled during training. Give"):
        FakeLoop([ReduceLROnPlateau("loss")], model).begin()
    with pytest.raises(ValueError, match="The task has no optimizer"):
        FakeLoop([ReduceLROnPlateau("loss")], None).begin()
