"""What belongs to a run, wherever it is held: it is resumed, put back after a bad step, and untouched by evaluation, in every mode."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.errors import MismatchError
from loops.run.eval_loop import EvalLoop
from loops.tasks.kept_values import KeptValues
from loops.tasks.replicas import local_variables
from tests.loops import tiny
from tests.loops.sampling import sample

X = np.random.default_rng(0).normal(size=[24, 3]).astype("float32")


class Buffer:
    """A plain object with a variable; the helper of many a research repository."""

    def __init__(self):
        self.total = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.SUM)


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.layers = [keras.layers.Dense(1, kernel_initializer="ones")]
        self.layers[0].build([None, 3])

    def __call__(self, x):
        return self.layers[0](x)


class Inner(loops.Task):
    def __init__(self):
        super().__init__()
        self.optimizer = keras.optimizers.SGD(0.1, momentum=0.9)

    def train_step(self, batch):
        return {}


class Everything(loops.Task):
    """Its step uses state that is held in each of the ways that there are, and that no attribute leads to."""

    def __init__(self):
        super().__init__()
        self.net, self.buffer, self.inner = Net(), Buffer(), Inner()
        self.noise = [tf.random.Generator.from_seed(3)]
        self.model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, kernel_initializer="ones")])
        self.model.own_optimizer = keras.optimizers.Adam(0.1)
        self.model.count = tf.Variable(0, trainable=False)
        hidden = [tf.Variable(float(i), name=f"hidden_{i}", trainable=False) for i in range(3)]
        self.hidden = lambda: hidden

    def _learn(self, x):
        for net, optimizer in ((self.net, self.inner.optimizer), (self.model, self.model.own_optimizer)):
            variables = net.trainable_variables if net is self.model else net.layers[0].trainable_variables
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((net(x) - self.noise[0].normal([])) ** 2)
            yield loss, tape, optimizer, variables
        for i, v in enumerate(self.hidden()):
            v.assign_add(float(i) * loss)
        self.buffer.total.assign_add(loss)
        self.model.count.assign_add(1)

    def train_step(self, x):
        for loss, tape, optimizer, variables in self._learn(x):
            self.minimize(loss, tape, optimizer, variables)
        return {"loss": loss + keras.random.uniform([])}

    def eval_step(self, x):
        """Adapts everything, as few-shot evaluation does."""
        for loss, tape, _, variables in self._learn(x):
            for v, g in zip(variables, tape.gradient(loss, variables), strict=True):
                v.assign_sub(g)
        return {"loss": loss + keras.random.uniform([]), "losses": loops.Collect(loss[None])}

    def eval_end(self, collected):
        self.model.count.assign_add(100)
        self.net.layers[0].bias.assign([7.0])
        return {"last": collected["losses"][-1]}

    def state(self):
        return [np.asarray(v) for v in [*local_variables(self.tracked.all_variables()), *self.hidden()]]


def train(mode, steps, workdir=None, x=X, **arguments):
    keras.utils.set_random_seed(4)
    keras.utils.clear_session(free_memory=False)
    task = Everything()
    loop = loops.TrainLoop(task, loops.ArrayFeed(x, 4), compile=mode, workdir=workdir, **arguments)
    loop.run(steps=steps)
    return task.state(), loop


MODES = ["graph", "eager", "xla"]


@pytest.fixture(scope="module")
def undisturbed(request):
    state, loop = train(request.param, 6)
    return request.param, state, loop.history.history


@pytest.mark.parametrize("undisturbed", MODES, indirect=True)
def test_it_is_resumed(undisturbed, tmp_path):
    mode, expected, history = undisturbed
    train(mode, 3, tmp_path)
    state, loop = train(mode, 6, tmp_path)
    tiny.assert_same_bits(state, expected)
    assert loop.history.history["loss"] == history["loss"]


@pytest.mark.parametrize("undisturbed", sample(MODES, "graph", "eager"), indirect=True)
def test_evaluation_leaves_no_trace_in_it(undisturbed):
    mode, expected, history = undisturbed
    chosen = [hooks.Evaluate(loops.ArrayFeed(X, 8), every="2 steps")]
    state, loop = train(mode, 6, hooks=chosen)
    tiny.assert_same_bits(state, expected)
    assert loop.history.history["loss"] == history["loss"] and "val_last" in loop.history.history


@pytest.mark.parametrize("undisturbed", sample(MODES, "graph", "eager"), indirect=True)
def test_it_is_put_back_after_a_bad_step(undisturbed):
    mode, expected, _ = undisturbed
    bad = np.concatenate([X[:8], np.full([4, 3], np.nan, "float32"), X[8:]])
    state, loop = train(mode, 6, x=bad, on_nonfinite="skip")
    assert loop.progress.step == 6
    tiny.assert_same_bits(state, expected)


class OnReplicas(loops.Task):
    """State of which each replica has a copy, in a plain object, a generator, a model's own optimizer, and where no attribute leads."""

    def __init__(self):
        super().__init__()
        self.buffer, self.noise = Buffer(), tf.random.Generator.from_seed(3)
        self.model = keras.Sequential(
            [keras.Input([3]), keras.layers.Dense(1, kernel_initializer="ones"), keras.layers.Dropout(0.3, seed=1)]
        )
        self.model.own_optimizer = keras.optimizers.Adam(0.1)
        hidden = tf.Variable(0.0, name="hidden", trainable=False, aggregation=tf.VariableAggregation.MEAN)
        self.hidden = lambda: hidden

    def train_step(self, x):
        loss, tape = self._use(x)
        self.minimize(loss, tape, self.model.own_optimizer, self.model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, x):
        return {"loss": self._use(x)[0]}

    def _use(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - self.noise.normal([])) ** 2)
        self.buffer.total.assign_add(loss)
        self.hidden().assign_add(loss)
        return loss, tape

    def state(self):
        return [np.asarray(v) for v in local_variables([*self.tracked.all_variables(), self.hidden()])]


