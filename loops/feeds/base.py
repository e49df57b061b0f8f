"""What a feed is: a data source cut into blocks of batches. A feed knows no model and no loop."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

__all__ = ["Block", "Feed", "Position", "block_steps", "checked_feed"]

_BLOCK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class Position:
    """The next batch that has not been consumed.

    Attributes:
        pass_index: 0-based number of the pass over the data.
        batch: batches of that pass that were consumed.
    """

    pass_index: int = 0
    batch: int = 0


@dataclasses.dataclass(frozen=True)
class Block:
    """Up to K consecutive batches of one signature.

    Attributes:
        tensors: nested structure of tensors `[K, B, ...]`; batches from `n` on are padding.
        n: number of valid batches, 1 <= n <= K.
    """

    tensors: Any
    n: int

    @property
    def capacity(self) -> int:
        """K; for a block without tensors the next power of two, so that few different ones occur."""
        leaves = [leaf for leaf in tf.nest.flatten(self.tensors) if leaf is not None]
        return int(leaves[0].shape[0]) if leaves else 1 << (self.n - 1).bit_length()


class Feed(abc.ABC):
    """A data source that a loop can read in blocks, from any position.

    Attributes:
        element_spec: nested structure of `tf.TypeSpec` of one batch.
        steps_per_epoch: batches in one pass, or None if that is not known beforehand.
        endless: True if a pass never ends.
        seekable: True if `blocks` gives the same batches again when it is asked for a position again.
        prefetch: how many blocks are in memory at a time: that which is trained on, and the next, made meanwhile in a background thread; 0
            has each made when it is needed, for data that depends on what was learnt.
        passes_apart: True if a pass may be read only when the one before was trained on; `end_pass` is called in between.
    """

    element_spec: Any
    steps_per_epoch: int | None = None
    endless: bool = False
    seekable: bool = True
    prefetch: int = 2
    passes_apart: bool = False

    @abc.abstractmethod
    def blocks(self, position: Position) -> Iterator[Block]:
        """Yields the blocks of pass `position.pass_index`, beginning with batch `position.batch`."""

    def end_pass(self) -> None:
        """All batches of the pass that was begun last were trained on; called of feeds with `passes_apart`, in the training thread."""

    def describe(self) -> dict[str, Any]:
        """What has to be the same for a run to be carried on, JSON-able."""
        return {"feed": type(self).__name__, "batch": str(self.element_spec), "batches": self.steps_per_epoch}

    def findings(self) -> list[str]:
        """Sentences on what would make a resumed run see other data, or slow; said before training."""
        return []

    def state_dict(self, position: Position) -> dict[str, Any]:
        """What is needed to read on from `position` in another process, JSON-able."""
        return dataclasses.asdict(position)

    def load_state_dict(self, state: dict[str, Any]) -> Position:
        """The position that `state_dict` described."""
        return Position(**state)


def block_steps(batch_bytes: int, most: int) -> int:
    """How many batches of this size a block holds: some megabytes, at most `most`."""
    return max(1, min(_BLOCK_BYTES // max(1, batch_bytes), most))


def checked_feed(feed: Any, what: str) -> Feed:
    """`feed` if it is one.

    Raises:
        TypeError: if not.
    """
    if isinstance(feed, tf.data.Dataset):
        raise TypeError(f"`{what}` is a tf.data.Dataset; wrap it: loops.DatasetFeed(dataset).")
    if not isinstance(feed, Feed):
        raise TypeError(f"`{what}` must be a loops feed (ArrayFeed, DatasetFeed, NoFeed or your own); got {type(feed).__name__}.")
    return feed
