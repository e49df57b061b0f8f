"""What would fail at the end of the first epoch fails before its first step, and finding that out changes nothing."""

from __future__ import annotations

import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

X, Y = tiny.data(40)

_evaluation_traces = weakref.WeakKeyDictionary()  # see tiny.py


def feed(**kwargs):
    return loops.ArrayFeed((X, Y), 16, **kwargs)


class NoEvaluation(loops.Task):
    def train_step(self, batch):
        return {"loss": tf.reduce_mean(batch[0])}


class Evaluated(tiny.Classifier):
    """Fails in its evaluation if told so, and counts how often that is traced."""

    def __init__(self, how=""):
        super().__init__(random=how == "random")
        self.how = how

    @property
    def evaluation_traces(self):
        return _evaluation_traces.get(self, 0)

    def eval_step(self, batch):
        _evaluation_traces[self] = self.evaluation_traces + 1
        if self.how == "text":
            return {"loss": "text"}
        if self.how == "width":
            return {"loss": tf.reduce_mean(self.model(batch[0][:, :2]))}
        return {**super().eval_step(batch), "score": tf.random.stateless_normal([], self.seed())}


class EvaluatesByItself(hooks.Hook):
    """The loop does not know beforehand what it evaluates on."""

    phase = hooks.Phase.EVALUATE
    evaluation = "val"

    def __init__(self, evaluated_on):
        self.evaluated_on = evaluated_on

    def on_window_end(self, loop, window):
        loop.evaluate(self.evaluated_on, "val")


@pytest.mark.parametrize("where", ["argument", "hook", "own hook"])
def test_a_task_without_eval_step_is_refused_where_the_loop_is_made(where):
    given = {"argument": {"evaluate": {"val": feed()}}, "hook": {"hooks": [hooks.Evaluate(feed(), "test")]}}
    with pytest.raises(TypeError, match=r"NoEvaluation defines no eval_step\(self, batch\), .* but .* was given: define it"):
        loops.TrainLoop(NoEvaluation(), feed(), **given.get(where, {"hooks": [EvaluatesByItself(feed())]}))


@pytest.mark.parametrize("kind", [loops.EvalLoop, loops.PredictLoop])
def test_loops_of_one_step_ask_for_it_when_they_are_made(kind):
    with pytest.raises(TypeError, match="NoEvaluation defines no (eval|predict)_step"):
        kind(NoEvaluation())
    with pytest.raises(TypeError, match=r"`task` is the class NoEvaluation.*write NoEvaluation\(\.\.\.\)"):
        kind(NoEvaluation)


@pytest.mark.parametrize("compile", ["graph", "xla"])
@pytest.mark.parametrize(("how", "said"), [("text", "'loss' has to be a scalar"), ("width", "have value 6")])
def test_an_evaluation_step_that_fails_is_found_before_training(how, said, compile):
    loop = loops.TrainLoop(Evaluated(how), feed(), evaluate={"val": feed()}, compile=compile)
    with pytest.raises((TypeError, ValueError), match=said) as raised:
        loop.run(epochs=1)
    assert loop.progress.step == 0 and loop.outcome == "failed"
    assert raised.value.__notes__[-1] == "(found when the evaluation 'val' was traced, before training)"


def test_fit_finds_validation_data_that_does_not_fit_before_training():
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weights = model.get_weights()
    with pytest.raises(ValueError, match="have value 6, but received input with shape"):
        loops.fit(model, X, Y, validation_data=(X[:, :4], Y), verbose=0)
    tiny.assert_same_bits(model.get_weights(), weights)


@pytest.mark.parametrize(
    ("compile", "hook"),
    [
        ("graph", lambda: hooks.EarlyStopping("val_mean_prediction")),
        ("eager", lambda: hooks.ReduceLROnPlateau("val_mean_prediction")),
        ("graph", lambda: hooks.ModelCheckpoint("b.weights.h5", "val_mean_prediction", save_best_only=True, save_weights_only=True)),
    ],
)
def test_a_direction_that_cannot_be_told_is_asked_for_before_training(hook, compile):
    loop = loops.TrainLoop(Evaluated(), feed(), [hook()], evaluate={"val": feed()}, compile=compile)
    with pytest.raises(ValueError, match="cannot tell whether 'val_mean_prediction' should go up or down; pass mode='max'"):
        loop.run(epochs=1)
    assert loop.progress.step == 0


def test_a_direction_that_is_not_needed_is_not_asked_for(tmp_path):
    every = hooks.ModelCheckpoint(tmp_path / "w.weights.h5", "val_mean_prediction", save_weights_only=True)
    loops.TrainLoop(Evaluated(), feed(), [every], evaluate={"val": feed()}).run(epochs=1)
    assert (tmp_path / "w.weights.h5").exists()


