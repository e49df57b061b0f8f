"""One pass over a feed outside of training, in calls of a program; several worker processes do each call together. Knows no task."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops.cluster import Agreement
from loops.engine.program import Call, Program
from loops.feeds import Feed, Position
from loops.feeds.parts import part_of
from loops.feeds.reader import FeedIteratorReader, open_reader

__all__ = ["calls", "first_spec", "own_part"]


def own_part(feed: Feed, program: Program) -> Feed:
    """The part of a feed that this worker process reads."""
    cluster = program.step.cluster
    return part_of(feed, cluster.index, cluster.count)


def first_spec(program: Program, feed: Feed) -> Any:
    """Type specs of the first batch for which a program would trace its step; None if only reading would show them, once.

    A program of XLA traces for the shapes of a block, so that a dimension that the feed leaves open is one more number there.
    """
    spec = feed.element_spec
    if program.mode != "xla" or all(s is None or s.shape.is_fully_defined() for s in tf.nest.flatten(spec)):
        return spec
    if not (feed.seekable and feed.told_apart):
        return None
    return next(iter(feed.blocks(Position()))).batch_spec


def calls(
    program: Program,
    feed: Feed,
    steps: int | None,
    most: int,
    before: Callable[[int], bool],
    stopped: Callable[[], bool] | None,
    watched: bool = False,
    traced: Callable[[Any], None] | None = None,
) -> Any:
    """Yields (call, steps done) over one pass, or over `steps` steps.

    It ends if `before`, called with the steps done, returns True, or `stopped`, asked after every call; if one of several workers says so,
    all end, behind the same call; `watched`, the same on all, says that what `before` returns on one of them counts.

    `traced` gets the graph of the step before each call.
    """
    if feed.endless and steps is None:
        raise ValueError("The feed never ends; say how many batches to evaluate (steps=...).")
    if program.mode == "xla":
        feed.cut_like(program.blocks)
    reader = open_reader(feed, Position(), program.mode, continuing=False, passes=1)
    cluster = program.step.cluster
    several = cluster.several

    def ends() -> bool:
        return done > 0 and stopped is not None and stopped()

    agreement = Agreement(cluster, time.monotonic, lambda: (ends(), False))
    done = 0
    try:
        while steps is None or done < steps:
            if not reader.ready():
                agreement.before_call(0, settle=False)
                return
            known = reader.available
            n = min(most, most if known is None else known, most if steps is None else steps - done)
            n = agreement.before_call(n, settle=False)
            if agreement.interrupted:
                return
            ends_here = before(done)
            if cluster.any(ends_here)[0] if several and watched else ends_here and not several:
                return
            if traced is not None and (graph := program.graph_for(reader.source, feed.element_spec)) is not None:
                traced(graph)
            call: Call = program(reader.source, feed.element_spec, start=reader.start, n=n, first_step=done)
            did = n if known is not None else int(call.done)
            if did:
                yield call, did
            reader.consumed(did)
            done += did
            if ends() and not several:
                return
            if did < n:
                assert isinstance(reader, FeedIteratorReader)
                reader.end_pass()
                return
    finally:
        reader.close()
