"""Metrics that went with TensorFlow Addons: agreement of two classifications, and correlation of two rankings.

None of them is a mean over batches. Each counts pairs of (target, prediction) in one table over all batches and replicas, in float64, and
computes its value from that table: the same for any batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_choice, check_numbers
from layers.base import register

__all__ = ["CohenKappa", "KendallTau", "MatthewsCorrelation", "SpearmanCorrelation"]


class _Table(keras.metrics.Metric):
    """Base: counts examples by the row of their target and the column of their prediction."""

    def __init__(self, rows: int, columns: int, name: str | None, dtype: Any):
        super().__init__(name=name, dtype=dtype)
        # In float32, counting would stop at 2^24 examples.
        self.table = self.add_variable((rows, columns), "zeros", dtype="float64", name="table")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch.

        Args:
            y_true: targets.
            y_pred: predictions.
            sample_weight: weights, whose dimensions are the first ones of the targets; what weighs 0 does not count, whatever it is.
        """
        rows, columns, known = self._places(tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred))
        weight = tf.ones_like(rows, tf.float64) if sample_weight is None else _weight_of(rows, sample_weight)
        # What has no place cannot be counted, and nothing can be raised in a graph: it makes the result NaN, so that it is seen.
        weight = tf.where(known | (weight == 0), weight, tf.constant(float("nan"), tf.float64))
        place = tf.where(known, rows * self.table.shape[1] + columns, 0)
        counts = tf.math.unsorted_segment_sum(tf.reshape(weight, [-1]), tf.reshape(place, [-1]), self.table.shape.num_elements())
        self.table.assign_add(tf.reshape(counts, self.table.shape))

    def result(self) -> tf.Tensor:
        return tf.cast(self._value(tf.convert_to_tensor(self.table)), self.dtype)

    def _places(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Rows, columns, and which examples have both."""
        raise NotImplementedError

    def _value(self, table: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError


class _ConfusionMatrix(_Table):
    """Base of the metrics of two classifications."""

    def __init__(self, *, num_classes: int, name: str | None = None, dtype: Any = None):
        check_numbers(at_least=2, num_classes=num_classes)
        super().__init__(int(num_classes), int(num_classes), name, dtype)
        self.num_classes = int(num_classes)

    def _places(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows, columns = self._classes(y_true), self._classes(y_pred)
        known = (rows >= 0) & (rows < self.num_classes) & (columns >= 0) & (columns < self.num_classes)
        return rows, columns, known

    def _classes(self, values: tf.Tensor) -> tf.Tensor:
        rank = values.shape.rank
        if rank > 1 and values.shape[-1] == self.num_classes:
            return tf.argmax(values, -1, output_type=tf.int32)
        values = tf.squeeze(values, -1) if rank > 1 and values.shape[-1] == 1 else values
        if self.num_classes == 2 and values.dtype.is_floating:
            return tf.cast(values > 0.5, tf.int32)
        return tf.cast(values, tf.int32)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}


@register
class CohenKappa(_ConfusionMatrix):
    """Cohen's kappa: how far two classifications agree beyond chance, from 1 (always) through 0 (as by chance) to below.

        kappa = 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij,    E_ij = sum_k O_ik * sum_k O_kj / sum O

    O counts the examples of target i and prediction j over all batches; w_ij is 1 off the diagonal, `|i - j|` ("linear") or `(i - j)^2`
    ("quadratic"). 0 before the first example, and if targets and predictions all are one and the same class.

    Args:
        num_classes: number of classes, at least 2.
        weighting: None, "linear" or "quadratic", for classes that are ordered.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: classes, `[...]` or `[..., 1]`, or one-hot `[..., num_classes]`.
        y_pred: scores `[..., num_classes]`, or classes as above; for 2 classes also the probability of class 1. A class that does not exist
            makes the result NaN.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> kappa = CohenKappa(num_classes=2)
        >>> kappa.update_state([0, 0, 1, 1], [0, 1, 1, 1])
        >>> float(kappa.result())
        0.5

    References:
        Cohen 1960, "A Coefficient of Agreement for Nominal Scales"; weighted: Cohen 1968, Psychological Bulletin 70.
    """

    def __init__(self, *, num_classes: int, weighting: str | None = None, name: str | None = None, dtype: Any = None):
        check_choice([None, "linear", "quadratic"], weighting=weighting)
        super().__init__(num_classes=num_classes, name=name, dtype=dtype)
        self.weighting = weighting

    def _value(self, table: tf.Tensor) -> tf.Tensor:
        steps = tf.abs(tf.range(self.num_classes)[:, None] - tf.range(self.num_classes)[None, :])
        steps = {None: tf.minimum(steps, 1), "linear": steps, "quadratic": steps * steps}[self.weighting]
        weights = tf.cast(steps, table.dtype)
        total = tf.reduce_sum(table)
        expected = tf.reduce_sum(weights * tf.reduce_sum(table, 1)[:, None] * tf.reduce_sum(table, 0)[None, :])
        observed = total * tf.reduce_sum(weights * table)
        return tf.where(expected == 0, tf.zeros_like(expected), 1 - observed / tf.where(expected == 0, tf.ones_like(expected), expected))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weighting": self.weighting}


@register
class MatthewsCorrelation(_ConfusionMatrix):
    """Matthews correlation (phi): the correlation of two classifications, from -1 to 1, also for classes of very different sizes.

        mcc = (c * s - sum_k t_k p_k) / sqrt((s^2 - sum_k t_k^2) * (s^2 - sum_k p_k^2))

    s examples, c of them right, t_k targets and p_k predictions of class k, over all batches. 0 if all targets or all predictions are one
    class.

    Args:
        num_classes: number of classes, at least 2.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: classes, `[...]` or `[..., 1]`, or one-hot `[..., num_classes]`.
        y_pred: scores `[..., num_classes]`, or classes as above; for 2 classes also the probability of class 1. A class that does not exist
            makes the result NaN.

    Raises:
        ValueError: if `num_classes` is out of its range.

    Example:
        >>> matthews = MatthewsCorrelation(num_classes=2)
        >>> matthews.update_state([1, 1, 1, 0], [1, 0, 1, 1])
        >>> round(float(matthews.result()), 4)
        -0.3333

    References:
        Matthews 1975; for several classes: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    """

    def _value(self, table: tf.Tensor) -> tf.Tensor:
        total, right = tf.reduce_sum(table), tf.linalg.trace(table)
        true, predicted = tf.reduce_sum(table, 1), tf.reduce_sum(table, 0)
        spread = [tf.square(total) - tf.reduce_sum(tf.square(counts)) for counts in (true, predicted)]
        return tf.math.divide_no_nan(right * total - tf.reduce_sum(true * predicted), tf.sqrt(spread[0]) * tf.sqrt(spread[1]))


class _RankCorrelation(_Table):
    """Base of the metrics of two rankings: a table of bins, between which examples are ranked; those of one bin are tied."""

    def __init__(self, *, true_cutpoints: Sequence[float], pred_cutpoints: Sequence[float], name: str | None = None, dtype: Any = None):
        cutpoints = [_checked_cutpoints(n, c) for n, c in (("true_cutpoints", true_cutpoints), ("pred_cutpoints", pred_cutpoints))]
        super().__init__(len(cutpoints[0]) + 1, len(cutpoints[1]) + 1, name, dtype)
        self.true_cutpoints, self.pred_cutpoints = cutpoints

    def _places(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        values = [tf.reshape(tf.cast(y, tf.float64), tf.shape(y_true)) for y in (y_true, y_pred)]
        edges = [tf.constant(c, tf.float64) for c in (self.true_cutpoints, self.pred_cutpoints)]
        rows, columns = (
            tf.reshape(tf.searchsorted(e, tf.reshape(v, [-1]), side="right"), tf.shape(v)) for e, v in zip(edges, values, strict=True)
        )
        return rows, columns, ~(tf.math.is_nan(values[0]) | tf.math.is_nan(values[1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "true_cutpoints": self.true_cutpoints, "pred_cutpoints": self.pred_cutpoints}


@register
class SpearmanCorrelation(_RankCorrelation):
    """Spearman's rho: the correlation of the ranks of targets and predictions, from -1 to 1; ties have their mean rank.

        rho = sum_ij H_ij (r_i - m)(s_j - m) / sqrt(sum_i R_i (r_i - m)^2 * sum_j S_j (s_j - m)^2)

    H counts the examples of target bin i and prediction bin j over all batches and replicas, R_i and S_j are its margins, r_i and s_j the
    mean ranks of the bins, m that of all. It is SciPy's `spearmanr` of the bin numbers: exact where bins hold one value each, such as
    grades; otherwise examples of one bin count as ties, and the error shrinks with the square of the bins' number (100 are plenty). 0 if
    all targets or all predictions are in one bin.

    Args:
        true_cutpoints: increasing numbers that part the bins of the targets, such as `np.linspace(0, 1, 101)`; a value on a cutpoint is
            above it, and the first and last bin are open. Ranks do not care where values lie within a bin: take quantiles if
            values crowd.
        pred_cutpoints: the same for the predictions.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: numbers, of any shape; NaN makes the result NaN.
        y_pred: as many numbers.

    Raises:
        ValueError: if cutpoints do not increase, or there are none.

    Example:
        >>> rho = SpearmanCorrelation(true_cutpoints=[0.5, 1.5, 2.5], pred_cutpoints=[0.25, 0.5, 0.75])
        >>> rho.update_state([0, 1, 2, 3], [0.1, 0.3, 0.8, 0.6])
        >>> round(float(rho.result()), 4)
        0.8

    References:
        Spearman 1904, "The Proof and Measurement of Association between Two Things".
    """

    def _value(self, table: tf.Tensor) -> tf.Tensor:
        rows, columns = _centered_ranks(tf.reduce_sum(table, 1)), _centered_ranks(tf.reduce_sum(table, 0))
        covariance = tf.reduce_sum(table * rows[:, None] * columns[None, :])
        variances = [tf.reduce_sum(table * tf.square(ranks)) for ranks in (rows[:, None], columns[None, :])]
        return tf.math.divide_no_nan(covariance, tf.sqrt(variances[0]) * tf.sqrt(variances[1]))


@register
class KendallTau(_RankCorrelation):
    """Kendall's tau-b: of all pairs of examples, how many more are ordered alike than oppositely, from -1 to 1, corrected for ties.

        tau_b = (P - Q) / sqrt((n0 - n1) * (n0 - n2))

    P and Q count the pairs that targets and predictions order alike and oppositely, n0 all pairs, n1 and n2 those that are tied in targets
    and in predictions, over all batches and replicas, of batches with each other too. Values are binned: it is SciPy's `kendalltau` of the
    bin numbers, exact where bins hold one value each, such as grades; otherwise examples of one bin count as ties. 0 if all targets or
    all predictions are in one bin.

    Args:
        true_cutpoints: increasing numbers that part the bins of the targets, such as `np.linspace(0, 1, 101)`; a value on a cutpoint is
            above it, and the first and last bin are open.
        pred_cutpoints: the same for the predictions.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: numbers, of any shape; NaN makes the result NaN.
        y_pred: as many numbers.

    Raises:
        ValueError: if cutpoints do not increase, or there are none.

    Example:
        >>> tau = KendallTau(true_cutpoints=[0.5, 1.5, 2.5], pred_cutpoints=[0.25, 0.5, 0.75])
        >>> tau.update_state([0, 1, 2, 3], [0.1, 0.3, 0.8, 0.6])
        >>> round(float(tau.result()), 4)
        0.6667

    References:
        Kendall 1945, "The Treatment of Ties in Ranking Problems"; by tables: Brown & Benedetti 1977, JASA 72; Xiao 2017, arXiv:1712.01521.
    """

    def _value(self, table: tf.Tensor) -> tf.Tensor:
        below = tf.cumsum(table, 0, exclusive=True)  # examples of smaller targets
        alike = tf.reduce_sum(table * tf.cumsum(below, 1, exclusive=True))
        oppositely = tf.reduce_sum(table * tf.cumsum(below, 1, exclusive=True, reverse=True))
        total = tf.square(tf.reduce_sum(table))
        untied = [(total - tf.reduce_sum(tf.square(tf.reduce_sum(table, axis)))) / 2 for axis in (0, 1)]
        return tf.math.divide_no_nan(alike - oppositely, tf.sqrt(untied[0]) * tf.sqrt(untied[1]))


def _weight_of(examples: tf.Tensor, sample_weight: Any) -> tf.Tensor:
    weight = tf.cast(sample_weight, tf.float64)
    missing = examples.shape.rank - weight.shape.rank
    if missing == -1 and weight.shape[-1] == 1:
        weight = tf.squeeze(weight, -1)
    elif missing < 0:
        raise ValueError(f"`sample_weight` has shape {weight.shape}, which does not fit to examples of shape {examples.shape}.")
    elif missing and weight.shape.rank:
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), tf.ones([missing], tf.int32)], 0))
    return tf.broadcast_to(weight, tf.shape(examples))


def _checked_cutpoints(name: str, cutpoints: Sequence[float]) -> list[float]:
    found = [float(c) for c in cutpoints]
    if not found or not all(a < b for a, b in zip(found, found[1:], strict=False)):
        raise ValueError(f"`{name}` must be one or more increasing numbers; got {found}.")
    return found


def _centered_ranks(counts: tf.Tensor) -> tf.Tensor:
    """Mean rank of each bin, from the middle of all."""
    return tf.cumsum(counts, exclusive=True) + counts / 2 - tf.reduce_sum(counts) / 2
