"""What `scripts/benchmark.py` trains: models of different kinds, with data of their size that nobody has to download.

Knows Keras only, with any backend: PyTorch and JAX make the same networks from the Keras model in processes without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from research.benchmarks.architectures import lstm, resnet, stack, transformer

__all__ = ["NORMALIZE", "WORKLOADS", "Workload"]

#: What is subtracted from and multiplied with each example of a pipeline that has numbers for inputs.
NORMALIZE = (0.1, 1.1)
_SHUFFLED = 10_000  # examples in the buffer of a pipeline's shuffle


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
        convolutions: whether there are any. They leave out contenders that give them to XLA as they are inside a loop: on a CPU it has no
            fast gradient of a convolution there.
        tokens: inputs are whole numbers below this; 0 for float32.
        source: "arrays", or "tf.data" for `dataset()`.
    """

    title: str
    layers: Callable[[Any], Any]
    shape: tuple[int, ...]
    optimizer: Callable[[], keras.optimizers.Optimizer]
    classes: int = 10
    rows: int = 19_200
    batch_size: int = 32
    convolutions: bool = False
    tokens: int = 0
    source: str = "arrays"

    def resized(self, *, rows: int | None = None, batch_size: int | None = None, source: str | None = None) -> Workload:
        """The same with about `rows` examples, in batches of `batch_size`, from `source`; None leaves them as they are."""
        size = batch_size or self.batch_size
        rows = max(1, (rows or self.rows) // size) * size
        return dataclasses.replace(self, rows=rows, batch_size=size, source=source or self.source)

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
        """x `[rows, *shape]` float32 or int32, and y `[rows]` int32 or `[rows, 1]` float32; one copy for all that runs in a process."""
        return _data(self.shape, self.tokens, self.classes, self.rows)

    def dataset(self) -> Any:
        """The same data as a `tf.data` pipeline, as TensorFlow's guide advises: shuffled, in batches that are normalized, read ahead."""
        import tensorflow as tf

        def normalized(x: Any, y: Any) -> tuple[Any, Any]:
            return (x if self.tokens else (x - NORMALIZE[0]) * NORMALIZE[1]), y

        batches = tf.data.Dataset.from_tensor_slices(self.data()).shuffle(min(self.rows, _SHUFFLED)).batch(self.batch_size)
        return batches.map(normalized, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def model(self, **compile_arguments: Any) -> keras.Model:
        """The model, compiled; the same weights at every call."""
        if keras.backend.backend() == "tensorflow":
            keras.utils.set_random_seed(0)
        else:  # that would import TensorFlow
            random.seed(0)
        x = keras.Input(self.shape, dtype="int32" if self.tokens else "float32")
        model = keras.Model(x, self.layers(x))
        model.compile(self.optimizer(), self.loss, metrics=[self.metric], **compile_arguments)
        return model


@functools.lru_cache(maxsize=1)
def _data(shape: tuple[int, ...], tokens: int, classes: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if tokens:
        return rng.integers(0, tokens, (rows, *shape), dtype="int32"), rng.integers(0, classes, rows, dtype="int32")
    x = rng.standard_normal((rows, *shape), dtype="float32")
    projected = x.reshape(rows, -1) @ rng.standard_normal((int(np.prod(shape)), max(1, classes)), dtype="float32")
    noisy = projected / projected.std() + rng.standard_normal(projected.shape, dtype="float32")
    return x, noisy.argmax(axis=-1).astype("int32") if classes else noisy


def _mlp(x: Any) -> Any:
    return stack(layers.Dense(300, "relu"), layers.Dense(100, "relu"), layers.Dense(10, "softmax"))(x)


def _mlp_with_everything(x: Any) -> Any:
    for units in (300, 100):
        x = stack(layers.Dense(units), layers.BatchNormalization(), layers.Activation("relu"), layers.Dropout(0.2))(x)
    return layers.Dense(10, "softmax")(x)


def _selu(x: Any) -> Any:
    return stack(*[layers.Dense(100, "selu", kernel_initializer="lecun_normal") for _ in range(20)], layers.Dense(10, "softmax"))(x)


def _selu_with_dropout(x: Any) -> Any:
    for _ in range(20):
        x = stack(layers.Dense(100, "selu", kernel_initializer="lecun_normal"), layers.AlphaDropout(0.05))(x)
    return layers.Dense(10, "softmax")(x)


def _conv(x: Any) -> Any:
    convolutions = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(16, 3, activation="relu")]
    return stack(*convolutions, layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax"))(x)


def _wide_deep(x: Any) -> Any:
    deep = stack(layers.Dense(30, "relu"), layers.Dense(30, "relu"))(x)
    return layers.Dense(1)(layers.concatenate([x, deep]))


SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
WORKLOADS = {
    "mlp_sgd": Workload("784-300-100-10, SGD", _mlp, (784,), lambda: SGD(0.01)),
    "mlp_adam": Workload("784-300-100-10 with batch norm and dropout, Adam", _mlp_with_everything, (784,), lambda: Adam(1e-3)),
    "selu": Workload("784-20x100-10 SELU, SGD with momentum", _selu, (784,), lambda: SGD(1e-3, momentum=0.9)),
    "selu_dropout": Workload(
        "784-20x100-10 SELU and alpha dropout, SGD with momentum", _selu_with_dropout, (784,), lambda: SGD(1e-3, momentum=0.9)
    ),
    "conv": Workload("28x28x1, conv 16-16, global pooling, Adam", _conv, (28, 28, 1), lambda: Adam(1e-3), rows=6_400, convolutions=True),
    "wide_deep": Workload("wide & deep 8-30-30-1, Adam", _wide_deep, (8,), lambda: Adam(1e-3), classes=0, rows=20_640),
    "lstm": Workload("32x16, LSTM 64, Adam", lstm, (32, 16), lambda: Adam(1e-3), rows=3_200),
    "transformer": Workload(
        "Transformer, 4 layers, width 128, length 128, Adam", transformer(4, 128, 4, 5000), (128,), lambda: Adam(1e-3), rows=64, tokens=5000
    ),
    "resnet20": Workload(
        "ResNet-20, 32x32x3, SGD with momentum", resnet(3), (32, 32, 3), lambda: SGD(0.1, momentum=0.9), rows=128, convolutions=True
    ),
}
