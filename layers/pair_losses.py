"""Losses that compare the examples of a batch with each other by labels, of triplets and of n pairs. They went with TensorFlow Addons.

As all Keras losses they give one value for each example, which is then weighted and reduced. Under replicas the examples of a replica are
compared with each other.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from layers.alignment import as_tensor, same_label
from layers.arguments import check_choice, check_numbers
from layers.base import full_precision, register

__all__ = ["NPairsLoss", "TripletHardLoss", "TripletSemiHardLoss"]

DISTANCES = ("L2", "squared-L2", "angular")
FEATURES_AT_ONCE = 32  # of which differences [B, B, ...] are in memory


class _PairLoss(keras.losses.Loss):
    """Base: labels are compared before Keras casts them. So `call` is given in their place which examples have the same (`same_label`)."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        predictions = as_tensor(y_pred)
        if predictions.shape.rank != 2:
            raise ValueError(f"{type(self).__name__} needs predictions of shape [B, D]; got shape {tuple(predictions.shape)}.")
        count = tf.shape(predictions)[0] if predictions.shape[0] is None else predictions.shape[0]
        same = same_label(type(self).__name__, y_true, count)
        return super().__call__(same, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


class _TripletLoss(_PairLoss):
    """Base of the triplet losses: margin and distance."""

    def __init__(self, *, margin: float = 1.0, distance: str = "L2", **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, margin=margin)
        check_choice(DISTANCES, distance=distance)
        self.margin, self.distance = float(margin), distance

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        distances = pair_distances(full_precision(y_pred), self.distance)
        distances = tf.where(tf.math.is_nan(y_true), tf.constant(float("nan"), distances.dtype), distances)
        losses = self._losses_of_anchors(distances, y_true > 0.5)
        # Comparisons pass over NaN. Who has no distance from one of the others has no loss.
        unknown = tf.reduce_any(tf.math.is_nan(distances), -1)
        return losses * tf.where(unknown, tf.constant(float("nan"), losses.dtype), 1.0)

    def _losses_of_anchors(self, distances: tf.Tensor, same: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin, "distance": self.distance}


@register
class TripletSemiHardLoss(_TripletLoss):
    """Triplet loss over all positive pairs, each with its semi-hard negative: the nearest one farther away than the positive.

        loss = mean over pairs a != p with y_a = y_p of max(0, margin + d(a, p) - d(a, n))
        n    = the nearest of another class with d(a, n) > d(a, p); if there is none, the farthest of another class

    An anchor in whose batch there is no other class takes d(a, n) = 0, as in TensorFlow Addons; without any pair the loss is 0. An
    embedding that is not finite makes the loss NaN.

    Args:
        margin: at least 0.
        distance: `"L2"`, `"squared-L2"`, or `"angular"`, 1 - cosine.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`, best integers: they are compared as they are.
        y_pred: embeddings, `[B, D]`, usually of length 1.

    Returns:
        A scalar; with `reduction=None` `[B]`, whose mean it is: each anchor's share.

    Raises:
        ValueError: if an argument is out of its range, or a shape another one.

    Example:
        >>> loss = TripletSemiHardLoss(margin=1.0)
        >>> float(loss(tf.constant([0, 0, 1]), tf.constant([[0.0], [1.0], [1.5]])))
        1.0

    References:
        Schroff, Kalenichenko & Philbin 2015 (FaceNet), arXiv:1503.03832.
    """

    def _losses_of_anchors(self, distances: tf.Tensor, same: tf.Tensor) -> tf.Tensor:
        infinity = tf.constant(float("inf"), distances.dtype)
        negatives = tf.where(same, infinity, distances)
        order = tf.argsort(negatives, -1)
        ascending = tf.gather(negatives, order, batch_dims=1)
        place = tf.searchsorted(ascending, distances, side="right")  # of the first negative beyond the positive
        last = tf.shape(distances)[1] - 1
        nearest = tf.gather(order, tf.minimum(place, last), batch_dims=1)
        exists = tf.gather(ascending, tf.minimum(place, last), batch_dims=1) < infinity
        exists &= place <= last
        farthest = tf.reduce_max(tf.where(same, tf.zeros([], distances.dtype), distances), -1, keepdims=True)
        semi_hard = tf.where(exists, tf.gather(distances, nearest, batch_dims=1), farthest)
        positive = tf.cast(_without_diagonal(same), distances.dtype)
        by_anchor = tf.reduce_sum(positive * tf.nn.relu(self.margin + distances - semi_hard), -1)
        return tf.math.divide_no_nan(by_anchor * tf.cast(tf.shape(distances)[0], distances.dtype), tf.reduce_sum(positive))


@register
class TripletHardLoss(_TripletLoss):
    """Triplet loss of the hardest positive and the hardest negative of each anchor in the batch.

        loss = mean over a of max(0, margin + max over p of d(a, p) - min over n of d(a, n))
        soft:  mean over a of ln(1 + exp(max over p of d(a, p) - min over n of d(a, n)))

    p are the others of a's class, n those of other classes. Without any p, d(a, p) is 0; without any n, d(a, n) is the largest distance
    from a, as in TensorFlow Addons. An embedding that is not finite makes the loss NaN.

    Args:
        margin: at least 0.
        distance: `"L2"`, `"squared-L2"`, or `"angular"`, 1 - cosine.
        soft: whether to take the soft form, which has no margin.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`, best integers: they are compared as they are.
        y_pred: embeddings, `[B, D]`, usually of length 1.

    Returns:
        A scalar; with `reduction=None` `[B]`, one for each anchor.

    Raises:
        ValueError: if an argument is out of its range, or a shape another one.

    Example:
        >>> loss = TripletHardLoss(margin=1.0, reduction=None)
        >>> loss(tf.constant([0, 0, 1]), tf.constant([[0.0], [1.0], [1.5]])).numpy().tolist()
        [0.5, 1.5, 0.5]

    References:
        Hermans, Beyer & Leibe 2017, arXiv:1703.07737.
    """

    def __init__(self, *, margin: float = 1.0, distance: str = "L2", soft: bool = False, **kwargs: Any):
        super().__init__(margin=margin, distance=distance, **kwargs)
        self.soft = bool(soft)

    def _losses_of_anchors(self, distances: tf.Tensor, same: tf.Tensor) -> tf.Tensor:
        largest = tf.reduce_max(distances, -1, keepdims=True)
        positive = tf.reduce_max(tf.where(_without_diagonal(same), distances, tf.zeros([], distances.dtype)), -1)
        negative = tf.reduce_min(tf.where(same, largest, distances), -1)
        difference = positive - negative
        return tf.math.softplus(difference) if self.soft else tf.nn.relu(self.margin + difference)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "soft": self.soft}