@pytest.mark.parametrize("mode", ["graph", pytest.param("eager", marks=pytest.mark.matrix)])
def test_so_it_is_on_two_replicas(mode, two_replicas, tmp_path):
    def train(steps, workdir=None, x=X, **arguments):
        keras.utils.set_random_seed(4)
        with two_replicas.scope():
            task = OnReplicas()
        loops.TrainLoop(task, loops.ArrayFeed(x, 4), compile=mode, workdir=workdir, **arguments).run(steps=steps)
        return task.state()

    expected = train(6)
    train(3, tmp_path)
    tiny.assert_same_bits(train(6, tmp_path), expected)
    tiny.assert_same_bits(train(6, hooks=[hooks.Evaluate(loops.ArrayFeed(X, 8), every="2 steps")]), expected)
    bad = np.concatenate([X[:8], np.full([4, 3], np.nan, "float32"), X[8:]])
    tiny.assert_same_bits(train(6, x=bad, on_nonfinite="skip"), expected)


# What no attribute leads to.


class Hidden(loops.Task):
    """Its step adds 1, 2, ... to variables that no attribute leads to."""

    def __init__(self, names, used=None):
        super().__init__()
        variables = [tf.Variable(0.0, name=name, trainable=False) for name in names]
        order = [variables[i] for i in used or range(len(names))]
        self.variables = lambda: (variables, order)

    def train_step(self, batch):
        variables, order = self.variables()
        for v in order:
            v.assign_add(1.0 + next(i for i, one in enumerate(variables) if one is v))
        return {"loss": tf.zeros([])}

    def values(self):
        return [float(v) for v in self.variables()[0]]


def run(task, steps, mode, workdir, **arguments):
    loop = loops.TrainLoop(task, loops.NoFeed(2), compile=mode, workdir=workdir, **arguments)
    loop.run(steps=steps)
    return loop


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_such_variables_are_known_by_name_in_whatever_order_they_are_used(mode, tmp_path):
    run(Hidden(["a", "b", "c"]), 2, mode, tmp_path)
    task = Hidden(["c", "a", "b"], used=[2, 0, 1])
    with pytest.MonkeyPatch.context() as patch:  # so that only the values of before count
        patch.setattr(task, "train_step", lambda batch: {"loss": sum(v * 0.0 for v in task.variables()[1])})
        run(task, 4, mode, tmp_path)
    assert task.values() == [6.0, 2.0, 4.0]


def test_those_that_are_alike_are_known_by_their_order_in_the_trace_and_refused_where_there_is_none(tmp_path):
    run(Hidden(["v", "v", "v"]), 2, "graph", tmp_path / "graph")
    task = Hidden(["v", "v", "v"])
    run(task, 3, "graph", tmp_path / "graph")
    assert task.values() == [3.0, 6.0, 9.0]
    with pytest.raises(
        ValueError, match=r"the eager step uses 3 variables v \(\[\] float32\) that cannot be told apart; hold such variables"
    ):
        run(Hidden(["v", "v", "v"]), 3, "eager", tmp_path / "eager")
    run(Hidden(["v", "v", "v"]), 3, "eager", None)  # nothing is saved


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_others_than_before_are_refused(mode, tmp_path):
    run(Hidden(["a", "b"]), 2, mode, tmp_path)
    with pytest.raises(MismatchError, match=r"the step uses other \(\[\] float32\) where it used b \(\[\] float32\) before; hold such"):
        run(Hidden(["a", "other"]), 3, mode, tmp_path)


