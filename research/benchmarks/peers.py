"""Other libraries as contenders in `scripts/benchmark.py`, for those who have them installed. They are no dependencies.

Each walks over the layers of the workload's Keras model and makes the same network of its own, so that all train the same thing: the same
sizes, batch size, optimizer and shuffled order, with the mean loss and accuracy of every epoch.
"""

from __future__ import annotations

import logging
import pathlib
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from research.benchmarks.contenders import Contender, Timed
from research.benchmarks.workloads import Workload

__all__ = ["PEERS"]


def _walk(model: keras.Model, x: Any, apply: Callable[[keras.Layer, list[Any]], Any]) -> Any:
    """The model's output, where `apply(layer, inputs)` gives a layer's."""
    values = {id(model.inputs[0]): x}
    for layer in model.layers[1:]:
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        values[id(layer.output)] = apply(layer, [values[id(tensor)] for tensor in given])
    return values[id(model.outputs[0])]


def _activation(layer: keras.Layer) -> str:
    return getattr(layer, "activation", keras.activations.linear).__name__


class Torch(Contender):
    """A training loop in PyTorch: tensors in memory, an index for each batch, `zero_grad`, `backward`, `step`."""

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        import torch

        self._torch, self._workload = torch, workload
        torch.manual_seed(0)
        model = workload.model()
        self._network = _torch_network(model)
        x, y = (torch.from_numpy(a) for a in workload.data())
        # Convolutions want channels first.
        self._x, self._y = (x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x), (y.long() if workload.classes else y)
        self._loss = torch.nn.CrossEntropyLoss() if workload.classes else torch.nn.MSELoss()
        self._optimizer = _torch_optimizer(model.optimizer, self._network.parameters())
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun, size = time.perf_counter(), self._workload.batch_size
        for _ in range(epochs):
            total, hits = self._torch.zeros(()), self._torch.zeros(())
            for index in self._torch.randperm(len(self._x)).split(size):
                x, y = self._x[index], self._y[index]
                self._optimizer.zero_grad(set_to_none=True)
                predicted = self._network(x)
                loss = self._loss(predicted, y)
                loss.backward()
                self._optimizer.step()
                total += loss.detach()
                predicted = predicted.detach()
                hits += (predicted.argmax(-1) == y).sum() if self._workload.classes else (predicted - y).abs().sum()
            float(total), float(hits)
        return Timed(epochs * self._workload.steps, time.perf_counter() - begun)


class Lightning(Contender):
    """`lightning.Trainer` with a DataLoader in this process, everything switched off that can be."""

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        import lightning
        import torch

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        self._lightning, self._workload, self._directory = lightning, workload, directory
        torch.manual_seed(0)
        model = workload.model()
        network = _torch_network(model)
        loss_of = torch.nn.functional.cross_entropy if workload.classes else torch.nn.functional.mse_loss

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def training_step(self, batch: Any, _: int) -> Any:
                x, y = batch
                predicted = self.network(x)
                loss = loss_of(predicted, y)
                right = (predicted.argmax(-1) == y).float().mean() if workload.classes else (predicted - y).abs().mean()
                self.log_dict({"loss": loss, "metric": right}, on_step=False, on_epoch=True)
                return loss

            def configure_optimizers(self) -> Any:
                return _torch_optimizer(model.optimizer, self.parameters())

        x, y = (torch.from_numpy(a) for a in workload.data())
        data = torch.utils.data.TensorDataset(x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x, y.long() if workload.classes else y)
        self._loader = torch.utils.data.DataLoader(data, batch_size=workload.batch_size, shuffle=True)
        self._module = Module()
        self.run(1)

    def run(self, epochs: int) -> Timed:
        class Clock(self._lightning.Callback):  # type: ignore[misc, name-defined]
            def on_train_start(self, *_: Any) -> None:
                self.begun = time.perf_counter()

            def on_train_end(self, *_: Any) -> None:
                self.ended = time.perf_counter()

        clock = Clock()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = self._lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=self._directory, callbacks=[clock], **quiet
        )
        trainer.fit(self._module, self._loader)
        return Timed(epochs * self._workload.steps, clock.ended - clock.begun)


