"""What newcomers write by mistake is answered with what was given, what was expected, and what to do."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny

X, Y = tiny.data(32)


def feed():
    return loops.ArrayFeed((X, Y), 16)


def model(**kwargs):
    made = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(3, "softmax")])
    made.compile(**{"optimizer": "sgd", "loss": "sparse_categorical_crossentropy", **kwargs})
    return made


def loop(task=None, *args, **kwargs):
    return loops.TrainLoop(tiny.Classifier() if task is None else task, feed(), *args, **kwargs)


def supervised(**kwargs):
    return loops.SupervisedTask(keras.Sequential([keras.layers.Dense(3, "softmax")]), **{"loss": "mse", **kwargs})


CASES = {
    "arrays one by one": (
        lambda: loops.ArrayFeed(X, Y),
        TypeError,
        r"got ndarray. ArrayFeed takes all .* as in ArrayFeed\(\(x, y\), batch",
    ),
    "array as generator": (lambda: loops.GeneratorFeed(X), TypeError, "got ndarray: for arrays use loops.ArrayFeed"),
    "arrays for a feed": (lambda: loops.TrainLoop(tiny.Classifier(), (X, Y)), TypeError, r"got tuple: wrap .*loops.ArrayFeed\(\(x, y\)\)"),
    "class for a feed": (lambda: loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed), TypeError, r"the class ArrayFeed: write ArrayFeed\("),
    "generator for a feed": (lambda: loops.TrainLoop(tiny.Classifier(), iter([X])), TypeError, r"loops.GeneratorFeed\(generator\)"),
    "class for a task": (lambda: loop(tiny.Classifier), TypeError, r"the class Classifier, not an object of it: write Classifier\("),
    "model for a task": (lambda: loop(model()), TypeError, r"got Sequential; .* loops.KerasTask\(model\)"),
    "class for a model": (lambda: loops.KerasTask(keras.Sequential), TypeError, r"the class Sequential: write Sequential\("),
    "evaluate is a feed": (lambda: loop(evaluate=feed()), TypeError, r"by name, as in evaluate=\{'val': feed\}.*got a feed"),
    "evaluate is a list": (lambda: loop(evaluate=[feed()]), TypeError, r"by name, as in evaluate=\{'val': feed\}.*got list"),
    "evaluate by number": (lambda: loop(evaluate={1: feed()}), TypeError, "got the name 1"),
    "evaluate with arrays": (lambda: loop(evaluate={"val": (X, Y)}), TypeError, r"`evaluate\['val'\]` must be a loops feed .*ArrayFeed"),
    "feeds as hooks": (lambda: loop(None, {"val": feed()}), TypeError, r"must be a list of hooks .* got dict; .*evaluate=\{'val': feed\}"),
    "no hooks": (lambda: loop(None, None), TypeError, "must be a list of hooks and Keras callbacks; got NoneType"),
    "resume": (lambda: loop(resume="yes"), ValueError, "`resume` must be one of 'auto', 'never', 'must'; got 'yes'"),
    "resume nothing": (lambda: loop(resume="must"), ValueError, "no `workdir` was given"),
    "strategy": (lambda: loop(strategy="mirrored"), TypeError, r"`strategy` must be .*MirroredStrategy\(\); got 'mirrored'"),
    "seed": (lambda: loop(seed="a"), ValueError, "`seed` must be a whole number; got 'a'"),
    "steps_per_epoch": (lambda: loop(steps_per_epoch="3"), ValueError, "`steps_per_epoch` must be a whole number, 1 or more; got '3'"),
    "target": (lambda: loop().run("3"), ValueError, "`epochs` must be a whole number, 0 or more; got '3'"),
    "targets": (lambda: loop().run(epochs=[3]), ValueError, r"`epochs` must be a whole number, 0 or more; got \[3\]"),
    "evaluate arrays": (lambda: loops.EvalLoop(supervised()).run((X, Y)), TypeError, "`feed` must be a loops feed"),
    "predict arrays": (lambda: loops.PredictLoop(supervised()).run(X), TypeError, "`feed` must be a loops feed"),
    "loss": (lambda: loops.fit(model(loss="msee"), X, Y), ValueError, r"the loss 'msee', which Keras does not know \(Could not .*'mse'"),
    "metric": (lambda: loops.fit(model(metrics=["acuracy"]), X, Y), ValueError, r"the metric 'acuracy', .*Did you mean 'accuracy'\?"),
    "evaluated metric": (lambda: loops.evaluate(model(metrics=["acuracy"]), X, Y), ValueError, "the metric 'acuracy'"),
    "weighted metric": (
        lambda: loops.KerasTask(model(weighted_metrics=["precsion"])),
        ValueError,
        "the metric 'precsion'.* Did you mean 'Precision'",
    ),
    "loss of a task": (lambda: supervised(loss="msee"), ValueError, "the loss 'msee'"),
    "optimizer of a task": (lambda: supervised(optimizer="adm"), ValueError, "the optimizer 'adm'.* Did you mean 'adam'"),
    "no loss": (
        lambda: loops.fit(model(loss=None), X, Y, verbose=0),
        ValueError,
        "as it was compiled: No loss to compute. Provide a `loss`",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_slip_gets_a_sentence(case):
    call, kind, said = CASES[case]
    with pytest.raises(kind, match=said) as raised:
        call()
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("name", ["crossentropy", "ce", "mse", "MeanSquaredError", "mean_squared_error"])
def test_names_that_keras_knows_are_left_to_it(name):
    loops.KerasTask(model(loss=name, metrics=["acc", "accuracy", "AUC", "mae", keras.metrics.Precision, lambda y, p: y]))


class Step(tiny.Classifier):
    """Its step does one thing wrong."""

    def __init__(self, wrong, optimizer=None):
        super().__init__()
        self.wrong = wrong
        self.optimizer = optimizer or self.optimizer

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x))
        return self.wrong(self, loss, tape, self.model.trainable_variables) or {"loss": loss}


def gradients(loss, tape, variables):
    return tape.gradient(loss, variables)


STEPS = {
    "order of minimize": (
        lambda t, loss, tape, v: t.minimize(loss, tape, v, t.optimizer),
        r"in this order; got \(a tensor, GradientTape, ",
    ),
    "tape first": (lambda t, loss, tape, v: t.minimize(tape, loss, t.optimizer, v), r"in this order; got \(GradientTape, a tensor, "),
    "no tape": (lambda t, loss, tape, v: t.minimize(loss, None, t.optimizer, v), "`tape` of minimize must be the tf.GradientTape"),
    "a model": (lambda t, loss, tape, v: t.minimize(loss, tape, t.optimizer, t.model), "such as model.trainable_variables; got the model"),
    "a method": (lambda t, loss, tape, v: t.minimize(loss, tape, t.optimizer, t.loss), "such as model.trainable_variables; got the method"),
    "tensors": (lambda t, loss, tape, v: t.minimize(loss, tape, t.optimizer, [loss]), "got a tensor among them"),
    "a class": (lambda t, loss, tape, v: t.minimize(loss, tape, keras.optimizers.SGD, v), "got the class SGD: make an optimizer once"),
    "pairs": (
        lambda t, loss, tape, v: t.apply_gradients(zip(gradients(loss, tape, v), v, strict=True), v, t.optimizer),
        "got pairs of both, as Keras takes them",
    ),
    "variables first": (lambda t, loss, tape, v: t.apply_gradients(v, gradients(loss, tape, v), t.optimizer), "give the gradients first"),
    "too few": (
        lambda t, loss, tape, v: t.apply_gradients(gradients(loss, tape, v)[:1], v, t.optimizer),
        "was given 1 gradients for 4 variables",
    ),
    "loss by name": (lambda t, loss, tape, v: t.compute_loss("msee", X[:, :1], X[:, :1]), "compute_loss was given the loss 'msee'.* 'mse'"),
    "loss last": (lambda t, loss, tape, v: t.compute_loss(loss, loss, "mse"), r"takes \(loss_fn, y, y_pred\).* got a tensor"),
    "None": (lambda t, loss, tape, v: {"loss": None}, r"Step.train_step returned {'loss': None}; .*leave it out if there is none"),
    "text": (lambda t, loss, tape, v: {"loss": "text"}, r"returned {'loss': 'text'}; .*text is for a hook to log"),
    "a list": (lambda t, loss, tape, v: {"loss": [loss]}, "'loss' has to be a scalar: reduce it"),
    "nested": (lambda t, loss, tape, v: {"loss": {"a": loss}}, "'loss' has to be a scalar: give each of its values a name"),
    "a function": (lambda t, loss, tape, v: {"loss": t.loss}, "'loss' has to be a scalar: call it"),
    "mean of nothing": (lambda t, loss, tape, v: {"loss": loops.Mean(None)}, "'loss' has to be a scalar: leave it out"),
    "weight": (lambda t, loss, tape, v: {"loss": loops.Mean(loss, weight="2")}, "'loss' has to be a scalar: text is"),
    "collected": (lambda t, loss, tape, v: {"loss": loops.Collect(loss)}, "as loops.Collect, which is for eval_step"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_slip_in_a_step_gets_a_sentence(case):
    wrong, said = STEPS[case]
    with pytest.raises((TypeError, ValueError), match=said):
        loop(Step(wrong), compile="eager").run(epochs=1)


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_compiled_steps_say_the_same(compile):
    for case in ("order of minimize", "text"):
        wrong, said = STEPS[case]
        with pytest.raises(TypeError, match=said):
            loop(Step(wrong), compile=compile).run(epochs=1)


@pytest.mark.parametrize(("name", "said"), [("sgd", "not its name 'sgd': make an optimizer once"), ("adm", " Did you mean 'adam'")])
def test_an_optimizer_by_name_is_made_in_the_constructor(name, said):
    def plain(task, loss, tape, variables):
        task.minimize(loss, tape, task.optimizer, variables)

    with pytest.raises(TypeError, match=f"`optimizer` must be a keras optimizer.*{said}"):
        loop(Step(plain, optimizer=name), compile="eager").run(epochs=1)


def test_what_is_right_stays_right():
    def right(task, loss, tape, variables):
        task.apply_gradients((g for g in gradients(loss, tape, variables)), iter(variables), task.optimizer)
        return {"a": np.float32(1.0), "b": 2, "c": tf.constant(True), "d": loops.Sum(loss, weight=0.5), "e": keras.Variable(3.0)}

    logs = loop(Step(right), [hooks.TerminateOnNaN()], compile="eager").run(epochs=1).history
    assert (logs["a"], logs["b"], logs["c"], logs["e"]) == ([1.0], [2.0], [1.0], [3.0])
