"""Layers for adversarial training within one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from layers.arguments import check_numbers
from layers.base import Layer, register

__all__ = ["GradientReversal"]


@register
class GradientReversal(Layer):
    """Passes its input on and turns its gradient round, so that what comes before learns to hurt what comes after.

        y = x,    dL/dx = -strength * dL/dy

    Between features and a domain classifier it makes the features domain-invariant. The classifier itself learns undisturbed.

    Args:
        strength: the paper's lambda; a weight of the layer, so `layer.strength.assign(...)` schedules it.

    Call:
        inputs: floating tensor of any shape.

    Returns:
        The same tensor.

    Metrics:
        strength: its present value.

    Raises:
        ValueError: if `strength` is negative.

    Example:
        >>> layer = GradientReversal(strength=0.5)
        >>> x = tf.constant([1.0, 2.0])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = layer(x)
        >>> tape.gradient(y, x).numpy().tolist()
        [-0.5, -0.5]

    References:
        Ganin & Lempitsky 2014, arXiv:1409.7495.
    """

    def __init__(self, *, strength: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, strength=strength)
        self.initial_strength = float(strength)
        self.supports_masking = True
        self.strength = self.add_coefficient("strength", strength)
        self.declare_metric("strength", "last")

    def build(self, input_shape: Any) -> None:
        pass

    def call(self, inputs: Any) -> tf.Tensor:
        strength = tf.convert_to_tensor(self.strength)
        self.add_metric(strength, "strength", "last")

        @tf.custom_gradient
        def turn(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            # In float32, and then as the input: a small strength must not vanish in half precision.
            return tf.identity(x), lambda upstream: tf.cast(-strength * tf.cast(upstream, strength.dtype), upstream.dtype)

        return turn(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.initial_strength}
