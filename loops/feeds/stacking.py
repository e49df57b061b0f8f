"""Stacks single batches, which Python makes one by one, into blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import Block, block_steps
from loops.feeds.buffers import Buffers

__all__ = ["FIRST_SECONDS", "SECONDS", "Stacker", "groups", "is_dense"]

_MOST_STEPS = 256
#: Seconds in which a block is made, at most; then the next one.
SECONDS = 0.25
FIRST_SECONDS = 0.02  # training waits for the first block of a pass


def groups(
    batches: Iterable[Any], size: int, signature: Callable[[Any], Any], clock: Callable[[], float] = time.monotonic
) -> Iterator[Any]:
    """Groups consecutive batches of one signature, as lists of at most `size`.

    A list that took a quarter of a second is yielded as it is, so that training does not wait for a full one; the first ones, for which
    training waits, sooner. Where lists end changes no number.

    Args:
        batches: one by one.
        size: the longest list.
        signature: batch -> a value that is equal within a list.
        clock: monotonic seconds.
    """
    group: list[Any] = []
    begun, of_group, seconds = clock(), None, FIRST_SECONDS
    for batch in batches:
        of_batch = signature(batch)
        if group and (len(group) == size or of_batch != of_group):
            yield group
            group, begun = [], clock()
        group.append(batch)
        of_group = of_batch
        if clock() - begun >= seconds and (len(group) > 1 or clock() - begun >= SECONDS):
            yield group
            group, begun, seconds = [], clock(), min(2 * seconds, SECONDS)
    if group:
        yield group


class Stacker:
    """Knows the type of batches that Python makes, and stacks them.

    Args:
        samples: some batches, nested structures of arrays or of what becomes arrays. The first dimension is None in the spec, and so is
            one in which they differ. The dtypes of the first batch hold for all.
        what: what made the batches, for errors.

    Attributes:
        element_spec: nested structure of `tf.TensorSpec`; None stays None.
        size: the largest number of batches in a block.

    Raises:
        ValueError: if there is no batch, or the batches have no common type.
    """

    def __init__(self, samples: list[Any], what: str):
        if not samples:
            raise ValueError(f"The {what} gave no batch.")
        self._what = what
        samples = [keras.tree.lists_to_tuples(batch) for batch in samples]
        self._structure = samples[0]
        try:
            columns = list(zip(*(self._leaves(batch) for batch in samples), strict=True))
            specs = [_spec(column) for column in columns]
        except (ValueError, TypeError) as error:
            raise ValueError(f"The batches of the {what} do not fit together: {error}") from None
        self.element_spec = self._pack(specs)
        self._dtypes = [_numpy_dtype(spec) for spec in specs]
        self._specs, self._buffers = specs, Buffers()
        self.size = block_steps(sum(np.asarray(column[0]).nbytes for column in columns), _MOST_STEPS)

    def blocks(self, batches: Iterable[Any]) -> Iterator[Block]:
        """Stacks batches, in order; a short block is padded with zeros."""
        arrays = (self._arrays(batch) for batch in batches)
        for group in groups(arrays, self.size, lambda batch: [a.shape for a in batch]):
            n = len(group)
            k = self.size if n > 1 else 1  # a single batch of its shape is mostly the last of a pass
            yield Block(self._pack([self._stacked(column, k) for column in zip(*group, strict=True)]), n)

    def _stacked(self, column: tuple[np.ndarray, ...], k: int) -> tf.Tensor:
        if column[0].dtype == object:
            return tf.convert_to_tensor(np.stack([*column, *[column[-1]] * (k - len(column))]))
        stacked = self._buffers.array([k, *column[0].shape], column[0].dtype)
        np.stack(column, out=stacked[: len(column)])
        stacked[len(column) :] = 0
        return self._buffers.tensor(stacked)

    def _arrays(self, batch: Any) -> list[np.ndarray]:
        leaves = self._leaves(keras.tree.lists_to_tuples(batch))
        arrays = [np.asarray(leaf, dtype) for leaf, dtype in zip(leaves, self._dtypes, strict=True)]
        for array, spec in zip(arrays, self._specs, strict=True):
            if not spec.shape.is_compatible_with(array.shape):
                raise ValueError(
                    f"The {self._what} gave an array of shape {list(array.shape)}, but its first batches had {spec.shape}; "
                    "dimensions that vary have to differ in the first two batches already."
                )
        return arrays

    def _leaves(self, batch: Any) -> list[Any]:
        try:
            keras.tree.assert_same_structure(self._structure, batch)
        except (ValueError, TypeError):
            raise ValueError(
                f"The {self._what} gave batches of different structure: first {_shape_of(self._structure)}, then {_shape_of(batch)}."
            ) from None
        return [leaf if hasattr(leaf, "shape") else np.asarray(leaf) for leaf in keras.tree.flatten(batch) if leaf is not None]

    def _pack(self, leaves: list[Any]) -> Any:
        values = iter(leaves)
        return keras.tree.map_structure(lambda leaf: None if leaf is None else next(values), self._structure)


def is_dense(batch: Any) -> bool:
    """Whether a batch is made of arrays, or what becomes arrays: nothing sparse or ragged, which cannot be stacked."""
    return not any(
        isinstance(leaf, (tf.SparseTensor, tf.RaggedTensor)) or _private_api.is_scipy_sparse(leaf) for leaf in keras.tree.flatten(batch)
    )


def _spec(column: tuple[Any, ...]) -> tf.TensorSpec:
    ranks = sorted({len(leaf.shape) for leaf in column})
    if len(ranks) > 1 or ranks[0] == 0:
        raise ValueError(f"arrays with one row an example were expected, with as many dimensions in each batch; got {ranks} dimensions.")
    sizes = [set(size) for size in zip(*(leaf.shape for leaf in column), strict=True)]
    shape = [None, *(size.pop() if len(size) == 1 else None for size in sizes[1:])]
    dtype = column[0].dtype
    is_text = dtype == tf.string if isinstance(dtype, tf.DType) else getattr(dtype, "kind", None) in ("O", "S", "U")
    return tf.TensorSpec(shape, tf.string if is_text else keras.backend.standardize_dtype(dtype))


def _numpy_dtype(spec: tf.TensorSpec) -> Any:
    return np.dtype(object) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)


def _shape_of(batch: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: getattr(leaf, "shape", type(leaf).__name__), batch)
