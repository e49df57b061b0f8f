"""Layers that drop at random what they are given: single elements, or whole examples on a residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_numbers
from layers.base import Layer, register
from layers.random_bits import random_bits
from layers.replicas import replica_seed

__all__ = ["DropPath", "Dropout"]


@register
class Dropout(Layer):
    """Dropout whose mask differs between replicas and costs next to nothing under XLA.

        y = x * m / (1 - rate),  P(m = 1) = 1 - rate      when training; else y = x

    `keras.layers.Dropout` draws the same mask on every replica: the global batch then sees fewer masks than it has examples. The mask is
    a function of seed, call, replica and element: the same in eager mode, graphs and under XLA, and after a restart from a checkpoint.

    Args:
        rate: share of elements that become 0, at least 0 and below 1; rounded to a multiple of 2^-32.
        noise_shape: shape of the mask, whose dimensions are 1 where it is shared, and None where they are the input's; None draws for each
            element. `(None, 1, None)` drops whole features of `[B, T, D]`.
        seed: seed of the mask, an integer; None draws one.

    Call:
        inputs: floating tensor of any shape.
        training: whether to drop.

    Returns:
        The inputs' shape and dtype.

    Raises:
        ValueError: if `rate` is out of its range, or `noise_shape` does not fit to the inputs.

    Example:
        >>> layer = Dropout(rate=0.5, seed=1)
        >>> y = layer(tf.ones([1000]), training=True)
        >>> sorted(set(y.numpy().tolist())), abs(float(tf.reduce_mean(y)) - 1) < 0.1
        ([0.0, 2.0], True)

    References:
        Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"; Hinton et al. 2012, arXiv:1207.0580.
    """

    def __init__(self, *, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, below=1, rate=rate)
        self.rate, self.seed = float(rate), seed
        self.noise_shape = None if noise_shape is None else list(noise_shape)
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        if self.noise_shape is None:
            return
        fits = len(self.noise_shape) == len(input_shape)
        if not fits or any(n not in (None, 1) and d is not None and n != d for n, d in zip(self.noise_shape, input_shape, strict=True)):
            raise ValueError(f"`noise_shape` is {self.noise_shape}, which does not fit to inputs of shape {input_shape}; use 1 or None.")

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0:
            return tf.identity(inputs)
        shape = tf.shape(inputs)
        if self.noise_shape is not None:
            shape = tf.stack([shape[i] if n is None else n for i, n in enumerate(self.noise_shape)])
        return _drop(inputs, shape, self.rate, self.seed_generator)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}


@register
class DropPath(Layer):
    """Stochastic depth: drops the whole residual branch of an example, and makes up for it in the others.

        y_i = x_i * m_i / (1 - rate),  P(m_i = 1) = 1 - rate      when training; else y = x

    For use as `x + DropPath(rate=...)(branch(x))`. The paper lets the rate grow linearly with depth, from 0 to about 0.5.

    Args:
        rate: probability of dropping, at least 0 and below 1; rounded to a multiple of 2^-32.
        seed: seed of the mask, an integer; None draws one. Replicas draw different masks.

    Call:
        inputs: `[B, ...]`, floating.
        training: whether to drop.

    Returns:
        The inputs' shape and dtype.

    Raises:
        ValueError: if `rate` is out of its range.

    Example:
        >>> y = DropPath(rate=0.2, seed=3)(tf.ones([100, 5]), training=True)
        >>> sorted({tuple(row) for row in y.numpy().tolist()})
        [(0.0, 0.0, 0.0, 0.0, 0.0), (1.25, 1.25, 1.25, 1.25, 1.25)]

    References:
        Huang et al. 2016, arXiv:1603.09382; for each example, as here: Larsson et al. 2016, arXiv:1605.07648.
    """

    def __init__(self, *, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(at_least=0, below=1, rate=rate)
        self.rate, self.seed = float(rate), seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        pass

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        if not training or self.rate == 0:
            return tf.identity(inputs)
        shape = tf.concat([tf.shape(inputs)[:1], tf.ones([inputs.shape.rank - 1], tf.int32)], 0)
        return _drop(inputs, shape, self.rate, self.seed_generator)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _drop(inputs: tf.Tensor, shape: tf.Tensor, rate: float, generator: keras.random.SeedGenerator) -> tf.Tensor:
    """Zeroes what the mask of that shape drops, and scales the rest so that the expectation is kept."""
    dropped = min(round(rate * 2**32), 2**32 - 1)
    keep = random_bits(shape, replica_seed(generator)) >= tf.constant(dropped, tf.uint32)
    scale = 2**32 / (2**32 - dropped)
    return inputs * (tf.cast(keep, inputs.dtype) * tf.constant(scale, inputs.dtype))
