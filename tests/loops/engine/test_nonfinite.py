"""A step that makes numbers stop being numbers is named, and the state is that from before it, bit for bit."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny
from tests.loops.sampling import sample

BAD_STEP = 5


def poisoned(value=np.nan):
    x, y = tiny.data(100)
    x = x.copy()
    x[16 * (BAD_STEP - 1) + 3, 2] = value
    return x, y


class SqrtTask(tiny.Classifier):
    """The loss stays finite where the gradient does not: d sqrt(r) / dr at r = 0."""

    def loss(self, y, y_pred):
        distance = tf.reduce_sum(tf.abs(y_pred - tf.one_hot(y, 3)))
        at_bad_step = tf.cast(tf.not_equal(self.step, BAD_STEP - 1), tf.float32)
        return super().loss(y, y_pred) + tf.sqrt(distance * at_bad_step)


def noisy_sqrt():
    return SqrtTask(random=True)


@functools.cache
def clean_state(make, compile="graph"):
    """The state before the bad step, of a run that does not come to it. The kind of feed makes no difference to its bits."""
    task = make()
    loops.TrainLoop(task, tiny.feed_of("array", *tiny.data(100)), compile=compile).run(steps=BAD_STEP - 1)
    return tiny.state(task)


def noisy():
    return tiny.Classifier(random=True)


@pytest.mark.parametrize(
    ("kind", "compile"),
    [
        ("array", "graph"),
        ("known", "graph"),
        ("unknown", "graph"),
        ("array", "eager"),
        pytest.param("known", "eager", marks=pytest.mark.matrix),
        pytest.param("unknown", "eager", marks=pytest.mark.matrix),
    ],
)
def test_the_state_is_that_from_before_the_bad_step(kind, compile):
    task = noisy()
    loop = loops.TrainLoop(task, tiny.feed_of(kind, *poisoned()), compile=compile)
    with pytest.raises(loops.NonFiniteError, match=rf"At step {BAD_STEP} .*1 of 96 values in part 0 of the batch"):
        loop.run(epochs=2)
    assert loop.progress.step == BAD_STEP - 1
    assert loop.outcome == "failed"
    tiny.assert_same_bits(tiny.state(task), clean_state(noisy, compile))


def test_the_state_is_that_from_before_the_bad_step_under_xla():
    task = tiny.Classifier()
    with pytest.raises(loops.NonFiniteError, match=f"At step {BAD_STEP} "):
        loops.TrainLoop(task, tiny.feed_of("array", *poisoned()), compile="xla").run(epochs=1)
    tiny.assert_same_bits(tiny.state(task), clean_state(tiny.Classifier, "xla"))


@pytest.mark.parametrize("kind", ["array", pytest.param("unknown", marks=pytest.mark.matrix)])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_found_too(kind):
    task = noisy_sqrt()
    with pytest.raises(loops.NonFiniteError, match=f"At step {BAD_STEP} a gradient or a variable .* every number in the batch is finite"):
        loops.TrainLoop(task, tiny.feed_of(kind, *tiny.data(100))).run(epochs=2)
    tiny.assert_same_bits(tiny.state(task), clean_state(noisy_sqrt))


class BadBatch(tiny.Classifier):
    """The gradient of a batch is not finite if a feature of its first example is 0.5, and the loss is that after it."""

    def __init__(self):
        super().__init__(random=True)

    def train_step(self, batch):
        self.good = tf.where(batch[0][0, 0] == 0.5, 0.0, 1.0)
        return super().train_step(batch)

    def loss(self, y, y_pred):
        return super().loss(y, y_pred) + tf.sqrt(tf.reduce_sum(tf.abs(y_pred - tf.one_hot(y, 3))) * self.good)


def batches_once(x, y):
    """A source of blocks that cannot be read twice."""
    return loops.GeneratorFeed((x[i : i + 16], y[i : i + 16]) for i in range(0, len(x), 16))


@pytest.mark.parametrize("kind", sample(["array", "known", "unknown", "generator"], "array", "unknown", "generator"))
def test_many_calls_between_two_looks_are_taken_back_and_none_of_their_batches_is_lost(kind, monkeypatch):
    def feed(x, y):
        return batches_once(x, y) if kind == "generator" else tiny.feed_of(kind, x, y)

    monkeypatch.setattr(loops.engine.call_length.CallLength, "limit", lambda self: 2)
    task = noisy_sqrt()
    with pytest.raises(loops.NonFiniteError, match=f"At step {BAD_STEP} a gradient or a variable"):
        loops.TrainLoop(task, feed(*tiny.data(100)), compile="graph").run(epochs=1)
    tiny.assert_same_bits(tiny.state(task), clean_state(noisy_sqrt))
    # With "skip", the run ends as one on the data without the bad batch.
    x, y = tiny.data(200)
    x[16 * (BAD_STEP - 1), 0] = 0.5
    kept = np.r_[0 : 16 * (BAD_STEP - 1), 16 * BAD_STEP : 200]
    expected = BadBatch()
    loops.TrainLoop(expected, tiny.feed_of("array", x[kept], y[kept]), compile="graph").run(epochs=1)
    one_bad = BadBatch()
    loop = loops.TrainLoop(one_bad, feed(x, y), compile="graph", on_nonfinite="skip")
    loop.run(epochs=1)
    assert loop.progress.step == 12
    tiny.assert_same_bits(tiny.state(one_bad), tiny.state(expected))


class Buffered(tiny.Classifier):
    """Writes each batch to a large replay buffer, and trains on what it reads there."""

    def __init__(self):
        super().__init__(random=True)
        self.buffer = tf.Variable(tf.zeros([2000, tiny.N_FEATURES]), trainable=False)

    def train_step(self, batch):
        x, y = batch
        rows = tf.cast(self.step, tf.int32) * 7 % 500 + tf.range(tf.shape(x)[0])
        self.buffer.scatter_nd_update(rows[:, None], x)
        return super().train_step((self.buffer.sparse_read(rows), y))


@pytest.mark.parametrize(
    ("kind", "compile"), [("array", "graph"), pytest.param("known", "graph", marks=pytest.mark.matrix), ("array", "xla")]
)
def test_a_replay_buffer_is_put_back_from_the_rows_that_were_kept(kind, compile, monkeypatch):
    monkeypatch.setattr(loops.engine.kept_rows, "_LEAST_BYTES", 1000)
    task, look = Buffered(), hooks.LambdaHook(on_window_end=lambda loop, window: None, every="3 steps")
    loop = loops.TrainLoop(task, tiny.feed_of(kind, *poisoned()), [look], compile=compile)
    with pytest.raises(loops.NonFiniteError, match=f"At step {BAD_STEP} "):
        loop.run(epochs=1)
    execution = loop.execution
    source = next(execution.feed.blocks(loops.Position())) if kind == "array" else None
    whole, rows = execution._writes.of(source, execution.feed.element_spec)
    assert [v is task.buffer for v in rows] == [True]
    assert all(v is not task.buffer for v in whole)
    assert execution.program.variables()["captured"] == []  # what keeps the rows is no part of the run
    tiny.assert_same_bits(tiny.state(task), clean_state(Buffered, compile))


def test_two_optimizers_neither_applies_half_of_the_bad_step():
    class TwoOptimizers(tiny.Classifier):
        def __init__(self):
            super().__init__(random=True)
            self.second = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(2)])
            self.second_optimizer = keras.optimizers.Adam(0.1)

        def train_step(self, batch):
            x, _ = batch
            with tf.GradientTape() as tape:
                finite = tf.reduce_sum(self.second(tf.ones_like(x)) ** 2)
            self.minimize(finite, tape, self.second_optimizer, self.second.trainable_variables)
            return {**super().train_step(batch), "second": finite}

    task = TwoOptimizers()
    with pytest.raises(loops.NonFiniteError, match=f"At step {BAD_STEP} "):
        loops.TrainLoop(task, tiny.feed_of("array", *poisoned())).run(epochs=1)
    tiny.assert_same_bits(tiny.state(task), clean_state(TwoOptimizers))


def test_stop_ends_the_run_without_evaluating_recording_or_saving(tmp_path):
    evaluated = []
    loop = loops.TrainLoop(
        tiny.Classifier(),
        tiny.feed_of("array", *poisoned()),
        [hooks.TerminateOnNaN(), hooks.LambdaHook(on_evaluate_end=lambda *_: evaluated.append(1)), hooks.LambdaHook()],
        evaluate={"val": tiny.feed_of("array", *tiny.data(20))},
        workdir=tmp_path / "run",
        compile="eager",
    )
    history = loop.run(epochs=3)
    assert loop.outcome == "stopped"
    assert f"step {BAD_STEP}" in loop.stop_reason
    assert history.epoch == []
    assert evaluated == []
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_ignore_goes_on_as_keras_does():
    x, y = poisoned()
    keras.utils.set_random_seed(0)
    model = tiny.Classifier().model
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = loops.fit(model, x, y, batch_size=16, epochs=1, verbose=0)
    assert np.isnan(history.history["loss"][0])


def test_values_that_were_never_finite_do_not_count():
    class WithInfinity(tiny.Classifier):
        def __init__(self):
            super().__init__()
            self.best = tf.Variable(np.inf)

    loop = loops.TrainLoop(WithInfinity(), tiny.feed_of("array", *tiny.data(100)))
    loop.run(epochs=1)
    assert loop.outcome == "finished"


def test_training_can_go_on_after_the_bad_data_was_replaced():
    task = tiny.Classifier()
    loop = loops.TrainLoop(task, tiny.feed_of("array", *poisoned()))
    with pytest.raises(loops.NonFiniteError):
        loop.run(epochs=1)
    loop.feed = tiny.feed_of("array", *tiny.data(100))
    loop.run(steps=30)
    assert loop.progress.step == 30
    assert all(np.isfinite(v).all() for v in tiny.state(task))
