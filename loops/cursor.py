"""Reads a feed pass after pass, for a loop: what to hand to the program next, and where the feed stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from loops.feeds import Block, DatasetFeed, Feed, Position
from loops.feeds.prefetch import Prefetcher

__all__ = ["Cursor", "open_cursor"]


class Cursor:
    """Stands in a feed at the next batch that was not handed out.

    Attributes:
        source: what the program is called with: a `Block` or an iterator.
        start: first batch of the block.
        available: steps that can be done from here in one call; None if only the program finds out.
    """

    source: Any
    start: int = 0
    available: int | None = None

    def ready(self) -> bool:
        """Makes `source` ready; False when the pass has ended (the next pass begins then)."""
        raise NotImplementedError

    def consumed(self, n: int) -> None:
        """Moves on by `n` batches."""

    def close(self) -> None:
        """Releases threads."""


class BlockCursor(Cursor):
    """Reads blocks, made ready in the background across the ends of passes."""

    def __init__(self, feed: Feed, position: Position, passes: int | None):
        items = _passes(feed, position, passes)
        self._prefetcher = Prefetcher(items, feed.prefetch) if feed.prefetch else None
        self._items: Iterator[Block | None] = iter(self._prefetcher or items)
        self.available = 0

    def ready(self) -> bool:
        if self.available:
            return True
        block = next(self._items, None)
        if block is None:
            return False
        self.source, self.start, self.available = block, 0, block.n
        return True

    def consumed(self, n: int) -> None:
        assert self.available is not None
        self.start += n
        self.available -= n

    def close(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()


class IteratorCursor(Cursor):
    """Hands out the `tf.data` iterator of the pass in progress."""

    def __init__(self, feed: DatasetFeed, position: Position, continuing: bool):
        self._feed, self._continuing = feed, continuing
        self._position: Position | None = position
        self._left: int | None = None

    def ready(self) -> bool:
        if self._position is not None:
            self.source = self._feed.iterator(self._position, continuing=self._continuing)
            total = self._feed.steps_per_epoch
            self._left = total - self._position.batch if total is not None else None
            self._position = None
        self.available = self._left
        if self._left == 0:
            self.end_pass()
            return False
        return True

    def consumed(self, n: int) -> None:
        if self._left is not None:
            self._left -= n

    def end_pass(self) -> None:
        """The program found the iterator at its end."""
        self._feed.end_pass()
        self._position = Position()


def open_cursor(feed: Feed, position: Position, mode: str, *, continuing: bool = False, passes: int | None = None) -> Cursor:
    """The cursor for a feed.

    Args:
        feed: what to read.
        position: where to begin.
        mode: the program's mode; XLA cannot hold an iterator.
        continuing: whether an epoch is not a pass (`steps_per_epoch`).
        passes: how many passes are wanted, None for any number.
    """
    if isinstance(feed, DatasetFeed) and mode != "xla":
        return IteratorCursor(feed, position, continuing)
    return BlockCursor(feed, position, passes)


def _passes(feed: Feed, position: Position, passes: int | None) -> Iterator[Block | None]:
    """Blocks of one pass after another, with None at the end of each."""
    for index in itertools.count(position.pass_index) if passes is None else range(position.pass_index, position.pass_index + passes):
        empty = True
        for block in feed.blocks(position if index == position.pass_index else Position(index)):
            empty = False
            yield block
        if empty and index != position.pass_index:
            raise ValueError(f"{type(feed).__name__} gave no batch in pass {index}; a feed has to give batches in every pass.")
        yield None
