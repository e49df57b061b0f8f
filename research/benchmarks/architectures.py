"""Networks that are built in several places of the benchmarks. Knows Keras only, with any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

__all__ = ["Build", "lstm", "resnet", "softmax", "stack", "transformer"]

Build = Callable[[Any], Any]  # input -> output


def stack(*stacked: Any) -> Build:
    """One layer after the other."""

    def apply(x: Any) -> Any:
        for layer in stacked:
            x = layer(x)
        return x

    return apply


def softmax(classes: int = 10) -> Any:
    return layers.Dense(classes, "softmax")


def lstm(x: Any) -> Any:
    """One layer of 64 units, whose last output is classified."""
    return softmax()(layers.LSTM(64)(x))


def transformer(depth: int, width: int, heads: int, words: int, dropout: float = 0.0) -> Build:
    """Blocks of attention and two dense layers, normalized before each (arXiv 2002.04745), over embedded words; the mean is classified."""

    def build(tokens: Any) -> Any:
        x = layers.Embedding(words, width)(tokens)
        for _ in range(depth):
            y = layers.LayerNormalization()(x)
            x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads, dropout=dropout)(y, y)])
            y = layers.LayerNormalization()(x)
            x = layers.Add()([x, layers.Dense(width)(layers.Dense(4 * width, "gelu")(y))])
        return softmax()(layers.GlobalAveragePooling1D()(x))

    return build


def resnet(blocks: int, width: int = 16) -> Build:
    """The residual network for small images of arXiv 1512.03385: 6 * `blocks` + 2 layers, batch norm after each convolution."""

    def convolved(x: Any, filters: int, stride: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.Activation("relu")(x) if relu else x

    def build(x: Any) -> Any:
        x = convolved(x, width)
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = convolved(convolved(x, width << stage, stride), width << stage, relu=False)
                x = layers.Add()([y, layers.Conv2D(width << stage, 1, stride)(x) if stride > 1 else x])
                x = layers.Activation("relu")(x)
        return softmax()(layers.GlobalAveragePooling2D()(x))

    return build
