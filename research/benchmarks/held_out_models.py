"""Models that the rule of `compile="auto"` was not fitted to, and that were measured only after its constants stood."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import loops
from research.benchmarks.architectures import softmax, stack
from research.benchmarks.more_models import MSE, Case, case, conv, conv_net, lazily, mlp

__all__ = ["HELD_OUT"]

Optimizers = keras.optimizers


def _residual_mlp(x: Any) -> Any:
    x = layers.Dense(128)(x)
    for _ in range(6):
        x = x + stack(layers.Dense(128, "relu"), layers.Dense(128))(x)
    return softmax()(x)


def _mixer(x: Any) -> Any:
    """An MLP over the patches, then one over the channels, four times."""
    x = layers.Dense(64)(x)
    for _ in range(4):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        x = x + layers.Permute((2, 1))(stack(layers.Dense(32, "gelu"), layers.Dense(16))(y))
        x = x + stack(layers.LayerNormalization(), layers.Dense(128, "gelu"), layers.Dense(64))(x)
    return softmax()(layers.GlobalAveragePooling1D()(x))


def _blocks(x: Any, depth: int, heads: int, causal: bool = False) -> Any:
    width = x.shape[-1]
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=causal)
        x = x + stack(layers.LayerNormalization(), layers.Dense(2 * width, "relu"), layers.Dense(width))(x)
    return x


def _vision_transformer(x: Any) -> Any:
    patches = layers.Reshape((64, 64))(layers.Conv2D(64, 4, 4)(x))
    return softmax()(layers.GlobalAveragePooling1D()(_blocks(patches, 2, 4)))


def _language_model(tokens: Any) -> Any:
    return softmax(500)(_blocks(layers.Embedding(500, 96)(tokens), 2, 4, causal=True))


def _crossed_features(x: Any) -> Any:
    """Embeddings, and the products of all pairs of them."""
    vectors = layers.Embedding(8000, 16)(x)
    crossed = layers.Flatten()(layers.Dot(axes=2)([vectors, vectors]))
    return stack(layers.Dense(64, "relu"), layers.Dense(1))(layers.concatenate([crossed, layers.Flatten()(vectors)]))


def _attention_pooling(x: Any) -> Any:
    weights = layers.Softmax(axis=1)(layers.Dense(1)(layers.Dense(32, "tanh")(x)))
    return softmax()(ops.sum(weights * x, axis=1))


def _mixture_density(x: Any) -> Any:
    return layers.Dense(15)(stack(layers.Dense(64, "tanh"), layers.Dense(64, "tanh"))(x))


def _mixture_loss(y: Any, parameters: Any) -> Any:
    logits, means, scales = ops.split(parameters, 3, axis=-1)
    density = -0.5 * ops.square((y - means) * ops.exp(-scales)) - scales
    return -ops.logsumexp(ops.log_softmax(logits) + density, axis=-1)


def _squeezed(x: Any) -> Any:
    """Few channels in, few and many out, joined."""
    for n in (8, 16):
        y = layers.Conv2D(n, 1, activation="relu")(x)
        x = layers.MaxPooling2D()(layers.concatenate([layers.Conv2D(2 * n, 1, activation="relu")(y), conv(2 * n)(y)]))
    return softmax()(layers.GlobalAveragePooling2D()(x))


class _VariationalAutoencoder(loops.Task):
    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        self.encoder = keras.Sequential([keras.Input([784]), layers.Dense(256, "relu"), layers.Dense(32)])
        self.decoder = keras.Sequential([keras.Input([16]), layers.Dense(256, "relu"), layers.Dense(784)])
        self.optimizer = Optimizers.Adam(1e-3)

    def train_step(self, batch: Any) -> Any:
        x, _ = batch
        seed = self.seed()
        with tf.GradientTape() as tape:
            mean, log_variance = tf.split(self.encoder(x, training=True), 2, axis=-1)
            z = mean + tf.exp(0.5 * log_variance) * tf.random.stateless_normal(tf.shape(mean), seed)
            error = tf.reduce_sum(tf.square(self.decoder(z, training=True) - x), axis=-1)
            divergence = 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - log_variance - 1.0, axis=-1)
            loss = tf.reduce_mean(error + divergence)
        variables = [*self.encoder.trainable_variables, *self.decoder.trainable_variables]
        self.minimize(loss, tape, self.optimizer, variables)
        return {"loss": loss}


class _TwoTowers(loops.Task):
    """Pairs are told from all others of the batch."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        self.left = keras.Sequential([keras.Input([64]), layers.Dense(128, "relu"), layers.Dense(32)])
        self.right = keras.Sequential([keras.Input([64]), layers.Dense(128, "relu"), layers.Dense(32)])
        self.optimizer = Optimizers.Adam(1e-3)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            likeness = tf.matmul(self.left(x, training=True), self.right(y, training=True), transpose_b=True)
            own = tf.range(tf.shape(likeness)[0])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(own, likeness))
        self.minimize(loss, tape, self.optimizer, [*self.left.trainable_variables, *self.right.trainable_variables])
        return {"loss": loss}


