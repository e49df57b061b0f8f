"""Updates of Keras's SGD and Adam with fewer passes over memory and bit-identical results.

In graph mode Keras updates each variable by a dozen small ops, each of which reads and writes whole arrays. This module replaces them by:

    SGD, with momentum or Nesterov     one TensorFlow kernel for each variable
    Adam, AdamW, small variables       step size computed once for all, each product and sum in one kernel
    Adam, AdamW, large variables       one XLA program for all of them

Keras still does what surrounds the update: clipping, weight decay, averages of weights, the count of iterations. XLA may contract a product
and a sum into one instruction that rounds once, where Keras's ops round twice. To prevent that, the program XORs the bits of each product
with a zero that it gets as an argument, so that XLA does not know its value.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api

__all__ = ["apply_gradients"]

# A variable with fewer elements stays outside the XLA program: to pass it in takes longer than the program saves.
SMALLEST_FOR_XLA = 10_000

# SGD is fused only for gradients that are outputs of these ops. A gradient that is itself a product (that of a factor, for example) may be
# multiplied by the learning rate in another order by TensorFlow's graph optimizer; the fused kernel would prevent that and change bits.
NOT_REORDERED = frozenset(
    {"MatMul", "BiasAddGrad", "Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter", "Conv3DBackpropFilterV2"}
)

Pair = tuple[Any, tf.Variable]
Update = Callable[[Any, Sequence[Pair], Any], None]


def apply_gradients(optimizer: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Does `optimizer.apply_gradients(pairs)`, faster where that changes no bit. For graphs on one device.

    Args:
        optimizer: a Keras optimizer, built.
        pairs: (gradient or None, variable).
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    update = _update_of(inner)
    if update is None:
        optimizer.apply_gradients(pairs)
        return
    plain = _private_api.update_step_of(inner)

    def update_step(gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> None:
        given = list(zip(gradients, variables, strict=True))
        fused = [(g, v) for g, v in given if _is_plain(g, v) and (update is _adam or g.op.type in NOT_REORDERED)]
        chosen = {id(v) for _, v in fused}
        if rest := [(g, v) for g, v in given if id(v) not in chosen]:
            plain([g for g, _ in rest], [v for _, v in rest], learning_rate)
        if fused:
            update(inner, fused, learning_rate)

    with _private_api.update_step_replaced(inner, update_step):
        optimizer.apply_gradients(pairs)


def _update_of(optimizer: Any) -> Update | None:
    """The fused update for an optimizer; None if its own update is not Keras's, or the bits might differ."""
    if platform.machine().lower() not in ("x86_64", "amd64") or tf.config.list_logical_devices("GPU"):
        return None  # elsewhere a compiler may contract products and sums within Keras's own ops
    own = getattr(type(optimizer), "update_step", None)
    if "update_step" in vars(optimizer):
        return None
    if own is keras.optimizers.SGD.update_step:
        return _sgd
    if own is keras.optimizers.Adam.update_step and not optimizer.amsgrad:
        return _adam
    return None


def _is_plain(gradient: Any, variable: Any) -> bool:
    dense = isinstance(gradient, tf.Tensor) and isinstance(variable, keras.Variable)
    # Only the strategy may update a mirrored variable, even on one device.
    if not dense or isinstance(variable.value, tf.distribute.DistributedValues):
        return False
    return gradient.dtype == variable.value.dtype == tf.float32 and gradient.shape.is_fully_defined()


def _sgd(optimizer: Any, pairs: Sequence[Pair], learning_rate: Any) -> None:
    rate = tf.cast(learning_rate, tf.float32)
    for gradient, variable in pairs:
        handle = variable.value.handle
        if not optimizer.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=rate, delta=gradient)
            continue
        momentum = optimizer.momentums[_private_api.place_of(variable, optimizer)].value.handle
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=handle, accum=momentum, lr=rate, grad=gradient, momentum=optimizer.momentum, use_nesterov=optimizer.nesterov
        )


def _adam(optimizer: Any, pairs: Sequence[Pair], learning_rate: Any) -> None:
    count = tf.cast(optimizer.iterations + 1, tf.float32)
    powers = [tf.pow(tf.cast(beta, tf.float32), count) for beta in (optimizer.beta_1, optimizer.beta_2)]
    alpha = tf.cast(learning_rate, tf.float32) * tf.sqrt(1 - powers[1]) / (1 - powers[0])
    rates, epsilon = (1 - optimizer.beta_1, 1 - optimizer.beta_2), optimizer.epsilon
    large = []
    for gradient, variable in pairs:
        moments = _private_api.adam_slots(optimizer, _private_api.place_of(variable, optimizer))
        slots = (variable.value, *(moment.value for moment in moments))
        if variable.value.shape.num_elements() >= SMALLEST_FOR_XLA:
            large.append((gradient, slots))
            continue
        value, momentum, velocity = slots
        _add_product(momentum, gradient - momentum, rates[0])
        _add_product(velocity, tf.square(gradient) - velocity, rates[1])
        value.assign_sub((momentum * alpha) / (tf.sqrt(velocity) + epsilon))
    if not large:
        return

    def update(gradients: list[tf.Tensor], alpha: tf.Tensor, zero: tf.Tensor) -> None:
        def rounded(product: tf.Tensor) -> tf.Tensor:
            return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, tf.int32), zero), tf.float32)

        for gradient, (_, (value, momentum, velocity)) in zip(gradients, large, strict=True):
            first = momentum + rounded((gradient - momentum) * rates[0])
            second = velocity + rounded((rounded(tf.square(gradient)) - velocity) * rates[1])
            momentum.assign(first)
            velocity.assign(second)
            value.assign_sub((first * alpha) / (tf.sqrt(second) + epsilon))

    tf.function(update, jit_compile=True, autograph=False)([gradient for gradient, _ in large], alpha, tf.constant(0, tf.int32))


def _add_product(variable: tf.Variable, values: tf.Tensor, factor: float) -> None:
    # The kernel subtracts `alpha * delta`. A negative alpha makes that a sum, and negation does not round.
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=-factor, delta=values)
