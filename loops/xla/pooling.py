"""Max pooling of images and its gradient in a form that XLA compiles to fast programs for a CPU.

XLA:CPU compiles the maximum to one loop for each window, and the gradient to a scatter that searches the place of the maximum again, one
element after the other. Here the elements of all windows at one place are a slice of the image, so both are elementwise:

    output      the maximum of the slices
    gradient    goes to the first slice that has the maximum; summed where windows overlap
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from loops._private_api import NN_OPS
from loops.xla.barrier import computed_once
from loops.xla.convolutions import pads_of, spread, windows

__all__ = ["REPLACEMENTS"]

Function = Callable[..., Any]

_MOST_PLACES = 25  # height * width of a window; larger ones are not replaced


def _max_pool(
    original: Function, choose: Function, *, input: Any, ksize: Any, strides: Any, padding: Any, explicit_paddings: Any, data_format: Any
) -> Any:
    x, (size, by) = tf.convert_to_tensor(input), (tuple(ksize[1:3]), tuple(strides[1:3]))
    attributes = {
        "ksize": ksize,
        "strides": strides,
        "padding": padding,
        "data_format": data_format,
        "explicit_paddings": explicit_paddings,
    }
    known = x.shape.is_fully_defined() and 0 not in x.shape and x.dtype.is_floating and data_format in ("NHWC", b"NHWC")
    if not known or size[0] * size[1] > _MOST_PLACES or ksize[0] != 1 or ksize[3] != 1:
        return original(x, **attributes)
    pads = pads_of(padding, explicit_paddings, x.shape[1:3], size, by)
    whole = [n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True)]
    out = [(n - k) // s + 1 for n, k, s in zip(whole, size, by, strict=True)]
    if min(out) < 1:
        return original(x, **attributes)

    def slices(x: Any) -> list[Any]:
        padded = tf.pad(x, [[0, 0], *pads, [0, 0]], constant_values=x.dtype.min) if any(map(any, pads)) else x
        return windows(padded, size, by, out)

    @tf.custom_gradient
    def pooled(x: Any) -> Any:
        def fast() -> Any:
            shape = [x.shape[0], *out, x.shape[3]]
            return computed_once(lambda: functools.reduce(tf.maximum, slices(x)), unknown=x, dtype=x.dtype, shape=shape)

        y = choose(lambda: tf.raw_ops.MaxPool(input=x, **attributes), fast)
        return y, lambda dy: gradient(x, y, dy)

    @tf.custom_gradient
    def gradient(x: Any, y: Any, dy: Any) -> Any:
        def original_gradient() -> Any:
            return tf.raw_ops.MaxPoolGrad(orig_input=x, orig_output=y, grad=dy, **attributes)

        # The place of the maximum is constant with respect to x and y, so these get no gradient.
        return choose(original_gradient, lambda: to_first(x, y, dy)), lambda g: (None, None, of_first(x, y, g))

    def to_first(x: Any, y: Any, dy: Any) -> Any:
        parts = [tf.where(mask, dy, tf.zeros_like(dy)) for mask in _first(slices(x), y)]
        if size == by and not any(map(any, pads)):
            return _tiled(parts, size, x.shape)
        places = itertools.product(range(size[0]), range(size[1]))
        image = tf.add_n([spread(part, by, place, whole) for part, place in zip(parts, places, strict=True)])
        (top, _), (left, _) = pads
        return image[:, top : top + x.shape[1], left : left + x.shape[2]]

    @tf.custom_gradient
    def of_first(x: Any, y: Any, g: Any) -> Any:
        parts = zip(_first(slices(x), y), slices(g), strict=True)
        found = tf.add_n([tf.where(mask, part, tf.zeros_like(part)) for mask, part in parts])
        return found, lambda upstream: (None, None, gradient(x, y, upstream))

    return pooled(x)


def _first(parts: list[Any], y: Any) -> Iterator[Any]:
    """For each place in a window, a bool tensor: whether it is the first one with the maximum."""
    taken = tf.zeros(y.shape, tf.bool)
    for part in parts:
        yield (part == y) & ~taken
        taken |= part == y


def _tiled(parts: list[Any], size: tuple[int, int], shape: Any) -> Any:
    """The image of windows that lie side by side, with `parts` at their places, and zeros outside of the windows."""
    (high, wide), (n, height, width, channels) = size, parts[0].shape
    rows = [tf.reshape(tf.stack(parts[i * wide : (i + 1) * wide], 3), [n, height, width * wide, channels]) for i in range(high)]
    image = tf.reshape(tf.stack(rows, 2), [n, height * high, width * wide, channels])
    return tf.pad(image, [[0, 0], [0, shape[1] - height * high], [0, shape[2] - width * wide], [0, 0]])


# (module, function) -> (names of its parameters, replacement).
REPLACEMENTS: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    (NN_OPS, "max_pool"): (("input", "ksize", "strides", "padding", "explicit_paddings", "data_format", "name"), _max_pool),
}
