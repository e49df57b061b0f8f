"""A second fit, evaluation or prediction of a model traces nothing again, unless what its traces took for constant has changed."""

import copy
import gc
import pickle
import threading
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.engine import kept_programs
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from tests.loops import tiny

X, _ = tiny.data(64)
Y = X[:, :2] * 0.5
scale_of_module = 1.0


@pytest.fixture
def work(monkeypatch):
    """What was traced and compiled: names of steps, and one entry for each program."""
    done = []
    trace, build = GlobalStep._trace, Program._compile
    monkeypatch.setattr(GlobalStep, "_trace", lambda self, spec: done.append(self.method) or trace(self, spec))
    monkeypatch.setattr(Program, "_compile", lambda self, *a, **k: done.append(f"program of {self.step.method}") or build(self, *a, **k))
    return done


def model_of(*, random=False, loss="mse", optimizer=None):
    keras.utils.set_random_seed(0)
    noise = [keras.layers.Dropout(0.2, seed=1)] if random else []
    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(4, "tanh"), *noise, keras.layers.Dense(2)])
    model.compile(optimizer or keras.optimizers.Adam(0.05), loss, metrics=["mae"])
    return model


def fit(model, x=X, y=Y, **arguments):
    arguments = {"batch_size": 16, "verbose": 0, "compile": "graph", "validation_data": (x, y), **arguments}
    return loops.fit(model, x, y, **arguments).history


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_nothing_is_traced_or_compiled_again(mode, work):
    model = model_of(random=True)
    arguments = {"compile": mode, "batch_size": 16}
    fit(model, epochs=2, **arguments)
    loops.evaluate(model, X, Y, **arguments)
    loops.predict(model, X, **arguments)
    assert {"train_step", "eval_step", "predict_step"} <= set(work)
    work.clear()
    seen = []
    watching = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    fit(model, epochs=3, callbacks=[watching, keras.callbacks.EarlyStopping("loss", patience=9)], **arguments)
    fit(model, epochs=1, seed=7, validation_split=0.25, validation_data=None, shuffle=False, **arguments)
    loops.evaluate(model, X, Y, **arguments)
    loops.evaluate(model, X[:32], Y[:32], steps=1, **arguments)
    loops.predict(model, X[:48], **arguments)
    fit(model, X[:32], Y[:32], initial_epoch=1, epochs=2, **arguments)
    fit(model, np.concatenate([X, X]), np.concatenate([Y, Y]), **arguments)
    assert work == [] and len(seen) == 12


def test_the_second_fit_has_the_bits_of_the_second_model_fit():
    ours, keras_own = model_of(random=True), model_of(random=True)
    for _ in range(2):
        history = fit(ours, shuffle=False, epochs=2)
        expected = keras_own.fit(X, Y, 16, epochs=2, verbose=0, shuffle=False, validation_data=(X, Y)).history
        assert history == expected
    tiny.assert_same_bits([np.asarray(v) for v in ours.variables], [np.asarray(v) for v in keras_own.variables])


def test_another_signature_is_traced_and_the_first_one_is_kept(work):
    model = model_of()
    fit(model)
    work.clear()
    fit(model, X[:60], Y[:60])  # a smaller last batch
    assert work.count("train_step") == 1
    fit(model)
    fit(model, X[:60], Y[:60])
    assert work.count("train_step") == 1


class Scaled(keras.layers.Layer):
    """Reads Python values of many kinds."""

    shared = 1.0

    def __init__(self):
        super().__init__()
        self._alpha, self.numbers, self.array = 1.0, {"a": [1.0]}, np.ones(2, "float32")

    def call(self, x):
        return x * self._alpha * self.numbers["a"][0] * self.array[0] * self.shared * scaled_by_module(1.0)


def scaled_by_module(x):
    return x * scale_of_module


class Penalty(keras.regularizers.Regularizer):
    def __init__(self):
        self.factor = 0.01

    def __call__(self, weight):
        return self.factor * tf.reduce_sum(weight**2)


