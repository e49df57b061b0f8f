"""Partial updates: what is not due keeps every bit, and training goes on from other weights at the step that was said."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import loops
from loops import hooks, testing
from research import runner, study
from research.configs import partial_updates as config_file
from research.studies import partial_updates
from research.studies.classification import make_model
from research.studies.partial_updates import Biases, PartialUpdates
from research.study import InputError

RNG = np.random.RandomState(0)
X, Y = RNG.normal(size=[60, 4]).astype("float32"), RNG.randint(0, 3, 60)


def make(every=(4, 2, 1), optimizer=lambda: keras.optimizers.SGD(0.1)):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = make_model((4,), 3, hidden=(6, 5))
    names = [layer.name for layer in model.layers if layer.weights]
    rhythm = dict(zip(names, every, strict=True))
    return PartialUpdates(model, {name: optimizer() for name in names if rhythm[name]}, rhythm)


def feed():
    return loops.ArrayFeed((X, Y), 10)


def bits(layer):
    return [w.tobytes() for w in layer.get_weights()]


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_a_layer_changes_at_the_steps_that_its_rhythm_says_and_at_no_other(compile):
    task = make(every=(0, 3, 2), optimizer=lambda: keras.optimizers.Adam(0.01))
    layers = [layer for layer in task.model.layers if layer.weights]
    before, changed = [bits(layer) for layer in layers], [[], [], []]

    def look(loop, window):
        for i, layer in enumerate(layers):
            if bits(layer) != before[i]:
                changed[i].append(loop.progress.step)
                before[i] = bits(layer)

    loop = loops.TrainLoop(task, feed(), hooks=[hooks.LambdaHook(on_window_end=look, every="1 steps")], compile=compile)
    history = loop.run(epochs=2).history
    assert changed == [[], [1, 4, 7, 10], [1, 3, 5, 7, 9, 11]]
    assert [int(o.iterations.numpy()) for o in task.optimizers_of.values()] == [4, 6]
    assert history[f"updates_{layers[1].name}"] == [2, 2] and history[f"updates_{layers[2].name}"] == [3, 3]


def test_updating_all_at_every_step_is_what_keras_does():
    task = make(every=(1, 1, 1))
    model = make().model
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    expected = model.fit(X, Y, batch_size=10, epochs=2, shuffle=False, verbose=0).history
    history = loops.TrainLoop(task, feed(), compile="graph").run(epochs=2).history
    for ours, theirs in zip(task.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(history["accuracy"], expected["accuracy"], rtol=1e-6)


def test_where_only_biases_learn_all_kernels_keep_their_bits():
    task = Biases(make().model, keras.optimizers.Adam(0.01))
    before = {v.path: v.numpy().tobytes() for v in task.model.weights}
    loops.TrainLoop(task, feed(), compile="eager").run(epochs=1)
    changed = [v.path for v in task.model.weights if v.numpy().tobytes() != before[v.path]]
    assert changed == [v.path for v in task.model.weights if v.name == "bias"]


def test_the_study_switches_at_its_step_and_the_records_show_it(tmp_path, capsys):
    settings = config_file.get_config()
    settings.update({"epochs": 4, "hidden": (8, 8), "every": (0, 2, 1), "min_delta": 100.0, "batch_size": 320})
    runs = runner.train(study.build(settings), settings, workdir=tmp_path, compile="eager")
    said = capsys.readouterr().out
    # No loss is better by 100: it waits for two epochs after the first, and loads before the fourth.
    assert "Other weights were loaded after step 12, before epoch 4: loss " in said
    events = testing.read_events(tmp_path)
    assert [value for _, value in events["switch/train"]["epoch_weights_loaded"]] == [0, 0, 0, 1]
    assert runs["switch"].history.history["loss"][3] < runs["policy"].history.history["loss"][0]
    assert "Bitwise what they were at first: classifier/dense/kernel, classifier/dense/bias.\ndense_1: 8 updates in 16 steps." in said
    assert [value for _, value in events["policy/train"]["batch_updates_dense_1"]] == [1, 0] * 8
    kernels = [[w for w in runs[name].study.model.get_weights() if w.ndim == 2] for name in ("policy", "biases")]
    assert all(np.array_equal(a, b) for a, b in zip(*kernels, strict=True))


@pytest.mark.parametrize("every", [(1, 1), (0, 0, 0), (1, -1, 1)])
def test_rhythms_that_do_not_fit_are_refused(every):
    settings = config_file.get_config()
    settings.every = every
    with pytest.raises(InputError, match="config.every needs a number of steps, or 0, for each of 3 layers"):
        study.build(settings)
    assert partial_updates.Remembered([]).weights == []
