"""The wide & deep study: its forms are one net, and with two outputs each loss is logged by itself."""

from __future__ import annotations

import contextlib
import io

import keras
import numpy as np
import pytest

import loops
from research import runner, study
from research.configs import wide_deep as config_file
from research.data import datasets
from research.studies import wide_deep
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 3, **changes})
    return made


def test_the_same_seed_gives_all_forms_of_one_input_the_same_weights():
    one, other = (study.build(config(form=form), seed=1).model for form in ("functional", "subclassed"))
    assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def test_the_output_sees_the_wide_columns_themselves_and_the_deep_ones_through_hidden_layers():
    model = wide_deep.multi_input(2, 3, hidden=(4,), mean=7.0, deviation=2.0)
    rng = np.random.RandomState(0)
    wide, deep = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    kernel, bias, out_kernel, out_bias = model.get_weights()
    path = np.maximum(deep @ kernel + bias, 0)
    expected = 7 + 2 * (np.concatenate([wide, path], axis=1) @ out_kernel + out_bias)
    np.testing.assert_allclose(model({"wide": wide, "deep": deep}).numpy(), expected, rtol=1e-5)


def test_with_all_columns_on_both_ways_two_inputs_are_the_functional_form():
    kwargs = {"hidden": (4, 4), "mean": 1.0, "deviation": 3.0}
    functional, multi = wide_deep.functional(5, **kwargs), wide_deep.multi_input(5, 5, **kwargs)
    multi.set_weights(functional.get_weights())
    x = np.random.RandomState(0).normal(size=(6, 5)).astype(np.float32)
    np.testing.assert_array_equal(functional(x).numpy(), multi({"wide": x, "deep": x}).numpy())


@pytest.fixture(scope="module")
def compared():
    """All forms, trained on equal batches (Keras averages the losses of two outputs over batches), and what was printed."""
    settings, said = config(epochs=2, batch_size=154), io.StringIO()
    with contextlib.redirect_stdout(said):
        return runner.train(study.build(settings), settings, compile="eager"), said.getvalue()


def test_two_losses_are_logged_apart_and_weighted_in_their_sum(compared):
    run = compared[0]["multi_output"]
    assert run.loop.feed.n_examples % 154 == 0
    history = run.history.history
    main, aux, total = (np.array(history[name]) for name in ("main_loss", "aux_loss", "loss"))
    np.testing.assert_allclose(total, 0.9 * main + 0.1 * aux, rtol=1e-5)
    assert not np.allclose(main, aux)
    for prefix in ("", "val_"):
        main, aux, total = (np.array(history[f"{prefix}{name}"]) for name in ("main_rmse", "aux_rmse", "loss"))
        np.testing.assert_allclose(total, 0.9 * main**2 + 0.1 * aux**2, rtol=1e-5)


def test_two_outputs_learn_as_keras_fit_has_it():
    ours = study.build(config(form="multi_output"), seed=1)
    theirs = keras.models.clone_model(ours.model)
    theirs.set_weights(ours.model.get_weights())
    theirs.compile("adam", loss={"main": "mse", "aux": "mse"}, loss_weights={"main": 0.9, "aux": 0.1}, jit_compile=False)
    data = datasets.load("diabetes", normalization="zscore")
    x, y = wide_deep._batches(data.train, "multi_output", config())
    feed = loops.ArrayFeed((x, y), batch_size=32)
    history = loops.TrainLoop(ours.task, feed, compile="graph").run(epochs=2).history
    expected = theirs.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history
    for name in ("loss", "main_loss", "aux_loss"):
        np.testing.assert_array_equal(history[name], expected[name])
    for a, b in zip(ours.model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", wide_deep.FORMS)
def test_the_table_as_it_is_stored_can_be_given_to_what_is_exported(form):
    made = study.build(config(form=form), seed=1)
    x = wide_deep._batches(datasets.load("diabetes", normalization="zscore").test, form, config())[0]
    np.testing.assert_allclose(made.examples, datasets.load("diabetes").test.x[:16], rtol=1e-5, atol=1e-7)
    ours, theirs = (keras.tree.flatten(made.model(inputs)) for inputs in (made.preprocessing(made.examples), x))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other[:16], rtol=1e-4)


def test_the_subclassed_form_is_saved_and_loaded(tmp_path):
    model = study.build(config(form="subclassed"), seed=1).model
    model.save(tmp_path / "model.keras")
    x = np.ones([3, 10], np.float32)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x).numpy(), model(x).numpy())


def test_all_forms_are_trained_and_compared(compared):
    runs, printed = compared
    assert list(runs) == list(wide_deep.FORMS)
    assert "Functional and subclassed: the same losses in every epoch and the same weights, bit for bit." in printed
    assert f"{runs['multi_output'].test['aux_rmse']:.4f}" in printed


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"form": "sequential"}, "'sequential'"), ({"deep_columns": 11}, "1 to 10"), ({"wide_columns": 0}, "1 to 10")],
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