@register
class NPairsLoss(_PairLoss):
    """Cross-entropy of similarities: each anchor has to pick its partner among those of all the others.

        loss = mean over i of -sum over j of q_ij ln softmax(similarity_i)_j
        q_ij = 1 / (number of k with y_k = y_i) if y_j = y_i, else 0

    The paper's penalty on the embeddings' length is left to the caller.

    Args:
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`, best integers: they are compared as they are.
        y_pred: similarities of anchors (rows) and partners (columns), `[B, B]`: `anchors @ transpose(partners)`.

    Returns:
        A scalar; with `reduction=None` `[B]`.

    Raises:
        ValueError: if a shape is another one.

    Example:
        >>> round(float(NPairsLoss()(tf.constant([0, 1]), tf.constant([[2.0, 0.0], [0.0, 2.0]]))), 4)
        0.1269

    References:
        Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS.
    """

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        if not y_pred.shape.is_compatible_with(y_true.shape):
            raise ValueError(f"NPairsLoss needs similarities of shape [B, B]; got shape {tuple(y_pred.shape)}.")
        similarity = full_precision(y_pred)
        same = tf.cast(y_true, similarity.dtype)
        # Not TensorFlow's cross-entropy, which raises for a batch (or a replica's part of it) without examples.
        return tf.reduce_logsumexp(similarity, -1) - tf.reduce_sum(same * similarity, -1) / tf.reduce_sum(same, -1)


def pair_distances(embeddings: tf.Tensor, distance: str) -> tf.Tensor:
    """Distances `[B, B]` of the examples of a batch: exactly 0 from itself, NaN from what is not finite.

    From differences: |x|^2 + |y|^2 - 2xy loses all its digits where embeddings lie far from the origin.
    """
    if distance == "angular":
        largest = tf.stop_gradient(tf.reduce_max(tf.abs(embeddings), -1, keepdims=True))
        scaled = embeddings / tf.where(largest == 0, tf.ones_like(largest), largest)  # whose squares neither vanish nor overflow
        squares = tf.reduce_sum(tf.square(scaled), -1, keepdims=True)
        unit = scaled * tf.math.rsqrt(tf.where(squares == 0, tf.ones_like(squares), squares))
        # 1 - uv = |u - v|^2 / 2 of unit vectors. A vector of 0 has the cosine 0 with all others.
        zero = tf.cast(squares[:, 0] == 0, unit.dtype)
        apart = 1 - tf.eye(tf.shape(unit)[0], dtype=unit.dtype)
        return (_squared_distances(unit) + (zero[:, None] + zero[None, :]) * apart) / 2
    squared = _squared_distances(embeddings)
    if distance == "squared-L2":
        return squared
    apart = squared != 0  # the root's derivative is infinite at 0: none is taken there
    return tf.where(apart, tf.sqrt(tf.where(apart, squared, tf.ones_like(squared))), tf.zeros_like(squared))


@tf.custom_gradient
def _squared_distances(x: tf.Tensor) -> Any:
    """|x_i - x_j|^2. Neither it nor its gradient keeps all differences: `[B, B, D]` would not fit into memory."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        # sum over j of 2 (g_ij + g_ji) (x_i - x_j), whose two parts cancel far from the origin: in double precision.
        pairs, wide = (tf.cast(t, tf.float64) for t in (upstream + tf.transpose(upstream), x))
        return tf.cast(2 * (tf.reduce_sum(pairs, -1, keepdims=True) * wide - tf.matmul(pairs, wide)), x.dtype)

    if x.shape[1] is not None and x.shape[1] <= FEATURES_AT_ONCE:
        return _sum_of_squares(x), gradient
    count, size = tf.unstack(tf.shape(x))
    parts = -(-size // FEATURES_AT_ONCE)
    padded = tf.pad(x, [[0, 0], [0, parts * FEATURES_AT_ONCE - size]])
    columns = tf.transpose(tf.reshape(padded, [count, parts, FEATURES_AT_ONCE]), [1, 0, 2])
    start = tf.zeros([count, count], x.dtype)
    return tf.foldl(lambda total, part: total + _sum_of_squares(part), columns, start, parallel_iterations=1), gradient


def _sum_of_squares(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(x[:, None] - x[None, :]), -1)


def _without_diagonal(matrix: tf.Tensor) -> tf.Tensor:
    return tf.linalg.set_diag(matrix, tf.zeros(tf.shape(matrix)[:1], matrix.dtype))
