"""The seconds of a run, by what they were spent on, add up to its wall time; told by a clock that moves when we say so."""

import io
import time

import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.engine.timing import Accounts, Timing
from loops.testing import FakeClock
from tests.loops import tiny


class SlowFeed(loops.ArrayFeed):
    """Takes five seconds for a block, in the thread that trains."""

    prefetch = 0
    clock: FakeClock

    def blocks(self, position):
        for block in super().blocks(position):
            self.clock.advance(5)
            yield block


class SlowHook(hooks.Hook):
    """Takes two seconds for a look, and evaluates."""

    every = "5 steps"

    def __init__(self, clock, feed):
        self.clock, self.feed = clock, feed

    def on_window_end(self, loop, window):
        self.clock.advance(2)
        loop.evaluate(self.feed, "val")

    def on_train_begin(self, loop):
        self.clock.advance(100)  # not a look: time of the loop itself


class Evaluated(tiny.Classifier):
    """Takes seven seconds for an evaluation."""

    clock: FakeClock

    def eval_end(self, collected):
        self.clock.advance(7)
        return {}


def slow_loop(more=()):
    clock, (x, y) = FakeClock(), tiny.data(16 * 20)
    feed, task = SlowFeed((x, y), 16), Evaluated()
    feed.clock = task.clock = clock
    feed.block_steps = 4
    hook = SlowHook(clock, loops.ArrayFeed((x, y), 16))
    loop = loops.TrainLoop(task, feed, [hook, *more])
    loop.clock = clock
    return loop


def test_every_second_of_a_run_is_in_one_account():
    loop = slow_loop()
    loop.run(epochs=2)
    timing = loop.timing
    assert timing.steps == 40
    assert timing.data == 5 * 2 * 5
    assert timing.hooks == timing.by_hook["SlowHook"] == 2 * 8
    assert timing.evaluation == 7 * 8
    assert timing.host == 100
    assert timing.compute == timing.compile == 0  # the clock stood still meanwhile
    assert timing.seconds == loop.progress.seconds + 100 == 50 + 16 + 56 + 100
    loop.evaluate(loops.ArrayFeed(tiny.data(16), 16), "other")
    loop.clock.advance(1000)
    assert loop.timing == timing  # between runs nothing is counted
    loop.run(epochs=3)
    assert (loop.timing.steps, loop.timing.data) == (20, 25)


def test_a_real_run_adds_up():
    x, y = tiny.data(16 * 50)
    loop = loops.TrainLoop(
        tiny.Classifier(), loops.ArrayFeed((x, y), 16, shuffle=True), [SlowHook(FakeClock(), loops.ArrayFeed((x, y), 50))]
    )
    loop.run(epochs=2)
    timing = loop.timing
    assert timing.compile > 0 and timing.compute > 0
    kinds = ("data", "compute", "compile", "evaluation", "hooks", "saving", "host")
    assert sum(timing.share(kind) for kind in kinds) == pytest.approx(1)


def test_compilation_is_told_from_computing():
    class SlowToTrace(tiny.Classifier):
        def train_step(self, batch):
            self.clock.advance(30)
            return super().train_step(batch)

    loop = loops.TrainLoop(task := SlowToTrace(), loops.ArrayFeed(tiny.data(64), 16))
    loop.clock = task.clock = FakeClock()
    loop.run(epochs=2)
    assert (loop.timing.compile, loop.timing.compute) == (30, 0)


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_waiting_for_an_iterator_is_told_from_computing_in_every_mode(compile):
    """What of the pipeline's 0.8 seconds is not hidden behind steps is waiting. Only eager steps are slow enough to hide much of it."""
    x, y = tiny.data(16 * 8)
    slow = tf.data.Dataset.range(8).map(lambda i: tf.numpy_function(_after_a_while, [i], tf.int64))
    dataset = slow.map(lambda i: (tf.reshape(tf.gather(x, i * 16 + tf.range(16, dtype=tf.int64)), [16, -1]), tf.zeros([16], y.dtype)))
    dataset = dataset.map(lambda x, y: (tf.ensure_shape(x, [16, tiny.N_FEATURES]), y))
    loop = loops.TrainLoop(tiny.Classifier(), loops.DatasetFeed(dataset), compile=compile)
    loop.run(epochs=1)
    loop.run(epochs=2)
    timing = loop.timing
    assert timing.compute > 0 and timing.data > 0.9 * max(0.0, 0.8 - timing.compute - timing.host)
    if compile != "eager":
        assert timing.bound_by == "data" and "Data bounds the steps" in timing.table()


def _after_a_while(i):
    time.sleep(0.1)
    return i


def test_what_bounds_the_steps_is_said():
    assert [Timing(data=d, compute=c).bound_by for d, c in [(1, 9), (1, 10), (0, 1), (1, 0), (0, 0)]] == [
        "data",
        "computing",
        "computing",
        "data",
        None,
    ]
    assert Timing(data=1, compute=19).table().splitlines()[-1] == "Computing bounds the steps (5% of their time is waiting for data)."
    assert "bounds" not in Timing(host=1).table()


def test_no_more_is_moved_than_was_counted():
    accounts = Accounts(clock := FakeClock())
    accounts.begin()
    with accounts.of("compute"):
        clock.advance(3)
    accounts.move(5, "compute", "data")
    assert (accounts.timing(steps=1).compute, accounts.timing(steps=1).data) == (0, 3)


def test_a_run_that_waited_for_data_says_so_in_one_line_at_its_end():
    shown = io.StringIO()
    loop = slow_loop([hooks.ProgressBar(stream=shown)])
    loop.run(epochs=1)
    assert shown.getvalue().splitlines()[-1] == "Waited for data for 25.0 s, 16% of the time (compilation not counted)."


@pytest.mark.parametrize(
    "timing", [Timing(data=5, compute=60), Timing(data=0.5, compute=0.5), Timing(data=5, compute=60, compile=-0.0), Timing()]
)
def test_a_run_that_hardly_waited_says_nothing(timing):
    assert timing.notice() == ""


def test_the_table_names_each_hook_and_adds_up():
    timing = Timing(data=0.5, compute=6.5, hooks=3, by_hook={"A": 1, "B": 2}, steps=1000)
    lines = timing.table().splitlines()
    assert [line.split("  ")[0].strip() or line.strip().split("  ")[0] for line in lines] == [
        "where the time went",
        "waiting for data",
        "computing",
        "hooks",
        "B",
        "A",
        "all",
        "Computing bounds the steps (7% of their time is waiting for data).",
    ]
    assert lines[-2].split() == ["all", "10.000", "100.0%", "10,000.0"]


def test_what_is_spent_after_a_moment():
    clock = FakeClock()
    accounts = Accounts(clock)
    accounts.begin()
    with accounts.of("hooks", "A"):
        clock.advance(1)
    before = accounts.timing(steps=10)
    with accounts.of("hooks", "A"), accounts.of("data"):
        clock.advance(4)
    spent = accounts.timing(steps=30).since(before)
    assert (spent.data, spent.hooks, spent.steps, spent.seconds) == (4, 0, 20, 4)


def test_an_error_within_a_section_leaves_the_accounts_in_order():
    clock = FakeClock()
    accounts = Accounts(clock)
    accounts.begin()
    with pytest.raises(tf.errors.OutOfRangeError), accounts.of("compute"), accounts.of("data"):
        clock.advance(1)
        raise tf.errors.OutOfRangeError(None, None, "")
    clock.advance(2)
    timing = accounts.timing(steps=0)
    assert (timing.data, timing.compute, timing.host) == (1, 0, 2)
