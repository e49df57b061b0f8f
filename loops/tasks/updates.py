"""Lets an optimizer apply gradients: at once, only where a condition holds, or when enough of them have been accumulated.

The gradients are already summed over replicas. A Keras optimizer would sum them once more, which is switched off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.tasks import fused_updates, replicas
from loops.tasks.clipping import transformed
from loops.tasks.step_context import StepContext, current, inside_step

__all__ = ["DirectUpdatesRefused", "accumulates", "innermost", "scaled", "scales_loss", "update"]

Pairs = Sequence[tuple[Any, Any]]


class DirectUpdatesRefused:
    """A context in which a step on several replicas cannot call optimizers by itself.

    A Keras optimizer adds up the gradients of the replicas. In a task's own step a loss is the mean over the replica's own examples, so
    that its update would be as many times too large as there are replicas.

    Args:
        optimizers: the optimizers of the task.
    """

    def __init__(self, optimizers: Iterable[keras.optimizers.Optimizer]):
        self._optimizers = [optimizer for optimizer in optimizers if "apply" not in vars(optimizer)]

    def __enter__(self) -> None:
        for optimizer in self._optimizers:
            vars(optimizer)["apply"] = self._refusing(optimizer, optimizer.apply)  # not by setattr: Keras would track it

    def __exit__(self, *exception: object) -> None:
        for optimizer in self._optimizers:
            del vars(optimizer)["apply"]

    def _refusing(self, optimizer: keras.optimizers.Optimizer, apply: Callable[..., Any]) -> Callable[..., Any]:
        def refuse_or_apply(*args: Any, **kwargs: Any) -> Any:
            if inside_step() and not current("apply").updating and not _private_api.keras_scales_losses():
                raise ValueError(
                    f"The step calls {type(optimizer).__name__} by itself, which adds up the gradients of "
                    f"{current('apply').replicas} replicas, each the gradient of a mean over its own examples. Call "
                    "self.apply_gradients(grads, variables, optimizer) or self.minimize, which average them."
                )
            return apply(*args, **kwargs)

        return refuse_or_apply


def innermost(optimizer: Any) -> Any:
    """The optimizer that updates variables: the one inside a `keras.optimizers.LossScaleOptimizer`."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def accumulates(optimizer: Any) -> bool:
    """Whether the optimizer updates variables only once in several steps."""
    return bool(innermost(optimizer).gradient_accumulation_steps)


def update(optimizer: Any, pairs: Pairs, when: Any, context: StepContext) -> None:
    """One call of the optimizer.

    Args:
        optimizer: a Keras optimizer, built.
        pairs: (gradient or None, variable).
        when: None, or a scalar bool; where it is False, nothing changes.
        context: the context of the step.
    """
    if context.replicas == 1:
        clip = _clip_what_is_accumulated(optimizer, pairs, context)
        if when is None:
            _apply(optimizer, pairs, clip, context)
        else:
            tf.cond(when, lambda: _apply(optimizer, pairs, clip, context), lambda: tf.constant(True))
        return
    if when is not None:
        agreeing = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(when, tf.int32))
        when = agreeing >= context.replicas
    context.updating = True
    try:
        (_accumulate if accumulates(optimizer) else _apply_on_replicas)(optimizer, pairs, when, context)
    finally:
        context.updating = False


def _apply(optimizer: Any, pairs: Pairs, clip: contextlib.AbstractContextManager[None], context: StepContext) -> tf.Tensor:
    with clip:
        if context.fuse:
            fused_updates.apply_gradients(optimizer, pairs)
        else:
            optimizer.apply_gradients(pairs)
    return tf.constant(True)


def _clip_what_is_accumulated(optimizer: Any, pairs: Pairs, context: StepContext) -> contextlib.AbstractContextManager[None]:
    """Has an optimizer that accumulates apply the transforms of the loop to the mean of what it has accumulated, as it clips that."""
    if not (accumulates(optimizer) and context.transforms):
        return contextlib.nullcontext()
    inner, variables = innermost(optimizer), [v for g, v in pairs if g is not None]
    own = _private_api.own_clipping_of(inner)
    return _private_api.clipping_replaced(inner, lambda gradients: own(transformed(context.transforms, gradients, variables)))


def _apply_on_replicas(optimizer: Any, pairs: Pairs, when: Any, context: StepContext) -> None:
    if when is None:
        _apply_reduced(optimizer, pairs)
        return
    # Collectives are not allowed inside tf.cond: update always, then restore the old values where `when` is False.
    touched = [replicas.backing(v) for v in [*(v for _, v in pairs), *optimizer.variables]]
    before = [tf.identity(v.read_value()) for v in touched]
    with tf.control_dependencies(before):
        _apply_reduced(optimizer, [(None if g is None else tf.identity(g), v) for g, v in pairs])
    values = [tf.where(when, v.read_value(), old) for v, old in zip(touched, before, strict=True)]
    _assign(touched, values)


def _apply_reduced(optimizer: Any, pairs: Pairs) -> None:
    with _private_api.reduction_off(innermost(optimizer)):
        optimizer.apply_gradients(pairs)


def _accumulate(optimizer: Any, pairs: Pairs, when: Any, context: StepContext) -> None:
    """What Keras does on one device with `gradient_accumulation_steps`; on several replicas it fails."""
    if optimizer is not innermost(optimizer) or optimizer.use_ema:
        raise ValueError(
            f"{type(optimizer).__name__} accumulates gradients (gradient_accumulation_steps). Under {context.replicas} replicas that works "
            "without loss scaling and without use_ema only: take a larger batch in place of gradient_accumulation_steps."
        )
    steps, present = optimizer.gradient_accumulation_steps, [(g, v) for g, v in pairs if g is not None]
    variables = [v for _, v in present]
    accumulators = [replicas.backing(_private_api.accumulators_of(optimizer)[_private_api.place_of(v, optimizer)]) for v in variables]
    old = [tf.identity(a.read_value()) for a in accumulators]
    sums = [tf.convert_to_tensor(g) + a for (g, _), a in zip(present, old, strict=True)]
    counter = _private_api.counter_of(optimizer)
    is_last = tf.equal((tf.convert_to_tensor(counter) + 1) % steps, 0)
    wanted = tf.constant(True) if when is None else when
    mean = transformed(context.transforms, [s / steps for s in sums], variables)
    with _private_api.accumulation_off(optimizer):
        _apply_on_replicas(optimizer, list(zip(mean, variables, strict=True)), is_last & wanted, context)
    kept = [tf.where(wanted, tf.where(is_last, tf.zeros_like(s), s), a) for s, a in zip(sums, old, strict=True)]
    _assign(accumulators, kept)
    counter.assign_add(tf.cast(wanted & ~is_last, counter.dtype))


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Assigns to variables that have a copy on each replica, whatever their aggregation is."""

    def assign(strategy: Any, values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable, lambda v, x: v.assign(x), args=(value,), group=False)

    tf.distribute.get_replica_context().merge_call(assign, args=(list(values),))


def scaled(gradient: Any, factor: Any, zero_if: Any = None) -> Any:
    """A gradient times a factor, sparse gradients included; zero where `zero_if`."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    scaled = values * tf.cast(factor, values.dtype)
    if zero_if is not None:
        scaled = tf.where(zero_if, tf.zeros_like(scaled), scaled)
    return tf.IndexedSlices(scaled, gradient.indices, gradient.dense_shape) if isinstance(gradient, tf.IndexedSlices) else scaled


def scales_loss(optimizer: Any) -> bool:
    """Whether the optimizer expects gradients of a scaled loss."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or optimizer.loss_scale_factor is not None
