"""Other data from some epoch on: by a schedule, by hooks, between two runs. A killed run reads the same data again, or says why not."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

X, Y = tiny.data(64)
BATCH = 8


def easy():
    return loops.ArrayFeed((X[:32], Y[:32]), BATCH, shuffle=True)


def hard():
    return loops.ArrayFeed((X, Y), BATCH, shuffle=True)


def pipeline():
    return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(64, seed=3).batch(BATCH))


class Killed(Exception):
    pass


class Kill(hooks.Hook):
    every, phase = "1 step", hooks.Phase.SAVE

    def __init__(self, at):
        self.at = at

    def on_window_end(self, loop, window):
        if loop.progress.step == self.at:
            raise Killed


class Curriculum(hooks.Hook):
    """Assigns feeds by what it sees: the epoch, or the logs."""

    def on_epoch_begin(self, loop):
        if loop.progress.epoch == 1:
            loop.feed = hard()

    def on_epoch_end(self, loop, logs):
        if loop.progress.epoch == 2 and logs["loss"] > 0:
            loop.log("easy_again", 1.0)
            loop.feed = easy()


def in_phases(loop):
    loop.run(epochs=2)
    loop.feed = hard()
    loop.run(epochs=4)


WAYS = {
    "schedule": (lambda: loops.FeedSchedule({0: easy(), 1: hard(), 3: easy()}), (), lambda loop: loop.run(epochs=4)),
    "kinds": (lambda: loops.FeedSchedule({0: easy(), 1: pipeline(), 3: easy()}), (), lambda loop: loop.run(epochs=4)),
    "hook": (easy, (Curriculum,), lambda loop: loop.run(epochs=4)),
    "between runs": (easy, (), in_phases),
}


def make(way, workdir=None, at=0, compile="graph"):
    feed, chosen, _ = WAYS[way]
    given = [*([hooks.Snapshot("3 steps")] if workdir else []), Kill(at), *(hook() for hook in chosen)]
    task = tiny.Classifier(keras.optimizers.SGD(0.05, momentum=0.9))  # has slots, and takes half the time of Adam
    return loops.TrainLoop(task, feed(), given, compile=compile, workdir=workdir)


# In an epoch of the second feed, in a later one, and in the third feed; what a schedule of one kind and one of several have in common is
# tried with the latter.
KILLS = [("kinds", "graph", (6, 14, 23)), ("schedule", "eager", (14,)), ("hook", "eager", (6, 23)), ("between runs", "eager", (6, 14))]
ALL_KILLS = [(way, compile, (6, 14, 23)) for way, compile in (*((way, "eager") for way in WAYS), ("schedule", "xla"))]


@pytest.mark.parametrize("way, compile, kills", [*KILLS, *(pytest.param(*case, marks=pytest.mark.matrix) for case in ALL_KILLS)])
def test_a_killed_run_goes_on_with_the_data_that_it_had(way, compile, kills, tmp_path):
    run = WAYS[way][2]
    whole = make(way, compile=compile)
    run(whole)
    assert whole.progress.step in (24, 28, 32)
    for at in kills:
        with pytest.raises(Killed):
            run(make(way, tmp_path / str(at), at, compile))
        resumed = make(way, tmp_path / str(at), compile=compile)
        run(resumed)
        tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(whole.task))
        assert resumed.history.history == whole.history.history and resumed.progress.step == whole.progress.step


def test_the_schedule_of_fit_is_that_of_a_hand_written_switch():
    def model():
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(3, "softmax")])
        made.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        return made

    ours, theirs = model(), model()
    schedule = loops.FeedSchedule({0: loops.ArrayFeed((X[:32], Y[:32]), BATCH), 2: loops.ArrayFeed((X, Y), BATCH)})
    loops.fit(ours, schedule, epochs=3, verbose=0, compile="graph")
    theirs.fit(X[:32], Y[:32], epochs=2, batch_size=BATCH, shuffle=False, verbose=0)
    theirs.fit(X, Y, epochs=1, batch_size=BATCH, shuffle=False, verbose=0)
    tiny.assert_same_bits(ours.get_weights(), theirs.get_weights())


def interrupted(workdir, chosen, feed=easy):
    with pytest.raises(Killed):
        loops.TrainLoop(tiny.Classifier(), feed(), [hooks.Snapshot("2 steps"), Kill(9), *chosen], compile="eager", workdir=workdir).run(
            epochs=3
        )


def refusal(workdir, chosen, feed=easy):
    with pytest.raises(loops.MismatchError) as raised:
        loops.TrainLoop(tiny.Classifier(), feed(), [hooks.Snapshot("2 steps"), Kill(0), *chosen], compile="eager", workdir=workdir).run(
            epochs=3
        )
    return str(raised.value)


def by(method, make=hard, first=lambda loop: loop.progress.epoch == 0):
    """A hook that assigns a feed in this method, while `first(loop)`."""

    def assign(self, loop, *_):
        if first(loop):
            loop.feed = make()

    return type("Assigns", (hooks.Hook,), {method: assign, "every": "2 steps"})()


def test_what_cannot_be_asked_for_again_is_refused_with_what_to_do(tmp_path):
    interrupted(tmp_path / "window", [by("on_window_end", first=lambda loop: loop.progress.step == 4)])
    said = refusal(tmp_path / "window", [by("on_window_end")])
    assert "data.examples was 64 and is 32 now; the feed had been assigned in Assigns.on_window_end, which cannot be called again" in said
    assert "Give TrainLoop a loops.FeedSchedule({first epoch: feed, ...}), or let the hook assign loop.feed in on_train_begin too" in said
    interrupted(tmp_path / "gone", [by("on_epoch_end")])
    assert "had been assigned by Assigns, which is not there any more" in refusal(tmp_path / "gone", [])
    interrupted(tmp_path / "other", [by("on_epoch_end")])
    other = by("on_epoch_end", lambda: loops.ArrayFeed((X + 1, Y), BATCH, shuffle=True))
    assert "it was called again, and the data is other data than" in refusal(tmp_path / "other", [other])
    assert "assigned no feed" in refusal(tmp_path / "other", [by("on_epoch_end", first=lambda loop: False)])
    interrupted(tmp_path / "tf.data", [by("on_epoch_end", pipeline)], pipeline)
    said = refusal(tmp_path / "tf.data", [by("on_epoch_end", pipeline)], pipeline)
    assert "it was called again, and it cannot be told whether the data of the DatasetFeed is the same. Give TrainLoop" in said


def test_a_hook_that_is_asked_again_does_nothing_else(tmp_path, capsys):
    class Busy(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            if loop.progress.epoch == 0:
                loop.log("seen", 1.0)
                loop.feed = hard()
                if self.once:
                    loop.stop("not again")

        once = False

    interrupted(tmp_path, [Busy()])
    again = Busy()
    again.once = True
    loop = loops.TrainLoop(tiny.Classifier(), easy(), [Kill(0), hooks.Snapshot("2 steps"), again], compile="eager", workdir=tmp_path)
    loop.run(epochs=2)
    assert loop.stop_reason is None and loop.progress.step == 12 and loop.history.history["seen"] == [1.0]
    assert "Busy.on_epoch_end of epoch 1 had assigned loop.feed; it is called once more" in capsys.readouterr().out


def test_a_hook_may_also_assign_the_feed_when_training_begins(tmp_path):
    def switch(loop, *_):
        if loop.progress.step >= 4:
            loop.feed = hard()

    def chosen():
        return [
            hooks.LambdaHook(on_train_begin=switch, every="4 steps", on_window_end=lambda loop, w: loop.progress.step == 4 and switch(loop))
        ]

    interrupted(tmp_path, chosen())
    loop = loops.TrainLoop(tiny.Classifier(), easy(), [Kill(0), hooks.Snapshot("2 steps"), *chosen()], compile="eager", workdir=tmp_path)
    loop.run(epochs=3)
    assert loop.feed.n_examples == 64


def test_bad_schedules_are_refused_in_one_sentence():
    shared = pipeline()
    for feeds, said in (
        ({1: easy()}, "needs a feed for epoch 0; it got feeds for [1]"),
        ({}, "feeds for no epoch"),
        ({0: easy(), 1.5: easy()}, "whole numbers from 0 on; got 1.5"),
        ({0: shared, 1: easy(), 2: shared}, "The DatasetFeed of epoch 2 is listed for an earlier epoch too"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            loops.FeedSchedule(feeds)
    with pytest.raises(TypeError, match="the feed from epoch 3 on.* must be a loops feed"):
        loops.FeedSchedule({0: easy(), 3: np.ones(3)})
    schedule = loops.FeedSchedule({0: easy(), 1: hard()})
    with pytest.raises(TypeError, match="is a FeedSchedule, which is for training only"):
        loops.TrainLoop(tiny.Classifier(), easy(), evaluate={"val": schedule})
    loop = loops.TrainLoop(tiny.Classifier(), schedule)
    with pytest.raises(ValueError, match="was given a FeedSchedule, which says what is read in which epoch"):
        loop.feed = hard()
    endless = loops.DatasetFeed(tf.data.Dataset.from_tensors((X, Y)).repeat())
    with pytest.raises(ValueError, match="never ends"):
        loops.TrainLoop(tiny.Classifier(), loops.FeedSchedule({0: easy(), 1: endless})).run(epochs=3)


def test_another_schedule_is_refused(tmp_path):
    interrupted(tmp_path, [], lambda: loops.FeedSchedule({0: easy(), 2: hard()}))
    said = refusal(tmp_path, [], lambda: loops.FeedSchedule({0: easy(), 2: loops.ArrayFeed((X, 2 - Y), BATCH, shuffle=True)}))
    assert "what differs: labels (part 1 of the batch) (of the feed from epoch 2 on)" in said
    assert "data.schedule" in refusal(tmp_path, [], lambda: loops.FeedSchedule({0: easy(), 3: hard()}))
