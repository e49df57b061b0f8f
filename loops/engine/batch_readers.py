"""Gives the loop inside a program its batches: from a block, from a `tf.data` iterator, or from a recording of an iterator's batches.

A reader lives in the graph. `held` is a flat list of loop variables that it carries from step to step. All readers have these methods:

    first(n)            `held` before the first of n steps
    has_batch(held)     whether there is a batch for the next step, a bool tensor or True
    batch(held, i)      the batch of step i
    next(held, i, n, done)  `held` for step i of n; the tensor `done` is there when the step before is done
    recorded(held)      the tensor lists in which the batches were recorded; [] for a source that can be read again
    waited(held)        the seconds that steps waited for their batches, [float64 scalar]; [] for a source that is there as a whole
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import tensorflow as tf

from loops.feeds import Block, IndexedBlock

__all__ = ["Recording", "eager_batch", "inputs_of", "reader_for", "signature_of"]


@dataclasses.dataclass(frozen=True)
class Recording:
    """Batches that a call pulled from an iterator, kept on the device as tensor lists, one for each component of a batch.

    Attributes:
        handles: variant scalars.
        spec: type specs of one batch.
    """

    handles: tuple[Any, ...]
    spec: Any

    @property
    def length(self) -> int:
        """Number of batches."""
        return int(tf.raw_ops.TensorListLength(input_handle=self.handles[0]))


class BlockReader:
    """Takes batch `start + i` of a block's tensors."""

    def __init__(self, tensors: list[Any], spec: Any, start: tf.Tensor, xla: bool):
        self._tensors, self._spec, self._start = tensors, spec, start
        # XLA treats the bounds of a slice as compile-time constants, and would compile again for every `start`.
        self._take = tf.gather if xla else operator.getitem

    def first(self, n: tf.Tensor) -> list[Any]:
        return []

    def has_batch(self, held: list[Any]) -> Any:
        return True

    def batch(self, held: list[Any], i: tf.Tensor) -> Any:
        index = self._start + i
        return _pack(self._spec, [self._take(t, index) for t in self._tensors])

    def next(self, held: list[Any], i: tf.Tensor, n: tf.Tensor, done: tf.Tensor) -> list[Any]:
        return []

    def recorded(self, held: list[Any]) -> list[Any]:
        return []

    def waited(self, held: list[Any]) -> list[Any]:
        return []


