"""ModelCheckpoint saves where Keras's callback does, except for its faults; never a part of a file, never NaN."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import tempfile
import threading
import time
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops import files
from loops.hooks import Evaluate, ModelCheckpoint, _weights_writer
from tests.loops.hooks.counted_calls import counted_calls
from tests.loops.hooks.fake_loop import FakeLoop, FakeTask, tiny_model


class Notes(keras.Sequential):
    """A model whose weights files hold only its weight, so that hundreds are written in a second."""

    def save_weights(self, filepath, overwrite=True):
        pathlib.Path(filepath).write_text(str(float(self.weights[0].numpy()[0, 0])))


@pytest.fixture(scope="module")
def notes():
    return Notes([keras.Input([1]), keras.layers.Dense(1)])


def set_to_epoch(model):
    return lambda epoch: model.set_weights([np.full(w.shape, epoch, "float32") for w in model.weights])


def logs_of(values):
    return [{"loss": 1.0, "val_loss": v} for v in values]


def contents(folder):
    return {p.name: p.read_text() for p in pathlib.Path(folder).iterdir()}


OPTIONS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max", "auto"]),
        "save_best_only": st.booleans(),
        "initial_value_threshold": st.sampled_from([None, 0.4, 1.0]),
        "save_weights_only": st.just(True),
    }
)
NAMES = st.sampled_from(["best.weights.h5", "{epoch:02d}-{val_loss:.2f}.weights.h5", "{epoch}/{loss:.0f}.weights.h5"])


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(
        st.one_of(st.sampled_from([0.5, 1.0, 1.0000001]), st.floats(-2, 2, width=32, allow_subnormal=False)), min_size=1, max_size=8
    ),
    options=OPTIONS,
    name=NAMES,
)
def test_saves_the_files_that_keras_saves(notes, values, options, name):
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        FakeLoop([hook := ModelCheckpoint(pathlib.Path(ours) / name, **options)], notes).run(logs_of(values), set_to_epoch(notes))
        callback = keras.callbacks.ModelCheckpoint(pathlib.Path(theirs) / name, **options)
        callback.set_model(notes)
        for epoch, logs in enumerate(logs_of(values)):
            set_to_epoch(notes)(epoch)
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, logs)
        files = [{str(p.relative_to(d)): p.read_text() for p in pathlib.Path(d).rglob("*.h5")} for d in (ours, theirs)]
        assert files[0] == files[1]
        assert hook.best == callback.best


@pytest.mark.parametrize("weights_only", [True, False])
def test_real_files_hold_the_best_model(weights_only, tmp_path):
    model = tiny_model()
    path = tmp_path / ("best.weights.h5" if weights_only else "best.keras")
    hook = ModelCheckpoint(path, save_best_only=True, save_weights_only=weights_only)
    FakeLoop([hook], model).run(logs_of([3.0, 1.0, 2.0]), set_to_epoch(model))
    if weights_only:
        model.load_weights(path)
    else:
        model = keras.models.load_model(path)
    assert all((w == 1.0).all() for w in model.get_weights())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_steps_count_over_the_whole_run_and_the_path_can_name_them(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "{epoch}-{batch}-{step}.weights.h5", save_weights_only=True, save_freq=2)
    FakeLoop([hook], notes, steps=3).run(logs_of([1.0] * 3), set_to_epoch(notes))
    assert contents(tmp_path) == {
        "1-2-2.weights.h5": "0.0",
        "2-1-4.weights.h5": "1.0",
        "2-3-6.weights.h5": "1.0",
        "3-2-8.weights.h5": "2.0",
    }


def test_steps_and_best_only_go_together(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "{step}.weights.h5", "loss", save_weights_only=True, save_best_only=True, save_freq=1)
    FakeLoop([hook], notes, steps=2).run([{"loss": 3.0}, {"loss": 2.0}, {"loss": 2.5}])
    assert sorted(contents(tmp_path)) == ["1.weights.h5", "3.weights.h5"]


def test_the_last_files_are_kept_and_older_ones_deleted(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True, keep_last=2)
    FakeLoop([hook], notes).run(logs_of([1.0] * 5))
    assert sorted(contents(tmp_path)) == ["4.weights.h5", "5.weights.h5"]


def test_a_restarted_run_knows_its_best_value_and_its_files(notes, tmp_path):
    def hook():
        return ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True, save_best_only=True, keep_last=2)

    before = FakeLoop([first := hook()], notes)
    before.run(logs_of([3.0, 2.0]))
    (second := hook()).load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = FakeLoop([second], notes)
    after.progress.load_state_dict(before.progress.state_dict())
    after.run([*logs_of([2.5, 1.0]), {"loss": 1.0}])
    assert sorted(contents(tmp_path)) == ["2.weights.h5", "4.weights.h5"]


def gate_to(writer, monkeypatch):
    """Holds the writing thread up before each file, until the event that is returned is set."""
    gate = threading.Event()
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args, write=_weights_writer._write_copies: gate.wait(10) and write(*args))
    return gate


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def test_a_file_that_was_being_written_at_the_snapshot_is_written_again(tmp_path, monkeypatch):
    model = tiny_model()

    def hook(folder):
        return ModelCheckpoint(tmp_path / folder / "{epoch}.weights.h5", save_weights_only=True, keep_last=2)

    FakeLoop([hook("undisturbed")], model).run(logs_of([1.0] * 4), set_to_epoch(model))

    model.optimizer.iterations.assign(0)
    gate = gate_to(_weights_writer, monkeypatch)
    before = FakeLoop([first := hook("killed")], model)
    before.begin()
    for _ in range(3):
        gate.set()
        first._writer.wait()
        gate.clear()
        before.epoch(logs_of([1.0])[0], set_to_epoch(model))
    # The thread stands still: as if the process were killed before the third file came, and the first was deleted.
    state = json.loads(json.dumps(first.state_dict()))
    assert sorted(bytes_of(tmp_path / "killed")) == ["1.weights.h5", "2.weights.h5"]
    assert state["in_flight"]["path"].endswith("3.weights.h5")

    after = FakeLoop([second := hook("killed")], model)
    after.progress.load_state_dict(before.progress.state_dict())
    after.begin()
    monkeypatch.undo()
    second.load_state_dict(state)
    assert sorted(bytes_of(tmp_path / "killed")) == ["2.weights.h5", "3.weights.h5"]
    after.epoch(logs_of([1.0])[0], set_to_epoch(model))
    after.end("finished")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "undisturbed")
    gate.set()
    first._writer.close()


def test_a_file_of_an_earlier_step_is_waited_for(tmp_path, monkeypatch):
    model = tiny_model()
    hook = ModelCheckpoint(tmp_path / "{step}.weights.h5", save_weights_only=True, save_freq=2)
    loop = FakeLoop([hook], model, steps=5)
    gate = gate_to(_weights_writer, monkeypatch)
    loop.begin()
    loop.epoch(logs_of([1.0])[0], set_to_epoch(model))  # of steps 2 and 4; the state is that of step 5
    threading.Timer(0.1, gate.set).start()
    assert hook.state_dict()["in_flight"] is None
    assert sorted(bytes_of(tmp_path)) == ["2.weights.h5", "4.weights.h5"]
    loop.end("finished")


def test_a_file_that_could_not_be_written_is_not_passed_over_by_the_state(tmp_path, monkeypatch):
    model = tiny_model()
    hook = ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    loop = FakeLoop([hook], model)
    loop.begin()
    loop.epoch(logs_of([1.0])[0])

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(_weights_writer, "_write_copies", full)
    loop.epoch(logs_of([1.0])[0])
    while hook._writer.busy:
        pass
    with pytest.raises(OSError, match="No space left"):
        hook.state_dict()


def best_of_failing(folder, monkeypatch, model, fails, only_weights=True):
    """A hook that saves the best value, and a loop; which files, counted from 0, cannot be written, is in `fails`."""
    name = "best.weights.h5" if only_weights else "best.keras"
    hook = ModelCheckpoint(folder / name, save_weights_only=only_weights, save_best_only=True, keep_last=2)
    loop = FakeLoop([hook], model)
    write, count = files.write_atomically, itertools.count()

    def full(path, how):
        if next(count) in fails:
            raise OSError("No space left on device")
        write(path, how)

    monkeypatch.setattr(files, "write_atomically", full)
    loop.begin()
    return hook, loop


@pytest.mark.parametrize("only_weights", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_a_best_value_whose_file_could_not_be_written_does_not_count(tmp_path, monkeypatch, only_weights, waits):
    model = tiny_model()
    hook, loop = best_of_failing(tmp_path, monkeypatch, model, {1}, only_weights)
    errors = []
    for value in (1.0, 0.5, 0.7, 0.8):
        try:
            loop.epoch(logs_of([value])[0], set_to_epoch(model))
        except OSError as error:
            errors.append(str(error))
        while waits and hook._writer.busy:
            pass
    loop.end("finished")
    assert len(errors) == 1 and "No space left" in errors[0] and hook.best == 0.7
    saved = tiny_model()
    saved.load_weights(tmp_path / hook.filepath)
    assert float(saved.weights[0].numpy().item()) == 2.0, "the file of 0.7"


@pytest.mark.parametrize("file_fails", [False, True])
def test_a_value_between_the_file_in_place_and_the_one_being_written_waits_for_neither(tmp_path, monkeypatch, file_fails):
    model = tiny_model()
    hook, loop = best_of_failing(tmp_path, monkeypatch, model, {1} if file_fails else set())
    plain, gate, written = _weights_writer._write_copies, threading.Event(), []
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args: gate.wait(60) and (written.append(1), plain(*args)))
    waits = []
    monkeypatch.setattr(hook._writer, "wait", lambda wait=hook._writer.wait: (waits.append(1), wait())[1])
    # While the file of 0.5 is being written, nobody knows whether it will come: 0.7 and then 0.6 would be the next best.
    loop.epoch(logs_of([1.0])[0], set_to_epoch(model))
    waits.clear()
    for value in (0.5, 0.7, 0.6, 0.65):
        loop.epoch(logs_of([value])[0], set_to_epoch(model))
    assert waits == [] and hook.best == 0.5
    gate.set()
    if file_fails:
        with pytest.raises(OSError, match="No space left"):
            loop.end("finished")
    else:
        loop.end("finished")
    saved = tiny_model()
    saved.load_weights(tmp_path / hook.filepath)
    assert (hook.best, float(saved.weights[0].numpy().item())) == ((0.6, 3.0) if file_fails else (0.5, 1.0))
    assert len(written) == 1 + file_fails


def test_with_a_name_for_each_file_a_doubtful_value_is_not_passed_over(tmp_path, monkeypatch):
    model = tiny_model()
    hook, loop = best_of_failing(tmp_path, monkeypatch, model, {1})
    hook.filepath = str(tmp_path / "{epoch}.weights.h5")
    errors = []
    for value in (1.0, 0.5, 0.7, 0.6):
        try:
            loop.epoch(logs_of([value])[0], set_to_epoch(model))
        except OSError as error:
            errors.append(error)
    loop.end("finished")
    assert len(errors) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["3.weights.h5", "4.weights.h5"]


def test_a_better_value_is_saved_although_the_file_before_fails_meanwhile(tmp_path, monkeypatch):
    model = tiny_model()
    hook, loop = best_of_failing(tmp_path, monkeypatch, model, {1})
    plain, begun, gate = _weights_writer._write_copies, threading.Event(), threading.Event()
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args: (begun.set(), gate.wait(60), plain(*args)))
    monkeypatch.setattr(_weights_writer, "_seconds_between_files", lambda writing: 0.0)
    loop.epoch(logs_of([1.0])[0], set_to_epoch(model))
    loop.epoch(logs_of([0.5])[0], set_to_epoch(model))
    assert begun.wait(30)
    loop.epoch(logs_of([0.4])[0], set_to_epoch(model))
    gate.set()
    with pytest.raises(OSError, match="No space left"):
        loop.end("finished")
    saved = tiny_model()
    saved.load_weights(tmp_path / hook.filepath)
    assert (hook.best, float(saved.weights[0].numpy().item())) == (0.4, 2.0)


def test_only_what_is_saved_is_read_and_by_one_call(tmp_path, monkeypatch):
    model = tiny_model("adam")
    hook = ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True, save_best_only=True)
    loop = FakeLoop([hook], model)
    loop.begin()
    for value in (1.0, 0.9):  # the first is read by Keras, the second traces the reads
        loop.epoch(logs_of([value])[0], set_to_epoch(model))
    hook._settle()
    with counted_calls() as count:
        model.weights[0].numpy()
    assert count, "the counter sees calls"
    for value, calls in ((0.95, 0), (0.8, 1), (0.85, 1), (0.86, 0), (0.9, 0)):
        hook._writer._not_before = time.monotonic() + 60.0  # so that the file waits
        with counted_calls() as count:
            hook._save(loop, logs_of([value])[0], model)
        assert (value, len(count)) == (value, calls)
    loop.end("finished")


def test_a_first_file_that_fails_leaves_no_best_value(tmp_path, monkeypatch):
    hook, loop = best_of_failing(tmp_path, monkeypatch, tiny_model(), {0, 1, 2})  # the first one is tried twice
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            loop.epoch(logs_of([1.0])[0])
        assert hook.best is None and hook.state_dict()["kept"] == {"best": None, "files": [], "path": None}
    loop.epoch(logs_of([2.0])[0])
    loop.end("finished")
    assert hook.best == 2.0 and [p.name for p in tmp_path.iterdir()] == ["best.weights.h5"]


@pytest.mark.parametrize(
    "bad", [{"loss": math.nan, "val_loss": 1.0}, {"loss": 1.0, "val_loss": math.inf}, {"loss": 1.0, "val_loss": math.nan}]
)
@pytest.mark.parametrize("best_only", [True, False])
def test_nothing_is_saved_while_a_loss_is_not_finite(notes, tmp_path, bad, best_only):
    path = tmp_path / "model.weights.h5"
    hook = ModelCheckpoint(path, save_weights_only=True, save_best_only=best_only)
    with pytest.warns(UserWarning, match="ModelCheckpoint did not save after step 2: (val_)?loss is (nan|inf)"):
        FakeLoop([hook], notes).run([*logs_of([2.0]), bad], set_to_epoch(notes))
    assert path.read_text() == "0.0" and hook.best in (2.0, None)


def test_nan_weights_are_not_saved_even_if_the_last_loss_was_finite(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "model.weights.h5", save_weights_only=True)
    with pytest.warns(UserWarning, match="the weight .*kernel is not finite"):
        FakeLoop([hook], notes).run(logs_of([2.0]), lambda epoch: notes.weights[0].assign([[math.nan]]))
    assert contents(tmp_path) == {}
    notes.weights[0].assign([[0.0]])


def test_the_best_file_survives_epochs_without_a_fresh_value(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True, save_best_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FakeLoop([hook], notes).run([{"loss": 1.0}, *logs_of([2.0]), {"loss": 1.0}], set_to_epoch(notes))
    assert contents(tmp_path) == {"best.weights.h5": "1.0"}


def test_a_metric_that_does_not_exist_is_reported_once_and_keeps_nothing_from_being_saved(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "{epoch}.weights.h5", "val_acc", save_weights_only=True, save_best_only=True)
    with pytest.warns(UserWarning) as caught:
        FakeLoop([hook], notes).run([{"loss": 1.0, "val_accuracy": 1.0}] * 2)
    assert [str(w.message) for w in caught] == [
        "ModelCheckpoint waits for the metric 'val_acc', which is not in the logs; did you mean 'val_accuracy'?"
    ]
    assert sorted(contents(tmp_path)) == ["1.weights.h5", "2.weights.h5"]


def test_a_metric_with_several_values_saves_always_with_one_warning(notes, tmp_path):
    hook = ModelCheckpoint(tmp_path / "{epoch}.weights.h5", "f1_score", save_weights_only=True, save_best_only=True)
    with pytest.warns(UserWarning, match=r"cannot tell the best of 'f1_score', which has the shape \(2,\)") as caught:
        FakeLoop([hook], notes).run([{"f1_score": np.zeros(2)}] * 2)
    assert len(caught) == 1 and len(contents(tmp_path)) == 2


def test_evaluations_within_an_epoch_can_decide(notes, tmp_path):
    values = iter([3.0, 1.0, 2.0])

    class Falling:
        def __float__(self):
            return next(values)

    hook = ModelCheckpoint(tmp_path / "{step}-{val_loss:.0f}.weights.h5", save_weights_only=True, save_best_only=True, at="evaluation")
    FakeLoop([Evaluate(Falling(), every="2 steps"), hook], notes, steps=7).run([{"loss": 1.0}])
    assert sorted(contents(tmp_path)) == ["2-3.weights.h5", "4-1.weights.h5"]


def test_another_model_than_the_tasks_can_be_saved(notes, tmp_path):
    FakeLoop([ModelCheckpoint(tmp_path / "a.weights.h5", save_weights_only=True, model=notes)], task=FakeTask(None)).run(logs_of([1.0]))
    assert list(contents(tmp_path)) == ["a.weights.h5"]
    with pytest.raises(TypeError, match="FakeTask has no attribute `model`"):
        FakeLoop([ModelCheckpoint(tmp_path / "a.weights.h5", save_weights_only=True)], task=FakeTask(None)).run(logs_of([1.0]))


def test_a_path_that_cannot_be_filled_in_or_written_is_one_sentence(notes, tmp_path):
    with pytest.raises(
        ValueError, match=r"KeyError: 'val_acc'\): it asks for \['epoch', 'val_acc'\], and there are \['batch', 'epoch', 'loss'"
    ):
        FakeLoop([ModelCheckpoint("{epoch}-{val_acc}.weights.h5", save_weights_only=True)], notes).run(logs_of([1.0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write .*give the path of a file in a folder"):
        FakeLoop([ModelCheckpoint(tmp_path / "file" / "a.weights.h5", save_weights_only=True)], notes).run(logs_of([1.0]))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"filepath": "a.h5", "save_weights_only": True}, "end in '.weights.h5', got filepath='a.h5'"),
        ({"filepath": "a.ckpt"}, "end in '.keras', got filepath='a.ckpt'"),
        ({"filepath": "a.keras", "save_freq": "batch"}, "'epoch' or a number of steps, 1 or more; got 'batch'"),
        ({"filepath": "a.keras", "save_freq": False}, "got False"),
        ({"filepath": "a.keras", "save_freq": 0}, "got 0"),
        ({"filepath": "a.keras", "keep_last": 0}, "a number of files, 1 or more, or None; got 0"),
        ({"filepath": "a.keras", "save_freq": 3, "at": "evaluation"}, "either every save_freq steps or at every evaluation"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ModelCheckpoint(**options)


def test_verbose_says_what_happened(notes, tmp_path, capsys):
    hook = ModelCheckpoint(tmp_path / "a.weights.h5", verbose=1, save_best_only=True, save_weights_only=True)
    FakeLoop([hook], notes).run(logs_of([1.0, 2.0]))
    assert capsys.readouterr().out == (
        f"\nEpoch 1: val_loss improved from None to 1.00000\n\nEpoch 1: saving to {tmp_path}/a.weights.h5\n"
        "\nEpoch 2: val_loss did not improve from 1.00000\n"
    )
