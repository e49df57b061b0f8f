"""What a program carries out of its steps: rows, observed tensors of the last step, outputs that are collected over all steps.

Outputs whose batches can be laid end to end are one array. Those whose batches may differ in more than their number of examples, and ragged
and sparse ones, are kept batch by batch in lists on the device, of which `unpacked` makes tensors again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["Outputs", "concatenated", "unpacked"]

_COMPOSITE = (tf.RaggedTensor, tf.SparseTensor)


class Outputs:
    """The loop variables in which a program gathers rows, observed tensors and collected outputs.

    Args:
        structure: what a step returns, symbolic.
        capacity: number of steps that there is room for, where that is fixed (XLA).
        n: number of steps.

    Raises:
        ValueError: for ragged and sparse outputs under XLA.
    """

    def __init__(self, structure: Any, capacity: int | None, n: tf.Tensor):
        self._structure, self._capacity, self._n = structure, capacity, n
        self._observed = tf.nest.flatten(structure["observed"])
        self._collected = tf.nest.flatten(structure["collected"])
        self.shapes_vary = not all(t.shape.is_fully_defined() for t in self._observed)
        if capacity is not None and any(_is_composite(t) for t in self._collected):
            raise ValueError("A step with ragged or sparse outputs cannot be compiled by XLA; use compile='graph'.")

    def begin(self) -> tuple[Any, list[Any], list[Any]]:
        """The variables before the first step."""
        size = self._n if self._capacity is None else self._capacity
        rows = tf.zeros([size, self._structure["row"].shape[0]], tf.float64)
        observed = [tf.zeros([d or 0 for d in t.shape], t.dtype) for t in self._observed]
        return rows, observed, [self._container(t) for t in self._collected]

    def _container(self, output: Any) -> Any:
        # Under XLA all batches of a block have one shape, and arrays cannot grow. Elsewhere n may be larger than the number of batches.
        if self._capacity is not None:
            size, grows = self._capacity, False
        elif _differs(output):
            return [_empty_list(part.dtype) for part in tf.nest.flatten(_spec(output), expand_composites=True)]
        else:
            size, grows = 0, True
        return tf.TensorArray(output.dtype, size=size, dynamic_size=grows, element_shape=output.shape, infer_shape=False)

    def shapes(self, unbound: Any) -> Any:
        """The shapes of the variables that stay the same from step to step; `unbound` holds those of `begin`."""
        rows, _, containers = unbound
        return rows, [t.shape for t in self._observed], containers

    def put(self, state: Any, i: tf.Tensor, result: Any) -> Any:
        """The variables after step `i` with this result."""
        rows, _, containers = state
        rows = tf.tensor_scatter_nd_update(rows, [[i]], [result["row"]])
        index = tf.cast(i, tf.int32)
        put = []
        for container, value in zip(containers, tf.nest.flatten(result["collected"]), strict=True):
            if isinstance(container, list):
                parts = tf.nest.flatten(value, expand_composites=True)
                put.append([tf.raw_ops.TensorListPushBack(input_handle=h, tensor=p) for h, p in zip(container, parts, strict=True)])
            else:
                put.append(container.write(index, value))
        return rows, tf.nest.flatten(result["observed"]), put

    def end(self, state: Any) -> dict[str, Any]:
        """What the program returns; `collected` is for `unpacked`."""
        rows, observed, containers = state
        return {
            "rows": rows,
            "observed": tf.nest.pack_sequence_as(self._structure["observed"], observed),
            "collected": [c if isinstance(c, list) else self._joined(c) for c in containers],
        }

    def _joined(self, array: tf.TensorArray) -> tf.Tensor:
        if self._capacity is None:
            return array.concat()
        stacked = array.stack()
        return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], 0))


def unpacked(structure: Any, collected: Sequence[Any], done: tf.Tensor) -> Any:
    """The collected outputs of a call, in the structure in which the step returned them.

    Args:
        structure: that structure, symbolic.
        collected: what `Outputs.end` returned, run.
        done: number of steps; read only if outputs were kept batch by batch.
    """
    leaves = []
    for output, value in zip(tf.nest.flatten(structure), collected, strict=True):
        if isinstance(value, (list, tuple)):
            batches = [_batch(value, _spec(output), i) for i in range(int(done))]
            value = concatenated(batches) if batches else None
        leaves.append(value)
    return tf.nest.pack_sequence_as(structure, leaves)


def concatenated(batches: Sequence[Any]) -> Any:
    """Outputs of consecutive batches as one: an array, or a ragged tensor where they differ in more than their number of examples.

    Example:
        >>> concatenated([np.zeros([2, 3]), np.zeros([1, 2])]).shape
        TensorShape([3, None])
    """
    if isinstance(batches[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(batches), expand_nonconcat_dims=True)
    if isinstance(batches[0], tf.RaggedTensor):
        return tf.concat(list(batches), 0)
    if len(batches) == 1:
        return batches[0]
    sizes = list(zip(*(tuple(batch.shape)[1:] for batch in batches), strict=True))
    differing = [place for place, size in enumerate(sizes, 1) if len(set(size) - {None}) > 1]
    if differing:
        return tf.concat([tf.RaggedTensor.from_tensor(batch, ragged_rank=differing[-1]) for batch in batches], 0)
    return np.concatenate(batches) if isinstance(batches[0], np.ndarray) else tf.concat(list(batches), 0)


def _batch(handles: Sequence[Any], spec: Any, index: int) -> Any:
    parts = []
    for handle, part in zip(handles, tf.nest.flatten(spec, expand_composites=True), strict=True):
        shape = tf.constant(-1 if part.shape.rank is None else [-1 if d is None else d for d in part.shape], tf.int32)
        parts.append(tf.raw_ops.TensorListGetItem(input_handle=handle, index=index, element_shape=shape, element_dtype=part.dtype))
    return tf.nest.pack_sequence_as(spec, parts, expand_composites=True)


def _empty_list(dtype: tf.DType) -> tf.Tensor:
    unknown = tf.constant(-1, tf.int32)
    return tf.raw_ops.EmptyTensorList(element_shape=unknown, max_num_elements=unknown, element_dtype=dtype)


def _is_composite(output: Any) -> bool:
    return isinstance(output, (*_COMPOSITE, tf.RaggedTensorSpec, tf.SparseTensorSpec))


def _differs(output: Any) -> bool:
    """Whether batches of an output may differ in more than their number of examples."""
    shape = output.shape
    return _is_composite(output) or shape.rank in (None, 0) or any(d is None for d in shape[1:])


def _spec(output: Any) -> Any:
    return output if isinstance(output, tf.TypeSpec) else tf.type_spec_from_value(output)
