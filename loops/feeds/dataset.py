"""A `tf.data.Dataset` as a feed: its iterator goes into the compiled loop, or its batches are stacked into blocks for XLA."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds import dataset_fingerprint, dataset_position
from loops.feeds.base import MOST_BLOCK_STEPS, Block, Feed, Position, block_steps, compiled_steps
from loops.feeds.dataset_inspection import PYTHON_OPERATIONS, Pipeline, Replay, parts
from loops.feeds.fingerprints import class_weight_text
from loops.feeds.pulling import pulled_blocks
from loops.messages import say

__all__ = ["DatasetFeed"]

_STEPS_OF_UNKNOWN_BYTES = 64
# A saved iterator is that of the pass in progress, or that of the next pass.
_CURRENT, _NEXT = "current", "next"


class DatasetFeed(Feed):
    """Batches of a `tf.data.Dataset` that is already batched.

    In graph mode the program pulls from `iterator(...)` itself, so ragged, sparse and string batches of any shape work and nothing is
    read ahead of the step. Under XLA `blocks` stacks consecutive batches of equal shape.

    Args:
        dataset: a batched `tf.data.Dataset`; an element is what a step gets.
        class_weight: weights of classes that the dataset's batches contain; a resumed run has to be given the same ones.

    Raises:
        TypeError: if it is not a `tf.data.Dataset`.
        ValueError: if its elements have no batch dimension.

    Example:
        >>> import tensorflow as tf
        >>> feed = DatasetFeed(tf.data.Dataset.range(100).batch(32))
        >>> feed.steps_per_epoch, feed.endless
        (4, False)
    """

    in_blocks = False
    seekable = False  # another iterator may give another order

    def __init__(self, dataset: tf.data.Dataset, *, class_weight: Mapping[int, float] | None = None):
        dataset = _private_api.undistributed(dataset)
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
        self._class_weight = class_weight_text(class_weight)
        self._compiled_steps: int | None = None
        self._next_iterator: Any = None
        self._passes_begun = 0
        self._current: Any = None
        self._repeats = any("Repeat" in type(part).__name__ for part in parts(dataset))

    def with_dataset(self, dataset: tf.data.Dataset) -> DatasetFeed:
        """A feed like this one of another dataset, for one of several workers.

        It is read in blocks if nobody knows how many batches there are: workers agree on how many steps they do before they do them.
        """
        feed = DatasetFeed(dataset)
        feed._class_weight = self._class_weight
        feed.in_blocks = feed.steps_per_epoch is None and not feed.endless
        return feed

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The properties of the dataset that matter for resuming."""
        return Pipeline.of(self.dataset)

    @functools.cached_property
    def passes_apart(self) -> bool:  # type: ignore[override]
        """Whether Python decides what the batches are. It matters under XLA, where blocks are read ahead."""
        return not self.pipeline.operations.isdisjoint(PYTHON_OPERATIONS)

    @property
    def examples_per_batch(self) -> int | None:
        return super().examples_per_batch or self.pipeline.batch_size

    def findings(self) -> list[str]:
        return list(self.pipeline.findings)

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """The fingerprints of what the dataset reads, as far as reading it changes nothing; see `loops.feeds.dataset_fingerprint`."""
        return dataset_fingerprint.fingerprint(self.dataset)

    def describe(self) -> dict[str, Any]:
        return {"class_weight": self._class_weight, **super().describe(), "fingerprint": self.fingerprint}

    def iterator(self, position: Position, *, continuing: bool) -> Any:
        """An iterator that stands at `position`.

        Making an iterator advances the seeds of `shuffle`. `model.fit` makes one when a pass begins and, if the number of batches is
        known, another when the pass ends, which it uses only if epochs continue passes. This method makes the same iterators, so that
        the order is the same. In a new process it first makes those of the earlier passes.

        Args:
            position: the next batch to read.
            continuing: whether an epoch may end within a pass, and the next one continues that pass (`steps_per_epoch`).

        Raises:
            ValueError: if the pass has fewer batches than `position` says.
        """
        replay = self.pipeline.replay if position.pass_index > self._passes_begun else Replay.NOTHING
        self._announce(position, replay)
        while self._passes_begun < position.pass_index:
            self._replay_pass(replay, continuing=continuing)
        iterator = self._begin_pass(continuing=continuing)
        if _drop(iterator, position.batch) < position.batch:
            raise ValueError(
                f"The data ended before batch {position.batch} of pass {position.pass_index}, where the run stood; "
                "a run goes on only with the data that it was made with."
            )
        return iterator

    def end_pass(self) -> None:
        """Called when the iterator of the pass has given its last batch."""
        if self.steps_per_epoch is None:
            return
        if self._repeats:
            # When a finite `repeat` finds its end, it draws once more from the shuffle below it. Threads that read ahead may do that before
            # or after the next iterator draws. To read past the end here settles the order.
            with contextlib.suppress(tf.errors.OpError):
                next(self._current, None)
        self._next_iterator = iter(self.dataset)

    def save_iterator(self, iterator: Any, directory: pathlib.Path) -> bool:
        """Writes where the feed stands in its dataset.

        Args:
            iterator: the iterator of the pass in progress; None between two passes. An exhausted iterator does not contain what the next
                passes need, so then the next iterator is saved. If the length is unknown it is made now, and used for the next pass.
            directory: folder to write into.

        Returns:
            False if TensorFlow cannot save it; nothing is left in the folder, and `restored_iterator` reads and drops batches.
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
            ValueError: if the saved position does not fit the dataset, the data ends too early, or the shuffles of this process are past
                that position and their seeds were not saved.
        """
        for name in (_CURRENT, _NEXT):
            if directory is not None and dataset_position.saved(directory, name=name):
                self._next_iterator, self._passes_begun = None, 0
                while self._passes_begun < position.pass_index:
                    self._skip_pass()
                iterator = self._begin_pass(continuing=continuing) if name == _CURRENT else iter(self.dataset)
                dataset_position.restore(iterator, directory, name=name)
                if name == _CURRENT:
                    return iterator
                self._next_iterator = iterator
                return self._begin_pass(continuing=continuing)
        self.check_that_it_goes_back(position)
        return self.iterator(position, continuing=continuing)

    def check_that_it_goes_back(self, position: Position) -> None:
        """Checks that a pipeline that this process has read from can give the batches from `position` on again.

        Raises:
            ValueError: if it cannot.
        """
        if self._passes_begun > position.pass_index and self.pipeline.replay is not Replay.NOTHING:
            raise ValueError(
                f"This pipeline cannot go back to batch {position.batch} of pass {position.pass_index}: TensorFlow did not save its "
                "position there, and its shuffles are past it. In a new process, with the dataset built anew, it can."
            )

    def _begin_pass(self, *, continuing: bool) -> Any:
        self._passes_begun += 1
        ready, self._next_iterator = self._next_iterator, None
        # If the length is unknown, `ready` was made by `save_iterator`.
        use_ready = ready is not None and (continuing or self.steps_per_epoch is None)
        self._current = ready if use_ready else iter(self.dataset)
        return self._current

    def _iterator_of_next_pass(self) -> Any:
        if self._next_iterator is None and self._passes_begun and (self.steps_per_epoch is None or self.pipeline.replay is Replay.NOTHING):
            self._next_iterator = iter(self.dataset)
        return self._next_iterator

    def _skip_pass(self) -> None:
        """Counts a pass that another process has done."""
        self._passes_begun += 1

    def _replay_pass(self, replay: Replay, *, continuing: bool) -> None:
        """Advances the seeds of the dataset's shuffles as a whole pass does."""
        if replay is Replay.NOTHING:
            self._skip_pass()
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

    @property
    def block_steps(self) -> int:
        """The number of batches in a full block."""
        if self._compiled_steps is not None:
            return self._compiled_steps
        size, specs = self.examples_per_batch, tf.nest.flatten(self.element_spec)
        if size is None or any(s.shape.rank is None or None in s.shape[1:] for s in specs):
            return _STEPS_OF_UNKNOWN_BYTES
        most = min(MOST_BLOCK_STEPS, self.steps_per_epoch or MOST_BLOCK_STEPS)
        return block_steps(sum(s.dtype.size * size * int(np.prod(s.shape[1:])) for s in specs), most)

    def cut_like(self, compiled: Sequence[tuple[Any, int, int | None]]) -> None:
        self._compiled_steps = None
        if (size := self.examples_per_batch) is not None:
            self._compiled_steps = compiled_steps(compiled, size, self.block_steps)

    def blank_block(self) -> Block:
        """A block of zeros with the shapes of a full one; the size of the batches has to be known."""
        steps, size = self.block_steps, self.examples_per_batch
        assert size is not None
        return Block(tf.nest.map_structure(lambda spec: tf.zeros([steps, size, *spec.shape[1:]], spec.dtype), self.element_spec), steps)

    def blocks(self, position: Position) -> Iterator[Block]:
        for spec in tf.nest.flatten(self.element_spec):
            if not isinstance(spec, tf.TensorSpec):
                raise ValueError(f"Only dense batches can be stacked into blocks, got {spec}; use compile='graph' for this dataset.")
        yield from pulled_blocks(self.iterator(position, continuing=False), self.block_steps)
        if not self.passes_apart:
            self.end_pass()


def _drop(iterator: Any, count: int | None) -> int:
    """Reads batches and drops them, all if `count` is None; returns how many there were."""
    return sum(1 for _ in itertools.islice(iterator, count))