def _torch_network(model: keras.Model) -> Any:
    from torch import nn

    activations = {"relu": nn.ReLU, "selu": nn.SELU, "linear": nn.Identity, "softmax": nn.Identity}  # the loss takes logits

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({layer.name: part for layer in model.layers[1:] if (part := make(layer)) is not None})

        def forward(self, x: Any) -> Any:
            return _walk(model, x, self.apply_layer)

        def apply_layer(self, layer: keras.Layer, given: list[Any]) -> Any:
            import torch

            if isinstance(layer, keras.layers.Concatenate):
                return torch.cat(given, dim=-1)
            if isinstance(layer, keras.layers.GlobalAveragePooling2D):
                return given[0].mean(dim=(2, 3))
            return self.parts[layer.name](given[0])

    def make(layer: keras.Layer) -> Any:
        activation = activations[_activation(layer)]()
        if isinstance(layer, keras.layers.Dense):
            return nn.Sequential(nn.Linear(*layer.kernel.shape), activation)
        if isinstance(layer, keras.layers.Conv2D):
            return nn.Sequential(nn.Conv2d(layer.kernel.shape[2], layer.filters, layer.kernel_size), activation)
        if isinstance(layer, keras.layers.BatchNormalization):
            return nn.BatchNorm1d(layer.gamma.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum)
        if isinstance(layer, keras.layers.Dropout):
            return nn.Dropout(layer.rate)
        if isinstance(layer, keras.layers.AlphaDropout):
            return nn.AlphaDropout(layer.rate)
        if isinstance(layer, keras.layers.MaxPooling2D):
            return nn.MaxPool2d(layer.pool_size)
        return activation if isinstance(layer, keras.layers.Activation) else None

    return Network()


def _torch_optimizer(optimizer: keras.optimizers.Optimizer, parameters: Any) -> Any:
    import torch

    rate = float(optimizer.learning_rate.numpy())
    if isinstance(optimizer, keras.optimizers.Adam):
        return torch.optim.Adam(parameters, rate, eps=optimizer.epsilon)
    return torch.optim.SGD(parameters, rate, momentum=optimizer.momentum)


