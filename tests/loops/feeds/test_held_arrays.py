"""A run copies small arrays once and gathers their rows in its program: the same bits as with blocks, no capture, no copy left behind."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import IndexedBlock, held_arrays
from loops.feeds.arrays import ArrayFeed
from loops.feeds.held_arrays import HeldArrays, can_be_held
from tests.loops import tiny


@pytest.fixture
def counted(monkeypatch):
    """How often blocks were gathered by a thread, and arrays copied."""
    counts = {"blocks": 0, "copies": 0}

    def counting(name, real):
        def call(*arguments):
            counts[name] += 1
            return real(*arguments)

        return call

    monkeypatch.setattr(ArrayFeed, "_cut", counting("blocks", ArrayFeed._cut))
    monkeypatch.setattr(held_arrays, "_copied", counting("copies", held_arrays._copied))
    return counts


def trained(compile="graph", held=True, epochs=3, task=None, data=None, **arguments):
    feed = loops.ArrayFeed(data or tiny.data(100), 16, shuffle=True, seed=2, **arguments)
    if not held:
        feed.prefetch = 0
    loop = loops.TrainLoop(task or tiny.Classifier(keras.optimizers.SGD(0.05), random=True), feed, compile=compile)
    loop.run(epochs=epochs)
    return loop


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_what_is_gathered_in_the_program_gives_the_bits_of_blocks(compile, counted):
    held = trained(compile)
    assert counted == {"blocks": 0, "copies": 2}, "x and y, once"
    blocks = trained(compile, held=False)
    assert counted["blocks"] > 0 and counted["copies"] == 2
    tiny.assert_same_bits(tiny.state(held.task), tiny.state(blocks.task))
    assert held.history.history == blocks.history.history
    assert held.execution.program.compilations == (2 if compile == "xla" else 1), "XLA: whole batches, and the last one"


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_data_of_another_length_needs_no_other_program(compile):
    loop = trained(compile)
    program, traces = loop.execution.program, loop.execution.step.traces
    compilations = program.compilations
    for n, seed in ((100, 5), (68, 6), (148, 7)):
        x, y = tiny.data(n, seed=seed)
        again = trained(compile, task=loop.task, data=(x, y), epochs=1)
        assert again.execution.program is program and (program.compilations, again.execution.step.traces) == (compilations, traces)


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_a_second_fit_sees_its_own_data(compile):
    first, second = tiny.data(96, seed=1), tiny.data(96, seed=2)
    task, reference = tiny.Classifier(keras.optimizers.SGD(0.05)), tiny.Classifier(keras.optimizers.SGD(0.05))
    before = [np.asarray(v) for v in task.model.variables]
    trained(compile, task=task, data=first, epochs=1)
    for variable, value in zip(task.model.variables, before, strict=True):
        variable.assign(value)
    trained(compile, task=task, data=second, epochs=1)
    trained(compile, task=reference, data=second, epochs=1)
    tiny.assert_same_bits(*([np.asarray(v) for v in one.model.variables] for one in (task, reference)))


class Sum(loops.Task):
    def train_step(self, x):
        return {"loss": loops.Sum(tf.reduce_sum(x))}


def test_a_run_trains_on_the_arrays_as_they_were_when_it_began_and_warns(capsys):
    data = np.ones([64, 2], "float32")
    change = loops.hooks.LambdaHook(every=None, on_epoch_end=lambda loop, logs: np.multiply(data, 10, out=data))
    loop = loops.TrainLoop(Sum(), loops.ArrayFeed(data, 16), [change], compile="graph")
    loop.run(epochs=3)
    assert capsys.readouterr().out.count("the arrays of a feed have changed during the run") == 1
    data[5] = 0
    loop.run(epochs=4)
    assert loop.history.history["loss"] == [128, 128, 128, 126_000]


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_epoch_end"])
def test_model_fit_does_not_see_changes_during_a_run_either(event):
    def losses(fit):
        x, y = tiny.data(64)
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(10)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        change = keras.callbacks.LambdaCallback(**{event: lambda epoch, logs: x.fill(0)})
        return fit(model, x, y, epochs=3, shuffle=False, callbacks=[change], verbose=0).history["loss"]

    assert losses(keras.Model.fit) == losses(functools.partial(loops.fit, compile="graph"))


def test_each_run_copies_when_it_begins_not_when_a_thread_first_reads():
    """What a hook changes before the first step of a run is not seen, in a first run as in a second one."""
    data = np.ones([64, 2], "float32")
    change = loops.hooks.LambdaHook(every=None, on_epoch_begin=lambda loop: np.multiply(data, 2, out=data))
    loop = loops.TrainLoop(Sum(), loops.ArrayFeed(data, 16), [change], compile="graph")
    for epochs in (1, 2, 3):
        loop.run(epochs=epochs)
    assert loop.history.history["loss"] == [128, 256, 512]


def test_what_failed_before_its_first_step_leaves_no_copy_for_the_next_run(tmp_path):
    class Broken(Sum):
        broken = True

        def train_step(self, x):
            if self.broken:
                raise ValueError("a bug in the step")
            return super().train_step(x)

    data, task = np.ones([64, 2], "float32"), Broken()
    feed = loops.ArrayFeed(data, 16)
    loop = loops.TrainLoop(task, feed, workdir=tmp_path, compile="graph")
    with pytest.raises(ValueError, match="a bug in the step"):
        loop.run(epochs=1)
    task.broken, data[1] = False, 100  # none of the rows that are looked at
    loop.run(epochs=1)
    assert loop.history.history["loss"] == [326]
    data[1] = 1
    other = loops.TrainLoop(Sum(), feed, compile="graph")
    other.run(epochs=1)
    assert other.history.history["loss"] == [128]


def test_neither_choose_mode_nor_a_feed_assigned_between_runs_fixes_the_data():
    data, later = np.ones([64, 2], "float32"), np.ones([64, 2], "float32")
    loop = loops.TrainLoop(Sum(), loops.ArrayFeed(data, 16), compile="graph")
    loops.choose_mode(loop)
    data[1] = 100
    loop.run(epochs=1)
    loop.feed = loops.ArrayFeed(later, 16)
    later[1] = 200
    loop.run(epochs=2)
    assert loop.history.history["loss"] == [326, 526]


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_a_loop_within_another_on_the_same_feed_has_its_own_copy(compile):
    data, inner = np.ones([64, 2], "float32"), []
    feed = loops.ArrayFeed(data, 16)

    def run_inner(loop, logs):
        data[1] = 100
        other = loops.TrainLoop(Sum(), feed, compile="graph")
        other.run(epochs=1)
        inner.extend(other.history.history["loss"])

    loop = loops.TrainLoop(Sum(), feed, [loops.hooks.LambdaHook(every=None, on_epoch_end=run_inner)], compile=compile)
    loop.run(epochs=4)
    assert inner == [326] * 4 and loop.history.history["loss"] == [128] * 4


def test_a_rollback_reads_the_same_copy(counted):
    data = np.ones([64, 2], "float32")
    data[20] = np.nan
    change = loops.hooks.LambdaHook(every="1 steps", on_window_end=lambda loop, window: data.fill(5))
    loop = loops.TrainLoop(Sum(), loops.ArrayFeed(data, 16), [change], compile="graph", on_nonfinite="skip")
    loop.run(epochs=2)
    assert loop.history.history["loss"] == [96, 96] and counted["copies"] == 1


def test_nothing_of_the_copy_is_left_when_a_run_has_ended():
    loop = trained()
    assert loop.execution._held is None and loop.execution._reader.feed._held is None
    assert not isinstance(loop.execution._last.source, IndexedBlock)
    (x, y), (data, labels) = loop.execution.batch(), tiny.data(100)
    last = loop.feed._orders.of(2)[96:]
    np.testing.assert_array_equal(x, data[last])
    np.testing.assert_array_equal(y, labels[last])


def test_only_numbers_in_memory_of_a_share_of_it_are_held(tmp_path, monkeypatch):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(8, 4))
    small = np.zeros([8, 4])
    assert can_be_held([small, small.astype("int8"), small > 0])
    for other in (mapped, mapped[2:].reshape(-1, 2), np.asarray(mapped), np.array(["a"] * 8), np.array([b"a"] * 8, object)):
        assert not can_be_held([small, other]), other
    monkeypatch.setattr(held_arrays, "_memory", lambda: 8 * small.size * 4)  # as float32
    assert can_be_held([small]) and not can_be_held([small, small])
    feed = loops.ArrayFeed(small, 4)
    assert isinstance(feed.held(), HeldArrays)
    feed.prefetch = 0
    assert feed.held() is feed


def test_indexed_blocks_hold_the_batches_of_blocks():
    data = {"a": np.arange(37.0), "b": (np.arange(74).reshape(37, 2), None)}
    feed = loops.ArrayFeed(data, 5, shuffle=True, seed=1)
    (ours, tail), (theirs, other) = feed.held().blocks(loops.Position(1, 2)), feed.blocks(loops.Position(1, 2))
    for block, whole in ((ours, theirs), (tail, other)):
        assert block.n == whole.n and block.batch_spec == whole.batch_spec
        for array, rows in zip(keras.tree.flatten(block.tensors), keras.tree.flatten(whole.tensors), strict=True):
            assert (array is None) == (rows is None)
            if array is not None:
                np.testing.assert_array_equal(tf.gather(array, block.index[: block.n]), rows[: whole.n])
