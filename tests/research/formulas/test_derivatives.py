"""Derivatives by tapes equal their formulas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from research.formulas import closed_forms, derivatives


@pytest.fixture(scope="module")
def checks():
    return closed_forms.checks(seed=1)


def test_tapes_give_what_the_formulas_say(checks):
    assert len(checks) == 19
    for check in checks:
        assert check.expected.shape == check.found.shape, check.formula
        assert check.difference < 1e-12, check.formula


def test_a_difference_shows(checks):
    check = checks[0]
    wrong = closed_forms.Check(check.technique, check.what, check.formula, check.expected, check.found + 1e-6)
    assert wrong.difference > 1e-8


def test_the_table_has_a_line_for_each_check(checks):
    lines = closed_forms.table(checks)
    assert len(lines) == len(checks) + 1
    assert all(check.formula in line for check, line in zip(checks, lines[1:], strict=True))


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
