"""Two-dimensional convolutions and their gradients in a form that XLA compiles to fast programs for a CPU.

Inside a loop XLA:CPU gives a plain convolution to a fast library, but not the two convolutions of its gradient; and that library is slow
for few channels. So all three are written here in forms that are fast. They sum the same products as TensorFlow's kernels:

    output            few taps: a sum over taps of shifted inputs; else a plain convolution
    input gradient    few channels: a matrix product with the kernel, summed where windows overlap; else a plain convolution of the gradient
    kernel gradient   a plain convolution in which examples and channels change places; with strides a matrix product of patches

Not replaced are convolutions with channels first, dilations, groups, 16-bit numbers, or sizes that are not known.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from loops._private_api import NN_OPS
from loops.xla.barrier import computed_once

__all__ = ["REPLACEMENTS", "is_replaced", "pads_of", "spread", "windows"]

Function = Callable[..., Any]

_FEW_TAPS = 32  # elements of a kernel for one output channel
_FEW_CHANNELS = 8
_MOST_PATCHES = 49  # height * width of a kernel with strides; larger ones are not replaced
_DTYPES = (tf.float32, tf.float64)  # of 16-bit numbers TensorFlow computes sums in float32


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """A convolution of known sizes, and what its gradients need.

    Attributes:
        x: shape of the input, `[n, height, width, channels]`.
        w: shape of the kernel, `[height, width, channels, filters]`.
        out: height and width of the output.
        strides: in height and width.
        pads: zeros (before, after) in height and width.
        choose: `choose(original, fast)` gives the result of `fast` where XLA compiles it, else that of `original`.
        attributes: the arguments of TensorFlow's op besides its tensors.
    """

    x: tuple[int, ...]
    w: tuple[int, ...]
    out: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    choose: Function
    attributes: dict[str, Any]

    @property
    def are_tiles(self) -> bool:
        """Whether the windows lie side by side: each element of the input is in at most one."""
        return self.w[:2] == self.strides and not any(map(any, self.pads))

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the padded input."""
        (top, bottom), (left, right) = self.pads
        return self.x[1] + top + bottom, self.x[2] + left + right

    # Each of the three is differentiable: its gradient is made of the other two.

    def output(self, x: Any, w: Any) -> Any:
        @tf.custom_gradient
        def op(x: Any, w: Any) -> Any:
            def gradient(dy: Any) -> tuple[Any, Any]:
                return self.input_gradient(w, dy), self.kernel_gradient(x, dy)

            def original() -> Any:
                return tf.raw_ops.Conv2D(input=x, filter=w, **self.attributes)

            if self.are_tiles:
                return self.choose(original, lambda: self._rows_as_images(self._patches(x) @ self._flat(w))), gradient
            few = self.w[0] * self.w[1] * self.w[2] <= _FEW_TAPS
            return (self.choose(original, lambda: self._sum_of_taps(x, w)) if few else original()), gradient

        return op(x, w)

    def input_gradient(self, w: Any, dy: Any) -> Any:
        @tf.custom_gradient
        def op(w: Any, dy: Any) -> Any:
            def original() -> Any:
                return tf.raw_ops.Conv2DBackpropInput(input_sizes=self.x, filter=w, out_backprop=dy, **self.attributes)

            few = self.w[2] <= _FEW_CHANNELS or self.are_tiles
            fast = self._sum_of_products if few else self._convolved_gradient
            return self.choose(original, lambda: fast(w, dy)), lambda g: (self.kernel_gradient(g, dy), self.output(g, w))

        return op(w, dy)

    def kernel_gradient(self, x: Any, dy: Any) -> Any:
        @tf.custom_gradient
        def op(x: Any, dy: Any) -> Any:
            def original() -> Any:
                return tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=self.w, out_backprop=dy, **self.attributes)

            fast = self._product_of_patches if self.are_tiles or self.strides != (1, 1) else self._convolved_examples
            return self.choose(original, lambda: fast(x, dy)), lambda g: (self.input_gradient(g, dy), self.output(x, g))

        return op(x, dy)

    # The forms for XLA.

    def _sum_of_taps(self, x: Any, w: Any) -> Any:
        def compute() -> Any:
            taps = zip(windows(self._pad(x), self.w[:2], self.strides, self.out), self._places(), strict=True)
            return tf.add_n([tap[..., c : c + 1] * w[i, j, c] for tap, (i, j) in taps for c in range(self.w[2])])

        return computed_once(compute, unknown=w, dtype=x.dtype, shape=[self.x[0], *self.out, self.w[3]])

    def _sum_of_products(self, w: Any, dy: Any) -> Any:
        n, (height, width), (high, wide, channels, filters) = self.x[0], self.out, self.w
        parts = tf.reshape(tf.matmul(tf.reshape(dy, [-1, filters]), self._flat(w), transpose_b=True), [n, height, width, *self.w[:3]])
        if self.are_tiles:
            image = tf.reshape(tf.transpose(parts, [0, 1, 3, 2, 4, 5]), [n, height * high, width * wide, channels])
            return tf.pad(image, [[0, 0], [0, self.x[1] - height * high], [0, self.x[2] - width * wide], [0, 0]])
        spreads = [spread(parts[:, :, :, i, j], self.strides, (i, j), self.padded) for i, j in self._places()]
        return self._crop(tf.add_n(spreads))

    def _convolved_gradient(self, w: Any, dy: Any) -> Any:
        high, wide = self.w[:2]
        size = self.padded[0] + high - 1, self.padded[1] + wide - 1
        turned = tf.transpose(tf.reverse(w, [0, 1]), [0, 1, 3, 2])
        return self._crop(_plain(spread(dy, self.strides, (high - 1, wide - 1), size), turned))

    def _convolved_examples(self, x: Any, dy: Any) -> Any:
        used = self._pad(x)[:, : self.out[0] + self.w[0] - 1, : self.out[1] + self.w[1] - 1]
        return tf.transpose(_plain(tf.transpose(used, [3, 1, 2, 0]), tf.transpose(dy, [1, 2, 0, 3])), [1, 2, 0, 3])

    def _product_of_patches(self, x: Any, dy: Any) -> Any:
        return tf.reshape(tf.matmul(self._patches(x), tf.reshape(dy, [-1, self.w[3]]), transpose_a=True), self.w)

    def _patches(self, x: Any) -> Any:
        """The elements of x under each window, `[n * height * width, taps * channels]`."""
        n, (height, width), (high, wide, channels, _) = self.x[0], self.out, self.w
        if self.are_tiles:
            tiles = tf.reshape(x[:, : height * high, : width * wide], [n, height, high, width, wide, channels])
            return tf.reshape(tf.transpose(tiles, [0, 1, 3, 2, 4, 5]), [-1, high * wide * channels])
        return tf.reshape(tf.concat(windows(self._pad(x), self.w[:2], self.strides, self.out), -1), [-1, high * wide * channels])

    def _rows_as_images(self, rows: Any) -> Any:
        return tf.reshape(rows, [self.x[0], *self.out, self.w[3]])

    def _flat(self, w: Any) -> Any:
        return tf.reshape(w, [-1, self.w[3]])

    def _places(self) -> Any:
        return itertools.product(range(self.w[0]), range(self.w[1]))

    def _pad(self, x: Any) -> Any:
        return tf.pad(x, [[0, 0], *self.pads, [0, 0]]) if any(map(any, self.pads)) else x

    def _crop(self, padded: Any) -> Any:
        (top, _), (left, _) = self.pads
        return padded[:, top : top + self.x[1], left : left + self.x[2]]


