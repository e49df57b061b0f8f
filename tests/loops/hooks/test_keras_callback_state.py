"""What is known, and said, about the state of Keras callbacks."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from loops import hooks
from loops.hooks._keras_callback_state import state_of
from loops.json_values import decode, encode
from tests.loops.hooks.fake_loop import FakeLoop, tiny_model
from tests.loops.hooks.keras_reference import Reused

kc = keras.callbacks


class Counting(kc.Callback):
    count = 0

    def on_epoch_end(self, epoch, logs=None):
        self.count += 1


class Remembering(Counting):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Idle(kc.Callback):
    pass


def played(callbacks, epochs=2):
    adapter = hooks.KerasCallbacks(callbacks)
    loop = FakeLoop([adapter.batches, adapter], tiny_model())
    loop.begin()
    for _ in range(epochs):
        loop.epoch({"loss": 1.0, "val_loss": 2.0})
    return loop, adapter


def resumed(saved, callbacks):
    adapter = hooks.KerasCallbacks(callbacks)
    loop = FakeLoop([adapter.batches, adapter], tiny_model())
    loop.resume(saved)
    return loop, adapter


def test_a_callback_that_gives_its_state_gets_it_back():
    loop, _ = played([Counting(), Remembering()])
    _, adapter = resumed(loop.saved(), [Counting(), Remembering()])
    assert [c.count for c in adapter.callbacks] == [0, 2]


def test_a_callback_of_unknown_state_is_named_once_in_one_line(capsys):
    loop, _ = played([Counting(), Remembering(), Idle(), kc.EarlyStopping(), kc.LambdaCallback(on_epoch_end=print)], epochs=0)
    loop.saved()
    loop.saved()
    out = capsys.readouterr().out
    assert out == "The state of the Keras callback Counting is not part of snapshots; give it state_dict and load_state_dict.\n"


def test_callbacks_whose_files_are_not_cut_back_are_named(capsys, tmp_path):
    loop, _ = played([kc.CSVLogger(tmp_path / "log.csv", append=True), kc.TerminateOnNaN()])
    loop.saved()
    loop.end("finished")
    assert capsys.readouterr().out.startswith("Keras's CSVLogger will begin anew, or write twice, when this run is resumed;")


def test_a_state_goes_to_the_callback_of_its_place_and_class_only(capsys):
    loop, _ = played([kc.EarlyStopping(restore_best_weights=True), kc.ReduceLROnPlateau()])
    _, adapter = resumed(loop.saved(), [kc.ReduceLROnPlateau(), kc.ReduceLROnPlateau()])
    assert [c.best for c in adapter.callbacks] == [None, 2.0]
    assert "Keras callback 1 was keras.src.callbacks.early_stopping.EarlyStopping when the run was saved" in capsys.readouterr().out
    assert not hasattr(adapter.callbacks[0], "best_weights")


def test_arguments_may_change_between_two_starts():
    loop, _ = played([kc.EarlyStopping(patience=1)])
    _, adapter = resumed(loop.saved(), [kc.EarlyStopping(patience=7)])
    assert (adapter.callbacks[0].patience, adapter.callbacks[0].best) == (7, 2.0)


def test_a_wish_to_stop_that_nobody_heard_is_kept_and_one_that_was_heard_is_not():
    loop, adapter = played([Idle()])
    adapter.model.stop_training = True
    assert resumed(loop.saved(), [Idle()])[1].model.stop_training is True
    loop.epoch({"loss": 1.0})
    assert loop.stopping
    assert resumed(loop.saved(), [Idle()])[1].model.stop_training is False


def test_the_last_logs_are_given_at_the_end_of_a_finished_run_again():
    class Ending(Idle):
        def on_train_end(self, logs=None):
            self.logs = logs

    loop, _ = played([Ending()])
    again, adapter = resumed(loop.saved(), [Ending()])
    again.end("finished")
    assert adapter.callbacks[0].logs == {"loss": 1.0, "val_loss": 2.0}


# What Keras's callbacks change while they run and is no state: it belongs to one call, to one process, or to what `on_train_begin` makes.
NOT_STATE = {
    "CSVLogger": {"csv_file", "writer", "keys", "append_header"},  # it is said that this one writes twice
    "EarlyStopping": {"monitor_op", "min_delta", "best_weights"},  # the weights are arrays
    "ModelCheckpoint": {"monitor_op", "min_delta"},
    "ProgbarLogger": {"verbose", "seen", "progbar", "target", "epochs", "_called_in_fit"},
    "ReduceLROnPlateau": {"monitor_op", "min_delta"},
    "TensorBoard": {  # it is said that this one writes twice
        "_previous_epoch_iterations", "_epoch_start_time", "_batch_start_time", "_train_accumulated_time", "_should_write_train_graph",
        "_summary_module", "_train_dir", "_val_dir", "_log_write_dir", "_writers", "_train_step", "_val_step", "_prev_summary_state",
        "_is_tracing", "_should_trace", "_start_batch", "_stop_batch", "_profiler_started", "_batch_trace_context", "_is_profiling",
        "_train_writer", "_val_writer",
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_all_that_kerass_callbacks_change_in_training_is_known(tmp_path):
    make = {
        "BackupAndRestore": lambda: kc.BackupAndRestore(tmp_path / "backup", save_freq=2),
        "CSVLogger": lambda: kc.CSVLogger(tmp_path / "log.csv"),
        "EarlyStopping": lambda: kc.EarlyStopping(patience=1, restore_best_weights=True),
        "History": kc.History,
        "LearningRateScheduler": lambda: kc.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        "ModelCheckpoint": lambda: kc.ModelCheckpoint(tmp_path / "k.weights.h5", save_weights_only=True, save_best_only=True, save_freq=2),
        "ProgbarLogger": kc.ProgbarLogger,
        "ReduceLROnPlateau": lambda: kc.ReduceLROnPlateau(patience=1, cooldown=2),
        "SwapEMAWeights": lambda: kc.SwapEMAWeights(swap_on_epoch=True),
        "TensorBoard": lambda: kc.TensorBoard(str(tmp_path / "logs"), update_freq=1),
        "TerminateOnNaN": kc.TerminateOnNaN,
    }
    # OrbaxCheckpoint, ModelCheckpoint's sibling, needs a further library; LambdaCallback and RemoteMonitor remember nothing.
    known = {*make, "LambdaCallback", "RemoteMonitor", "OrbaxCheckpoint", "Callback", "CallbackList"}
    assert {name for name in dir(kc) if not name.startswith("_")} <= known

    def compiled():
        model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
        return model

    reused = Reused(compiled)
    for name, new in make.items():
        model, callback = reused(), new()
        before = dict(vars(callback))
        x = np.ones([6, 2], "float32")
        model.fit(x, x[:, :1], batch_size=2, epochs=3, verbose=0, validation_data=(x, x[:, :1]), callbacks=[callback])
        changed = {key for key, value in vars(callback).items() if key not in before or before[key] is not value}
        told = {*state_of(callback)["attributes"], *NOT_STATE.get(name, ()), "params", "_model"}
        assert changed <= told, (name, changed - told)


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, -np.inf, "text", np.float32(0.1), np.int64(-3), np.bool_(True), np.array(2.5), [1, [2.0, None]], {"a": 1, 2: [3]}],
    ids=repr,
)
def test_values_come_back_with_their_types(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert type(back) is type(value) and back == value


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint64", "bool"])
def test_arrays_come_back_bit_for_bit(dtype):
    array = np.asarray(np.random.default_rng(0).normal(size=[3, 2]) * 10).astype(dtype)
    back = decode(json.loads(json.dumps(encode(array))))
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes() and back.shape == array.shape


def test_what_is_no_number_becomes_a_text():
    assert decode(json.loads(json.dumps(encode({"path": b"x", "object": (1, Idle)})))) == {"path": "b'x'", "object": [1, str(Idle)]}
