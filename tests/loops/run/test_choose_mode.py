"""`loops.choose_mode` times both modes and leaves no trace in the loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.engine import mode_timing
from tests.loops import tiny


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(mode_timing, "_ROUNDS", 3)
    monkeypatch.setattr(mode_timing, "_ROUND_SECONDS", 1e-3)


def loop_of(task=None, feed=None, compile="graph", **arguments):
    task = task or tiny.Classifier(keras.optimizers.SGD(0.05, momentum=0.9), random=True)
    return loops.TrainLoop(task, feed or loops.ArrayFeed(tiny.data(96), 16, shuffle=True), compile=compile, **arguments)


@pytest.mark.parametrize("before", [0, 1])
def test_all_variables_have_their_bits_again_and_training_goes_on_as_without(before, capsys):
    asked, other = loop_of(), loop_of()
    for loop in (asked, other):
        loop.run(steps=before) if before else None
    kept = tiny.state(asked.task) if before else None
    found = loops.choose_mode(asked)
    if before:
        tiny.assert_same_bits(tiny.state(asked.task), kept)
    assert found.mode in ("graph", "xla") and f'The faster one: compile="{found.mode}"' in capsys.readouterr().out
    assert min(found.microseconds_per_step.values()) > 0 and (found.mode == "xla") == (found.times > 1)
    for loop in (asked, other):
        loop.run(epochs=2)
    tiny.assert_same_bits(tiny.state(asked.task), tiny.state(other.task))
    assert asked.history.history == other.history.history


def test_variables_that_nobody_tracks_are_put_back_too():
    outside = tf.Variable(0, dtype=tf.int64)

    class Counts(tiny.Classifier):
        def train_step(self, batch):
            outside.assign_add(1)
            return super().train_step(batch)

    loops.choose_mode(loop_of(Counts()))
    assert int(outside) == 0


def test_the_faster_mode_is_named(monkeypatch):
    def seconds(wanted):
        times = {mode: mode_timing.Times([value] * 3, 1.0) for mode, value in wanted.items()}
        monkeypatch.setattr(mode_timing, "measure", lambda *_, **__: mode_timing.Measurement(times))
        return loops.choose_mode(loop_of())

    assert seconds({"graph": 3e-6, "xla": 2e-6}).mode == "xla"
    slower = seconds({"graph": 2e-6, "xla": 4e-6})
    assert (slower.mode, slower.times, slower.microseconds_per_step) == ("graph", 0.5, {"graph": 2.0, "xla": 4.0})


def test_what_xla_cannot_compile_is_a_graph():
    class Printing(tiny.Classifier):
        def train_step(self, batch):
            logs = super().train_step(batch)
            return {**logs, "words": tf.cast(tf.strings.length(tf.strings.as_string(batch[1][0])), tf.float32)}

    found = loops.choose_mode(loop_of(Printing()))
    assert found.mode == "graph" and "cannot compile" in found.reason and list(found.microseconds_per_step) == ["graph"]


def test_data_that_would_go_on_elsewhere_is_refused():
    dataset = tf.data.Dataset.from_tensor_slices(tiny.data(96))
    with pytest.raises(ValueError, match="choose_mode would read batches of DatasetFeed"):
        loops.choose_mode(loop_of(feed=loops.DatasetFeed(dataset.shuffle(96, seed=1).batch(16))))
    with pytest.raises(ValueError, match="choose_mode would read batches of GeneratorFeed"):
        loops.choose_mode(loop_of(feed=loops.GeneratorFeed(tiny.data(16) for _ in range(9))))
    assert loops.choose_mode(loop_of(feed=loops.DatasetFeed(dataset.batch(16)))).microseconds_per_step


def test_there_is_no_choice_under_several_replicas(two_replicas):
    with two_replicas.scope():
        task = tiny.Classifier()
    with pytest.raises(ValueError, match="several replicas"):
        loops.choose_mode(loops.TrainLoop(task, loops.ArrayFeed(tiny.data(96), 16), strategy=two_replicas))


def test_a_wrong_step_raises_its_own_error():
    class Wrong(tiny.Classifier):
        def train_step(self, batch):
            return {"loss": tf.matmul(batch[0], np.ones([7, 7], "float32"))}

    with pytest.raises(ValueError, match="Dimensions must be equal"):
        loops.choose_mode(loop_of(Wrong()))
