"""History holds what Keras's History holds, and survives a restart."""

from __future__ import annotations

import json

import keras
import numpy as np

from loops.hooks import History, ProgressBar
from tests.loops.hooks.fake_loop import FakeLoop, tiny_model

LOGS = [{"accuracy": 0.5, "loss": 1.0, "val_loss": 2.0}, {"accuracy": 0.25, "loss": 3.0}, {"accuracy": 0.0, "loss": 4.0, "val_loss": 5.0}]


def test_values_and_their_order_are_those_of_keras():
    callback = keras.callbacks.History()
    callback.set_model(tiny_model())
    callback.on_train_begin()
    for epoch, logs in enumerate(LOGS):
        callback.on_epoch_end(epoch, logs)
    history = FakeLoop([]).run(LOGS)
    assert history.history == callback.history == {"accuracy": [0.5, 0.25, 0.0], "loss": [1.0, 3.0, 4.0], "val_loss": [2.0, 5.0]}
    assert list(history.history) == list(callback.history)
    assert history.epoch == callback.epoch == [0, 1, 2]
    assert history.params == {"verbose": 0, "epochs": 3, "steps": 1}


def test_it_knows_when_each_value_was_logged_also_when_it_is_carried_on():
    history = FakeLoop([]).run(LOGS)
    assert history.epochs_of("loss") == [0, 1, 2] and history.epochs_of("val_loss") == [0, 2]
    after = History()
    after.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert after.epochs_of("loss") == [0, 1, 2] and after.epochs_of("val_loss") == [0, 2]


def test_state_survives_json_with_arrays_and_nan():
    loop = FakeLoop([])
    before = loop.run([{"loss": float("nan"), "f1": np.array([0.1, 0.2], "float32")}, {"loss": 1.0, "f1": np.array([0.3, 0.4], "float32")}])
    after = History()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.epoch == [0, 1]
    np.testing.assert_array_equal(after.history["loss"], before.history["loss"])
    np.testing.assert_array_equal(after.history["f1"], before.history["f1"])
    assert after.history["f1"][0].dtype == np.float32


def test_a_run_carried_on_adds_epochs_and_a_new_run_starts_anew():
    loop = FakeLoop([])
    loop.run([{"loss": 1.0}])
    assert loop.run([{"loss": 2.0}]).history == {"loss": [1.0, 2.0]}
    fresh = FakeLoop([])
    fresh.history = fresh.hooks[0] = loop.history
    again = fresh.run([{"loss": 3.0}])
    assert again.history == {"loss": [3.0]} and again.epochs_of("loss") == [0]


def test_values_keep_their_types_and_an_undone_future_is_forgotten():
    loop = FakeLoop([])
    loop.begin()
    loop.epoch({"loss": 0.1, "count": 3, "small": np.float32(0.1), "note": "text", "flag": True})
    saved = loop.saved()
    before = repr(loop.history.history)
    loop.epoch({"loss": 99.0})
    loop.history.load_state_dict(saved[0]["hooks"]["History"])
    assert repr(loop.history.history) == before and loop.history.epoch == [0]


def test_params_tell_how_much_was_shown():
    assert FakeLoop([ProgressBar(2)]).run([{"loss": 1.0}]).params["verbose"] == 2