class RowsReader(BlockReader):
    """Gathers the rows `index[start + i]` of arrays.

    Each array has the index as an input of its own: else Grappler knows that their batches have one length, and simplifies the gradient by
    that; then sums of three terms and more begin with another term than in `model.fit`.
    """

    def __init__(self, given: list[Any], spec: Any, start: tf.Tensor):
        self._arrays, self._indices = given[: len(given) // 2], given[len(given) // 2 :]
        self._spec, self._start = spec, start

    def batch(self, held: list[Any], i: tf.Tensor) -> Any:
        rows = [tf.gather(index, self._start + i) for index in self._indices]
        return _pack(self._spec, [tf.gather(array, which) for array, which in zip(self._arrays, rows, strict=True)])


class IteratorReader:
    """Pulls one batch for each step, never one more; with `record` it keeps what it pulled.

    It measures how long steps wait: from the end of a step, or the beginning of the call, to the arrival of the next batch. Work that
    `tf.data` does while a step runs is not waiting. `held` is the next batch, an `Optional`; when the last step ended; the seconds waited;
    the recording.
    """

    def __init__(self, iterator: Any, spec: Any, record: bool):
        self._iterator, self._spec, self._record = iterator, spec, record

    def first(self, n: tf.Tensor) -> list[Any]:
        lists = [_empty_list(c.dtype) for c in _components(self._spec)] if self._record else []
        return [self._pull(n > 0), tf.timestamp(), tf.zeros([], tf.float64), *lists]

    def has_batch(self, held: list[Any]) -> Any:
        return held[0].has_value()

    def batch(self, held: list[Any], i: tf.Tensor) -> Any:
        return held[0].get_value()

    def next(self, held: list[Any], i: tf.Tensor, n: tf.Tensor, done: tf.Tensor) -> list[Any]:
        batch, free_since, waited, *lists = held
        parts = tf.nest.flatten(batch.get_value(), expand_composites=True)
        with tf.control_dependencies(parts):
            arrived = tf.timestamp()
        if self._record:
            lists = [tf.raw_ops.TensorListPushBack(input_handle=h, tensor=p) for h, p in zip(lists, parts, strict=True)]
        with tf.control_dependencies([done]):
            ended = tf.timestamp()
        return [self._pull(i < n), ended, waited + tf.maximum(arrived - free_since, 0.0), *lists]

    def recorded(self, held: list[Any]) -> list[Any]:
        return held[3:]

    def waited(self, held: list[Any]) -> list[Any]:
        return [held[2]]

    def _pull(self, wanted: tf.Tensor) -> Any:
        return tf.cond(wanted, self._iterator.get_next_as_optional, lambda: tf.experimental.Optional.empty(self._spec))


class RecordingReader:
    """Takes batch `start + i` of a recording."""

    def __init__(self, handles: list[Any], spec: Any, start: tf.Tensor):
        self._handles, self._spec, self._start = handles, spec, start

    def first(self, n: tf.Tensor) -> list[Any]:
        return []

    def has_batch(self, held: list[Any]) -> Any:
        return True

    def batch(self, held: list[Any], i: tf.Tensor) -> Any:
        index = tf.cast(self._start + i, tf.int32)
        return _recorded_batch(self._handles, self._spec, index)

    def next(self, held: list[Any], i: tf.Tensor, n: tf.Tensor, done: tf.Tensor) -> list[Any]:
        return []

    def recorded(self, held: list[Any]) -> list[Any]:
        return []

    def waited(self, held: list[Any]) -> list[Any]:
        return []


def reader_for(source: Any, given: Any, spec: Any, start: tf.Tensor, *, record: bool, xla: bool) -> Any:
    """The reader for a kind of source, over the symbolic inputs `given` (see `signature_of`)."""
    if isinstance(source, IndexedBlock):
        return RowsReader(given, spec, start)
    if isinstance(source, Block):
        return BlockReader(given, spec, start, xla)
    if isinstance(source, Recording):
        return RecordingReader(given, spec, start)
    return IteratorReader(given, spec, record)


def inputs_of(source: Any) -> Any:
    """The argument of a program for this source: the tensors of a block, the tensor lists of a recording, or the iterator."""
    if isinstance(source, Block):
        arrays = _present(source.tensors)
        return [*arrays, *([source.index] * len(arrays) if isinstance(source, IndexedBlock) else [])]
    return list(source.handles) if isinstance(source, Recording) else source


def signature_of(source: Any, spec: Any, capacity: int | None) -> Any:
    """Type specs of `inputs_of(source)`; the number of batches in a block is left open unless `capacity` is given."""
    if isinstance(source, IndexedBlock):
        rows, size = source.rows if capacity is not None else None, next(s.shape[0] for s in _present(spec))
        arrays = [tf.TensorSpec([rows, *s.shape[1:]], s.dtype) for s in _present(spec)]
        return [*arrays, *[tf.TensorSpec([capacity, size], tf.int32)] * len(arrays)]
    if isinstance(source, Block):
        return [tf.TensorSpec([capacity, *s.shape], s.dtype) for s in _present(spec)]
    if isinstance(source, Recording):
        return [tf.TensorSpec([], tf.variant) for _ in source.handles]
    return tf.data.IteratorSpec(spec)


def eager_batch(source: Any, index: int) -> Any:
    """Batch `index` of a block or recording, or the next of an iterator, outside of any graph.

    Raises:
        StopIteration: if an iterator has no more.
    """
    if isinstance(source, IndexedBlock):
        return tf.nest.map_structure(lambda t: None if t is None else tf.gather(t, source.index[index]), source.tensors)
    if isinstance(source, Block):
        return tf.nest.map_structure(lambda t: None if t is None else t[index], source.tensors)
    if isinstance(source, Recording):
        return _recorded_batch(source.handles, source.spec, tf.constant(index, tf.int32))
    return next(source)


def _recorded_batch(handles: Any, spec: Any, index: tf.Tensor) -> Any:
    parts = []
    for handle, component in zip(handles, _components(spec), strict=True):
        shape = tf.constant([-1 if d is None else d for d in component.shape] if component.shape.rank is not None else -1, tf.int32)
        part = tf.raw_ops.TensorListGetItem(input_handle=handle, index=index, element_shape=shape, element_dtype=component.dtype)
        part.set_shape(component.shape)
        parts.append(part)
    return tf.nest.pack_sequence_as(spec, parts, expand_composites=True)


def _empty_list(dtype: tf.DType) -> tf.Tensor:
    return tf.raw_ops.EmptyTensorList(
        element_shape=tf.constant(-1, tf.int32), max_num_elements=tf.constant(-1, tf.int32), element_dtype=dtype
    )


def _components(spec: Any) -> list[Any]:
    return list(tf.nest.flatten(spec, expand_composites=True))


def _present(structure: Any) -> list[Any]:
    return [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]


def _pack(spec: Any, leaves: list[Any]) -> Any:
    values = iter(leaves)
    return tf.nest.map_structure(lambda s: None if s is None else next(values), spec)
