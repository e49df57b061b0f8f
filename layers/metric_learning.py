"""Layers that shape an embedding space by labels: by the distance from class centers, and by angular margins."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers._private_api import get_keras_mask
from layers.arguments import check_numbers, known_dimension
from layers.base import Layer, full_precision, masked_mean, register
from layers.class_numbers import whole_numbers
from layers.replicas import sum_over_replicas

__all__ = ["CenterLoss", "MarginSoftmax"]


@register
class CenterLoss(Layer):
    """Pulls embeddings to the center of their class, and moves the centers after them.

        loss = strength * mean over examples of |x_i - c_y(i)|^2
        c_j  = c_j + update_rate * sum over i with y(i) = j of (x_i - c_j) / (1 + number of these i)     when training

    The paper's loss is half of it, summed. The centers are no trainable weights; they move after the loss is taken, by the examples of all
    replicas. For use beside a classification loss, which keeps the classes apart.

    Args:
        num_classes: number of classes, at least 1.
        strength: the paper's lambda, at least 0; a weight of the layer, so `layer.strength.assign(...)` schedules it.
        update_rate: the paper's alpha, in [0, 1]: how fast centers move.
        centers_initializer: a Keras initializer of `[num_classes, D]`.

    Call:
        inputs: `[..., D]`, floating.
        labels: integers from 0 to num_classes - 1, `[...]` or `[..., 1]`; None, as in prediction, adds no loss. Another number makes the
            loss NaN.
        mask: bool `[...]`, the inputs' own if None; what is masked neither counts nor moves a center.
        training: whether centers move.

    Returns:
        The inputs.

    Metrics:
        distance: mean distance of an example from its center.

    Raises:
        ValueError: if an argument is out of its range, or D is unknown.

    Example:
        >>> layer = CenterLoss(num_classes=2, strength=0.5)
        >>> x = layer(tf.constant([[3.0, 4.0], [0.0, 1.0]]), tf.constant([0, 1]))
        >>> float(layer.losses[0]), float(layer.metrics[0].result())
        (6.5, 3.0)

    References:
        Wen et al. 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV.
    """

    def __init__(
        self, *, num_classes: int, strength: float = 1.0, update_rate: float = 0.5, centers_initializer: Any = "zeros", **kwargs: Any
    ):
        super().__init__(**kwargs)
        check_numbers(at_least=1, num_classes=num_classes)
        check_numbers(at_least=0, strength=strength)
        check_numbers(at_least=0, at_most=1, update_rate=update_rate)
        self.num_classes, self.initial_strength, self.update_rate = int(num_classes), float(strength), float(update_rate)
        self.centers_initializer = keras.initializers.get(centers_initializer)
        self.supports_masking = True
        self.strength = self.add_coefficient("strength", strength)
        self.declare_metric("distance")

    def build(self, inputs_shape: Any, labels_shape: Any = None) -> None:
        self.centers = self.add_weight(
            shape=(self.num_classes, known_dimension(self, inputs_shape)),
            initializer=self.centers_initializer,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",  # every replica computes the same
            name="centers",
        )

    def call(self, inputs: Any, labels: Any = None, mask: Any = None, training: bool | None = None) -> tf.Tensor:
        if labels is None:
            return tf.identity(inputs)
        mask = get_keras_mask(inputs) if mask is None else mask
        wide, labels = full_precision(inputs), _class_ids(self, labels, inputs)
        if mask is not None:
            labels = tf.where(tf.cast(mask, tf.bool), labels, 0)  # padding may have any label
        # In a graph nothing can be raised alike in all modes: a label that is no class gives NaN, and moves nothing.
        center = tf.gather(tf.cast(self.centers, wide.dtype), tf.maximum(labels, 0))
        difference = wide - tf.where(labels[..., None] >= 0, center, tf.constant(float("nan"), wide.dtype))
        squared = tf.reduce_sum(tf.square(difference), -1)
        self.add_loss(tf.cast(self.strength, wide.dtype) * masked_mean(squared, mask))
        self.add_metric(tf.sqrt(squared), "distance", sample_weight=mask)
        if training and self.trainable:
            self._move(difference, labels, mask)
        return tf.identity(inputs)

    def _move(self, difference: tf.Tensor, labels: tf.Tensor, mask: Any) -> None:
        weight = tf.ones_like(difference[..., 0]) if mask is None else tf.cast(mask, difference.dtype)
        difference = tf.where(weight[..., None] == 0, tf.zeros_like(difference), difference)
        rows, ids = tf.reshape(difference, [-1, self.centers.shape[-1]]), tf.reshape(labels, [-1])
        total, count = sum_over_replicas(
            tf.math.unsorted_segment_sum(rows, ids, self.num_classes),
            tf.math.unsorted_segment_sum(tf.reshape(weight, [-1]), ids, self.num_classes),
        )
        step = self.update_rate * total / (1 + count[:, None])
        self.centers.assign_add(tf.cast(step, self.centers.dtype))

    def compute_output_shape(self, inputs_shape: Any, labels_shape: Any = None) -> Any:
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        config = {"num_classes": self.num_classes, "strength": self.initial_strength, "update_rate": self.update_rate}
        initializer = keras.initializers.serialize(self.centers_initializer)
        return {**super().get_config(), **config, "centers_initializer": initializer}


@register
class MarginSoftmax(Layer):
    """Logits that are cosines, with a margin that the right class has to make up for: ArcFace, CosFace, and both together.

        cos_j   = x/|x| . w_j/|w_j|,  t_j the angle
        logit_j = scale * cos_j                                             for the wrong classes
        logit_y = scale * (cos(t_y + angular_margin) - cosine_margin)       for the right one

    Where `t_y + angular_margin` exceeds pi, `cos_y - angular_margin * sin(angular_margin)` stands for the cosine, as in the authors' code,
    so that logits go on falling. For use before `SparseCategoricalCrossentropy(from_logits=True)`. The margin makes training harder, and
    accuracy that is measured on these logits lower than the model's; without labels there is none.

    Args:
        num_classes: number of classes, at least 1.
        scale: the paper's s, greater than 0.
        angular_margin: of ArcFace, in radians, from 0 to pi; a weight of the layer, so `.assign(...)` schedules it.
        cosine_margin: of CosFace (0.35 there, with `angular_margin=0`), at least 0; a weight of the layer as well.
        kernel_initializer: a Keras initializer of `[D, num_classes]`.

    Call:
        inputs: `[..., D]`, floating.
        labels: integers, `[...]` or `[..., 1]`; None, as in prediction, or a label that is no class: no margin.
        mask: bool `[...]`, the inputs' own if None; what is masked does not count in the metric.

    Returns:
        `[..., num_classes]` in the layer's compute dtype, computed in float32 (or float64).

    Metrics:
        target_angle: mean angle between an example and its class, in radians.

    Raises:
        ValueError: if an argument is out of its range, or D is unknown.

    Example:
        >>> layer = MarginSoftmax(num_classes=2, scale=10.0, angular_margin=math.pi / 3, kernel_initializer="identity")
        >>> layer(tf.constant([[2.0, 0.0]]), tf.constant([0])).numpy().round(4).tolist()
        [[5.0, 0.0]]

    References:
        ArcFace: Deng et al. 2018, arXiv:1801.07698; CosFace: Wang et al. 2018, arXiv:1801.09414.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        scale: float = 64.0,
        angular_margin: float = 0.5,
        cosine_margin: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_numbers(at_least=1, num_classes=num_classes)
        check_numbers(at_least=0, cosine_margin=cosine_margin)
        check_numbers(above=0, scale=scale)
        if not 0 <= angular_margin <= math.pi:
            raise ValueError(f"`angular_margin` must be in radians, from 0 to pi; got {angular_margin!r}.")
        self.num_classes, self.scale = int(num_classes), float(scale)
        self.initial_margins = float(angular_margin), float(cosine_margin)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.angular_margin = self.add_coefficient("angular_margin", angular_margin)
        self.cosine_margin = self.add_coefficient("cosine_margin", cosine_margin)
        self.declare_metric("target_angle")

    def build(self, inputs_shape: Any, labels_shape: Any = None) -> None:
        shape = (known_dimension(self, inputs_shape), self.num_classes)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, autocast=False, name="kernel")

    def call(self, inputs: Any, labels: Any = None, mask: Any = None) -> tf.Tensor:
        wide = full_precision(inputs)
        cosines = tf.matmul(_unit(wide, -1), _unit(tf.cast(self.kernel, wide.dtype), 0))
        if labels is not None:
            mask = get_keras_mask(inputs) if mask is None else mask
            cosines = self._with_margin(cosines, _class_ids(self, labels, inputs), mask)
        return tf.cast(self.scale * cosines, inputs.dtype)

    def _with_margin(self, cosines: tf.Tensor, labels: tf.Tensor, mask: Any) -> tf.Tensor:
        angular, cosine_margin = (tf.cast(margin, cosines.dtype) for margin in (self.angular_margin, self.cosine_margin))
        target = tf.one_hot(labels, self.num_classes, dtype=cosines.dtype)
        cos = tf.clip_by_value(tf.reduce_sum(target * cosines, -1), -1.0, 1.0)  # rounding leaves the interval
        squared_sine = 1 - tf.square(cos)
        # The root's derivative is infinite where an example lies on its class: none is taken there.
        sin = tf.where(squared_sine > 0, tf.sqrt(tf.where(squared_sine > 0, squared_sine, 1.0)), 0.0)
        turned = cos * tf.cos(angular) - sin * tf.sin(angular)
        turned = tf.where(cos >= -tf.cos(angular), turned, cos - angular * tf.sin(angular))
        self._report(cos, labels, mask)
        return cosines + target * (turned - cosine_margin - cos)[..., None]

    def _report(self, cos: tf.Tensor, labels: tf.Tensor, mask: Any) -> None:
        counted = labels >= 0
        counted = counted if mask is None else counted & tf.cast(mask, tf.bool)
        self.add_metric(tf.acos(cos), "target_angle", sample_weight=counted)

    def compute_output_shape(self, inputs_shape: Any, labels_shape: Any = None) -> Any:
        return (*inputs_shape[:-1], self.num_classes)

    def get_config(self) -> dict[str, Any]:
        angular_margin, cosine_margin = self.initial_margins
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "scale": self.scale,
            "angular_margin": angular_margin,
            "cosine_margin": cosine_margin,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _class_ids(layer: Any, labels: Any, inputs: tf.Tensor) -> tf.Tensor:
    """int32 in the shape of `inputs` without the last dimension; -1 for what is no class."""
    labels = whole_numbers(type(layer).__name__, labels, classes=layer.num_classes)
    given, wanted = labels.shape, inputs.shape[:-1]
    if given.rank == inputs.shape.rank and given[-1] == 1:
        labels = tf.squeeze(labels, -1)
    if not labels.shape.is_compatible_with(wanted):
        raise ValueError(f"{type(layer).__name__} needs labels of shape {tuple(wanted)}, one for each vector; got shape {tuple(given)}.")
    return tf.ensure_shape(labels, wanted)


def _unit(vectors: tf.Tensor, axis: int) -> tf.Tensor:
    """Vectors of length 1. Those of length 0 stay, with the gradient of the identity: the true one is infinite."""
    squared = tf.reduce_sum(tf.square(vectors), axis, keepdims=True)
    return vectors * tf.math.rsqrt(tf.where(squared > 0, squared, 1.0))