def test_in_eager_mode_a_value_waits_until_its_variable_is_used_and_is_saved_on(tmp_path):
    run(Hidden(["a", "b"]), 2, "eager", tmp_path)
    run(Hidden(["a", "b"], used=[0]), 4, "eager", tmp_path)
    task = Hidden(["a", "b"])
    run(task, 5, "eager", tmp_path)
    assert task.values() == [5.0, 6.0]


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_they_are_named_once(mode, capsys):
    loop = run(Hidden(["a", "b"]), 2, mode, None)
    loop.run(steps=4)
    said = [line for line in capsys.readouterr().out.splitlines() if "no attribute of" in line]
    assert len(said) == 1 and said[0].startswith("Note: no attribute of Hidden leads to 2 of the variables that its step uses (a, b).")


def test_keras_own_seed_generator_and_multipliers_of_schedules_are_nobodys_problem(capsys):
    class Draws(loops.SupervisedTask):
        def train_step(self, batch):
            return super().train_step((batch + keras.random.normal([3]), batch[:, :1]))

    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    task = Draws(model, loss="mse", optimizer=keras.optimizers.SGD(rate))
    loop = loops.TrainLoop(task, loops.ArrayFeed(X, 4), [hooks.ReduceLROnPlateau("loss")], compile="graph")
    loop.run(steps=2)
    assert "no attribute" not in capsys.readouterr().out
    assert [v.name for v in loop.execution.program.variables()["captured"]] == ["seed_generator/seed_generator_state:0"]


# Eager mode.


class Debugged(loops.Task):
    """An eager step as people write them to find a fault: it looks at values."""

    def __init__(self, *, lazy=False):
        super().__init__()
        self.buffer = Buffer()
        if lazy:
            del self.buffer.total
        self.seen = []

    def train_step(self, batch):
        if not hasattr(self.buffer, "total"):
            self.buffer.total = tf.Variable(0.0)
        self.buffer.total.assign_add(1.0)
        self.look()
        return {"loss": self.buffer.total.read_value()}

    def look(self):
        self.seen.append(float(self.buffer.total.numpy()))


def test_an_eager_step_is_not_traced_to_be_resumed(tmp_path):
    run(Debugged(), 2, "eager", tmp_path)
    task = Debugged()
    run(task, 4, "eager", tmp_path)
    assert task.seen == [3.0, 4.0]


def test_but_for_variables_that_its_first_step_makes(tmp_path):
    class Quiet(Debugged):
        def look(self):
            if tf.executing_eagerly():
                super().look()

    run(Quiet(lazy=True), 2, "eager", tmp_path)
    task = Quiet(lazy=True)
    run(task, 4, "eager", tmp_path)
    assert task.seen == [3.0, 4.0]
    with pytest.raises(MismatchError, match="some model variables do not exist before the first eager step, and the step cannot be traced"):
        run(Debugged(lazy=True), 5, "eager", tmp_path)


def test_hidden_random_state_is_refused_at_the_line_that_draws_where_a_run_is_saved(tmp_path):
    class Draws(loops.Task):
        def train_step(self, batch):
            return {"loss": tf.random.normal([])}

    run(Draws(), 2, "eager", None)
    with pytest.raises(ValueError, match="draws random numbers from hidden state that cannot be saved"):
        run(Draws(), 2, "eager", tmp_path)


def test_state_that_is_in_no_variable_is_named(tmp_path, capsys):
    class Second(loops.Task):
        def __init__(self, hide):
            super().__init__()
            data = iter(tf.data.Dataset.range(9))
            self.more = (lambda: data) if hide else data

        def train_step(self, batch):
            return {"loss": tf.cast(next(self.more() if callable(self.more) else self.more), tf.float32)}

    run(Second(False), 1, "graph", tmp_path / "held")
    run(Second(True), 1, "graph", tmp_path / "hidden")
    said = capsys.readouterr().out
    assert "Note: Second has state that is in no variable, so it is not saved (more): a resumed run begins it anew." in said
    assert "(what IteratorGetNext changes in its step)" in said


# Evaluation.


