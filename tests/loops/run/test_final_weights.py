"""Averaged weights are in the model when a run ends; the next run, a save and a resumed run go on from the trained ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny


def averaging(**settings):
    return tiny.Classifier(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9, **settings))


def compiled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3, "softmax")])
    optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)
    return loops.SupervisedTask(model, loss="sparse_categorical_crossentropy", optimizer=optimizer)


def scaled():
    inner = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
    return tiny.Classifier(keras.optimizers.LossScaleOptimizer(inner))


def loop_of(task, **settings):
    return loops.TrainLoop(task, tiny.feed_of("array", *tiny.data(100)), compile="graph", **settings)


@pytest.mark.parametrize("make", [averaging, compiled, pytest.param(scaled, marks=pytest.mark.matrix)])
def test_two_runs_equal_one(make, tmp_path):
    one = loop_of(make())
    one.run(epochs=3)
    two = loop_of(make(), workdir=tmp_path)
    two.run(epochs=1)
    averaged = two.task.model.get_weights()
    two.save()  # what is saved are the trained weights
    tiny.assert_same_bits(two.task.model.get_weights(), averaged)
    two.run(epochs=3)
    assert two.history.history == one.history.history
    tiny.assert_same_bits(tiny.state(two.task), tiny.state(one.task))
    resumed = loop_of(make(), workdir=tmp_path)
    resumed.run(epochs=4)
    one.run(epochs=4)
    tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(one.task))


def test_a_state_saved_between_two_runs_holds_the_trained_weights(tmp_path):
    loop = loop_of(averaging(), workdir=tmp_path / "run")
    loop.run(steps=5)  # in the middle of an epoch
    loop.save()
    averaged = loop.task.model.get_weights()
    resumed = loop_of(averaging(), workdir=tmp_path / "run")
    resumed.run(steps=5)
    tiny.assert_same_bits(resumed.task.model.get_weights(), averaged)
    resumed.run(epochs=2)
    undisturbed = loop_of(averaging())
    undisturbed.run(epochs=2)
    tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(undisturbed.task))


def test_values_that_the_user_assigns_between_two_runs_win(caplog):
    loop = loop_of(averaging())
    loop.run(epochs=1)
    first, *others = loop.task.model.trainable_variables
    first.assign(tf.ones(first.shape))
    trained = [np.array(change[1]) for change in loop._final._changes]
    loop.run(steps=loop.progress.step)  # nothing to do but to go to the trained weights and back
    assert len(trained) == 1 + len(others)
    assert "Values were assigned between two runs to" in caplog.text
    assert caplog.text.count("training goes on from these") == 1


def test_what_a_finalize_of_your_own_assigns_is_taken_back():
    class Rounded(tiny.Classifier):
        def finalize(self):
            for variable in self.model.trainable_variables:
                variable.assign(tf.round(variable * 10) / 10)

    one, two = loop_of(Rounded()), loop_of(Rounded())
    one.run(epochs=2)
    two.run(epochs=1)
    two.run(epochs=2)
    tiny.assert_same_bits(tiny.state(one.task), tiny.state(two.task))
    weights = one.task.model.get_weights()
    assert all(np.allclose(w * 10, np.round(w * 10), atol=1e-5) for w in weights)


def test_statistics_that_are_averaged_when_a_run_ends_drift_on_in_the_next(two_replicas):
    def loop():
        with two_replicas.scope():
            task = tiny.Classifier(random=True)
        return loops.TrainLoop(task, tiny.feed_of("array", *tiny.data(100)), strategy=two_replicas, compile="graph")

    one, two = loop(), loop()
    one.run(steps=6)
    two.run(steps=3)
    two.run(steps=6)
    tiny.assert_same_bits(tiny.state(one.task), tiny.state(two.task))


@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_swapped_averages_are_evaluated_as_by_fit(swap_on_epoch):
    x, y = tiny.data(100)
    callback = keras.callbacks.SwapEMAWeights
    by_keras = compiled().model
    expected = by_keras.fit(
        x, y, 16, 3, shuffle=False, verbose=0, validation_data=(x, y), validation_batch_size=16, callbacks=[callback(swap_on_epoch)]
    )
    feed = tiny.feed_of("array", x, y)
    loop = loops.TrainLoop(compiled(), feed, [callback(swap_on_epoch)], evaluate={"val": feed}, compile="graph")
    assert loop.run(epochs=3).history == expected.history
    tiny.assert_same_bits(loop.task.model.get_weights(), by_keras.get_weights())


def test_swapping_works_with_an_optimizer_that_only_the_task_has_and_two_runs_equal_one(tmp_path):
    feed = tiny.feed_of("array", *tiny.data(100))

    def loop(**settings):
        watch = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        return loops.TrainLoop(averaging(), feed, watch, evaluate={"val": feed}, compile="graph", **settings)

    one, two = loop(), loop(workdir=tmp_path)
    one.run(epochs=3)
    two.run(epochs=1)
    averages = [v.numpy() for v in two.task.optimizer._model_variables_moving_average]
    tiny.assert_same_bits(two.task.model.get_weights(), averages)  # the end of a run leaves averages in the model
    two.run(epochs=3)
    assert two.history.history == one.history.history
    tiny.assert_same_bits(tiny.state(two.task), tiny.state(one.task))
    resumed = loop(workdir=tmp_path)
    resumed.run(epochs=4)
    one.run(epochs=4)
    tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(one.task))
    assert not hasattr(one.task.model, "optimizer")


def test_stopping_early_leaves_averages_in_the_model_too():
    feed = tiny.feed_of("array", *tiny.data(100))
    watch = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        hooks.LambdaHook(on_epoch_end=lambda loop, logs: loop.stop("enough") if loop.progress.epoch == 1 else None),
    ]
    stopped = loops.TrainLoop(averaging(), feed, watch, compile="graph")
    stopped.run(epochs=5)
    plain = loop_of(averaging())
    plain.run(epochs=2)
    for left, right in zip(stopped.task.model.get_weights(), plain.task.model.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
