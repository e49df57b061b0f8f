"""From a loss to an update: gradient, reduce over replicas, unscale, clip and transform, apply.

    gradients = d loss / d variables
    reduced   = sum over replicas of (examples of the replica / examples of all) * gradients
    updated   = optimizer.apply(transform(reduced / loss scale) * loss scale)

Gradients are reduced before they are clipped, transformed or observed, so every replica handles the gradients that one device would have.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops.tasks import fused_updates, replicas
from loops.tasks.step_context import StepContext, Transform, current

__all__ = ["ClipByGlobalNorm", "ClipByNorm", "ClipByValue", "apply_gradients", "as_transforms", "minimize"]

no_autograph: Callable[..., Any] = tf.autograph.experimental.do_not_convert


class ClipByGlobalNorm:
    """Scales all gradients by `min(1, norm / global_norm)`.

    Args:
        norm: bound of the joint L2 norm, greater than 0.

    References:
        Pascanu et al. 2012, arXiv:1211.5063.

    Example:
        >>> import tensorflow as tf
        >>> [float(g) for g in ClipByGlobalNorm(5.0)([tf.constant(6.0), tf.constant(8.0)], [])]
        [3.0, 4.0]
    """

    def __init__(self, norm: float):
        self.norm = _bound(norm, "norm")

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return list(tf.clip_by_global_norm(list(gradients), self.norm)[0])


class ClipByNorm:
    """Scales each variable's gradient by `min(1, norm / its L2 norm)`.

    Args:
        norm: bound of each L2 norm, greater than 0.
    """

    def __init__(self, norm: float):
        self.norm = _bound(norm, "norm")

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return [tf.clip_by_norm(g, self.norm) for g in gradients]


class ClipByValue:
    """Clips every element of the gradients to `[-value, value]`.

    Args:
        value: bound of the absolute value, greater than 0.
    """

    def __init__(self, value: float):
        self.value = _bound(value, "value")

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return [tf.clip_by_value(g, -self.value, self.value) for g in gradients]


def as_transforms(clip: Any) -> tuple[Transform, ...]:
    """Turns a loop's `clip` argument into gradient transforms, applied in order.

    Args:
        clip: None; a number (bound of the global norm); or a callable `(gradients, variables) -> gradients`, or a list of such.

    Raises:
        TypeError: if it is none of these.
    """
    if clip is None:
        return ()
    if isinstance(clip, numbers.Real) and not isinstance(clip, bool):
        return (ClipByGlobalNorm(float(clip)),)
    if callable(clip):
        return (clip,)
    if isinstance(clip, (list, tuple)) and all(callable(c) for c in clip):
        return tuple(clip)
    raise TypeError(
        f"`clip` must be a number (global norm), a gradient transform such as loops.ClipByNorm(1.0), or a list of them; got {clip!r}."
    )


@no_autograph
def minimize(loss: Any, tape: tf.GradientTape, optimizer: Any, variables: Sequence[Any], when: Any = None) -> None:
    """One update of `variables` against the gradient of `loss`; see `Task.minimize`."""
    context = current("Task.minimize")
    context.losses.append(loss)
    seed = optimizer.scale_loss(tf.ones_like(loss)) if _scales_loss(optimizer) else None
    gradients = tape.gradient(loss, list(variables), output_gradients=seed)
    apply_gradients(gradients, variables, optimizer, when)


@no_autograph
def apply_gradients(gradients: Sequence[Any], variables: Sequence[Any], optimizer: Any, when: Any = None) -> None:
    """Applies gradients of this replica; see `Task.apply_gradients`. Gradients of a scaled loss must still be scaled."""
    context = current("Task.apply_gradients")
    variables = list(variables)
    present = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    if not present:
        names = ", ".join(getattr(v, "path", v.name) for v in variables[:5]) or "none"
        raise ValueError(
            f"No variable has a gradient: the loss does not depend on any of the variables ({names}). Was the loss computed in the tape?"
        )
    grads = [g for g, _ in present]
    if context.replicas > 1:
        grads = _reduce(grads, context)
    grads = _transform(grads, [v for _, v in present], optimizer, context)
    if "gradients" in context.observes:
        scale = optimizer.scale_loss(tf.ones([])) if _scales_loss(optimizer) else None
        seen = context.observed.setdefault("gradients", {})
        for g, (_, v) in zip(grads, present, strict=True):
            dense = tf.convert_to_tensor(g)
            seen[getattr(v, "path", v.name)] = dense if scale is None else dense / tf.cast(scale, dense.dtype)
    if context.replicas > 1:
        # The optimizer sums over replicas again, so each replica gives it a share. Its own clipping was applied above and has no effect
        # on the shares, which are smaller than its bounds.
        grads = [_scaled(g, 1.0 / context.replicas) for g in grads]
    reduced = iter(grads)
    pairs = [(None if g is None else next(reduced), v) for g, v in zip(gradients, variables, strict=True)]
    if when is None:
        _apply(optimizer, pairs, context)
    else:
        _apply_when(tf.convert_to_tensor(when), pairs, optimizer, context)


def _reduce(gradients: list[Any], context: StepContext) -> list[Any]:
    share = context.example_share()
    empty = tf.equal(context.examples, 0)
    # Gradients of a replica without examples may be NaN (a mean over no example), so they are set to zero.
    weighted = [_scaled(g, share, zero_if=empty) for g in gradients]
    return list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, weighted))


def _transform(gradients: list[Any], variables: list[Any], optimizer: Any, context: StepContext) -> list[Any]:
    transforms = [*context.transforms, *(_own_clipping(optimizer) if context.replicas > 1 else ())]
    if not transforms:
        return gradients
    gradients = [_with_unique_rows(g) for g in gradients]
    scale = optimizer.scale_loss(tf.ones([])) if _scales_loss(optimizer) else None
    if scale is not None:
        gradients = [_scaled(g, 1.0 / scale) for g in gradients]
    for transform in transforms:
        gradients = list(transform(gradients, variables))
        if len(gradients) != len(variables):
            raise ValueError(f"The gradient transform {transform!r} returned {len(gradients)} gradients for {len(variables)} variables.")
    return gradients if scale is None else [_scaled(g, scale) for g in gradients]


def _own_clipping(optimizer: Any) -> list[Transform]:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer.clipnorm:
        return [ClipByNorm(optimizer.clipnorm)]
    if optimizer.global_clipnorm:
        return [ClipByGlobalNorm(optimizer.global_clipnorm)]
    return [ClipByValue(optimizer.clipvalue)] if optimizer.clipvalue else []


def _apply(optimizer: Any, pairs: list[tuple[Any, Any]], context: StepContext) -> None:
    if context.fuse:
        fused_updates.apply_gradients(optimizer, pairs)
    else:
        optimizer.apply_gradients(pairs)


def _apply_when(when: tf.Tensor, pairs: list[tuple[Any, Any]], optimizer: Any, context: StepContext) -> None:
    if context.replicas == 1:

        def update() -> tf.Tensor:
            _apply(optimizer, pairs, context)
            return tf.constant(True)

        tf.cond(when, update, lambda: tf.constant(False))
        return
    # Collectives are not allowed inside tf.cond: update always, then restore the old values where `when` is False.
    replica_context = tf.distribute.get_replica_context()
    everywhere = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(when, tf.int32)) >= context.replicas
    touched = [replicas.backing(v) for v in [*(v for _, v in pairs), *optimizer.variables]]
    before = [tf.identity(v.read_value()) for v in touched]
    with tf.control_dependencies(before):
        optimizer.apply_gradients([(None if g is None else tf.identity(g), v) for g, v in pairs])

    def keep_or_restore(strategy: Any, before: list[Any], accept: Any) -> None:
        for variable, old in zip(touched, before, strict=True):
            strategy.extended.update(variable, lambda v, o, w: v.assign(tf.where(w, v.read_value(), o)), args=(old, accept), group=False)

    replica_context.merge_call(keep_or_restore, args=(before, everywhere))


def _with_unique_rows(gradient: Any) -> Any:
    """Sums the entries of a sparse gradient that belong to the same row (an embedding used several times).

    Norms are then those of the gradient that the optimizer will apply. A dense gradient is returned as it is.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _scaled(gradient: Any, factor: Any, zero_if: Any = None) -> Any:
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    scaled = values * tf.cast(factor, values.dtype)
    if zero_if is not None:
        scaled = tf.where(zero_if, tf.zeros_like(scaled), scaled)
    return tf.IndexedSlices(scaled, gradient.indices, gradient.dense_shape) if isinstance(gradient, tf.IndexedSlices) else scaled


def _scales_loss(optimizer: Any) -> bool:
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or optimizer.loss_scale_factor is not None


def _bound(value: float, what: str) -> float:
    if not value > 0:
        raise ValueError(f"A clipping {what} must be greater than 0; got {value!r}.")
    return float(value)
