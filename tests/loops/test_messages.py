"""Bad input gets one sentence: what was given, what was expected, what to do."""

import importlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny


def compiled(n_inputs=tiny.N_FEATURES):
    model = keras.Sequential([keras.Input([n_inputs]), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def array_feed():
    return loops.ArrayFeed(tiny.data(32), 16)


class NoDict(tiny.Classifier):
    def train_step(self, batch):
        return super().train_step(batch)["loss"]


class Vector(tiny.Classifier):
    def train_step(self, batch):
        return {"per_example": batch[0][:, 0]}


class OutsideTape(tiny.Classifier):
    def train_step(self, batch):
        x, y = batch
        loss = self.loss(y, self.model(x))
        with tf.GradientTape() as tape:
            pass
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}


class Strings(loops.Task):
    def train_step(self, batch):
        tf.print(self.step)
        return {"step": tf.strings.to_number(tf.strings.as_string(self.step))}


class NotATask:
    pass


def endless():
    return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(tiny.data(32)).batch(16).repeat())


CASES = {
    "no task": (lambda: loops.TrainLoop(NotATask(), array_feed()), TypeError, "must be a loops.Task, got NotATask"),
    "no feed": (lambda: loops.TrainLoop(tiny.Classifier(), tiny.data(3)), TypeError, "must be a loops feed"),
    "a dataset for a feed": (lambda: loops.TrainLoop(tiny.Classifier(), endless().dataset), TypeError, r"loops.DatasetFeed\(dataset\)"),
    "no hook": (lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), ["csv"]), TypeError, "must be a loops.hooks.Hook"),
    "mode": (
        lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), compile="jit"),
        ValueError,
        "'auto', 'graph', 'xla', 'eager'; got 'jit'",
    ),
    "policy": (
        lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), on_nonfinite="jump"),
        ValueError,
        "'raise', 'stop', 'skip', 'rollback', 'ignore'",
    ),
    "clip": (lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), clip="norm"), TypeError, "gradient transform"),
    "negative clip": (lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), clip=-1.0), ValueError, "greater than 0"),
    "no target": (lambda: loops.TrainLoop(tiny.Classifier(), array_feed()).run(), ValueError, r"run\(epochs=...\)"),
    "endless": (lambda: loops.TrainLoop(tiny.Classifier(), endless()).run(epochs=1), ValueError, "`steps_per_epoch`"),
    "endless at a look": (
        lambda: loops.TrainLoop(
            tiny.Classifier(), array_feed(), [hooks.LambdaHook(on_epoch_end=lambda loop, logs: setattr(loop, "feed", endless()))]
        ).run(epochs=2),
        ValueError,
        "`steps_per_epoch`",
    ),
    "run in a hook": (
        lambda: loops.TrainLoop(
            tiny.Classifier(), array_feed(), [hooks.LambdaHook(on_epoch_end=lambda loop, logs: loop.run(epochs=3))]
        ).run(epochs=2),
        RuntimeError,
        "a hook may call loop.evaluate",
    ),
    "evaluation twice": (
        lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), [hooks.Evaluate(array_feed())], evaluate={"val": array_feed()}),
        ValueError,
        "Two evaluations are named 'val'",
    ),
    "endless fit": (lambda: loops.fit(compiled(), endless().dataset, verbose=0), ValueError, "never ends"),
    "endless evaluate": (lambda: loops.evaluate(compiled(), endless().dataset), ValueError, "never ends"),
    "cadence": (
        lambda: loops.TrainLoop(tiny.Classifier(), array_feed(), [hooks.Evaluate(array_feed(), every="often")]),
        ValueError,
        "'100 steps'",
    ),
    "uncompiled": (lambda: loops.fit(keras.Sequential([keras.layers.Dense(1)]), np.zeros([4, 2])), ValueError, "not compiled"),
    "no model": (lambda: loops.fit(tiny.Classifier(), np.zeros([4, 2])), TypeError, "Expected a keras.Model, got Classifier"),
    "no data": (lambda: loops.fit(compiled()), ValueError, "no data"),
    "lengths": (lambda: loops.fit(compiled(), np.zeros([4, 6]), np.zeros(3)), ValueError, "x: 4, y: 3"),
    "frequency": (
        lambda: loops.fit(compiled(), *tiny.data(8), validation_split=0.5, validation_freq=1.5),
        ValueError,
        "`validation_freq`",
    ),
    "width": (lambda: loops.fit(compiled(5), *tiny.data(8), verbose=0), ValueError, "cannot be built on or applied to batches of .*: .*"),
    "no dict": (lambda: loops.TrainLoop(NoDict(), array_feed()).run(epochs=1), TypeError, r"returned \w*Tensor; it has to return a dict"),
    "vector": (lambda: loops.TrainLoop(Vector(), array_feed()).run(epochs=1), ValueError, r"'per_example' with shape \(16,\)"),
    "no train_step": (lambda: loops.TrainLoop(loops.Task(), array_feed()).run(epochs=1), TypeError, "defines no train_step"),
    "no gradient": (lambda: loops.TrainLoop(OutsideTape(), array_feed()).run(epochs=1), ValueError, "computed in the tape"),
    "xla": (lambda: loops.TrainLoop(Strings(), loops.NoFeed(3), compile="xla").run(epochs=1), ValueError, "use compile='graph'"),
    "seed outside": (lambda: tiny.Classifier().seed(), RuntimeError, "`Task.seed` works only inside"),
    "keras callback without a model": (
        lambda: loops.TrainLoop(Strings(), loops.NoFeed(3), [keras.callbacks.History()]).run(epochs=1),
        TypeError,
        "need a Keras model",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_a_sentence(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=message) as raised:
        call()
    *where, sentence = str(raised.value).strip().splitlines()
    assert re.search(message, sentence)
    assert not where or where[0] == "in user code:"  # TensorFlow points at the line of the user's step


def test_a_used_workdir_a_file_and_an_unwritable_place_are_refused(tmp_path):
    used = tmp_path / "used"
    loops.TrainLoop(tiny.Classifier(), array_feed(), workdir=used).run(steps=1)
    file = tmp_path / "file"
    file.touch()
    for path, message in ((used, "is used already .*config.json"), (file, "is a file"), (file / "below", "cannot be written")):
        with pytest.raises(ValueError, match=message):
            loops.TrainLoop(tiny.Classifier(), array_feed(), workdir=path, resume="never")


def test_a_number_that_changes_after_tracing_is_pointed_out_once(capsys):
    class Scaled(tiny.Classifier):
        scale_name = "not an attribute of the instance"

        def __init__(self):
            super().__init__()
            self.scale = 1.0

    class Change(hooks.Hook):
        def on_epoch_end(self, loop, logs):
            loop.task.scale = 2.0

    loops.TrainLoop(Scaled(), array_feed(), [Change()]).run(epochs=3)
    assert capsys.readouterr().out.count("Scaled.scale changed from 1.0 to 2.0") == 1


def test_another_keras_backend_is_refused_at_the_import(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "loops")
    with pytest.raises(ImportError, match="runs on 'jax': .*KERAS_BACKEND=tensorflow"):
        importlib.import_module("loops")
