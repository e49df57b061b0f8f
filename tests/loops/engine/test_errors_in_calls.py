"""An error inside a call leaves counters, optimizer and weights of one step, the last settled one, and nothing else is ever saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

BAD, EVERY = 9, 3  # the step that fails, and the cadence of a hook: the last settled step is 6
SETTLED = 6


class Failing(tiny.Classifier):
    """Fails where a batch holds the number 99."""

    def train_step(self, batch):
        tf.debugging.assert_less(batch[0], 99.0)
        return super().train_step(batch)


class Interrupted(tiny.Classifier):
    """Ctrl-C in the middle of a step, between two updates."""

    def train_step(self, batch):
        logs = super().train_step(batch)
        if float(tf.reduce_max(batch[0])) == 99.0:
            raise KeyboardInterrupt
        return logs


class TwoOptimizers(tiny.Classifier):
    """Its second optimizer is built in the first step."""

    def __init__(self):
        super().__init__()
        self.second, self.bias = keras.optimizers.Adam(0.1), keras.Variable(tf.ones([2]))

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            tape.watch(self.bias.value)
            loss = tf.reduce_sum(self.bias**2)
        self.minimize(loss, tape, self.second, [self.bias])
        logs = super().train_step(batch)
        if float(tf.reduce_max(batch[0])) == 99.0:
            raise ValueError("in the middle")
        return logs


def data(bad=True):
    x, y = tiny.data(200)
    x = x.copy()
    if bad:
        x[16 * (BAD - 1) + 5, 2] = 99.0
    return x, y


def pipeline_that_fails():
    def check(x, y):
        with tf.control_dependencies([tf.debugging.assert_less(x, 99.0)]):
            return tf.identity(x), y

    return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(data()).batch(16).map(check))


def generator_that_fails():
    def batches():
        x, y = data()
        for i in range(0, 192, 16):
            if x[i : i + 16].max() == 99.0:
                raise tf.errors.InvalidArgumentError(None, None, "the source is broken")
            yield x[i : i + 16], y[i : i + 16]

    return loops.GeneratorFeed(batches)


def look():
    return hooks.LambdaHook(on_window_end=lambda loop, window: None, every=f"{EVERY} steps")


def clean(step, make=tiny.Classifier, **settings):
    task = make()
    loop = loops.TrainLoop(task, tiny.feed_of("array", *data(bad=False)), [look()], **settings)
    loop.run(steps=step)
    return tiny.state(task)


CASES = {
    "assertion, blocks, graph": (Failing, lambda: tiny.feed_of("array", *data()), "graph"),
    "assertion, iterator, graph": (Failing, lambda: tiny.feed_of("known", *data()), "graph"),
    "assertion, unknown length, graph": (Failing, lambda: tiny.feed_of("unknown", *data()), "graph"),
    "assertion, blocks, eager": (Failing, lambda: tiny.feed_of("array", *data()), "eager"),
    "Ctrl-C, blocks, eager": (Interrupted, lambda: tiny.feed_of("array", *data()), "eager"),
    "Python error, iterator, eager": (TwoOptimizers, lambda: tiny.feed_of("known", *data()), "eager"),
    "pipeline, graph": (tiny.Classifier, pipeline_that_fails, "graph"),
    "pipeline, eager": (tiny.Classifier, pipeline_that_fails, "eager"),
    "pipeline, XLA": (tiny.Classifier, pipeline_that_fails, "xla"),
    "generator, graph": (tiny.Classifier, generator_that_fails, "graph"),
}


UNGUARDED = ("assertion, blocks, graph", "Python error, iterator, eager", "pipeline, graph")


SOMETIMES = [("assertion, iterator, graph", "raise"), ("pipeline, eager", "raise"), ("pipeline, graph", "ignore")]


@pytest.mark.parametrize(
    ("case", "policy"),
    [
        pytest.param(case, policy, marks=[pytest.mark.matrix] if (case, policy) in SOMETIMES else [])
        for policy, cases in (("raise", CASES), ("ignore", UNGUARDED))
        for case in cases
    ],
)
def test_counters_optimizer_and_weights_are_of_one_step(case, policy, tmp_path):
    make, feed, mode = CASES[case]
    task = make()
    loop = loops.TrainLoop(task, feed(), [look()], workdir=tmp_path, compile=mode, on_nonfinite=policy)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError, KeyboardInterrupt)):
        loop.run(epochs=1)
    step = loop.progress.step
    # Where the source fails between two calls, the calls before are settled and kept; blocks are made before they are trained on.
    assert (SETTLED <= step < BAD) or (step == 0 and case in ("pipeline, XLA", "generator, graph"))
    assert int(task.optimizer.iterations.numpy()) == step
    if step == 0:
        tiny.assert_same_bits(task.model.get_weights(), make().model.get_weights())
        return
    tiny.assert_same_bits(tiny.state(task), clean(step, make, compile=mode, on_nonfinite=policy))
    loop.save()
    if mode == "eager":  # these steps are Python
        return
    again = loops.TrainLoop(make(), feed(), [look()], workdir=tmp_path, compile=mode, on_nonfinite=policy)
    again.run(steps=step)
    assert again.progress.step == step
    tiny.assert_same_bits(tiny.state(again.task), tiny.state(task))


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_an_error_in_the_first_step_leaves_the_state_of_no_step(mode):
    x, y = data(bad=False)
    x[3, 1] = 99.0
    make = TwoOptimizers if mode == "eager" else Failing
    task = make()
    before = [v.numpy() for v in task.model.variables]
    loop = loops.TrainLoop(task, tiny.feed_of("array", x, y), compile=mode)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        loop.run(epochs=1)
    assert loop.progress.step == 0
    tiny.assert_same_bits([v.numpy() for v in task.model.variables], before)
    assert all(not np.any(np.asarray(v)) for o in task.optimizers.values() for v in o.variables if "learning_rate" not in v.path)


@pytest.mark.parametrize("kind", ["array", "known"])
def test_a_run_goes_on_from_the_settled_step_when_the_cause_is_gone(kind):
    class Repairable(tiny.Classifier):
        def __init__(self):
            super().__init__(random=True)
            self.bound = tf.Variable(99.0)

        def train_step(self, batch):
            tf.debugging.assert_less(batch[0], self.bound)
            return super().train_step(batch)

    task = Repairable()
    loop = loops.TrainLoop(task, tiny.feed_of(kind, *data()), [look()], compile="graph")
    with pytest.raises(tf.errors.InvalidArgumentError):
        loop.run(epochs=2)
    assert loop.progress.step == SETTLED
    task.bound.assign(1000.0)
    loop.run(epochs=2)
    undisturbed = Repairable()
    undisturbed.bound.assign(1000.0)
    loops.TrainLoop(undisturbed, tiny.feed_of(kind, *data()), [look()], compile="graph").run(epochs=2)
    tiny.assert_same_bits(tiny.state(task), tiny.state(undisturbed))


def test_an_error_on_one_replica_takes_back_all(two_replicas):
    with two_replicas.scope():
        task, undisturbed = Failing(), Failing()
    x, y = data()
    loop = loops.TrainLoop(task, tiny.feed_of("array", x, y), [look()], strategy=two_replicas, compile="graph")
    with pytest.raises(tf.errors.InvalidArgumentError):
        loop.run(epochs=1)
    assert loop.progress.step == SETTLED
    loops.TrainLoop(undisturbed, tiny.feed_of("array", x, y), strategy=two_replicas, compile="graph").run(steps=SETTLED)
    tiny.assert_same_bits(tiny.state(task), tiny.state(undisturbed))


def test_no_call_keeps_a_copy_of_the_state():
    class Large(tiny.Classifier):
        def __init__(self):
            super().__init__()
            self.large = tf.Variable(tf.zeros([12347]))

        def train_step(self, batch):
            self.large.assign_add(tf.ones([12347]))
            return super().train_step(batch)

    loop = loops.TrainLoop(Large(), tiny.feed_of("array", *data(bad=False)), compile="graph")
    loop.run(steps=1)
    execution = loop.execution
    for calls in range(1, 6):
        execution.advance(1)
        unsettled = execution._unsettled
        assert len(unsettled.calls) == calls
        assert all(int(tf.size(call.rows)) < 100 and not call.recorded for call in unsettled.calls)
        assert [v.shape for v in unsettled.backup.values].count([12347]) == 1
    assert execution.settle() is None
    assert execution._unsettled is None


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_does_not_go_on_with_other_batches_where_the_shuffle_cannot_go_back(mode):
    shuffled = tf.data.Dataset.from_tensor_slices(data()).shuffle(200, seed=1).batch(16)

    def check(x, y):
        with tf.control_dependencies([tf.debugging.assert_less(x, 99.0)]):
            return tf.identity(x), y

    loop = loops.TrainLoop(tiny.Classifier(), loops.DatasetFeed(shuffled.map(check)), [look()], compile=mode)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loop.run(epochs=1)
    with pytest.raises(ValueError, match="cannot go back to batch"):
        loop.run(epochs=1)
