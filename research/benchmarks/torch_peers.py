"""PyTorch and Lightning as contenders in `scripts/benchmark.py`, for those who have them installed. They are no dependencies.

All train the workload's network: the same sizes, batch size, optimizer and shuffled order, with the mean loss and accuracy of every epoch.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
import warnings
from collections.abc import Iterable
from typing import Any

import keras
import torch
from torch import nn

from research.benchmarks.contender import Contender, Timed
from research.benchmarks.same_network import activation_of, learning_rate_of, walk
from research.benchmarks.workloads import NORMALIZE, Workload

__all__ = ["Lightning", "Torch"]


@dataclasses.dataclass
class Torch(Contender):
    """A training loop in PyTorch: `zero_grad`, `backward`, `step`. Arrays are tensors in memory with an index for each batch; where others
    read `tf.data`, a `DataLoader` does the same to each example.

    Attributes:
        compiled: whether forward pass and loss are compiled by `torch.compile`, with the fused optimizer.
    """

    compiled: bool = False

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        self._workload = workload
        torch.manual_seed(0)
        model = workload.model()
        self._network = network_of(model)
        self._x, self._y = tensors_of(workload)
        self._loss = loss_of(workload)
        self._optimizer = optimizer_of(model.optimizer, self._network.parameters(), fused=self.compiled or None)
        self._forward = torch.compile(self._predicted_and_loss, dynamic=False) if self.compiled else self._predicted_and_loss
        if workload.source != "arrays":
            self._loader = torch.utils.data.DataLoader(_Examples(self._x, self._y, workload), workload.batch_size, shuffle=True)
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun = time.perf_counter()
        for _ in range(epochs):
            total, hits = torch.zeros(()), torch.zeros(())
            for x, y in self._batches():
                self._optimizer.zero_grad(set_to_none=True)
                predicted, loss = self._forward(x, y)
                loss.backward()
                self._optimizer.step()
                total += loss.detach()
                predicted = predicted.detach()
                hits += (predicted.argmax(-1) == y).sum() if self._workload.classes else (predicted - y).abs().sum()
            float(total), float(hits)
        return Timed(epochs * self._workload.steps, time.perf_counter() - begun)

    def _batches(self) -> Iterable[tuple[Any, Any]]:
        if self._workload.source != "arrays":
            return self._loader
        order = torch.randperm(len(self._x)).split(self._workload.batch_size)
        return ((self._x[index], self._y[index]) for index in order)

    def _predicted_and_loss(self, x: Any, y: Any) -> tuple[Any, Any]:
        predicted = self._network(x)
        return predicted, self._loss(predicted, y)


class Lightning(Contender):
    """`lightning.Trainer` with a DataLoader in this process, everything switched off that can be."""

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        import lightning

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning")
        self._lightning, self._workload, self._directory = lightning, workload, directory
        torch.manual_seed(0)
        model = workload.model()
        network, loss_fn = network_of(model), loss_of(workload)

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def training_step(self, batch: Any, _: int) -> Any:
                x, y = batch
                predicted = self.network(x)
                loss = loss_fn(predicted, y)
                right = (predicted.argmax(-1) == y).float().mean() if workload.classes else (predicted - y).abs().mean()
                self.log_dict({"loss": loss, "metric": right}, on_step=False, on_epoch=True)
                return loss

            def configure_optimizers(self) -> Any:
                return optimizer_of(model.optimizer, self.parameters())

        x, y = tensors_of(workload)
        data = torch.utils.data.TensorDataset(x, y) if workload.source == "arrays" else _Examples(x, y, workload)
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


class _Examples(torch.utils.data.Dataset):
    """Example by example, normalized as the batches of `Workload.dataset`."""

    def __init__(self, x: Any, y: Any, workload: Workload):
        self._x, self._y, self._as_is = x, y, bool(workload.tokens)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return (self._x[i] if self._as_is else (self._x[i] - NORMALIZE[0]) * NORMALIZE[1]), self._y[i]


def tensors_of(workload: Workload) -> tuple[Any, Any]:
    """The data as tensors; convolutions want channels first."""
    x, y = (torch.from_numpy(a) for a in workload.data())
    return (x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x), (y.long() if workload.classes else y)


def loss_of(workload: Workload) -> Any:
    return nn.functional.cross_entropy if workload.classes else nn.functional.mse_loss


def optimizer_of(optimizer: keras.optimizers.Optimizer, parameters: Any, fused: bool | None = None) -> Any:
    rate = learning_rate_of(optimizer)
    if isinstance(optimizer, keras.optimizers.Adam):
        return torch.optim.Adam(parameters, rate, eps=optimizer.epsilon, fused=fused)
    return torch.optim.SGD(parameters, rate, momentum=optimizer.momentum, fused=fused)


def network_of(model: keras.Model) -> Any:
    """The model's network, which gives logits where the model ends with a softmax."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({layer.name: part for layer in model.layers[1:] if (part := _part(layer)) is not None})

        def forward(self, x: Any) -> Any:
            return walk(model, x, self.apply_layer)

        def apply_layer(self, layer: keras.Layer, given: list[Any]) -> Any:
            if isinstance(layer, keras.layers.Concatenate):
                return torch.cat(given, dim=-1)
            if isinstance(layer, keras.layers.Add):
                return given[0] + given[1]
            if isinstance(layer, keras.layers.GlobalAveragePooling2D):
                return given[0].mean(dim=(2, 3))
            if isinstance(layer, keras.layers.GlobalAveragePooling1D):
                return given[0].mean(dim=1)
            return self.parts[layer.name](given[0])

    return Network()


