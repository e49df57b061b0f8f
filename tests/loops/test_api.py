"""`loops.fit`, `evaluate`, `predict` in the place of Keras's methods: the same objects, callback calls and logs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks, testing

X = np.random.default_rng(0).normal(size=[20, 3]).astype("float32")
Y = X.sum(1, keepdims=True)


def model(kind=keras.Sequential, **compiled):
    keras.utils.set_random_seed(0)
    net = kind([keras.Input([3]), keras.layers.Dense(1)])
    net.compile(**{"optimizer": "sgd", "loss": "mse", "jit_compile": False, **compiled})
    return net


def by_keras(net, *args, **arguments):
    return net.fit(*args, **{"verbose": 0, "shuffle": False, "batch_size": 4, **arguments})


def by_loops(net, *args, **arguments):
    return loops.fit(net, *args, **{"verbose": 0, "shuffle": False, "batch_size": 4, "compile": "graph", **arguments})


class Calls(keras.callbacks.Callback):
    """Writes down how it is called; at batch `stop` it ends an evaluation or prediction."""

    def __init__(self, stop=None):
        super().__init__()
        self.calls, self.stop = [], stop

    def _note(self, name, *args):
        shown = [
            {k: np.shape(v) if k == "outputs" else round(float(v), 4) for k, v in a.items()} if isinstance(a, dict) else a for a in args
        ]
        self.calls.append((name, *shown))

    def on_test_begin(self, logs=None):
        self._note("test begin", logs)

    def on_test_batch_begin(self, batch, logs=None):
        self._note("test batch begin", batch)

    def on_test_batch_end(self, batch, logs=None):
        self._note("test batch end", batch, logs)
        self.model.stop_evaluating = batch == self.stop

    def on_test_end(self, logs=None):
        self._note("test end", logs)

    def on_predict_begin(self, logs=None):
        self._note("predict begin", logs)

    def on_predict_batch_begin(self, batch, logs=None):
        self._note("predict batch begin", batch)

    def on_predict_batch_end(self, batch, logs=None):
        self._note("predict batch end", batch, logs)
        self.model.stop_predicting = batch == self.stop

    def on_predict_end(self, logs=None):
        self._note("predict end", logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._note("batch begin", batch)

    def on_train_batch_end(self, batch, logs=None):
        self._note("batch end", batch, logs)


# History.


def test_fit_returns_a_keras_history_that_callbacks_find_on_the_model():
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model.history, len(self.model.history.history.get("loss", []))))

    net = model()
    first = by_loops(net, X, Y, epochs=2, callbacks=[Look()])
    second = by_loops(net, X, Y, epochs=2, callbacks=[Look()])
    assert isinstance(first, keras.callbacks.History) and net.history is second is not first
    assert [count for _, count in seen] == [0, 1, 0, 1]
    assert all(history is first for history, _ in seen[:2]) and all(history is second for history, _ in seen[2:])
    own = keras.callbacks.History()
    assert by_loops(net, X, Y, callbacks=[own]) is own is net.history and own.history["loss"]


def test_a_run_that_stops_in_its_first_epoch_names_its_logs():
    x = X.copy()
    x[9] = np.nan
    history = by_loops(model(metrics=["mae"]), x, Y, on_nonfinite="stop")
    assert history.history == {"loss": [], "mae": []} and history.epoch == []
    with pytest.raises(RuntimeError) as error:
        by_loops(model(), x, Y, on_nonfinite="raise")
    assert isinstance(error.value, loops.NonFiniteError)


# Arguments.


def test_the_arguments_come_in_kerass_order():
    assert loops.fit(model(), X, Y, 4, 2, 0).epoch == [0, 1]
    assert loops.evaluate(model(), X, Y, 4, 0, None, 2).keys() == {"loss"}
    assert loops.predict(model(), X, 4, 0, 2).shape == (8, 1)


def test_evaluate_returns_what_keras_returns():
    net = model(metrics=["mae", "mape"])
    assert loops.evaluate(net, X, Y, return_dict=False) == pytest.approx(net.evaluate(X, Y, verbose=0), rel=1e-6)
    assert loops.evaluate(model(), X, Y, return_dict=False) == pytest.approx(model().evaluate(X, Y, verbose=0))


def test_a_progress_bar_is_shown_if_asked_for(capsys):
    loops.evaluate(model(), X, Y, verbose=0)
    loops.predict(model(), X)
    assert capsys.readouterr().out == ""
    loops.evaluate(model(), X, Y, batch_size=4, verbose=2)
    loops.predict(model(), X, batch_size=4, verbose=2)
    assert capsys.readouterr().out.count("5/5") == 2


def test_the_limits_of_keras_config_are_obeyed_and_said(capsys):
    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(3)
    try:
        ours, theirs = Calls(), Calls()
        got, expected = by_loops(model(), X, Y, epochs=4, callbacks=[ours]), by_keras(model(), X, Y, epochs=4, callbacks=[theirs])
        assert (got.history, got.epoch, ours.calls) == (expected.history, expected.epoch, theirs.calls)
        assert loops.predict(model(), X, batch_size=4).shape == (12, 1)
        assert loops.evaluate(model(), X, Y, batch_size=4)["loss"] == pytest.approx(
            loops.evaluate(model(), X[:12], Y[:12])["loss"], rel=1e-5
        )
    finally:
        keras.config.set_max_epochs(None)
        keras.config.set_max_steps_per_epoch(None)
    assert "keras.config limits epochs to 2" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["train", "test", "predict"])
def test_a_function_of_the_models_own_is_refused_by_name(kind):
    name = f"make_{kind}_function"
    own = type("Own", (keras.Sequential,), {name: lambda self, force=False: None})
    calls = {
        "train": lambda net: by_loops(net, X, Y),
        "test": lambda net: (by_loops(net, X, Y), loops.evaluate(net, X, Y)),
        "predict": lambda net: (by_loops(net, X, Y, validation_data=(X, Y)), loops.predict(net, X)),
    }
    with pytest.raises(ValueError, match=f"Own overrides {name}.*override {kind}_step"):
        calls[kind](model(own))
    if kind == "train":
        with pytest.raises(ValueError, match=name):
            loops.TrainLoop(loops.KerasTask(model(own)), loops.ArrayFeed((X, Y), 4)).run(epochs=1)
    if kind == "test":
        with pytest.raises(ValueError, match=name):
            by_loops(model(own), X, Y, validation_split=0.5)


# Callbacks.


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stop", [None, 1])
def test_callbacks_of_evaluations_and_predictions_are_called_as_keras_calls_them(stop, size):
    ours, theirs, net = Calls(stop), Calls(stop), model(steps_per_execution=size)
    expected = net.evaluate(X, Y, batch_size=4, callbacks=[theirs], verbose=0), net.predict(X, batch_size=4, callbacks=[theirs], verbose=0)
    got = (
        loops.evaluate(net, X, Y, batch_size=4, callbacks=[ours], return_dict=False),
        loops.predict(net, X, batch_size=4, callbacks=[ours]),
    )
    assert ours.calls == theirs.calls
    assert got[0] == pytest.approx(expected[0], rel=1e-6) and got[1].shape == expected[1].shape
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5)
    ours, theirs = Calls(stop), Calls(stop)
    got = by_loops(model(steps_per_execution=size), X, Y, callbacks=[ours], validation_data=(X, Y), epochs=2)
    assert got.history == by_keras(model(steps_per_execution=size), X, Y, callbacks=[theirs], validation_data=(X, Y), epochs=2).history
    assert ours.calls == theirs.calls


def test_callbacks_that_look_at_no_batch_leave_the_batches_in_one_call(monkeypatch):
    calls = []
    original = loops.engine.program.Program.__call__
    monkeypatch.setattr(loops.engine.program.Program, "__call__", lambda self, *a, **k: calls.append(k["n"]) or original(self, *a, **k))
    loops.evaluate(model(), X, Y, batch_size=4, callbacks=[keras.callbacks.LambdaCallback(on_test_end=lambda logs: None)], verbose=2)
    assert calls == [5]


def test_hooks_act_in_evaluations_and_predictions_too():
    class Watch(hooks.Hook):
        watches_evaluation = True

        def on_evaluate_batch(self, batch, logs, last):
            self.batches = batch

        def on_evaluate_end(self, loop, name, logs):
            loop.log("twice", 2 * logs["test_loss"])

        def on_predict_begin(self, loop):
            loop.stop("one batch is enough")

        def on_predict_end(self, loop, outputs):
            self.outputs = outputs

    watch = Watch()
    logs = loops.evaluate(model(), X, Y, batch_size=4, hooks=[watch])
    assert logs["twice"] == 2 * logs["loss"] and watch.batches == 5
    assert loops.predict(model(), X, batch_size=4, hooks=[watch]) is watch.outputs and watch.outputs.shape == (4, 1)
    for other in (hooks.TensorBoard("logs"), hooks.EarlyStopping()):
        with pytest.raises(ValueError, match="acts within a training run"):
            loops.evaluate(model(), X, Y, hooks=[other])
    with pytest.raises(TypeError, match="got 3"):
        loops.predict(model(), X, callbacks=[3])


def test_what_a_callback_assigns_during_an_evaluation_stays():
    class Count(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            self.model.counter.assign_add(1.0)

    class Counted(keras.Sequential):
        def test_step(self, batch):
            self.counter.assign_add(100.0)  # of the evaluation, which leaves no trace
            return super().test_step(batch)

    for compile in ("graph", "eager"):
        net = model(Counted)
        net.counter = net.add_weight(shape=(), initializer="zeros", trainable=False, name="counter")
        loops.evaluate(net, X, Y, batch_size=4, callbacks=[Count()], compile=compile)
        assert float(net.counter.numpy()) % 100 == 5.0


# Callbacks and hooks side by side.


class Logs(keras.callbacks.Callback):
    def __init__(self, name="f1", remove=None):
        super().__init__()
        self.name, self.remove = name, remove

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1][epoch]
        if self.remove:
            del logs[self.remove]


class Sees(hooks.Hook):
    phase, every = hooks.Phase.DECIDE, None

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, loop, logs):
        self.seen.append(sorted(logs))


def test_a_hook_that_decides_sees_what_the_callbacks_before_it_logged():
    first, last = Sees(), Sees()
    stopper = hooks.EarlyStopping("f1", patience=2, mode="max")
    history = by_loops(model(), X, Y, epochs=6, callbacks=[first, Logs("f1"), stopper, Logs("other"), last])
    assert history.epoch == [0, 1, 2, 3] and list(history.history) == ["loss", "f1", "other"]
    assert first.seen[0] == ["loss"] and last.seen[0] == ["f1", "loss", "other"]


def test_stop_training_is_obeyed_from_either_side_of_a_hook():
    class Stops(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.stop_training = True

    assert by_loops(model(), X, Y, epochs=3, callbacks=[Stops(), Sees(), keras.callbacks.Callback()]).epoch == [0]
    stops = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(stops.model, "stop_training", epoch == 1))
    assert by_loops(model(), X, Y, epochs=4, callbacks=[keras.callbacks.Callback(), Sees(), stops]).epoch == [0, 1]


def test_a_log_that_a_callback_removes_is_gone(tmp_path):
    last = Sees()
    arguments = {"epochs": 2, "metrics": ["mae"]}
    history = by_loops(
        model(metrics=["mae"]), X, Y, epochs=2, callbacks=[Logs(remove="mae"), last], hooks=[hooks.CSVLogger(tmp_path / "a.csv")]
    )
    expected = by_keras(model(metrics=arguments["metrics"]), X, Y, epochs=2, callbacks=[Logs(remove="mae")])
    assert history.history == expected.history and last.seen == [["f1", "loss"]] * 2
    assert "mae" not in (tmp_path / "a.csv").read_text()


# Logs of a model's own steps.

VALUES = {
    "vector": lambda loss: tf.stack([loss, 2 * loss]),
    "matrix": lambda loss: tf.ones([2, 2], tf.int32),
    "shape [1]": lambda loss: tf.reshape(loss, [1]),
    "number": lambda loss: 3,
    "array": lambda loss: np.ones(2),
    "nested": lambda loss: {"a": tf.ones([2]), "b": 1.0},
}


@pytest.mark.parametrize("kind", VALUES)
def test_logs_of_an_own_step_are_reported_as_keras_reports_them(kind):
    class Own(keras.Sequential):
        def train_step(self, batch):
            logs = super().train_step(batch)
            return {**logs, "more": VALUES[kind](logs["loss"])}

        def test_step(self, batch):
            logs = super().test_step(batch)
            return {**logs, "more": VALUES[kind](logs["loss"])}

    got = by_loops(model(Own), X, Y, epochs=2, validation_data=(X, Y)).history
    expected = by_keras(model(Own), X, Y, epochs=2, validation_data=(X, Y)).history
    assert list(got) == list(expected)
    for name, values in expected.items():
        for value, other in zip(values, got[name], strict=True):
            assert np.shape(value) == np.shape(other) and np.asarray(value).dtype == np.asarray(other).dtype
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda x: tf.constant("text"), "of type string"),
        (lambda x: x[:, 0], "depends on the batch"),
        (lambda x: tf.zeros([2000]), "at most 1024"),
    ],
)
def test_a_log_that_cannot_be_reported_is_refused(value, sentence):
    class Own(keras.Sequential):
        def train_step(self, batch):
            return {**super().train_step(batch), "more": value(batch[0])}

    with pytest.raises(ValueError, match=sentence):
        by_loops(model(Own), X, Y, batch_size=6)


# Outputs of predictions.


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_ragged_and_sparse_outputs_stay_so(compile):
    class Twice(keras.Model):
        def call(self, x):
            return x * 2.0

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [], [4.0, 5.0, 6.0], [7.0]])
    got = loops.predict(Twice(), ragged, batch_size=2, compile=compile)
    assert isinstance(got, tf.RaggedTensor) and got.to_list() == Twice().predict(ragged, batch_size=2, verbose=0).to_list()
    sparse = tf.sparse.from_dense(np.eye(5, 4, dtype="float32"))
    got = loops.predict(Twice(), sparse, batch_size=2, compile=compile)
    np.testing.assert_array_equal(tf.sparse.to_dense(got), 2 * np.eye(5, 4))


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_outputs_of_other_length_in_each_batch_are_a_ragged_tensor_as_in_keras(compile):
    data = [np.ones([2, 3, 1], "float32"), np.ones([2, 5, 1], "float32"), np.ones([1, 2, 1], "float32")]
    net = keras.Sequential([keras.Input([None, 1]), keras.layers.Dense(2, kernel_initializer="ones")])
    got = loops.predict(net, ((x,) for x in data), compile=compile)
    expected = net.predict(((x,) for x in data), verbose=0)
    assert isinstance(got, tf.RaggedTensor) and got.to_list() == expected.to_list()


# tf.summary.


class Speaking(keras.layers.Layer):
    def call(self, x, training=False):
        tf.summary.scalar("mean", tf.reduce_mean(x))
        return x


@pytest.mark.parametrize("compile", ["graph", "eager", "auto"])
def test_summaries_of_layers_reach_tensorboard_at_their_step(compile, tmp_path):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input([3]), Speaking(), keras.layers.Dense(1)])
    net.compile("sgd", "mse", jit_compile=False)
    loop = loops.TrainLoop(
        loops.KerasTask(net),
        loops.ArrayFeed((X, Y), 4),
        [hooks.TensorBoard(tmp_path), hooks.Evaluate(loops.ArrayFeed((X + 1, Y), 10))],
        compile=compile,
    )
    loop.run(epochs=1)
    loop.run(epochs=2)
    means = [float(X[i : i + 4].mean()) for i in range(0, 20, 4)] * 2
    events = testing.read_events(tmp_path)
    (train,) = [points for tag, points in events["train"].items() if tag.endswith("mean")]
    assert [step for step, _ in train] == list(range(1, 11))
    np.testing.assert_allclose([value for _, value in train], means, rtol=1e-5)
    (validation,) = [points for tag, points in events["validation"].items() if tag.endswith("mean")]
    assert [step for step, _ in validation] == [5, 5, 10, 10]
    assert tf.summary.experimental.get_step() is None and not bool(tf.summary.should_record_summaries())


def test_xla_refuses_summaries_by_name_and_silent_layers_write_no_file(tmp_path):
    net = keras.Sequential([keras.Input([3]), Speaking(), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"a call of tf.summary.*use compile='graph'"):
        loops.fit(net, X, Y, verbose=0, compile="xla", hooks=[hooks.TensorBoard(tmp_path / "a")])
    by_loops(model(), X, Y, hooks=[hooks.TensorBoard(tmp_path / "b")])
    assert not list((tmp_path / "b").rglob("*.summaries"))


def test_callbacks_of_a_loop_find_its_history_on_the_model():
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(callback.model.history))
    loop = loops.TrainLoop(loops.KerasTask(model()), loops.ArrayFeed((X, Y), 4), [callback], compile="graph")
    loop.run(epochs=1)
    assert seen == [loop.history]
