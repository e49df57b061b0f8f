"""A feed for steps that make their own data: reinforcement learning, simulations, optimisation of a fixed objective."""

from __future__ import annotations

from collections.abc import Iterator

from loops.feeds.base import Block, Feed, Position

__all__ = ["NoFeed"]

_BLOCK_STEPS = 1024


class NoFeed(Feed):
    """Gives `None` as every batch.

    Args:
        steps_per_epoch: steps that make up an epoch.

    Example:
        >>> NoFeed(steps_per_epoch=100).steps_per_epoch
        100
    """

    element_spec = None
    prefetch = 0
    told_apart = True

    def __init__(self, steps_per_epoch: int):
        if isinstance(steps_per_epoch, bool) or int(steps_per_epoch) != steps_per_epoch or steps_per_epoch < 1:
            raise ValueError(f"`steps_per_epoch` must be a whole number, 1 or more; got {steps_per_epoch!r}.")
        self.steps_per_epoch = int(steps_per_epoch)

    def blocks(self, position: Position) -> Iterator[Block]:
        assert self.steps_per_epoch is not None
        left = self.steps_per_epoch - position.batch
        while left > 0:
            yield Block(None, min(left, _BLOCK_STEPS))
            left -= _BLOCK_STEPS
