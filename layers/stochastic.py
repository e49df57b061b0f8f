"""Layers that draw samples as part of the model: the latent of a variational autoencoder."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from layers._private_api import get_keras_mask
from layers.arguments import check_numbers
from layers.base import Layer, full_precision, masked_mean, register
from layers.random_bits import random_normal
from layers.replicas import replica_seed

__all__ = ["GaussianSampling"]


@register
class GaussianSampling(Layer):
    """Samples a diagonal Gaussian by the reparameterisation trick, and adds its divergence from the standard normal as a loss.

        z    = mean + exp(logvar / 2) * e,  e ~ N(0, 1)                   when training; else z = mean
        KL_d = (mean_d^2 + exp(logvar_d) - logvar_d - 1) / 2
        loss = beta * mean over examples of sum over d of KL_d

    With free bits, `KL_d` in the loss is `max(mean over examples of KL_d, free_bits)`: a dimension below it feels no pressure.

    Args:
        beta: weight of the loss, at least 0; a weight of the layer, so `layer.beta.assign(...)` schedules it.
        free_bits: nats for each dimension that cost nothing, at least 0.
        clip_logvar: bound of the absolute value of `logvar`, greater than 0, so that its exponential stays finite. Beyond it, `logvar`
            has no gradient.
        seed: seed of the noise, an integer; None draws one. Replicas draw different noise.

    Call:
        mean: `[..., D]`, floating.
        logvar: `[..., D]`, floating.
        mask: bool `[...]` without the last dimension of `mean`, by default the mask that `mean` carries; what is masked counts neither in
            the loss nor in the metrics.
        training: whether to sample. An evidence lower bound in an evaluation needs samples: call the model with `training=True` there.

    Returns:
        `[..., D]` in the layer's compute dtype.

    Metrics:
        kl: mean over examples of the divergence, in nats, without beta and free bits.
        max_kl: the largest mean divergence of a single dimension in a batch (all others near 0: a collapsed posterior).

    Raises:
        ValueError: if an argument is out of its range, or the shapes differ.

    Example:
        >>> import numpy as np
        >>> layer = GaussianSampling(beta=1.0)
        >>> z = layer(np.ones([2, 3]), np.zeros([2, 3]))
        >>> z.shape, float(layer.losses[0])
        (TensorShape([2, 3]), 1.5)

    References:
        Kingma & Welling 2013, arXiv:1312.6114; beta: Higgins et al. 2017; free bits: Kingma et al. 2016, arXiv:1606.04934.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        clip_logvar: float = 10.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_numbers(at_least=0, beta=beta, free_bits=free_bits)
        if not 0 < clip_logvar <= 80:
            raise ValueError(f"`clip_logvar` must be greater than 0 and at most 80, where exp overflows; got {clip_logvar!r}.")
        self.initial_beta, self.free_bits, self.clip_logvar, self.seed = float(beta), float(free_bits), float(clip_logvar), seed
        self.supports_masking = True
        self.beta = self.add_coefficient("beta", beta)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.declare_metric("kl")
        self.declare_metric("max_kl")

    def build(self, mean_shape: Any, logvar_shape: Any) -> None:
        if mean_shape[-1] != logvar_shape[-1] or len(mean_shape) != len(logvar_shape):
            raise ValueError(f"`mean` and `logvar` must have the same shape; got {mean_shape} and {logvar_shape}.")

    def call(self, mean: Any, logvar: Any, mask: Any = None, training: bool | None = None) -> tf.Tensor:
        mask = get_keras_mask(mean) if mask is None else mask  # which Keras hands over only to layers of one input
        wide_mean, wide_logvar = full_precision(mean), full_precision(logvar)
        wide_logvar = tf.clip_by_value(wide_logvar, -self.clip_logvar, self.clip_logvar)
        sigma = tf.exp(wide_logvar / 2)
        doubled = tf.square(wide_mean) + tf.square(sigma) - wide_logvar - 1  # halved when there is less of it
        by_dimension = masked_mean(doubled, mask, keep_last=True) / 2
        self.add_loss(tf.cast(self.beta, sigma.dtype) * tf.reduce_sum(tf.maximum(by_dimension, self.free_bits)))
        self.add_metric(tf.reduce_sum(doubled, -1) / 2, "kl", sample_weight=mask)
        self.add_metric(tf.reduce_max(by_dimension), "max_kl")
        if not training:
            return tf.identity(mean)
        noise = random_normal(tf.shape(wide_mean), replica_seed(self.seed_generator), wide_mean.dtype)
        return tf.cast(wide_mean + sigma * noise, mean.dtype)

    def compute_output_shape(self, mean_shape: Any, logvar_shape: Any) -> Any:
        return mean_shape

    def get_config(self) -> dict[str, Any]:
        config = {"beta": self.initial_beta, "free_bits": self.free_bits, "clip_logvar": self.clip_logvar, "seed": self.seed}
        return {**super().get_config(), **config}
