"""Layers with a discrete code in the middle of a network: the vector quantizer of a VQ-VAE."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_choice, check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, masked_mean, register
from layers.replicas import sum_over_replicas

__all__ = ["VectorQuantizer"]


@register
class VectorQuantizer(Layer):
    """Replaces each vector by the nearest one of a codebook that is learned, and passes the gradient straight through.

        k    = argmin over j of |x - e_j|^2
        y    = e_k,  dL/dx = dL/dy
        loss = mean (sg(x) - e_k)^2 + beta * mean (x - sg(e_k))^2

    The means are over the unmasked vectors and their D elements; sg stops the gradient. With `update="ema"` the codebook is not trained but
    moves when training, and the loss is its second term alone (the paper's appendix A.1; all replicas' vectors count):

        N_j = decay * N_j + (1 - decay) * (number of vectors at j)
        m_j = decay * m_j + (1 - decay) * (sum of vectors at j)
        e_j = m_j / N_j

    beginning with N_j = 1. As m_j = N_j * e_j all the time, it is not kept; a code that no vector comes near stays where it is, and one
    that is assigned another place goes on from there.

    Args:
        codes: number of vectors in the codebook, at least 1.
        beta: weight of the commitment, at least 0; a weight of the layer, so `layer.beta.assign(...)` schedules it.
        update: how the codebook learns, "loss" or "ema".
        decay: of the moving averages, in [0, 1); for "ema" only.
        return_indices: whether to return the codes' numbers too.
        codebook_initializer: a Keras initializer of `[codes, D]`.

    Call:
        inputs: `[..., D]`, floating. Distances are computed in float32 (or float64).
        mask: bool `[...]` without the last dimension; what is masked counts neither in losses and metrics nor in moving averages.
        training: whether moving averages are updated.

    Returns:
        `[..., D]` in the layer's compute dtype; with `return_indices` a pair of it and int32 `[...]`.

    Metrics:
        perplexity: exp of the entropy of the codes' frequencies in a batch: how many codes are in use, from 1 to `codes`.
        used: share of the codes that a batch uses.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> layer = VectorQuantizer(codes=2, return_indices=True)
        >>> layer.build([None, 1])
        >>> layer.codebook.assign([[0.0], [1.0]])
        <...>
        >>> y, indices = layer(tf.constant([[0.2], [0.9], [0.1]]))
        >>> y.numpy().ravel().tolist(), indices.numpy().tolist()
        ([0.0, 1.0, 0.0], [0, 1, 0])

    References:
        van den Oord et al. 2017, arXiv:1711.00937.
    """

    def __init__(
        self,
        *,
        codes: int,
        beta: float = 0.25,
        update: str = "loss",
        decay: float = 0.99,
        return_indices: bool = False,
        codebook_initializer: Any = "variance_scaling",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, codes=codes)
        check_numbers(at_least=0, beta=beta)
        check_choice(["loss", "ema"], update=update)
        check_numbers(at_least=0, below=1, decay=decay)
        self.codes, self.initial_beta, self.update, self.decay = codes, float(beta), update, float(decay)
        self.return_indices = return_indices
        self.codebook_initializer = keras.initializers.get(codebook_initializer)
        self.supports_masking = True
        self.beta = self.add_coefficient("beta", beta)
        self.declare_metric("perplexity")
        self.declare_metric("used")

    def build(self, input_shape: Any) -> None:
        moving = self.update == "ema"
        precise: dict[str, Any] = {"dtype": self.beta.dtype, "autocast": False, "aggregation": "only_first_replica" if moving else "none"}
        shape = (self.codes, known_dimension(self, input_shape))
        self.codebook = self.add_weight(
            shape=shape, initializer=self.codebook_initializer, trainable=not moving, name="codebook", **precise
        )
        if moving:
            self.counts = self.add_weight(shape=shape[:1], initializer="ones", trainable=False, name="counts", **precise)

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        vectors = full_precision(inputs)
        codebook = tf.cast(self.codebook, vectors.dtype)
        indices = self._nearest(vectors, codebook)
        found = tf.gather(codebook, indices)
        self._add_losses(vectors, found, mask)
        counted = indices if mask is None else tf.where(tf.cast(mask, tf.bool), indices, -1)  # segment sums leave out what is negative
        numbers = tf.math.unsorted_segment_sum(tf.ones_like(counted, vectors.dtype), counted, self.codes)
        self._report(numbers)
        if self.update == "ema" and training and self.trainable:
            self._move(vectors, counted, numbers)
        # The nearest code of what is not a number is none.
        found = tf.where(tf.math.is_nan(vectors), vectors, found)
        outputs = _straight_through(inputs, tf.cast(found, inputs.dtype))
        return (outputs, indices) if self.return_indices else outputs

    def lookup(self, indices: Any) -> tf.Tensor:
        """The vectors of given codes: what decodes samples of a prior over codes.

        Args:
            indices: integers `[...]` from 0 to `codes` - 1.

        Returns:
            `[..., D]` in the layer's compute dtype.
        """
        return tf.cast(tf.gather(tf.convert_to_tensor(self.codebook), indices), self.compute_dtype)

    def _nearest(self, vectors: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
        # |x|^2 is the same for all codes: without it nothing cancels for vectors that are far out; seen from the middle of the codes, for
        # codes that are far out.
        middle = tf.reduce_mean(codebook, 0)
        vectors, codebook = vectors - middle, codebook - middle
        distances = tf.reduce_sum(tf.square(codebook), -1) - 2 * tf.tensordot(vectors, codebook, [[-1], [-1]])
        return tf.argmin(distances, -1, output_type=tf.int32)

    def _add_losses(self, vectors: tf.Tensor, found: tf.Tensor, mask: Any) -> None:
        commitment = masked_mean(tf.square(vectors - tf.stop_gradient(found)), mask)
        loss = tf.cast(self.beta, commitment.dtype) * commitment
        if self.update == "loss":
            loss += masked_mean(tf.square(tf.stop_gradient(vectors) - found), mask)
        self.add_loss(loss)

    def _report(self, numbers: tf.Tensor) -> None:
        frequencies = tf.math.divide_no_nan(numbers, tf.reduce_sum(numbers))
        self.add_metric(tf.exp(-tf.reduce_sum(tf.math.xlogy(frequencies, frequencies))), "perplexity")
        self.add_metric(numbers > 0, "used")

    def _move(self, vectors: tf.Tensor, counted: tf.Tensor, numbers: tf.Tensor) -> None:
        numbers, totals = sum_over_replicas(numbers, tf.math.unsorted_segment_sum(vectors, counted, self.codes))
        codebook, share = tf.cast(self.codebook, vectors.dtype), 1 - self.decay
        counts = self.decay * tf.cast(self.counts, vectors.dtype) + share * numbers
        moves = share * tf.math.divide_no_nan(totals - numbers[:, None] * codebook, counts[:, None])
        self.counts.assign(counts)
        self.codebook.assign(codebook + moves)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape, input_shape[:-1]) if self.return_indices else input_shape

    def compute_output_spec(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        return (outputs, keras.KerasTensor(inputs.shape[:-1], "int32")) if self.return_indices else outputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return (previous_mask, previous_mask) if self.return_indices else previous_mask

    def get_config(self) -> dict[str, Any]:
        config = {
            "codes": self.codes,
            "beta": self.initial_beta,
            "update": self.update,
            "decay": self.decay,
            "return_indices": self.return_indices,
            "codebook_initializer": keras.initializers.serialize(self.codebook_initializer),
        }
        return {**super().get_config(), **config}


@tf.custom_gradient
def _straight_through(inputs: tf.Tensor, outputs: tf.Tensor) -> Any:
    """`outputs` bit for bit, which `inputs + stop_gradient(outputs - inputs)` is not; the gradient goes to `inputs`."""
    return tf.identity(outputs), lambda upstream: (upstream, None)
