"""Losses that went with TensorFlow Addons: of pairs, of quantiles, and sparsemax's own. For `compile(loss=...)` or any loop.

As all Keras losses they give one value for each example, which is then weighted and reduced, and align ranks as Keras's do: targets `[B]`
fit to predictions `[B, 1]`. What would be broadcast, each with each, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from layers.alignment import fitting
from layers.arguments import check_numbers
from layers.base import full_precision, register

__all__ = ["ContrastiveLoss", "PinballLoss", "SparsemaxLoss", "sparsemax"]


@register
class ContrastiveLoss(keras.losses.Loss):
    """Brings pairs that belong together close, and others at least a margin apart.

        loss = y * d^2 + (1 - y) * max(0, margin - d)^2

    Args:
        margin: greater than 0.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: 1 for pairs that belong together, 0 for others, `[B]` or `[B, 1]`.
        y_pred: distances d of the pairs, `[B]` or `[B, 1]`.

    Returns:
        A scalar; with `reduction=None` the shape of `y_pred`.

    Raises:
        ValueError: if `margin` is out of its range, or shapes do not fit.

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
        together = tf.reshape(fitting("ContrastiveLoss", y_true, y_pred)[0], tf.shape(y_pred))
        return together * tf.square(y_pred) + (1 - together) * tf.square(tf.nn.relu(self.margin - y_pred))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, "margin": self.margin}


@register
class PinballLoss(keras.losses.Loss):
    """Quantile loss: least where the prediction is the quantile tau of the targets. With tau = 0.5 half the absolute error.

        loss = mean over the last dimension of max(tau * (y - f), (tau - 1) * (y - f))

    Args:
        tau: between 0 and 1; or one for each output, to predict several quantiles of a target `[..., 1]` or `[...]`.
        **kwargs: `reduction`, `name`, `dtype`, as for any Keras loss.

    Call:
        y_true: targets y, `[..., D]`, or `[..., 1]` if all predictions have the same target. For a list `tau` also `[...]`.
        y_pred: predictions f, `[..., D]`.

    Returns:
        A scalar; with `reduction=None` `[...]`.

    Raises:
        ValueError: if `tau` is out of its range, or shapes do not fit to each other or to it.

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
        if isinstance(self.tau, list):
            if y_pred.shape[-1] not in (len(self.tau), None):
                raise ValueError(
                    f"PinballLoss: `tau` has {len(self.tau)} quantiles, so predictions must have shape [..., {len(self.tau)}]; "
                    f"got shape {tuple(y_pred.shape)}."
                )
            y_pred = tf.ensure_shape(y_pred, [*y_pred.shape[:-1], len(self.tau)])
            y_true = y_true[..., None] if y_true.shape.rank == y_pred.shape.rank - 1 else y_true
        y_true, y_pred = fitting("PinballLoss", y_true, y_pred, shared=True)
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

    Raises:
        ValueError: if shapes do not fit, as those of class numbers.

    Example:
        >>> loss = SparsemaxLoss(reduction=None)
        >>> loss(tf.constant([[1.0, 0.0], [1.0, 0.0]]), tf.constant([[2.0, 1.0], [0.0, 0.0]])).numpy().tolist()
        [0.0, 0.25]

    References:
        Martins & Astudillo 2016, arXiv:1602.02068; for any q: Blondel, Martins & Niculae 2019, arXiv:1901.02324.
    """

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        if y_true.shape.rank != y_pred.shape.rank or not y_true.shape.is_compatible_with(y_pred.shape):
            raise ValueError(
                f"SparsemaxLoss: targets of shape {tuple(y_true.shape)} are not the probabilities of {y_pred.shape[-1]} classes for "
                f"predictions of shape {tuple(y_pred.shape)}; of class numbers take tf.one_hot."
            )
        y_true, logits = full_precision(tf.ensure_shape(y_true, y_pred.shape)), full_precision(y_pred)
        logits -= tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))  # changes nothing but the rounding
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
        `[..., K]` in the logits' dtype, nonnegative; each row adds up to 1.

    Example:
        >>> sparsemax(tf.constant([[1.0, 0.5, -1.0]])).numpy().tolist()
        [[0.75, 0.25, 0.0]]

    References:
        Martins & Astudillo 2016, arXiv:1602.02068.
    """
    given = tf.convert_to_tensor(logits)
    logits = full_precision(given)
    logits -= tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))  # far from 0 the sums would lose their digits
    descending = tf.sort(logits, -1, direction="DESCENDING")
    place = tf.cast(tf.range(1, tf.shape(logits)[-1] + 1), logits.dtype)
    support = 1 + place * descending > tf.cumsum(descending, -1)
    chosen = tf.cast(support, logits.dtype)
    total = tf.reduce_sum(tf.where(support, descending, tf.zeros_like(descending)), -1, keepdims=True)
    threshold = (total - 1) / tf.reduce_sum(chosen, -1, keepdims=True)
    return tf.cast(tf.nn.relu(logits - threshold), given.dtype)
