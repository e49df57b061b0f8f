"""Keras callbacks passed to `loops.fit` are called as in `model.fit`, call by call, and what they do has the same effect, bit by bit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks as kc
from keras import layers

import loops
from tests.loops import tiny
from tests.loops.hooks.keras_reference import assert_parity
from tests.loops.parity.harness import keras_fit, loops_fit, same_bits, train
from tests.loops.sampling import sample

RNG = np.random.default_rng(10)
X = RNG.normal(size=(70, 4)).astype("float32")  # batches of 32, 32 and 6
Y = X[:, :1] * 2 + RNG.normal(size=(70, 1)).astype("float32")
DATA = {"x": X, "y": Y, "epochs": 4}
VALIDATION = {"validation_data": (X[:40] + 1, Y[:40])}


def regression(optimizer="sgd") -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dropout(0.1), layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


EPOCH_METHODS = ["on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end"]
BATCH_METHODS = ["on_train_batch_begin", "on_train_batch_end", "on_test_batch_begin", "on_test_batch_end"]


def recorder(methods: list[str]) -> kc.Callback:
    """A callback that overrides these methods and keeps in `calls` what they were called with, and the weights it saw."""

    def record(method: str) -> Callable:
        def seen(self, number, logs):
            self.calls.append((method, number, logs, [w.numpy() for w in self.model.trainable_variables]))

        if method.startswith(("on_train_batch", "on_test_batch", "on_epoch")):
            return lambda self, number, logs=None: seen(self, number, logs)
        return lambda self, logs=None: seen(self, None, logs)

    made = type("Recorder", (kc.Callback,), {method: record(method) for method in methods})()
    made.calls = []
    return made


def assert_same_calls(expected: kc.Callback, found: kc.Callback) -> None:
    assert expected.calls
    assert [call[:2] for call in found.calls] == [call[:2] for call in expected.calls]
    for (method, number, logs, weights), (_, _, logs_found, weights_found) in zip(expected.calls, found.calls, strict=True):
        assert list(logs_found) == list(logs), (method, number)
        assert [type(v) for v in logs_found.values()] == [type(v) for v in logs.values()], (method, number)
        assert all(same_bits(logs[key], logs_found[key]) for key in logs), (method, number, logs, logs_found)
        assert all(same_bits(*pair) for pair in zip(weights, weights_found, strict=True)), (method, number)
    assert found.params == expected.params


METHODS = {"epochs": EPOCH_METHODS, "batches": BATCH_METHODS, "both": EPOCH_METHODS + BATCH_METHODS}
ARGUMENTS = {
    "plain": {},
    "validation": {**VALIDATION, "validation_freq": 2},
    "steps per epoch": {"steps_per_epoch": 2, "epochs": 5},
    "initial epoch": {"initial_epoch": 2, "validation_split": 0.3},
}
# `test_one_callback_needs_no_list` has epoch methods alone.
CALLS = [("both", arguments) for arguments in ARGUMENTS] + [("batches", "initial epoch")]


@pytest.mark.parametrize(
    ("methods", "arguments"),
    [pytest.param(*c, marks=[] if c in CALLS else pytest.mark.matrix) for c in itertools.product(METHODS, ARGUMENTS)],
)
def test_every_call_is_the_same(methods, arguments):
    expected, found = assert_parity(regression, DATA, callbacks=lambda: [recorder(METHODS[methods])], **ARGUMENTS[arguments])
    assert_same_calls(expected.callbacks[0], found.callbacks[0])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_every_call_is_the_same_with_data_of_unknown_length():
    def data():
        rows = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: y[0] > 0)
        return {"x": rows.batch(16), "validation_data": rows.batch(8), "epochs": 3}

    def make():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    expected, found = (
        train(fit, make, data, callbacks=lambda: [recorder(EPOCH_METHODS + BATCH_METHODS)]) for fit in (keras_fit, loops_fit)
    )
    assert ("on_train_batch_begin", 2) in [call[:2] for call in expected.callbacks[0].calls], "begun, to find out that there is none"
    assert_same_calls(expected.callbacks[0], found.callbacks[0])


def test_several_callbacks_are_called_in_list_order_and_batch_methods_get_logs_by_keyword():
    class Keyword(kc.Callback):
        def on_train_batch_end(self, batch, **keywords):
            self.seen = list(keywords)

        def on_test_batch_begin(self, batch, *, logs):
            self.seen_in_test = logs

    def make():
        log = []
        named = [
            kc.LambdaCallback(**{m: lambda *a, n=n, m=m: log.append((n, m)) for m in ("on_epoch_begin", "on_epoch_end")}) for n in "ab"
        ]
        named[0].log = log
        return [*named, Keyword()]

    expected, found = assert_parity(regression, DATA, callbacks=make, **VALIDATION)
    assert found.callbacks[0].log == expected.callbacks[0].log != []
    assert found.callbacks[2].seen == ["logs"]
    assert found.callbacks[2].seen_in_test == {}


def test_one_callback_needs_no_list():
    def alone(model, *, callbacks, **arguments):
        return loops_fit(model, callbacks=callbacks[0], **arguments)

    arguments = ARGUMENTS["validation"]
    expected, found = assert_parity(regression, DATA, candidate=alone, callbacks=lambda: [recorder(EPOCH_METHODS)], **arguments)
    assert_same_calls(expected.callbacks[0], found.callbacks[0])


class Acts(kc.Callback):
    """Calls a function of (callback, number) in one method."""

    def __init__(self, method: str, act: Callable):
        super().__init__()
        if "epoch" in method or "batch" in method:
            setattr(self, method, lambda number, logs=None: act(self, number, logs))
        else:
            setattr(self, method, lambda logs=None: act(self, None, logs))


def acting(*actions: tuple[str, Callable]) -> Callable[[], list[kc.Callback]]:
    return lambda: [recorder(["on_epoch_end", "on_train_end"]), *(Acts(*action) for action in actions)]


def stop_at(when: int | None) -> Callable:
    def act(callback, number, logs):
        if number == when:
            callback.model.stop_training = True

    return act


def halve_the_learning_rate(callback, number, logs):
    callback.model.optimizer.learning_rate = callback.model.optimizer.learning_rate * 0.5


def shrink_the_weights(callback, number, logs):
    for weight in callback.model.trainable_variables:
        weight.assign(weight * 0.9)


def add_to_the_logs(callback, number, logs):
    logs["twice"] = 2 * logs["loss"]
    logs["loss"] = 0.0


def evaluate_and_predict(callback, number, logs):
    callback.model.evaluate(X[:16], Y[:16], verbose=0)
    callback.model.predict(X[:16], verbose=0)


ACTIONS = {
    "stops at the end of an epoch": [("on_epoch_end", stop_at(1))],
    "stops at the beginning of an epoch": [("on_epoch_begin", stop_at(2))],
    "stops in mid-epoch": [("on_train_batch_end", stop_at(1))],
    "stops before a batch": [("on_train_batch_begin", stop_at(1))],
    "stops in a validation": [("on_test_end", stop_at(None))],
    "stops before it began": [("on_train_begin", stop_at(None))],
    "changes learning rate and weights in each epoch, and the logs": [
        ("on_epoch_begin", halve_the_learning_rate),
        ("on_epoch_end", shrink_the_weights),
        ("on_epoch_end", add_to_the_logs),
    ],
    "changes learning rate and weights in each step": [
        ("on_train_batch_begin", halve_the_learning_rate),
        ("on_train_batch_end", shrink_the_weights),
    ],
    "evaluates and predicts": [("on_epoch_end", evaluate_and_predict)],
}
VALIDATED = ("stops in a validation", "changes learning rate and weights in each epoch, and the logs", "stops in mid-epoch")


SOMETIMES = ("stops at the beginning of an epoch", "stops before a batch")  # each has a twin at the end of the same


@pytest.mark.parametrize("name", sample(ACTIONS, *(set(ACTIONS) - set(SOMETIMES))))
def test_what_a_callback_does_has_the_same_effect(name):
    arguments = VALIDATION if name in VALIDATED else {}
    expected, found = assert_parity(regression, DATA, callbacks=acting(*ACTIONS[name]), **arguments)
    assert_same_calls(expected.callbacks[0], found.callbacks[0])


def test_an_optimizer_is_still_found_by_name_in_a_callback():
    def rate(callback, number, logs):
        logs["rate"] = float(callback.model.optimizer.learning_rate)
        logs["count"] = int(callback.model.optimizer.iterations)

    expected, _ = assert_parity(regression, DATA, callbacks=acting(("on_epoch_end", rate)))
    assert expected.history["count"] == [3.0, 6.0, 9.0, 12.0]


def test_a_file_in_writing_does_not_see_the_optimizer_that_callbacks_find_at_the_model(tmp_path):
    optimizer = keras.optimizers.SGD(0.1)
    task = tiny.Classifier(optimizer)
    slow = kc.LambdaCallback(on_epoch_begin=lambda epoch, logs: time.sleep(0.05 if task.model.optimizer is optimizer else 0.0))
    keep = loops.hooks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    feed = tiny.feed_of("array", *tiny.data(64))
    loops.TrainLoop(task, feed, [slow, keep], compile="graph").run(epochs=6)  # a writer that does not wait: SaveError
    assert len(list(tmp_path.iterdir())) == 6
    assert not hasattr(task.model, "optimizer")


def test_a_callback_may_train_another_model_and_save_it(tmp_path):
    def probe(epoch, logs):
        keep = loops.hooks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
        loops.TrainLoop(tiny.Classifier(), feed, [keep, kc.LambdaCallback()], compile="graph").run(epochs=2)
        probed.append(epoch)

    probed, feed = [], tiny.feed_of("array", *tiny.data(64))
    task = tiny.Classifier(keras.optimizers.SGD(0.1))
    loops.TrainLoop(task, feed, [kc.LambdaCallback(on_epoch_begin=probe)], compile="graph").run(epochs=1)
    assert probed == [0] and len(list(tmp_path.iterdir())) == 2
