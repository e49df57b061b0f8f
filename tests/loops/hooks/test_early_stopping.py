"""EarlyStopping stops and restores where Keras's callback does, except for its faults."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.hooks import EarlyStopping, Evaluate
from tests.loops.hooks.fake_loop import FakeLoop, FakeTask, tiny_model

# TensorFlow compares numbers below 1e-38 as if they were 0.
VALUES = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.5, 0.5000001, 1.0, 2.0, math.inf, -math.inf, math.nan]),
    st.floats(-2, 2, width=32, allow_subnormal=False),
)
OPTIONS = st.fixed_dictionaries(
    {
        "min_delta": st.sampled_from([0, 0.1, -0.1, 1e-7]),
        "patience": st.integers(0, 4),
        "mode": st.sampled_from(["min", "max", "auto"]),
        "baseline": st.sampled_from([None, 0.4, 1.0]),
        "restore_best_weights": st.booleans(),
        "start_from_epoch": st.integers(0, 3),
    }
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def weights_of_epoch(model):
    """Stands for training: every weight is the number of the epoch."""
    return lambda epoch: model.set_weights([np.full(w.shape, epoch, "float32") for w in model.weights])


def logs_of(values):
    return [{"loss": 1.0} if v is None else {"loss": 1.0, "val_loss": v} for v in values]


def run_keras(callback, model, values):
    callback.set_model(model)
    model.stop_training = False
    callback.on_train_begin()
    for epoch, logs in enumerate(logs_of(values)):
        weights_of_epoch(model)(epoch)
        callback.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    callback.on_train_end()
    return epoch, callback.best, callback.best_epoch, callback.wait, callback.stopped_epoch, float(model.weights[0].numpy()[0, 0])


def run_ours(hook, model, values):
    loop = FakeLoop([hook], model)
    loop.run(logs_of(values), weights_of_epoch(model))
    return loop.progress.epoch, hook.best, hook.best_epoch, hook.wait, hook.stopped_epoch, float(model.weights[0].numpy()[0, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=60)
@given(values=st.lists(VALUES, min_size=1, max_size=12), options=OPTIONS)
def test_stops_and_restores_where_keras_does(model, values, options):
    looked_at = [v for v in values[options["start_from_epoch"] :] if v is not None]
    if looked_at and math.isnan(looked_at[0]):
        looked_at[0] = 1.0
        values = [1.0 if v is not None and math.isnan(v) else v for v in values]
    expected = run_keras(keras.callbacks.EarlyStopping(**options), model, values)
    assert run_ours(EarlyStopping(**options), model, values) == expected


def test_nan_as_first_value_does_not_poison_the_best_value(model):
    hook = EarlyStopping(patience=2, restore_best_weights=True)
    assert run_ours(hook, model, [math.nan, 3.0, 2.0, 4.0, 4.0, 4.0]) == (4, 2.0, 2, 2, 4, 2.0)


def test_only_nan_stops_after_patience_and_restores_nothing(model):
    hook = EarlyStopping(patience=2, restore_best_weights=True)
    assert run_ours(hook, model, [math.nan] * 5) == (1, None, 0, 2, 1, 1.0)
    assert hook.best_weights is None


def test_a_restarted_run_goes_on_with_counters_and_best_weights(model):
    values = [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    undisturbed = run_ours(EarlyStopping(patience=3, restore_best_weights=True), model, values)

    first = EarlyStopping(patience=3, restore_best_weights=True)
    before = FakeLoop([first], model)
    before.begin()
    for logs in logs_of(values[:3]):
        before.epoch(logs, weights_of_epoch(model))

    second = EarlyStopping(patience=3, restore_best_weights=True)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.load_state_arrays(first.state_arrays())
    after = FakeLoop([second], model)
    after.progress.load_state_dict(before.progress.state_dict())
    after.run(logs_of(values[3:]), weights_of_epoch(model))
    resumed = (
        after.progress.epoch,
        second.best,
        second.best_epoch,
        second.wait,
        second.stopped_epoch,
        float(model.weights[0].numpy()[0, 0]),
    )
    assert resumed == undisturbed == (4, 1.0, 1, 3, 4, 1.0)


@pytest.mark.parametrize("restore_optimizer", [True, False])
def test_the_optimizer_goes_back_with_the_weights(restore_optimizer):
    schedule = keras.optimizers.schedules.InverseTimeDecay(1.0, 1, 1.0)
    model = tiny_model(keras.optimizers.Adam(schedule))
    loop = FakeLoop([hook := EarlyStopping(patience=2, restore_best_weights=True, restore_optimizer=restore_optimizer)], model)
    loop.learning_rate.make_scalable()

    def train(epoch):
        weights_of_epoch(model)(epoch)
        for variable in model.optimizer.variables[2:]:
            variable.assign(np.full(variable.shape, 10.0 + epoch))
        loop.learning_rate.scale(0.5)

    loop.run(logs_of([2.0, 1.0, 1.5, 1.5]), train)
    assert hook.stopped_epoch == 3
    epoch = 1 if restore_optimizer else 3
    assert int(model.optimizer.iterations.numpy()) == epoch + 1
    assert all((v.numpy() == 10.0 + epoch).all() for v in model.optimizer.variables[2:])
    assert loop.learning_rate.state_dict()["multipliers"] == {"model.optimizer": 0.5 ** (epoch + 1)}
    assert all((w == 1.0).all() for w in model.get_weights())


def test_an_interrupted_run_keeps_its_last_weights(model):
    loop = FakeLoop([EarlyStopping(restore_best_weights=True, patience=5)], model)
    loop.begin()
    for logs in logs_of([1.0, 2.0]):
        loop.epoch(logs, weights_of_epoch(model))
    loop.end("interrupted")
    assert all((w == 1.0).all() for w in model.get_weights())


def test_a_hook_used_again_starts_anew_and_a_run_carried_on_does_not(model):
    hook = EarlyStopping(patience=2)
    loop = FakeLoop([hook], model)
    loop.run(logs_of([1.0, 2.0]))
    loop.run(logs_of([2.0, 2.0]))
    assert (loop.progress.epoch, hook.stopped_epoch, loop.outcome) == (2, 2, "stopped")
    assert "val_loss = 2 after 2 epochs without improvement on 1" in loop.stop_reason
    again = FakeLoop([hook], model)
    again.run(logs_of([5.0]))
    assert (hook.best, hook.wait, hook.stopped_epoch) == (5.0, 0, 0)


def test_a_task_without_model_gets_its_variables_back():
    from tests.loops.hooks.fake_loop import FakeTask

    variable = keras.Variable(0.0)
    loop = FakeLoop([EarlyStopping(patience=1, restore_best_weights=True)], task=FakeTask(None, variable=variable))
    loop.run(logs_of([2.0, 1.0, 3.0]), lambda epoch: variable.assign(float(epoch)))
    assert float(variable.numpy()) == 1.0


def test_evaluations_within_an_epoch_can_stop_it(model):
    class Rising:
        value = 0.0

        def __float__(self):
            self.value += 1.0
            return self.value

    loop = FakeLoop([Evaluate(Rising(), "val", every="2 steps"), EarlyStopping(patience=2, at="evaluation")], model, steps=100)
    loop.run([{"loss": 1.0}])
    assert loop.progress.step == 6 and loop.outcome == "stopped"


def test_verbose_says_what_happened(model, capsys):
    run_ours(EarlyStopping(patience=1, verbose=1, restore_best_weights=True), model, [1.0, 2.0])
    assert capsys.readouterr().out == "Epoch 2: early stopping\nRestoring the weights of the best epoch: 1.\n"


@pytest.mark.parametrize("resumed", [False, True])
def test_layers_that_were_frozen_or_freed_meanwhile_get_their_own_best_weights_back(resumed):
    def begin():
        layers = [keras.layers.Dense(1) for _ in range(3)]
        for layer in layers:
            layer.build([None, 1])
        layers[0].trainable = False
        hook = EarlyStopping(patience=2, restore_best_weights=True)
        return layers, hook, FakeLoop([hook], task=FakeTask(None, network=layers))

    layers, hook, loop = begin()
    for i, layer in enumerate(layers):
        layer.set_weights([np.full([1, 1], i, "float32"), np.full([1], i, "float32")])
    loop.run([{"val_loss": 0.5}])
    if resumed:
        saved = loop.saved()
        layers, hook, loop = begin()
        loop.resume(saved)
    layers[0].trainable, layers[1].trainable = True, False
    loop.run([{"val_loss": 1.0}] * 2)
    assert hook.stopped_epoch == 2
    for i, layer in enumerate(layers):
        assert [w.item() for w in layer.get_weights()] == [i, i]
