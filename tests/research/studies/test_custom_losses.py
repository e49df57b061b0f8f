"""A loss as a function, as a subclass and in a layer: the formula is right, and the three train the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

import loops
from research import runner, study
from research.configs import custom_losses as config_file
from research.studies import custom_losses
from research.studies.classification import make_model
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({"epochs": 3, "hidden": (32,), **{name.replace("__", "."): value for name, value in changes.items()}})
    return made


def predictions(n: int = 50, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    p = random.dirichlet(np.ones(classes), n)
    return random.randint(0, classes, n), p.astype("float32")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_formula(gamma):
    y, p = predictions()
    chosen = p[np.arange(len(y)), y].astype(np.float64)
    np.testing.assert_allclose(custom_losses.focal_loss(y, p, gamma), -((1 - chosen) ** gamma) * np.log(chosen), rtol=1e-4)


def test_without_focus_it_is_the_cross_entropy_of_keras():
    y, p = predictions()
    expected = keras.losses.sparse_categorical_crossentropy(y, p)
    np.testing.assert_allclose(custom_losses.FocalLoss(0.0, reduction=None)(y, p), expected, rtol=1e-5)


def test_a_probability_of_zero_is_expensive_but_finite():
    with tf.GradientTape() as tape:
        p = tf.constant([[0.0, 1.0]])
        tape.watch(p)
        loss = custom_losses.focal_loss([0], p)
    assert np.isfinite(loss) and np.all(np.isfinite(tape.gradient(loss, p)))


def test_the_three_train_the_same(capsys):
    made = config(batch_size=420, epochs=2)
    runs = runner.train(study.build(made), made, compile="eager")
    first = runs["function"]
    assert first.history.history["loss"][-1] < first.history.history["loss"][0]
    for name in ("subclass", "layer"):
        assert runs[name].history.history == first.history.history, name
        assert all(
            np.array_equal(a, b) for a, b in zip(runs[name].study.model.get_weights(), first.study.model.get_weights(), strict=True)
        ), name
        assert runs[name].test == first.test
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in runs) and "the same bits" in said


def test_the_layer_leaves_a_classifier_that_needs_no_labels():
    classifier = make_model((8, 8), 10, hidden=(16,))
    model = custom_losses.with_loss_layer(classifier, 2.0)
    x, y = np.random.RandomState(0).rand(40, 8, 8).astype("float32"), np.arange(40, dtype="int32") % 10
    task = loops.SupervisedTask(model, loss=None, optimizer=keras.optimizers.Adam(0.01))
    before = classifier.predict(x, verbose=0)
    loops.TrainLoop(task, loops.ArrayFeed(((x, y), y), batch_size=20), compile="graph").run(epochs=2)
    after = classifier.predict(x, verbose=0)
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(after, model.predict((x, y), verbose=0))


def test_losses_are_saved_with_their_parameter(tmp_path):
    model = custom_losses.with_loss_layer(make_model((4,), 3, hidden=(5,)), 1.5)
    model.compile("sgd")
    model.save(tmp_path / "layer.keras")
    assert keras.saving.load_model(tmp_path / "layer.keras").layers[-1].gamma == 1.5
    again = keras.losses.deserialize(keras.losses.serialize(custom_losses.FocalLoss(0.5)))
    assert isinstance(again, custom_losses.FocalLoss) and again.gamma == 0.5


@pytest.mark.parametrize(("changes", "said"), [({"dataset": "diabetes"}, "regression"), ({"optimizer__name": "sdg"}, "'sdg'")])
def test_what_cannot_be_used_is_named(changes, said):
    made = config(**changes)
    with pytest.raises(InputError, match=said):
        built = study.build(made)
        built.make("function", {}, seed=0)