class _MetaLearning(loops.Task):
    """Three inner steps of gradient descent, and the gradient through them."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.first = tf.Variable(rng.standard_normal((8, 40)).astype("float32") * 0.3)
        self.second = tf.Variable(rng.standard_normal((40, 1)).astype("float32") * 0.2)
        self.optimizer = Optimizers.Adam(1e-3)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as outer:
            first, second = self.first + 0.0, self.second + 0.0
            for _ in range(3):
                with tf.GradientTape() as inner:
                    inner.watch([first, second])
                    error = tf.reduce_mean(tf.square(tf.matmul(tf.tanh(tf.matmul(x, first)), second) - y))
                slopes = inner.gradient(error, [first, second])
                first, second = first - 0.1 * slopes[0], second - 0.1 * slopes[1]
            loss = tf.reduce_mean(tf.square(tf.matmul(tf.tanh(tf.matmul(x, first)), second) - y))
        self.minimize(loss, outer, self.optimizer, [self.first, self.second])
        return {"loss": loss}


HELD_OUT: dict[str, Case] = {
    "mlp_swish_nadam": case(mlp(200, 200, 200, activation="swish"), (100,), batch=64, optimizer=lambda: Optimizers.Nadam(1e-3)),
    "mlp_l2_adagrad": case(
        lazily(lambda: [*(layers.Dense(150, "relu", kernel_regularizer="l2") for _ in range(2)), softmax()]),
        (60,),
        optimizer=lambda: Optimizers.Adagrad(0.01),
    ),
    "mlp_thousand_classes": case(mlp(512, classes=1000), (256,), batch=256, classes=1000),
    "mlp_residual": case(_residual_mlp, (100,), batch=128),
    "mlp_float64": case(mlp(100, 100), (50,), policy="float64"),
    "mlp_lion_1024": case(mlp(1024, 1024), (300,), optimizer=lambda: Optimizers.Lion(1e-4)),
    "mlp_fifty_targets": case(
        lazily(lambda: [layers.Dense(256, "elu"), layers.Dense(50)]), (30,), target=((50,),), batch=512, optimizer=Optimizers.RMSprop, **MSE
    ),
    "linear_regression": case(layers.Dense(1), (3,), target=((1,),), batch=8, optimizer=lambda: Optimizers.SGD(0.01), **MSE),
    "mixture_density": case(_mixture_density, (2,), target=((1,),), batch=200, loss=_mixture_loss),
    "mixer": case(_mixer, (16, 48)),
    "gru_64": case(lazily(lambda: [layers.GRU(64), softmax()]), (30, 10)),
    "simple_rnn_128": case(lazily(lambda: [layers.SimpleRNN(128), softmax()]), (25, 12), batch=128),
    "lstm_words_32": case(lazily(lambda: [layers.Embedding(2000, 32), layers.LSTM(32), softmax(2)]), (80,), of=2000, classes=2),
    "conv1d_audio": case(
        conv_net(lambda n: layers.Conv1D(n, 9, 4, padding="same", activation="relu"), (16, 32, 32), None), (1024, 1), batch=16
    ),
    "conv1d_batch_256": case(conv_net(lambda n: layers.Conv1D(n, 3, activation="relu"), (24, 24), layers.MaxPooling1D), (48, 6), batch=256),
    "conv_pointwise": case(conv_net(lambda n: layers.Conv2D(n, 1, activation="relu"), (32, 32), layers.MaxPooling2D), (16, 16, 16)),
    "conv_5x5": case(
        conv_net(lambda n: layers.Conv2D(n, 5, activation="relu"), (20, 40), layers.MaxPooling2D),
        (28, 28, 1),
        batch=16,
        optimizer=lambda: Optimizers.SGD(0.01, 0.9),
    ),
    "conv_small_images": case(conv_net(conv, (32, 32), layers.MaxPooling2D), (8, 8, 4), batch=64),
    "conv_dilated": case(
        conv_net(lambda n: layers.Conv2D(n, 3, dilation_rate=2, padding="same", activation="relu"), (16, 16), None), (20, 20, 3)
    ),
    "conv_deep_narrow": case(
        lazily(
            lambda: [*(one for _ in range(6) for one in (conv(8), layers.BatchNormalization())), layers.GlobalAveragePooling2D(), softmax()]
        ),
        (16, 16, 3),
    ),
    "conv_squeezed": case(_squeezed, (24, 24, 3), batch=16),
    "conv_two_poolings": case(
        lazily(lambda: [conv(12), layers.AveragePooling2D(2), conv(24), layers.MaxPooling2D(2), layers.Flatten(), softmax()]), (32, 32, 3)
    ),
    "conv_group_norm": case(
        lazily(lambda: [*(one for _ in range(3) for one in (conv(16), layers.GroupNormalization(4))), layers.Flatten(), softmax()]),
        (16, 16, 3),
    ),
    "conv_depthwise_blocks": case(
        lazily(lambda: [*(one for n in (16, 32) for one in (layers.DepthwiseConv2D(3), layers.Conv2D(n, 1))), layers.Flatten(), softmax()]),
        (20, 20, 8),
    ),
    "vision_transformer": case(_vision_transformer, (32, 32, 3), batch=64),
    "language_model": case(_language_model, (64,), of=500, target=((64,), 500), batch=16),
    "crossed_features": case(_crossed_features, (12,), of=8000, target=((1,),), batch=128, **MSE),
    "attention_pooling": case(_attention_pooling, (20, 32), batch=128),
    "variational_autoencoder": Case(_VariationalAutoencoder, ((784,),), ((1,),), 100),
    "two_towers": Case(_TwoTowers, ((64,),), ((64,),), 256),
    "meta_learning": Case(_MetaLearning, ((8,),), ((1,),), 20),
}
