"""Layers for tables: explicit feature crosses, and embeddings of numbers."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers.arguments import check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, register

__all__ = ["CrossV2", "PeriodicEmbedding", "PiecewiseLinearEmbedding", "quantile_edges"]


@register
class CrossV2(Layer):
    """Crosses features explicitly: each layer multiplies once more by the first one's inputs.

        y = x0 * (W x + b) + x,    with `projection`: W = U V^T

    L layers in a row make polynomials of degree L + 1 of the features x0.

    Args:
        projection: rank of W, at least 1: U and V are `[D, projection]`; None makes W `[D, D]`.
        use_bias: whether there is b.
        kernel_initializer: of W, or of U and V.
        kernel_regularizer: of W, or of U and V.

    Call:
        x0: `[..., D]`, floating: inputs of the first layer.
        x: `[..., D]`: outputs of the layer before; None takes `x0`, for the first layer.

    Returns:
        `[..., D]` in the layer's compute dtype.

    Raises:
        ValueError: if `projection` is less than 1, or the shapes differ.

    Example:
        >>> layer = CrossV2(kernel_initializer="identity")
        >>> layer(tf.constant([[1.0, 2.0]])).numpy().tolist()
        [[2.0, 6.0]]

    References:
        Wang et al. 2020, arXiv:2008.13535.
    """

    def __init__(
        self,
        *,
        projection: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, optional=True, projection=projection)
        self.projection, self.use_bias = projection, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.supports_masking = True

    def build(self, x0_shape: Any, x_shape: Any = None) -> None:
        size = known_dimension(self, x0_shape)
        if x_shape is not None and x_shape[-1] != size:
            raise ValueError(f"`x0` and `x` must have the same shape; got {tuple(x0_shape)} and {tuple(x_shape)}.")

        def kernel(shape: tuple[int, int], name: str) -> keras.Variable:
            # A clone, because an initializer gives the same numbers at every call, and U and V had better differ.
            initializer = self.kernel_initializer
            initializer = initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer
            return self.add_weight(shape=shape, initializer=initializer, regularizer=self.kernel_regularizer, name=name)

        if self.projection is None:
            self.kernel = kernel((size, size), "kernel")
        else:
            self.down = kernel((size, self.projection), "down")
            self.up = kernel((self.projection, size), "up")
        if self.use_bias:
            self.bias = self.add_weight(shape=(size,), initializer="zeros", name="bias")

    def call(self, x0: Any, x: Any = None) -> tf.Tensor:
        x = x0 if x is None else x
        narrow = x if self.projection is None else keras.ops.matmul(x, self.down)
        crossed = keras.ops.matmul(narrow, self.kernel if self.projection is None else self.up)
        if self.use_bias:
            crossed += tf.convert_to_tensor(self.bias)
        return x0 * crossed + x

    def compute_output_shape(self, x0_shape: Any, x_shape: Any = None) -> Any:
        return x0_shape

    def get_config(self) -> dict[str, Any]:
        config = {
            "projection": self.projection,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
        return {**super().get_config(), **config}


@register
class PeriodicEmbedding(Layer):
    """Embeds each number by sines and cosines of learned frequencies, so that a network can fit what changes fast with it.

        y_f = [sin(2 pi c_f x_f), cos(2 pi c_f x_f)],    c_f ~ N(0, sigma^2) at the start

    The paper follows it by a linear map for each feature and ReLU ("PLR"):
    `keras.layers.EinsumDense("...fd,fde->...fe", (F, E), bias_axes="fe", activation="relu")`, with `...` written out.

    Args:
        frequencies: number of frequencies of each feature, at least 1.
        sigma: standard deviation of the frequencies at the start, greater than 0: the argument to tune, 0.01 to 100 for standardised x.

    Call:
        inputs: `[..., F]`, floating.

    Returns:
        `[..., F, 2 * frequencies]` in the layer's compute dtype, sines first. The phase is computed in float32 or better.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> PeriodicEmbedding(frequencies=4, sigma=0.1)(tf.zeros([2, 3])).shape
        TensorShape([2, 3, 8])

    References:
        Gorishniy, Rubachev & Babenko 2022, arXiv:2203.05556.
    """

    def __init__(self, *, frequencies: int, sigma: float, **kwargs: Any):
        super().__init__(**kwargs)
        check_integers(at_least=1, frequencies=frequencies)
        check_numbers(above=0, below=math.inf, sigma=sigma)
        self.frequencies, self.sigma = frequencies, float(sigma)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        features = known_dimension(self, input_shape)
        initializer = keras.initializers.RandomNormal(stddev=self.sigma)
        # Not autocast: rounded to half precision, a frequency would be off by a whole turn soon.
        self.coefficients = self.add_weight(
            shape=(features, self.frequencies), initializer=initializer, autocast=False, name="coefficients"
        )

    def call(self, inputs: Any) -> tf.Tensor:
        wide = full_precision(inputs)
        angle = wide[..., None] * (2 * math.pi * tf.cast(self.coefficients, wide.dtype))
        return tf.cast(tf.concat([tf.sin(angle), tf.cos(angle)], -1), inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape, 2 * self.frequencies)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "frequencies": self.frequencies, "sigma": self.sigma}


@register
class PiecewiseLinearEmbedding(Layer):
    """Embeds each number by how far it has come through each of its feature's bins: a one-hot code made continuous.

        y_ft = (x_f - e_f,t-1) / (e_f,t - e_f,t-1),    not below 0 but in the first bin, not above 1 but in the last

    A bin without width is a step from 0 to 1. There is nothing to train.

    Args:
        edges: `[F, T + 1]`, the bins' edges of each feature, not falling along a row, T at least 1. `quantile_edges` makes them from data;
            splits of a decision tree are the paper's other choice. A row with fewer bins may repeat its last edge.

    Call:
        inputs: `[..., F]`, floating.

    Returns:
        `[..., F, T]` in the layer's compute dtype.

    Raises:
        ValueError: if `edges` is no matrix of finite numbers that do not fall, or has not as many rows as there are features.

    Example:
        >>> layer = PiecewiseLinearEmbedding(edges=[[0.0, 1.0, 3.0]])
        >>> layer(tf.constant([[0.5], [2.0], [5.0]]))[:, 0].numpy().tolist()
        [[0.5, 0.0], [1.0, 0.5], [1.0, 2.0]]

    References:
        Gorishniy, Rubachev & Babenko 2022, arXiv:2203.05556.
    """

    def __init__(self, *, edges: Any, **kwargs: Any):
        super().__init__(**kwargs)
        try:
            matrix = np.asarray(edges, "float64")
        except ValueError:
            matrix = np.zeros([0])
        if matrix.ndim != 2 or matrix.shape[1] < 2:
            raise ValueError(f"`edges` must have the shape [features, bins + 1]; got {edges!r}.")
        if not np.isfinite(matrix).all() or (np.diff(matrix) < 0).any():
            raise ValueError(f"`edges` must be finite and must not fall along a row; got {edges!r}.")
        self.edges = matrix.tolist()
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        features = known_dimension(self, input_shape)
        if features != len(self.edges):
            raise ValueError(f"`edges` has {len(self.edges)} rows, but the inputs have {features} features.")

    def call(self, inputs: Any) -> tf.Tensor:
        wide = full_precision(inputs)
        edges = np.asarray(self.edges)
        left, width = edges[:, :-1], np.diff(edges)
        slope = np.divide(1, width, out=np.zeros_like(width), where=width > 0)
        least, greatest = np.zeros_like(width), np.ones_like(width)
        least[:, 0], greatest[:, -1] = -math.inf, math.inf

        def constant(array: Any) -> tf.Tensor:
            return tf.constant(array, wide.dtype)

        way = (wide[..., None] - constant(left)) * constant(slope)
        if width.shape[1] > 1:
            way = tf.minimum(tf.maximum(way, constant(least)), constant(greatest))
        if (width == 0).any():
            way = tf.where(constant(width) == 0, tf.cast(wide[..., None] >= constant(left), wide.dtype), way)
        return tf.cast(way, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape, len(self.edges[0]) - 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "edges": self.edges}


def quantile_edges(data: Any, *, bins: int) -> np.ndarray:
    """Edges between which about equally many examples of each feature lie, for `PiecewiseLinearEmbedding`.

    Args:
        data: `[N, F]`, numbers of the training set; NaN do not count.
        bins: number of bins, at least 1.

    Returns:
        float64 `[F, bins + 1]`, from the least to the greatest number of each feature.

    Raises:
        ValueError: if `bins` is less than 1, or `data` is no matrix with a number in each column.

    Example:
        >>> quantile_edges([[0.0], [1.0], [2.0], [3.0], [4.0]], bins=2).tolist()
        [[0.0, 2.0, 4.0]]
    """
    data = np.asarray(data, "float64")
    check_integers(at_least=1, bins=bins)
    if data.ndim != 2 or np.isnan(data).all(0).any() or not len(data):
        raise ValueError(f"`data` must have the shape [examples, features] and a number in each column; got shape {data.shape}.")
    return np.nanquantile(data, np.linspace(0, 1, bins + 1), axis=0).T