def test_only_what_a_traced_evaluation_can_write_is_copied(monkeypatch):
    kept = []
    keep = KeptValues.keep
    monkeypatch.setattr(KeptValues, "keep", lambda self, variables: (kept.extend(local_variables(variables)), keep(self, kept))[1])
    task = tiny.Classifier(random=True)
    loop = EvalLoop(task)
    loop.run(loops.ArrayFeed(tiny.data(32), 8))
    accumulators = {id(v) for v in local_variables(task.accuracy.variables)}
    assert {id(v) for v in kept} == accumulators
    kept.clear()
    EvalLoop(task, compile="eager").run(loops.ArrayFeed(tiny.data(32), 8))
    assert {id(v) for v in kept} >= {id(v) for v in local_variables(task.tracked.all_variables())}


def test_a_function_that_eval_end_calls_leaves_no_trace_the_second_time_either():
    class Counts(tiny.Classifier):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable(0.0)
            self.add = tf.function(lambda: self.count.assign_add(1.0))

        def eval_end(self, collected):
            return {"count": float(self.add())}

    loop = EvalLoop(Counts())
    for _ in range(3):
        assert loop.run(loops.ArrayFeed(tiny.data(32), 8))["count"] == 1.0
    assert float(loop.task.count) == 0.0


# Hooks.


class TwoOptimizers(keras.Model):
    """A compiled model with a second optimizer of its own, as keras.io's GANs have it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = keras.layers.Dense(2), keras.layers.Dense(1)
        self.second = keras.optimizers.Adam(0.01)

    def call(self, x):
        return self.b(self.a(x))

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2)
        parts = [(self.optimizer, self.a.trainable_variables), (self.second, self.b.trainable_variables)]
        for (optimizer, variables), gradients in zip(parts, tape.gradient(loss, [v for _, v in parts]), strict=True):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss}


def test_learning_rate_hooks_and_restoring_reach_the_optimizers_that_hang_on_a_model():
    model = TwoOptimizers()
    model.compile(keras.optimizers.SGD(0.01))
    given = [
        hooks.LearningRateScheduler(lambda epoch: 0.5 if epoch else 1e-6),  # so that the first epoch is the best
        hooks.EarlyStopping("loss", patience=1, restore_best_weights=True),
    ]
    history = loops.fit(model, X, X[:, :1] * 0.0, batch_size=8, epochs=5, hooks=given, verbose=0, shuffle=False)
    assert sorted(history.history) == ["learning_rate_model.optimizer", "learning_rate_model.second", "loss"]
    assert len(history.epoch) > 1
    best = int(np.argmin(history.history["loss"])) + 1
    assert int(model.optimizer.iterations.numpy()) == int(model.second.iterations.numpy()) == 3 * best


# Schedules that cannot describe themselves.


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule of TensorFlow's Transformer tutorial."""

    def __init__(self, d_model, warmup_steps=40):
        self.d_model, self.warmup_steps = tf.cast(d_model, tf.float32), warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        return tf.math.rsqrt(self.d_model) * tf.math.minimum(tf.math.rsqrt(step), step * self.warmup_steps**-1.5)


@pytest.mark.parametrize("rate", [lambda: Warmup(16), lambda: lambda: 0.01], ids=["schedule", "function"])
def test_a_schedule_without_settings_resumes_and_is_scaled(rate, tmp_path):
    scaled = isinstance(rate(), keras.optimizers.schedules.LearningRateSchedule)  # a function is not: Keras could not save it

    def fit(workdir, epochs):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        task = loops.SupervisedTask(model, loss="mse", optimizer=keras.optimizers.Adam(rate()))
        plateau = hooks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=100.0)
        chosen = [plateau] if scaled else []
        loop = loops.TrainLoop(task, loops.ArrayFeed((X, X[:, :1]), 8), chosen, compile="graph", workdir=workdir)
        loop.run(epochs=epochs)
        return tiny.state(task), loop.history.history, loop.learning_rate.state_dict()["multipliers"]

    state, *expected = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    again, *found = fit(tmp_path / "parts", 4)
    tiny.assert_same_bits(again, state)
    assert found == expected and found[1] == ({"model.optimizer": 0.125} if scaled else {})


def test_a_rollback_puts_back_what_an_eager_step_was_seen_to_use_only_later():
    went_back = []

    def go_back(loop, window):
        if not went_back:
            went_back.append(task.values())
            loop.rollback("it was asked for")

    task = Hidden(["v", "v"])  # within one process they need no names
    task.train_step = (lambda step: lambda batch: {**step(batch), "value": task.values()[0]})(task.train_step)  # it cannot be traced
    back = hooks.LambdaHook(every=loops.triggers.At(2), on_window_end=go_back)
    loop = loops.TrainLoop(task, loops.NoFeed(10), [back], compile="eager", on_nonfinite="rollback")
    loop.run(steps=3)
    assert went_back == [[2.0, 4.0]] and task.values() == [3.0, 6.0]
