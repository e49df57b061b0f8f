"""Skipping and rolling back: what is left out is left out to the last bit, is counted, and is the same again after a kill."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks, testing
from tests.loops import tiny
from tests.loops.run.kill_cases import Copies
from tests.loops.sampling import sample

BATCH = 16


def poisoned(*batches, n=100, value=np.nan):
    x, y = tiny.data(n)
    x = x.copy()
    for batch in batches:
        x[BATCH * batch + 3, 2] = value
    return x, y


def without(*batches, n=100):
    x, y = tiny.data(n)
    kept = np.array([i for i in range(n) if i // BATCH not in batches])
    return x[kept], y[kept]


def trained(kind, data, compile="graph", epochs=2, random=True, **arguments):
    loop = loops.TrainLoop(tiny.Classifier(random=random), tiny.feed_of(kind, *data), compile=compile, **arguments)
    loop.run(epochs=epochs)
    return loop


@functools.cache
def clean_run(bad, compile="graph", epochs=2, random=True):
    """A run without the batches `bad`. The kind of feed makes no difference to its bits, so all kinds are compared with arrays."""
    return trained("array", without(*bad), compile, epochs, random)


# The first batch, two in a row, the last one, which is smaller, and one between others.
SEVERAL, ONE = (0, 2, 3, 6), (4,)
KINDS = ("array", "known", "unknown")
SKIPPED = [("array", "graph", SEVERAL), ("unknown", "graph", SEVERAL), ("known", "eager", SEVERAL)]
OTHERS = set(itertools.product(KINDS, ("graph", "eager"), [SEVERAL, ONE, (0,), (6,), (2, 3), (1, 5, 6)])) - set(SKIPPED)


@pytest.mark.parametrize(
    ("kind", "compile", "bad"), [*SKIPPED, *(pytest.param(*case, marks=pytest.mark.matrix) for case in sorted(OTHERS))], ids=str
)
def test_a_skipped_batch_might_never_have_been_there(kind, compile, bad):
    loop = trained(kind, poisoned(*bad), compile, on_nonfinite="skip")
    clean = clean_run(bad, compile)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean.task))
    assert loop.history.history["loss"] == clean.history.history["loss"]
    assert loop.history.history["skipped_batches"] == [len(bad), 2 * len(bad)]
    assert loop.progress.step == clean.progress.step


@pytest.mark.parametrize("kind", sample(["array", "known"], "known"))
def test_a_skipped_batch_might_never_have_been_there_under_xla(kind):
    loop = trained(kind, poisoned(4, n=96), "xla", random=False, on_nonfinite="skip")
    clean = trained(kind, without(4, n=96), "xla", random=False)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean.task))


def test_a_bad_gradient_under_a_finite_loss_is_skipped_too():
    x, y = tiny.data(100)
    bad = np.full_like(x[64:80], 0.0)

    class Root(tiny.Classifier):
        def loss(self, y, y_pred):
            # The square root of 0 has no derivative; where all inputs are 0, it is met.
            size = tf.reduce_sum(tf.square(self.inputs)) * tf.reduce_sum(tf.square(self.model.weights[0]))
            return super().loss(y, y_pred) + 1e-3 * tf.sqrt(size)

        def train_step(self, batch):
            self.inputs = batch[0]
            return super().train_step(batch)

    x[64:80] = bad
    loop = loops.TrainLoop(Root(), tiny.feed_of("unknown", x, y), on_nonfinite="skip")
    loop.run(epochs=1)
    clean = loops.TrainLoop(Root(), tiny.feed_of("unknown", *without(4)))
    clean.run(epochs=1)
    assert loop.history.history["skipped_batches"] == [1]
    np.testing.assert_array_equal(tiny.state(loop.task)[0], tiny.state(clean.task)[0])


def test_more_than_the_budget_is_an_error_with_the_good_state_kept():
    loop = loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *poisoned(1, 3)), on_nonfinite=loops.OnNonFinite("skip", budget=1))
    with pytest.raises(loops.NonFiniteError, match="At step 3 .* The budget of 1 for 'skip' is used up"):
        loop.run(epochs=1)
    clean = loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *without(1)))
    clean.run(steps=2)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean.task))


@pytest.mark.parametrize("kind", sample(KINDS, "array", "unknown"))
def test_a_later_run_meets_the_bad_batch_and_those_behind_it_again(kind):
    loop = loops.TrainLoop(tiny.Classifier(), tiny.feed_of(kind, *poisoned(2)))
    for _ in range(2):
        with pytest.raises(loops.NonFiniteError, match="At step 3 "):
            loop.run(epochs=1)
    loop.on_nonfinite = loops.OnNonFinite("skip")
    loop.run(epochs=1)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean_run((2,), epochs=1, random=False).task))


@pytest.mark.parametrize("kind", sample(KINDS, "array", "unknown"))
def test_a_rollback_drops_what_came_since_the_good_state(kind):
    # In both epochs: the good state is that at the beginning of the epoch, the batches up to the bad one are gone.
    loop = trained(kind, poisoned(4), on_nonfinite="rollback")
    clean = clean_run((0, 1, 2, 3, 4))
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean.task))
    assert loop.history.history["loss"] == clean.history.history["loss"]
    assert loop.history.history["rollbacks"] == [1, 2]


class Beginnings(hooks.Hook):
    """Counts how often an epoch began."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def on_epoch_begin(self, loop):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_an_epoch_that_is_rolled_back_whole_begins_again():
    counter = Beginnings()
    loop = loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *poisoned(4)), [counter], compile="eager", on_nonfinite="rollback")
    loop.run(epochs=1)
    # The state went back to that from before the first beginning, so that beginning is undone too.
    assert counter.count == 1 and loop.history.history["rollbacks"] == [1]


