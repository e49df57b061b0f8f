"""Which target belongs to which prediction: ranks that differ by a last dimension of 1, and labels that are compared, not computed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["aligned", "as_tensor", "fitting", "same_label"]


def as_tensor(values: Any) -> tf.Tensor:
    """A tensor of the values' own dtype; lists as NumPy understands them, so that no integer is too large."""
    return values if tf.is_tensor(values) else tf.convert_to_tensor(np.asarray(values))


def aligned(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Targets and predictions of one rank, as for Keras's losses: `[B]` and `[B, 1]` become `[B, 1]`; `[B, T, 1]` and `[B, T]` `[B, T]`.

    What does not fit in this way is left as it is.

    Args:
        y_true: targets.
        y_pred: predictions.

    Returns:
        Both, of ranks that are equal if they fit together.
    """
    rank, other = y_true.shape.rank, y_pred.shape.rank
    if rank == other + 1 and y_true.shape[-1] == 1:
        return (y_true, y_pred[:, None]) if other == 1 else (tf.squeeze(y_true, -1), y_pred)
    if other == rank + 1 and y_pred.shape[-1] == 1:
        return (y_true[:, None], y_pred) if rank == 1 else (y_true, tf.squeeze(y_pred, -1))
    return y_true, y_pred


def fitting(who: str, y_true: tf.Tensor, y_pred: tf.Tensor, *, shared: bool = False, remedy: str = "") -> tuple[tf.Tensor, tf.Tensor]:
    """`aligned`, and of one shape: what would be broadcast, each with each, is refused.

    Args:
        who: the loss or metric, for the message.
        y_true: targets.
        y_pred: predictions.
        shared: whether a target with a last dimension of 1 may stand for all predictions of that dimension.
        remedy: what to do, for the message.

    Returns:
        Both, of one shape (but for what is shared).

    Raises:
        ValueError: with both shapes, if they do not fit.

    Example:
        >>> [part.shape.as_list() for part in fitting("Loss", tf.zeros([4]), tf.zeros([4, 1]))]
        [[4, 1], [4, 1]]
        >>> fitting("Loss", tf.zeros([4]), tf.zeros([4, 4]))
        Traceback (most recent call last):
        ValueError: Loss: targets of shape (4,) do not fit to predictions of shape (4, 4).
    """
    given = tuple(y_true.shape), tuple(y_pred.shape)
    y_true, y_pred = aligned(y_true, y_pred)
    wanted = y_pred.shape[:-1].concatenate(1) if shared and y_true.shape.rank and y_true.shape[-1] == 1 else y_pred.shape
    if y_true.shape.rank != y_pred.shape.rank or not y_true.shape.is_compatible_with(wanted):
        raise ValueError(f"{who}: targets of shape {given[0]} do not fit to predictions of shape {given[1]}{remedy and ': '}{remedy}.")
    return tf.ensure_shape(y_true, wanted), y_pred


def same_label(who: str, labels: Any, count: Any) -> tf.Tensor:
    """Whether two examples of a batch have the same label, `[B, B]`: 1 or 0, NaN if one of the labels is NaN.

    Labels are compared in their own dtype, integers and strings as well: as floats, as which Keras hands them to a loss, numbers above 2^24
    (in bfloat16 above 256) become the same.

    Args:
        who: the loss, for the message.
        labels: `[B]` or `[B, 1]`.
        count: B, an integer, or an int32 scalar.

    Returns:
        float32 `[B, B]`.

    Raises:
        ValueError: if the labels have another shape.
    """
    labels = as_tensor(labels)
    wrong_rank = labels.shape.rank not in (1, 2) or (labels.shape.rank == 2 and labels.shape[1] not in (1, None))
    known = tf.get_static_value(count)
    if wrong_rank or None not in (known, labels.shape[0]) and known != labels.shape[0]:
        size = "B" if known is None else known
        raise ValueError(
            f"{who} needs one label for each example, [{size}] or [{size}, 1]; got labels of shape {tuple(labels.shape)}. "
            f"Of one-hot rows take the argmax."
        )
    labels = tf.reshape(labels, [count])  # fails if they are not as many
    same = tf.cast(labels[:, None] == labels[None, :], tf.float32)
    if not labels.dtype.is_floating:
        return same
    unknown = tf.math.is_nan(labels)
    return tf.where(unknown[:, None] | unknown[None, :], float("nan"), same)
