"""Reads a feed pass after pass: says what the program gets next, and keeps the position in the feed. It runs no program."""

from __future__ import annotations

import itertools
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any

from loops import fault_points
from loops.feeds import Block, DatasetFeed, Feed, Position
from loops.feeds.prefetch import Prefetcher

__all__ = ["FeedBlockReader", "FeedReader", "FeedIteratorReader", "LeftoverReader", "open_reader"]


class FeedReader:
    """A position in a feed: the next batch that was not consumed.

    Attributes:
        source: the source for the program: a `Block` or an iterator.
        start: index of the next batch within the block; 0 for an iterator.
        available: number of steps that one call can do from here; None if only the program finds out.
    """

    source: Any
    start: int = 0
    available: int | None = None

    def ready(self) -> bool:
        """Makes `source` ready. Returns False, once, when the pass has ended; the next call begins the next pass."""
        raise NotImplementedError

    def consumed(self, n: int) -> None:
        """Moves on by `n` batches."""

    def save(self, directory: pathlib.Path) -> bool:
        """Writes what it takes, beside the counters, to find this position again; returns whether it wrote something."""
        return False

    def close(self) -> None:
        """Ends threads."""


class FeedBlockReader(FeedReader):
    """Reads blocks, which a background thread makes ahead, across the ends of passes if the feed allows it."""

    def __init__(self, feed: Feed, position: Position, passes: int | None):
        self.feed, self._pass_index = feed, position.pass_index
        self._prefetcher: Prefetcher | None = None
        self._items: Iterator[Block | None] | None = None
        self._position: Position | None = position if feed.passes_apart else None
        if not feed.passes_apart:
            self._begin_reading(position, passes)
        self.available = 0

    def ready(self) -> bool:
        if self.available:
            return True
        if self._items is None:
            self._begin_reading(self._position or Position(self._pass_index), 1)
            self._position = None
        self.source = None  # releases the block, so that the prefetcher may make another one
        block = next(self._items, None) if self._items is not None else None
        if block is None:
            self._end_pass()
            return False
        self.source, self.start, self.available = block, 0, block.n
        return True

    def _begin_reading(self, position: Position, passes: int | None) -> None:
        items = _passes(self.feed, position, passes)
        ahead = self.feed.prefetch and not (passes == 1 and self.feed.is_short)
        self._prefetcher = Prefetcher(items, self.feed.prefetch) if ahead else None
        self._items = iter(self._prefetcher or items)
        if self._prefetcher is not None:
            weakref.finalize(self, self._prefetcher.stop).atexit = False

    def _end_pass(self) -> None:
        self._pass_index += 1
        if self.feed.passes_apart:
            self.close()
            self._items = None
            self.feed.end_pass()

    def consumed(self, n: int) -> None:
        assert self.available is not None
        self.start += n
        self.available -= n

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()


class FeedIteratorReader(FeedReader):
    """Gives the program the `tf.data` iterator of the pass in progress."""

    def __init__(self, feed: DatasetFeed, position: Position, continuing: bool, saved: pathlib.Path | None = None, resuming: bool = False):
        self._feed, self._continuing, self._saved, self._resuming = feed, continuing, saved, resuming
        self._position: Position | None = position
        self._pass_index = position.pass_index
        self._left: int | None = None

    def ready(self) -> bool:
        if self._position is not None:
            self.source = self._open(self._position)
            total = self._feed.steps_per_epoch
            self._left = total - self._position.batch if total is not None else None
            self._position = None
        fault_points.reached(fault_points.FEED)
        self.available = self._left
        if self._left == 0:
            self.end_pass()
            return False
        return True

    def consumed(self, n: int) -> None:
        if self._left is not None:
            self._left -= n
            self.available = self._left

    def put_back(self, n: int) -> None:
        """Takes back the count of `n` batches that were counted as consumed and are still in the iterator."""
        if self._left is not None:
            self._left += n

    def end_pass(self) -> None:
        """Called when the program has found the end of the iterator."""
        self._feed.end_pass()
        self._pass_index += 1
        self._position = Position(self._pass_index)

    def save(self, directory: pathlib.Path) -> bool:
        if self._resuming:
            self.ready()  # restores the saved position, which is saved again before a batch was read
        return self._feed.save_iterator(self.source if self._position is None else None, directory)

    def _open(self, position: Position) -> Any:
        if not self._resuming:
            return self._feed.iterator(position, continuing=self._continuing)
        self._resuming = False
        return self._feed.restored_iterator(position, self._saved, continuing=self._continuing)


class LeftoverReader(FeedReader):
    """Reads batches that were taken from a source which cannot give them again, and then continues with that source.

    Args:
        parts: (source, first batch, number of batches), in order.
        then: the reader that continues after the parts.
        pass_ended: whether the pass ends with the last part; `then` has already gone on to the next pass.

    Attributes:
        ends_pass: whether the pass still has to end here.
    """

    def __init__(self, parts: list[tuple[Any, int, int]], then: FeedReader, pass_ended: bool):
        self._parts = [part for part in parts if part[2]]
        self.then, self.ends_pass = then, pass_ended
        self.available = 0

    @property
    def remaining(self) -> list[tuple[Any, int, int]]:
        """The batches that were not consumed yet, in the form of `parts`."""
        return [*([(self.source, self.start, self.available)] if self.available else []), *self._parts]

    @property
    def exhausted(self) -> bool:
        """True when there is nothing left but `then`."""
        return not (self.available or self._parts or self.ends_pass)

    def ready(self) -> bool:
        if not self.available:
            if not self._parts:
                self.ends_pass = False
                return False
            self.source, self.start, self.available = self._parts.pop(0)
        return True

    def consumed(self, n: int) -> None:
        assert self.available is not None
        self.start += n
        self.available -= n

    def close(self) -> None:
        self.then.close()


def open_reader(
    feed: Feed,
    position: Position,
    mode: str,
    *,
    continuing: bool = False,
    passes: int | None = None,
    saved: pathlib.Path | None = None,
    resuming: bool = False,
) -> FeedReader:
    """The reader for a feed.

    Args:
        feed: what to read.
        position: where to begin.
        mode: the program's mode; XLA cannot hold an iterator.
        continuing: whether an epoch may end within a pass, and the next one continues that pass (`steps_per_epoch`).
        passes: how many passes are wanted, None for any number.
        saved: folder into which `FeedReader.save` wrote at this position; None if it returned False.
        resuming: whether the position is that of a saved run, which has to continue exactly; if `saved` is given, it is.
    """
    if isinstance(feed, DatasetFeed) and mode != "xla" and not feed.in_blocks:
        return FeedIteratorReader(feed, position, continuing, saved, resuming or saved is not None)
    if isinstance(feed, DatasetFeed) and resuming:
        feed.check_that_it_goes_back(position)
    return FeedBlockReader(feed, position, passes)


def _passes(feed: Feed, position: Position, passes: int | None) -> Iterator[Block | None]:
    """Blocks of one pass after another, with None at the end of each."""
    for index in itertools.count(position.pass_index) if passes is None else range(position.pass_index, position.pass_index + passes):
        for block in feed.blocks(position if index == position.pass_index else Position(index)):
            fault_points.reached(fault_points.FEED)
            yield block
        yield None