def windows(x: Any, size: Sequence[int], strides: Sequence[int], out: Sequence[int]) -> list[Any]:
    """For each place in a window, row by row, the elements of all windows at that place, `[n, *out, channels]`."""
    (high, wide), (down, right), (height, width) = size, strides, out
    rows, columns = (height - 1) * down + 1, (width - 1) * right + 1
    return [x[:, i : i + rows : down, j : j + columns : right] for i in range(high) for j in range(wide)]


def spread(values: Any, strides: Sequence[int], offset: Sequence[int], size: Sequence[int]) -> Any:
    """An image of zeros of height and width `size`, with `values` `[n, height, width, channels]` from `offset` on, `strides` apart."""
    n, height, width, channels = values.shape
    (down, right), (top, left) = strides, offset
    if (down, right) != (1, 1):
        apart = tf.pad(values[:, :, None, :, None], [[0, 0], [0, 0], [0, down - 1], [0, 0], [0, right - 1], [0, 0]])
        values = tf.reshape(apart, [n, height * down, width * right, channels])
    values = values[:, : size[0] - top, : size[1] - left]
    bottom, rest = size[0] - top - values.shape[1], size[1] - left - values.shape[2]
    return tf.pad(values, [[0, 0], [top, bottom], [left, rest], [0, 0]])


