"""From a loss to an update: gradient, reduce over replicas, unscale, clip and transform, apply.

    gradients = d loss / d variables
    reduced   = sum over replicas of (examples of the replica / examples of all) * gradients
    updated   = optimizer.apply(transform(reduced / loss scale) * loss scale)

Gradients are reduced before they are clipped, transformed or observed, so every replica handles the gradients that one device would have.
An optimizer with `gradient_accumulation_steps` clips and transforms the mean of what it has accumulated; observed are the gradients of the
step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from loops.tasks.clipping import transformed
from loops.tasks.sparse_gradients import gathered
from loops.tasks.step_context import StepContext, current
from loops.tasks.updates import accumulates, scaled, scales_loss, update

__all__ = ["apply_gradients", "minimize"]

no_autograph: Callable[..., Any] = tf.autograph.experimental.do_not_convert


@no_autograph
def minimize(loss: Any, tape: tf.GradientTape, optimizer: Any, variables: Sequence[Any], when: Any = None) -> None:
    """One update of `variables` against the gradient of `loss`; see `Task.minimize`."""
    context = current("Task.minimize")
    loss = _scalar(loss)
    context.minimized(loss)
    seed = optimizer.scale_loss(tf.ones_like(loss)) if scales_loss(optimizer) else None
    gradients = tape.gradient(loss, list(variables), output_gradients=seed)
    apply_gradients(gradients, variables, optimizer, when)


@no_autograph
def apply_gradients(gradients: Sequence[Any], variables: Sequence[Any], optimizer: Any, when: Any = None) -> None:
    """Applies gradients of this replica; see `Task.apply_gradients`. Gradients of a scaled loss must still be scaled."""
    context = current("Task.apply_gradients")
    if context.replicas > 1 and context.within:
        raise ValueError(
            "An update inside a tensor `if` or loop of the step does not work under several replicas, whose gradients are summed outside "
            "of it: call minimize or apply_gradients in every step, with when=<scalar bool>."
        )
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
    if not accumulates(optimizer):
        grads = _transformed(grads, [v for _, v in present], optimizer, context)
    if "gradients" in context.observes:
        scale = optimizer.scale_loss(tf.ones([])) if scales_loss(optimizer) else None
        for g, (_, v) in zip(grads, present, strict=True):
            dense = tf.convert_to_tensor(g)
            context.observe_gradient(getattr(v, "path", v.name), dense if scale is None else dense / tf.cast(scale, dense.dtype))
    reduced = iter(grads)
    pairs = [(None if g is None else next(reduced), v) for g, v in zip(gradients, variables, strict=True)]
    update(optimizer, pairs, None if when is None else tf.convert_to_tensor(when), context)


def _scalar(loss: Any) -> tf.Tensor:
    """The loss, checked.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it is not a scalar.
    """
    if not tf.is_tensor(loss):
        raise TypeError(f"`loss` must be a scalar tensor that the tape recorded; got {type(loss).__name__}.")
    if loss.shape.rank not in (0, None):
        raise ValueError(
            f"`loss` has the shape {loss.shape}, but it must be a scalar, the mean over the examples: its gradient would be that of the "
            "sum. Reduce it inside the tape, as in tf.reduce_mean(loss)."
        )
    if loss.shape.rank is None:
        tf.debugging.assert_equal(tf.rank(loss), 0, "`loss` must be a scalar, the mean over the examples")
    return loss


def _reduce(gradients: list[Any], context: StepContext) -> list[Any]:
    """The sum over replicas of each gradient times the replica's share of the examples.

    Where replicas are in several processes, a collective costs more than what it carries: the number of examples travels with the first
    gradients of a step, which are divided by the sum afterwards.
    """
    empty = tf.equal(context.examples, 0)
    counts = context.counts_with_gradients and all(g.dtype in (tf.float32, tf.float64) for g in gradients)  # float16 would overflow
    carrying = tf.float64 if all(g.dtype == tf.float64 for g in gradients) else tf.float32  # the dtype of some gradient: no collective more
    share = tf.cast(context.examples, carrying) if counts else context.example_share()
    # Gradients of a replica without examples may be NaN (a mean over no example), so they are set to zero.
    weighted = [scaled(g, share, zero_if=empty) for g in gradients]
    summed = _summed([g for g in weighted if not isinstance(g, tf.IndexedSlices)], *([share] if counts else []))
    if counts:
        context.examples_of_all = tf.cast(summed.pop(), tf.float64)
        summed = [scaled(g, tf.math.reciprocal_no_nan(context.examples_of_all)) for g in summed]
    dense = iter(summed)
    return [_rows_of_all(g, context, counts) if isinstance(g, tf.IndexedSlices) else next(dense) for g in weighted]


def _summed(tensors: list[tf.Tensor], *more: tf.Tensor) -> list[tf.Tensor]:
    """The sums over replicas, by one collective for each dtype."""
    tensors = [*tensors, *more]
    out: list[Any] = [None] * len(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        reduced = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [tensors[i] for i in places])
        for place, value in zip(places, reduced, strict=True):
            out[place] = value
    return out


def _rows_of_all(gradient: tf.IndexedSlices, context: StepContext, counted: bool) -> tf.IndexedSlices:
    rows = gathered(gradient)
    return scaled(rows, tf.math.reciprocal_no_nan(context.examples_of_all)) if counted else rows


def _transformed(gradients: list[Any], variables: list[Any], optimizer: Any, context: StepContext) -> list[Any]:
    """The gradients after clipping and transforms, which see them unscaled."""
    if not context.transforms:
        return gradients
    if not scales_loss(optimizer):
        return transformed(context.transforms, gradients, variables)
    scale = optimizer.scale_loss(tf.ones([]))
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(_values(g))) for g in gradients])
    gradients = transformed(context.transforms, [scaled(g, 1.0 / scale) for g in gradients], variables)
    # A transform may make finite what was not. The optimizer has to see it: it then skips the update and lowers the scale.
    return [scaled(g, tf.where(finite, scale, float("nan"))) for g in gradients]


def _values(gradient: Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
