"""LearningRateScheduler sets the rate that the schedule gives, in either of its two forms, and hides no error."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from loops.hooks import LearningRateScheduler
from tests.loops.hooks.fake_loop import FakeLoop, FakeTask, tiny_model


def run_keras(schedule, epochs):
    model, rates = tiny_model(), []
    callback = keras.callbacks.LearningRateScheduler(schedule)
    callback.set_model(model)
    for epoch in range(epochs):
        callback.on_epoch_begin(epoch)
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        rates.append(logs["learning_rate"])
    return rates


@pytest.mark.parametrize(
    "schedule", [lambda epoch, rate: rate * 0.7, lambda epoch: 0.1 / (epoch + 1), lambda epoch, rate=0.3: np.float32(rate / 3)]
)
def test_rates_and_logs_are_those_of_keras(schedule):
    history = FakeLoop([LearningRateScheduler(schedule)], tiny_model()).run([{"loss": 1.0, "val_loss": 1.0}] * 4)
    assert history.history["learning_rate"] == run_keras(schedule, 4)
    assert list(history.history) == ["loss", "val_loss", "learning_rate"]


def test_a_type_error_inside_the_schedule_is_shown_as_it_is():
    def schedule(epoch, rate):
        return rate + "0.1"

    with pytest.raises(TypeError, match="unsupported operand"):
        FakeLoop([LearningRateScheduler(schedule)], tiny_model()).run([{"loss": 1.0}])


@pytest.mark.parametrize("given", [None, "fast", float("nan"), [0.1, 0.2]])
def test_what_is_no_number_is_refused_with_the_epoch(given):
    with pytest.raises(ValueError, match="has to give a finite number, but gave .* for epoch 0"):
        FakeLoop([LearningRateScheduler(lambda epoch: given)], tiny_model()).run([{"loss": 1.0}])


def test_every_optimizer_is_set_and_logged_by_name():
    task = FakeTask(None, g=keras.optimizers.SGD(1.0), d=keras.optimizers.SGD(0.5))
    history = FakeLoop([LearningRateScheduler(lambda epoch, rate: rate / 2)], task=task).run([{"loss": 1.0}] * 2)
    assert history.history["learning_rate_g"] == [0.5, 0.25]
    assert history.history["learning_rate_d"] == [0.25, 0.125]


def test_an_optimizer_with_a_schedule_of_its_own_is_refused_in_one_sentence():
    model = tiny_model(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1.0, 10, 0.5)))
    with pytest.raises(
        ValueError, match="cannot set the learning rate of optimizer 'model.optimizer', which follows the schedule Exponential"
    ):
        FakeLoop([LearningRateScheduler(lambda epoch: 0.1)], model).begin()


def test_the_schedule_has_to_be_a_function():
    with pytest.raises(TypeError, match="got 0.1"):
        LearningRateScheduler(0.1)


def test_verbose_says_what_happened(capsys):
    FakeLoop([LearningRateScheduler(lambda epoch: 0.25, verbose=1)], tiny_model()).run([{"loss": 1.0}])
    assert capsys.readouterr().out == "\nEpoch 1: LearningRateScheduler sets the learning rate of model.optimizer to 0.25.\n"
