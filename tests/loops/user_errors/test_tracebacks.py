"""An error shows the user's own lines: the one that called the loop, and those of the step that failed; at most ten frames."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import traceback

import keras
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.user_errors.tracebacks import shortened
from tests.loops import tiny

X, Y = tiny.data(40)


class Row(keras.layers.Layer):
    def call(self, x):
        return tf.matmul(x, tf.ones([99, 1]))


class Failing(tiny.Classifier):
    def __init__(self, how):
        super().__init__()
        self.how, self.row = how, Row()

    def train_step(self, batch):
        if self.how == "lookup":
            self.look_up()
        elif self.how == "branch" and self.step >= 0:  # AutoGraph makes functions of the branches
            {}["missing"]
        elif self.how == "layer":
            self.row(batch[0])
        elif self.how == "assertion":
            tf.debugging.assert_less(batch[0], -99.0, "too large")
        return super().train_step(batch)

    def look_up(self):
        return {}["missing"]


def frames(error):
    """The functions of a traceback, of this file's and of all others."""
    shown = traceback.extract_tb(error.__traceback__)
    return [f.name for f in shown if f.filename == __file__], [f.name for f in shown if f.filename != __file__]


def raised(call, *args, **kwargs):
    with pytest.raises(Exception) as found:  # noqa: B017
        call(*args, **kwargs)
    return found.value


def run(how, **kwargs):
    loops.TrainLoop(Failing(how), loops.ArrayFeed((X, Y), 16), **kwargs).run(epochs=1)


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
@pytest.mark.parametrize(
    ("how", "kind", "inner"),
    [
        ("lookup", KeyError, ["train_step", "look_up"]),
        ("branch", KeyError, ["train_step"]),
        ("layer", (ValueError, tf.errors.InvalidArgumentError), ["train_step", "call"]),
        ("assertion", tf.errors.InvalidArgumentError, ["train_step"]),
    ],
)
def test_the_frames_are_the_users_own(how, kind, inner, compile):
    if how == "assertion" and compile == "xla":
        pytest.skip("XLA drops assertions")
    error = raised(run, how, compile=compile)
    assert isinstance(error, kind)
    ours, others = frames(error)
    assert list(dict.fromkeys(ours)) == ["raised", "run", *inner] and not others
    assert "in user code" not in str(error) and "Detected at node" not in str(error)


def test_a_key_error_of_a_converted_step_is_a_key_error():
    error = raised(run, "lookup", compile="graph")
    assert type(error) is KeyError and error.args == ("missing",)


@pytest.mark.parametrize("function", [loops.fit, loops.evaluate, loops.predict])
def test_functions_for_keras_models_show_the_call_alone(function):
    model = keras.Sequential([keras.Input([5]), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = (X,) if function is loops.predict else (X, Y)
    error = raised(function, model, *data)
    assert frames(error) == (["raised"], [])
    assert error.__cause__ is None and error.__suppress_context__
    assert "expected axis -1 of input shape to have value 5, but received input with shape" in str(error)
    assert "float32 [None, 6]" in str(error) and str(error).count("\n") == 0


def test_two_replicas_show_the_same_frames(two_replicas):
    with two_replicas.scope():
        task = Failing("lookup")
    error = raised(loops.TrainLoop(task, loops.ArrayFeed((X, Y), 16), strategy=two_replicas).run, epochs=1)
    assert frames(error) == (["raised", "train_step", "look_up"], [])


def test_keras_switches_it_off():
    keras.config.disable_traceback_filtering()
    try:
        ours, others = frames(raised(run, "lookup", compile="graph"))
    finally:
        keras.config.enable_traceback_filtering()
    assert len(others) > 10


def test_the_causes_of_an_error_stay_and_are_short_too():
    class Wrapping(hooks.Hook):
        def on_epoch_begin(self, loop):
            try:
                keras.layers.Dense(-1)
            except ValueError as error:
                raise RuntimeError("no layer") from error

    error = raised(loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed((X, Y), 16), [Wrapping()]).run, epochs=1)
    assert frames(error) == (["raised", "on_epoch_begin"], [])
    assert isinstance(error.__cause__, ValueError) and frames(error.__cause__) == (["on_epoch_begin"], [])


def test_other_libraries_are_shown_by_their_last_frame_only_where_they_are_many(monkeypatch, tmp_path):
    package = tmp_path / "installed_library.py"
    package.write_text("def down(n, call):\n    return down(n - 1, call) if n else call()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("loops.user_errors.tracebacks._INSTALLED", (str(tmp_path),))
    import installed_library

    def fail():
        raise RuntimeError("at the bottom")

    ours, others = frames(raised(shortened(installed_library.down), 20, fail))
    assert ours == ["raised", "fail"] and len(others) <= 1


def test_python_prints_the_line_of_a_step_that_was_converted(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import numpy as np
            import loops

            class Task(loops.Task):
                def train_step(self, batch):
                    return {"loss": batch.no_such_name}

            loops.TrainLoop(Task(), loops.ArrayFeed(np.ones([4, 1]))).run(epochs=1)
            """
        )
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    shown = [line.strip() for line in result.stderr[result.stderr.index("Traceback") :].splitlines()]
    assert [line for line in shown if line.startswith("File ")] == [
        f'File "{program}", line 9, in <module>',
        f'File "{program}", line 7, in train_step',
    ]
    assert 'return {"loss": batch.no_such_name}' in shown
    assert shown[-1].startswith("AttributeError: ") and "no_such_name" in shown[-1]


def test_notes_say_which_batches_the_step_was_given():
    class Wrong(tiny.Classifier):
        def train_step(self, batch):
            raise ValueError("no")

    error = raised(loops.TrainLoop(Wrong(), loops.ArrayFeed((X, Y), 16)).run, epochs=1)
    assert str(error) == "no" and error.__notes__ == ["(in Wrong.train_step, for batches of (float32 [None, 6], int64 [None]))"]


def test_an_error_in_the_data_keeps_its_reason():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).map(lambda x, y: (tf.debugging.check_numerics(x / 0.0, "bad row"), y)).batch(8)
    error = raised(loops.TrainLoop(tiny.Classifier(), loops.DatasetFeed(dataset)).run, epochs=1)
    assert "bad row" in str(error) and str(error).count("\n") == 0
    assert frames(error) == (["raised"], [])
