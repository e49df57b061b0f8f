"""Runs training steps: calls the program on what the reader gives, counts the steps, and finds a step that is not finite.

It knows neither epochs nor hooks. Between two `settle`s it reads nothing from the device, unless the source does not know its own length.

    advance   if nothing is unsettled: take a backup of what the step writes, and of the counters
              run a call; if it fails: go back to the backup
    settle    read whether all steps were finite; if not: go back to the backup, and forward again to the step before the bad one
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from loops import fault_points
from loops.cluster import Agreement
from loops.engine.backup import Backup
from loops.engine.call_length import CallLength
from loops.engine.held_batches import MOST_STEPS, steps_of_bytes, too_many, uncounted
from loops.engine.last_call import LastCall
from loops.engine.nonfinite import NonFiniteStep
from loops.engine.program import Call, Program
from loops.engine.progress import Progress
from loops.engine.recovery import PendingCall, Recovery, Unsettled
from loops.engine.rows import TraceLog
from loops.engine.state_writes import StateWrites
from loops.engine.step import GlobalStep
from loops.engine.timing import Accounts
from loops.feeds import Feed, Position
from loops.feeds.parts import part_of
from loops.feeds.reader import FeedIteratorReader, FeedReader, LeftoverReader, open_reader

__all__ = ["Execution"]

_NO_LIMIT = 1 << 62
# An error costs the steps since the last settled state, and a step that is not finite makes them run again.
_SETTLE_SECONDS = 5.0


class Execution:
    """Runs the steps of one training run.

    Args:
        program: what a call runs.
        feed: where batches come from.
        progress: the counters to advance.
        guarded: whether non-finite steps are to be found and taken back.
        continuing: whether an epoch may end within a pass, and the next one continues that pass (`steps_per_epoch`).
        resume: None for a new run; else a tuple of the folder into which `save_feed` wrote, or of None if it returned False.
        clock: monotonic seconds, by which the length of calls is chosen.
        accounts: count where the time goes.
        agreement: how worker processes agree on their calls; None for one that agrees on nothing else.

    Attributes:
        metrics: name -> metric that steps of the epoch to date returned.
        must_settle: True if `settle` has to be called before the next `advance`: a call met a non-finite step, the
            last time is long ago, or too many batches are held that the feed cannot give again.
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
        agreement: Agreement | None = None,
    ):
        self.accounts = accounts if accounts is not None else Accounts()
        self.program, self.progress, self.trace = program, progress, TraceLog()
        self._guarded, self._continuing, self._long = guarded, continuing, False
        self._agreement = agreement or Agreement(program.step.cluster, clock, lambda: (False, False))
        self._unsettled: Unsettled | None = None
        self._finite: Any = None
        self._held: Feed | None = None
        self._writes = StateWrites(program)
        self._last: LastCall | None = None
        self.metrics: dict[str, Any] = {}
        self._call_length, self._clock = CallLength(), clock
        self._examples_counted, self._bad_is_held, self.must_settle = 0, False, False
        self.trace.start(progress.step)
        self._open(feed, resume)

    @property
    def step(self) -> GlobalStep:
        return self.program.step

    def use(self, program: Program) -> None:
        """Continues with another program, after a retrace."""
        program.step.used.continues(self.program.step.used)
        self.program, self._writes, self._finite = program, StateWrites(program), None

    def begin_epoch(self) -> None:
        """Forgets the sums and metrics of the epoch to date."""
        self.trace.new_epoch()
        self.metrics.clear()

    def switch(self, feed: Feed, position: Position, resume: tuple[pathlib.Path | None] | None = None) -> None:
        """Continues with another feed at `position`; `resume` is as for a new execution, if a saved run stood there."""
        self._let_go()
        self.progress.pass_index, self.progress.batch = position.pass_index, position.batch
        self._open(feed, resume)

    def advance(self, limit: int) -> bool:
        """Does at most `limit` steps in one call, and returns whether that ended the pass over the feed.

        If it fails, variables and counters are those of the last settled state.
        """
        if self._stale:
            self._open(self.feed, resume=None if self.feed.seekable else (None,))
        if self._pass_is_over():
            self._agreement.before_call(0, settle=False)
            self.progress.end_pass()
            return True
        try:
            short, halted = self._run_call(limit)
        except BaseException:
            self.abandon()
            raise
        return self._passed_the_end(short, halted)

    def _run_call(self, limit: int) -> tuple[bool, bool]:
        """Returns whether a source of unknown length gave fewer batches than wanted, and whether that is because a step was bad."""
        known = self._reader.available
        n = min(limit, self._call_length.limit(), MOST_STEPS if known is None else known, self._most_held)
        if not (n := self._agreement.before_call(n, settle=self._long)):
            self.must_settle |= self._agreement.settle
            return False, False
        begin = self._clock()
        source, start = self._reader.source, self._reader.start
        self._last = None  # releases the block of the last call, so that a used-up block does not stay in memory
        with self.accounts.of("compute"):
            unsettled = self._begin_call(source)
            call = self._call(source, start, n, unsettled)
            done = n if known is not None else int(call.done)
        self._last = LastCall(call, source, start + n - 1)
        held = uncounted(source) if self._guarded and not self.feed.seekable else None
        failed = call if call.undo is not None and not bool(call.finite) else None
        before = dataclasses.replace(self.progress)
        unsettled.calls.append(PendingCall(call.rows, done, before, call.meta.spec, call.recorded, held, start, failed, call.waited))
        self._call_length.measured(self._clock() - begin, done, first=len(unsettled.calls) == 1)
        self._reader.consumed(done)
        self.progress.advance(done, 0)
        fault_points.reached(fault_points.STEP, done)
        halted = known is None and call.finite is not None and not bool(call.finite)
        self._long = self._is_long(unsettled, held)
        self.must_settle = halted or (self._long and not self.step.cluster.several)  # several agree on it, as their clocks differ
        return done < n, halted

    def _passed_the_end(self, short: bool, halted: bool) -> bool:
        """Whether the last call has done the last batch of the pass; if so, the next pass begins."""
        if self._reader.available is not None:
            ended = self._block_passed_the_end()
        elif ended := short and not halted:
            assert isinstance(self._reader, FeedIteratorReader)
            self._reader.end_pass()
        if ended:
            self.progress.end_pass()
        return ended

    def _block_passed_the_end(self) -> bool:
        # Blocks of other workers end at other places; what all know is the number of batches, or it has to be agreed on.
        if self.step.cluster.several and self.feed.steps_per_epoch is not None:
            return self.progress.batch >= self.feed.steps_per_epoch and self._pass_is_over()
        ended = self._reader.available == 0 and self._pass_is_over()
        self._agreement.before_call(0 if ended else 1, settle=False)
        return ended

    def _is_long(self, unsettled: Unsettled, held: Any) -> bool:
        many = held is not None and too_many([p.n for p in unsettled.calls], self._most_held)
        return many or self._clock() - unsettled.begun > _SETTLE_SECONDS

    def abandon(self) -> None:
        """Goes back to the last settled state, if there were calls since then. The feed is read again from there."""
        unsettled, self._unsettled = self._unsettled, None
        self._finite, self._last, self.must_settle = None, None, False
        if unsettled is not None:
            unsettled.go_back(self.progress)
            self._reader.close()
            self._stale = True

    def settle(self) -> NonFiniteStep | None:
        """Reads whether all steps since the last `settle` were finite; if not, restores the state from just before the bad step.

        Returns:
            The bad step, None if all were finite.
        """
        try:
            with self.accounts.of("compute"):
                bad = self._read_results()
        except BaseException:
            self.abandon()
            raise
        return bad

    def _read_results(self) -> NonFiniteStep | None:
        unsettled, bad = self._unsettled, None
        if unsettled is not None:
            waited = [float(p.waited) for p in unsettled.calls if p.waited is not None]
            self.accounts.move(sum(waited), "compute", "data")
            rows = [(p.rows, p.n, p.spec) for p in unsettled.calls]
            if self._guarded and not self._all_finite(unsettled):
                bad, rows = self._take_back(unsettled)
            for call_rows in rows:
                self.trace.append(*call_rows)
        self.trace.read()
        self.progress.examples += self.trace.examples - self._examples_counted
        self._examples_counted = self.trace.examples
        self._unsettled, self._finite, self.must_settle, self._long = None, None, False, False
        return bad

    def _all_finite(self, unsettled: Unsettled) -> bool:
        # In eager mode the state was looked at after every step.
        return bool(self._finite) and (self.program.mode == "eager" or self.program.check(unsettled.backup))

    def skip_batch(self) -> None:
        """Drops the batch of the bad step that `settle` has just taken back."""
        self.progress.batch += 1
        if self._bad_is_held and isinstance(self._reader, LeftoverReader) and self._reader.ready():
            self._reader.consumed(1)

    def load_trace(self, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
        """Loads the trace of a restored run; unsettled calls are forgotten."""
        self.trace.load_state(arrays, described)
        self._unsettled, self._finite, self._last, self._examples_counted, self.must_settle = None, None, None, 0, False

    def build(self) -> None:
        """Traces the step for the feed's batches, so that every variable exists."""
        with self.accounts.of("compile"):
            self.step.concrete(self.feed.element_spec)

    def save_feed(self, directory: pathlib.Path) -> bool:
        """Writes the position of the feed into `directory`; False if it wrote nothing, so that a resumed run has to count batches."""
        return self._reader.save(directory)

    def observed(self) -> dict[str, Any]:
        """The tensors that hooks observe, of the last step, as arrays."""
        return {} if self._last is None else self._last.observed()

    def batch(self) -> Any:
        """The batch of the last step, as arrays."""
        return None if self._last is None else self._last.batch()

    def run_begins(self) -> None:
        """Before a further run: data of which a run keeps a copy is copied as it is now, whatever was opened since the last one."""
        if self._held is not None and self._held is not self.feed:
            self._let_go()
        if self._stale and self.feed.seekable:
            self._open(self.feed)

    def rewind(self) -> None:
        """Stops the feed's threads; the next `advance` reads from the position in `progress`. Only for a feed that is seekable."""
        if self.feed.seekable:
            self._reader.close()
            self._stale = True

    def run_ends(self) -> None:
        """Rewinds, and lets go of what was kept of the data for the run."""
        if self.feed.seekable:
            self._let_go()
        self._last = None if self._last is None else self._last.without_data()

    def _let_go(self) -> None:
        self._reader.close()
        self._stale = True
        if self._held is not None:
            self._held.release()
        self._held = None

    def _open(self, feed: Feed, resume: tuple[pathlib.Path | None] | None = None) -> None:
        self._stale = False
        self.feed = feed = part_of(feed, self.step.cluster.index, self.step.cluster.count)
        self._most_held = _NO_LIMIT if feed.seekable or not self._guarded else steps_of_bytes(feed.element_spec)
        if self.program.mode == "xla":
            feed.cut_like(self.program.blocks)
        if self._held is None:
            self._held = feed if self.program.mode == "eager" else feed.held()
        saved, resuming = (resume[0], True) if resume is not None else (None, False)
        self._reader: FeedReader = open_reader(
            self._held, self.progress.position, self.program.mode, continuing=self._continuing, saved=saved, resuming=resuming
        )

    def _begin_call(self, source: Any) -> Unsettled:
        """Sees to it that the variables that a call with this source writes can be put back."""
        spec, eager = self.feed.element_spec, self.program.mode == "eager"
        key = self.program.key(source, spec)
        if self._unsettled is None or key not in self._unsettled.covered:
            whole, rows = self._writes.of(source, spec)
            if self._unsettled is None:
                backup = Backup(rows=None if eager else self.step.kept_rows)
                self._unsettled = Unsettled(backup, dataclasses.replace(self.progress), self._clock())
            self._unsettled.backup.cover(whole, self.program.read)
            self._unsettled.backup.cover_rows(rows)
            self._unsettled.covered.add(key)
        return self._unsettled

    def _call(self, source: Any, start: int, n: int, unsettled: Unsettled) -> Call:
        compiled = self.program.compilations
        if self._guarded and self._finite is None:
            self._finite = tf.constant(True)
        with unsettled.backup.covering_new() if self.program.mode == "eager" else contextlib.nullcontext():
            call = self.program(
                source,
                self.feed.element_spec,
                start=start,
                n=n,
                first_step=self.progress.step,
                finite=self._finite,
                guarded=self._writes.state,
            )
        if self.program.compilations > compiled:
            self.accounts.count_as("compile")
            call = dataclasses.replace(call, waited=None)  # counted as compiling, too
        self._finite = call.finite
        self.metrics.update(call.meta.metrics)
        return call

    def _pass_is_over(self) -> bool:
        if isinstance(self._reader, LeftoverReader) and self._reader.exhausted:
            self._reader = self._reader.then
        try:
            with self.accounts.of("data"):
                return not self._reader.ready()
        except BaseException:  # what was read ahead is lost: the feed is read again from the position in the counters
            self._reader.close()
            self._stale = True
            raise

    def _take_back(self, unsettled: Unsettled) -> tuple[NonFiniteStep, list[Any]]:
        recovery = Recovery(self.program, self.feed, self.progress, self.program.check, self._writes)
        taken_back = recovery.take_back(unsettled, self._reader)
        self._bad_is_held = taken_back.holds_bad
        if taken_back.reader is None:
            self.rewind()
        else:
            self._reader = taken_back.reader
        return taken_back.bad, taken_back.rows
