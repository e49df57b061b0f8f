"""A dense layer with learned noise on its weights, for exploration in reinforcement learning."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_choice, check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, register
from layers.random_bits import random_normal
from layers.replicas import replica_seed

__all__ = ["NoisyDense"]

NOISES = ("factorised", "independent")


@register
class NoisyDense(Layer):
    """Dense layer whose weights carry noise of a learned scale, so that a policy learns where to explore.

        y = activation((M + S * E) x + m + s * e)        when training; else the means M, m alone

    M, S (kernels) and m, s (biases) are learned. Factorised noise takes one number for each input, p, and each output, q: with
    `f(t) = sign(t) sqrt(|t|)` and `t ~ N(0, 1)`, `E = f(p) f(q)^T` and `e = f(q)`; the variance of E is 2/pi, that of e sqrt(2/pi).
    Independent noise is N(0, 1) for each weight. All examples of a batch see the same noise, the next call sees other. The means begin
    uniform within `1/sqrt(inputs)` (independent: `sqrt(3/inputs)`), as in the paper.

    Args:
        units: number of outputs, at least 1.
        activation: as in `keras.layers.Dense`.
        use_bias: whether there are m and s.
        noise: `"factorised"` (cheap) or `"independent"`.
        sigma: scale of the noise at the start, at least 0; divided by `sqrt(inputs)` if factorised. None is the paper's: 0.5 for
            factorised, 0.017 for independent noise.
        seed: seed of the noise, an integer; None draws one. Replicas draw different noise.

    Call:
        inputs: `[..., D]`, floating.
        training: whether there is noise. An agent that explores acts with `training=True`.

    Returns:
        `[..., units]` in the layer's compute dtype.

    Metrics:
        sigma: mean of the absolute values of S; its fall shows that exploring ends.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> layer = NoisyDense(units=2, seed=1)
        >>> x = tf.ones([4, 3])
        >>> bool(tf.reduce_all(layer(x) == layer(x))), bool(tf.reduce_all(layer(x, training=True) == layer(x, training=True)))
        (True, False)

    References:
        Fortunato et al. 2017, arXiv:1706.10295.
    """

    def __init__(
        self,
        *,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        noise: str = "factorised",
        sigma: float | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units)
        check_choice(NOISES, noise=noise)
        check_numbers(at_least=0, below=math.inf, optional=True, sigma=sigma)
        self.units, self.activation, self.use_bias = units, keras.activations.get(activation), use_bias
        self.noise, self.sigma, self.seed = noise, sigma, seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.declare_metric("sigma")

    def build(self, input_shape: Any) -> None:
        size = known_dimension(self, input_shape)
        if self.noise == "factorised":
            bound, scale = 1 / math.sqrt(size), (0.5 if self.sigma is None else self.sigma) / math.sqrt(size)
        else:
            bound, scale = math.sqrt(3 / size), 0.017 if self.sigma is None else self.sigma

        def learned(shape: tuple[int, ...], name: str) -> tuple[keras.Variable, keras.Variable]:
            mean = self.add_weight(shape=shape, initializer=keras.initializers.RandomUniform(-bound, bound), name=name)
            return mean, self.add_weight(shape=shape, initializer=keras.initializers.Constant(scale), name=f"{name}_sigma")

        self.kernel, self.kernel_sigma = learned((size, self.units), "kernel")
        if self.use_bias:
            self.bias, self.bias_sigma = learned((self.units,), "bias")

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        kernel, sigma = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.kernel_sigma)
        bias = tf.convert_to_tensor(self.bias) if self.use_bias else None
        self.add_metric(tf.abs(full_precision(sigma)), "sigma")
        if training:
            kernel_noise, bias_noise = self._draw(kernel.dtype)
            kernel += sigma * kernel_noise
            bias = None if bias is None else bias + tf.convert_to_tensor(self.bias_sigma) * bias_noise
        outputs = keras.ops.matmul(inputs, kernel)
        return self.activation(outputs if bias is None else outputs + bias)

    def _draw(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """Noise for the kernel `[D, units]` and the bias `[units]`."""
        size, units = self.kernel.shape
        if self.noise == "factorised":
            # A normal number is 0.6 of one and 0.8 of another. XLA computes a product once; without it, it would compute the noise of a
            # row and of a column again for each element of the kernel.
            pairs = self._normal([size + units, 2])
            normal = tf.cast(tf.linalg.matvec(pairs, tf.constant([0.6, 0.8], pairs.dtype)), dtype)
            rows, columns = tf.split(tf.sign(normal) * tf.sqrt(tf.abs(normal)), [size, units])
            return rows[:, None] * columns, columns
        normal = tf.cast(self._normal([size + 1, units]), dtype)
        return normal[:-1], normal[-1]

    def _normal(self, shape: list[int]) -> tf.Tensor:
        return random_normal(shape, replica_seed(self.seed_generator), tf.float64 if self.variable_dtype == "float64" else tf.float32)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        config = {
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "noise": self.noise,
            "sigma": self.sigma,
            "seed": self.seed,
        }
        return {**super().get_config(), **config}
