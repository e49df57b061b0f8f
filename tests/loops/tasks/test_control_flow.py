"""Updates inside a tensor `if`, `for` or `while` of a step; what a traced step cannot see of Python."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks

X = np.random.default_rng(0).normal(size=[64, 3]).astype("float32")


class Updates(loops.Task):
    """A critic that is trained several times in a step, and a penalty that is added in every second step only."""

    def __init__(self, optimizer=None, *, by_hand=False, turns=3):
        super().__init__()
        self.model = keras.Sequential([keras.Input([3]), keras.layers.Dense(4, "tanh", kernel_initializer="ones"), keras.layers.Dense(1)])
        self.model.layers[-1].kernel.assign(np.full([4, 1], 0.3))
        self.optimizer = optimizer or keras.optimizers.Adam(0.05)
        self.turns, self.by_hand = tf.Variable(turns, trainable=False), by_hand

    def update(self, loss_of):
        with tf.GradientTape() as tape:
            loss = loss_of()
        variables = self.model.trainable_variables
        if self.by_hand:
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        else:
            self.minimize(loss, tape, self.optimizer, variables)
        return loss

    def train_step(self, x):
        loss = tf.constant(0.0)
        for _ in tf.range(self.turns):
            loss = self.update(lambda: tf.reduce_mean((self.model(x) - 1.0) ** 2))
        if self.step % 2 == 0:
            self.update(lambda: 0.01 * tf.add_n([tf.reduce_sum(v**2) for v in self.model.trainable_variables]))
        return {"loss": loss}


def weights(task):
    return [np.asarray(v) for v in [*task.model.variables, *task.optimizer.variables]]


def oracle(steps=8):
    """A loop written by hand, eager."""
    task = Updates(by_hand=True)
    for step in range(steps):
        x = tf.constant(X[step % 4 * 16 :][:16])
        for _ in range(3):
            task.update(lambda x=x: tf.reduce_mean((task.model(x) - 1.0) ** 2))
        if step % 2 == 0:
            task.update(lambda: 0.01 * tf.add_n([tf.reduce_sum(v**2) for v in task.model.trainable_variables]))
    return weights(task)


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_updates_in_control_flow_are_those_of_a_loop_written_by_hand(compile):
    task = Updates()
    loops.TrainLoop(task, loops.ArrayFeed(X, 16), compile=compile).run(epochs=2)
    for found, expected in zip(weights(task), oracle(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "compile, hidden",
    [
        pytest.param("graph", False, id="graph-state"),
        pytest.param("xla", True, id="xla-loss only"),
        pytest.param("graph", True, id="graph-loss only", marks=pytest.mark.matrix),
        pytest.param("xla", False, id="xla-state", marks=pytest.mark.matrix),
    ],
)
def test_a_bad_loss_in_a_loop_is_found_at_its_step(compile, hidden):
    class Bad(Updates):
        def train_step(self, x):
            for _ in tf.range(self.turns):
                bad = tf.where(self.step == 5, np.inf, 0.0)  # a constant: no gradient, so the weights stay finite
                extra = bad if hidden else tf.reduce_sum(self.model(x)) * bad
                self.update(lambda: tf.reduce_mean((self.model(x) - 1.0) ** 2) + extra)  # noqa: B023
            return {"examples": loops.Sum(tf.cast(tf.shape(x)[0], tf.float32))}

    good, task = Updates(), Bad()
    loop = loops.TrainLoop(task, loops.ArrayFeed(X, 16), compile=compile)
    with pytest.raises(loops.NonFiniteError, match="At step 6 "):
        loop.run(epochs=2)
    assert loop.progress.step == 5

    class Good(Updates):
        train_step = Bad.train_step

    good = Good()
    loops.TrainLoop(good, loops.ArrayFeed(X, 16), compile=compile).run(steps=5)
    for found, expected in zip(weights(task), weights(good), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not loop.execution.program.variables()["captured"]  # what brings losses out of the loop is no state


@pytest.mark.parametrize("compile", ["graph", pytest.param("xla", marks=pytest.mark.matrix)])
def test_hooks_see_gradients_and_tensors_out_of_control_flow(compile):
    class Observes(Updates):
        def train_step(self, x):
            for i in tf.range(self.turns):
                self.update(lambda: tf.reduce_mean(self.model(x) ** 2))
                self.observe("turn", tf.cast(i, tf.float32) + x[0])
            if self.step % 2 == 1:
                self.observe("odd", tf.constant(1.0))
            return {}

    class Look(hooks.Hook):
        every, observes = "1 steps", {"gradients", "turn", "odd"}

        def __init__(self):
            super().__init__()
            self.seen = []

        def on_window_end(self, loop, window):
            self.seen.append(window.observed)

    hook = Look()
    task = Observes(keras.optimizers.SGD(0.0))  # so that the gradients of all turns are equal
    loops.TrainLoop(task, loops.ArrayFeed(X, 16), [hook], compile=compile).run(steps=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(task.model(X[16:32]) ** 2)
    expected = tape.gradient(loss, task.model.trainable_variables)
    assert sorted(hook.seen[1]["gradients"]) == sorted(v.path for v in task.model.trainable_variables)
    for variable, gradient in zip(task.model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(hook.seen[1]["gradients"][variable.path], gradient, atol=1e-6)
    np.testing.assert_array_equal(hook.seen[1]["turn"], 2 + X[16])
    assert [float(seen["odd"]) for seen in hook.seen] == [0.0, 1.0]


def test_under_replicas_an_update_in_control_flow_is_refused(two_replicas):
    with two_replicas.scope():
        task = Updates()
    with pytest.raises(ValueError, match="does not work under several replicas.*when=<scalar bool>"):
        loops.TrainLoop(task, loops.ArrayFeed(X, 16), strategy=two_replicas, compile="graph").run(steps=1)


class Counter:
    def __init__(self):
        self.n = 0


class CountsInPython(loops.Task):
    def __init__(self):
        super().__init__()
        self.count, self._hidden, self.state, self.helper, self.losses = 0, 0, {"n": 0}, Counter(), []

    def train_step(self, batch):
        self.count += 1
        self._hidden += 1
        self.state["n"] += 1
        self.helper.n += 1
        self.losses.append(None)
        return {}


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_python_that_changes_while_a_step_is_traced_is_named_once(compile, capsys):
    task = CountsInPython()
    loops.TrainLoop(task, loops.NoFeed(4), compile=compile).run(epochs=2)
    told = [line for line in capsys.readouterr().out.splitlines() if "while the step was traced" in line]
    names = ["count", "_hidden", "state.n", "helper.n", "len(losses)"]
    assert [line.split()[1] for line in told] == [f"CountsInPython.{name}" for name in names]
    assert told[0].startswith("Warning: CountsInPython.count changed from 0 to 1 while") and "tf.Variable" in told[0]


def test_in_eager_mode_python_counts_and_nothing_is_said(capsys):
    task = CountsInPython()
    loops.TrainLoop(task, loops.NoFeed(4), compile="eager").run(epochs=2)
    assert task.count == 8 and "traced" not in capsys.readouterr().out


class DrawsByNumPy(loops.Task):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.rng, self.counts, self.idle = kind, np.random.default_rng(0), np.zeros(3), np.zeros(3)

    def train_step(self, batch):
        if self.kind == "counts":
            self.counts += 1
        return {"x": {"np.random": np.random.beta(0.2, 0.2), "self.rng": self.rng.random(), "counts": self.counts[0]}[self.kind]}


@pytest.mark.parametrize("kind", ["np.random", "self.rng", "counts"])
def test_numbers_that_numpy_draws_or_counts_in_a_trace_are_named(kind, capsys):
    task = DrawsByNumPy(kind)
    loops.TrainLoop(task, loops.NoFeed(3), compile="graph").run(epochs=1)
    told = [line for line in capsys.readouterr().out.splitlines() if "while the step was traced" in line]
    assert len([line for line in told if kind in line]) == 1 and not any("idle" in line for line in told)
