"""Takes back a call with a non-finite step: restores the state from before the call, repeats its good steps, and finds the bad one.

A call reports only that one of its steps was bad. To reach the state right before that step, the good steps run once more on the same
batches, one at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops.engine.batch_readers import Recording, eager_batch
from loops.engine.nonfinite import NonFiniteStep
from loops.engine.program import Call, Guard, Program
from loops.engine.progress import Progress
from loops.engine.rows import TraceLog
from loops.feeds import Block, Feed
from loops.feeds.reader import FeedIteratorReader, FeedReader, LeftoverReader

__all__ = ["PendingCall", "Recovery", "TakenBack", "arrays_of"]


@dataclasses.dataclass(frozen=True)
class PendingCall:
    """A call whose results were not read yet.

    Attributes:
        call: its results.
        n: number of steps that it was to do; the number that it did, where that is known.
        before: the counters before the call.
        source: its source, if the feed cannot give that again, else None.
        start: first batch of the source.
    """

    call: Call
    n: int
    before: Progress
    source: Any = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class TakenBack:
    """Where a run stands after a bad step was taken back.

    Attributes:
        bad: the bad step.
        reader: gives the batches from the bad one on (in eager mode from the next one on, if an iterator gave them); None if the feed has
            to be read again from the position in the counters.
        holds_bad: whether `reader` holds the bad batch.
    """

    bad: NonFiniteStep
    reader: FeedReader | None
    holds_bad: bool


class Recovery:
    """Takes calls back.

    Args:
        program: what the calls ran.
        feed: where their batches came from.
        progress: the counters; they are set back.
        trace: takes the rows of the repeated steps.
        new_guard: makes a guard over the current state.
    """

    def __init__(self, program: Program, feed: Feed, progress: Progress, trace: TraceLog, new_guard: Callable[[], Guard]):
        self._program, self._feed, self._progress, self._trace = program, feed, progress, trace
        self._new_guard = new_guard

    def take_back(self, pending: list[PendingCall], guard: Guard, reader: FeedReader) -> TakenBack:
        """Restores the state from before the first of `pending`, repeats its good steps, and stops before the bad one.

        Args:
            pending: the call with the bad step, and the calls after it, which did nothing.
            guard: the guard after the last call; its backup is the state from before the bad call.
            reader: the reader that the calls took batches from.
        """
        broken, pass_ended = pending[0], self._progress.pass_index > pending[0].before.pass_index
        guard.restore()
        for field in dataclasses.fields(Progress):
            setattr(self._progress, field.name, getattr(broken.before, field.name))
        if self._feed.seekable:
            reader.close()  # two readers of one feed at a time are not allowed
        if self._program.mode == "eager":
            source, start, bad = broken.source, broken.start, self._bad_eager_step(broken)
        else:
            source, start = self._source_again(broken, guard)
            bad = self._replay(self._batches_again(source, start, broken.n))
        if self._feed.seekable:
            return TakenBack(bad, None, False)
        rest = self._rest(pending, source, start, pass_ended, reader)
        return TakenBack(bad, rest, self._program.mode != "eager" or isinstance(source, Block))

    def _bad_eager_step(self, broken: PendingCall) -> NonFiniteStep:
        """In eager mode every step has a backup of its own, so the restored state is already that before the bad step."""
        good = int(broken.call.done) - 1
        self._trace.append(broken.call.rows, good, broken.call.meta.spec)
        self._progress.advance(good, 0)
        loss_finite = bool(np.isfinite(np.asarray(broken.call.rows)[good, 1]))
        return NonFiniteStep(self._progress.step + 1, arrays_of(broken.call.last_batch), loss_finite)

    def _source_again(self, broken: PendingCall, guard: Guard) -> tuple[Any, int]:
        if self._feed.seekable:
            return None, 0
        if isinstance(broken.source, Block | Recording):
            return broken.source, broken.start
        return Recording(guard.recorded, self._feed.element_spec), 0

    def _batches_again(self, source: Any, start: int, n: int) -> Iterator[tuple[Any, int]]:
        """Source and index of each of the `n` batches of the call."""
        if source is not None:
            return ((source, start + i) for i in range(n))
        blocks = self._feed.blocks(self._progress.position)
        return itertools.islice(((block, i) for block in blocks for i in range(block.n)), n)

    def _replay(self, batches: Iterator[tuple[Any, int]]) -> NonFiniteStep:
        spec = self._feed.element_spec
        for source, index in batches:
            before = self._new_guard()
            call = self._program(source, spec, start=index, n=1, first_step=self._progress.step, guard=before)
            assert call.guard is not None
            if not bool(call.guard.finite):
                call.guard.restore()
                loss_finite = bool(np.isfinite(np.asarray(call.rows)[0, 1]))
                return NonFiniteStep(self._progress.step + 1, arrays_of(eager_batch(source, index)), loss_finite)
            self._trace.append(call.rows, 1, call.meta.spec)
            self._progress.advance(1, 0)
        raise RuntimeError(
            f"The steps up to {self._progress.step} became non-finite once and not again: the step is not deterministic. "
            "Draw random numbers with self.seed(), and make the data pipeline deterministic."
        )

    def _rest(self, pending: list[PendingCall], source: Any, start: int, pass_ended: bool, reader: FeedReader) -> LeftoverReader:
        """A reader that gives the bad batch, then those of the later calls, then those of the feed."""
        good = self._progress.step - pending[0].before.step
        then = reader.then if isinstance(reader, LeftoverReader) else reader
        rest = reader.remaining if isinstance(reader, LeftoverReader) else []
        if isinstance(pending[0].source, Block | Recording):
            parts = [(source, start + good, pending[0].n - good), *((p.source, p.start, p.n) for p in pending[1:])]
        else:
            # Calls after the bad one pulled nothing. In eager mode the iterator has already given the bad batch, and nothing recorded it.
            eager = self._program.mode == "eager"
            pulled = good + 1 if eager else source.length
            parts = [] if eager else [(source, good, pulled - good)]
            left = sum(p.n for p in pending) - pulled
            if pass_ended:
                parts.append((pending[0].source, 0, left))
            elif isinstance(then, FeedIteratorReader):
                then.put_back(left)
        return LeftoverReader([*parts, *rest], then, pass_ended)


def arrays_of(structure: Any) -> Any:
    """`structure` with its tensors copied to the host as arrays; None stays None."""
    return tf.nest.map_structure(lambda t: None if t is None else t.numpy() if hasattr(t, "numpy") else t, structure)
