"""Layers whose output has a structure that a formula over all of it keeps: sequences of tags, and soft permutations."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers._private_api import get_keras_mask
from layers.arguments import check_integers, check_numbers
from layers.base import Layer, full_precision, masked_mean, register
from layers.class_numbers import whole_numbers

__all__ = ["CRF", "Sinkhorn"]

UNROLLED = 32  # iterations that a graph may hold one by one; a loop that has a gradient keeps all that it goes through

#: Transitions, start and end.
Chain = tuple[tf.Tensor, ...]


@register
class CRF(Layer):
    """A linear-chain conditional random field: scores whole sequences of tags, and finds the best one.

        score(y) = start[y_1] + sum over t of u[t, y_t] + sum over t < T of transitions[y_t, y_t+1] + end[y_T]
        p(y)     = exp(score(y)) / sum over all sequences z of exp(score(z))
        output   = the y with the greatest score (Viterbi)
        loss     = mean over sequences of -log p(tags)

    The sum over z is computed by the forward algorithm, in logarithms. With transitions and boundaries of 0, and so at the beginning, the
    tags are independent, and the loss is the sum over t of the softmax's cross entropies.

    Args:
        boundaries: whether to learn `start` and `end`; without, they are 0.
        transitions_initializer: a Keras initializer of `[K, K]`, from row to column.

    Call:
        inputs: u, `[B, T, K]`, floating, the scores of K tags; such as a dense layer's outputs without an activation. A ragged tensor is
            padded, and masked, by its own lengths.
        tags: the true tags, integers `[B, T]` or `[B, T, 1]` from 0 to K - 1, whatever they are where masked; another number makes the
            loss NaN, in all modes alike. Without tags there is no loss, and nothing is counted.
        mask: bool `[B, T]`, by default the mask that `inputs` carries. It may take away the end of a sequence, or all of it, but nothing
            in front of what it keeps.

    Returns:
        int32 `[B, T]`, 0 where masked; ragged, if the inputs are. It has no gradient; the layer is trained by its loss.

    Metrics:
        accuracy: share of the unmasked tags that were found.

    Raises:
        ValueError: if the inputs are not `[B, T, K]`, or the tags not `[B, T]`.
        tf.errors.InvalidArgumentError: if the mask keeps something behind what it takes away. XLA leaves this check out; the loss is NaN.

    Example:
        >>> layer = CRF()
        >>> scores = tf.constant([[[2.0, 0.0], [0.0, 1.0], [0.0, 0.5]]])
        >>> layer(scores, tags=tf.constant([[0, 1, 0]])).numpy().tolist()
        [[0, 1, 1]]
        >>> layer.transitions.assign([[0.0, -5.0], [0.0, 0.0]])  # 1 does not follow 0
        <...>
        >>> layer(scores).numpy().tolist()
        [[0, 0, 0]]

    References:
        Lafferty et al. 2001; on top of a network: Huang et al. 2015, arXiv:1508.01991.
    """

    def __init__(self, *, boundaries: bool = True, transitions_initializer: Any = "zeros", **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(boundaries, bool):
            raise TypeError(f"`boundaries` must be True or False; got {boundaries!r}.")
        self.boundaries = boundaries
        self.transitions_initializer = keras.initializers.get(transitions_initializer)
        self.supports_masking = True
        self.declare_metric("accuracy")

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != 3 or input_shape[-1] is None:
            raise ValueError(f"CRF needs inputs of shape [B, T, K] with a known number K of tags; got {tuple(input_shape)}.")
        kinds = input_shape[-1]
        # Not autocast: sums along sequences are not for half precision.
        self.transitions = self.add_weight(
            shape=(kinds, kinds), initializer=self.transitions_initializer, autocast=False, name="transitions"
        )
        if self.boundaries:
            self.start = self.add_weight(shape=(kinds,), initializer="zeros", autocast=False, name="start")
            self.end = self.add_weight(shape=(kinds,), initializer="zeros", autocast=False, name="end")

    def call(self, inputs: Any, tags: Any = None, mask: Any = None) -> tf.Tensor:
        if isinstance(inputs, tf.RaggedTensor):
            return self._call_ragged(inputs, tags)
        if mask is None:
            mask = get_keras_mask(inputs)  # which Keras hands over only if there are no tags
        mask = tf.ones(tf.shape(inputs)[:2], tf.bool) if mask is None else _right_padded(tf.cast(mask, tf.bool))
        tags = None if tags is None else self._tag_numbers(tags, inputs)
        unary, steps = full_precision(inputs), inputs.shape[1]
        if not steps:  # none, or who knows how many: there has to be one to begin with
            unary, mask, tags = (None if part is None else _at_least_one_step(part) for part in (unary, mask, tags))
        chain = tuple(tf.cast(full_precision(weight), unary.dtype) for weight in self._chain(unary.shape[-1]))
        found = tf.where(mask, _best_path(tf.stop_gradient(unary), tuple(map(tf.stop_gradient, chain)), mask), 0)
        if tags is not None:
            self._report(unary, chain, mask, tags, found)
        return found if steps else found[:, : tf.shape(inputs)[1]]

    def _call_ragged(self, inputs: tf.RaggedTensor, tags: Any) -> tf.RaggedTensor:
        lengths = inputs.row_lengths()
        dense = inputs.to_tensor()
        if isinstance(tags, tf.RaggedTensor):
            tags = tags.to_tensor()
        found = self.call(dense, tags, tf.sequence_mask(lengths, tf.shape(dense)[1]))
        return tf.RaggedTensor.from_tensor(found, lengths)

    def _tag_numbers(self, tags: Any, inputs: tf.Tensor) -> tf.Tensor:
        """int32 `[B, T]`, -1 for what is no tag."""
        numbers = whole_numbers("CRF", tags, classes=inputs.shape[-1])
        if numbers.shape.rank == 3 and numbers.shape[-1] == 1:
            numbers = tf.squeeze(numbers, -1)
        if not numbers.shape.is_compatible_with(inputs.shape[:2]):
            raise ValueError(f"CRF needs tags of shape {tuple(inputs.shape[:2])}, one for each step; got shape {tuple(tags.shape)}.")
        return tf.reshape(numbers, tf.shape(inputs)[:2])

    def _report(self, unary: tf.Tensor, chain: Chain, mask: tf.Tensor, tags: tf.Tensor, found: tf.Tensor) -> None:
        kept = tf.where(mask, tf.maximum(tags, 0), 0)
        log_p = _path_score(unary, chain, mask, kept) - _log_normalizer(unary, chain, mask)
        # XLA can raise nothing, and would take another tag for one that does not exist: NaN, in every mode.
        wrong = tf.reduce_any(mask & (tags < 0), 1) | tf.reduce_any(mask[:, 1:] & ~mask[:, :-1], 1)
        self.add_loss(self._mean_loss(tf.where(wrong, tf.constant(float("nan"), log_p.dtype), log_p), mask))
        self.add_metric(found == tags, "accuracy", sample_weight=mask)

    def _chain(self, kinds: int) -> tuple[Any, Any, Any]:
        return (self.transitions, self.start, self.end) if self.boundaries else (self.transitions, tf.zeros([kinds]), tf.zeros([kinds]))

    def _mean_loss(self, log_p: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return masked_mean(-log_p, tf.reduce_any(mask, 1))

    def compute_output_shape(self, inputs_shape: Any, tags_shape: Any = None) -> Any:
        return inputs_shape[:-1]

    def compute_output_spec(self, inputs: Any, tags: Any = None, mask: Any = None) -> Any:
        return keras.KerasTensor(inputs.shape[:-1], "int32")

    def get_config(self) -> dict[str, Any]:
        config = {
            "boundaries": self.boundaries,
            "transitions_initializer": keras.initializers.serialize(self.transitions_initializer),
        }
        return {**super().get_config(), **config}


# Shapes: unary [B, T, K]; chain [K, K], [K], [K]; mask, tags [B, T]. A step that is masked hands on what it was given. The first one, too,
# for which `first` stands: so there is always a step to scan over, without which XLA and graphs of unknown size cannot scan.


def _at_least_one_step(tensor: tf.Tensor) -> tf.Tensor:
    none = tf.cast(tf.shape(tensor)[1] == 0, tf.int32)
    return tf.pad(tensor, [[0, 0], [0, none], *([[0, 0]] * (tensor.shape.rank - 2))])


def _steps(unary: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    later = tf.range(tf.shape(mask)[1]) > 0
    return tf.transpose(unary, [1, 0, 2]), tf.transpose(mask & later)


def _right_padded(mask: tf.Tensor) -> tf.Tensor:
    tf.debugging.assert_equal(
        tf.reduce_any(mask[:, 1:] & ~mask[:, :-1]),
        False,
        "CRF: the mask keeps a step behind one that it takes away; sequences have to be padded at their end only.",
    )
    return mask


def _log_normalizer(unary: tf.Tensor, chain: Chain, mask: tf.Tensor) -> tf.Tensor:
    """log of the sum of exp(score) over all sequences, `[B]`."""
    transitions, start, end = chain

    def step(before: tf.Tensor, now: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        scores, here = now
        after = tf.reduce_logsumexp(before[:, :, None] + transitions, 1) + scores
        return tf.where(here[:, None], after, before)

    first = start + unary[:, 0]
    return tf.reduce_logsumexp(tf.foldl(step, _steps(unary, mask), first) + end, -1)


def _best_path(unary: tf.Tensor, chain: Chain, mask: tf.Tensor) -> tf.Tensor:
    """The sequence with the greatest score, int32 `[B, T]`; anything where masked."""
    transitions, start, end = chain
    itself = tf.zeros(tf.shape(unary[:, 0]), tf.int32) + tf.range(unary.shape[-1])

    def step(before: tuple[tf.Tensor, tf.Tensor], now: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        scores, here = now
        paths = before[0][:, :, None] + transitions
        after, origin = tf.reduce_max(paths, 1) + scores, tf.argmax(paths, 1, output_type=tf.int32)
        return tf.where(here[:, None], after, before[0]), tf.where(here[:, None], origin, itself)

    first = start + unary[:, 0]
    scores, origins = tf.scan(step, _steps(unary, mask), (first, itself))
    last = tf.argmax(scores[-1] + end, -1, output_type=tf.int32)
    others = tf.scan(lambda tag, origin: tf.gather(origin, tag, batch_dims=1), origins, last, reverse=True)
    return tf.transpose(tf.concat([others[1:], last[None]], 0))


def _path_score(unary: tf.Tensor, chain: Chain, mask: tf.Tensor, tags: tf.Tensor) -> tf.Tensor:
    """score(tags), `[B]`."""
    transitions, start, end = chain
    emitted = tf.gather(unary, tags, batch_dims=2)
    moved = tf.gather_nd(transitions, tf.stack([tags[:, :-1], tags[:, 1:]], -1))
    last = tf.maximum(tf.reduce_sum(tf.cast(mask, tf.int32), 1) - 1, 0)
    bounds = tf.gather(start, tags[:, 0]) + tf.gather(end, tf.gather(tags, last, batch_dims=1))
    return bounds + _kept_sum(emitted, mask) + _kept_sum(moved, mask[:, 1:])


def _kept_sum(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(mask, values, tf.zeros_like(values)), 1)


@register
class Sinkhorn(Layer):
    """Turns square scores into a doubly stochastic matrix: a soft permutation, that approaches the best hard one with the temperature.

        P = exp(scores / temperature), then `iterations` times: each row divided by its sum, then each column by its sum

    computed in logarithms, so that nothing overflows. Columns sum to 1 exactly, rows in the limit.

    Args:
        temperature: greater than 0; a weight of the layer, so `layer.temperature.assign(...)` schedules it.
        iterations: at least 1. The smaller the temperature, the more are needed; `marginal_error` tells.

    Call:
        inputs: scores `[..., N, N]`, floating.

    Returns:
        `[..., N, N]` in the layer's compute dtype.

    Metrics:
        marginal_error: mean over rows of |sum of the row - 1|.

    Raises:
        ValueError: if an argument is out of its range, or the scores are not square.

    Example:
        >>> layer = Sinkhorn(temperature=0.1)
        >>> layer(tf.constant([[0.0, 1.0], [3.0, 2.0]])).numpy().round(3).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

    References:
        Cuturi 2013, arXiv:1306.0895; for permutations: Mena et al. 2018, arXiv:1802.08665.
    """

    def __init__(self, *, temperature: float = 1.0, iterations: int = 20, **kwargs: Any):
        super().__init__(**kwargs)
        check_numbers(above=0, below=math.inf, temperature=temperature)
        check_integers(at_least=1, iterations=iterations)
        self.initial_temperature, self.iterations = float(temperature), iterations
        self.supports_masking = False  # a masked element of a set would have to go from rows and columns, which one mask does not say
        self.temperature = self.add_coefficient("temperature", temperature)
        self.declare_metric("marginal_error")

    def build(self, input_shape: Any) -> None:
        if len(input_shape) < 2 or input_shape[-1] != input_shape[-2]:
            raise ValueError(f"Sinkhorn needs square scores [..., N, N]; got {tuple(input_shape)}.")

    def call(self, inputs: Any) -> tf.Tensor:
        scores = full_precision(inputs)
        scores /= tf.cast(self.temperature, scores.dtype)

        # P = exp(scores + row + column) all the time: two vectors change, not the matrix.
        def balance(row: tf.Tensor, column: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            row = -tf.reduce_logsumexp(scores + column, -1, keepdims=True)
            return row, -tf.reduce_logsumexp(scores + row, -2, keepdims=True)

        row, column = tf.zeros_like(scores[..., :1]), tf.zeros_like(scores[..., :1, :])
        if self.iterations <= UNROLLED:
            for _ in range(self.iterations):
                row, column = balance(row, column)
        else:
            row, column = tf.while_loop(lambda row, column: True, balance, (row, column), maximum_iterations=self.iterations)
        outputs = tf.exp(scores + row + column)
        self.add_metric(tf.abs(tf.reduce_sum(outputs, -1) - 1), "marginal_error")
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.initial_temperature, "iterations": self.iterations}