class Weighted(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.weight = 1.0

    def call(self, y, y_pred):
        return tf.reduce_mean((y - y_pred) ** 2, -1) * self.weight


class Custom(keras.Model):
    """A model with a step of its own that reads Python values."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, "tanh", kernel_regularizer=Penalty())
        self.scaled, self.drop, self.out = Scaled(), keras.layers.Dropout(0.2, seed=1), keras.layers.Dense(2)
        self.temperature, self.options = 1.0, types.SimpleNamespace(rates=[1.0])

    def call(self, x, training=False):
        return self.out(self.drop(self.scaled(self.hidden(x)), training=training)) * self.temperature

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred) * self.options.rates[0]
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return self.compute_metrics(x, y, y_pred)


def custom():
    keras.utils.set_random_seed(0)
    model = Custom()
    model.compile(keras.optimizers.Adam(0.05), Weighted(), metrics=[keras.metrics.MeanAbsoluteError()])
    return model


CHANGES = {
    "attribute of the model": lambda model: setattr(model, "temperature", 0.5),
    "list in an object of the model": lambda model: model.options.rates.__setitem__(0, 0.1),
    "private attribute of a layer": lambda model: setattr(model.scaled, "_alpha", 0.5),
    "list in a dict of a layer": lambda model: model.scaled.numbers["a"].__setitem__(0, 0.5),
    "array of a layer": lambda model: model.scaled.array.__setitem__(0, 0.5),
    "a new attribute": lambda model: setattr(model, "fresh", 1),
    "setting of a Keras layer": lambda model: setattr(model.drop, "rate", 0.6),
    "activation": lambda model: setattr(model.hidden, "activation", keras.activations.relu),
    "factor of a regularizer": lambda model: setattr(model.hidden.kernel_regularizer, "factor", 0.5),
    "clipping of the optimizer": lambda model: setattr(model.optimizer, "clipnorm", 0.01),
    "setting of the optimizer": lambda model: setattr(model.optimizer, "beta_1", 0.1),
    "attribute of the loss": lambda model: setattr(model.loss, "weight", 0.1),
    "dtype policy": lambda model: setattr(model.hidden, "dtype_policy", "mixed_bfloat16"),
    "frozen layer": lambda model: setattr(model.hidden, "trainable", False),
    "optimizer": lambda model: setattr(model, "optimizer", keras.optimizers.SGD(0.3)),
    "compiled again": lambda model: model.compile(keras.optimizers.SGD(0.1), "mae"),
    "compiled again with the same": lambda model: model.compile(model.optimizer, model.loss),
    "step of the object": lambda model: setattr(
        model, "train_step", types.MethodType(lambda self, data: Custom.train_step(self, (data[0], data[1] * 2)), model)
    ),
}


def test_whatever_changed_since_the_trace_is_noticed(work):
    """After each change the fit traces once, and gives the bits of a model that keeps no programs."""
    kept, anew = custom(), custom()
    for model in (kept, anew):
        fit(model, validation_data=None)
    for name, change in CHANGES.items():
        change(kept)
        change(anew)
        vars(anew).pop("_tapeloops_tasks")
        work.clear()
        fit(kept, validation_data=None)
        assert work.count("train_step") == 1, name
        fit(anew, validation_data=None)
        tiny.assert_same_bits([np.asarray(v) for v in kept.variables], [np.asarray(v) for v in anew.variables])
    work.clear()
    fit(kept, validation_data=None)
    assert work == []


def test_values_outside_of_the_model_are_noticed(work, monkeypatch):
    model = custom()
    fit(model, validation_data=None)
    changes = {
        "global": lambda: monkeypatch.setitem(globals(), "scale_of_module", 0.5),
        "class": lambda: monkeypatch.setattr(Scaled, "shared", 0.5),
        "function": lambda: monkeypatch.setitem(globals(), "scaled_by_module", lambda x: x * 0.5),
        "method": lambda: monkeypatch.setattr(Custom, "call", lambda self, x, training=False: self.out(self.hidden(x))),
        "epsilon": lambda: keras.config.set_epsilon(1e-3),
    }
    epsilon = keras.config.epsilon()
    try:
        for name, change in changes.items():
            work.clear()
            change()
            fit(model, validation_data=None)
            assert work.count("train_step") == 1, name
    finally:
        keras.config.set_epsilon(epsilon)


counts = {"train": 0, "eval": 0, "predict": 0, "all": []}


class Counting(Custom):
    """Counts its traces in Python, as tests do."""

    def __init__(self):
        super().__init__()
        self.traces = 0

    def train_step(self, data):
        counts["train"] += 1
        counts["all"].append(("train", self.traces))
        self.traces += 1
        return super().train_step(data)

    def test_step(self, data):
        counts["eval"] += 1
        counts["all"].append(("eval", self.traces))
        self.traces += 1
        return super().test_step(data)

    def predict_step(self, data):
        counts["predict"] += 1
        counts["all"].append(("predict", self.traces))
        return super().predict_step(data)


def test_counting_traces_in_python_causes_none():
    model = Counting()
    model.compile("sgd", "mse")
    for _ in range(3):
        loops.predict(model, X, 16)
        loops.evaluate(model, X, Y, 16)
        fit(model)
        fit(model, X[:60], Y[:60])
    assert counts["train"] == counts["eval"] == counts["predict"] == 2  # the first trace of a model that is not built is made twice
    counts["train"] = 100  # somebody else's change is one
    fit(model)
    assert counts["train"] == 101


def test_settings_of_a_fit_are_part_of_its_program_and_those_used_last_stay(work):
    model, given = model_of(), [{}, {"clip": 0.1}, {"clip": 0.2}, {"compile": "xla"}, {"hooks": [Observing()]}]
    for arguments in given:
        work.clear()
        fit(model, validation_data=None, **arguments)
        assert work.count("train_step") == 1, arguments
    work.clear()
    for arguments in [*given, {"seed": 5}]:  # no step of Keras's draws from the seed of the run
        fit(model, validation_data=None, **arguments)
    assert work == []


class Observing(loops.hooks.Hook):
    observes = frozenset({"gradients"})


def test_learning_rates_and_weights_are_no_constants(work):
    model = model_of()
    fit(model, shuffle=False)
    work.clear()
    keras_own = model_of()
    keras_own.fit(X, Y, 16, epochs=1, verbose=0, shuffle=False)
    for one in (model, keras_own):
        one.optimizer.learning_rate = 0.5
        one.set_weights([0.5 * weight for weight in one.get_weights()])
    fit(model, shuffle=False)
    keras_own.fit(X, Y, 16, epochs=1, verbose=0, shuffle=False)
    assert work == []
    tiny.assert_same_bits(model.get_weights(), keras_own.get_weights())


def test_a_fit_within_a_fit_has_programs_of_its_own_and_these_are_kept_too(work):
    model = model_of()
    inner = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (loops.evaluate(model, X, Y, 16, compile="graph"), loops.predict(model, X, 16))
    )
    fit(model, epochs=2, callbacks=[inner])
    assert work.count("eval_step") == 2  # that of the fit, and that of the callback
    work.clear()
    fit(model, epochs=2, callbacks=[inner])
    assert work == []
    nested = keras.callbacks.LambdaCallback(on_train_end=lambda logs: fit(model, epochs=1))
    fit(model, callbacks=[nested])
    assert work.count("train_step") == 1


def test_two_fits_at_once_share_no_program(work):
    model = model_of()
    fit(model)
    work.clear()
    waiting, begun = threading.Event(), threading.Event()
    hold = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: (begun.set(), waiting.wait(60)))
    first = threading.Thread(target=lambda: fit(model, callbacks=[hold]))
    first.start()
    assert begun.wait(60)
    assert "train_step" not in work
    fit(model)
    assert work.count("train_step") == 1
    waiting.set()
    first.join()


def test_after_a_failure_nothing_is_kept_and_the_next_fit_is_whole(work):
    model = model_of()
    fit(model)

    def fail(epoch, logs):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fit(model, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    work.clear()
    fit(model)
    assert work.count("train_step") == 1


def test_programs_end_with_their_model():
    gc.collect()

    def programs():
        return sum(isinstance(one, (Program, kept_programs.KeptPrograms)) for one in gc.get_objects())

    before = programs()
    references = []
    for _ in range(3):
        model = model_of()
        fit(model)
        loops.predict(model, X)
        references.append(weakref.ref(model))
    del model
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
    assert programs() == before


def test_one_model_keeps_a_bounded_number_of_programs():
    model = model_of()
    for step in range(10):
        fit(model, validation_data=None, clip=1.0 + step)
    tasks = vars(model)["_tapeloops_tasks"].free
    assert len(tasks) == 1 and len(kept_programs.KeptPrograms.of(tasks[0])) <= 8


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "clone", "shallow copy of a task"])
def test_copies_have_programs_of_their_own(how, work):
    model = model_of()
    fit(model)
    weights = model.get_weights()
    if how == "shallow copy of a task":
        task = tiny.Classifier()
        loops.TrainLoop(task, loops.ArrayFeed(tiny.data(32), 16), compile="graph").run(epochs=1)
        other = copy.copy(task)
        other.model = keras.models.clone_model(task.model)
        other.optimizer = keras.optimizers.SGD(0.1)
        before = [np.asarray(v) for v in task.model.weights]
        loops.TrainLoop(other, loops.ArrayFeed(tiny.data(32), 16), compile="graph").run(epochs=1)
        tiny.assert_same_bits([np.asarray(v) for v in task.model.weights], before)
        return
    if how == "clone":
        other = keras.models.clone_model(model)
        other.compile("sgd", "mse")
    else:
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    work.clear()
    fit(other)
    assert work.count("train_step") == 1
    tiny.assert_same_bits(model.get_weights(), weights)


def test_a_model_that_keeps_programs_is_saved_and_exported_as_ever(tmp_path):
    model = model_of()
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loops.predict(again, X), loops.predict(model, X))
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(X), loops.predict(model, X), rtol=1e-5)
