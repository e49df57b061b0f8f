"""Shuffled data of which not every part is an array: ragged, sparse, SciPy's matrices, data frames, in any structure."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.adapter import AdapterFeed
from loops.feeds.base import Position
from loops.feeds.shuffling import Permutations

__all__ = ["RowsFeed", "rows_of"]


class RowsFeed(AdapterFeed):
    """Batches of data with one row an example, in an order that depends on `seed` and the pass alone.

    The rows of a pass are put in order when it begins, which takes the memory of the data once more. So a resumed run has the same order
    again, which Keras's own shuffling of such data would not give it.

    Args:
        data: (inputs, labels, weights), each a structure of what has rows.
        adapter_for: data -> Keras's adapter that cuts it into batches, in order.
        seed: seed of the orders.
        class_weight: class -> weight, which the adapters apply.
    """

    def __init__(self, data: Any, adapter_for: Callable[[Any], Any], seed: int, class_weight: Mapping[int, float] | None = None):
        super().__init__(adapter_for(data), data, class_weight)
        self._adapter_for, self._seed = adapter_for, int(seed)
        first = next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)
        self._orders = Permutations(int(first.shape[0]), self._seed)

    def describe(self) -> dict[str, Any]:
        return {"shuffle": True, "seed": self._seed, **super().describe()}

    def iterator(self, position: Position, *, continuing: bool) -> Any:
        self._passes_begun = position.pass_index
        return super().iterator(position, continuing=continuing)

    def restored_iterator(self, position: Position, directory: pathlib.Path | None, *, continuing: bool) -> Any:
        return self.iterator(position, continuing=continuing)

    def check_that_it_goes_back(self, position: Position) -> None:
        pass

    def save_iterator(self, iterator: Any, directory: pathlib.Path) -> bool:
        return False

    def _begin_pass(self, *, continuing: bool) -> Any:
        order = self._orders.of(self._passes_begun)
        shuffled = keras.tree.map_structure(lambda leaf: None if leaf is None else rows_of(leaf, order), self._data)
        self._passes_begun += 1
        self._adapter = self._adapter_for(shuffled)
        self._adapter.on_epoch_begin()
        return iter(self._adapter.get_tf_dataset())


def rows_of(array: Any, order: np.ndarray) -> Any:
    """The rows of something in another order.

    Args:
        array: array, tensor, ragged or sparse tensor, matrix of SciPy, data frame or series `[N, ...]`.
        order: integers `[N]`, which row comes at each place.

    Example:
        >>> rows_of(tf.ragged.constant([[1], [2, 3]]), np.array([1, 0])).to_list()
        [[2, 3], [1]]
    """
    if isinstance(array, tf.SparseTensor):
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        indices = array.indices.numpy()
        moved = np.concatenate([place[indices[:, :1]], indices[:, 1:]], 1)
        return tf.sparse.reorder(tf.SparseTensor(moved, array.values, array.dense_shape))
    if isinstance(array, (tf.RaggedTensor, tf.Tensor)):
        return tf.gather(array, order)
    if _private_api.is_scipy_sparse(array):
        return array.tocsr()[order]
    return array.iloc[order] if hasattr(array, "iloc") else np.asarray(array)[order]
