"""The thread writes the file that `model.save_weights` would have written at the time of the call, or says why not."""

from __future__ import annotations

import pathlib
import threading

import keras
import numpy as np
import pytest

from loops.hooks import _weights_writer
from loops.hooks._weights_writer import WeightsWriter, atomically


class Nested(keras.Model):
    """Layers in lists and dicts, a random layer, a nested model and a property that fails."""

    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(4), keras.layers.Dropout(0.5)]
        self.named = {"norm": keras.layers.BatchNormalization()}
        self.inner = keras.Sequential([keras.Input([4]), keras.layers.Dense(2, name="out")])

    def call(self, x, training=False):
        return self.inner(self.named["norm"](self.blocks[1](self.blocks[0](x), training=training), training=training))

    @property
    def broken(self):
        raise RuntimeError("not now")


def sequential():
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)])


def functional():
    a, b = keras.Input([2]), keras.Input([3])
    return keras.Model([a, b], keras.layers.Dense(1)(keras.layers.Concatenate()([a, keras.layers.LSTM(3)(b[:, None])])))


def subclassed():
    model = Nested()
    model(np.zeros([1, 3], "float32"))
    return model


def bfloat16():
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(2, dtype="bfloat16")])


def compiled(make, optimizer="adam"):
    model = make()
    model.compile(optimizer, "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def change(model, seed):
    rng = np.random.default_rng(seed)
    for variable in [*model.variables, *getattr(getattr(model, "optimizer", None), "variables", [])]:
        variable.assign(rng.integers(0, 100, variable.shape))


@pytest.mark.parametrize("make", [sequential, functional, subclassed, bfloat16])
@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.SGD, None], ids=["adam", "sgd_decay", "not_compiled"])
def test_files_are_those_of_save_weights_at_the_time_of_the_call(make, optimizer, tmp_path, monkeypatch):
    may_write, plain = threading.Semaphore(0), _weights_writer._write_copies
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args: may_write.acquire(timeout=30) and plain(*args))
    if optimizer is None:
        model = make()
    else:
        rate = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
        model = compiled(make, optimizer if optimizer == "adam" else optimizer(rate, momentum=0.9, use_ema=True))
    writer = WeightsWriter()
    for i in range(3):
        change(model, i)
        writer.save(model, tmp_path / f"{i}.weights.h5")
        model.save_weights(tmp_path / "expected.weights.h5")
        change(model, 100 + i)
        if i > 0:  # the first one is waited for
            may_write.release()
        writer.wait()
        assert (tmp_path / f"{i}.weights.h5").read_bytes() == (tmp_path / "expected.weights.h5").read_bytes()
    assert writer._in_thread
    writer.close()
    change(model, 5)
    model.load_weights(tmp_path / "2.weights.h5")
    model.save_weights(tmp_path / "again.weights.h5")
    assert (tmp_path / "again.weights.h5").read_bytes() == (tmp_path / "2.weights.h5").read_bytes()


def test_only_the_first_save_is_waited_for(tmp_path, monkeypatch):
    model, writer, may_write = compiled(sequential), WeightsWriter(), threading.Event()
    writer.save(model, tmp_path / "a.weights.h5")
    assert (tmp_path / "a.weights.h5").exists()
    plain = model.save_weights
    monkeypatch.setattr(model, "save_weights", lambda *args, **kwargs: may_write.wait(30) and plain(*args, **kwargs))
    writer.save(model, tmp_path / "b.weights.h5")
    assert not (tmp_path / "b.weights.h5").exists()
    may_write.set()
    writer.close()
    assert (tmp_path / "b.weights.h5").exists()


def test_an_error_of_the_thread_is_told_once_and_keeps_no_other_file_from_being_written(tmp_path):
    model, writer = compiled(sequential), WeightsWriter()
    writer.save(model, tmp_path / "a.weights.h5")
    (tmp_path / "b.weights.h5").mkdir()
    writer.save(model, tmp_path / "b.weights.h5")
    writer.save(model, tmp_path / "c.weights.h5")
    with pytest.raises(OSError, match="Cannot write .*b.weights.h5 .*give the path of a file in a folder that you may write to"):
        writer.wait()
    writer.save(model, tmp_path / "b.weights.h5")
    while writer.busy:
        pass
    assert [type(error) for error in writer.failures()] == [OSError] and writer.failures() == []
    writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.weights.h5", "b.weights.h5", "c.weights.h5"]


