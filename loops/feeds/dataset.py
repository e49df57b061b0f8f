"""A `tf.data.Dataset` as a feed: its iterator goes into the compiled loop, or its batches are stacked into blocks for XLA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loops.feeds.base import Block, Feed, Position

__all__ = ["DatasetFeed"]

_BLOCK_STEPS = 64


class DatasetFeed(Feed):
    """Batches of a `tf.data.Dataset` that is already batched.

    In graph mode the program pulls from `iterator(...)` itself, so ragged, sparse and string batches of any shape work and nothing is
    read ahead of the step. Under XLA `blocks` stacks consecutive batches of equal shape.

    Args:
        dataset: a batched `tf.data.Dataset`; an element is what a step gets.

    Raises:
        TypeError: if it is not a `tf.data.Dataset`.
        ValueError: if its elements have no batch dimension.

    Example:
        >>> import tensorflow as tf
        >>> feed = DatasetFeed(tf.data.Dataset.range(100).batch(32))
        >>> feed.steps_per_epoch, feed.endless
        (4, False)
    """

    seekable = False  # another iterator may shuffle anew

    def __init__(self, dataset: tf.data.Dataset):
        if not isinstance(dataset, tf.data.Dataset):
            raise TypeError(f"DatasetFeed takes a tf.data.Dataset, got {type(dataset).__name__}; for arrays use loops.ArrayFeed.")
        self.dataset = dataset
        self.element_spec = dataset.element_spec
        for spec in tf.nest.flatten(self.element_spec):
            if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 0:
                raise ValueError(f"The dataset's elements have no batch dimension ({self.element_spec}); add `.batch(batch_size)` to it.")
        cardinality = int(dataset.cardinality())
        self.endless = cardinality == tf.data.INFINITE_CARDINALITY
        self.steps_per_epoch = cardinality if cardinality >= 0 else None
        if self.steps_per_epoch == 0:
            raise ValueError("The dataset is empty: its cardinality is 0 batches.")
        self._next_iterator: Any = None

    def iterator(self, position: Position, *, continuing: bool) -> Any:
        """An iterator that stands at `position`.

        Making an iterator advances the seeds of `shuffle`. `model.fit` makes one when a pass begins and, if the number of batches is
        known, another when it ends, which is used only if an epoch is not a pass (`continuing`). The same is done here, so that both
        see the same order.
        """
        ready, self._next_iterator = self._next_iterator, None
        if ready is not None and continuing:
            return ready
        return iter(self.dataset.skip(position.batch) if position.batch else self.dataset)

    def end_pass(self) -> None:
        """Tells the feed that the pass over its iterator is complete."""
        if self.steps_per_epoch is not None:
            self._next_iterator = iter(self.dataset)

    def blocks(self, position: Position) -> Iterator[Block]:
        for spec in tf.nest.flatten(self.element_spec):
            if not isinstance(spec, tf.TensorSpec):
                raise ValueError(f"Only dense batches can be stacked into blocks, got {spec}; use compile='graph' for this dataset.")
        run: list[Any] = []
        for element in self.iterator(position, continuing=False):
            if run and (len(run) == _BLOCK_STEPS or _shapes(element) != _shapes(run[0])):
                yield _stacked(run)
                run = []
            run.append(element)
        if run:
            yield _stacked(run)
        self.end_pass()


def _shapes(element: Any) -> list[tf.TensorShape]:
    return [t.shape for t in tf.nest.flatten(element)]


def _stacked(run: list[Any]) -> Block:
    """A block of constant K, padded with its last batch; a single odd batch (the tail of a pass) gets K = 1."""
    n = len(run)
    if n > 1:
        run = run + [run[-1]] * (_BLOCK_STEPS - n)
    return Block(tf.nest.map_structure(lambda *ts: tf.stack(ts), *run), n)
