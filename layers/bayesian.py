"""Layers that know how uncertain they are: a dense layer with a distribution of kernels, and a Gaussian process on top of a network."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers.arguments import check_choice, check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, register
from layers.random_bits import random_bits, random_normal
from layers.replicas import replica_seed, sum_over_replicas

__all__ = ["DenseVariational", "RandomFeatureGP"]


@register
class DenseVariational(Layer):
    """A dense layer whose kernel is a distribution, learned by variational inference; each weight is an independent Gaussian.

        W    ~ N(kernel, sigma^2),  sigma = softplus(rho)
        y    = activation(x W + bias)                               when training; else activation(x kernel + bias)
        loss = kl_weight / examples * sum over W of (log(s / sigma) + (sigma^2 + kernel^2) / (2 s^2) - 1/2)

    s is the deviation of the prior N(0, s^2). The loss is the kernel's divergence from it, which belongs to a data loss averaged over
    examples. To see the uncertainty, call the layer several times with `training=True`.

    The kernel is not sampled for each example, which would take as many kernels; both estimators have the same mean, and variances
    x^2 sigma^2 for each output:

        "flipout":  y = x kernel + ((x * r) (sigma * e)) * q     one e ~ N(0, 1) for the batch, signs r, q in {-1, 1} for each example
        "local":    y = x kernel + sqrt(x^2 sigma^2) * e         e ~ N(0, 1) for each output of each example

    Args:
        units: number of outputs, at least 1.
        examples: number of examples in the training data, greater than 0.
        activation: a Keras activation; None is the identity.
        use_bias: whether to add a bias, which is a plain weight.
        estimator: "flipout" or "local" (the local reparameterisation).
        kl_weight: at least 0; a weight of the layer, so `layer.kl_weight.assign(...)` schedules it.
        prior_stddev: s, greater than 0.
        initial_stddev: the value that sigma begins with, greater than 0.
        kernel_initializer: a Keras initializer of the means.
        bias_initializer: a Keras initializer.
        seed: seed of the noise, an integer; None draws one. Replicas draw different noise.

    Call:
        inputs: `[..., D]`, floating. What lies along the other dimensions are examples, each with its own signs.
        training: whether to sample.

    Returns:
        `[..., units]` in the layer's compute dtype.

    Metrics:
        kl: the divergence in nats, without kl_weight and examples.
        sigma: mean of sigma.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> layer = DenseVariational(units=2, examples=1000, initial_stddev=1.0, kernel_initializer="zeros")
        >>> layer(tf.ones([1, 3])).numpy().tolist(), round(float(layer.losses[0]), 6)  # the kernel is the prior
        ([[0.0, 0.0]], 0.0)

    References:
        Blundell et al. 2015, arXiv:1505.05424; flipout: Wen et al. 2018, arXiv:1803.04386; local: Kingma et al. 2015, arXiv:1506.02557.
    """

    def __init__(
        self,
        *,
        units: int,
        examples: float,
        activation: Any = None,
        use_bias: bool = True,
        estimator: str = "flipout",
        kl_weight: float = 1.0,
        prior_stddev: float = 1.0,
        initial_stddev: float = 0.05,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units)
        check_choice(["flipout", "local"], estimator=estimator)
        check_numbers(at_least=0, kl_weight=kl_weight)
        check_numbers(above=0, below=math.inf, examples=examples, prior_stddev=prior_stddev, initial_stddev=initial_stddev)
        self.units, self.examples, self.use_bias, self.estimator, self.seed = units, examples, use_bias, estimator, seed
        self.initial_kl_weight, self.prior_stddev, self.initial_stddev = float(kl_weight), float(prior_stddev), float(initial_stddev)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True
        self.kl_weight = self.add_coefficient("kl_weight", kl_weight)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.declare_metric("kl")
        self.declare_metric("sigma")

    def build(self, input_shape: Any) -> None:
        # softplus(rho) = s  <=>  rho = log(e^s - 1) = s + log(1 - e^-s)
        rho = self.initial_stddev + math.log(-math.expm1(-self.initial_stddev))
        shape = (known_dimension(self, input_shape), self.units)
        # Not autocast: the divergence needs them as they are.
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, autocast=False, name="kernel")
        self.rho = self.add_weight(shape=shape, initializer=keras.initializers.Constant(rho), autocast=False, name="rho")
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), initializer=self.bias_initializer, name="bias")

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        mean, stddev = full_precision(self.kernel), tf.nn.softplus(full_precision(self.rho))
        divergence = self._divergence(mean, stddev)
        self.add_loss(tf.cast(self.kl_weight, divergence.dtype) / self.examples * divergence)
        self.add_metric(divergence, "kl")
        self.add_metric(stddev, "sigma")
        outputs = _product(inputs, tf.cast(mean, inputs.dtype))
        if training:
            outputs += (self._flipout if self.estimator == "flipout" else self._local)(inputs, stddev)
        if self.use_bias:
            outputs += tf.cast(self.bias, outputs.dtype)
        return self.activation(outputs)

    def _divergence(self, mean: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
        stddev, mean = stddev / self.prior_stddev, mean / self.prior_stddev
        least = np.finfo(stddev.dtype.as_numpy_dtype).tiny  # where softplus vanishes, its logarithm has to stay finite
        return tf.reduce_sum((tf.square(stddev) + tf.square(mean) - 1) / 2 - tf.math.log(tf.maximum(stddev, least)))

    def _flipout(self, inputs: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
        seeds = tf.unstack(tf.random.split(replica_seed(self.seed_generator), 3))
        kernel = stddev * random_normal(tf.shape(stddev), seeds[0], stddev.dtype)
        shape = tf.shape(inputs)
        signs_in = _signs(shape, seeds[1], inputs.dtype)
        signs_out = _signs(tf.concat([shape[:-1], [self.units]], 0), seeds[2], inputs.dtype)
        return _product(inputs * signs_in, tf.cast(kernel, inputs.dtype)) * signs_out

    def _local(self, inputs: tf.Tensor, stddev: tf.Tensor) -> tf.Tensor:
        # Squares of small numbers vanish in half precision. The root has no derivative at 0, where all inputs of an example are 0.
        wide = full_precision(inputs)
        variance = _product(tf.square(wide), tf.cast(tf.square(stddev), wide.dtype))
        deviation = tf.sqrt(tf.maximum(variance, np.finfo(wide.dtype.as_numpy_dtype).tiny))
        noise = random_normal(tf.shape(deviation), replica_seed(self.seed_generator), wide.dtype)
        return tf.cast(deviation * noise, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        config = {
            "units": self.units,
            "examples": self.examples,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "estimator": self.estimator,
            "kl_weight": self.initial_kl_weight,
            "prior_stddev": self.prior_stddev,
            "initial_stddev": self.initial_stddev,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "seed": self.seed,
        }
        return {**super().get_config(), **config}


@register
class RandomFeatureGP(Layer):
    """A Gaussian process, approximated by random Fourier features, that knows how far an input is from those it has seen.

        phi      = sqrt(2 / M) cos(x W / length_scale + b),  W ~ N(0, 1),  b ~ U(0, 2 pi), both frozen
        logits   = phi beta
        P        = ridge I + sum over the examples seen when training of phi phi^T
        variance = ridge * phi^T P^-1 phi
        y        = logits                                             when training
        y        = logits / sqrt(1 + mean_field * variance)           else

    phi(x)^T phi(x') approaches exp(-|x - x'|^2 / (2 length_scale^2)) with an error of about 1 / sqrt(M), and `variance` that of the
    process's posterior with the noise variance `ridge`: near 1 far from all examples, near 0 among them.

    P sums without forgetting, and only the last epoch sees the features of the network as it will be: call `reset_precision()` when an
    epoch begins. In SNGP the network in front keeps distances by `SpectralNorm`.

    Args:
        units: number of outputs, at least 1.
        features: M, at least 1. Inference solves with a matrix `[M, M]`.
        length_scale: of the kernel, greater than 0.
        ridge: greater than 0.
        mean_field: strength with which the variance draws logits to 0, at least 0; pi / 8 is the paper's choice for class probabilities, 0
            leaves them alone.
        return_variance: whether to return the variances too.
        kernel_initializer: a Keras initializer of beta.
        seed: seed of W and b, an integer; None draws one.

    Call:
        inputs: `[..., D]`, floating.
        mask: bool `[...]` without the last dimension; what is masked is not learned from and does not count.
        training: whether to learn from the inputs. Nothing is solved then, and the variance is that of the prior, |phi|^2.

    Returns:
        y, `[..., units]` in the layer's compute dtype; with `return_variance` a pair of it and the variances `[...]`.

    Metrics:
        variance: mean of the variances.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> layer = RandomFeatureGP(units=1, return_variance=True, seed=1)
        >>> seen = tf.zeros([50, 2])
        >>> _ = layer(seen, training=True)
        >>> _, variance = layer(tf.constant([[0.0, 0.0], [5.0, 5.0]]))
        >>> (variance < 0.1).numpy().tolist()
        [True, False]

    References:
        SNGP: Liu et al. 2020, arXiv:2006.10108; random features: Rahimi & Recht 2007.
    """

    def __init__(
        self,
        *,
        units: int,
        features: int = 1024,
        length_scale: float = 1.0,
        ridge: float = 1.0,
        mean_field: float = math.pi / 8,
        return_variance: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units, features=features)
        check_numbers(above=0, below=math.inf, length_scale=length_scale, ridge=ridge)
        check_numbers(at_least=0, mean_field=mean_field)
        self.units, self.features, self.return_variance, self.seed = units, features, return_variance, seed
        self.length_scale, self.ridge, self.mean_field = float(length_scale), float(ridge), float(mean_field)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.declare_metric("variance")

    def build(self, input_shape: Any) -> None:
        # In float32 and not autocast: the cosine of a large number, and sums over many examples, are not for half precision.
        precise: dict[str, Any] = {"dtype": "float64" if self.variable_dtype == "float64" else "float32", "autocast": False}
        frozen: dict[str, Any] = {**precise, "trainable": False}
        seeds = (None, None) if self.seed is None else (2 * self.seed, 2 * self.seed + 1)  # from one seed they would be correlated
        normal = keras.initializers.RandomNormal(stddev=1.0, seed=seeds[0])
        uniform = keras.initializers.RandomUniform(0.0, 2 * math.pi, seed=seeds[1])
        size = known_dimension(self, input_shape)
        self.frequencies = self.add_weight(shape=(size, self.features), initializer=normal, name="frequencies", **frozen)
        self.phases = self.add_weight(shape=(self.features,), initializer=uniform, name="phases", **frozen)
        self.kernel = self.add_weight(shape=(self.features, self.units), initializer=self.kernel_initializer, name="kernel", **precise)
        self.precision = self.add_weight(
            shape=(self.features, self.features),
            initializer=keras.initializers.Identity(self.ridge),
            aggregation="only_first_replica",
            name="precision",
            **frozen,
        )

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        phi = self._features(full_precision(inputs))
        logits = _product(phi, tf.cast(self.kernel, phi.dtype))
        if training:
            # As a product: XLA would compute the cosines once more for a sum of squares.
            variance = tf.squeeze(tf.matmul(phi[..., None, :], phi[..., None]), [-2, -1])
            if self.trainable:
                self._observe(phi, mask)
        else:
            variance = self._variance(phi)
            logits /= tf.sqrt(1 + self.mean_field * variance)[..., None]
        self.add_metric(variance, "variance", sample_weight=mask)
        outputs = tf.cast(logits, inputs.dtype)
        return (outputs, tf.cast(variance, inputs.dtype)) if self.return_variance else outputs

    def reset_precision(self) -> None:
        """Forgets all examples. To be called outside of replicas."""
        self.precision.assign(self.ridge * tf.eye(self.features, dtype=self.precision.dtype))

    def _features(self, inputs: tf.Tensor) -> tf.Tensor:
        angles = _product(inputs, tf.cast(self.frequencies, inputs.dtype)) / self.length_scale + tf.cast(self.phases, inputs.dtype)
        return math.sqrt(2 / self.features) * tf.cos(angles)

    def _observe(self, phi: tf.Tensor, mask: Any) -> None:
        if mask is not None:
            phi = tf.where(tf.cast(mask, tf.bool)[..., None], phi, tf.zeros_like(phi))
        seen = tf.reshape(phi, [-1, self.features])
        self.precision.assign_add(tf.cast(sum_over_replicas(tf.matmul(seen, seen, transpose_a=True)), self.precision.dtype))

    def _variance(self, phi: tf.Tensor) -> tf.Tensor:
        # phi^T P^-1 phi = |L^-1 phi|^2 with P = L L^T: never negative, whatever the rounding.
        root = tf.linalg.cholesky(tf.cast(self.precision, phi.dtype))
        solved = tf.linalg.triangular_solve(root, tf.transpose(tf.reshape(phi, [-1, self.features])))
        return self.ridge * tf.reshape(tf.reduce_sum(tf.square(solved), 0), tf.shape(phi)[:-1])

    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = (*input_shape[:-1], self.units)
        return (shape, tuple(input_shape[:-1])) if self.return_variance else shape

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return (previous_mask, previous_mask) if self.return_variance else previous_mask

    def get_config(self) -> dict[str, Any]:
        config = {
            "units": self.units,
            "features": self.features,
            "length_scale": self.length_scale,
            "ridge": self.ridge,
            "mean_field": self.mean_field,
            "return_variance": self.return_variance,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }
        return {**super().get_config(), **config}


def _product(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return inputs @ kernel if inputs.shape.rank == 2 else tf.tensordot(inputs, kernel, 1)


def _signs(shape: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """-1 or 1, each with probability 1/2."""
    return tf.where(tf.bitcast(random_bits(shape, seed), tf.int32) < 0, tf.constant(-1, dtype), tf.constant(1, dtype))
