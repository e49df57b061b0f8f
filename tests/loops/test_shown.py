"""What loops, tasks, feeds, hooks and histories say of themselves."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

X, Y = tiny.data(40)


def feed(**kwargs):
    return loops.ArrayFeed((X, Y), 16, **kwargs)


def test_a_loop_says_what_it_trains_and_where_it_stands():
    loop = loops.TrainLoop(tiny.Classifier(), feed(), evaluate={"val": feed()}, compile="eager")
    assert repr(loop).startswith("TrainLoop(Classifier(sequential") and "eager, step 0, 0 epochs)" in repr(loop)
    history = loop.run(epochs=1)
    assert f"eager, step 3, 1 epoch, finished, loss {history.history['loss'][0]:.4g}, val_loss " in repr(loop)
    assert repr(history).startswith("History(1 epoch; accuracy 0.") and "; val_loss " in repr(history)
    assert str(loop.timing) == loop.timing.table() and "where the time went" in f"{loop.timing}"


def test_tasks_name_models_and_optimizers():
    class Gan(loops.Task):
        def __init__(self):
            super().__init__()
            self.parts = {"generator": keras.Sequential([keras.Input([2]), keras.layers.Dense(3)], name="generator")}
            self.critic = keras.Sequential([keras.layers.Dense(1)], name="critic")
            self.optimizer = keras.optimizers.Adam()

    assert repr(Gan()) == "Gan(generator (9 parameters), critic (not built), optimizer Adam)"
    assert repr(loops.EvalLoop(tiny.Classifier(keras.optimizers.SGD()))).startswith("EvalLoop(Classifier(")


def test_feeds_say_what_a_batch_is_and_how_many_there_are():
    assert repr(feed(shuffle=True, seed=3)) == (
        "ArrayFeed(batches (float32 [None, 6], int64 [None]), 3 a pass, 40 examples, shuffled with seed 3)"
    )
    endless = tf.data.Dataset.from_tensor_slices({"x": X}).batch(8).repeat()
    assert repr(loops.DatasetFeed(endless)) == "DatasetFeed(batches {'x': float32 [None, 6]}, without end)"
    assert repr(loops.FeedSchedule({0: loops.NoFeed(3)})) == "FeedSchedule({0: NoFeed(batches None, 3 a pass)})"
    assert repr(next(feed().blocks(loops.Position()))) == "Block(2 batches in (float32 [2, 16, 6], int64 [2, 16]))"

    class Unfinished(loops.Feed):
        def blocks(self, position):
            return iter(())

    assert "Unfinished(" in repr(Unfinished())


def test_hooks_show_what_they_were_given_and_no_secret():
    assert repr(hooks.EarlyStopping("val_loss", patience=3, mode="min")) == "EarlyStopping(monitor='val_loss', patience=3, mode='min')"
    assert repr(hooks.Evaluate(loops.NoFeed(3), "test", every="10 steps")) == (
        "Evaluate(NoFeed(batches None, 3 a pass), 'test', every=EverySteps(10))"
    )
    assert repr(hooks.Notify("https://hooks.example/T0/secret", "loss", threshold=0.1)) == (
        "Notify(tell='https://...', monitor='loss', threshold=0.1)"
    )
    assert "key" not in repr(hooks.RemoteMonitor(headers={"Authorization": "key"}))

    class Mine(hooks.Hook):
        def __init__(self, weights, rate=0.5):
            self.weights, self.rate = weights, rate

    assert repr(Mine(np.ones([1000]))) == "Mine(weights=<ndarray>)" and repr(hooks.Hook()) == "Hook()"


def test_gradient_transforms_show_their_bound_which_a_resumed_run_compares():
    assert repr([loops.ClipByNorm(1.0), loops.ClipByValue(0.5)]) == "[ClipByNorm(1.0), ClipByValue(0.5)]"