class Jax(Contender):
    """One `jax.jit` of a `lax.scan` over the steps of an epoch, data on the device."""

    stock_xla = True

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        import jax
        import jax.numpy as jnp

        self._jax, self._workload = jax, workload
        model = workload.model()
        self._x, self._y = (jnp.asarray(a) for a in workload.data())
        weights = {layer.name: [jnp.asarray(w.numpy()) for w in layer.trainable_weights] for layer in model.layers}
        step_of = _jax_optimizer(model.optimizer)

        def loss_of(weights: Any, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
            predicted = _walk(model, x, lambda layer, given: _jax_layer(layer, weights[layer.name], given, key))
            if not workload.classes:
                return jnp.mean((predicted - y) ** 2), jnp.mean(jnp.abs(predicted - y))
            chosen = jnp.take_along_axis(jax.nn.log_softmax(predicted), y[:, None], axis=-1)
            return -jnp.mean(chosen), jnp.mean(predicted.argmax(-1) == y)

        def epoch(state: Any, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
            order_key, noise_key = jax.random.split(key)
            order = jax.random.permutation(order_key, workload.rows).reshape(workload.steps, workload.batch_size)

            def step(state: Any, given: Any) -> tuple[Any, Any]:
                index, i = given
                weights, slots, count = state
                (loss, metric), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                    weights, x[index], y[index], jax.random.fold_in(noise_key, i)
                )
                weights, slots = step_of(weights, gradients, slots, count + 1)
                return (weights, slots, count + 1), (loss, metric)

            return jax.lax.scan(step, state, (order, jnp.arange(workload.steps)))

        self._epoch = jax.jit(epoch, donate_argnums=0)
        zeros = jax.tree.map(jnp.zeros_like, weights)
        self._state, self._key = (weights, (zeros, jax.tree.map(jnp.zeros_like, weights)), jnp.zeros(())), jax.random.key(0)
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun = time.perf_counter()
        for _ in range(epochs):
            self._key, key = self._jax.random.split(self._key)
            self._state, (losses, metrics) = self._epoch(self._state, self._x, self._y, key)
            float(losses.mean()), float(metrics.mean())
        return Timed(epochs * self._workload.steps, time.perf_counter() - begun)


def _jax_layer(layer: keras.Layer, weights: list[Any], given: list[Any], key: Any) -> Any:
    import jax
    import jax.numpy as jnp

    x = given[0]
    if isinstance(layer, keras.layers.Concatenate):
        return jnp.concatenate(given, axis=-1)
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return x.mean(axis=(1, 2))
    if isinstance(layer, keras.layers.MaxPooling2D):
        window = (1, *layer.pool_size, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    if isinstance(layer, (keras.layers.Dropout, keras.layers.AlphaDropout)):
        keep = jax.random.bernoulli(jax.random.fold_in(key, zlib.crc32(layer.name.encode())), 1 - layer.rate, x.shape)
        if isinstance(layer, keras.layers.Dropout):
            return jnp.where(keep, x / (1 - layer.rate), 0)
        # Dropped units get the value at which SELU saturates, and mean and variance are put right (arXiv 1706.02515).
        saturated = -1.6732632423543772 * 1.0507009873554805
        scale = ((1 - layer.rate) * (1 + layer.rate * saturated**2)) ** -0.5
        return scale * jnp.where(keep, x, saturated) - scale * saturated * layer.rate
    if isinstance(layer, keras.layers.BatchNormalization):
        mean, variance = x.mean(axis=0), x.var(axis=0)
        x = (x - mean) * jax.lax.rsqrt(variance + layer.epsilon) * weights[0] + weights[1]
    elif isinstance(layer, keras.layers.Dense):
        x = x @ weights[0] + weights[1]
    elif isinstance(layer, keras.layers.Conv2D):
        x = jax.lax.conv_general_dilated(x, weights[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + weights[1]
    functions = {"relu": jax.nn.relu, "selu": jax.nn.selu}
    return functions.get(_activation(layer), lambda v: v)(x)  # the loss takes logits


def _jax_optimizer(optimizer: keras.optimizers.Optimizer) -> Callable[..., tuple[Any, Any]]:
    import jax
    import jax.numpy as jnp

    rate = float(np.asarray(optimizer.learning_rate))

    def sgd(weights: Any, gradients: Any, slots: Any, count: Any) -> tuple[Any, Any]:
        momentum = jax.tree.map(lambda m, g: optimizer.momentum * m - rate * g, slots[0], gradients)
        return jax.tree.map(jnp.add, weights, momentum), (momentum, slots[1])

    def adam(weights: Any, gradients: Any, slots: Any, count: Any) -> tuple[Any, Any]:
        first = jax.tree.map(lambda m, g: optimizer.beta_1 * m + (1 - optimizer.beta_1) * g, slots[0], gradients)
        second = jax.tree.map(lambda v, g: optimizer.beta_2 * v + (1 - optimizer.beta_2) * g * g, slots[1], gradients)
        alpha = rate * jnp.sqrt(1 - optimizer.beta_2**count) / (1 - optimizer.beta_1**count)
        moved = jax.tree.map(lambda w, m, v: w - alpha * m / (jnp.sqrt(v) + optimizer.epsilon), weights, first, second)
        return moved, (first, second)

    return adam if isinstance(optimizer, keras.optimizers.Adam) else sgd


PEERS: dict[str, Callable[[], Contender]] = {"torch": Torch, "lightning": Lightning, "jax": Jax}
