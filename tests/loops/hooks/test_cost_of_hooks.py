"""What hooks ask of TensorFlow where epochs are short: counted, as a test cannot tell how long it takes."""

from __future__ import annotations

import io

import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny
from tests.loops.hooks.counted_calls import counted_calls

EPOCHS = 30


def calls_with(given):
    x, y = tiny.data(64)
    loop = loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed((x, y), 16), given, compile="graph")
    loop.run(epochs=5)
    with counted_calls() as found:
        loop.run(epochs=5 + EPOCHS)
    return len(found)


def test_all_hooks_make_two_calls_more_of_tensorflow_an_epoch(tmp_path):
    """One for the learning rate; one for the weights, if they may be the best."""
    with counted_calls() as found:
        tf.constant(1.0) + 1.0
    assert found, "the counter sees calls"
    every = [
        hooks.EarlyStopping("loss", patience=1000),
        hooks.ModelCheckpoint(tmp_path / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
        hooks.TensorBoard(tmp_path, update_freq="batch"),
        hooks.CSVLogger(tmp_path / "history.csv"),
        hooks.ProgressBar(stream=io.StringIO()),
    ]
    assert calls_with(every) - calls_with([]) <= 2 * EPOCHS + 10, "a few when the run begins and ends"
