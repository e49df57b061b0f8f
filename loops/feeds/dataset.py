"""A `tf.data.Dataset` as a feed: its iterator goes into the compiled loop, or its batches are stacked into blocks for XLA."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loops.feeds import dataset_position
from loops.feeds.base import Block, Feed, Position
from loops.feeds.dataset_inspection import Pipeline, Replay, parts
from loops.feeds.stacking import runs
from loops.messages import say

__all__ = ["DatasetFeed"]

_BLOCK_STEPS = 64
# What a saved state is of: the pass in progress, or the pass that comes next.
_CURRENT, _NEXT = "current", "next"


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
        self._passes_begun = 0
        self._current: Any = None
        self._repeats = any("Repeat" in type(part).__name__ for part in parts(dataset))

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """What resuming has to know about the dataset."""
        return Pipeline.of(self.dataset)

    def findings(self) -> list[str]:
        return list(self.pipeline.findings)

    def iterator(self, position: Position, *, continuing: bool) -> Any:
        """An iterator that stands at `position`.

        Making an iterator advances the seeds of `shuffle`. `model.fit` makes one when a pass begins and, if the number of batches is
        known, another when it ends, which is used only if an epoch is not a pass (`continuing`). The same is done here, so that both
        see the same order. In a fresh process, what earlier passes would have made is made first.

        Raises:
            ValueError: if the pass has fewer batches than `position` says.
        """
        replay = self.pipeline.replay if position.pass_index > self._passes_begun else Replay.NOTHING
        self._announce(position, replay)
        while self._passes_begun < position.pass_index:
            self._read_again(replay, continuing=continuing)
        iterator = self._begin_pass(continuing=continuing)
        if _drop(iterator, position.batch) < position.batch:
            raise ValueError(
                f"The data ended before batch {position.batch} of pass {position.pass_index}, where the run stood; "
                "a run goes on only with the data that it was made with."
            )
        return iterator

    def end_pass(self) -> None:
        """Tells the feed that the pass over its iterator is complete."""
        if self.steps_per_epoch is None:
            return
        if self._repeats:
            # A finite `repeat` draws once more from the shuffle below it when it finds its end, which threads that read ahead would do
            # before or after the next iterator draws, as it happens.
            with contextlib.suppress(tf.errors.OpError):
                next(self._current, None)
        self._next_iterator = iter(self.dataset)

    def save_iterator(self, iterator: Any, directory: pathlib.Path) -> bool:
        """Writes where the feed stands in its dataset.

        Args:
            iterator: the iterator of the pass in progress; None between two passes. An exhausted iterator does not hold what the next
                passes need, so the next one is saved then (and is made now if the length is unknown; it will be used).
            directory: folder to write into.

        Returns:
            False if TensorFlow cannot save it; nothing is left in the folder, and `restored_iterator` counts batches.
        """
        if self.pipeline.unsaveable is not None:
            return False
        name = _CURRENT if iterator is not None else _NEXT
        if iterator is None:
            iterator = self._iterator_of_next_pass()
        if iterator is None or not dataset_position.save(iterator, directory, name=name):
            return False
        if dataset_position.generators(directory, name=name) < self.pipeline.generators:
            dataset_position.remove(directory, name=name)
            return False
        return True

    def restored_iterator(self, position: Position, directory: pathlib.Path | None, *, continuing: bool) -> Any:
        """An iterator that stands at `position`, from what `save_iterator` wrote, else by reading and dropping batches, which is announced.

        Args:
            position: where the run stood.
            directory: where `save_iterator` wrote; None if it returned False.
            continuing: as for `iterator`.

        Raises:
            ValueError: if what was saved does not fit the dataset, the data ends too early, or the seeds of this process' shuffles are
                past that position already and were not saved.
        """
        for name in (_CURRENT, _NEXT):
            if directory is not None and dataset_position.saved(directory, name=name):
                self._next_iterator, self._passes_begun = None, 0
                while self._passes_begun < position.pass_index:
                    self._tell_of_pass()
                iterator = self._begin_pass(continuing=continuing) if name == _CURRENT else iter(self.dataset)
                dataset_position.restore(iterator, directory, name=name)
                if name == _CURRENT:
                    return iterator
                self._next_iterator = iterator
                return self._begin_pass(continuing=continuing)
        if self._passes_begun > position.pass_index and self.pipeline.replay is not Replay.NOTHING:
            raise ValueError(
                f"This pipeline cannot go back to batch {position.batch} of pass {position.pass_index}: TensorFlow did not save its "
                "position there, and its shuffles are past it. In a new process, with the dataset built anew, it can."
            )
        return self.iterator(position, continuing=continuing)

    def _begin_pass(self, *, continuing: bool) -> Any:
        self._passes_begun += 1
        ready, self._next_iterator = self._next_iterator, None
        # For an unknown length there is one ahead of its time only if it was saved.
        use_ready = ready is not None and (continuing or self.steps_per_epoch is None)
        self._current = ready if use_ready else iter(self.dataset)
        return self._current

    def _iterator_of_next_pass(self) -> Any:
        if self._next_iterator is None and self._passes_begun and (self.steps_per_epoch is None or self.pipeline.replay is Replay.NOTHING):
            self._next_iterator = iter(self.dataset)
        return self._next_iterator

    def _tell_of_pass(self) -> None:
        """A pass that was done in another process needs no more than to be counted."""
        self._passes_begun += 1

    def _read_again(self, replay: Replay, *, continuing: bool) -> None:
        """Leaves the seeds of the dataset's shuffles as a pass over it leaves them."""
        if replay is Replay.NOTHING:
            self._tell_of_pass()
            return
        iterator = self._begin_pass(continuing=continuing)
        if replay is Replay.FIRST_BATCH:
            _drop(iterator, 1)
        elif replay is Replay.WHOLE:
            _drop(iterator, self.steps_per_epoch)
        self.end_pass()

    def _announce(self, position: Position, replay: Replay) -> None:
        passes = position.pass_index - self._passes_begun
        work = []
        if replay is Replay.WHOLE:
            work.append(f"{passes} whole passes")
        if position.batch:
            work.append(f"{position.batch} batches")
        if work:
            why = self.pipeline.unsaveable
            because = (
                f"TensorFlow cannot save the position in this pipeline ({why})"
                if why is not None
                else "the position was not saved (blocks are read ahead; near the end of a pass TensorFlow loses the seeds of shuffles)"
            )
            say(f"Resuming: reading and dropping {' and '.join(work)}, because {because}.")

    def blocks(self, position: Position) -> Iterator[Block]:
        for spec in tf.nest.flatten(self.element_spec):
            if not isinstance(spec, tf.TensorSpec):
                raise ValueError(f"Only dense batches can be stacked into blocks, got {spec}; use compile='graph' for this dataset.")
        for run in runs(self.iterator(position, continuing=False), _BLOCK_STEPS, _shapes):
            yield _stacked(run)
        self.end_pass()


def _drop(iterator: Any, count: int | None) -> int:
    """Reads batches and drops them, all if `count` is None; returns how many there were."""
    return sum(1 for _ in itertools.islice(iterator, count))


def _shapes(element: Any) -> list[tf.TensorShape]:
    return [t.shape for t in tf.nest.flatten(element)]


def _stacked(run: list[Any]) -> Block:
    """A block of constant K, padded with its last batch; a single odd batch (the tail of a pass) gets K = 1."""
    n = len(run)
    if n > 1:
        run = run + [run[-1]] * (_BLOCK_STEPS - n)
    return Block(tf.nest.map_structure(lambda *ts: tf.stack(ts), *run), n)
