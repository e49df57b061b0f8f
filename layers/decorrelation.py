"""Layers that decorrelate the features of two views of the same examples, so that embeddings learned without labels do not collapse."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from layers._private_api import get_keras_mask
from layers.arguments import check_numbers, known_dimension
from layers.base import Layer, full_precision, masked_mean, register

__all__ = ["BarlowTwins", "VICReg"]


class _Decorrelation(Layer):
    """Two views of the same examples, passed on, and statistics of them over the batch (over each replica's part of it)."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.declare_metric("off_diagonal")
        self.declare_metric("std")

    def build(self, first_shape: Any, second_shape: Any) -> None:
        if len(first_shape) != len(second_shape) or first_shape[-1] != second_shape[-1]:
            raise ValueError(f"The two views must have the same shape; got {first_shape} and {second_shape}.")
        self.dimension = known_dimension(self, first_shape)

    def call(self, first: Any, second: Any, mask: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is None:
            mask = get_keras_mask(first)
        self.add_loss(self.loss(full_precision(first), full_precision(second), mask))
        return tf.identity(first), tf.identity(second)

    def loss(self, first: tf.Tensor, second: tf.Tensor, mask: Any) -> tf.Tensor:
        raise NotImplementedError

    def compute_output_shape(self, first_shape: Any, second_shape: Any) -> Any:
        return first_shape, second_shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return previous_mask, previous_mask

    def _centered(self, view: tf.Tensor, mask: Any) -> tf.Tensor:
        """Rows `[N, D]` minus their mean, 0 where masked."""
        centered = view - masked_mean(view, mask, keep_last=True)
        if mask is not None:
            centered = tf.where(tf.cast(mask, tf.bool)[..., None], centered, 0.0)
        return tf.reshape(centered, [-1, self.dimension])

    def _count(self, rows: tf.Tensor, mask: Any) -> tf.Tensor:
        return tf.cast(tf.shape(rows)[0], rows.dtype) if mask is None else tf.reduce_sum(tf.cast(mask, rows.dtype))

    def _off_diagonal(self, matrix: tf.Tensor) -> tf.Tensor:
        """Sum of the squares beside the diagonal."""
        return tf.reduce_sum(tf.square(tf.linalg.set_diag(matrix, tf.zeros_like(matrix[0]))))

    def _root_mean(self, off_diagonal: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(off_diagonal / max(1, self.dimension * (self.dimension - 1)))


@register
class BarlowTwins(_Decorrelation):
    """Makes the cross-correlation matrix of two views the identity: each feature agrees with itself, and with no other.

        C    = correlation matrix over the examples of the first view's features (rows) with the second's (columns)
        loss = strength * (sum over i of (1 - C_ii)^2 + redundancy * sum over i != j of C_ij^2)

    Means are over the unmasked examples; under replicas over those of each replica, so that a replica's batch must not be small. A batch
    without examples costs `strength * D`, and has no gradient.

    Args:
        strength: weight of the loss, at least 0; a weight of the layer, so `layer.strength.assign(...)` schedules it.
        redundancy: the paper's lambda, at least 0; a weight of the layer as well.
        epsilon: added to variances under the root, greater than 0.

    Call:
        first: `[..., D]`, floating; all dimensions but the last one are examples.
        second: the other view of the same examples, same shape.
        mask: bool `[...]`, the first view's own if None; what is masked does not count.

    Returns:
        Both views.

    Metrics:
        off_diagonal: root mean square of C beside the diagonal.
        std: mean standard deviation of the features of both views; 0 if they have collapsed.

    Raises:
        ValueError: if an argument is out of its range, the shapes differ, or D is unknown.

    Example:
        >>> layer = BarlowTwins()
        >>> x = tf.constant([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> _ = layer(x, x)
        >>> round(float(layer.losses[0]), 6)
        0.0

    References:
        Zbontar et al. 2021, arXiv:2103.03230.
    """

    def __init__(self, *, strength: float = 1.0, redundancy: float = 5e-3, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, strength=strength, redundancy=redundancy)
        check_numbers(above=0, epsilon=epsilon)
        self.initial_weights, self.epsilon = (float(strength), float(redundancy)), float(epsilon)
        self.strength = self.add_coefficient("strength", strength)
        self.redundancy = self.add_coefficient("redundancy", redundancy)

    def loss(self, first: tf.Tensor, second: tf.Tensor, mask: Any) -> tf.Tensor:
        rows = [self._centered(view, mask) for view in (first, second)]
        count = tf.maximum(self._count(rows[0], mask), 1)
        variances = [tf.reduce_sum(tf.square(r), 0) / count + self.epsilon for r in rows]
        scaled = [r * tf.math.rsqrt(v) for r, v in zip(rows, variances, strict=True)]
        correlation = tf.matmul(*scaled, transpose_a=True) / count
        off_diagonal = self._off_diagonal(correlation)
        self.add_metric(self._root_mean(off_diagonal), "off_diagonal")
        self.add_metric(tf.sqrt(tf.stack(variances)), "std")
        strength, redundancy = (tf.cast(c, first.dtype) for c in (self.strength, self.redundancy))
        return strength * (tf.reduce_sum(tf.square(1 - tf.linalg.diag_part(correlation))) + redundancy * off_diagonal)

    def get_config(self) -> dict[str, Any]:
        strength, redundancy = self.initial_weights
        return {**super().get_config(), "strength": strength, "redundancy": redundancy, "epsilon": self.epsilon}


@register
class VICReg(_Decorrelation):
    """Brings two views together, keeps the variance of each feature, and decorrelates the features of each view.

        s    = mean over examples and features of (z - z')^2
        v(z) = mean over features of max(0, 1 - sqrt(Var(z_d) + epsilon))
        c(z) = sum over i != j of Cov(z)_ij^2 / D
        loss = invariance * s + variance * (v(z) + v(z')) + covariance * (c(z) + c(z'))

    As in the paper's algorithm 1; Var and Cov divide by the number of examples minus 1. Statistics are over the unmasked examples; under
    replicas over those of each replica, so that a replica's batch must not be small.

    Args:
        invariance: the paper's lambda, at least 0; a weight of the layer, so `.assign(...)` schedules it.
        variance: the paper's mu, at least 0; a weight of the layer as well.
        covariance: the paper's nu, at least 0; a weight of the layer as well.
        epsilon: added to variances under the root, greater than 0.

    Call:
        first: `[..., D]`, floating; all dimensions but the last one are examples.
        second: the other view of the same examples, same shape.
        mask: bool `[...]`, the first view's own if None; what is masked does not count.

    Returns:
        Both views.

    Metrics:
        off_diagonal: root mean square of both covariance matrices beside the diagonal.
        std: mean standard deviation of the features of both views; 0 if they have collapsed.

    Raises:
        ValueError: if an argument is out of its range, the shapes differ, or D is unknown.

    Example:
        >>> layer = VICReg(invariance=1.0)
        >>> x = tf.constant([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
        >>> _ = layer(x, x + 1)
        >>> float(layer.losses[0])
        1.0

    References:
        Bardes, Ponce & LeCun 2021, arXiv:2105.04906.
    """

    def __init__(self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, epsilon: float = 1e-4, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, invariance=invariance, variance=variance, covariance=covariance)
        check_numbers(above=0, epsilon=epsilon)
        self.initial_weights, self.epsilon = (float(invariance), float(variance), float(covariance)), float(epsilon)
        self.invariance = self.add_coefficient("invariance", invariance)
        self.variance = self.add_coefficient("variance", variance)
        self.covariance = self.add_coefficient("covariance", covariance)

    def loss(self, first: tf.Tensor, second: tf.Tensor, mask: Any) -> tf.Tensor:
        rows = [self._centered(view, mask) for view in (first, second)]
        count = tf.maximum(self._count(rows[0], mask) - 1, 1)
        covariances = [tf.matmul(r, r, transpose_a=True) / count for r in rows]
        std = tf.stack([tf.sqrt(tf.linalg.diag_part(c) + self.epsilon) for c in covariances])
        off_diagonal = tf.add_n([self._off_diagonal(c) for c in covariances])
        self.add_metric(self._root_mean(off_diagonal / 2), "off_diagonal")
        self.add_metric(std, "std")
        invariance, variance, covariance = (tf.cast(c, first.dtype) for c in (self.invariance, self.variance, self.covariance))
        hinge = tf.reduce_sum(tf.nn.relu(1 - std)) / self.dimension
        distance = masked_mean(tf.square(first - second), mask)
        return invariance * distance + variance * hinge + covariance * off_diagonal / self.dimension

    def get_config(self) -> dict[str, Any]:
        invariance, variance, covariance = self.initial_weights
        config = {"invariance": invariance, "variance": variance, "covariance": covariance, "epsilon": self.epsilon}
        return {**super().get_config(), **config}
