"""Keras's optimizers with fewer passes over memory, and the same bits.

In graph mode Keras updates each variable by a dozen small ops, each of which reads and writes whole arrays. In their place:

    SGD, with momentum or Nesterov     one TensorFlow kernel for each variable
    Adam, AdamW, small variables       what they have in common computed once, a product and a sum in one kernel
    Adam, AdamW, large variables       one XLA program for all of them

What Keras does around the update (clipping, weight decay, averages, the count of iterations) stays Keras's. XLA may contract a product and
a sum into one instruction that rounds once where Keras's ops round twice; so the bits of each product are combined with a zero that XLA
does not know to be one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api

__all__ = ["apply_gradients"]

# Elements of a variable below which it takes longer to hand it to an XLA program than that saves.
SMALLEST_FOR_XLA = 10_000

# What SGD multiplies by the learning rate. If that is a product itself, as for a scale, TensorFlow may multiply in another order, which a
# kernel of its own would prevent.
NOT_REORDERED = frozenset(
    {"MatMul", "BiasAddGrad", "Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter", "Conv3DBackpropFilterV2"}
)

Pair = tuple[Any, tf.Variable]
Update = Callable[[Any, Sequence[Pair], Any], None]


def apply_gradients(optimizer: Any, pairs: Sequence[tuple[Any, Any]]) -> None:
    """`optimizer.apply_gradients(pairs)`, faster where that changes no bit. For a graph on one device.

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
    """The update that stands for the optimizer's own, if that is Keras's and its bits are known to be the same."""
    if platform.machine().lower() not in ("x86_64", "amd64") or tf.config.list_logical_devices("GPU"):
        return None  # elsewhere a compiler may contract Keras's own kernels
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
    # A mirrored variable, though on one device, is the strategy's to update.
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
    # Minus a product with the opposite sign: negation rounds nothing.
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=-factor, delta=values)
