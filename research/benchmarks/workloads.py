"""What `scripts/benchmark.py` trains: models of different kinds, with data of their size that nobody has to download."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

__all__ = ["WORKLOADS", "Workload"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, an optimizer and data. The labels are noisy, so gradients do not vanish however long it is trained.

    Attributes:
        title: what it is, in a few words.
        layers: input -> output of the model.
        shape: of one input.
        optimizer: makes the optimizer.
        classes: number of classes; 0 for a regression.
        rows: number of examples; a multiple of the batch size, so that a hand-written loop needs no code for a tail.
        batch_size: examples per step.
        convolutions: whether there are any. They leave out contenders that give them to XLA as they are: on a CPU it has no fast
            gradient of a convolution inside a loop.
    """

    title: str
    layers: Callable[[Any], Any]
    shape: tuple[int, ...]
    optimizer: Callable[[], keras.optimizers.Optimizer]
    classes: int = 10
    rows: int = 60_000
    batch_size: int = 32
    convolutions: bool = False

    def resized(self, *, rows: int | None = None, batch_size: int | None = None) -> Workload:
        """The same with about `rows` examples, in batches of `batch_size`; None leaves them as they are."""
        size = batch_size or self.batch_size
        return dataclasses.replace(self, rows=max(1, (rows or self.rows) // size) * size, batch_size=size)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.rows // self.batch_size

    @property
    def loss(self) -> str:
        return "sparse_categorical_crossentropy" if self.classes else "mse"

    @property
    def metric(self) -> keras.metrics.Metric:
        return keras.metrics.SparseCategoricalAccuracy(name="accuracy") if self.classes else keras.metrics.MeanAbsoluteError(name="mae")

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """x `[rows, *shape]` float32 and y `[rows]` int32 or `[rows, 1]` float32; one copy for all contenders."""
        return _data(self.shape, self.classes, self.rows)

    def model(self, **compile_arguments: Any) -> keras.Model:
        """The model, compiled; the same weights at every call."""
        keras.utils.set_random_seed(0)
        x = keras.Input(self.shape)
        model = keras.Model(x, self.layers(x))
        model.compile(self.optimizer(), self.loss, metrics=[self.metric], **compile_arguments)
        return model


@functools.lru_cache(maxsize=1)
def _data(shape: tuple[int, ...], classes: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, *shape), dtype="float32")
    projected = x.reshape(rows, -1) @ rng.standard_normal((int(np.prod(shape)), max(1, classes)), dtype="float32")
    noisy = projected / projected.std() + rng.standard_normal(projected.shape, dtype="float32")
    return x, noisy.argmax(axis=-1).astype("int32") if classes else noisy


def _stack(*stacked: Any) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        for layer in stacked:
            x = layer(x)
        return x

    return apply


def _mlp(x: Any) -> Any:
    return _stack(layers.Dense(300, "relu"), layers.Dense(100, "relu"), layers.Dense(10, "softmax"))(x)


def _mlp_with_everything(x: Any) -> Any:
    for units in (300, 100):
        x = _stack(layers.Dense(units), layers.BatchNormalization(), layers.Activation("relu"), layers.Dropout(0.2))(x)
    return layers.Dense(10, "softmax")(x)


def _selu(x: Any) -> Any:
    return _stack(*[layers.Dense(100, "selu", kernel_initializer="lecun_normal") for _ in range(20)], layers.Dense(10, "softmax"))(x)


def _selu_with_dropout(x: Any) -> Any:
    for _ in range(20):
        x = _stack(layers.Dense(100, "selu", kernel_initializer="lecun_normal"), layers.AlphaDropout(0.05))(x)
    return layers.Dense(10, "softmax")(x)


def _conv(x: Any) -> Any:
    convolutions = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(16, 3, activation="relu")]
    return _stack(*convolutions, layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax"))(x)


def _wide_deep(x: Any) -> Any:
    deep = _stack(layers.Dense(30, "relu"), layers.Dense(30, "relu"))(x)
    return layers.Dense(1)(layers.concatenate([x, deep]))


SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
WORKLOADS = {
    "mlp_sgd": Workload("784-300-100-10, SGD", _mlp, (784,), lambda: SGD(0.01)),
    "mlp_adam": Workload("784-300-100-10 with batch norm and dropout, Adam", _mlp_with_everything, (784,), lambda: Adam(1e-3)),
    "selu": Workload("784-20x100-10 SELU, SGD with momentum", _selu, (784,), lambda: SGD(1e-3, momentum=0.9)),
    "selu_dropout": Workload(
        "784-20x100-10 SELU and alpha dropout, SGD with momentum", _selu_with_dropout, (784,), lambda: SGD(1e-3, momentum=0.9)
    ),
    "conv": Workload("28x28x1, conv 16-16, global pooling, Adam", _conv, (28, 28, 1), lambda: Adam(1e-3), rows=12_800, convolutions=True),
    "wide_deep": Workload("wide & deep 8-30-30-1, Adam", _wide_deep, (8,), lambda: Adam(1e-3), classes=0, rows=20_640),
}