def is_replaced(op: Any) -> bool:
    """Whether an operation (a `tf.Operation` or `NodeDef`) is the gradient of a convolution that is replaced, whatever the batch size."""
    kind = op.type if isinstance(op, tf.Operation) else op.op
    if kind not in ("Conv2DBackpropInput", "Conv2DBackpropFilter"):
        return False
    node = op.node_def if isinstance(op, tf.Operation) else op
    attributes = {name: node.attr[name] for name in ("strides", "padding", "explicit_paddings", "data_format", "dilations", "T")}
    if not isinstance(op, tf.Operation):  # a `NodeDef` has no shapes
        return attributes["data_format"].s == b"NHWC" and set(attributes["dilations"].list.i) <= {1} and attributes["T"].type in _DTYPES
    found = op.outputs[0].shape
    x, w = (op.inputs[0].shape, found) if kind == "Conv2DBackpropFilter" else (found, op.inputs[1].shape)
    if x.rank != 4 or op.outputs[0].dtype not in _DTYPES:
        return False
    given: dict[str, Any] = {name: list(attributes[name].list.i) for name in ("strides", "explicit_paddings", "dilations")}
    given |= {name: attributes[name].s for name in ("padding", "data_format")}
    return _known([x[0] or 1, *x[1:]], w, lambda *_: None, **given) is not None


def _plain(x: Any, w: Any) -> Any:
    return tf.raw_ops.Conv2D(input=x, filter=w, strides=[1, 1, 1, 1], padding="VALID")


def _known(
    x: Any, w: Any, choose: Function, *, strides: Any, padding: Any, explicit_paddings: Any, data_format: str, dilations: Any, **rest: Any
) -> _Convolution | None:
    """The convolution of an input and a kernel with the shapes `x` and `w`; None if it is not replaced."""
    x, w = tf.TensorShape(x), tf.TensorShape(w)
    if not (x.is_fully_defined() and w.is_fully_defined() and x.rank == 4 and 0 not in x and 0 not in w):
        return None
    by, dilated = tuple(strides[1:3]), list(dilations) != [1, 1, 1, 1]
    if data_format not in ("NHWC", b"NHWC") or dilated or x[3] != w[2]:
        return None
    pads = pads_of(padding, explicit_paddings, x[1:3], w[:2], by)
    out = tuple((x[1 + d] + sum(pads[d]) - w[d]) // by[d] + 1 for d in (0, 1))
    if min(out) < 1 or (by != (1, 1) and tuple(w[:2]) != by and w[0] * w[1] > _MOST_PATCHES):
        return None
    given = {"explicit_paddings": explicit_paddings, "data_format": data_format, "dilations": dilations, **rest}
    attributes = {"strides": strides, "padding": padding, **given}
    return _Convolution(tuple(x), tuple(w), out, by, pads, choose, attributes)


def pads_of(padding: Any, explicit: Sequence[int], size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Any:
    """Zeros (before, after) in height and in width that TensorFlow's `padding` means."""
    name = padding.decode() if isinstance(padding, bytes) else padding
    if name == "EXPLICIT":
        return tuple(explicit[2:4]), tuple(explicit[4:6])
    if name == "VALID":
        return (0, 0), (0, 0)
    missing = [max(0, (-(-size[d] // strides[d]) - 1) * strides[d] + window[d] - size[d]) for d in (0, 1)]
    return tuple((m // 2, m - m // 2) for m in missing)


def _conv2d(original: Function, choose: Function, *, input: Any, filter: Any, **rest: Any) -> Any:
    x = tf.convert_to_tensor(input)
    w = _of_dtype(filter, x.dtype)
    known = _known(x.shape, w.shape, choose, **rest) if w is not None and x.dtype in _DTYPES else None
    return original(x, filter, **rest) if known is None else known.output(x, w)


def _backprop_input(original: Function, choose: Function, *, input_sizes: Any, filter: Any, out_backprop: Any, **rest: Any) -> Any:
    dy = tf.convert_to_tensor(out_backprop)
    w, sizes = _of_dtype(filter, dy.dtype), tf.get_static_value(tf.convert_to_tensor(input_sizes, tf.int32))
    known = _known(sizes, w.shape, choose, **rest) if sizes is not None and w is not None and dy.dtype in _DTYPES else None
    if known is None or dy.shape.as_list() != [known.x[0], *known.out, known.w[3]]:
        return original(input_sizes, filter, out_backprop, **rest)
    return known.input_gradient(w, dy)


def _of_dtype(value: Any, dtype: Any) -> Any:
    """The value as a tensor of `dtype`, if TensorFlow converts it without a cast; else None."""
    try:
        return tf.convert_to_tensor(value, dtype=dtype)
    except (TypeError, ValueError):
        return None


_ATTRIBUTES = ("strides", "padding", "use_cudnn_on_gpu", "explicit_paddings", "data_format", "dilations", "name")
# (module, function) -> (names of its parameters, replacement). The kernel gradient is part of the gradient of `conv2d`.
REPLACEMENTS: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    (NN_OPS, "conv2d"): (("input", "filter", *_ATTRIBUTES), _conv2d),
    (NN_OPS, "conv2d_backprop_input"): (("input_sizes", "filter", "out_backprop", *_ATTRIBUTES), _backprop_input),
}
