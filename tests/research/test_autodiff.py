"""Derivatives by tapes equal their formulas, and a classifier that is trained on one of them depends less on its inputs."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

import loops
from research import autodiff, closed_forms, derivatives, runner, study
from research.configs import autodiff as config_file
from research.study import InputError

CHECKS = closed_forms.checks(seed=1)


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.technique}, {check.what}, {check.formula}")
def test_tapes_give_what_the_formula_says(check):
    assert check.expected.shape == check.found.shape
    assert check.difference < 1e-12


def test_a_difference_shows():
    check = CHECKS[0]
    wrong = closed_forms.Check(check.technique, check.what, check.formula, check.expected, check.found + 1e-6)
    assert wrong.difference > 1e-8


def test_the_table_has_a_line_for_each_check():
    lines = closed_forms.table(CHECKS)
    assert len(lines) == len(CHECKS) + 1
    assert all(check.formula in line for check, line in zip(CHECKS, lines[1:], strict=True))


@pytest.fixture(scope="module")
def net():
    """A small Keras model, its loss by example, and the Hessian of the mean loss by brute force."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")

    def losses(rows=slice(None)):
        return tf.reduce_sum((model(x[rows]) - y[rows, :1]) ** 2, -1)

    variables = model.trainable_variables
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = tf.reduce_mean(losses())
        flat = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(value, variables)], 0)
    blocks = outer.jacobian(flat, variables, experimental_use_pfor=False)
    return variables, losses, np.concatenate([np.reshape(block, [len(flat), -1]) for block in blocks], 1)


def test_a_hessian_vector_product_of_a_keras_model_is_that_of_its_whole_hessian(net):
    variables, losses, whole = net
    vectors = [tf.random.stateless_normal(v.shape, [i, 1]) for i, v in enumerate(variables)]
    products = derivatives.hessian_vector_product(lambda: tf.reduce_mean(losses()), variables, vectors)
    flat = [np.concatenate([np.ravel(part) for part in parts]) for parts in (products, vectors)]
    np.testing.assert_allclose(flat[0], whole @ flat[1], rtol=1e-4, atol=1e-5)


def test_the_largest_curvature_of_a_keras_model_is_the_largest_eigenvalue_of_its_hessian(net):
    variables, losses, whole = net
    eigenvalues = np.linalg.eigvalsh(whole)
    found = derivatives.largest_curvature(lambda: tf.reduce_mean(losses()), variables, iterations=200)
    assert float(found) == pytest.approx(max(eigenvalues, key=abs), rel=1e-4)


def test_per_example_gradients_are_those_of_one_example_at_a_time(net):
    variables, losses, _ = net
    together = derivatives.per_example_gradients(losses, variables)
    for i in range(6):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses(slice(i, i + 1)))
        for alone, row in zip(tape.gradient(loss, variables), together, strict=True):
            np.testing.assert_allclose(row[i], alone, rtol=1e-5, atol=1e-6)


def test_a_training_step_goes_down_the_slope_of_loss_and_penalty_together():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 5)).astype("float32"), random.integers(0, 3, 8).astype("int32")
    model = autodiff.make_model((5,), 3, hidden=(), activation="elu")
    before = model.layers[-1].kernel.numpy().astype("float64")
    task = autodiff.PenalizedTask(model, keras.optimizers.SGD(1.0), penalty=0.5, shift=0.1)
    loops.TrainLoop(task, loops.ArrayFeed((x, y), batch_size=8)).run(steps=1)

    def total(kernel):
        z = x.astype("float64") @ kernel
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        slopes = (p - np.eye(3)[y]) @ kernel.T
        return -np.log(p[np.arange(8), y]).mean() + 0.5 * (slopes**2).sum(-1).mean()

    expected = np.zeros_like(before)
    for place in np.ndindex(*before.shape):
        step = np.zeros_like(before)
        step[place] = 1e-5
        expected[place] = (total(before + step) - total(before - step)) / 2e-5
    np.testing.assert_allclose(before - model.layers[-1].kernel.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_with_the_penalty_inputs_may_be_moved_further(tmp_path):
    runs = runner.train(study.build(small := config(epochs=4, hidden=(50,))), small, workdir=tmp_path / "run")
    plain, penalized = runs["plain"].test, runs["penalized"].test
    assert penalized["squared_slope"] < 0.5 * plain["squared_slope"]
    assert penalized["shifted_accuracy"] > plain["shifted_accuracy"]
    assert (tmp_path / "run" / "plots" / "slopes.png").is_file()


def test_a_move_against_the_slope_is_the_worst_of_its_size_for_a_linear_model():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 4)).astype("float32"), random.integers(0, 2, 200).astype("int32")
    model = autodiff.make_model((4,), 2, hidden=(), activation="elu")
    task = autodiff.PenalizedTask(model, keras.optimizers.SGD(), penalty=0.0, shift=0.25)
    found = loops.EvalLoop(task).run(loops.ArrayFeed((x, y), batch_size=64))
    kernel = model.layers[-1].kernel.numpy()
    margin = (x @ kernel)[np.arange(200), y] - (x @ kernel)[np.arange(200), 1 - y]
    lost = 0.25 * np.abs(kernel[:, 0] - kernel[:, 1]).sum()
    assert found["shifted_accuracy"] == pytest.approx((margin > lost).mean())
    assert found["accuracy"] == pytest.approx((margin > 0).mean())


@pytest.mark.parametrize(
    ("changes", "said"), [({"dataset": "diabetes"}, "regression"), ({"penalty": 0.0}, "config.penalty is 0"), ({"dataset": "x"}, "'x'")]
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


def test_the_config_names_its_own_study():
    assert pathlib.Path(autodiff.__file__).stem == config_file.get_config().study
