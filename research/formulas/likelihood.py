"""How likely a latent variable model finds data: an importance-sampled estimate, computed in pieces that fit into the caches.

For decoders of binary pixels and Gaussian posteriors, such as those of `research/studies/vae.py`; it trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

import loops

__all__ = ["Likelihood", "log_likelihood"]


def log_likelihood(
    encoder: Any, decoder: Any, x: tf.Tensor, seed: Any, *, samples: int, chunk: int, clip_logvar: float = 10.0
) -> tf.Tensor:
    """Estimates `log p(x)` of each image from below, the closer the more samples.

        log p(x)  >=  E log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x),   z_k ~ q(z | x)

    The ratios are summed as a running sum relative to the largest so far, in float64: nothing overflows, and no more than a chunk is held.

    Args:
        encoder: maps `x` to the mean and the log variance of q, each `[B, D]`.
        decoder: maps z `[N, D]` to logits `[N, ...]` of pixels.
        x: binary images `[B, ...]`.
        seed: integer pair, as in `tf.random.stateless_normal`.
        samples: K, a multiple of `chunk`.
        chunk: samples of each image that are decoded at a time.
        clip_logvar: bound of the absolute log variance, as in `layers.GaussianSampling`.

    Returns:
        float64 `[B]`, in nats.

    References:
        Burda, Grosse & Salakhutdinov 2015, arXiv:1509.00519, equation 8.
    """
    mean, logvar = encoder(x)
    logvar = tf.clip_by_value(logvar, -clip_logvar, clip_logvar)
    sigma, shape = tf.exp(logvar / 2), tf.concat([[chunk], tf.shape(mean)], 0)
    pixels = tf.reshape(x, [tf.shape(x)[0], -1])

    def log_ratios(i: tf.Tensor) -> tf.Tensor:
        noise = tf.random.stateless_normal(shape, tf.random.experimental.stateless_fold_in(seed, i))
        z = mean + sigma * noise
        logits = tf.reshape(decoder(tf.reshape(z, [-1, mean.shape[-1]])), tf.concat([[chunk], tf.shape(pixels)], 0))
        given_z = tf.reduce_sum(pixels * logits - tf.nn.softplus(logits), -1)
        # log p(z) - log q(z | x); their constants cancel.
        return tf.cast(given_z + tf.reduce_sum(tf.square(noise) - tf.square(z) + logvar, -1) / 2, tf.float64)

    def add_chunk(i: tf.Tensor, largest: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ratios = log_ratios(i)
        new = tf.maximum(largest, tf.reduce_max(ratios, 0))
        return i + 1, new, total * tf.exp(largest - new) + tf.reduce_sum(tf.exp(ratios - new), 0)

    nothing = tf.zeros([tf.shape(x)[0]], tf.float64)
    count = samples // chunk
    _, largest, total = tf.while_loop(lambda i, *_: i < count, add_chunk, (tf.constant(0), nothing + tf.float64.min, nothing))
    return largest + tf.math.log(total) - tf.math.log(tf.constant(samples, tf.float64))


class Likelihood(loops.Task):
    """Evaluates binary images `[B, ...]`: `nll`, the mean of `-log_likelihood(...)`.

    Args:
        encoder, decoder, samples, chunk: as in `log_likelihood`.

    Raises:
        ValueError: if `samples` is not a multiple of `chunk`.
    """

    autograph = False

    def __init__(self, encoder: keras.Model, decoder: keras.Model, *, samples: int, chunk: int):
        super().__init__()
        if samples < 1 or chunk < 1 or samples % chunk:
            raise ValueError(f"`samples` has to be a positive multiple of `chunk`; got {samples} and {chunk}.")
        self.encoder, self.decoder, self.samples, self.chunk = encoder, decoder, samples, chunk

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        found = log_likelihood(self.encoder, self.decoder, batch, self.seed(), samples=self.samples, chunk=self.chunk)
        return {"nll": -tf.reduce_mean(found)}
