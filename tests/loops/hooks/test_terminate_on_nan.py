"""TerminateOnNaN stops after NaN anywhere in the logs, before anything is saved. (The halt at the very step is the program's.)"""

from __future__ import annotations

import math

import numpy as np
import pytest

from loops.hooks import Evaluate, ModelCheckpoint, TerminateOnNaN
from tests.loops.hooks.fake_loop import FakeLoop, tiny_model


@pytest.mark.parametrize(
    "logs",
    [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "val_loss": math.nan}, {"loss": 1.0, "f1": np.array([1.0, math.nan])}],
)
def test_stops_after_an_epoch_that_logs_nan(logs, capsys):
    loop = FakeLoop([TerminateOnNaN()])
    assert loop.run([{"loss": 1.0}, logs, {"loss": 1.0}]).epoch == [0, 1]
    assert loop.stop_reason.startswith("TerminateOnNaN: ") and "after step 2 (epoch 2)" in loop.stop_reason
    assert capsys.readouterr().out.count("Training stops.") == 1


def test_infinite_values_that_are_no_losses_are_left_alone():
    assert FakeLoop([TerminateOnNaN()]).run([{"loss": 1.0, "snr": math.inf}] * 2).epoch == [0, 1]


def test_the_loop_is_asked_to_halt_at_the_step():
    assert TerminateOnNaN.on_nonfinite == TerminateOnNaN().on_nonfinite == "stop"
    assert TerminateOnNaN(raise_error=True).on_nonfinite == "raise"


def test_raise_error_raises():
    with pytest.raises(FloatingPointError, match=r"val_loss is nan after step 1 \(epoch 1\)"):
        FakeLoop([TerminateOnNaN(raise_error=True)]).run([{"loss": 1.0, "val_loss": math.nan}])


def test_an_evaluation_within_the_epoch_is_looked_at():
    loop = FakeLoop([Evaluate(math.nan, every="3 steps"), TerminateOnNaN()], steps=10)
    loop.run([{"loss": 1.0}])
    assert loop.progress.step == 3


@pytest.mark.parametrize("first", [0, 1])
def test_no_file_is_written_after_nan_whatever_the_order_of_hooks(tmp_path, first):
    model = tiny_model()
    hooks = [TerminateOnNaN(), ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)]
    with pytest.warns(UserWarning, match="did not save after step 2"):
        FakeLoop([hooks[first], hooks[1 - first]], model).run([{"loss": 1.0}, {"loss": math.nan}, {"loss": 1.0}])
    assert [p.name for p in tmp_path.iterdir()] == ["1.weights.h5"]
