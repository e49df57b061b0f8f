"""The layers' formulas by hand, in plain TensorFlow on the layers' own variables: what `scripts/benchmark_layers.py` compares.

For one precision, without masks, metrics, checks and replicas: what somebody would write who needs the formula in one place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import layers

__all__ = ["FORMULAS", "Formula"]

Outputs = tuple[Any, Any]  # output and loss; 0 if there is none


@dataclasses.dataclass(frozen=True)
class Formula:
    """A layer, and the same by hand.

    Attributes:
        make: makes the layer.
        plain: `(layer, *inputs) -> (output, loss)` as in training, on the layer's variables.
        shapes: shapes of the inputs.
    """

    make: Callable[[], keras.layers.Layer]
    plain: Callable[..., Outputs]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self) -> list[tf.Tensor]:
        """Inputs drawn from the standard normal distribution."""
        random = np.random.default_rng(0)
        return [tf.constant(random.standard_normal(shape), tf.float32) for shape in self.shapes]


def gaussian_sampling(layer: Any, mean: Any, logvar: Any) -> Outputs:
    kl = 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(logvar) - logvar - 1, -1)
    return mean + tf.exp(logvar / 2) * tf.random.normal(tf.shape(mean)), layer.beta.value * tf.reduce_mean(kl)


def gradient_reversal(layer: Any, x: Any) -> Outputs:
    @tf.custom_gradient
    def turn(x: Any) -> Any:
        return tf.identity(x), lambda upstream: -layer.strength.value * upstream

    return turn(x), 0.0


def vector_quantizer(layer: Any, x: Any) -> Outputs:
    codebook = layer.codebook.value
    distances = tf.reduce_sum(tf.square(codebook), -1) - 2 * tf.matmul(x, codebook, transpose_b=True)
    found = tf.gather(codebook, tf.argmin(distances, -1))
    loss = tf.reduce_mean(tf.square(tf.stop_gradient(x) - found))
    loss += layer.beta.value * tf.reduce_mean(tf.square(x - tf.stop_gradient(found)))
    return x + tf.stop_gradient(found - x), loss


def router(layer: Any, x: Any) -> Outputs:
    _, _, gate, _, loss = _routed(layer, x)
    return gate[:, None], loss


def mixture_of_experts(layer: Any, x: Any) -> Outputs:
    chosen, position, gate, room, loss = _routed(layer.router, x)
    places = tf.one_hot(chosen, layer.router.experts)[:, :, None] * tf.one_hot(position, room)[:, None, :]
    queues = tf.einsum("nec,nd->ecd", places, x)
    hidden = tf.nn.relu(queues @ layer.kernel_in.value + layer.bias_in.value)
    served = hidden @ layer.kernel_out.value + layer.bias_out.value
    return tf.einsum("nec,ecd->nd", places, served) * gate[:, None], loss


def _routed(layer: Any, x: Any) -> Any:
    logits = x @ layer.kernel.value
    p = tf.nn.softmax(logits)
    chosen = tf.argmax(p, -1)
    one_hot = tf.one_hot(chosen, layer.experts)
    position = tf.cast(tf.reduce_sum(tf.cumsum(one_hot, exclusive=True) * one_hot, -1), tf.int32)
    room = math.ceil(layer.capacity_factor * x.shape[0] / layer.experts)
    gate = tf.reduce_max(p, -1) * tf.cast(position < room, tf.float32)
    loss = layer.balance_weight.value * layer.experts * tf.reduce_sum(tf.reduce_mean(one_hot, 0) * tf.reduce_mean(p, 0))
    return chosen, position, gate, room, loss + layer.z_weight.value * tf.reduce_mean(tf.square(tf.reduce_logsumexp(logits, -1)))


def dense_variational(layer: Any, x: Any) -> Outputs:
    mean, sigma = layer.kernel.value, tf.nn.softplus(layer.rho.value)
    signs_in = tf.sign(tf.random.uniform(tf.shape(x), -1.0, 1.0))
    signs_out = tf.sign(tf.random.uniform([x.shape[0], layer.units], -1.0, 1.0))
    y = x @ mean + ((x * signs_in) @ (sigma * tf.random.normal(tf.shape(sigma)))) * signs_out + layer.bias.value
    kl = tf.reduce_sum((tf.square(sigma) + tf.square(mean) - 1) / 2 - tf.math.log(sigma))
    return y, layer.kl_weight.value / layer.examples * kl


def dropout(layer: Any, x: Any) -> Outputs:
    return tf.nn.dropout(x, layer.rate), 0.0


def drop_path(layer: Any, x: Any) -> Outputs:
    return x * tf.floor(1 - layer.rate + tf.random.uniform([x.shape[0], 1])) / (1 - layer.rate), 0.0


def noisy_dense(layer: Any, x: Any) -> Outputs:
    def noise(size: int) -> Any:
        normal = tf.random.normal([size])
        return tf.sign(normal) * tf.sqrt(tf.abs(normal))

    rows, columns = noise(x.shape[-1]), noise(layer.units)
    kernel = layer.kernel.value + layer.kernel_sigma.value * rows[:, None] * columns
    return x @ kernel + layer.bias.value + layer.bias_sigma.value * columns, 0.0


def weight_normalization(layer: Any, x: Any) -> Outputs:
    kernel = layer.gain.value * tf.math.l2_normalize(layer.layer.kernel.value, 0)
    return x @ kernel + layer.layer.bias.value, 0.0


def spectral_norm(layer: Any, x: Any) -> Outputs:
    kernel = layer.layer.kernel.value
    fixed = tf.stop_gradient(kernel)
    left = tf.math.l2_normalize(tf.linalg.matvec(fixed, layer.u.value))
    right = tf.math.l2_normalize(tf.linalg.matvec(fixed, left, transpose_a=True))
    layer.u.value.assign(right)
    sigma = tf.reduce_sum(left * tf.linalg.matvec(kernel, right))
    return x @ (layer.coefficient.value * kernel / sigma) + layer.layer.bias.value, 0.0


def cross(layer: Any, x0: Any, x: Any) -> Outputs:
    return x0 * (x @ layer.kernel.value + layer.bias.value) + x, 0.0


def periodic_embedding(layer: Any, x: Any) -> Outputs:
    angle = 2 * math.pi * layer.coefficients.value * x[..., None]
    return tf.concat([tf.sin(angle), tf.cos(angle)], -1), 0.0


def piecewise_linear_embedding(layer: Any, x: Any) -> Outputs:
    edges = tf.constant(layer.edges)
    way = (x[..., None] - edges[:, :-1]) / (edges[:, 1:] - edges[:, :-1])
    first, middle, last = way[..., :1], way[..., 1:-1], way[..., -1:]
    return tf.concat([tf.minimum(first, 1.0), tf.clip_by_value(middle, 0.0, 1.0), tf.maximum(last, 0.0)], -1), 0.0


def maxout(layer: Any, x: Any) -> Outputs:
    return tf.reduce_max(tf.reshape(x, [x.shape[0], layer.units, -1]), -1), 0.0


def netvlad(layer: Any, x: Any) -> Outputs:
    belongs = tf.nn.softmax(x @ layer.kernel.value + layer.bias.value)
    distances = tf.matmul(belongs, x, transpose_a=True) - tf.reduce_sum(belongs, 1)[..., None] * layer.centers.value
    flat = tf.reshape(tf.math.l2_normalize(distances, -1), [x.shape[0], -1])
    return tf.math.l2_normalize(flat, -1), 0.0


def gated_residual(layer: Any, x: Any, context: Any) -> Outputs:
    hidden = tf.nn.elu(x @ layer.input_kernel.value + layer.input_bias.value + (context @ layer.context_kernel.value)[:, None])
    hidden = hidden @ layer.hidden_kernel.value + layer.hidden_bias.value
    gate = tf.sigmoid(hidden @ layer.gate_kernel.value + layer.gate_bias.value)
    y = x + gate * (hidden @ layer.value_kernel.value + layer.value_bias.value)
    mean, variance = tf.nn.moments(y, -1, keepdims=True)
    return tf.nn.batch_normalization(y, mean, variance, layer.offset.value, layer.scale.value, layer.epsilon), 0.0


POSITIVE = keras.initializers.RandomUniform(0.0, 0.1)
EDGES = [[-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]] * 64

#: Layers with inputs of a size that is common for them; small enough for a CPU.
FORMULAS: dict[str, Formula] = {
    "GaussianSampling": Formula(layers.GaussianSampling, gaussian_sampling, ((256, 128), (256, 128))),
    "GradientReversal": Formula(layers.GradientReversal, gradient_reversal, ((256, 512),)),
    "VectorQuantizer": Formula(lambda: layers.VectorQuantizer(codes=512), vector_quantizer, ((1024, 64),)),
    "TopKRouter": Formula(lambda: layers.TopKRouter(experts=8), router, ((1024, 128),)),
    "MixtureOfExperts": Formula(lambda: layers.MixtureOfExperts(experts=8, units=256), mixture_of_experts, ((1024, 128),)),
    "DenseVariational": Formula(lambda: layers.DenseVariational(units=256, examples=1000), dense_variational, ((128, 256),)),
    "Dropout": Formula(lambda: layers.Dropout(rate=0.3), dropout, ((256, 1024),)),
    "DropPath": Formula(lambda: layers.DropPath(rate=0.3), drop_path, ((256, 1024),)),
    "NoisyDense": Formula(lambda: layers.NoisyDense(units=512), noisy_dense, ((128, 512),)),
    "WeightNormalization": Formula(lambda: layers.WeightNormalization(keras.layers.Dense(512)), weight_normalization, ((128, 512),)),
    # With a positive kernel power iterations have converged at the start, and both programs have the same u.
    "SpectralNorm": Formula(
        lambda: layers.SpectralNorm(keras.layers.Dense(512, kernel_initializer=POSITIVE)), spectral_norm, ((128, 512),)
    ),
    "CrossV2": Formula(layers.CrossV2, cross, ((256, 256), (256, 256))),
    "PeriodicEmbedding": Formula(lambda: layers.PeriodicEmbedding(frequencies=16, sigma=1.0), periodic_embedding, ((256, 64),)),
    "PiecewiseLinearEmbedding": Formula(lambda: layers.PiecewiseLinearEmbedding(edges=EDGES), piecewise_linear_embedding, ((1024, 64),)),
    "Maxout": Formula(lambda: layers.Maxout(units=256), maxout, ((256, 1024),)),
    "NetVLAD": Formula(lambda: layers.NetVLAD(clusters=32), netvlad, ((16, 196, 128),)),
    "GatedResidual": Formula(lambda: layers.GatedResidual(units=64), gated_residual, ((32, 64, 64), (32, 16))),
}
