"""What each of several worker processes reads: its part of every batch. The global batch is the same at any number of workers.

ArrayFeed           each worker gathers its own rows only
DatasetFeed         each worker runs the pipeline and keeps its part of each batch; with AutoShardPolicy.OFF the pipeline gives this
                    worker's part already
NoFeed              nothing to cut
every other feed    each worker makes the batches, by index or in their order, and keeps its part of each
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loops.feeds.arrays import ArrayFeed
from loops.feeds.base import Block, Feed, Position
from loops.feeds.dataset import DatasetFeed
from loops.feeds.none import NoFeed
from loops.feeds.split import block_part, split

__all__ = ["part_of"]


def part_of(feed: Feed, index: int, count: int) -> Feed:
    """The feed that gives part `index` of `count` of each batch of `feed`; always the same object for the same feed.

    Raises:
        ValueError: for a `tf.data` pipeline with a sharding policy that would give other global batches.
    """
    if count == 1 or isinstance(feed, (NoFeed, _Part)):
        return feed
    parts: dict[tuple[int, int], Feed] = feed.__dict__.setdefault("_parts", {})
    if (index, count) not in parts:
        if isinstance(feed, ArrayFeed):
            parts[index, count] = feed.part(index, count)
        elif isinstance(feed, DatasetFeed):
            parts[index, count] = _part_of_dataset(feed, index, count)
        else:
            parts[index, count] = _Part(feed, index, count)
    return parts[index, count]


def _part_of_dataset(feed: DatasetFeed, index: int, count: int) -> DatasetFeed:
    policies = tf.data.experimental.AutoShardPolicy
    policy = feed.dataset.options().experimental_distribute.auto_shard_policy
    if policy in (policies.FILE, policies.HINT):
        raise ValueError(
            f"AutoShardPolicy.{policy.name} would give each worker other examples, and batches that depend on the number of workers. Shard "
            "the files yourself (files.shard(workers, index)), batch by the worker's share, and set AutoShardPolicy.OFF; or set DATA."
        )
    if policy == policies.OFF:
        return feed.with_dataset(feed.dataset)
    nested = isinstance(feed.element_spec, tuple)

    @tf.autograph.experimental.do_not_convert
    def own(*batch: Any) -> Any:
        return split(batch if nested else batch[0], count)[index]

    return feed.with_dataset(feed.dataset.map(own))


def _of_whole(name: str) -> Any:
    return property(lambda self: getattr(self.whole, name))


class _Part(Feed):
    """A part of each batch of a feed that is read in blocks."""

    steps_per_epoch = _of_whole("steps_per_epoch")
    endless = _of_whole("endless")
    seekable = _of_whole("seekable")
    prefetch = _of_whole("prefetch")
    told_apart = _of_whole("told_apart")
    passes_apart = _of_whole("passes_apart")

    def __init__(self, feed: Feed, index: int, count: int):
        self.whole, self._index, self._count = feed, index, count
        self.element_spec = tf.nest.map_structure(_of_any_size, feed.element_spec)

    def blocks(self, position: Position) -> Iterator[Block]:
        for block in self.whole.blocks(position):
            yield block_part(block, self._index, self._count)

    def end_pass(self) -> None:
        self.whole.end_pass()


def _of_any_size(spec: Any) -> Any:
    """The spec of a part of a batch."""
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
        return spec
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
