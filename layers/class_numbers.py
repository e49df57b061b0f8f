"""Classes as numbers: floats that are rounded, and which of targets and predictions are numbers, which rows of scores."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from layers.alignment import as_tensor

__all__ = ["classifications", "whole_numbers"]


def whole_numbers(who: str, values: Any, *, classes: int) -> tf.Tensor:
    """Class numbers as int32: floats are rounded, as 2.9999 is a 3; what is no class, NaN among it, becomes -1.

    Args:
        who: the layer or metric, for the message.
        values: numbers of any real dtype.
        classes: how many classes there are, from 0 on.

    Returns:
        int32 from -1 to `classes` - 1, of the values' shape.

    Raises:
        TypeError: if the dtype is a float too short to tell the classes apart.

    Example:
        >>> whole_numbers("Layer", [2.9999, 0.0, float("nan"), 4.0], classes=4).numpy().tolist()
        [3, 0, -1, -1]
    """
    values = as_tensor(values)
    if values.dtype.is_floating:
        digits = {tf.bfloat16: 8, tf.float16: 11, tf.float32: 24}.get(values.dtype, 53)
        if classes - 1 > 2**digits:
            raise TypeError(f"{who}: numbers of {classes} classes given as {values.dtype.name} cannot be told apart; give integers.")
        values = tf.round(values)
        known = (values >= 0) & (values < tf.cast(classes, values.dtype)) if classes <= 2**digits else values >= 0  # NaN is neither
        return tf.cast(tf.where(known, values, -tf.ones_like(values)), tf.int32)
    if values.dtype == tf.bool:
        return tf.cast(values, tf.int32)
    # Compared before they are cut to 32 bits.
    known = values <= tf.cast(min(classes - 1, values.dtype.max), values.dtype)
    return tf.maximum(tf.where(known & (values >= tf.zeros([], values.dtype)), tf.cast(values, tf.int32), -1), -1)


def classifications(
    who: str, y_true: Any, y_pred: Any, classes: int, *, sparse_y_true: bool | None = None, sparse_y_pred: bool | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two classifications of the same examples, each as class numbers.

    Which of them are numbers `[...]` (or `[..., 1]`), and which one row of scores for each example `[..., classes]`, is decided by their
    ranks, not by a dimension that happens to be as large as the number of classes:

    - If one has a rank more, and its last dimension is `classes`, it holds scores, and the other numbers. If it is 1, both are numbers.
    - If ranks are equal, and one has a last dimension of `classes`, the other of 1, the first holds scores.
    - If shapes are equal, both are numbers, unless their last dimension is `classes`. Then integer targets are numbers, and floating
      ones beside floating predictions one-hot rows beside scores: what is no such row has no class. Integer targets beside floating
      predictions of more than two classes may be either, and are refused.

    Args:
        who: the metric, for messages.
        y_true: targets.
        y_pred: predictions.
        classes: how many classes there are.
        sparse_y_true: whether targets are numbers, not rows; None decides by the rule above.
        sparse_y_pred: whether predictions are.

    Returns:
        Both as int32 of one shape, -1 where there is no class.

    Raises:
        ValueError: with both shapes, if they do not fit, or may be read in two ways.
    """
    true, pred = as_tensor(y_true), as_tensor(y_pred)
    given = (
        f"{who}: targets of shape {tuple(true.shape)} ({true.dtype.name}) and predictions of shape {tuple(pred.shape)} ({pred.dtype.name})"
    )
    true_are_numbers, pred_are_numbers = sparse_y_true, sparse_y_pred
    if true_are_numbers is None or pred_are_numbers is None:
        decided = _are_numbers(given, true, pred, classes)
        true_are_numbers, pred_are_numbers = (
            d if said is None else said for d, said in zip(decided, (sparse_y_true, sparse_y_pred), strict=True)
        )
    rows = whole_numbers(who, true, classes=classes) if true_are_numbers else _best(given, true, classes, one_hot=sparse_y_true is None)
    columns = whole_numbers(who, pred, classes=classes) if pred_are_numbers else _best(given, pred, classes, one_hot=False)
    if rows.shape.rank == columns.shape.rank + 1 and rows.shape[-1] == 1:
        rows = tf.squeeze(rows, -1)
    elif columns.shape.rank == rows.shape.rank + 1 and columns.shape[-1] == 1:
        columns = tf.squeeze(columns, -1)
    if rows.shape.rank != columns.shape.rank or not rows.shape.is_compatible_with(columns.shape):
        raise ValueError(f"{given} do not fit to each other with {classes} classes.")
    return rows, tf.reshape(columns, tf.shape(rows))


def _are_numbers(given: str, true: tf.Tensor, pred: tf.Tensor, classes: int) -> tuple[bool, bool]:
    """Whether targets are numbers, and whether predictions are, by the rule of `classifications`."""
    ranks = true.shape.rank, pred.shape.rank
    unclear = f"{given} may be numbers of classes as well as rows of {classes} scores: say which by sparse_y_true= and sparse_y_pred="
    if None in ranks:
        raise ValueError(f"{unclear}.")
    if ranks[0] > ranks[1]:
        return true.shape[-1] == 1, True
    if ranks[1] > ranks[0]:
        return True, pred.shape[-1] == 1
    if ranks[0] <= 1:
        return True, True
    last, other = true.shape[-1], pred.shape[-1]
    if None not in (last, other):
        if 1 in (last, other) or last != other or last != classes:
            return last != classes, other != classes
        if true.dtype.is_floating and pred.dtype.is_floating:
            return False, False
    if not pred.dtype.is_floating or (classes == 2 and not true.dtype.is_floating and None not in (last, other)):
        return True, True
    raise ValueError(f"{unclear}.")


def _best(given: str, rows: tf.Tensor, classes: int, *, one_hot: bool) -> tf.Tensor:
    """The class with the greatest score; -1 for a row with NaN, and if rows should be `one_hot`, for what are no probabilities."""
    if rows.shape.rank == 0 or rows.shape[-1] not in (classes, None):
        raise ValueError(f"{given} do not fit to each other with {classes} classes.")
    rows = tf.cast(tf.ensure_shape(rows, [*rows.shape[:-1], classes]), tf.float64)
    is_row = (
        tf.reduce_all(rows >= 0, -1) & (tf.abs(tf.reduce_sum(rows, -1) - 1) < 0.05) if one_hot else ~tf.reduce_any(tf.math.is_nan(rows), -1)
    )
    return tf.where(is_row, tf.argmax(rows, -1, output_type=tf.int32), -1)
