"""Losses that went with TensorFlow Addons: of triplets, pairs and quantiles, and sparsemax's own. For `compile(loss=...)` or any loop.

As all Keras losses they give one value for each example, which is then weighted and reduced; the triplet losses and NPairs compare the
examples of a batch with each other: under replicas, those of a replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_choice, check_numbers
from layers.base import register

__all__ = ["ContrastiveLoss", "NPairsLoss", "PinballLoss", "SparsemaxLoss", "TripletHardLoss", "TripletSemiHardLoss", "sparsemax"]

DISTANCES = ("L2", "squared-L2", "angular")


class _TripletLoss(keras.losses.Loss):
    """Base of the triplet losses: margin and distance."""

    def __init__(self, *, margin: float = 1.0, distance: str = "L2", **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, margin=margin)
        check_choice(DISTANCES, distance=distance)
        self.margin, self.distance = float(margin), distance

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, "margin": self.margin, "distance": self.distance}


@register
class TripletSemiHardLoss(_TripletLoss):
    """Triplet loss over all positive pairs, each with its semi-hard negative: the nearest one farther away than the positive.

        loss = mean over pairs a != p with y_a = y_p of max(0, margin + d(a, p) - d(a, n))
        n    = the nearest of another class with d(a, n) > d(a, p); if there is none, the farthest of another class

    An anchor in whose batch there is no other class takes d(a, n) = 0, as in TensorFlow Addons; without any pair the loss is 0.

    Args:
        margin: at least 0.
        distance: `"L2"`, `"squared-L2"`, or `"angular"`, 1 - cosine.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`.
        y_pred: embeddings, `[B, D]`, usually of length 1.

    Returns:
        A scalar; with `reduction=None` `[B]`, whose mean it is: each anchor's share.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> loss = TripletSemiHardLoss(margin=1.0)
        >>> float(loss(tf.constant([0, 0, 1]), tf.constant([[0.0], [1.0], [1.5]])))
        1.0

    References:
        Schroff, Kalenichenko & Philbin 2015 (FaceNet), arXiv:1503.03832.
    """

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        distances, same = _pairs(y_true, y_pred, self.distance)
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
    from a, as in TensorFlow Addons.

    Args:
        margin: at least 0.
        distance: `"L2"`, `"squared-L2"`, or `"angular"`, 1 - cosine.
        soft: whether to take the soft form, which has no margin.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`.
        y_pred: embeddings, `[B, D]`, usually of length 1.

    Returns:
        A scalar; with `reduction=None` `[B]`, one for each anchor.

    Raises:
        ValueError: if an argument is out of its range.

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

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        distances, same = _pairs(y_true, y_pred, self.distance)
        largest = tf.reduce_max(distances, -1, keepdims=True)
        positive = tf.reduce_max(tf.where(_without_diagonal(same), distances, tf.zeros([], distances.dtype)), -1)
        negative = tf.reduce_min(tf.where(same, largest, distances), -1)
        difference = positive - negative
        return tf.math.softplus(difference) if self.soft else tf.nn.relu(self.margin + difference)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "soft": self.soft}


@register
class ContrastiveLoss(keras.losses.Loss):
    """Brings pairs that belong together close, and others at least a margin apart.

        loss = y * d^2 + (1 - y) * max(0, margin - d)^2

    Args:
        margin: greater than 0.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: 1 for pairs that belong together, 0 for others; as many as there are distances.
        y_pred: distances d of the pairs, `[B]` or `[B, 1]`.

    Returns:
        A scalar; with `reduction=None` the shape of `y_pred`.

    Raises:
        ValueError: if `margin` is out of its range.

    Example:
        >>> loss = ContrastiveLoss(margin=1.0, reduction=None)
        >>> loss(tf.constant([1, 0, 0]), tf.constant([0.5, 0.25, 2.0])).numpy().tolist()
        [0.25, 0.5625, 0.0]

    References:
        Hadsell, Chopra & LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
    """

    def __init__(self, *, margin: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(above=0, margin=margin)
        self.margin = float(margin)

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        together = tf.reshape(y_true, tf.shape(y_pred))
        return together * tf.square(y_pred) + (1 - together) * tf.square(tf.nn.relu(self.margin - y_pred))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, "margin": self.margin}


