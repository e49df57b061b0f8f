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
        shapes: shapes of the floating inputs.
        labels: shape of labels that come after them, and number of classes; None if there are none.
    """

    make: Callable[[], keras.layers.Layer]
    plain: Callable[..., Outputs]
    shapes: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], int] | None = None

    def inputs(self) -> list[tf.Tensor]:
        """Inputs drawn from the standard normal distribution, and labels."""
        random = np.random.default_rng(0)
        inputs = [tf.constant(random.standard_normal(shape), tf.float32) for shape in self.shapes]
        return inputs + ([] if self.labels is None else [tf.constant(random.integers(self.labels[1], size=self.labels[0]), tf.int32)])


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


def concrete_dropout(layer: Any, x: Any) -> Outputs:
    p, kernel = tf.sigmoid(layer.p_logit.value), layer.layer.kernel.value
    u = tf.random.uniform(tf.shape(x), 1e-7, 1 - 1e-7)
    dropped = tf.sigmoid((layer.p_logit.value + tf.math.log(u) - tf.math.log(1 - u)) / layer.temperature)
    y = (x * (1 - dropped) / (1 - p)) @ kernel + layer.layer.bias.value
    entropy = x.shape[-1] * (p * tf.math.log(p) + (1 - p) * tf.math.log(1 - p))
    weights = tf.reduce_sum(tf.square(kernel)) / (1 - p)
    return y, layer.weight_regularizer.value * weights + layer.dropout_regularizer.value * entropy


def hard_concrete_gate(layer: Any, x: Any) -> Outputs:
    log_alpha = layer.log_alpha.value
    u = tf.random.uniform(tf.shape(x), 1e-7, 1 - 1e-7)
    s = tf.sigmoid((log_alpha + tf.math.log(u) - tf.math.log(1 - u)) / layer.temperature)
    gate = tf.clip_by_value(s * (layer.high - layer.low) + layer.low, 0.0, 1.0)
    return x * gate, layer.strength.value * tf.reduce_sum(tf.sigmoid(log_alpha - layer.temperature * math.log(-layer.low / layer.high)))


def center_loss(layer: Any, x: Any, labels: Any) -> Outputs:
    centers = layer.centers.value
    difference = x - tf.gather(centers, labels)
    total = tf.math.unsorted_segment_sum(tf.stop_gradient(difference), labels, layer.num_classes)
    count = tf.math.unsorted_segment_sum(tf.ones_like(labels, tf.float32), labels, layer.num_classes)
    centers.assign_add(layer.update_rate * total / (1 + count[:, None]))
    return tf.identity(x), layer.strength.value * tf.reduce_mean(tf.reduce_sum(tf.square(difference), -1))


def margin_softmax(layer: Any, x: Any, labels: Any) -> Outputs:
    cosines = tf.math.l2_normalize(x, -1) @ tf.math.l2_normalize(layer.kernel.value, 0)
    turned = tf.cos(tf.acos(tf.clip_by_value(cosines, -1 + 1e-7, 1 - 1e-7)) + layer.angular_margin.value) - layer.cosine_margin.value
    return layer.scale * tf.where(tf.one_hot(labels, layer.num_classes) > 0, turned, cosines), 0.0


def barlow_twins(layer: Any, first: Any, second: Any) -> Outputs:
    def normalised(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, 0)
        return (x - mean) / tf.sqrt(variance + layer.epsilon)

    c = tf.matmul(normalised(first), normalised(second), transpose_a=True) / first.shape[0]
    diagonal = tf.linalg.diag_part(c)
    beside = tf.reduce_sum(tf.square(c)) - tf.reduce_sum(tf.square(diagonal))
    return tf.identity(first), layer.strength.value * (tf.reduce_sum(tf.square(1 - diagonal)) + layer.redundancy.value * beside)


def vicreg(layer: Any, first: Any, second: Any) -> Outputs:
    loss = layer.invariance.value * tf.reduce_mean(tf.square(first - second))
    for x in (first, second):
        x -= tf.reduce_mean(x, 0)
        covariance = tf.matmul(x, x, transpose_a=True) / (x.shape[0] - 1)
        diagonal = tf.linalg.diag_part(covariance)
        loss += layer.variance.value * tf.reduce_mean(tf.nn.relu(1 - tf.sqrt(diagonal + layer.epsilon)))
        beside = tf.reduce_sum(tf.square(covariance)) - tf.reduce_sum(tf.square(diagonal))
        loss += layer.covariance.value * beside / x.shape[1]
    return tf.identity(first), loss


def sinkhorn(layer: Any, x: Any) -> Outputs:
    log_p = x / layer.temperature.value
    for _ in range(layer.iterations):
        log_p -= tf.reduce_logsumexp(log_p, -1, keepdims=True)
        log_p -= tf.reduce_logsumexp(log_p, -2, keepdims=True)
    return tf.exp(log_p), 0.0


def crf(layer: Any, unary: Any, tags: Any) -> Outputs:
    transitions, start, end = (tf.convert_to_tensor(v.value) for v in (layer.transitions, layer.start, layer.end))
    steps = tf.transpose(unary, [1, 0, 2])
    first = start + steps[0]
    total = tf.foldl(lambda s, now: tf.reduce_logsumexp(s[:, :, None] + transitions, 1) + now, steps[1:], first)
    moves = tf.gather_nd(transitions, tf.stack([tags[:, :-1], tags[:, 1:]], -1))
    score = tf.reduce_sum(tf.gather(unary, tags, batch_dims=2), 1) + tf.reduce_sum(moves, 1)
    score += tf.gather(start, tags[:, 0]) + tf.gather(end, tags[:, -1])
    loss = tf.reduce_mean(tf.reduce_logsumexp(total + end, -1) - score)

    def best(before: Any, now: Any) -> Any:
        paths = before[0][:, :, None] + tf.stop_gradient(transitions)
        return tf.reduce_max(paths, 1) + now, tf.argmax(paths, 1, output_type=tf.int32)

    fixed = tf.stop_gradient(steps)
    scores, origins = tf.scan(best, fixed[1:], (tf.stop_gradient(first), tf.zeros_like(fixed[0], tf.int32)))
    last = tf.argmax(scores[-1] + tf.stop_gradient(end), -1, output_type=tf.int32)
    others = tf.scan(lambda tag, origin: tf.gather(origin, tag, batch_dims=1), origins, last, reverse=True)
    return tf.transpose(tf.concat([others, last[None]], 0)), loss


def random_feature_gp(layer: Any, x: Any) -> Outputs:
    phi = math.sqrt(2 / layer.features) * tf.cos(x @ layer.frequencies.value / layer.length_scale + layer.phases.value)
    layer.precision.value.assign_add(tf.matmul(phi, phi, transpose_a=True))
    return phi @ layer.kernel.value, 0.0


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
    "ConcreteDropout": Formula(lambda: layers.ConcreteDropout(keras.layers.Dense(512)), concrete_dropout, ((128, 512),)),
    "HardConcreteGate": Formula(layers.HardConcreteGate, hard_concrete_gate, ((256, 512),)),
    # Centers that stay where they are, so that both programs have the same.
    "CenterLoss": Formula(
        lambda: layers.CenterLoss(num_classes=100, update_rate=0.0, centers_initializer="random_normal"),
        center_loss,
        ((256, 128),),
        ((256,), 100),
    ),
    "MarginSoftmax": Formula(lambda: layers.MarginSoftmax(num_classes=1000), margin_softmax, ((128, 128),), ((128,), 1000)),
    "BarlowTwins": Formula(layers.BarlowTwins, barlow_twins, ((256, 256), (256, 256))),
    "VICReg": Formula(layers.VICReg, vicreg, ((256, 256), (256, 256))),
    "Sinkhorn": Formula(layers.Sinkhorn, sinkhorn, ((16, 32, 32),)),
    "CRF": Formula(layers.CRF, crf, ((32, 40, 10),), ((32, 40), 10)),
    "RandomFeatureGP": Formula(lambda: layers.RandomFeatureGP(units=10, features=512), random_feature_gp, ((128, 128),)),
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
