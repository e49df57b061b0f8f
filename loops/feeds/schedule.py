"""Which feed a run reads in which epoch, said beforehand, so that a resumed run knows it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loops.feeds.base import Feed, checked_feed

__all__ = ["FeedSchedule"]


class FeedSchedule:
    """Feeds by the epoch from which on they are read: a curriculum. Give it to `loops.TrainLoop` or `loops.fit` in place of a feed.

    Each feed is read from its beginning when its first epoch begins, even if the feed before it was in the middle of a pass. Feeds may
    differ in everything: kind, number and shape of batches.

    A hook may also assign `loop.feed` at a look, by what it sees in the logs; what a resumed run makes of that is in the documentation of
    `TrainLoop.feed`.

    Args:
        feeds: 0-based epoch -> feed. There has to be one for epoch 0.

    Raises:
        ValueError: if there is none for epoch 0, an epoch is no whole number, or a feed that cannot be read from the beginning again
            (tf.data, a Python generator) is listed twice.
        TypeError: if something is no feed.

    Example:
        >>> import keras, loops, numpy as np
        >>> x = np.ones([64, 4])
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> easy, hard = loops.ArrayFeed((x[:32], x[:32, :1])), loops.ArrayFeed((x, x[:, :1]))
        >>> loop = loops.TrainLoop(task, loops.FeedSchedule({0: easy, 2: hard}))
        >>> history = loop.run(epochs=3)
        >>> loop.progress.step, loop.feed is hard
        (4, True)
    """

    def __init__(self, feeds: Mapping[int, Feed]):
        for epoch in feeds:
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
                raise ValueError(f"FeedSchedule takes epochs, whole numbers from 0 on; got {epoch!r}.")
        if 0 not in feeds:
            raise ValueError(f"FeedSchedule needs a feed for epoch 0; it got feeds for {sorted(feeds) or 'no epoch'}.")
        self.feeds = {epoch: checked_feed(feeds[epoch], f"the feed from epoch {epoch} on") for epoch in sorted(feeds)}
        once: set[int] = set()
        for epoch, feed in self.feeds.items():
            if not feed.seekable and id(feed) in once:
                raise ValueError(
                    f"The {type(feed).__name__} of epoch {epoch} is listed for an earlier epoch too, and cannot be read from the beginning "
                    "again in the same way; make another one for each place."
                )
            once.add(id(feed))

    def __repr__(self) -> str:
        return f"FeedSchedule({self.feeds!r})"

    def first_epoch(self, epoch: int) -> int:
        """The epoch from which on the feed of `epoch` is read.

        Example:
            >>> import loops
            >>> FeedSchedule({0: loops.NoFeed(10), 5: loops.NoFeed(20)}).first_epoch(7)
            5
        """
        return max(first for first in self.feeds if first <= epoch)

    def describe(self) -> dict[str, Any]:
        """The properties that must not change when a run is resumed, JSON-able."""
        return {"schedule": {str(epoch): feed.describe() for epoch, feed in self.feeds.items()}}
