"""JAX with optax as a contender in `scripts/benchmark.py`, for those who have them installed. They are no dependencies.

It trains the workload's network: the same sizes, batch size, optimizer and shuffled order, with the mean loss and accuracy of every epoch.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax

from research.benchmarks.contender import Contender, Timed
from research.benchmarks.same_network import activation_of, learning_rate_of, walk
from research.benchmarks.workloads import Workload

__all__ = ["Jax"]

Tree = Any


@dataclasses.dataclass
class Jax(Contender):
    """Data on the device, the state donated.

    Attributes:
        scan: one `jax.jit` of a `lax.scan` over the steps of an epoch; else of one step, called from Python.
    """

    scan: bool = True

    def unsuitable(self, workload: Workload) -> str | None:
        if workload.source != "arrays":
            return "has no reader of its own"
        if self.scan and workload.convolutions:
            return "XLA has no fast gradient of a convolution inside a loop"
        return None

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        self._workload = workload
        model = workload.model()
        self._x, self._y = (jnp.asarray(a) for a in workload.data())
        optimizer = _optimizer_of(model.optimizer)

        def loss_of(weights: Tree, statistics: Tree, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
            updated = {}

            def apply(layer: keras.Layer, given: list[Any]) -> Any:
                if isinstance(layer, keras.layers.BatchNormalization):
                    output, updated[layer.name] = _normalized(layer, weights[layer.name], statistics[layer.name], given[0])
                    return output
                return _layer(layer, weights[layer.name], given, key)

            predicted = walk(model, x, apply)
            if not workload.classes:
                return jnp.mean((predicted - y) ** 2), (jnp.mean(jnp.abs(predicted - y)), updated)
            loss = optax.softmax_cross_entropy_with_integer_labels(predicted, y).mean()
            return loss, (jnp.mean(predicted.argmax(-1) == y), updated)

        def step(state: Tree, x: Any, y: Any, index: Any, key: Any) -> tuple[Tree, Any]:
            weights, slots, statistics = state
            gradient_of = jax.value_and_grad(loss_of, has_aux=True)
            (loss, (metric, statistics)), gradients = gradient_of(weights, statistics, x[index], y[index], key)
            updates, slots = optimizer.update(gradients, slots, weights)
            return (optax.apply_updates(weights, updates), slots, statistics), jnp.stack([loss, metric])

        def epoch(state: Tree, x: Any, y: Any, key: Any) -> tuple[Tree, Any]:
            order, key = self._order(key)

            def body(state: Tree, given: Any) -> tuple[Tree, Any]:
                index, i = given
                return step(state, x, y, index, jax.random.fold_in(key, i))

            return jax.lax.scan(body, state, (order, jnp.arange(workload.steps)))

        def one(state: Tree, x: Any, y: Any, order: Any, key: Any, i: Any, sums: Any) -> tuple[Tree, Any]:
            state, logs = step(state, x, y, order[i], jax.random.fold_in(key, i))
            return state, sums + logs

        self._epoch, self._one = jax.jit(epoch, donate_argnums=0), jax.jit(one, donate_argnums=(0, 6))
        self._shuffle = jax.jit(self._order)
        layers = [layer for layer in model.layers if layer.weights]
        weights = {layer.name: [_array(w) for w in layer.trainable_weights] for layer in model.layers}
        normalized = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        statistics = {layer.name: (_array(layer.moving_mean), _array(layer.moving_variance)) for layer in normalized}
        self._state, self._key = (weights, optimizer.init(weights), statistics), jax.random.key(0)
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun = time.perf_counter()
        for _ in range(epochs):
            self._key, key = jax.random.split(self._key)
            if self.scan:
                self._state, logs = self._epoch(self._state, self._x, self._y, key)
                logs = logs.mean(axis=0)
            else:
                order, key = self._shuffle(key)
                logs = jnp.zeros(2)
                for i in range(self._workload.steps):
                    self._state, logs = self._one(self._state, self._x, self._y, order, key, i, logs)
            float(logs[0]), float(logs[1])
        return Timed(epochs * self._workload.steps, time.perf_counter() - begun)

    def _order(self, key: Any) -> tuple[Any, Any]:
        """The examples of each step of an epoch, and a key for its noise."""
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, self._workload.rows)
        return order.reshape(self._workload.steps, self._workload.batch_size), noise_key


def _array(variable: Any) -> Any:
    return jnp.array(keras.ops.convert_to_numpy(variable))


def _optimizer_of(optimizer: keras.optimizers.Optimizer) -> Any:
    rate = learning_rate_of(optimizer)
    if isinstance(optimizer, keras.optimizers.Adam):
        return optax.adam(rate, optimizer.beta_1, optimizer.beta_2, optimizer.epsilon)
    return optax.sgd(rate, optimizer.momentum or None)


def _normalized(layer: keras.Layer, weights: list[Any], statistics: Any, x: Any) -> tuple[Any, Any]:
    """Batch normalization, and its moving statistics."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    moved = tuple(layer.momentum * old + (1 - layer.momentum) * new for old, new in zip(statistics, (mean, variance), strict=True))
    return (x - mean) * jax.lax.rsqrt(variance + layer.epsilon) * weights[0] + weights[1], moved


