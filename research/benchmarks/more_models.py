"""Models of many kinds, which the rule of `compile="auto"` was fitted to, beside the workloads of the benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import loops
from research.benchmarks.architectures import lstm, resnet, softmax, stack, transformer

__all__ = ["FITTED", "MSE", "Case", "case", "conv", "conv_net", "lazily", "mlp"]

Tensor = Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A task and its data.

    Attributes:
        task: makes the task.
        inputs, target: the shape of one example's input and of its target, each in a tuple; a second item n means whole numbers below n.
        batch_size: examples per step.
    """

    task: Callable[[], loops.Task]
    inputs: tuple[Any, ...]
    target: tuple[Any, ...]
    batch_size: int = 32

    def feed(self, batches: int = 32) -> loops.ArrayFeed:
        """Some batches of noise."""
        rng, rows = np.random.default_rng(0), batches * self.batch_size
        return loops.ArrayFeed((_noise(rng, rows, *self.inputs), _noise(rng, rows, *self.target)), self.batch_size, shuffle=True)


def _noise(rng: np.random.Generator, rows: int, shape: tuple[int, ...], below: int = 0) -> np.ndarray:
    if below:
        return rng.integers(0, below, (rows, *shape), dtype="int32")
    return rng.standard_normal((rows, *shape), dtype="float32")


def case(
    build: Callable[[Any], Any],
    shape: tuple[int, ...],
    *,
    of: int = 0,
    classes: int = 10,
    target: tuple[Any, ...] | None = None,
    loss: Any = None,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.Adam(1e-3),
    batch: int = 32,
    policy: str = "float32",
) -> Case:
    def task() -> loops.Task:
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        try:
            x = keras.Input(shape, dtype="int32" if of else "float32")
            model = keras.Model(x, layers.Activation("linear", dtype="float32")(build(x)))
        finally:
            keras.config.set_dtype_policy("float32")
        model.compile(optimizer(), loss or "sparse_categorical_crossentropy")
        return loops.KerasTask(model)

    return Case(task, (shape, of), target or ((), classes), batch)


def lazily(make: Callable[[], list[Any]]) -> Callable[[Any], Any]:
    """Layers that are made when the model is."""
    return lambda x: stack(*make())(x)


def mlp(*units: int, classes: int = 10, activation: str = "relu", between: Callable[[], list[Any]] = list) -> Callable[[Any], Any]:
    return lazily(lambda: [*(layer for n in units for layer in (layers.Dense(n, activation), *between())), softmax(classes)])


def conv_net(make: Callable[[int], Any], depths: tuple[int, ...], pool: Callable[[], Any] | None) -> Callable[[Any], Any]:
    return lazily(lambda: [*(one for n in depths for one in (make(n), *([pool()] if pool else []))), layers.Flatten(), softmax()])


def conv(n: int) -> Any:
    return layers.Conv2D(n, 3, padding="same", activation="relu")


SGD, Adam, AdamW, RMSprop = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW, keras.optimizers.RMSprop


class _Penalty(loops.Task):
    """A gradient penalty: a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        self.model = keras.Sequential([keras.Input([32]), layers.Dense(128, "tanh"), layers.Dense(128, "tanh"), layers.Dense(1)])
        self.optimizer = Adam(1e-3)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                z = self.model(x, training=True)
            slope = inner.gradient(z, x)
            loss = tf.reduce_mean(tf.square(z - y)) + tf.reduce_mean(tf.square(slope))
        self.minimize(loss, outer, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}


class _Unrolled(loops.Task):
    """A loop of TensorFlow with a matrix product in each of its turns, and a condition."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        self.cell, self.out, self.optimizer = layers.Dense(64, "tanh"), layers.Dense(1), Adam(1e-3)
        self.cell.build([None, 64])
        self.out.build([None, 64])

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        variables = [*self.cell.trainable_variables, *self.out.trainable_variables]
        with tf.GradientTape() as tape:
            state = tf.while_loop(lambda i, s: i < 20, lambda i, s: (i + 1, self.cell(s + x)), (0, x), maximum_iterations=20)[1]
            error = self.out(state) - y
            loss = tf.cond(tf.reduce_mean(error) > 0, lambda: tf.reduce_mean(error**2), lambda: tf.reduce_mean(tf.abs(error)))
        self.minimize(loss, tape, self.optimizer, variables)
        return {"loss": loss}


