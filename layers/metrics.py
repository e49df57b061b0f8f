"""Metrics that went with TensorFlow Addons: agreement of two classifications, and correlation of two rankings.

None of them is a mean over batches. Each counts pairs of (target, prediction) in one table over all batches and replicas, in float64, and
computes its value from that table: the same for any batch size. What the predictions' mask takes away does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from layers._private_api import get_keras_mask
from layers.alignment import as_tensor, fitting
from layers.arguments import check_choice, check_integers
from layers.base import register
from layers.class_numbers import classifications

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
        rows, columns, known = self._places(as_tensor(y_true), as_tensor(y_pred))
        weight = tf.ones_like(rows, tf.float64) if sample_weight is None else _weight_of(rows, sample_weight)
        if (mask := get_keras_mask(y_pred)) is not None:
            weight = tf.where(_weight_of(rows, mask) == 0, tf.zeros_like(weight), weight)
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

    def __init__(
        self,
        *,
        num_classes: int,
        sparse_y_true: bool | None = None,
        sparse_y_pred: bool | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        check_integers(at_least=2, num_classes=num_classes)
        check_choice([None, True, False], sparse_y_true=sparse_y_true, sparse_y_pred=sparse_y_pred)
        super().__init__(num_classes, num_classes, name, dtype)
        self.num_classes, self.sparse_y_true, self.sparse_y_pred = num_classes, sparse_y_true, sparse_y_pred

    def _places(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        said = {"sparse_y_true": self.sparse_y_true, "sparse_y_pred": self.sparse_y_pred}
        rows, columns = classifications(type(self).__name__, y_true, y_pred, self.num_classes, **said)
        return rows, columns, (rows >= 0) & (columns >= 0)

    def get_config(self) -> dict[str, Any]:
        sparse = {"sparse_y_true": self.sparse_y_true, "sparse_y_pred": self.sparse_y_pred}
        return {**super().get_config(), "num_classes": self.num_classes, **sparse}


@register
class CohenKappa(_ConfusionMatrix):
    """Cohen's kappa: how far two classifications agree beyond chance, from 1 (always) through 0 (as by chance) to below.

        kappa = 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij,    E_ij = sum_k O_ik * sum_k O_kj / sum O

    O counts the examples of target i and prediction j over all batches; w_ij is 1 off the diagonal, `|i - j|` ("linear") or `(i - j)^2`
    ("quadratic"). 0 before the first example, and if targets and predictions all are one and the same class.

    Args:
        num_classes: number of classes, at least 2.
        weighting: None, "linear" or "quadratic", for classes that are ordered.
        sparse_y_true: whether targets are class numbers; None lets shapes decide.
        sparse_y_pred: whether predictions are class numbers; None lets shapes decide.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: class numbers, `[...]` or `[..., 1]`, or one-hot rows `[..., num_classes]`. Floats are rounded.
        y_pred: scores `[..., num_classes]`, or class numbers as above; for 2 classes also the probability of class 1. NaN, and a class that
            does not exist, make the result NaN. Numbers beside scores have a rank less, or a last dimension of 1. If both have the shape
            `[..., num_classes]`, floats are one-hot rows and scores, and integers numbers; integer targets beside floating predictions of
            more than 2 classes are refused: `sparse_y_true` and `sparse_y_pred` say what they are.

    Raises:
        ValueError: if an argument is out of its range, or shapes do not fit, or may be read in two ways.

    Example:
        >>> kappa = CohenKappa(num_classes=2)
        >>> kappa.update_state([0, 0, 1, 1], [0, 1, 1, 1])
        >>> float(kappa.result())
        0.5

    References:
        Cohen 1960, "A Coefficient of Agreement for Nominal Scales"; weighted: Cohen 1968, Psychological Bulletin 70.
    """

    def __init__(self, *, num_classes: int, weighting: str | None = None, **kwargs: Any):
        check_choice([None, "linear", "quadratic"], weighting=weighting)
        super().__init__(num_classes=num_classes, **kwargs)
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
        sparse_y_true: whether targets are class numbers; None lets shapes decide.
        sparse_y_pred: whether predictions are class numbers; None lets shapes decide.
        name: name in the logs.
        dtype: of the result.

    Call:
        y_true: class numbers, `[...]` or `[..., 1]`, or one-hot rows `[..., num_classes]`. Floats are rounded.
        y_pred: scores `[..., num_classes]`, or class numbers as above; for 2 classes also the probability of class 1. NaN, and a class that
            does not exist, make the result NaN. Numbers beside scores have a rank less, or a last dimension of 1. If both have the shape
            `[..., num_classes]`, floats are one-hot rows and scores, and integers numbers; integer targets beside floating predictions of
            more than 2 classes are refused: `sparse_y_true` and `sparse_y_pred` say what they are.

    Raises:
        ValueError: if an argument is out of its range, or shapes do not fit, or may be read in two ways.

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
        values = [tf.cast(y, tf.float64) for y in fitting(type(self).__name__, y_true, y_pred)]
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
        y_pred: numbers of that shape; `[B]` and `[B, 1]` fit to each other.

    Raises:
        ValueError: if cutpoints do not increase, or there are none, or shapes do not fit.

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
        y_pred: numbers of that shape; `[B]` and `[B, 1]` fit to each other.

    Raises:
        ValueError: if cutpoints do not increase, or there are none, or shapes do not fit.

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
