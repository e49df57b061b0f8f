"""Data that Keras's own adapters turn into batches: what is neither arrays nor `tf.data` nor batches that Python makes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from loops.feeds.dataset import DatasetFeed
from loops.feeds.fingerprints import fingerprints, named_leaves

__all__ = ["AdapterFeed"]


class AdapterFeed(DatasetFeed):
    """Data that one of Keras's adapters turns into a `tf.data.Dataset`. The adapter is told when epochs begin and end.

    Args:
        adapter: the adapter.
        data: what it was made from, (inputs, labels, weights), if these are arrays or tensors.
        class_weight: class -> weight.
    """

    def __init__(self, adapter: Any, data: Any = None, class_weight: Mapping[int, float] | None = None):
        super().__init__(adapter.get_tf_dataset(), class_weight=class_weight)
        self._data, self.told_apart = data, data is not None
        self._adapter = adapter
        self.steps_per_epoch = adapter.num_batches
        adapter.on_epoch_end()  # Keras calls it once before the first epoch

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        return fingerprints(named_leaves(self._data)) if self._data is not None else {}

    def end_pass(self) -> None:
        self._adapter.on_epoch_end()

    def _begin_pass(self, *, continuing: bool) -> Any:
        self._passes_begun += 1
        self._adapter.on_epoch_begin()
        return iter(self.dataset)

    def _iterator_of_next_pass(self) -> Any:
        return None  # an iterator may be made only after the adapter's epoch has begun

    def _skip_pass(self) -> None:
        self._passes_begun += 1
        self._adapter.on_epoch_begin()
        self._adapter.on_epoch_end()