class _Adversaries(loops.Task):
    """Two networks with an optimizer each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        self.maker = keras.Sequential([keras.Input([16]), layers.Dense(width, "relu"), layers.Dense(width, "relu"), layers.Dense(64)])
        self.judge = keras.Sequential([keras.Input([64]), layers.Dense(width, "relu"), layers.Dropout(0.3), layers.Dense(1)])
        self.maker_optimizer, self.judge_optimizer = Adam(1e-4), Adam(1e-4)

    def train_step(self, batch: Any) -> Any:
        real, _ = batch
        noise = tf.random.stateless_normal([tf.shape(real)[0], 16], self.seed())
        with tf.GradientTape() as tape, tf.GradientTape() as other:
            made = self.maker(noise, training=True)
            good, bad = self.judge(real, training=True), self.judge(made, training=True)
            judged = tf.reduce_mean(tf.nn.softplus(-good)) + tf.reduce_mean(tf.nn.softplus(bad))
            deceived = tf.reduce_mean(tf.nn.softplus(-bad))
        self.minimize(judged, tape, self.judge_optimizer, self.judge.trainable_variables)
        self.minimize(deceived, other, self.maker_optimizer, self.maker.trainable_variables)
        return {"loss": judged, "deceived": deceived}


def _autoencoder(x: Any) -> Any:
    return lazily(lambda: [layers.Dense(128, "relu"), layers.Dense(32), layers.Dense(128, "relu"), layers.Dense(784)])(x)


def _conv_autoencoder(x: Any) -> Any:
    return lazily(
        lambda: [
            layers.Conv2D(16, 3, 2, padding="same", activation="relu"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu"),
            layers.Conv2DTranspose(16, 3, 2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, 2, padding="same"),
        ]
    )(x)


def _recommender(x: Any) -> Any:
    parts = [layers.Flatten()(layers.Embedding(20_000, 32)(x[:, i : i + 1])) for i in range(4)]
    return stack(layers.Dense(128, "relu"), layers.Dense(64, "relu"), layers.Dense(1))(layers.concatenate(parts))


def _separable(x: Any) -> Any:
    return conv_net(lambda n: layers.SeparableConv2D(n, 3, padding="same", activation="relu"), (16, 32, 32), layers.MaxPooling2D)(x)


def _unet(x: Any) -> Any:
    a = conv(16)(x)
    b = conv(32)(layers.MaxPooling2D()(a))
    c = layers.concatenate([layers.UpSampling2D()(b), a])
    return layers.Conv2D(1, 1)(conv(16)(c))


MSE = {"loss": "mse"}

#: The rule was fitted to these, beside the workloads of the benchmark.
FITTED: dict[str, Case] = {
    "lstm": case(lstm, (32, 16)),
    "transformer": case(transformer(4, 128, 4, 5000), (128,), of=5000),
    "resnet20": case(resnet(3), (32, 32, 3), optimizer=lambda: SGD(0.1, 0.9)),
    "mlp_2048": case(mlp(2048, 2048), (784,)),
    "conv_32_64": case(conv_net(conv, (32, 64), layers.MaxPooling2D), (28, 28, 1)),
    "conv1d": case(conv_net(lambda n: layers.Conv1D(n, 5, padding="same", activation="relu"), (32, 32), layers.MaxPooling1D), (128, 8)),
    "embedding_bag": case(lazily(lambda: [layers.Embedding(10_000, 64), layers.GlobalAveragePooling1D(), softmax()]), (100,), of=10_000),
    "mlp_bfloat16": case(mlp(256, 256), (784,), policy="mixed_bfloat16"),
    "gru_seq_bidirectional": case(
        lazily(lambda: [layers.Bidirectional(layers.GRU(32, return_sequences=True)), layers.GRU(32), softmax()]), (24, 8)
    ),
    "layer_norm_mlp": case(mlp(128, 128, 128, between=lambda: [layers.LayerNormalization()]), (64,), batch=256),
    "conv_strided_64": case(
        conv_net(lambda n: layers.Conv2D(n, 3, 2, padding="same", activation="relu"), (32, 64, 128), None), (64, 64, 3)
    ),
    "grouped": case(
        conv_net(lambda n: layers.Conv2D(n, 3, groups=4, padding="same", activation="relu"), (16, 32), layers.MaxPooling2D), (28, 28, 4)
    ),
    "lenet": case(
        lazily(
            lambda: [
                layers.Conv2D(6, 5, activation="tanh", padding="same"),
                layers.AveragePooling2D(2),
                layers.Conv2D(16, 5, activation="tanh"),
                layers.AveragePooling2D(2),
                layers.Flatten(),
                layers.Dense(120, "tanh"),
                layers.Dense(84, "tanh"),
                softmax(),
            ]
        ),
        (28, 28, 1),
        batch=64,
    ),
    "lstm_256": case(lazily(lambda: [layers.LSTM(256), softmax()]), (50, 32), batch=64),
    "transformer_tiny": case(transformer(1, 32, 2, 1000), (20,), of=1000),
    "transformer_dropout": case(transformer(2, 64, 4, 1000, dropout=0.1), (32,), of=1000, batch=64),
    "unrolled_task": Case(_Unrolled, ((64,),), ((1,),), 64),
    "tiny_mlp": case(mlp(16), (4,), batch=4, optimizer=lambda: SGD(0.01)),
    "logistic": case(mlp(), (784,), batch=128, optimizer=lambda: SGD(0.01)),
    "mlp_1024_deep": case(mlp(1024, 1024, 1024, 1024), (784,), batch=64),
    "mlp_batch_4096": case(mlp(64, 64), (32,), batch=4096),
    "mlp_4096_batch_1024": case(mlp(4096), (784,), batch=1024, optimizer=lambda: SGD(0.01)),
    "mlp_batch_norm_adamw": case(
        mlp(256, 256, between=lambda: [layers.BatchNormalization()]), (128,), batch=128, optimizer=lambda: AdamW(1e-3)
    ),
    "mlp_dropout_rmsprop": case(mlp(512, 512, between=lambda: [layers.Dropout(0.5)]), (784,), batch=128, optimizer=lambda: RMSprop(1e-3)),
    "mlp_float16": case(mlp(256, 256), (128,), policy="mixed_float16"),
    "autoencoder": case(_autoencoder, (784,), batch=256, target=((784,),), **MSE),
    "huber_regression": case(
        lazily(lambda: [layers.Dense(64, "swish"), layers.Dense(64, "swish"), layers.Dense(1)]),
        (13,),
        target=((1,),),
        loss="huber",
        batch=16,
    ),
    "vgg_small": case(conv_net(conv, (32, 64, 128), layers.MaxPooling2D), (32, 32, 3), batch=64),
    "conv_batch_8": case(conv_net(conv, (16, 32), layers.MaxPooling2D), (28, 28, 1), batch=8),
    "conv_batch_256": case(conv_net(conv, (8, 8), layers.MaxPooling2D), (28, 28, 1), batch=256),
    "conv_bfloat16": case(conv_net(conv, (16, 16), layers.MaxPooling2D), (28, 28, 1), policy="mixed_bfloat16"),
    "depthwise": case(_separable, (32, 32, 3)),
    "conv3d": case(
        conv_net(lambda n: layers.Conv3D(n, 3, padding="same", activation="relu"), (8, 16), layers.MaxPooling3D), (12, 12, 12, 1)
    ),
    "conv1d_dilated": case(
        conv_net(lambda n: layers.Conv1D(n, 3, dilation_rate=2, padding="causal", activation="relu"), (32, 32, 32), None), (64, 4)
    ),
    "resnet_wide_batch_128": case(resnet(1, 32), (32, 32, 3), batch=128, optimizer=lambda: SGD(0.1, 0.9)),
    "conv_autoencoder": case(_conv_autoencoder, (28, 28, 1), target=((28, 28, 1),), **MSE),
    "unet": case(_unet, (32, 32, 3), target=((32, 32, 1),), batch=16, **MSE),
    "lstm_two_layers_words": case(
        lazily(lambda: [layers.Embedding(5000, 64), layers.LSTM(64, return_sequences=True), layers.LSTM(64), softmax(2)]),
        (40,),
        of=5000,
        classes=2,
    ),
    "gru": case(lazily(lambda: [layers.GRU(128), layers.Dense(1)]), (20, 4), target=((1,),), batch=128, **MSE),
    "simple_rnn": case(lazily(lambda: [layers.SimpleRNN(32), softmax()]), (60, 4), batch=16),
    "transformer_wide_batch_8": case(transformer(2, 256, 8, 2000), (64,), of=2000, batch=8),
    "recommender": case(_recommender, (4,), of=20_000, target=((1,), 2), loss="mse", batch=256),
    "word_classes_64k": case(lazily(lambda: [layers.Embedding(1000, 64), layers.Flatten(), softmax(5000)]), (8,), of=1000, classes=5000),
    "grouped_8_of_64": case(
        lazily(lambda: [layers.Conv2D(64, 3, groups=8, padding="same", activation="relu"), layers.GlobalAveragePooling2D(), softmax()]),
        (16, 16, 32),
    ),
    "conv_average_pooling": case(conv_net(conv, (8, 16), lambda: layers.AveragePooling2D(2)), (24, 24, 1), batch=64),
    "lstm_128": case(lazily(lambda: [layers.LSTM(128), softmax()]), (20, 16), batch=64),
    "gradient_penalty": Case(_Penalty, ((32,),), ((1,),), 64),
    "adversaries": Case(lambda: _Adversaries(128), ((64,),), ((1,),), 64),
    "adversaries_1024": Case(lambda: _Adversaries(1024), ((64,),), ((1,),), 256),
    "average_pooling": case(lazily(lambda: [layers.AveragePooling2D(2), layers.Flatten(), softmax()]), (32, 32, 8), batch=128),
    "mlp_bfloat16_512": case(mlp(512, 512), (64,), batch=64, policy="mixed_bfloat16"),
    "attention_128": case(
        lambda x: softmax()(layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(4, 16)(x, x))), (128, 64), optimizer=lambda: SGD(0.01)
    ),
    "conv_global_batch_256": case(
        lazily(lambda: [conv(16), conv(16), layers.GlobalAveragePooling2D(), softmax()]),
        (32, 32, 4),
        batch=256,
        optimizer=lambda: SGD(0.01),
    ),
    "conv_batch_norm": case(
        lazily(
            lambda: [*(one for n in (16, 24) for one in (conv(n), layers.BatchNormalization())), layers.GlobalMaxPooling2D(), softmax()]
        ),
        (24, 24, 3),
        batch=16,
    ),
}
