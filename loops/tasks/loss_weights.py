"""Warns, under several replicas, of losses whose gradient has another weight than on one device: token means, sums, scalars.

A step that returns `loops.Mean(loss, weight=tokens)` says that its loss is a mean over tokens. The gradient of each replica is weighted by
`Task.batch_size`, which counts examples unless it is overridden, so the update is not that of one device. It changes nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops.messages import say, warn
from loops.tasks.base import Task
from loops.tasks.reductions import Mean

__all__ = ["check", "note_on_scalar", "warn_of_sum"]

_told: weakref.WeakSet[Any] = weakref.WeakSet()
_told_of_sums: weakref.WeakSet[Any] = weakref.WeakSet()
_told_of_scalars: weakref.WeakSet[Any] = weakref.WeakSet()
_SHAPES = ("Shape", "ShapeN", "Size", "Rank")


def check(task: Any, batch: Any, losses: Sequence[Any], logs: Mapping[str, Any]) -> None:
    """Warns once for each task. Call it while the step is traced under several replicas.

    Args:
        task: whose step it is.
        batch: the batch of the replica.
        losses: what was given to `minimize`.
        logs: the scalars that the step returned.
    """
    if task in _told or getattr(task.batch_size, "__func__", None) is not Task.batch_size:
        return
    given = {id(loss) for loss in losses}
    for name, entry in logs.items():
        if type(entry) is Mean and entry.weight is not None and id(entry.value) in given and _counts_values(entry.weight, batch):
            _told.add(task)
            warn(
                f"Warning: {name!r} is logged as a mean with a `weight` of its own, but the gradient of each replica counts by its "
                f"examples. If the loss is a mean over that weight, let {type(task).__name__}.batch_size(batch) return it "
                "(docs/migrating.md shows how); else the updates differ from those of one device."
            )
            return


def warn_of_sum(task: Any) -> None:
    """Warns once for each task. Call it when the task's own step computes a Keras loss with reduction="sum"."""
    if _first_time(task, _told_of_sums):
        warn(
            'Warning: the step computes a Keras loss with reduction="sum", which under several replicas is the sum over the replica\'s own '
            "examples. Gradients are averaged over replicas by their examples, so the update is not that of one device: take the mean "
            "(the default), or divide the sum by the number of the replica's own examples."
        )


def note_on_scalar(task: Any) -> None:
    """Says once for each task what a scalar means. Call it when a loss function has returned one number for the whole batch."""
    if _first_time(task, _told_of_scalars):
        say(
            "Note: a loss function returned one number for the batch of a replica; it counts as the mean over the replica's examples, so "
            "replicas are averaged by their examples. If it is a sum, let the function return one loss per example."
        )


def _first_time(task: Any, told: weakref.WeakSet[Any]) -> bool:
    first = task not in told
    told.add(task)
    return first


def _counts_values(weight: Any, batch: Any) -> bool:
    """Whether a tensor of a graph depends on values in the batch, such as a mask; a number of examples depends on its shape only."""
    if not tf.is_symbolic_tensor(weight):
        return False
    values = {leaf.op.name for leaf in tf.nest.flatten(batch, expand_composites=True) if tf.is_symbolic_tensor(leaf)}
    waiting, seen = [weight.op], set[str]()
    while waiting:
        op = waiting.pop()
        if op.name in values:
            return True
        if op.name not in seen and op.type not in _SHAPES:
            seen.add(op.name)
            waiting += [value.op for value in op.inputs]
    return False
