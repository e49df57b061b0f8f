"""Runs training steps: calls the program on what the cursor gives, counts them, and finds the step at which numbers stopped being numbers.

Knows neither epochs nor hooks. Between two `settle`s nothing is read from the device, unless the source does not know its own length.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from loops import crash_points
from loops.accounting import Accounts
from loops.cursor import Cursor, IteratorCursor, LeftoverCursor, open_cursor
from loops.feeds import Block, Feed
from loops.logs import LogSpec, TraceLog
from loops.nonfinite import NonFiniteStep
from loops.program import Call, Guard, Program
from loops.progress import Progress
from loops.replicas import local_variables
from loops.sources import Recording, eager_batch
from loops.traced_step import GlobalStep, StepMeta

__all__ = ["Execution"]

_CALL_SECONDS = 0.5
_MAX_CALL_STEPS = 1024
_MAX_HELD_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A call whose outcome was not read, and its source if the feed could not give that again."""

    call: Call
    n: int
    before: Progress
    spec: LogSpec
    source: Any = None
    start: int = 0


class Execution:
    """Runs the steps of one training run.

    Args:
        program: what a call runs.
        feed: where batches come from.
        progress: the counters to advance.
        guarded: whether non-finite steps are to be found and taken back.
        continuing: whether an epoch is not a pass.
        resume: for a run that goes on from a snapshot: where `save_feed` wrote (None if it returned False), as a tuple.

    Attributes:
        accounts: count where the time goes.
        must_settle: True if `settle` has to be called before going on: a call met a non-finite step, or too many blocks are held.
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
    ):
        self.accounts = Accounts()
        self.program, self.progress, self.trace = program, progress, TraceLog()
        self._guarded, self._continuing = guarded, continuing
        self._guard: Guard | None = None
        self._pending: list[_Pending] = []
        self._last: tuple[Call, Any, int] | None = None
        self._meta: StepMeta | None = None
        self._pace = _Pace()
        self._counted = 0
        self._bad_is_held = False
        self.must_settle = False
        self.trace.start(progress.step)
        self._open(feed, resume)

    @property
    def step(self) -> GlobalStep:
        return self.program.step

    def use(self, program: Program) -> None:
        """Goes on with another program (after a retrace)."""
        self.program, self._guard = program, None

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics that the step returned when it was run last; before the first call of a resumed run, when it was traced."""
        meta = self._meta or self.step.meta
        return meta.metrics if meta is not None else {}

    def switch(self, feed: Feed) -> None:
        """Goes on with another feed, from its beginning."""
        self._cursor.close()
        self.progress.pass_index = self.progress.batch = 0
        self._open(feed)

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
        known = self._cursor.available
        n = min(limit, self._pace.limit(), _MAX_CALL_STEPS if known is None else known)
        begin = time.perf_counter()
        source, start = self._cursor.source, self._cursor.start
        self._last = None  # a block that was used up is not kept while the next is worked on
        with self.accounts.of("compute"):
            call = self._call(source, start, n)
            done = n if known is not None else int(call.done)
        self._last = (call, source, start + n - 1)
        held = _held(source) if self._guarded and not self.feed.seekable else None
        self._pending.append(_Pending(call, n, dataclasses.replace(self.progress), self._spec(), held, start))
        self.must_settle = len(self._pending) >= _MAX_HELD_BLOCKS and isinstance(held, Block)
        self._pace.measured(time.perf_counter() - begin, done)
        self._cursor.consumed(done)
        self.progress.advance(done, 0)
        crash_points.reached(crash_points.STEP, done)
        if known is not None:
            ended = self._cursor.available == 0 and self._pass_is_over()
        else:
            self._pending[-1] = dataclasses.replace(self._pending[-1], n=done)
            self.must_settle = call.guard is not None and not bool(call.guard.finite)
            ended = done < n and not self.must_settle
            if ended:
                assert isinstance(self._cursor, IteratorCursor)
                self._cursor.end_pass()
        if ended:
            self.progress.end_pass()
        return ended

    def settle(self) -> NonFiniteStep | None:
        """Reads whether all calls since the last look went well; if not, takes the state back to just before the bad step and names it."""
        guard, pending, self._pending, self.must_settle = self._guard, self._pending, [], False
        with self.accounts.of("compute"):
            bad = self._read(guard, pending)
            if self.step.clock is not None:
                self.accounts.move(self.step.clock.take(), "compute", "data")
        return bad

    def _read(self, guard: Guard | None, pending: list[_Pending]) -> NonFiniteStep | None:
        bad = None
        if guard is not None and not bool(guard.finite):
            broken = next(i for i, p in enumerate(pending) if p.call.guard is not None and not bool(p.call.guard.finite))
            for p in pending[:broken]:
                self.trace.append(p.call.rows, p.n, p.spec)
            bad = self._take_back(pending[broken:], guard)
        else:
            for p in pending:
                self.trace.append(p.call.rows, p.n, p.spec)
        self.trace.read()
        self.progress.examples += self.trace.examples - self._counted
        self._counted = self.trace.examples
        return bad

    def skip_batch(self) -> None:
        """Drops the batch of the bad step that `settle` has just taken back."""
        self.progress.batch += 1
        if self._bad_is_held and isinstance(self._cursor, LeftoverCursor) and self._cursor.ready():
            self._cursor.consumed(1)

    def load_trace(self, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
        """Takes up the trace of a restored run; whatever was pending is forgotten."""
        self.trace.load_state(arrays, described)
        self._pending, self._guard, self._last, self._counted, self.must_settle = [], None, None, 0, False

    def build(self) -> None:
        """Traces the step for the feed's batches, so that every variable exists."""
        with self.accounts.of("compile"):
            self.step.concrete(self.feed.element_spec)

    @property
    def waits_within_calls(self) -> bool:
        """Whether the program pulls batches from an iterator, so that waiting for them is part of a call, and nobody tells them apart."""
        return isinstance(self._cursor, IteratorCursor) and self.step.clock is None

    def save_feed(self, directory: pathlib.Path) -> bool:
        """Writes where the source stands into `directory`; False if its position is known by counting only."""
        return self._cursor.save(directory)

    def observed(self) -> dict[str, Any]:
        """What hooks observe, of the last step, as arrays."""
        if self._last is None:
            return {}
        return dict(tf.nest.map_structure(lambda t: t.numpy() if hasattr(t, "numpy") else t, self._last[0].observed))

    def batch(self) -> Any:
        """The batch of the last step, as arrays."""
        if self._last is None:
            return None
        call, source, index = self._last
        if call.last_batch is not None:
            return _arrays(call.last_batch)
        if "batch" in call.observed:
            return _arrays(call.observed["batch"])
        if isinstance(self._cursor, IteratorCursor):
            raise ValueError(
                "The batch of a tf.data iterator stays in the program; give the hook `observes = {'batch'}` to have it carried out."
            )
        return _arrays(eager_batch(source, index))

    def rewind(self) -> None:
        """Releases the feed's threads; a later `advance` goes on where `progress` stands then, if the feed can be read from anywhere."""
        if self.feed.seekable:
            self._cursor.close()
            self._stale = True

    def _open(self, feed: Feed, resume: tuple[pathlib.Path | None] | None = None) -> None:
        self.feed, self._stale = feed, False
        saved, resuming = (resume[0], True) if resume is not None else (None, False)
        self._cursor: Cursor = open_cursor(
            feed, self.progress.position, self.program.mode, continuing=self._continuing, saved=saved, resuming=resuming
        )

    def _call(self, source: Any, start: int, n: int) -> Call:
        eager = self.program.mode == "eager"
        if self._guarded and (self._guard is None or (eager and bool(self._guard.finite))):
            # The variables are complete only when everything is built: tracing does that, and in eager mode the first step.
            self.step.build(self.feed.element_spec) if eager else self.step.concrete(self.feed.element_spec)
            self._guard = self._new_guard()
        compiled, clock = self.program.compilations, self.step.clock
        if clock is not None:
            clock.call_begins()
        call = self.program(source, self.feed.element_spec, start=start, n=n, first_step=self.progress.step, guard=self._guard)
        if self.program.compilations > compiled:
            self.accounts.is_of("compile")
            if clock is not None:
                clock.take()  # counted with it
        self._guard, self._meta = call.guard, self.step.meta
        return call

    def _new_guard(self) -> Guard:
        return Guard.over(local_variables(self.step.task.tracked.all_variables()))

    def _spec(self) -> LogSpec:
        assert self.step.meta is not None
        return self.step.meta.spec

    def _pass_is_over(self) -> bool:
        if isinstance(self._cursor, LeftoverCursor) and self._cursor.exhausted:
            self._cursor = self._cursor.then
        with self.accounts.of("data"):
            return not self._cursor.ready()

    def _take_back(self, pending: list[_Pending], guard: Guard) -> NonFiniteStep:
        """Restores the state from before the first of `pending`, does its good steps again, and stands before the bad one."""
        broken, pass_ended = pending[0], self.progress.pass_index > pending[0].before.pass_index
        guard.restore()
        for field in dataclasses.fields(Progress):
            setattr(self.progress, field.name, getattr(broken.before, field.name))
        if self.program.mode == "eager":
            source, start, bad = broken.source, broken.start, self._taken_back(broken)
        else:
            source, start = self._source_again(broken, guard)
            bad = self._replay(self._batches_again(source, start, broken.n))
        self._leave_rest(pending, source, start, pass_ended)
        self._guard = None
        return bad

    def _source_again(self, broken: _Pending, guard: Guard) -> tuple[Any, int]:
        if self.feed.seekable:
            return None, 0
        if isinstance(broken.source, Block | Recording):
            return broken.source, broken.start
        return Recording(guard.recorded, self.feed.element_spec), 0

    def _batches_again(self, source: Any, start: int, n: int) -> Iterator[tuple[Any, int]]:
        """The sources and indices of `n` batches, once more."""
        if source is not None:
            return ((source, start + i) for i in range(n))
        self.rewind()  # the same feed is not read by two at a time
        blocks = self.feed.blocks(self.progress.position)
        return itertools.islice(((block, i) for block in blocks for i in range(block.n)), n)

    def _replay(self, batches: Iterator[tuple[Any, int]]) -> NonFiniteStep:
        spec = self.feed.element_spec
        for source, index in batches:
            before = self._new_guard()
            call = self.program(source, spec, start=index, n=1, first_step=self.progress.step, guard=before)
            assert call.guard is not None
            if not bool(call.guard.finite):
                call.guard.restore()
                loss_finite = bool(np.isfinite(np.asarray(call.rows)[0, 1]))
                return NonFiniteStep(self.progress.step + 1, _arrays(eager_batch(source, index)), loss_finite)
            self.trace.append(call.rows, 1, self._spec())
            self.progress.advance(1, 0)
        raise RuntimeError(
            f"The steps up to {self.progress.step} became non-finite once and not again: the step is not deterministic. "
            "Draw random numbers with self.seed(), and make the data pipeline deterministic."
        )

    def _leave_rest(self, pending: list[_Pending], source: Any, start: int, pass_ended: bool) -> None:
        """Has the cursor go on with the bad batch, and then with all that later calls were to train on."""
        good = self.progress.step - pending[0].before.step
        eager = self.program.mode == "eager"
        self._bad_is_held = not self.feed.seekable and (not eager or isinstance(source, Block))
        if self.feed.seekable:
            self.rewind()
            return
        then = self._cursor.then if isinstance(self._cursor, LeftoverCursor) else self._cursor
        rest = self._cursor.remaining if isinstance(self._cursor, LeftoverCursor) else []
        if isinstance(pending[0].source, Block | Recording):
            parts = [(source, start + good, pending[0].n - good), *((p.source, p.start, p.n) for p in pending[1:])]
        else:
            # Calls after the bad one pulled nothing. In eager mode the bad batch itself is gone from the iterator.
            pulled = good + 1 if eager else source.length
            parts = [] if eager else [(source, good, pulled - good)]
            left = sum(p.n for p in pending) - pulled
            if pass_ended:
                parts.append((pending[0].source, 0, left))
            elif isinstance(then, IteratorCursor):
                then.put_back(left)
        self._cursor = LeftoverCursor([*parts, *rest], then, pass_ended)

    def _taken_back(self, broken: _Pending) -> NonFiniteStep:
        """In eager mode every step has a backup of its own, so the state is that before the bad step already."""
        good = int(broken.call.done) - 1
        self.trace.append(broken.call.rows, good, broken.spec)
        self.progress.advance(good, 0)
        loss_finite = bool(np.isfinite(np.asarray(broken.call.rows)[good, 1]))
        return NonFiniteStep(self.progress.step + 1, _arrays(broken.call.last_batch), loss_finite)


class _Pace:
    """Keeps a call shorter than about half a second, so that Ctrl-C and time triggers are answered."""

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
            # A single slow call (a new block shape is compiled) slows down the next one, not all that follow.
            limit = 4 * self._seconds_per_step if self._calls > 2 else float("inf")
            self._seconds_per_step = min(seconds / steps, limit)


def _held(source: Any) -> Any:
    """A reference that does not count as a block in use, so that the next is made ready all the same."""
    return dataclasses.replace(source) if isinstance(source, Block) else source


def _arrays(structure: Any) -> Any:
    return tf.nest.map_structure(lambda t: None if t is None else t.numpy() if hasattr(t, "numpy") else t, structure)
