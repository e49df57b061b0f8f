"""Unfreeze sets layers free at its step: before, their weights keep every bit; after, training is that of a model that was free."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest

import loops
from loops import hooks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)).astype("float32")
Y = (X[:, :1] - X[:, 1:2] ** 2).astype("float32")
FIT = {"batch_size": 10, "shuffle": False, "verbose": 0}
# In this mode a loss that falls never improves: the condition is met at the end of epoch `patience + 1`.
STAGNATES = {"monitor": "loss", "mode": "max"}


def make(optimizer=None, frozen=("low", "middle")):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(8, "tanh", name="low"), keras.layers.Dense(8, "tanh", name="middle"), keras.layers.Dense(1, name="top")]
    model = keras.Sequential([keras.Input([6]), *layers])
    for name in frozen:
        model.get_layer(name).trainable = False
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    return model


def bits(model):
    return [w.numpy().tobytes() for w in model.weights]


def test_it_trains_as_keras_does_when_the_layer_is_freed_by_hand_between_two_fits(capsys):
    ours, theirs = make(), make()
    hook = hooks.Unfreeze("middle", **STAGNATES, patience=2, learning_rate_factor=0.25)
    history = loops.fit(ours, X, Y, epochs=5, hooks=[hook], compile="graph", **FIT)

    first = theirs.fit(X, Y, epochs=3, **FIT)
    theirs.get_layer("middle").trainable = True
    theirs.compile(keras.optimizers.SGD(0.025), "mse", jit_compile=False)
    second = theirs.fit(X, Y, epochs=2, **FIT)

    assert bits(ours) == bits(theirs)
    assert history.history["loss"] == first.history["loss"] + second.history["loss"]
    assert history.history["unfrozen_layers"] == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(history.history["learning_rate"], [0.1] * 3 + [0.025] * 2, rtol=1e-6)
    said = capsys.readouterr().out
    assert "Step 15, epoch 3: Unfreeze sets middle free (loss = " in said and "learning rate 0.025" in said
    assert said.count("Retracing the training step: `trainable` changed for") == 1


@pytest.mark.parametrize("compile", [pytest.param("graph", marks=pytest.mark.matrix), "xla"])
def test_stages_are_set_free_one_after_the_other_and_frozen_weights_keep_every_bit(compile):
    model, seen = make(keras.optimizers.Adam(0.01)), []
    begin = {layer.name: bits(layer) for layer in model.layers}

    def look(loop, logs):
        seen.append([name for name in begin if bits(model.get_layer(name)) != begin[name]])

    listed = [hooks.Unfreeze("middle", ["low"], **STAGNATES, patience=1), hooks.LambdaHook(on_epoch_end=look)]
    loops.fit(model, X, Y, epochs=5, hooks=listed, compile=compile, **FIT)
    assert seen == [["top"]] * 2 + [["middle", "top"]] + [["low", "middle", "top"]] * 2


def test_a_metric_of_an_evaluation_sets_free_within_an_epoch():
    model = make()
    evaluate = hooks.Evaluate(loops.ArrayFeed((X, Y), 10), "test", every=loops.triggers.At(7))
    flags = []
    loop = loops.TrainLoop(
        loops.KerasTask(model),
        loops.ArrayFeed((X, Y), 10),
        hooks=[
            evaluate,
            hooks.Unfreeze(["low", "middle"], monitor="test_loss", threshold=1e9, at="evaluation"),
            hooks.LambdaHook(every="1 steps", on_window_end=lambda loop, window: flags.append(model.get_layer("low").trainable)),
        ],
    )
    history = loop.run(epochs=2)
    assert flags == [False] * 6 + [True] * 4
    assert history.history["unfrozen_layers"] == [0, 0]  # what epochs began with


def test_a_schedule_is_scaled_too():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    hook = hooks.Unfreeze("low", **STAGNATES, patience=1, learning_rate_factor=0.1)
    history = loops.fit(make(keras.optimizers.SGD(schedule)), X, Y, epochs=3, hooks=[hook], compile="graph", **FIT)
    np.testing.assert_allclose(history.history["learning_rate"], [0.05, 0.025, 0.00125], rtol=1e-6)


def refused(model, *stages, **options):
    with pytest.raises(ValueError) as caught:
        loops.fit(model, X, Y, epochs=4, hooks=[hooks.Unfreeze(*stages, **STAGNATES, patience=1, **options)], compile="graph", **FIT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_layer_that_is_not_there_is_named_with_its_neighbours():
    assert "no layer 'midle' in the task's models; did you mean 'middle'?" in refused(make(), "midle")
    other = keras.layers.Dense(3, name="quite_another")
    assert re.search(r"there are \S+, \S+, low, middle, top\.$", refused(make(), other))


def test_a_layer_inside_a_frozen_one_is_refused():
    model = make(frozen=())
    model.trainable = False
    model.compile("sgd", "mse")
    assert f"cannot set 'low' free while '{model.name}', which it is inside of, is frozen as a whole" in refused(model, "low")


def test_a_learning_rate_that_cannot_be_scaled_is_refused_before_the_first_step():
    model = make(keras.optimizers.SGD(lambda: 0.1))
    assert (
        "'model.optimizer' follows the function " in (said := refused(model, "low", learning_rate_factor=0.5))
        and "which cannot be scaled" in said
    )
    assert int(model.optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_a_file_of_weights_that_is_being_written_is_waited_for(compile, tmp_path):
    model = make(keras.optimizers.SGD(0.1, momentum=0.9))
    # Files wait for half a second, in which the layer is set free and the optimizer gets slots for it.
    last = hooks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    loops.fit(model, X, Y, epochs=5, hooks=[last, hooks.Unfreeze("middle", **STAGNATES, patience=2)], compile=compile, **FIT)
    back = make(keras.optimizers.SGD(0.1, momentum=0.9), frozen=("low",))
    back.optimizer.build(back.trainable_variables)
    back.load_weights(tmp_path / "last.weights.h5")
    assert bits(back) == bits(model)
    assert [v.numpy().tobytes() for v in back.optimizer.variables] == [v.numpy().tobytes() for v in model.optimizer.variables]
