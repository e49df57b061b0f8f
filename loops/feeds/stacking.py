"""Single batches, as Python or `tf.data` give them one by one, stacked into blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import Block, block_steps

__all__ = ["Stacker", "is_dense", "runs"]

_MOST_STEPS = 256
_SECONDS = 0.25


def runs(batches: Iterable[Any], size: int, signature: Callable[[Any], Any], clock: Callable[[], float] = time.monotonic) -> Iterator[Any]:
    """Groups consecutive batches of one signature, as lists of at most `size`.

    Nobody is kept waiting for a full list: one that took a quarter of a second is handed out as it is. Where lists end changes no number.

    Args:
        batches: one by one.
        size: the longest list.
        signature: batch -> what has to be equal within a list.
        clock: monotonic seconds.
    """
    run: list[Any] = []
    begun, of_run = clock(), None
    for batch in batches:
        of_batch = signature(batch)
        if run and (len(run) == size or of_batch != of_run):
            yield run
            run, begun = [], clock()
        run.append(batch)
        of_run = of_batch
        if clock() - begun >= _SECONDS:
            yield run
            run, begun = [], clock()
    if run:
        yield run


class Stacker:
    """Knows the type of batches that Python makes, and stacks them.

    Args:
        examples: some batches, nested structures of arrays or of what becomes arrays; a dimension in which they differ is an open one,
            and so is the first. The dtypes of the first one hold for all.
        what: who made them, for errors.

    Attributes:
        element_spec: nested structure of `tf.TensorSpec`; None stays None.
        size: the most batches in a block.

    Raises:
        ValueError: if there is no batch, or the batches have no common type.
    """

    def __init__(self, examples: list[Any], what: str):
        if not examples:
            raise ValueError(f"The {what} gave no batch.")
        self._what = what
        examples = [keras.tree.lists_to_tuples(batch) for batch in examples]
        self._structure = examples[0]
        try:
            columns = list(zip(*(self._leaves(batch) for batch in examples), strict=True))
            specs = [_spec(column) for column in columns]
        except (ValueError, TypeError) as error:
            raise ValueError(f"The batches of the {what} do not fit together: {error}") from None
        self.element_spec = self._pack(specs)
        self._dtypes = [_numpy_dtype(spec) for spec in specs]
        self._specs = specs
        self.size = block_steps(sum(np.asarray(column[0]).nbytes for column in columns), _MOST_STEPS)

    def blocks(self, batches: Iterable[Any]) -> Iterator[Block]:
        """Stacks batches, in order; a short block is padded with zeros."""
        arrays = (self._arrays(batch) for batch in batches)
        for run in runs(arrays, self.size, lambda batch: [a.shape for a in batch]):
            n = len(run)
            k = self.size if n > 1 else 1  # a single odd one is mostly the tail of a pass
            yield Block(self._pack([_stacked(column, k) for column in zip(*run, strict=True)]), n)

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
    is_text = getattr(column[0].dtype, "kind", "") in "OSU" or column[0].dtype == tf.string
    return tf.TensorSpec(shape, tf.string if is_text else keras.backend.standardize_dtype(column[0].dtype))


def _numpy_dtype(spec: tf.TensorSpec) -> Any:
    return np.dtype(object) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)


def _stacked(column: tuple[np.ndarray, ...], k: int) -> tf.Tensor:
    if column[0].dtype == object:
        return tf.convert_to_tensor(np.stack([*column, *[column[-1]] * (k - len(column))]))
    rows = np.empty([k, *column[0].shape], column[0].dtype)
    np.stack(column, out=rows[: len(column)])
    rows[len(column) :] = 0
    return tf.convert_to_tensor(rows)


def _shape_of(batch: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: getattr(leaf, "shape", type(leaf).__name__), batch)
