"""Transforms of gradients: clipping, and what a user gives in its place. They act on the gradients that the optimizer is about to apply."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from loops.tasks.step_context import Transform

__all__ = ["ClipByGlobalNorm", "ClipByNorm", "ClipByValue", "as_transforms", "transformed"]


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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.norm!r})"

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return list(tf.clip_by_global_norm(list(gradients), self.norm)[0])


class ClipByNorm:
    """Scales each variable's gradient by `min(1, norm / its L2 norm)`.

    Args:
        norm: bound of each L2 norm, greater than 0.
    """

    def __init__(self, norm: float):
        self.norm = _bound(norm, "norm")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.norm!r})"

    def __call__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        return [tf.clip_by_norm(g, self.norm) for g in gradients]


class ClipByValue:
    """Clips every element of the gradients to `[-value, value]`.

    Args:
        value: bound of the absolute value, greater than 0.
    """

    def __init__(self, value: float):
        self.value = _bound(value, "value")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"

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


def transformed(transforms: Sequence[Transform], gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The gradients after all transforms.

    Raises:
        ValueError: if a transform returns another number of gradients.
    """
    gradients = [_with_unique_rows(g) for g in gradients] if transforms else list(gradients)
    for transform in transforms:
        gradients = list(transform(gradients, variables))
        if len(gradients) != len(variables):
            raise ValueError(f"The gradient transform {transform!r} returned {len(gradients)} gradients for {len(variables)} variables.")
    return gradients


def _with_unique_rows(gradient: Any) -> Any:
    """Sums the entries of a sparse gradient that belong to the same row (an embedding used several times).

    Norms are then those of the gradient that the optimizer will apply. A dense gradient is returned as it is.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _bound(value: float, what: str) -> float:
    if not value > 0:
        raise ValueError(f"A clipping {what} must be greater than 0; got {value!r}.")
    return float(value)
