"""A hook puts other models, layers or optimizers into the task: the next steps and evaluations use them, and what is saved was trained."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

X = np.ones([64, 3], "float32")
BATCH = 16


def net(units, depth=1):
    layers = [keras.layers.Dense(units, activation="relu", name=f"hidden_{i}") for i in range(depth)]
    return keras.Sequential([keras.Input([3]), *layers, keras.layers.Dense(1, name=f"out_{depth}")])


class Fit(loops.Task):
    """Learns to give 1; its model can be another one."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.depth = 1
        self.grow(1)

    def grow(self, depth):
        self.size = tf.Variable(float(depth), trainable=False)
        self.model, self.optimizer = net(2 + 2 * depth, depth), keras.optimizers.SGD(0.1)

    def loss(self, x):
        return tf.reduce_mean((self.model(x) - 1.0) ** 2)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = self.loss(x)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, x):
        return {"loss": self.loss(x)}


def at_epoch(epoch, act, method="on_epoch_end", phase=hooks.Phase.RECORD):
    """A hook that acts once, at the end (or beginning) of that epoch."""
    hook = hooks.LambdaHook(**{method: lambda loop, *_: act(loop) if loop.progress.epoch == epoch else None})
    hook.phase = phase
    return hook


def loss_of(weights, model):
    model.set_weights(weights)
    return float(np.mean((model(X).numpy() - 1) ** 2))


def swap(loop):
    loop.task.grow(2)


@pytest.mark.parametrize("compile", ["graph", "eager", pytest.param("xla", marks=pytest.mark.matrix)])
def test_steps_and_evaluations_use_what_a_hook_put_in(compile, capsys):
    feed = loops.ArrayFeed(X, BATCH)
    task = Fit()
    old = task.model
    loop = loops.TrainLoop(task, feed, [at_epoch(1, swap)], evaluate={"val": feed}, compile=compile)
    history = loop.run(epochs=4).history
    assert task.model is not old and int(task.optimizer.iterations.numpy()) == 8
    assert history["val_loss"][-1] == pytest.approx(loss_of(task.model.get_weights(), net(6, 2)), rel=1e-5)
    assert loss_of(old.get_weights(), net(4, 1)) == pytest.approx(history["val_loss"][1], rel=1e-2), "the old one was not trained further"
    assert "the task has changed: " in capsys.readouterr().out


def replaced_optimizer(loop):
    loop.task.optimizer = keras.optimizers.SGD(0.0)


def replaced_layer(loop):
    loop.task.model.pop()
    loop.task.model.add(keras.layers.Dense(1, kernel_initializer="zeros"))


@pytest.mark.parametrize("act", [replaced_optimizer, replaced_layer])
def test_an_optimizer_or_a_layer_counts_too(act):
    feed, seen = loops.ArrayFeed(X, BATCH), []
    look = at_epoch(2, lambda loop: seen.append(loop.task.model.get_weights()), "on_epoch_begin")
    loop = loops.TrainLoop(Fit(), feed, [at_epoch(1, act), look], evaluate={"val": feed}, compile="graph")
    history = loop.run(epochs=3).history
    if act is replaced_optimizer:  # at a rate of 0 nothing changes
        tiny.assert_same_bits(seen[0], loop.task.model.get_weights())
        assert history["val_loss"][2] == history["val_loss"][1]
    else:
        assert history["loss"][2] > history["loss"][1] and history["val_loss"][2] != history["val_loss"][1]
        assert all(np.any(a != b) for a, b in zip(seen[0][2:], loop.task.model.get_weights()[2:], strict=True)), "the new layer was trained"


def test_an_evaluation_at_the_same_look_and_one_by_hand_see_the_new_model():
    feed, found = loops.ArrayFeed(X, BATCH), []

    def swap_and_evaluate(loop):
        before = loop.evaluate(feed, "a")["a_loss"]
        swap(loop)
        found.append((before, loop.evaluate(feed, "b")["b_loss"], loss_of(loop.task.model.get_weights(), net(6, 2))))

    task = Fit()
    evaluate, predicted = loops.EvalLoop(task), []
    evaluate.run(feed)
    loops.TrainLoop(task, feed, [at_epoch(0, swap_and_evaluate)], compile="eager").run(epochs=1)
    before, after, wanted = found[0]
    assert after == pytest.approx(wanted, rel=1e-6) and after != before
    assert evaluate.run(feed)["loss"] == pytest.approx(wanted, rel=1e-6)
    assert not predicted


@pytest.mark.parametrize("phase", [hooks.Phase.EVALUATE, hooks.Phase.DECIDE, hooks.Phase.RECORD])
def test_saved_weights_are_those_that_were_evaluated(phase, tmp_path):
    feed, saved = loops.ArrayFeed(X, BATCH), {}

    def read(loop):
        best._writer.wait()
        saved[loop.progress.epoch] = (tmp_path / "best.weights.h5").read_bytes()

    def weights_of(content, model):
        (tmp_path / "copy.weights.h5").write_bytes(content)
        model.load_weights(tmp_path / "copy.weights.h5")
        return model.get_weights()

    best = hooks.ModelCheckpoint(tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True)
    chosen = [at_epoch(1, swap, phase=phase), best, *(at_epoch(e, read, "on_epoch_begin") for e in (2, 3))]
    loop = loops.TrainLoop(Fit(), feed, chosen, evaluate={"val": feed}, compile="eager")
    val = loop.run(epochs=4).history["val_loss"]
    assert loss_of(weights_of(saved[2], net(4, 1)), net(4, 1)) == pytest.approx(min(val[:2]), rel=1e-4)


