"""The reason in the long texts of Keras and TensorFlow."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from loops.user_errors.near_names import did_you_mean
from loops.user_errors.reasons import described, in_short, reason_of


def error_of(call):
    with pytest.raises(Exception) as raised:  # noqa: B017
        call()
    return raised.value


def test_keras_says_what_it_expected_and_got():
    error = error_of(lambda: keras.Sequential([keras.Input([8]), keras.layers.Dense(2)])(np.ones([3, 5], "float32")))
    assert str(error).count("\n") > 2
    reason = reason_of(error)
    assert reason.endswith("expected axis -1 of input shape to have value 8, but received input with shape (3, 5)")
    assert "\x1b" not in reason and "Arguments received" not in reason


def test_the_layer_of_the_user_is_named():
    class Mine(keras.layers.Layer):
        def call(self, x):
            raise ValueError("two lines\nof reason.")

    assert reason_of(error_of(lambda: Mine()(np.ones([1])))) == "two lines of reason (in Mine.call())"


def test_an_error_of_a_graph_is_its_last_part():
    @tf.function
    def look_up(i):
        return tf.gather([1.0, 2.0], i)

    error = error_of(lambda: look_up(tf.constant([5])))
    assert "defined at" in error.message
    short = in_short(error)
    assert type(short) is type(error) and short.message == "indices[0] = 5 is not in [0, 2) (in the operation 'GatherV2')"


def test_an_error_of_python_within_a_graph_is_its_first_line():
    error = error_of(lambda: tf.function(lambda: tf.py_function(lambda: 1 // 0, [], tf.float32))())
    assert "Traceback" in error.message
    assert in_short(error).message == "ZeroDivisionError: integer division or modulo by zero (in the operation 'EagerPyFunc')"


def test_batches_are_described_with_all_their_parts():
    batch = {"x": (tf.ones([2, 3]), None), "tags": tf.ragged.constant([["a"], []])}
    assert described(batch) == "{'x': (float32 [2, 3], None), 'tags': ragged string [2, None]}"


@pytest.mark.parametrize(("name", "said"), [("acuracy", " Did you mean 'accuracy'?"), ("ACCURACY", " Did you mean 'accuracy'?"), ("x", "")])
def test_similar_names(name, said):
    assert did_you_mean(name, ["accuracy", "auc", "loss"]) == said