def _layer(layer: keras.Layer, weights: list[Any], given: list[Any], key: Any) -> Any:
    kl, x = keras.layers, given[0]
    if isinstance(layer, kl.Concatenate):
        return jnp.concatenate(given, axis=-1)
    if isinstance(layer, kl.Add):
        return given[0] + given[1]
    if isinstance(layer, (kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D)):
        return x.mean(axis=tuple(range(1, x.ndim - 1)))
    if isinstance(layer, kl.MaxPooling2D):
        window = (1, *layer.pool_size, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    if isinstance(layer, (kl.Dropout, kl.AlphaDropout)):
        return _dropped(layer, x, jax.random.fold_in(key, zlib.crc32(layer.name.encode())))
    if isinstance(layer, kl.LSTM):
        return _last_of_lstm(*weights, x)
    if isinstance(layer, kl.MultiHeadAttention):
        query, query_bias, key_, key_bias, value, value_bias, out, out_bias = weights
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, w) + b for w, b in ((query, query_bias), (key_, key_bias), (value, value_bias)))
        return jnp.einsum("bthk,hkd->btd", jax.nn.dot_product_attention(q, k, v), out) + out_bias
    if isinstance(layer, kl.Embedding):
        return weights[0][x]
    if isinstance(layer, kl.LayerNormalization):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + layer.epsilon) * weights[0] + weights[1]
    if isinstance(layer, kl.Dense):
        x = x @ weights[0] + weights[1]
    elif isinstance(layer, kl.Conv2D):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights[0], layer.strides, layer.padding.upper(), dimension_numbers=numbers)
        x = x + weights[1] if layer.use_bias else x
    functions = {"relu": jax.nn.relu, "selu": jax.nn.selu, "gelu": lambda v: jax.nn.gelu(v, approximate=False)}
    return functions.get(activation_of(layer), lambda v: v)(x)  # the loss takes logits


def _dropped(layer: keras.Layer, x: Any, key: Any) -> Any:
    keep = jax.random.bernoulli(key, 1 - layer.rate, x.shape)
    if isinstance(layer, keras.layers.Dropout):
        return jnp.where(keep, x / (1 - layer.rate), 0)
    # Dropped units get the value at which SELU saturates, and mean and variance are put right (arXiv 1706.02515).
    saturated = -1.6732632423543772 * 1.0507009873554805
    scale = ((1 - layer.rate) * (1 + layer.rate * saturated**2)) ** -0.5
    return scale * jnp.where(keep, x, saturated) - scale * saturated * layer.rate


def _last_of_lstm(kernel: Any, recurrent: Any, bias: Any, x: Any) -> Any:
    zeros = jnp.zeros((x.shape[0], recurrent.shape[0]))

    def step(state: Any, given: Any) -> tuple[Any, None]:
        hidden, cell = state
        i, f, c, o = jnp.split(given + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(c)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    inputs = (x @ kernel + bias).swapaxes(0, 1)  # of all times in one product
    return jax.lax.scan(step, (zeros, zeros), inputs)[0][0]