_ACTIVATIONS = {"relu": nn.ReLU, "selu": nn.SELU, "gelu": nn.GELU, "linear": nn.Identity, "softmax": nn.Identity}  # the loss takes logits


def _part(layer: keras.Layer) -> Any:
    kl = keras.layers
    if isinstance(layer, kl.LSTM):
        return _LastOutput(layer.cell.kernel.shape[0], layer.units)
    if isinstance(layer, kl.MultiHeadAttention):
        return _SelfAttention(layer.output.shape[-1], layer.num_heads)
    if isinstance(layer, kl.Embedding):
        return nn.Embedding(layer.input_dim, layer.output_dim)
    if isinstance(layer, kl.LayerNormalization):
        return nn.LayerNorm(layer.output.shape[-1], eps=layer.epsilon)
    if isinstance(layer, kl.BatchNormalization):
        norm = nn.BatchNorm2d if len(layer.output.shape) == 4 else nn.BatchNorm1d
        return norm(layer.gamma.shape[0], eps=layer.epsilon, momentum=1 - layer.momentum)
    if isinstance(layer, kl.Dropout):
        return nn.Dropout(layer.rate)
    if isinstance(layer, kl.AlphaDropout):
        return nn.AlphaDropout(layer.rate)
    if isinstance(layer, kl.MaxPooling2D):
        return nn.MaxPool2d(layer.pool_size)
    if isinstance(layer, kl.Dense):
        return _activated(nn.Linear(*layer.kernel.shape), layer)
    if isinstance(layer, kl.Conv2D):
        padding = layer.kernel_size[0] // 2 if layer.padding == "same" else 0
        sizes = layer.kernel.shape[2], layer.filters, layer.kernel_size, layer.strides
        return _activated(nn.Conv2d(*sizes, padding=padding, bias=layer.use_bias), layer)
    return _ACTIVATIONS[activation_of(layer)]() if isinstance(layer, kl.Activation) else None


def _activated(part: Any, layer: keras.Layer) -> Any:
    activation = _ACTIVATIONS[activation_of(layer)]
    return part if activation is nn.Identity else nn.Sequential(part, activation())


class _LastOutput(nn.Module):
    def __init__(self, width: int, units: int):
        super().__init__()
        self.lstm = nn.LSTM(width, units, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.lstm(x)[0][:, -1]


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]