@register
class NPairsLoss(keras.losses.Loss):
    """Cross-entropy of similarities: each anchor has to pick its partner among those of all the others.

        loss = mean over i of -sum over j of q_ij ln softmax(similarity_i)_j
        q_ij = 1 / (number of k with y_k = y_i) if y_j = y_i, else 0

    The paper's penalty on the embeddings' length is left to the caller.

    Args:
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: labels, `[B]` or `[B, 1]`.
        y_pred: similarities of anchors (rows) and partners (columns), `[B, B]`: `anchors @ transpose(partners)`.

    Returns:
        A scalar; with `reduction=None` `[B]`.

    Example:
        >>> round(float(NPairsLoss()(tf.constant([0, 1]), tf.constant([[2.0, 0.0], [0.0, 2.0]]))), 4)
        0.1269

    References:
        Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS.
    """

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        same = tf.cast(_same_label(y_true), y_pred.dtype)
        # Not TensorFlow's cross-entropy, which raises for a batch (or a replica's part of it) without examples.
        return tf.reduce_logsumexp(y_pred, -1) - tf.reduce_sum(same * y_pred, -1) / tf.reduce_sum(same, -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


@register
class PinballLoss(keras.losses.Loss):
    """Quantile loss: least where the prediction is the quantile tau of the targets. With tau = 0.5 half the absolute error.

        loss = mean over the last dimension of max(tau * (y - f), (tau - 1) * (y - f))

    Args:
        tau: between 0 and 1; or one for each output, to predict several quantiles of a target `[..., 1]`.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: targets y, `[..., D]`, or `[..., 1]` for several quantiles.
        y_pred: predictions f, `[..., D]`.

    Returns:
        A scalar; with `reduction=None` `[...]`.

    Raises:
        ValueError: if `tau` is out of its range.

    Example:
        >>> loss = PinballLoss(tau=[0.1, 0.9])
        >>> round(float(loss(tf.constant([[1.0]]), tf.constant([[0.0, 0.0]]))), 6)
        0.5

    References:
        Koenker & Bassett 1978, "Regression Quantiles", Econometrica 46.
    """

    def __init__(self, *, tau: float | Sequence[float] = 0.5, **kwargs: Any):
        super().__init__(**kwargs)
        quantiles = [tau] if isinstance(tau, (int, float)) else list(tau)
        if not quantiles or not all(0 < one < 1 for one in quantiles):
            raise ValueError(f"`tau` must be between 0 and 1, or a list of such numbers; got {tau!r}.")
        self.tau = float(quantiles[0]) if isinstance(tau, (int, float)) else [float(one) for one in quantiles]

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        error, tau = y_true - y_pred, tf.constant(self.tau, y_pred.dtype)
        return tf.reduce_mean(tf.maximum(tau * error, (tau - 1) * error), -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, "tau": self.tau}


@register
class SparsemaxLoss(keras.losses.Loss):
    """The loss that belongs to sparsemax as cross-entropy does to softmax: convex, 0 when the right class leads by 1.

        p    = sparsemax(z), the point of the simplex nearest to z
        loss = z . (p - q) + (|q|^2 - |p|^2) / 2,    d loss / d z = p - q

    Computed by this derivative, so that second derivatives are not available. Predict with `layers.losses.sparsemax`.

    Args:
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: probabilities q, `[..., K]`, one-hot or not.
        y_pred: logits z, `[..., K]`.

    Returns:
        A scalar; with `reduction=None` `[...]`.

    Example:
        >>> loss = SparsemaxLoss(reduction=None)
        >>> loss(tf.constant([[1.0, 0.0], [1.0, 0.0]]), tf.constant([[2.0, 1.0], [0.0, 0.0]])).numpy().tolist()
        [0.0, 0.25]

    References:
        Martins & Astudillo 2016, arXiv:1602.02068; for any q: Blondel, Martins & Niculae 2019, arXiv:1901.02324.
    """

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        logits = y_pred - tf.stop_gradient(tf.reduce_max(y_pred, -1, keepdims=True))  # changes nothing but the rounding
        p = tf.stop_gradient(sparsemax(logits))
        return tf.reduce_sum(logits * (p - y_true) + (tf.square(y_true) - tf.square(p)) / 2, -1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


def sparsemax(logits: Any) -> tf.Tensor:
    """Softmax's counterpart with exact zeros: the point of the probability simplex that is nearest to the logits.

        p_k = max(0, z_k - threshold), the threshold such that the p_k add up to 1

    `keras.ops.sparsemax` of Keras 3.15 has another threshold, with which they do not.

    Args:
        logits: `[..., K]`, floating.

    Returns:
        `[..., K]`, nonnegative; each row adds up to 1.

    Example:
        >>> sparsemax(tf.constant([[1.0, 0.5, -1.0]])).numpy().tolist()
        [[0.75, 0.25, 0.0]]

    References:
        Martins & Astudillo 2016, arXiv:1602.02068.
    """
    logits = tf.convert_to_tensor(logits)
    descending = tf.sort(logits, -1, direction="DESCENDING")
    place = tf.cast(tf.range(1, tf.shape(logits)[-1] + 1), logits.dtype)
    support = 1 + place * descending > tf.cumsum(descending, -1)
    chosen = tf.cast(support, logits.dtype)
    total = tf.reduce_sum(tf.where(support, descending, tf.zeros_like(descending)), -1, keepdims=True)
    threshold = (total - 1) / tf.reduce_sum(chosen, -1, keepdims=True)
    return tf.nn.relu(logits - threshold)


def _same_label(labels: tf.Tensor) -> tf.Tensor:
    labels = tf.reshape(labels, [-1])
    return labels[:, None] == labels[None, :]


def _without_diagonal(matrix: tf.Tensor) -> tf.Tensor:
    return tf.linalg.set_diag(matrix, tf.zeros(tf.shape(matrix)[:1], matrix.dtype))


def _pairs(labels: tf.Tensor, embeddings: tf.Tensor, distance: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Distances `[B, B]` of the examples of a batch, exactly 0 from itself, and whether their labels are the same."""
    squares = tf.reduce_sum(tf.square(embeddings), -1)
    if distance == "angular":
        embeddings *= tf.math.rsqrt(tf.where(squares > 0, squares, 1.0))[:, None]
        distances = tf.nn.relu(1 - tf.matmul(embeddings, embeddings, transpose_b=True))
    else:
        distances = tf.nn.relu(squares[:, None] + squares[None, :] - 2 * tf.matmul(embeddings, embeddings, transpose_b=True))
    distances = tf.linalg.set_diag(distances, tf.zeros_like(squares))
    if distance == "L2":  # the root's derivative is infinite at 0: none is taken there
        apart = distances > 0
        distances = tf.where(apart, tf.sqrt(tf.where(apart, distances, 1.0)), 0.0)
    return distances, _same_label(labels)
