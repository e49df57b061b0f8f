"""Hooks that act on a condition: when it is met, and what is said about conditions that cannot be."""

from __future__ import annotations

import math

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loops.hooks import ConditionHook, Evaluate, LoadWeights, Notify, Unfreeze
from tests.loops.hooks.fake_loop import FakeLoop


class Recorder(ConditionHook):
    def __init__(self, *args, times=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.times, self.calls = times, []

    done = property(lambda self: self.met >= self.times)

    def on_condition(self, loop, reason):
        self.calls.append((loop.progress.step, reason))


def run(hook, values, name="val_loss"):
    FakeLoop([hook]).run([{"loss": 1.0} if v is None else {"loss": 1.0, name: v} for v in values])
    return hook.calls


def test_a_threshold_is_reached_from_the_side_that_the_metric_comes_from():
    assert run(Recorder("val_loss", threshold=0.5), [0.7, 0.51, 0.5, 0.4]) == [(3, "val_loss = 0.5 reached 0.5")]
    accuracy = Recorder("val_accuracy", threshold=0.9)
    assert run(accuracy, [0.95, 0.1], "val_accuracy") == [(1, "val_accuracy = 0.95 reached 0.9")]


def test_no_number_reaches_nothing_and_infinity_counts_as_one():
    assert run(Recorder("val_loss", threshold=0.5), [math.nan, math.inf, -math.inf]) == [(3, "val_loss = -inf reached 0.5")]


def test_waiting_again_begins_when_the_condition_was_met():
    hook = Recorder("val_loss", patience=2, times=3)
    assert [step for step, _ in run(hook, [1.0, 1.0, 2.0, 3.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])] == [3, 7, 9]
    assert hook.calls[0][1] == "val_loss = 2 after 2 epochs without improvement on 1"


@given(values=st.lists(st.sampled_from([0.5, 0.55, 1.0, 1.1, 2.0]), min_size=1, max_size=12), patience=st.integers(1, 3))
def test_patience_ends_where_keras_would_stop(values, patience):
    callback = keras.callbacks.EarlyStopping(patience=patience, min_delta=0.1, mode="min")
    callback.set_model(keras.Model())
    callback.on_train_begin()
    stopped = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"val_loss": value})
        if callback.stopped_epoch:
            stopped.append(epoch + 1)
            break
    assert [step for step, _ in run(Recorder("val_loss", patience=patience, min_delta=0.1), values)] == stopped


def test_evaluations_are_counted_at_any_cadence():
    hook = Recorder("test_loss", patience=3, at="evaluation")
    FakeLoop([Evaluate(1.0, "test", every="2 steps"), hook], steps=6).run([{"loss": 1.0}] * 2)
    assert hook.calls == [(8, "test_loss = 1 after 3 evaluations without improvement on 1")]


def test_epochs_without_the_metric_are_passed_over():
    assert [step for step, _ in run(Recorder("val_loss", patience=1), [1.0, None, None, 2.0])] == [4]


def test_a_hook_that_is_used_again_starts_anew():
    hook = Recorder("val_loss", threshold=0.5)
    run(hook, [0.4])
    run(hook, [0.6, 0.3])
    assert [step for step, _ in hook.calls] == [1, 2]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Recorder("val_loss"), "Recorder acts when 'val_loss' reached a threshold, or after patience .*; got neither"),
        (lambda: Recorder("val_loss", threshold=1.0, patience=2), "got both"),
        (lambda: Recorder("val_loss", threshold=math.nan), "threshold of Recorder has to be a finite number; got nan"),
        (lambda: Recorder("val_loss", patience=0), "patience of Recorder is a whole number of looks, 1 or more; got 0"),
        (lambda: Recorder("val_loss", patience=True), "patience of Recorder"),
        (lambda: Recorder(None, threshold=1.0), "nothing to look at: name a metric"),
        (lambda: Recorder("val_loss", patience=1, at="step"), "at='step'"),
        (lambda: Unfreeze(patience=1), "Unfreeze needs layers to set free"),
        (lambda: Unfreeze([], patience=1), "Unfreeze needs layers to set free"),
        (lambda: Unfreeze("a", 3, patience=1), "takes layers and names of layers; got 3"),
        (lambda: Unfreeze("a", patience=1, learning_rate_factor=0.0), "learning_rate_factor of Unfreeze is a finite number"),
        (lambda: LoadWeights("model.keras", patience=1), "reads files that end in '.weights.h5'.* got 'model.keras'"),
        (lambda: Notify("echo done"), "a URL that begins with http:// or https://, a list for a command, or a function; got 'echo done'"),
        (lambda: Notify([]), "as a list of words; got"),
        (lambda: Notify(print, at_end=False), "nothing to tell"),
        (lambda: Notify(print, threshold=0.5), "nothing to look at"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
