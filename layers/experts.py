"""Sparse mixtures of experts: a router that sends each token to few of many feed-forward networks, and the layer that holds these."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, masked_mean, register

__all__ = ["MixtureOfExperts", "TopKRouter"]


@register
class TopKRouter(Layer):
    """Chooses k of E experts for each token, keeps their loads even by a loss, and gives each expert's queue a limited length.

        p      = softmax(h),  h = x W                          in float32
        gates  = the k largest p; for k > 1 divided by their sum
        loss   = balance_weight * E * sum over i of f_i P_i + z_weight * mean (logsumexp h)^2

    f_i is the share of the tokens' choices that fell on expert i (without a gradient), P_i the mean of p_i: their term is 1 if all is even.
    An expert serves at most ceil(capacity_factor * k * tokens / E) tokens of a batch: first those whose first choice it is, then those
    whose second, each in the batch's order. The others are dropped. Masked tokens are not served, take no room and do not count.

    Args:
        experts: number E of experts, at least 1.
        k: number of experts for each token, from 1 to E.
        capacity_factor: length of a queue when training, as a multiple of an even load; greater than 0. None drops nothing.
        inference_capacity_factor: the same when not training. As long as something can be dropped, a token's experts depend on what else
            is in its batch; None prevents it, at the price of a buffer with room for all tokens at each expert.
        balance_weight: weight of the balance, at least 0; a weight of the layer, so `router.balance_weight.assign(...)` schedules it.
        z_weight: weight of the logits' size, at least 0; a weight of the layer, too.
        kernel_initializer: a Keras initializer of `[D, E]`.

    Call:
        inputs: `[..., D]`, floating.
        mask: bool `[...]` without the last dimension.
        training: which capacity factor to use.

    Returns:
        gates, `[..., k]` in the layer's compute dtype, 0 where dropped or masked; experts, int32 `[..., k]`; and each one's position in its
        expert's queue, int32 `[..., k]`, -1 where dropped or masked.

    Metrics:
        dropped: share of the choices that were dropped.
        max_load: choices of the most wanted expert as a multiple of an even load, before dropping: from 1 to E.
        entropy: mean entropy of p, in nats.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> router = TopKRouter(experts=2, capacity_factor=1.0, kernel_initializer="identity")
        >>> gates, experts, positions = router(tf.constant([[0.0, 9.0], [0.0, 9.0]]), training=True)  # each expert has room for one
        >>> experts.numpy().ravel().tolist(), positions.numpy().ravel().tolist()
        ([1, 1], [0, -1])

    References:
        Fedus et al. 2021 (Switch), arXiv:2101.03961; z-loss: Zoph et al. 2022, arXiv:2202.08906; k > 1: Lepikhin et al. 2020,
        arXiv:2006.16668.
    """

    def __init__(
        self,
        *,
        experts: int,
        k: int = 1,
        capacity_factor: float | None = 1.25,
        inference_capacity_factor: float | None = 2.0,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, experts=experts)
        if not (isinstance(k, int) and 1 <= k <= experts):
            raise ValueError(f"`k` must be an integer from 1 to the number of experts, {experts}; got {k!r}.")
        factors = {"capacity_factor": capacity_factor, "inference_capacity_factor": inference_capacity_factor}
        check_numbers(above=0, below=math.inf, optional=True, **factors)
        check_numbers(at_least=0, balance_weight=balance_weight, z_weight=z_weight)
        self.experts, self.k = experts, k
        self.capacity_factor, self.inference_capacity_factor = capacity_factor, inference_capacity_factor
        self.initial_weights = float(balance_weight), float(z_weight)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.balance_weight = self.add_coefficient("balance_weight", balance_weight)
        self.z_weight = self.add_coefficient("z_weight", z_weight)
        for name in ("dropped", "max_load", "entropy"):
            self.declare_metric(name)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            shape=(known_dimension(self, input_shape), self.experts),
            initializer=self.kernel_initializer,
            dtype=self.z_weight.dtype,
            autocast=False,
            name="kernel",
        )

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        tokens, mask = _tokens(full_precision(inputs), mask)
        logits = tokens @ tf.cast(self.kernel, tokens.dtype)
        scale = tf.reduce_logsumexp(logits, -1, keepdims=True)
        best, chosen = tf.math.top_k(logits, self.k)
        gates = tf.nn.softmax(best) if self.k > 1 else tf.exp(best - scale)
        positions, loads = self._queues(chosen, mask, training)
        kept = positions >= 0
        log_p = logits - scale
        p = tf.exp(log_p)
        self._add_losses(p, scale, tf.cast(loads, p.dtype), mask)
        self.add_metric(positions < 0, "dropped", sample_weight=mask)
        self.add_metric(self.experts * tf.reduce_max(loads), "max_load")
        self.add_metric(-tf.reduce_sum(p * log_p, -1), "entropy", sample_weight=mask)
        shape = tf.concat([tf.shape(inputs)[:-1], [self.k]], 0)
        gates = tf.cast(tf.where(kept, gates, tf.zeros_like(gates)), inputs.dtype)
        return tuple(tf.reshape(part, shape) for part in (gates, chosen, positions))

    def capacity(self, tokens: Any, training: bool | None) -> Any:
        """Room for tokens at each expert.

        Args:
            tokens: number of tokens in the batch, an integer or an int32 scalar.
            training: which capacity factor to use.

        Returns:
            Number of the same kind, from 1 to `tokens`; 0 if there are none.
        """
        factor = self.capacity_factor if training else self.inference_capacity_factor
        if factor is None:
            return tokens
        if isinstance(tokens, int):
            return min(math.ceil(factor * self.k * tokens / self.experts), tokens)
        return tf.minimum(tf.cast(tf.math.ceil(factor * self.k * tf.cast(tokens, tf.float64) / self.experts), tf.int32), tokens)

    def _queues(self, chosen: tf.Tensor, mask: Any, training: bool | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Positions `[N, k]` in the queues, -1 for those who get none; and the share of all choices that falls on each expert."""
        count = tf.shape(chosen)[0]
        in_turn = tf.one_hot(tf.reshape(tf.transpose(chosen), [-1]), self.experts, dtype=tf.int32)  # [k * N, E], first choices first
        served = None if mask is None else tf.cast(mask, tf.int32)
        if served is not None:
            count = tf.reduce_sum(served)
            in_turn *= tf.tile(served, [self.k])[:, None]
        before = tf.reduce_sum(tf.cumsum(in_turn, exclusive=True) * in_turn, -1)
        positions = tf.transpose(tf.reshape(before, [self.k, tf.shape(chosen)[0]]))
        fits = positions < self.capacity(count, training)
        if served is not None:
            fits &= served[:, None] > 0
        loads = tf.cast(tf.reduce_sum(in_turn, 0), self.z_weight.dtype)
        return tf.where(fits, positions, -1), tf.math.divide_no_nan(loads, tf.reduce_sum(loads))

    def _add_losses(self, p: tf.Tensor, scale: tf.Tensor, loads: tf.Tensor, mask: Any) -> None:
        balance = self.experts * tf.reduce_sum(loads * masked_mean(p, mask, keep_last=True))
        size = masked_mean(tf.square(scale), mask)
        self.add_loss(tf.cast(self.balance_weight, p.dtype) * balance + tf.cast(self.z_weight, p.dtype) * size)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return ((*input_shape[:-1], self.k),) * 3

    def compute_output_spec(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        shape = (*inputs.shape[:-1], self.k)
        return tuple(keras.KerasTensor(shape, dtype) for dtype in (self.compute_dtype, "int32", "int32"))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return (previous_mask,) * 3

    def get_config(self) -> dict[str, Any]:
        config = {
            "experts": self.experts,
            "k": self.k,
            "capacity_factor": self.capacity_factor,
            "inference_capacity_factor": self.inference_capacity_factor,
            "balance_weight": self.initial_weights[0],
            "z_weight": self.initial_weights[1],
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
        return {**super().get_config(), **config}


@register
class MixtureOfExperts(Layer):
    """Feed-forward networks of which each token visits k, chosen by a `TopKRouter`: many parameters at the cost of few.

        y = sum over the chosen experts i of gate_i * (activation(x U_i + a_i) V_i + b_i)

    A token that all its experts dropped gets 0, so the layer belongs beside a residual connection. With one expert, that drops nothing, it
    is the plain feed-forward network.

    Args:
        experts: number E of experts, at least 1.
        units: width of each expert's hidden layer, at least 1.
        activation: of the hidden layers, a Keras activation.
        k, capacity_factor, inference_capacity_factor, balance_weight, z_weight: see `TopKRouter`; the weights are those of `layer.router`,
            so `layer.router.balance_weight.assign(...)` schedules one.
        kernel_initializer: a Keras initializer, used for each expert's `[D, units]` and `[units, D]` by itself.

    Call:
        inputs: `[..., D]`, floating; usually `[B, T, D]`. All tokens of a batch (of a replica) share the experts' room.
        mask: bool `[...]` without the last dimension; masked tokens take no room and get 0.
        training: which capacity factor to use.

    Returns:
        `[..., D]` in the layer's compute dtype.

    Losses:
        balance_weight * E * sum over i of f_i P_i + z_weight * mean (logsumexp h)^2, the router's, as in `TopKRouter`.

    Metrics:
        dropped, max_load, entropy: the router's, under the name `"<layer name>_router/..."`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> layer = MixtureOfExperts(experts=4, units=8)
        >>> x = tf.ones([2, 3, 5])
        >>> (x + layer(x)).shape, len(layer.losses)
        (TensorShape([2, 3, 5]), 1)

    References:
        Fedus et al. 2021 (Switch), arXiv:2101.03961.
    """

    def __init__(
        self,
        *,
        experts: int,
        units: int,
        activation: Any = "relu",
        k: int = 1,
        capacity_factor: float | None = 1.25,
        inference_capacity_factor: float | None = 2.0,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True
        self.router = TopKRouter(
            experts=experts,
            k=k,
            capacity_factor=capacity_factor,
            inference_capacity_factor=inference_capacity_factor,
            balance_weight=balance_weight,
            z_weight=z_weight,
            name=f"{self.name}_router",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any) -> None:
        experts, width = self.router.experts, known_dimension(self, input_shape)
        self.router.build(input_shape)
        initial = _each(self.kernel_initializer)
        self.kernel_in = self.add_weight(shape=(experts, width, self.units), initializer=initial, name="kernel_in")
        self.bias_in = self.add_weight(shape=(experts, 1, self.units), initializer="zeros", name="bias_in")
        self.kernel_out = self.add_weight(shape=(experts, self.units, width), initializer=initial, name="kernel_out")
        self.bias_out = self.add_weight(shape=(experts, 1, width), initializer="zeros", name="bias_out")

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> tf.Tensor:
        gates, chosen, positions = (tf.reshape(x, [-1, self.router.k]) for x in self.router(inputs, mask=mask, training=training))
        tokens, _ = _tokens(inputs, mask)
        count, width = tokens.shape
        room = self.router.capacity(tf.shape(tokens)[0] if count is None else count, training)
        kept, slots = positions >= 0, chosen * room + positions
        numbers = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(slots))
        # Slots of nobody hold token 0, and nobody picks up what becomes of it. Segment sums leave out what is negative.
        visitors = tf.math.unsorted_segment_sum(numbers, tf.where(kept, slots, -1), self.router.experts * room)
        queues = tf.reshape(tf.gather(tokens, visitors), [self.router.experts, room, width])
        served = tf.reshape(self._serve(queues), [-1, width])
        # Who was dropped finds what lies in slot 0, and has the gate 0.
        found = tf.gather(served, tf.where(kept, slots, 0))
        return tf.reshape(tf.reduce_sum(gates[..., None] * found, 1), tf.shape(inputs))

    def _serve(self, queues: tf.Tensor) -> tf.Tensor:
        """Each expert's network on its own queue: `[E, room, D]` to the same."""
        hidden = self.activation(queues @ tf.convert_to_tensor(self.kernel_in) + self.bias_in)
        return hidden @ tf.convert_to_tensor(self.kernel_out) + self.bias_out

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        router = self.router.get_config()
        shared = ("experts", "k", "capacity_factor", "inference_capacity_factor", "balance_weight", "z_weight")
        config = {
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
        return {**super().get_config(), **{name: router[name] for name in shared}, **config}


def _tokens(inputs: tf.Tensor, mask: Any) -> tuple[tf.Tensor, Any]:
    """`[..., D]` as `[N, D]`, and the mask as bool `[N]`. Masked tokens become 0, so that nothing comes of them, whatever they are."""
    tokens = tf.reshape(inputs, [-1, inputs.shape[-1]])
    if mask is None:
        return tokens, None
    mask = tf.reshape(tf.cast(mask, tf.bool), [-1])
    return tf.where(mask[:, None], tokens, tf.zeros_like(tokens)), mask


def _each(initializer: Any) -> Any:
    """Initializes each expert by itself: for `[E, D, units]` as a whole Keras would take E as part of the fan-in."""

    def initial(shape: Any, dtype: Any = None) -> tf.Tensor:
        return tf.stack([_of_expert(initializer, i)(shape[1:], dtype=dtype) for i in range(shape[0])])

    return initial


def _of_expert(initializer: Any, expert: int) -> Any:
    """An initializer that gives another kernel to each expert, if there is anything random in it that a number decides.

    Keras's own, called twice, draw the same numbers again, unless their seed is a generator. Functions draw what they draw.
    """
    config = initializer.get_config() if isinstance(initializer, keras.initializers.Initializer) else {}
    if "seed" not in config or not (config["seed"] is None or isinstance(config["seed"], int)):
        return initializer
    seed = config["seed"]
    return type(initializer).from_config({**config, "seed": seed if seed is None else seed + expert})
