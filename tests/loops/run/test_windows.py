"""Hooks look at exactly the steps they asked for, see all steps since their last look, and between looks the host sleeps."""

import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import loops
from loops import hooks
from loops.testing import FakeClock
from tests.loops import tiny


class Record(hooks.Hook):
    """Writes down every window."""

    def __init__(self, every, phase=hooks.Phase.RECORD):
        self.every, self.phase, self.windows = every, phase, []

    def on_window_end(self, loop, window):
        self.windows.append((window.first_step, window.last_step, window.steps, window.mean("step"), list(window.trace["step"])))


class Counting(loops.Task):
    """Reports the number of each step; its state is one counter."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0, dtype=tf.int64)

    def train_step(self, batch):
        self.count.assign_add(1)
        return {"step": loops.Mean(self.step + 1, weight=1.0)}


def expected_looks(every, steps_per_epoch, steps):
    number, unit = every.split()
    stride = int(number) * (steps_per_epoch if unit.startswith("epoch") else 1)
    return list(range(stride, steps + 1, stride))


def assert_exact_windows(cadences, steps_per_epoch, steps, compile):
    recorders = [Record(every) for every in cadences]
    loop = loops.TrainLoop(Counting(), loops.NoFeed(steps_per_epoch), recorders, compile=compile, on_nonfinite="ignore")
    loop.run(steps=steps)
    assert int(loop.task.count) == steps
    for every, hook in zip(cadences, recorders, strict=True):
        looks = expected_looks(every, steps_per_epoch, steps)
        assert [last for _, last, *_ in hook.windows] == looks
        assert [first for first, *_ in hook.windows] == [1, *(step + 1 for step in looks[:-1])][: len(looks)]
        for first, last, count, mean, trace in hook.windows:
            assert count == last - first + 1
            assert trace == list(range(first, last + 1))
            assert mean == pytest.approx((first + last) / 2)


@settings(max_examples=12, deadline=None)
@given(
    cadences=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["steps", "epochs"])), min_size=1, max_size=4),
    steps_per_epoch=st.integers(1, 17),
    steps=st.integers(1, 60),
)
def test_hooks_fire_at_their_exact_steps_whatever_other_hooks_are_there(cadences, steps_per_epoch, steps):
    assert_exact_windows([f"{n} {unit}" for n, unit in cadences], steps_per_epoch, steps, "eager")


def test_hooks_fire_at_their_exact_steps_in_a_graph():
    assert_exact_windows(["1 epochs", "7 steps", "16 steps", "2 epochs", "1 steps"], steps_per_epoch=13, steps=60, compile="graph")
    assert_exact_windows(["40 steps", "3 epochs"], steps_per_epoch=9, steps=60, compile="graph")


def test_a_hook_whose_window_function_was_given_sees_all_steps_too():
    seen = []
    given = hooks.LambdaHook(every="10 steps", on_window_end=lambda loop, window: seen.append(list(window.trace["step"])))
    loop = loops.TrainLoop(Counting(), loops.NoFeed(20), [given, Record("2 steps")], compile="eager", on_nonfinite="ignore")
    loop.run(steps=20)
    assert seen == [list(range(1, 11)), list(range(11, 21))]


def test_a_time_trigger_fires_between_steps_and_the_others_stay_exact():
    slow, exact = Record("3 seconds"), Record("7 steps")
    loop = loops.TrainLoop(Counting(), loops.NoFeed(50), [slow, exact], on_nonfinite="ignore")
    ticks = itertools.count()
    loop.clock = lambda: float(next(ticks))  # every question about the time takes a second
    loop.run(epochs=2)
    assert len(slow.windows) > 3
    assert [last for _, last, *_ in exact.windows] == list(range(7, 101, 7))
    covered = [step for _, _, _, _, trace in slow.windows for step in trace]
    assert covered == list(range(1, len(covered) + 1))


# C functions through which a tensor's value reaches Python: the tensor's own, and NumPy's over the buffer protocol.
READS = {"_numpy_internal", "asarray", "array", "ascontiguousarray", "concatenate"}


def count_events(function):
    """Python calls, and copies of tensors to the host, while `function` runs."""
    calls, copies = 0, 0

    def profile(frame, event, argument):
        nonlocal calls, copies
        calls += event == "call"
        copies += event == "c_call" and getattr(argument, "__name__", "") in READS

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls, copies


def test_the_counter_of_copies_sees_every_way_of_reading_a_tensor():
    tensor = tf.constant(1.0)
    for read in (lambda: float(tensor), lambda: np.asarray(tensor), lambda: tensor.numpy(), lambda: bool(tensor > 0), lambda: int(tensor)):
        assert count_events(read)[1] >= 1


@pytest.mark.parametrize(("kind", "policy"), [("array", "raise"), ("known", "ignore")])
def test_nothing_is_read_from_the_device_between_two_looks(kind, policy):
    x, y = tiny.data(16 * 300)
    loop = loops.TrainLoop(tiny.Classifier(), tiny.feed_of(kind, x, y), on_nonfinite=policy)
    loop.clock = FakeClock()  # a slow machine would make calls shorter
    loop.run(steps=60)
    execution = loop.execution
    calls, copies = count_events(lambda: [execution.advance(10) for _ in range(20)])
    assert loop.progress.step == 260
    assert copies == 0
    assert count_events(execution.settle)[1] > 0


def test_a_window_of_ten_and_of_two_hundred_steps_cost_the_same_python():
    x, y = tiny.data(16 * 1000)
    loop = loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed((x, y), 16))
    loop.clock = FakeClock()  # a slow machine would make calls shorter
    loop.run(steps=40)
    execution = loop.execution
    execution.advance(1)  # opens the feed again
    few, many = (count_events(lambda n=n: execution.advance(n))[0] for n in (10, 200))
    assert loop.progress.step == 251
    assert abs(few - many) <= 20


def test_one_trace_for_each_batch_signature_and_none_for_cadence():
    x, y = tiny.data(100)
    task = tiny.Classifier()
    loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), [Idle("3 steps")], evaluate={"val": loops.ArrayFeed((x, y), 16)})
    loop.run(epochs=3)
    assert task.traces == 1  # a ragged last batch shares the trace
    assert loop.execution.program.compilations == 1


def test_xla_compiles_once_for_full_blocks_and_once_for_the_tail():
    x, y = tiny.data(100)
    task = tiny.Classifier()
    loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), [Idle("3 steps")], compile="xla")
    loop.run(epochs=3)
    assert loop.execution.program.compilations == 2


class Idle(hooks.Hook):
    def __init__(self, every):
        self.every = every
