"""Cuts batches into parts: one for each replica, or for each worker process. The rule is one, so that both give the same parts."""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from loops.feeds.base import Block

__all__ = ["batch_size_of", "block_part", "part_of_rows", "split"]


def batch_size_of(batch: Any) -> tf.Tensor | int:
    """First dimension of the first tensor in `batch` that has one; 1 if there is none."""
    return next((_size(leaf) for leaf in tf.nest.flatten(batch) if _has_examples(leaf)), 1)


@tf.autograph.experimental.do_not_convert
def split(batch: Any, replicas: int) -> list[Any]:
    """The parts of a global batch, one for each replica, in order.

    Each tensor is cut along its own first dimension into consecutive parts. If all have one size, a part is `ceil(size / replicas)`
    examples, as `tf.distribute` cuts the batches of `model.fit`; the last parts may be smaller or empty. If sizes differ (16 labelled and
    48 unlabelled examples), every tensor is cut in the same proportions, so that a replica's share of one is its share of all, and its
    gradient has the right weight: units of `size / d` examples are handed out, where `d` is the greatest common divisor of the sizes.
    Tensors of rank 0, and None, go to every replica.

    Args:
        batch: nested structure of dense, sparse and ragged tensors.
        replicas: number of parts.
    """
    sizes = [_size(leaf) for leaf in tf.nest.flatten(batch) if _has_examples(leaf)]
    units = _common_divisor(sizes)
    bounds = [_bound(units, i, replicas) for i in range(replicas + 1)]

    def part(leaf: Any, first: Any, last: Any) -> Any:
        if not _has_examples(leaf):
            return leaf
        size = _size(leaf)
        if isinstance(size, int) and isinstance(units, int):
            each: Any = size // max(units, 1)
        else:
            each = tf.cast(size, tf.int64) // tf.maximum(tf.cast(units, tf.int64), 1)
            first, last = tf.cast(first, tf.int64), tf.cast(last, tf.int64)
        return _cut(leaf, first * each, last * each)

    return [tf.nest.map_structure(lambda leaf, i=i: part(leaf, bounds[i], bounds[i + 1]), batch) for i in range(replicas)]


def _has_examples(leaf: Any) -> bool:
    """Whether a part of a batch has a first dimension. A tensor of unknown rank is taken to have one."""
    return hasattr(leaf, "shape") and leaf.shape.rank != 0


def _size(leaf: Any) -> tf.Tensor | int:
    if leaf.shape.rank is not None and leaf.shape[0] is not None:
        return int(leaf.shape[0])
    if isinstance(leaf, tf.SparseTensor):
        return leaf.dense_shape[0]
    return leaf.nrows() if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf)[0]


def _common_divisor(sizes: list[Any]) -> tf.Tensor | int:
    """The greatest common divisor; an int if all sizes are."""
    if all(isinstance(size, int) for size in sizes):
        return math.gcd(*sizes)
    counts = [tf.cast(size, tf.int64) for size in sizes]

    def of_two(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda a, b: b > 0, lambda a, b: (b, a % b), (a, b))[0]

    def of_all() -> tf.Tensor:
        return functools.reduce(of_two, counts)

    if len(counts) == 1:
        return counts[0]
    return tf.cond(tf.reduce_all(tf.equal(tf.stack(counts), counts[0])), lambda: counts[0], of_all)


def _bound(units: Any, index: int, replicas: int) -> Any:
    """The first unit of part `index`, where each part has `ceil(units / replicas)` of them while there are any."""
    least = min if isinstance(units, int) else tf.minimum
    return least(index * (-(-units // replicas)), units)


def _cut(leaf: Any, begin: Any, end: Any) -> Any:
    if not isinstance(leaf, tf.SparseTensor):
        return leaf[begin:end]
    start = tf.concat([[tf.cast(begin, tf.int64)], tf.zeros_like(leaf.dense_shape[1:])], 0)
    extent = tf.concat([[tf.cast(end - begin, tf.int64)], leaf.dense_shape[1:]], 0)
    return tf.sparse.slice(leaf, start, extent)


def part_of_rows(size: int, index: int, count: int) -> tuple[int, int]:
    """The rows, from and to, of part `index` of `count` of a batch whose tensors all have `size` rows."""
    return _bound(size, index, count), _bound(size, index + 1, count)


def block_part(block: Block, index: int, count: int) -> Block:
    """A block with part `index` of each of its batches, cut as `split` cuts a batch."""
    sizes = [int(leaf.shape[1]) for leaf in tf.nest.flatten(block.tensors) if _has_rows(leaf)]
    units = math.gcd(*sizes)

    def part(leaf: Any) -> Any:
        if not _has_rows(leaf):
            return leaf
        each = int(leaf.shape[1]) // max(units, 1)
        first, last = part_of_rows(units, index, count)
        return leaf[:, first * each : last * each]

    return Block(tf.nest.map_structure(part, block.tensors), block.n)


def _has_rows(leaf: Any) -> bool:
    """Whether the batches that a tensor of a block holds have a first dimension."""
    return leaf is not None and leaf.shape.rank > 1
