"""Evaluation and prediction: one pass in blocks, and nothing is read before the last of them was done."""

import sys
import threading

import keras
import numpy as np
import pytest

import loops
from loops.engine.program import Program
from tests.loops import tiny
from tests.loops.run.test_windows import READS


class Counted:
    """Notes how many copies to the host were made between the calls of programs."""

    def __init__(self, monkeypatch):
        self.copies, self.between, self._after = 0, [], None
        call = Program.__call__

        def counted(program, *args, **keywords):
            if self._after is not None:
                self.between.append(self.copies - self._after)
            try:
                return call(program, *args, **keywords)
            finally:
                self._after = self.copies

        monkeypatch.setattr(Program, "__call__", counted)

    def watch(self, function):
        """Runs `function`; whatever this thread copies to the host is counted."""

        def profile(frame, event, argument):
            self.copies += event == "c_call" and getattr(argument, "__name__", "") in READS

        sys.setprofile(profile)
        try:
            return function()
        finally:
            sys.setprofile(None)


@pytest.mark.parametrize("kind", ["array", "known"])
@pytest.mark.parametrize("predicts", [False, True])
def test_one_pass_and_one_fetch_at_its_end(kind, predicts, monkeypatch):
    x, y = tiny.data(2 * 600)
    task, feed = tiny.Classifier(), tiny.feed_of(kind, x, y, batch_size=2)
    if kind == "array":
        feed.block_steps = 250
    loop = loops.PredictLoop(task) if predicts else loops.EvalLoop(task)
    counted = Counted(monkeypatch)
    found = counted.watch(lambda: loop.run(feed))
    assert counted.between == [0, 0]  # three calls
    assert counted.copies > 0
    assert len(found) == 1200 if predicts else found["examples"] == 1200


def test_a_pass_that_is_cut_short_reads_no_more_than_was_asked_for():
    read = []

    def batches():
        for i in range(100):
            read.append(i)
            yield np.full([2, tiny.N_FEATURES], i, "float32"), np.zeros([2], "int64")

    feed = loops.GeneratorFeed(batches(), steps_per_epoch=5)
    loop = loops.EvalLoop(tiny.Classifier())
    assert loop.run(feed, steps=5)["examples"] == 10
    assert read == list(range(5))
    assert loop.run(feed, steps=5)["examples"] == 10
    assert read == list(range(10))


@pytest.mark.parametrize("predicts", [False, True])
def test_a_pass_of_one_block_and_a_smaller_batch_starts_no_thread(predicts, monkeypatch):
    x, y = tiny.data(70)
    task = tiny.Classifier()
    loop = loops.PredictLoop(task) if predicts else loops.EvalLoop(task)
    loop.run(loops.ArrayFeed((x, y), 32))
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name) or start(thread))
    loop.run(loops.ArrayFeed((x, y), 32))
    assert started == []


def test_a_small_evaluation_runs_a_handful_of_functions():
    """What it costs beside its steps, from the third on: calls of programs, of compiled functions, single operations, and reads."""
    x, y = tiny.data(70)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(tiny.N_CLASSES, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    seen = []

    def profile(frame, event, argument):
        if event == "c_call":
            seen.append(getattr(argument, "__name__", ""))

    def counts(function):
        for _ in range(3):
            function()
        seen.clear()
        sys.setprofile(profile)
        try:
            function()
        finally:
            sys.setprofile(None)
        return [sum(map(seen.count, names)) for names in (["TFE_Py_Execute"], ["TFE_Py_FastPathExecute"], READS)]

    # Evaluation: two calls (a block, the smaller batch), the metrics reset, their results. Single operations: each of four metric variables
    # read and put back, one assignment of the step.
    functions, operations, reads = counts(lambda: loops.evaluate(model, x, y))
    assert (functions, operations) == (4, 9)
    assert reads <= 7  # the rows of two calls, joined, and two results; the others look at the arrays that were given
    functions, operations, reads = counts(lambda: loops.predict(model, x))
    assert (functions, operations) == (2, 0)
    assert reads <= 7
