"""Pulls consecutive batches of a `tf.data` iterator and stacks them, in one call of TensorFlow a block: Python sees no single batch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loops.feeds.base import Block
from loops.feeds.stacking import FIRST_SECONDS, SECONDS
from loops.user_errors.reasons import in_short

__all__ = ["pulled_blocks"]


def pulled_blocks(iterator: tf.data.Iterator, size: int) -> Iterator[Block]:
    """The batches of an iterator, in order, as blocks of batches of one shape, until it ends.

    A block ends where `groups` would end it: when it is full, when the next batch has another shape, or when it took too long. A block of
    constant K is padded with zeros; a single batch (the last of a pass, of another size) gets K = 1.

    Args:
        iterator: of dense tensors.
        size: K, the largest number of batches in a block.
    """
    spec = iterator.element_spec
    pull, ahead = _puller(tf.data.IteratorSpec(spec), tf.OptionalSpec(spec)), tf.experimental.Optional.empty(spec)
    seconds, ended = FIRST_SECONDS, False
    while not ended:
        try:
            found = pull(iterator, ahead, tf.constant(size), tf.constant(seconds, tf.float64))
        except tf.errors.OpError as error:
            raise in_short(error) from None
        n, ahead, ended = int(found["n"]), found["ahead"], bool(found["ended"])
        if bool(found["late"]):
            seconds = min(2 * seconds, SECONDS)
        if n:
            yield Block(found["batches"], n)


@functools.lru_cache(maxsize=32)
def _puller(iterators: tf.data.IteratorSpec, batches: tf.OptionalSpec) -> Any:
    """The traced `_pull` for iterators of one type."""
    function = tf.function(_pull, autograph=False)
    return function.get_concrete_function(iterators, batches, tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64))


def _pull(iterator: Any, ahead: Any, size: tf.Tensor, seconds: tf.Tensor) -> dict[str, Any]:
    """Pulls at most `size` batches of one shape.

    Args:
        iterator: the iterator.
        ahead: the batch that came before them and did not fit into the last block; empty if there is none.
        size: the largest number of batches.
        seconds: time after which no further batch is pulled, if there are two.

    Returns:
        "batches", stacked; "n", how many there are; "ahead", a batch that was pulled and did not fit; "ended", whether the iterator has
        given its last batch; "late", whether time has run out.
    """
    spec = iterator.element_spec
    empty = tf.experimental.Optional.empty(spec)
    begun = tf.timestamp()
    lists = [tf.raw_ops.EmptyTensorList(element_shape=-1, max_num_elements=-1, element_dtype=s.dtype) for s in tf.nest.flatten(spec)]
    first = tf.cond(ahead.has_value(), lambda: ahead, iterator.get_next_as_optional)

    def proceed(i: Any, current: Any, ended: Any, late: Any, fits: Any, lists: Any) -> Any:
        return fits & current.has_value()

    def body(i: Any, current: Any, ended: Any, late: Any, fits: Any, lists: Any) -> Any:
        parts = tf.nest.flatten(current.get_value())
        lists = [tf.raw_ops.TensorListPushBack(input_handle=h, tensor=p) for h, p in zip(lists, parts, strict=True)]
        i = i + 1
        with tf.control_dependencies(parts):
            spent = tf.timestamp() - begun
        late = (spent >= seconds) & ((i > 1) | (spent >= SECONDS))
        pulls = (i < size) & ~late
        following = tf.cond(pulls, iterator.get_next_as_optional, lambda: empty)
        ended = pulls & ~following.has_value()
        return i, following, ended, late, _same_shapes(parts, following, spec), lists

    begin = (tf.constant(0), first, ~first.has_value(), tf.constant(False), tf.constant(True), lists)
    n, following, ended, late, _, lists = tf.while_loop(proceed, body, begin, parallel_iterations=1)
    # A block of one batch has a shape of its own, so that it needs no padding.
    capacity = tf.where(n > 1, size, n)
    batches = [_stacked(h, s, n, capacity) for h, s in zip(lists, tf.nest.flatten(spec), strict=True)]
    return {"batches": tf.nest.pack_sequence_as(spec, batches), "n": n, "ahead": following, "ended": ended, "late": late}


def _same_shapes(parts: list[tf.Tensor], following: Any, spec: Any) -> tf.Tensor:
    """Whether the next batch, if there is one, has the shapes of this one."""
    varying = [i for i, s in enumerate(tf.nest.flatten(spec)) if not s.shape.is_fully_defined()]

    def same(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        equal_ranks = tf.equal(tf.rank(one), tf.rank(other))
        return tf.cond(equal_ranks, lambda: tf.reduce_all(tf.shape(one) == tf.shape(other)), lambda: False)

    def all_same() -> tf.Tensor:
        others = tf.nest.flatten(following.get_value())
        return tf.reduce_all(tf.stack([same(parts[i], others[i]) for i in varying]))

    return tf.cond(following.has_value(), all_same, lambda: True) if varying else tf.constant(True)


def _stacked(handle: tf.Tensor, spec: tf.TensorSpec, n: tf.Tensor, capacity: tf.Tensor) -> tf.Tensor:
    """The tensors of a list, `[capacity, ...]`, from the `n`th on zeros."""

    def stacked() -> tf.Tensor:
        shape = tf.constant(-1 if spec.shape.rank is None else [-1 if d is None else d for d in spec.shape], tf.int32)
        return tf.raw_ops.TensorListStack(input_handle=handle, element_shape=shape, element_dtype=spec.dtype)

    def padded() -> tf.Tensor:
        rows = stacked()
        return tf.concat([rows, tf.zeros(tf.concat([[capacity - n], tf.shape(rows)[1:]], 0), spec.dtype)], 0)

    nothing = tf.zeros([0, *(d or 0 for d in spec.shape)] if spec.shape.rank is not None else [0], spec.dtype)
    rows = tf.cond(n > 0, lambda: tf.cond(n < capacity, padded, stacked), lambda: nothing)
    return tf.ensure_shape(rows, [None, *spec.shape] if spec.shape.rank is not None else None)
