"""Derivatives that have a formula, by NumPy, beside what tapes give for the same functions.

The functions are those of linear and logistic regression, small enough for paper. With `p = sigmoid(X w)` and `N` examples:

    logistic loss l    log(1 + exp(z)) - y z,  z = X w          dl/dw  (p - y) x           d2l/dw2  p (1 - p) x x'
    squared loss l     (z - y)^2                                dl/dw  2 (z - y) x         d2l/dw2  2 x x'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from research.formulas import derivatives as d

__all__ = ["Check", "checks", "table"]


@dataclasses.dataclass(frozen=True)
class Check:
    """A derivative, computed twice.

    Attributes:
        technique: how the tape was used.
        what: of which function.
        formula: what the derivative is.
        expected: its values by the formula.
        found: its values by tapes.
    """

    technique: str
    what: str
    formula: str
    expected: np.ndarray
    found: np.ndarray

    @property
    def difference(self) -> float:
        """The largest difference between the two, relative to the largest value (if that is above 1)."""
        return float(np.max(np.abs(self.expected - self.found)) / max(1.0, np.max(np.abs(self.expected))))


def table(rows: Iterable[Check]) -> list[str]:
    """The checks as lines of text, one each, under a headline."""
    cells = [("technique", "of", "formula", "difference")]
    cells += [(row.technique, row.what, row.formula, f"{row.difference:.1e}") for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def checks(seed: int = 0, *, examples: int = 50, features: int = 7) -> list[Check]:
    """Every technique of `research.formulas.derivatives` on random numbers, in float64.

    Args:
        seed: of the numbers.
        examples: rows of the regressions' data.
        features: columns of it.

    Example:
        >>> max(check.difference for check in checks()) < 1e-9
        True
    """
    random = np.random.default_rng(seed)
    return [*_elementwise(random), *_regressions(random, examples, features), *_penalties(random, examples, features)]


def _elementwise(random: np.random.Generator) -> list[Check]:
    x = random.normal(size=20)
    at = tf.constant(x)
    variable = tf.Variable(x)
    powers = d.gradients_of_each(
        lambda: {"square": tf.reduce_sum(variable**2), "fourth": tf.reduce_sum(tf.square(variable**2))}, [variable]
    )
    t = np.tanh(x)
    tanh = d.derivatives(tf.tanh, at, 3)
    s = 1 / (1 + np.exp(-x))
    softplus = d.derivatives(d.log1pexp, at, 2)
    rows = random.normal(size=(4, 5))
    p = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    softmax = p[:, :, None] * np.eye(5) - p[:, :, None] * p[:, None, :]
    large = d.derivatives(d.log1pexp, tf.constant([1000.0], tf.float64), 1)[1]
    return [
        Check(
            "persistent tape",
            "x^2 and x^4",
            "2 x, 4 x^3",
            np.stack([2 * x, 4 * x**3]),
            np.stack([powers["square"][0], powers["fourth"][0]]),
        ),
        Check("third order", "tanh x = t", "-2 (1 - t^2) (1 - 3 t^2)", -2 * (1 - t**2) * (1 - 3 * t**2), tanh[3].numpy()),
        Check("fifth order", "x^5", "120", np.full(20, 120.0), d.derivatives(lambda x: x**5, at, 5)[5].numpy()),
        Check("Jacobian", "p = softmax x", "diag(p) - p p'", softmax, d.jacobian(tf.nn.softmax, tf.constant(rows)).numpy()),
        Check("custom gradient", "log(1 + exp x)", "s = sigmoid x", s, softplus[1].numpy()),
        Check("custom, second order", "log(1 + exp x)", "s (1 - s)", s * (1 - s), softplus[2].numpy()),
        Check("custom, x = 1000", "log(1 + exp x)", "1 (the tape's: nan)", np.ones(1), large.numpy()),
        Check("custom gradient", "round x", "1 (straight through)", np.ones(20), d.derivatives(d.straight_through_round, at, 1)[1].numpy()),
    ]


def _regressions(random: np.random.Generator, examples: int, features: int) -> list[Check]:
    x, w, v = random.normal(size=(examples, features)), random.normal(size=features), random.normal(size=features)
    target, label = random.normal(size=examples), random.integers(0, 2, examples).astype(float)
    p = 1 / (1 + np.exp(-x @ w))
    weights, direction = tf.Variable(w), [tf.constant(v)]

    def squared() -> tf.Tensor:
        return (tf.linalg.matvec(tf.constant(x), weights) - target) ** 2

    def logistic() -> tf.Tensor:
        z = tf.linalg.matvec(tf.constant(x), weights)
        return tf.nn.softplus(z) - label * z

    @tf.function
    def by_tapes() -> dict[str, tf.Tensor]:
        def of_squared() -> tf.Tensor:
            return tf.reduce_mean(squared())

        def of_logistic() -> tf.Tensor:
            return tf.reduce_mean(logistic())

        return {
            "squared": d.per_example_gradients(squared, [weights])[0],
            "logistic": d.per_example_gradients(logistic, [weights])[0],
            "hessian": d.hessian(of_logistic, weights),
            "squared product": d.hessian_vector_product(of_squared, [weights], direction)[0],
            "logistic product": d.hessian_vector_product(of_logistic, [weights], direction)[0],
        }

    found = {name: value.numpy() for name, value in by_tapes().items()}
    steepest = d.largest_curvature(lambda: tf.reduce_mean(squared()), [weights], iterations=1000).numpy()
    gram, curvature = 2 * x.T @ x / examples, x.T * (p * (1 - p)) @ x / examples
    each, product = "per-example gradients", "Hessian-vector product"
    return [
        Check(each, "squared loss", "2 (z - y) x", 2 * (x @ w - target)[:, None] * x, found["squared"]),
        Check(each, "logistic loss", "(p - y) x", (p - label)[:, None] * x, found["logistic"]),
        Check("Hessian", "logistic loss", "mean p (1 - p) x x'", curvature, found["hessian"]),
        Check(product, "squared loss", "2 X' X v / N", gram @ v, found["squared product"]),
        Check(product, "logistic loss", "X' diag(p (1 - p)) X v / N", curvature @ v, found["logistic product"]),
        Check("power iteration", "squared loss", "largest eigenvalue of 2 X' X / N", np.linalg.eigvalsh(gram)[-1], steepest),
    ]


def _penalties(random: np.random.Generator, examples: int, features: int) -> list[Check]:
    x, w = random.normal(size=(examples, features)), random.normal(size=features)
    label = random.integers(0, 2, examples).astype(float)
    p = 1 / (1 + np.exp(-x @ w))
    length = np.linalg.norm(w)
    weights, inputs = tf.Variable(w), tf.constant(x)

    def linear(x: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(x, weights)

    def logistic(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softplus(linear(x)) - label * linear(x)

    with tf.GradientTape(persistent=True) as tape:
        of_linear = d.gradient_penalty(linear, inputs)
        of_sigmoid = d.gradient_penalty(lambda x: tf.sigmoid(linear(x)), inputs)
        of_loss = d.squared_input_gradient(logistic, inputs)
    slope, error = p * (1 - p), p - label
    by_w = 2 * np.mean((error * slope)[:, None] * x * length**2 + (error**2)[:, None] * w, 0)
    return [
        Check("gradient penalty", "critic w'x", "(|w| - 1)^2", np.square(length - 1), of_linear.numpy()),
        Check(
            "its gradient", "critic w'x", "2 (|w| - 1) w / |w|", 2 * (length - 1) * w / length, tape.gradient(of_linear, weights).numpy()
        ),
        Check(
            "gradient penalty", "critic sigmoid(w'x)", "mean (p (1 - p) |w| - 1)^2", np.mean((slope * length - 1) ** 2), of_sigmoid.numpy()
        ),
        Check("double back-propagation", "logistic loss", "mean (p - y)^2 |w|^2", np.mean(error**2) * length**2, of_loss.numpy()),
        Check(
            "its gradient",
            "logistic loss",
            "2 mean (e p (1 - p) |w|^2 x + e^2 w), e = p - y",
            by_w,
            tape.gradient(of_loss, weights).numpy(),
        ),
    ]
