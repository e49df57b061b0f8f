"""Layers that learn how much to drop: the rate of dropout, and gates that close. (Dropout with a given rate: `layers.dropout`.)"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers._private_api import autocast_scope, get_keras_mask, set_keras_mask
from layers.arguments import check_numbers, known_dimension
from layers.base import Layer, full_precision, register
from layers.random_bits import random_uniform
from layers.replicas import replica_seed

__all__ = ["ConcreteDropout", "HardConcreteGate"]


@register
class ConcreteDropout(Layer):
    """Wraps a layer with a kernel, drops its inputs, and learns the rate p of dropping by gradient descent.

        z    = sigmoid((logit(p) + logit(u)) / temperature),  u ~ U(0, 1)
        y    = layer(x * (1 - z) / (1 - p))                       when training; else y = layer(x)
        loss = weight_regularizer * sum W^2 / (1 - p) + dropout_regularizer * D * (p ln p + (1 - p) ln(1 - p))

    D is the inputs' last dimension, W the kernel. For N training examples, a prior length scale l and model precision tau the paper sets
    `weight_regularizer = l^2 / (tau N)`, and `dropout_regularizer = 2 / (tau N)` for a Gaussian likelihood with learned noise, `1 / N` for
    cross-entropy. The more data, the less is dropped. Averaging calls at `training=True` estimates the model's uncertainty.

    Args:
        layer: the layer to wrap; it has a `kernel` once it is built, as Dense and convolutions have.
        rate: initial p, between 0 and 1.
        weight_regularizer: at least 0; a weight of the layer, so `.assign(...)` schedules it.
        dropout_regularizer: at least 0; a weight of the layer as well.
        temperature: of the relaxation, greater than 0; near 0 elements are dropped or kept, and gradients grow.
        seed: seed of the noise, an integer; None draws one. Replicas draw different noise.

    Call:
        inputs: `[B, ..., D]`, floating.
        training: whether to drop.

    Returns:
        What the wrapped layer returns.

    Metrics:
        p: the present rate.

    Raises:
        TypeError: if `layer` is no Keras layer.
        ValueError: if an argument is out of its range, the layer has no kernel, or D is unknown.

    Example:
        >>> layer = ConcreteDropout(keras.layers.Dense(2), rate=0.1)
        >>> layer(tf.ones([4, 3])).shape, round(float(layer.p), 4)
        (TensorShape([4, 2]), 0.1)

    References:
        Gal, Hron & Kendall 2017, arXiv:1705.07832.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        rate: float = 0.1,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        temperature: float = 0.1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"`layer` must be a Keras layer to wrap; got {layer!r}.")
        check_numbers(above=0, below=1, rate=rate)
        check_numbers(at_least=0, weight_regularizer=weight_regularizer, dropout_regularizer=dropout_regularizer)
        check_numbers(above=0, temperature=temperature)
        self.layer, self.rate, self.temperature, self.seed = layer, float(rate), float(temperature), seed
        self.initial_regularizers = float(weight_regularizer), float(dropout_regularizer)
        self.supports_masking = True
        self.weight_regularizer = self.add_coefficient("weight_regularizer", weight_regularizer)
        self.dropout_regularizer = self.add_coefficient("dropout_regularizer", dropout_regularizer)
        initial = keras.initializers.Constant(math.log(rate) - math.log1p(-rate))
        self.p_logit = self.add_weight(shape=(), initializer=initial, autocast=False, name="p_logit")
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.declare_metric("p", "last")

    @property
    def p(self) -> tf.Tensor:
        """The present rate, a scalar."""
        return tf.sigmoid(full_precision(self.p_logit))

    def build(self, input_shape: Any) -> None:
        self.dimension = known_dimension(self, input_shape)
        if not self.layer.built:
            self.layer.build(input_shape)
        if getattr(self.layer, "kernel", None) is None:
            raise ValueError(
                f"ConcreteDropout regularizes a kernel, and {type(self.layer).__name__} has none; wrap a Dense or a convolution."
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        logit = full_precision(self.p_logit)
        log_p, log_kept = -tf.math.softplus(-logit), -tf.math.softplus(logit)
        p, kept = tf.sigmoid(logit), tf.sigmoid(-logit)
        with autocast_scope(None):  # the kernel as it is, not rounded to half precision
            squares = tf.reduce_sum(tf.square(full_precision(self.layer.kernel)))
        squares = tf.cast(squares, logit.dtype)
        weight, entropy = (tf.cast(c, logit.dtype) for c in (self.weight_regularizer, self.dropout_regularizer))
        self.add_loss(weight * squares / kept + entropy * self.dimension * (p * log_p + kept * log_kept))
        self.add_metric(p, "p", "last")
        if training:
            mask, wide = get_keras_mask(inputs), full_precision(inputs)
            u = random_uniform(tf.shape(wide), replica_seed(self.seed_generator), wide.dtype)
            noise = tf.math.log(u / (1 - u))
            not_dropped = tf.sigmoid((tf.cast(logit, wide.dtype) + noise) * (-1 / self.temperature))
            inputs = tf.cast(wide * not_dropped / tf.cast(kept, wide.dtype), inputs.dtype)
            if mask is not None:
                set_keras_mask(inputs, mask)
        return self.layer(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask) if self.layer.supports_masking else None

    def get_config(self) -> dict[str, Any]:
        weight_regularizer, dropout_regularizer = self.initial_regularizers
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "rate": self.rate,
            "weight_regularizer": weight_regularizer,
            "dropout_regularizer": dropout_regularizer,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConcreteDropout:
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


@register
class HardConcreteGate(Layer):
    """Multiplies each feature by a gate that can learn to be exactly 0: L0 regularization of what comes out of a layer.

        s    = sigmoid((log_alpha + logit(u)) / temperature),  u ~ U(0, 1)    when training; else s = sigmoid(log_alpha)
        gate = clip(s * (high - low) + low, 0, 1),    y = x * gate
        loss = strength * sum over features of P(gate != 0),   P(gate != 0) = sigmoid(log_alpha - temperature * ln(-low / high))

    Each example has its own gates when training. Features whose gate is 0 at inference can be cut away.

    Args:
        strength: the paper's lambda, at least 0; a weight of the layer, so `layer.strength.assign(...)` schedules it.
        keep_rate: initial `sigmoid(log_alpha)`, between 0 and 1.
        temperature: of the relaxation, the paper's beta, between 0 and 1.
        low: where the stretched interval begins, the paper's gamma, below 0.
        high: where it ends, the paper's zeta, above 1.
        seed: seed of the noise, an integer; None draws one. Replicas draw different noise.

    Call:
        inputs: `[B, ..., D]`, floating.
        training: whether to sample.

    Returns:
        The inputs' shape and dtype.

    Metrics:
        sparsity: expected share of gates that are 0, `1 - mean P(gate != 0)`.

    Raises:
        ValueError: if an argument is out of its range, or D is unknown.

    Example:
        >>> layer = HardConcreteGate(strength=0.1)
        >>> layer(tf.ones([2, 3])).numpy().tolist(), round(float(layer.losses[0]), 4)
        ([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], 0.2495)

    References:
        Louizos, Welling & Kingma 2017, arXiv:1712.01312.
    """

    def __init__(
        self,
        *,
        strength: float = 1e-3,
        keep_rate: float = 0.5,
        temperature: float = 2 / 3,
        low: float = -0.1,
        high: float = 1.1,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_numbers(at_least=0, strength=strength)
        check_numbers(above=0, below=1, keep_rate=keep_rate, temperature=temperature)
        if not low < 0:
            raise ValueError(f"`low` must be below 0, so that gates can close; got {low!r}.")
        if not high > 1:
            raise ValueError(f"`high` must be above 1, so that gates can open; got {high!r}.")
        self.initial_strength, self.keep_rate, self.temperature = float(strength), float(keep_rate), float(temperature)
        self.low, self.high, self.seed = float(low), float(high), seed
        self.supports_masking = True
        self.strength = self.add_coefficient("strength", strength)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.declare_metric("sparsity", "last")

    def build(self, input_shape: Any) -> None:
        size = known_dimension(self, input_shape)
        initial = keras.initializers.Constant(math.log(self.keep_rate) - math.log1p(-self.keep_rate))
        self.log_alpha = self.add_weight(shape=(size,), initializer=initial, autocast=False, name="log_alpha")

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        log_alpha = full_precision(self.log_alpha)
        open_probability = tf.sigmoid(log_alpha - self.temperature * math.log(-self.low / self.high))
        self.add_loss(tf.cast(self.strength, log_alpha.dtype) * tf.reduce_sum(open_probability))
        self.add_metric(1 - open_probability, "sparsity", "last")
        if training:
            shape = tf.shape(inputs)
            shape = tf.concat([shape[:1], tf.ones([inputs.shape.rank - 2], tf.int32), shape[-1:]], 0)
            u = random_uniform(shape, replica_seed(self.seed_generator), log_alpha.dtype)
            s = tf.sigmoid((log_alpha + tf.math.log(u / (1 - u))) / self.temperature)
        else:
            s = tf.sigmoid(log_alpha)
        gate = tf.clip_by_value(s * (self.high - self.low) + self.low, 0.0, 1.0)
        return inputs * tf.cast(gate, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = {"strength": self.initial_strength, "keep_rate": self.keep_rate, "temperature": self.temperature}
        return {**super().get_config(), **config, "low": self.low, "high": self.high, "seed": self.seed}