def test_the_metrics_of_compile_tell_their_direction_before_training():
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["acc", keras.metrics.SparseTopKCategoricalAccuracy(2, name="near")])
    stops = [hooks.EarlyStopping("val_acc", patience=9), hooks.EarlyStopping("near", patience=9)]
    assert loops.fit(model, X, Y, validation_data=(X, Y), hooks=stops, verbose=0).epoch == [0]
    near = hooks.EarlyStopping("val_naer")
    with pytest.raises(ValueError, match="'val_naer' should go up or down.* Did you mean 'val_near'"):
        loops.fit(model, X, Y, validation_data=(X, Y), hooks=[near], verbose=0)


def test_a_keras_callback_whose_direction_cannot_be_told_is_found_before_training():
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["acc"])
    weights = model.get_weights()
    known = [
        keras.callbacks.EarlyStopping("val_acc", patience=9),
        keras.callbacks.ModelCheckpoint("never.keras", "val_odd", save_freq=10**6),
    ]
    with pytest.raises(ValueError, match="monitor=val_odd, but Keras isn't able"):
        odd = keras.callbacks.ReduceLROnPlateau("val_odd")
        loops.fit(model, X, Y, validation_data=(X, Y), callbacks=[*known, odd], verbose=0)
    tiny.assert_same_bits(model.get_weights(), weights)


def evaluation_feeds():
    def batches():
        yield from ((X[i : i + 10], Y[i : i + 10]) for i in range(0, 40, 10))

    shuffled = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(40, seed=1).batch(16)
    once = (batch for _ in range(3) for batch in batches())
    return {
        "with a tail": feed(),
        "even": loops.ArrayFeed((X, Y), 20),
        "dataset": loops.DatasetFeed(shuffled),
        "generator": loops.GeneratorFeed(once, steps_per_epoch=4),
    }


@pytest.mark.parametrize("kind", evaluation_feeds())
@pytest.mark.parametrize("compile", ["graph", pytest.param("xla", marks=pytest.mark.matrix)])
def test_looking_ahead_changes_no_number_and_costs_no_trace(kind, compile):
    results = []
    for ahead in (False, True):
        task, evaluated_on = Evaluated("random"), evaluation_feeds()[kind]
        given = {"evaluate": {"val": evaluated_on}} if ahead else {"hooks": [EvaluatesByItself(evaluated_on)]}
        history = loops.TrainLoop(task, feed(shuffle=True), compile=compile, **given).run(epochs=2).history
        results.append((history, tiny.state(task), task.traces, task.evaluation_traces))
    (history, variables, *counts), (history_ahead, variables_ahead, *counts_ahead) = results
    assert history == history_ahead and counts == counts_ahead
    tiny.assert_same_bits(variables, variables_ahead)


def test_the_early_trace_is_not_used_if_a_value_in_it_has_changed():
    class Scaled(tiny.Classifier):
        scale = 1.0

        def __init__(self):
            super().__init__()
            self.scale = 1.0

        def eval_step(self, batch):
            return {"scale": self.scale * tf.ones([])}

    class Scale(hooks.Hook):
        phase = hooks.Phase.EVALUATE
        every = "1 step"

        def on_window_end(self, loop, window):
            loop.task.scale = 2.0

    history = loops.TrainLoop(Scaled(), feed(), [Scale()], evaluate={"val": feed()}).run(epochs=1).history
    assert history["val_scale"] == [2.0]


@pytest.mark.parametrize(
    ("targets", "every", "traced"),
    [
        ({"steps": 2}, "1 epoch", 0),
        ({"steps": 3}, "1 epoch", 1),
        ({"steps": 2}, "2 steps", 1),
        ({"epochs": 1}, "2 epochs", 0),
        ({"epochs": 2}, "2 epochs", 1),
    ],
)
def test_an_evaluation_that_will_not_come_is_not_traced(targets, every, traced):
    task = Evaluated()
    loops.TrainLoop(task, feed(), [hooks.Evaluate(feed(), every=every)]).run(**targets)
    assert task.evaluation_traces == traced


def test_two_replicas_evaluate_with_the_early_trace(two_replicas):
    with two_replicas.scope():
        task = Evaluated()
    loops.TrainLoop(task, feed(), evaluate={"val": feed()}, strategy=two_replicas).run(epochs=1)
    assert task.evaluation_traces == 2  # once for each replica


def test_a_second_run_evaluates_with_the_same_trace():
    task = Evaluated()
    loop = loops.TrainLoop(task, feed(), evaluate={"val": feed()})
    loop.run(epochs=1)
    assert np.isfinite(loop.run(epochs=2).history["val_loss"]).all()
    assert task.evaluation_traces == 1
