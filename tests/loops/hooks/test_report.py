"""Report hands each new value of a metric to a tuner, and stops when it is told to."""

from __future__ import annotations

import numpy as np
import pytest

import loops
from loops import hooks
from tests.loops import tiny
from tests.loops.hooks.fake_loop import FakeLoop

LOGS = [{"loss": 1.0, "val_score": value} for value in (0.9, 0.4, float("nan"), 0.3)]


def reported(logs=LOGS, stop_at=None, **settings):
    told = []
    hook = hooks.Report(lambda value, step: told.append((value, step)) or step == stop_at, "val_score", **settings)
    loop = FakeLoop([hook], steps=3)
    loop.run(logs)
    return told, hook, loop


def test_every_epoch_is_reported_by_its_number_and_no_direction_is_asked_for():
    told, hook, loop = reported()
    np.testing.assert_equal(told, [(0.9, 1), (0.4, 2), (float("nan"), 3), (0.3, 4)])
    assert not hook.told_to_stop and loop.outcome == "finished"


def test_evaluations_are_reported_by_training_steps():
    told, _, _ = reported(at="evaluation")
    assert [step for _, step in told] == [3, 6, 9, 12]


def test_a_run_stops_when_it_is_told_to_and_remembers_why():
    told, hook, loop = reported(stop_at=2)
    assert len(told) == 2 and hook.told_to_stop and loop.stop_reason == "Report: told to stop at val_score = 0.4"
    again = hooks.Report(print, "val_score")
    again.load_state_dict(hook.state_dict())
    assert again.told_to_stop


def test_training_metrics_are_reported_at_a_cadence_within_epochs():
    told = []
    report = hooks.Report(lambda value, step: told.append((value, step)), "loss", every="3 steps")
    trace = hooks.LambdaHook(on_window_end=lambda loop, window: rows.extend(window.trace["loss"]), every="1 step")
    rows = []
    loop = loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *tiny.data(64)), [report, trace], compile="graph")
    loop.run(steps=7)
    steps_of_an_epoch = loop.feed.steps_per_epoch
    assert [step for _, step in told] == [3, 6]
    for value, step in told:
        first = (step - 1) // steps_of_an_epoch * steps_of_an_epoch
        assert value == pytest.approx(np.mean(rows[first:step]), rel=1e-6)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="Report takes a function"):
        hooks.Report("val_loss")
    with pytest.raises(ValueError, match="not both"):
        hooks.Report(print, at="evaluation", every="2 steps")