def test_a_model_that_was_changed_itself_is_not_saved_for_what_it_was(tmp_path):
    feed = loops.ArrayFeed(X, BATCH)
    files = hooks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    stopping = hooks.EarlyStopping("val_loss", patience=9, restore_best_weights=True)
    chosen = [at_epoch(1, replaced_layer, phase=hooks.Phase.EVALUATE), files, stopping]
    with pytest.warns(UserWarning, match="did not save after step 8: a hook has changed the model") as warned:
        loops.TrainLoop(Fit(), feed, chosen, evaluate={"val": feed}, compile="eager").run(epochs=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.weights.h5", "3.weights.h5"]
    assert any("cannot keep the weights of epoch 2" in str(w.message) for w in warned) or stopping.best_epoch != 1


def test_early_stopping_says_that_the_best_weights_do_not_fit_any_more():
    feed = loops.ArrayFeed(X, BATCH)
    stopping = hooks.EarlyStopping("loss", min_delta=1e9, patience=9, restore_best_weights=True)
    task = Fit()
    with pytest.warns(UserWarning, match="does not restore the weights of epoch 1, the best one: since then a hook has replaced"):
        loops.TrainLoop(task, feed, [at_epoch(1, swap), stopping], compile="eager").run(epochs=3)
    assert len(task.model.get_weights()) == 6


def test_rates_follow_the_new_optimizer():
    feed = loops.ArrayFeed(X, BATCH)

    def other(loop):
        loop.task.optimizer = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.25, 1000, 1.0))

    plateau = hooks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    loop = loops.TrainLoop(Fit(), feed, [at_epoch(1, other, phase=hooks.Phase.EVALUATE), plateau], compile="graph")
    rates = loop.run(epochs=4).history["learning_rate"]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.125, 0.0625], rtol=1e-6)


def test_a_keras_model_and_its_callbacks_can_be_replaced_too():
    def model(units):
        made = net(units)
        made.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"], jit_compile=False)
        return made

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model)

    seen, first, second = [], model(4), model(8)
    reference = model(8)
    reference.set_weights(second.get_weights())
    y = np.ones([64, 1], "float32")

    def put(loop):
        loop.task.model = second

    chosen = {"hooks": [at_epoch(0, put)], "callbacks": [Seen()], "compile": "graph"}
    history = loops.fit(first, X, y, epochs=3, shuffle=False, batch_size=BATCH, verbose=0, validation_data=(X, y), **chosen).history
    theirs = reference.fit(X, y, epochs=2, shuffle=False, batch_size=BATCH, verbose=0, validation_data=(X, y)).history
    assert {name: values[1:] for name, values in history.items()} == theirs
    assert seen == [first, second, second]
    tiny.assert_same_bits(second.get_weights(), reference.get_weights())


# Killed and carried on.


class Killed(Exception):
    pass


def kill(loop):
    raise Killed


class Growing(Fit):
    """Knows by its own state how deep it is."""

    def state_dict(self):
        return {"depth": self.depth}

    def load_state_dict(self, state):
        if state["depth"] != self.depth:
            self.depth = state["depth"]
            self.grow(self.depth)


def deeper(loop):
    loop.task.depth = 2
    loop.task.grow(2)


class GrowingHook(hooks.Hook):
    def on_train_begin(self, loop):
        if loop.progress.step >= 8:
            loop.task.grow(2)

    def on_epoch_end(self, loop, logs):
        if loop.progress.epoch == 1:
            loop.task.grow(2)


def loop_of(task, chosen, workdir, *more):
    warnings.simplefilter("ignore")  # a Python value that the trace has as a constant
    return loops.TrainLoop(task, loops.ArrayFeed(X, BATCH), [hooks.Snapshot("2 steps"), *chosen, *more], compile="graph", workdir=workdir)


@pytest.mark.parametrize("made, chosen", [(Growing, lambda: [at_epoch(1, deeper)]), (Fit, lambda: [GrowingHook()])], ids=["task", "hook"])
def test_a_net_that_grows_survives_a_kill(made, chosen, tmp_path):
    whole = loop_of(made(), chosen(), tmp_path / "whole")
    whole.run(epochs=4)
    for epoch in (1, 2, 3):
        with pytest.raises(Killed):
            last = at_epoch(epoch, kill, phase=hooks.Phase.SAVE)
            loop_of(made(), chosen(), tmp_path / str(epoch), last).run(epochs=4)
        resumed = loop_of(made(), chosen(), tmp_path / str(epoch))
        resumed.run(epochs=4)
        tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(whole.task))
        assert resumed.history.history == whole.history.history


def test_a_net_that_cannot_grow_again_is_refused_with_what_to_do(tmp_path):
    loop_of(Fit(), [at_epoch(1, swap)], tmp_path).run(epochs=3)
    with pytest.raises(
        loops.MismatchError, match="a task that grew in training has to grow in its load_state_dict, or by a hook in on_train"
    ):
        loop_of(Fit(), [at_epoch(1, swap)], tmp_path).run(epochs=4)


def test_a_rollback_goes_back_to_the_model_of_the_good_state():
    def grow_and_go_back(loop):
        deeper(loop)
        loop.rollback("It grew too early.")
        tries.append(loop.progress.step)

    tries = []
    looks = hooks.LambdaHook(every=loops.triggers.At(6), on_window_end=lambda loop, window: tries or grow_and_go_back(loop))
    loop = loops.TrainLoop(Growing(), loops.ArrayFeed(X, BATCH), [looks], compile="eager", on_nonfinite="rollback")
    loop.run(epochs=2)
    assert tries == [6] and loop.task.depth == 1 and len(loop.task.model.weights) == 4 and loop.progress.step == 6