def test_a_save_does_not_wait_for_the_file_that_is_being_written(tmp_path, monkeypatch):
    begun, may_write, plain = threading.Event(), threading.Event(), _weights_writer._write_copies
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args: (begun.set(), may_write.wait(30), plain(*args)))
    monkeypatch.setattr(_weights_writer, "_seconds_between_files", lambda writing: 0.0)
    model, writer, path, done = compiled(sequential), WeightsWriter(), tmp_path / "a.weights.h5", []
    writer.save(model, path)
    writer.save(model, path, lambda: done.append("begun"))
    assert begun.wait(30)
    for i in range(3):
        change(model, i)
        writer.save(model, path, lambda i=i: done.append(i))
    assert writer.pending == 2 and done == []
    may_write.set()
    writer.close()
    model.save_weights(tmp_path / "expected.weights.h5")
    assert path.read_bytes() == (tmp_path / "expected.weights.h5").read_bytes()
    assert done == ["begun", 0, 1, 2]


def test_a_copy_is_written_as_it_was_and_names_what_is_not_finite(tmp_path):
    model, writer = compiled(sequential), WeightsWriter()
    assert writer.copy(model) is None
    writer.save(model, tmp_path / "a.weights.h5")
    change(model, 1)
    model.save_weights(tmp_path / "expected.weights.h5")
    copy = writer.copy(model)
    model.layers[0].bias.assign(np.full([4], np.nan))
    model.layers[1].moving_mean.assign(np.full([4], np.inf))  # not trained
    assert copy.not_finite == "" and writer.copy(model).not_finite == model.layers[0].bias.path
    writer.save(model, tmp_path / "a.weights.h5", copy=copy)
    writer.close()
    assert (tmp_path / "a.weights.h5").read_bytes() == (tmp_path / "expected.weights.h5").read_bytes()


def test_a_model_that_grew_is_saved_whole(tmp_path):
    model, writer = keras.Sequential([keras.Input([3]), keras.layers.Dense(4)]), WeightsWriter()
    writer.save(model, tmp_path / "a.weights.h5")
    model.add(keras.layers.Dense(2))
    writer.save(model, tmp_path / "b.weights.h5")
    writer.close()
    model.save_weights(tmp_path / "expected.weights.h5")
    assert (tmp_path / "b.weights.h5").read_bytes() == (tmp_path / "expected.weights.h5").read_bytes()


def test_if_keras_changes_within_weights_are_saved_in_the_plain_way(tmp_path, monkeypatch):
    def changed():
        raise AttributeError("moved")

    monkeypatch.setattr(_weights_writer, "_remember_skipped_attributes", changed)
    model, writer = compiled(sequential), WeightsWriter()
    for name in ("a.weights.h5", "b.weights.h5"):
        writer.save(model, tmp_path / name)
        assert (tmp_path / name).exists()
    writer.close()
    model.load_weights(tmp_path / "b.weights.h5")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.txt"
    atomically(path, lambda name: pathlib.Path(name).write_text("old"))

    def fail(name):
        pathlib.Path(name).write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_of_saves_to_one_path_in_quick_succession_the_newest_is_written(tmp_path, monkeypatch):
    written, plain = [], _weights_writer._write_copies
    monkeypatch.setattr(_weights_writer, "_write_copies", lambda *args: (written.append(args[1].name), plain(*args)))
    monkeypatch.setattr(_weights_writer, "_seconds_between_files", lambda writing: 60.0)
    model, writer, done = compiled(sequential), WeightsWriter(), []
    writer.save(model, tmp_path / "first.weights.h5")
    for i in range(20):
        change(model, i)
        writer.save(model, tmp_path / "best.weights.h5", lambda i=i: done.append(i))
    writer.close()
    model.save_weights(tmp_path / "expected.weights.h5")
    assert (tmp_path / "best.weights.h5").read_bytes() == (tmp_path / "expected.weights.h5").read_bytes()
    assert len(written) <= 2, "the first one may have begun before the others came"
    assert done == list(range(20))


def test_writing_takes_a_fiftieth_of_the_time_and_a_file_is_five_seconds_late_at_most():
    between = _weights_writer._seconds_between_files
    assert [between(seconds) for seconds in (0.001, 0.02, 2.0)] == [0.5, 1.0, 5.0]


def test_a_model_that_was_changed_before_its_file_was_written_is_an_error(tmp_path):
    model, path = sequential(), tmp_path / "changed.weights.h5"
    writer = WeightsWriter()
    for _ in range(3):  # the third waits for half a second
        writer.save(model, path)
    writer.wait()
    kept = path.read_bytes()
    writer.save(model, path)
    model.pop()
    with pytest.raises(OSError, match="was not written: before the file was, a hook had changed the model 'sequential"):
        writer.close()
    assert path.read_bytes() == kept
