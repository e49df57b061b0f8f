"""Batches that are held until it is known that the steps on them were finite, because their feed cannot give them again."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from loops.engine.batch_readers import eager_batch
from loops.feeds import Block

__all__ = ["MOST_STEPS", "alone", "steps_of_bytes", "too_many", "uncounted"]

#: Steps of one call on an iterator, which has no end that would be known.
MOST_STEPS = 1024
_MOST_BYTES = 256 << 20
_MOST_CALLS = 16


def too_many(calls: list[int], most: int) -> bool:
    """Whether the batches of these calls, of so many steps each, are as many as may be held; `most` is the number of steps for that."""
    return len(calls) >= _MOST_CALLS or sum(calls) >= most


def uncounted(source: Any) -> Any:
    """A copy of a block that the prefetcher does not count as in use, so that it makes the next block all the same."""
    return dataclasses.replace(source) if isinstance(source, Block) else source


def alone(source: Block, index: int) -> tuple[Block, int]:
    """A block of nothing but batch `index` of another one, and its place in it."""
    return Block(tf.nest.map_structure(lambda t: None if t is None else t[None], eager_batch(source, index)), 1), 0


def steps_of_bytes(spec: Any) -> int:
    """How many batches may be held at a time; a dimension that is not known is taken to be 64."""
    components = tf.nest.flatten(spec, expand_composites=True)
    sizes = [c.dtype.size * int(np.prod([64 if d is None else d for d in c.shape or [None]])) for c in components if c is not None]
    return max(1, min(MOST_STEPS, _MOST_BYTES // max(1, sum(sizes))))
