"""Optimizers are built for what trains, as Keras builds them, and get slots for what is set free later without losing those they have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.tasks import optimizer_slots
from tests.loops import tiny
from tests.loops.sampling import sample

OPT = keras.optimizers
X = np.random.default_rng(0).normal(size=[32, 4]).astype("float32")

OPTIMIZERS = {
    "sgd": lambda: OPT.SGD(0.01),
    "momentum": lambda: OPT.SGD(0.01, momentum=0.9),
    "adam": lambda: OPT.Adam(0.01, amsgrad=True),
    "average": lambda: OPT.Adam(0.01, use_ema=True),
    "accumulation": lambda: OPT.AdamW(OPT.schedules.ExponentialDecay(0.1, 5, 0.9), gradient_accumulation_steps=2),
    "state that belongs to no variable": lambda: OPT.Nadam(0.01),
    "state made without a reference": lambda: OPT.Adafactor(0.01),
    "slots for some variables only": lambda: OPT.Muon(0.01),
    "loss scale": lambda: OPT.LossScaleOptimizer(OPT.Adam(0.01)),
}


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])


def steps(model, optimizer, variables, n=3):
    for _ in range(n):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - X[:, :1]) ** 2)
        optimizer.apply(tape.gradient(loss, variables), variables)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_trains_as_one_that_was_built_for_all_variables_at_once(name):
    ended = []
    for grows in (False, True):
        model, optimizer = net(), OPTIMIZERS[name]()
        some = model.layers[1].trainable_variables
        optimizer_slots.build(optimizer, some if grows else model.trainable_variables)
        steps(model, optimizer, some)
        before = {id(v) for v in optimizer.variables}
        assert optimizer_slots.build(optimizer, model.trainable_variables, model.variables) is grows
        assert not grows or len(before & {id(v) for v in optimizer.variables}) > len(before) / 3, "slots were thrown away"
        steps(model, optimizer, model.trainable_variables)
        ended.append([np.asarray(v.numpy()) for v in [*model.variables, *optimizer.variables]])
    tiny.assert_same_bits(*ended)


def test_slots_are_kept_of_what_does_not_train_any_more_and_dropped_when_a_state_without_them_is_restored():
    model, optimizer = net(), OPT.Adam(0.01)
    low, middle, _ = (layer.trainable_variables for layer in model.layers)
    optimizer_slots.build(optimizer, low, model.variables)
    steps(model, optimizer, low)
    kept = [v.numpy() for v in optimizer.variables]
    of_low = optimizer_slots.built_for({"o": optimizer}, model.variables)
    optimizer_slots.build(optimizer, middle, model.variables)
    assert optimizer_slots.built_for({"o": optimizer}, model.variables) == {"o": [0, 1, 2, 3]} and of_low == {"o": [0, 1]}
    assert optimizer_slots.build_as({"o": optimizer}, model.variables, of_low)
    tiny.assert_same_bits(kept, [v.numpy() for v in optimizer.variables])
    assert not optimizer_slots.build_as({"o": optimizer}, model.variables, of_low)


def test_an_average_of_weights_begins_with_the_weights():
    model, optimizer = net(), OPT.SGD(0.01, use_ema=True)
    optimizer_slots.build(optimizer, model.layers[0].trainable_variables)
    optimizer_slots.build(optimizer, model.trainable_variables, model.variables)
    averages = [v for v in optimizer.variables if "average" in v.name]
    np.testing.assert_array_equal(averages[2], model.layers[1].kernel)


def test_state_of_which_it_cannot_be_told_whose_it_is_is_refused():
    class Own(OPT.SGD):
        def build(self, variables):
            super().build(variables)
            self.own = [self.add_variable(v.shape, name="own") for v in variables]

    class Hidden(Own):
        def build(self, variables):
            super(Own, self).build(variables)
            shapes = [v.shape for v in variables]
            self.own = [self.add_variable(shape, name="own") for shape in shapes]

    model = net()
    watched, hidden = Own(0.01), Hidden(0.01)
    for optimizer in (watched, hidden):
        optimizer.build(model.layers[0].trainable_variables)
    optimizer_slots.build(watched, model.trainable_variables, model.variables)
    assert [tuple(v.shape) for v in watched.own] == [tuple(v.shape) for v in model.trainable_variables]
    with pytest.raises(ValueError, match="Hidden was built for other variables than those that train now, and it cannot be told which"):
        optimizer_slots.build(hidden, model.trainable_variables)


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_a_model_saved_after_training_is_the_one_that_keras_would_have_saved(compile, tmp_path):
    def made():
        model = net()
        model.layers[0].trainable = False
        model.compile(OPT.Adam(0.01), "mse", jit_compile=False)
        return model

    ours, theirs = made(), made()
    loops.fit(ours, X, X[:, :1], epochs=2, shuffle=False, verbose=0, compile=compile)
    theirs.fit(X, X[:, :1], epochs=2, shuffle=False, verbose=0)
    assert [v.shape for v in ours.optimizer.variables] == [v.shape for v in theirs.optimizer.variables]
    ours.save(tmp_path / "frozen.keras")
    assert int(keras.models.load_model(tmp_path / "frozen.keras").optimizer.iterations.numpy()) == 2
    # ... and so is one with a layer that was set free in mid-training.
    unfreeze = hooks.Unfreeze(ours.layers[0], monitor="loss", threshold=1e9, mode="min")
    loops.fit(ours, X, X[:, :1], epochs=3, shuffle=False, verbose=0, compile=compile, hooks=[unfreeze])
    ours.save(tmp_path / "free.keras")
    back = keras.models.load_model(tmp_path / "free.keras").optimizer
    tiny.assert_same_bits([np.asarray(v) for v in back.variables], [np.asarray(v) for v in ours.optimizer.variables])
    shapes = [tuple(v.shape) for v in ours.trainable_variables]
    assert [tuple(v.shape) for v in back.variables[2::2]] == shapes


class TwoOptimizers(loops.Task):
    def __init__(self):
        super().__init__()
        self.model, self.other = net(), net()
        self.model.layers[0].trainable = False
        self.optimizer, self.average = OPT.Adam(0.01), OPT.SGD(0.1, use_ema=True)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(keras.losses.MeanSquaredError(), y, self.model(x))
            other = self.compute_loss(keras.losses.MeanSquaredError(), y, self.other(x))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        self.minimize(other, tape, self.average, self.other.trainable_variables)
        return {"loss": loss}


def toggle(loop, logs):
    """Sets a layer free after the first epoch, and freezes another one after the second."""
    if loop.progress.epoch == 0:
        loop.task.model.layers[0].trainable = True
    if loop.progress.epoch == 1:
        loop.task.model.layers[1].trainable = False


@pytest.mark.parametrize("compile", sample(["graph", "eager", "xla"], "graph"))
def test_a_killed_run_has_the_slots_again_that_it_had(compile, tmp_path):
    def loop(workdir):
        feed = loops.ArrayFeed((X, X[:, :1]), 16)
        return loops.TrainLoop(TwoOptimizers(), feed, [hooks.LambdaHook(on_epoch_end=toggle)], compile=compile, workdir=workdir)

    whole = loop(tmp_path / "whole")
    whole.run(epochs=4)
    for epoch in (1, 2):  # a new task each time, as after a kill
        loop(tmp_path / "run").run(epochs=epoch)
    resumed = loop(tmp_path / "run")
    resumed.run(epochs=4)
    tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(whole.task))
    assert len(whole.task.optimizer.variables) == 2 + 2 * 6


def test_early_stopping_restores_an_optimizer_from_before_a_layer_was_set_free():
    task = TwoOptimizers()
    kept = {}

    def keep(loop, logs):
        if loop.progress.epoch == 0:
            kept["optimizer"] = [np.asarray(v.numpy()) for v in loop.task.optimizer.variables]

    stopping = hooks.EarlyStopping("loss", patience=2, min_delta=1e9, restore_best_weights=True)  # the first epoch stays the best
    chosen = [hooks.LambdaHook(on_epoch_end=keep), hooks.LambdaHook(on_epoch_end=toggle), stopping]
    loop = loops.TrainLoop(task, loops.ArrayFeed((X, X[:, :1]), 16), chosen, compile="eager")
    loop.run(epochs=9)
    assert loop.outcome == "stopped" and loop.progress.epoch == 2
    tiny.assert_same_bits(kept["optimizer"], [np.asarray(v.numpy()) for v in task.optimizer.variables])


def test_an_own_step_may_leave_weights_to_another_optimizer_and_set_others_free(capsys):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = keras.layers.Dense(4), keras.layers.Dense(1)
            self.second = keras.optimizers.Adam(0.01)

        def call(self, x):
            return self.b(self.a(x))

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            parts = self.a.trainable_variables, self.b.trainable_variables
            gradients = tape.gradient(loss, parts)
            for optimizer, some, variables in zip((self.optimizer, self.second), gradients, parts, strict=True):
                if variables:
                    optimizer.apply_gradients(zip(some, variables, strict=True))
            return {"loss": loss}

    def trained(free_from):
        keras.utils.set_random_seed(0)
        model = Two()
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model(np.ones([1, 3], "float32"))
        model.a.bias.trainable = free_from == 0

        def free(loop, logs):
            model.a.bias.trainable = True

        x = np.random.default_rng(0).normal(size=[16, 3]).astype("float32")
        hook = [hooks.LambdaHook(on_epoch_end=free)] if free_from else []
        loops.fit(model, x, x[:, :1], batch_size=8, epochs=2, shuffle=False, verbose=0, compile="graph", hooks=hook)
        return model

    for free_from in (0, 1):
        model = trained(free_from)
        assert len(model.optimizer.variables) == 2 + 2 * 2 and model.second.iterations == 4
    assert "while the step was traced" not in capsys.readouterr().out