def test_a_rollback_lowers_the_learning_rate_if_asked_to():
    policy = loops.OnNonFinite("rollback", learning_rate_factor=0.5)
    loop = trained("array", poisoned(4), "eager", on_nonfinite=policy)
    assert float(loop.learning_rate) == pytest.approx(0.05 / 4)


def test_a_rollback_shows_in_records(tmp_path):
    loop = loops.TrainLoop(
        tiny.Classifier(),
        tiny.feed_of("array", *poisoned(4)),
        [hooks.TensorBoard(tmp_path, update_freq=1), hooks.Snapshot("2 steps | 1 epoch")],
        workdir=tmp_path,
        on_nonfinite="rollback",
    )
    loop.run(epochs=1)
    events = testing.read_events(tmp_path)["train"]
    assert [step for step, _ in events["batch_loss"]] == list(range(1, loop.progress.step + 1))
    assert events["epoch_rollbacks"] == [(0, 1.0)]
    assert "rollbacks" in (tmp_path / "history.csv").read_text()


KILLED_AT = [("step", 6), ("before_write", 3), ("before_rename", 4)]
KILLED = [("rollback", "array"), ("skip", "unknown")]
OTHERS_KILLED = [("rollback", "known"), ("skip", "array"), ("skip", "known"), ("rollback", "unknown")]


@pytest.mark.parametrize(("policy", "kind"), [*KILLED, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHERS_KILLED)])
def test_recoveries_are_the_same_after_a_kill(policy, kind, tmp_path):
    def run():
        chosen = [hooks.Snapshot("2 steps | 1 epoch"), hooks.CSVLogger(workdir / "history.csv")]
        task = tiny.Classifier(random=True)
        loop = loops.TrainLoop(task, tiny.feed_of(kind, *poisoned(1, 5)), chosen, workdir=workdir, on_nonfinite=policy)
        loop.run(epochs=2)
        return tiny.state(loop.task), loop.history.history, (workdir / "history.csv").read_bytes()

    workdir = tmp_path / "run"
    with Copies(workdir, *KILLED_AT) as copies:
        state, *records = run()
    for point in KILLED_AT:
        copies.restore(point)
        state_again, *records_again = run()
        tiny.assert_same_bits(state_again, state)
        assert records_again == records, point


def test_a_spike_rolls_back():
    n = 60 * BATCH
    x, y = tiny.data(n)
    x[40 * BATCH : 41 * BATCH] *= 1e4

    class Regression(tiny.Classifier):
        def loss(self, y, y_pred):
            return tf.reduce_mean(tf.square(self.inputs)) + super().loss(y, y_pred)

        def train_step(self, batch):
            self.inputs = batch[0]
            return super().train_step(batch)

    feed = loops.ArrayFeed((x, y), BATCH)
    loop = loops.TrainLoop(Regression(), feed, [hooks.LossSpike("10 steps", history=20)], on_nonfinite=loops.OnNonFinite("rollback"))
    loop.run(epochs=1)
    assert loop.history.history["rollbacks"] == [1]
    assert loop.progress.step == 10  # 60 batches, of which the first 50 were dropped
    kept = loops.TrainLoop(Regression(), loops.ArrayFeed((x[50 * BATCH :], y[50 * BATCH :]), BATCH))
    kept.run(epochs=1)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(kept.task))


def frozen_at_first():
    task = tiny.Classifier()
    task.model.layers[0].trainable = False
    return task


@pytest.mark.parametrize("compile", sample(["graph", "xla", "eager"], "graph"))
def test_a_rollback_past_an_unfreeze_freezes_again(compile):
    def trained(data):
        task, x, y = frozen_at_first(), *data
        evaluate = hooks.Evaluate(loops.ArrayFeed(tiny.data(16), 16), "test", every=loops.triggers.At(2))
        unfreeze = hooks.Unfreeze(task.model.layers[0], monitor="test_loss", threshold=1e9, at="evaluation")
        loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), BATCH), [evaluate, unfreeze], compile=compile, on_nonfinite="rollback")
        loop.run(epochs=1)
        return loop

    # The layer is set free at step 2 and frozen again by the rollback to step 0: two of the three batches that are left are without it.
    x, y = tiny.data(128)
    loop, clean = trained(poisoned(4, n=128)), trained((x[5 * BATCH :], y[5 * BATCH :]))
    assert loop.history.history["rollbacks"] == [1] and loop.progress.step == clean.progress.step == 3
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(clean.task))


def test_a_flag_that_is_taken_back_at_the_same_boundary_costs_no_retrace():
    class FreeAndGoBack(hooks.Hook):
        every = loops.triggers.At(3)
        rolls_back = True

        def on_window_end(self, loop, window):
            loop.task.model.layers[0].trainable = True
            loop.rollback("It was too early.")

    loop = loops.TrainLoop(frozen_at_first(), loops.ArrayFeed(tiny.data(80), BATCH), [FreeAndGoBack()], on_nonfinite="rollback")
    frozen = loop.task.model.layers[0].get_weights()
    loop.run(epochs=1)
    assert loop.progress.step == 2 and not loop.task.model.layers[0].trainable and loop.task.traces == 1
    tiny.assert_same_bits(loop.task.model.layers[0].get_weights(), frozen)
