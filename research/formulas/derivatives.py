"""What gradient tapes give beyond one gradient: several at once, higher orders, Jacobians, products with a Hessian, own rules.

Each function is a few lines to copy. What they compute is set beside formulas in `research/formulas/closed_forms.py`, and trained with in
`research/studies/autodiff.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "derivatives",
    "gradient_penalty",
    "gradients_of_each",
    "hessian",
    "hessian_vector_product",
    "jacobian",
    "largest_curvature",
    "log1pexp",
    "per_example_gradients",
    "squared_input_gradient",
    "straight_through_round",
]

Function = Callable[[tf.Tensor], tf.Tensor]
Loss = Callable[[], tf.Tensor]


def gradients_of_each(losses: Callable[[], Mapping[str, tf.Tensor]], variables: Sequence[Any]) -> dict[str, list[tf.Tensor]]:
    """The gradients of several losses that share a computation, which a persistent tape records once.

    Args:
        losses: computes name -> scalar.
        variables: what to differentiate by.

    Returns:
        name -> gradients, in the order of the variables; zeros where a loss does not depend on one.

    Example:
        >>> x = tf.Variable(3.0)
        >>> {name: float(g) for name, [g] in gradients_of_each(lambda: {"square": x**2, "cube": x**3}, [x]).items()}
        {'square': 6.0, 'cube': 27.0}
    """
    with tf.GradientTape(persistent=True) as tape:
        values = losses()
    return {name: tape.gradient(value, variables, unconnected_gradients="zero") for name, value in values.items()}


def derivatives(function: Function, x: tf.Tensor, order: int) -> list[tf.Tensor]:
    """`function(x)` and its derivatives up to `order`, elementwise: one tape inside the other.

    Args:
        function: works on each element by itself.
        x: floats, of any shape.
        order: of the highest derivative.

    Example:
        >>> [float(d) for d in derivatives(lambda x: x**3, tf.constant(2.0), 3)]
        [8.0, 12.0, 12.0, 6.0]
    """
    if order == 0:
        return [function(x)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        below = derivatives(function, x, order - 1)
    return [*below, tape.gradient(below[-1], x, unconnected_gradients="zero")]


def jacobian(function: Function, x: tf.Tensor) -> tf.Tensor:
    """The derivative of each output of an example by each of its inputs.

    Args:
        function: maps `[B, n]` to `[B, m]`, each row by itself.
        x: `[B, n]`.

    Returns:
        `[B, m, n]`.
    """
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.batch_jacobian(y, x)


def per_example_gradients(losses: Loss, variables: Sequence[Any]) -> list[tf.Tensor]:
    """The gradient of every example's loss: what privacy, influence and noise estimates need, and a sum hides.

    Args:
        losses: computes the losses `[B]`.
        variables: what to differentiate by.

    Returns:
        For each variable `[B, *shape]`.
    """
    with tf.GradientTape() as tape:
        values = losses()
    return tape.jacobian(values, variables, unconnected_gradients="zero")


def hessian(loss: Loss, variable: Any) -> tf.Tensor:
    """All second derivatives of a scalar by one variable `[n]`, as `[n, n]`: the Jacobian of its gradient."""
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = loss()
        gradient = inner.gradient(value, variable)
    return outer.jacobian(gradient, variable)


def hessian_vector_product(loss: Loss, variables: Sequence[Any], vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """`H v` for the Hessian `H` of a scalar, which is never built: the derivative of the gradient in the direction `v`.

    Forward over reverse: costs about as much as two gradients, and memory for one.

    Args:
        loss: computes a scalar.
        variables: what to differentiate by.
        vectors: `v`, in the shapes of the variables.

    Returns:
        In the shapes of the variables.

    References:
        Pearlmutter 1994, Fast exact multiplication by the Hessian.
    """
    # Forward accumulation knows tensors and TensorFlow's own variables only.
    primals = [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables]
    with tf.autodiff.ForwardAccumulator(primals, list(vectors)) as accumulator:
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, primals, unconnected_gradients="zero")
    return [accumulator.jvp(g, unconnected_gradients="zero") for g in gradients]


def largest_curvature(loss: Loss, variables: Sequence[Any], *, iterations: int = 30, seed: int = 0) -> tf.Tensor:
    """The eigenvalue of a loss's Hessian that is largest in size, by power iteration; a scalar.

        v = H v / |H v|, again and again;  the eigenvalue is v' H v

    Args:
        loss: computes a scalar.
        variables: what to differentiate by.
        iterations: products with the Hessian.
        seed: of the direction to begin with.
    """
    shapes = [variable.shape for variable in variables]
    vectors = [tf.random.stateless_normal(shape, [seed, i], dtype=variables[i].dtype) for i, shape in enumerate(shapes)]
    product = tf.function(lambda *given: hessian_vector_product(loss, variables, given))
    eigenvalue = tf.zeros([], variables[0].dtype)
    for _ in range(iterations):
        length = tf.linalg.global_norm(vectors)
        vectors = [vector / length for vector in vectors]
        products = product(*vectors)
        eigenvalue = tf.add_n([tf.reduce_sum(v * p) for v, p in zip(vectors, products, strict=True)])
        vectors = products
    return eigenvalue


def gradient_penalty(critic: Function, x: tf.Tensor) -> tf.Tensor:
    """How far a critic's slope is from 1: the mean over examples of `(|d critic / d x| - 1)^2`.

    Inside another tape it can be differentiated by the critic's weights.

    Args:
        critic: maps `[B, ...]` to `[B]` or `[B, 1]`.
        x: where the slope is taken.

    References:
        Gulrajani et al. 2017, arXiv:1704.00028.
    """
    # The square root has no slope at 0.
    return tf.reduce_mean((tf.sqrt(_squared_slopes(critic, x) + 1e-16) - 1.0) ** 2)


def squared_input_gradient(losses: Function, x: tf.Tensor) -> tf.Tensor:
    """How much losses depend on the inputs: the mean over examples of `|d loss / d x|^2`; double back-propagation.

    Args:
        losses: maps inputs `[B, ...]` to losses `[B]`.
        x: the inputs.

    References:
        Drucker and LeCun 1992, Improving generalization performance using double backpropagation; Ross and Doshi-Velez 2017,
        arXiv:1711.09404.
    """
    return tf.reduce_mean(_squared_slopes(losses, x))


def _squared_slopes(function: Function, x: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    # Examples do not meet in the function, so the gradient of the sum holds each one's own.
    slopes = tape.gradient(y, x)
    return tf.reduce_sum(tf.reshape(slopes, [tf.shape(x)[0], -1]) ** 2, -1)


@tf.custom_gradient
def log1pexp(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """`log(1 + exp(x))` with a rule of its own, `sigmoid(x)`: the tape's rule for the formula as it stands is inf / inf for large `x`.

    Example:
        >>> x = tf.constant(100.0)
        >>> [float(derivatives(f, x, 1)[1]) for f in (lambda x: tf.math.log(1 + tf.exp(x)), log1pexp)]
        [nan, 1.0]
    """
    return tf.maximum(x, 0.0) + tf.math.log1p(tf.exp(-tf.abs(x))), lambda upstream: upstream * tf.sigmoid(x)


@tf.custom_gradient
def straight_through_round(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The nearest whole number, with the slope of `x` itself; that of rounding is 0 and teaches nothing.

    References:
        Bengio et al. 2013, arXiv:1308.3432.

    Example:
        >>> [float(d) for d in derivatives(straight_through_round, tf.constant(2.6), 1)]
        [3.0, 1.0]
    """
    return tf.round(x), lambda upstream: upstream
