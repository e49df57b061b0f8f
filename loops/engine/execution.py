"""Runs training steps: calls the program on what the reader gives, counts the steps, and finds a step that is not finite.

It knows neither epochs nor hooks. Between two `settle`s it reads nothing from the device, unless the source does not know its own length.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loops import fault_points
from loops.engine.batch_readers import eager_batch
from loops.engine.nonfinite import NonFiniteStep
from loops.engine.program import Call, Guard, Program
from loops.engine.progress import Progress
from loops.engine.recovery import PendingCall, Recovery, arrays_of
from loops.engine.rows import TraceLog
from loops.engine.step import GlobalStep
from loops.engine.timing import Accounts
from loops.feeds import Block, Feed, Position
from loops.feeds.reader import FeedIteratorReader, FeedReader, LeftoverReader, open_reader

__all__ = ["Execution"]

_CALL_SECONDS = 0.5
_MAX_CALL_STEPS = 1024
_MAX_HELD_BLOCKS = 16


class Execution:
    """Runs the steps of one training run.

    Args:
        program: what a call runs.
        feed: where batches come from.
        progress: the counters to advance.
        guarded: whether non-finite steps are to be found and taken back.
        continuing: whether an epoch may end within a pass, and the next one continues that pass (`steps_per_epoch`).
        resume: None for a new run; for one that goes on from a snapshot a tuple of the folder into which `save_feed` wrote, or of None
            if it returned False.
        clock: monotonic seconds, by which the length of calls is chosen.
        accounts: count where the time goes.

    Attributes:
        metrics: name -> metric that steps of the epoch to date returned.
        must_settle: True if `settle` has to be called before the next `advance`: a call met a non-finite step, or too many blocks are held.
    """

    def __init__(
        self,
        program: Program,
        feed: Feed,
        progress: Progress,
        *,
        guarded: bool,
        continuing: bool,
        resume: tuple[pathlib.Path | None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        accounts: Accounts | None = None,
    ):
        self.accounts = accounts if accounts is not None else Accounts()
        self.program, self.progress, self.trace = program, progress, TraceLog()
        self._guarded, self._continuing = guarded, continuing
        self._guard: Guard | None = None
        self._pending: list[PendingCall] = []
        self._last: tuple[Call, Any, int] | None = None
        self.metrics: dict[str, Any] = {}
        self._call_length, self._clock = CallLength(), clock
        self._examples_counted = 0
        self._bad_is_held = False
        self.must_settle = False
        self.trace.start(progress.step)
        self._open(feed, resume)

    @property
    def step(self) -> GlobalStep:
        return self.program.step

    def use(self, program: Program) -> None:
        """Continues with another program, after a retrace."""
        program.step.used = self.program.step.used
        self.program, self._guard = program, None

    def begin_epoch(self) -> None:
        """Forgets the sums and metrics of the epoch to date."""
        self.trace.new_epoch()
        self.metrics.clear()

    def switch(self, feed: Feed, position: Position, resume: tuple[pathlib.Path | None] | None = None) -> None:
        """Continues with another feed.

        Args:
            feed: the feed.
            position: the next batch to read.
            resume: as for a new execution, if the position is that of a saved run.
        """
        self._reader.close()
        self.progress.pass_index, self.progress.batch = position.pass_index, position.batch
        self._guard = None  # it may hold what was recorded of an iterator
        self._open(feed, resume)

    def advance(self, limit: int) -> bool:
        """Does at most `limit` steps in one call.

        Returns:
            True if the pass over the feed has ended.
        """
        if self._stale:
            self._open(self.feed)
        if self._pass_is_over():
            self.progress.end_pass()
            return True
        known = self._reader.available
        n = min(limit, self._call_length.limit(), _MAX_CALL_STEPS if known is None else known)
        begin = self._clock()
        source, start = self._reader.source, self._reader.start
        self._last = None  # releases the block of the last call, so that a used-up block does not stay in memory
        with self.accounts.of("compute"):
            call = self._call(source, start, n)
            done = n if known is not None else int(call.done)
        self._last = (call, source, start + n - 1)
        held = _uncounted(source) if self._guarded and not self.feed.seekable else None
        self._pending.append(PendingCall(call, n, dataclasses.replace(self.progress), held, start))
        self.must_settle = len(self._pending) >= _MAX_HELD_BLOCKS and isinstance(held, Block)
        self._call_length.measured(self._clock() - begin, done)
        self._reader.consumed(done)
        self.progress.advance(done, 0)
        fault_points.reached(fault_points.STEP, done)
        if known is not None:
            ended = self._reader.available == 0 and self._pass_is_over()
        else:
            self._pending[-1] = dataclasses.replace(self._pending[-1], n=done)
            self.must_settle = call.guard is not None and not bool(call.guard.finite)
            ended = done < n and not self.must_settle
            if ended:
                assert isinstance(self._reader, FeedIteratorReader)
                self._reader.end_pass()
        if ended:
            self.progress.end_pass()
        return ended

    def settle(self) -> NonFiniteStep | None:
        """Reads whether all steps since the last `settle` were finite; if not, restores the state from just before the bad step.

        Returns:
            The bad step, None if all were finite.
        """
        guard, pending, self._pending, self.must_settle = self._guard, self._pending, [], False
        with self.accounts.of("compute"):
            bad = self._read_results(guard, pending)
            if self.step.clock is not None:
                self.accounts.move(self.step.clock.take(), "compute", "data")
        return bad

    def _read_results(self, guard: Guard | None, pending: list[PendingCall]) -> NonFiniteStep | None:
        bad = None
        if guard is not None and not bool(guard.finite):
            broken = next(i for i, p in enumerate(pending) if p.call.guard is not None and not bool(p.call.guard.finite))
            for p in pending[:broken]:
                self.trace.append(p.call.rows, p.n, p.call.meta.spec)
            bad = self._take_back(pending[broken:], guard)
        else:
            for p in pending:
                self.trace.append(p.call.rows, p.n, p.call.meta.spec)
        self.trace.read()
        self.progress.examples += self.trace.examples - self._examples_counted
        self._examples_counted = self.trace.examples
        return bad

    def skip_batch(self) -> None:
        """Drops the batch of the bad step that `settle` has just taken back."""
        self.progress.batch += 1
        if self._bad_is_held and isinstance(self._reader, LeftoverReader) and self._reader.ready():
            self._reader.consumed(1)

    def load_trace(self, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
        """Loads the trace of a restored run; pending calls are forgotten."""
        self.trace.load_state(arrays, described)
        self._pending, self._guard, self._last, self._examples_counted, self.must_settle = [], None, None, 0, False

    def build(self) -> None:
        """Traces the step for the feed's batches, so that every variable exists."""
        with self.accounts.of("compile"):
            self.step.concrete(self.feed.element_spec)

    @property
    def waits_within_calls(self) -> bool:
        """Whether calls include waiting for batches: the program pulls them from an iterator, and no clock separates the two."""
        return isinstance(self._reader, FeedIteratorReader) and self.step.clock is None

    def save_feed(self, directory: pathlib.Path) -> bool:
        """Writes the position of the feed into `directory`; False if it wrote nothing, so that a resumed run has to count batches."""
        return self._reader.save(directory)

    def observed(self) -> dict[str, Any]:
        """The tensors that hooks observe, of the last step, as arrays."""
        if self._last is None:
            return {}
        return dict(arrays_of(self._last[0].observed))

    def batch(self) -> Any:
        """The batch of the last step, as arrays."""
        if self._last is None:
            return None
        call, source, index = self._last
        if call.last_batch is not None:
            return arrays_of(call.last_batch)
        if "batch" in call.observed:
            return arrays_of(call.observed["batch"])
        if isinstance(self._reader, FeedIteratorReader):
            raise ValueError(
                "The batch of a tf.data iterator stays in the program; give the hook `observes = {'batch'}` to have it carried out."
            )
        return arrays_of(eager_batch(source, index))

    def rewind(self) -> None:
        """Stops the feed's threads; the next `advance` reads from the position in `progress`. Only for a feed that is seekable."""
        if self.feed.seekable:
            self._reader.close()
            self._stale = True

    def _open(self, feed: Feed, resume: tuple[pathlib.Path | None] | None = None) -> None:
        self.feed, self._stale = feed, False
        saved, resuming = (resume[0], True) if resume is not None else (None, False)
        self._reader: FeedReader = open_reader(
            feed, self.progress.position, self.program.mode, continuing=self._continuing, saved=saved, resuming=resuming
        )

    def _call(self, source: Any, start: int, n: int) -> Call:
        eager = self.program.mode == "eager"
        if self._guarded and (self._guard is None or (eager and bool(self._guard.finite))):
            # A guard needs all variables. Tracing creates them; in eager mode the first step may, so each call gets a new guard.
            self.step.build(self.feed.element_spec) if eager else self.step.concrete(self.feed.element_spec)
            self._guard = self._new_guard()
        compiled, clock = self.program.compilations, self.step.clock
        if clock is not None:
            clock.call_begins()
        call = self.program(source, self.feed.element_spec, start=start, n=n, first_step=self.progress.step, guard=self._guard)
        if self.program.compilations > compiled:
            self.accounts.count_as("compile")
            if clock is not None:
                clock.take()  # waiting is counted as compiling, too
        self._guard = call.guard
        self.metrics.update(call.meta.metrics)
        return call

    def _new_guard(self) -> Guard:
        return self.program.new_guard()

    def _pass_is_over(self) -> bool:
        if isinstance(self._reader, LeftoverReader) and self._reader.exhausted:
            self._reader = self._reader.then
        with self.accounts.of("data"):
            return not self._reader.ready()

    def _take_back(self, pending: list[PendingCall], guard: Guard) -> NonFiniteStep:
        recovery = Recovery(self.program, self.feed, self.progress, self.trace, self._new_guard)
        taken_back = recovery.take_back(pending, guard, self._reader)
        self._guard, self._bad_is_held = None, taken_back.holds_bad
        if taken_back.reader is None:
            self.rewind()
        else:
            self._reader = taken_back.reader
        return taken_back.bad


class CallLength:
    """Keeps a call shorter than about half a second, so that Ctrl-C and time triggers are answered in time."""

    def __init__(self) -> None:
        self._calls = 0
        self._seconds_per_step = 0.0

    def limit(self) -> int:
        if self._calls < 2:  # the first call traces and compiles, the second is the first that can be measured
            return 1 if self._calls == 0 else 8
        return max(1, int(_CALL_SECONDS / max(self._seconds_per_step, 1e-9)))

    def measured(self, seconds: float, steps: int) -> None:
        self._calls += 1
        if self._calls > 1 and steps:
            # A single slow call (a new block shape is compiled) shortens the next call, not all that follow.
            limit = 4 * self._seconds_per_step if self._calls > 2 else float("inf")
            self._seconds_per_step = min(seconds / steps, limit)


def _uncounted(source: Any) -> Any:
    """A copy of a block that the prefetcher does not count as in use, so that it makes the next block all the same."""
    return dataclasses.replace(source) if isinstance(source, Block) else source
