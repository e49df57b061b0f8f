"""Goes back to the last settled state, and from there forward again to the step before one that was not finite.

A look finds only that some step since the last look was bad. To reach the state right before that step, the good steps run once more on the
same batches: whole calls at first, then, in the part with the bad step, one step at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.engine.backup import Backup, FiniteCheck
from loops.engine.batch_readers import Recording, eager_batch
from loops.engine.nonfinite import NonFiniteStep
from loops.engine.program import Call, Program
from loops.engine.progress import Progress
from loops.engine.rows import LogSpec
from loops.engine.state_writes import StateWrites
from loops.feeds import Block, Feed
from loops.feeds.reader import FeedBlockReader, FeedIteratorReader, FeedReader, LeftoverReader

__all__ = ["PendingCall", "Recovery", "TakenBack", "Unsettled", "arrays_of"]

Rows = tuple[Any, int, LogSpec]
Chunk = tuple[Any, int, int]


@dataclasses.dataclass(frozen=True)
class PendingCall:
    """A call whose results were not read yet.

    Attributes:
        rows: its rows, still on the device.
        n: number of steps that it was to do; the number that it did, where that is known.
        before: the counters before the call.
        spec: names and reductions of its rows.
        recorded: what it pulled from an iterator; see `Call`.
        source: its source, if the feed cannot give that again, else None.
        start: first batch of the source.
        ended_early: in eager mode, the call with a bad step; else None.
        waited: seconds that it waited for batches; None if its source is not an iterator.
    """

    rows: Any
    n: int
    before: Progress
    spec: LogSpec
    recorded: tuple[Any, ...] = ()
    source: Any = None
    start: int = 0
    ended_early: Call | None = None
    waited: Any = None


@dataclasses.dataclass
class Unsettled:
    """What happened since the last settled state, and the way back to it.

    Attributes:
        backup: the variables that were written since then, as they were.
        progress: the counters as they were.
        begun: when the first call since then began, in seconds.
        calls: the calls since then.
        covered: the steps (`Program.key`) whose variables are in the backup.
    """

    backup: Backup
    progress: Progress
    begun: float
    calls: list[PendingCall] = dataclasses.field(default_factory=list)
    covered: set[Any] = dataclasses.field(default_factory=set)

    def go_back(self, progress: Progress) -> None:
        """Puts variables and counters back."""
        self.backup.restore()
        _set(progress, self.progress)


@dataclasses.dataclass(frozen=True)
class TakenBack:
    """Where a run stands after a bad step was taken back.

    Attributes:
        bad: the bad step.
        rows: rows of the good steps since the last settled state, with their number and spec.
        reader: gives the batches from the bad one on (in eager mode from the next one on, if an iterator gave them); None if the feed has
            to be read again from the position in the counters.
        holds_bad: whether `reader` holds the bad batch.
    """

    bad: NonFiniteStep
    rows: list[Rows]
    reader: FeedReader | None
    holds_bad: bool


class Recovery:
    """Takes bad steps back.

    Args:
        program: what the calls ran.
        feed: where their batches came from.
        progress: the counters; they are set back.
        check: whether the state is finite.
        writes: what the calls write.
    """

    def __init__(self, program: Program, feed: Feed, progress: Progress, check: FiniteCheck, writes: StateWrites):
        self._program, self._feed, self._progress, self._check, self._writes = program, feed, progress, check, writes
        self._rows: list[Rows] = []

    def take_back(self, unsettled: Unsettled, reader: FeedReader) -> TakenBack:
        """Goes to the state right before the bad step.

        Args:
            unsettled: the calls since the last settled state; a step of one of them was bad.
            reader: the reader that they took batches from.

        Raises:
            RuntimeError: if no step is bad when they run again; then the state is that of a step between.
        """
        calls = unsettled.calls
        pass_ended = self._progress.pass_index > unsettled.progress.pass_index
        if self._feed.seekable:
            reader.close()  # two readers of one feed at a time are not allowed
            if isinstance(reader, FeedBlockReader):
                self._feed = reader.feed  # the same programs run again
        if self._program.mode == "eager":
            return self._take_back_eagerly(calls, pass_ended, reader)
        unsettled.go_back(self._progress)
        chunks = list(self._held_chunks(calls)) if not self._feed.seekable else []
        bad, place, good = self._replay(chunks or self._chunks_of_feed(sum(p.n for p in calls)))
        if self._feed.seekable:
            return TakenBack(bad, self._rows, None, False)
        source, start, n = chunks[place]
        left = [(source, start + good, n - good), *chunks[place + 1 :]]
        return TakenBack(bad, self._rows, self._rest(calls, left, sum(chunk[2] for chunk in chunks), pass_ended, reader), True)

    def _take_back_eagerly(self, calls: list[PendingCall], pass_ended: bool, reader: FeedReader) -> TakenBack:
        """In eager mode every step is looked at, and has a backup of its own."""
        broken = next(i for i, p in enumerate(calls) if p.ended_early is not None)
        p, call = calls[broken], calls[broken].ended_early
        assert call is not None and call.undo is not None
        good = int(call.done) - 1
        call.undo.restore()
        _set(self._progress, p.before)
        self._progress.advance(good, 0)
        self._rows = [(earlier.rows, earlier.n, earlier.spec) for earlier in calls[:broken]] + [(call.rows, good, p.spec)]
        loss_finite = bool(np.isfinite(np.asarray(call.rows)[good, 1]))
        bad = NonFiniteStep(self._progress.step + 1, arrays_of(call.last_batch), loss_finite)
        if self._feed.seekable:
            return TakenBack(bad, self._rows, None, False)
        holds_bad = isinstance(p.source, Block | Recording)
        if holds_bad:
            left = [(p.source, p.start + good, p.n - good), *((later.source, later.start, later.n) for later in calls[broken + 1 :])]
            pulled = sum(later.n for later in calls)
        else:  # the iterator has already given the bad batch, and nothing recorded it
            left, pulled = [], sum(earlier.n for earlier in calls[:broken]) + good + 1
        return TakenBack(bad, self._rows, self._rest(calls, left, pulled, pass_ended, reader), holds_bad)

    def _held_chunks(self, calls: list[PendingCall]) -> Iterator[Chunk]:
        """Source, first batch and number of batches of each call, for a feed that cannot give them again."""
        for p in calls:
            if isinstance(p.source, Block | Recording):
                yield p.source, p.start, p.n
            else:
                recording = Recording(p.recorded, self._feed.element_spec)
                yield recording, 0, recording.length

    def _chunks_of_feed(self, n: int) -> Iterator[Chunk]:
        """The next `n` batches, from a feed that can give them again."""
        for block in self._feed.blocks(self._progress.position):
            yield block, 0, min(n, block.n)
            n -= block.n
            if n <= 0:
                return

    def _replay(self, chunks: Sequence[Chunk] | Iterator[Chunk]) -> tuple[NonFiniteStep, int, int]:
        """Runs up to the bad step. Returns it, the index of its chunk, and the number of good steps in this chunk."""
        for place, (source, start, n) in enumerate(chunks):
            if not n:
                continue
            backup = self._backup(source)
            if self._runs_well(source, start, n, backup):
                continue
            backup.restore()
            for good in range(n):
                backup = self._backup(source)
                if not self._runs_well(source, start + good, 1, backup):
                    backup.restore()
                    batch = arrays_of(eager_batch(source, start + good))
                    return NonFiniteStep(self._progress.step + 1, batch, self._loss_was_finite), place, good
        raise RuntimeError(
            f"The steps up to {self._progress.step} became non-finite once and not again: the step is not deterministic. "
            "Draw random numbers with self.seed(), and make the data pipeline deterministic."
        )

    def _backup(self, source: Any) -> Backup:
        # Rows are kept for the way back to the last settled state; here, large variables are copied.
        whole, rows = self._writes.of(source, self._feed.element_spec)
        return Backup([*whole, *rows])

    def _runs_well(self, source: Any, start: int, n: int, backup: Backup) -> bool:
        """Runs `n` steps; if all were finite, counts them and keeps their rows."""
        call = self._program(source, self._feed.element_spec, start=start, n=n, first_step=self._progress.step, finite=tf.constant(True))
        self._loss_was_finite = bool(call.finite)
        if not (self._loss_was_finite and self._check(backup)):
            return False
        self._rows.append((call.rows, n, call.meta.spec))
        self._progress.advance(n, 0)
        return True

    def _rest(self, calls: list[PendingCall], left: list[Chunk], pulled: int, pass_ended: bool, reader: FeedReader) -> LeftoverReader:
        """A reader that gives what is `left` of the batches that were pulled, then those of the feed."""
        then = reader.then if isinstance(reader, LeftoverReader) else reader
        rest = reader.remaining if isinstance(reader, LeftoverReader) else []
        # Batches that were counted, because calls after the bad step were to take them, and that are still in the iterator.
        uncounted = sum(p.n for p in calls) - pulled
        if uncounted and not pass_ended and isinstance(then, FeedIteratorReader) and calls[-1].source is then.source:
            then.put_back(uncounted)
        elif uncounted:
            left = [*left, (calls[-1].source, 0, uncounted)]
        return LeftoverReader([*left, *rest], then, pass_ended or (isinstance(reader, LeftoverReader) and reader.ends_pass))


def _set(progress: Progress, values: Progress) -> None:
    for field in dataclasses.fields(Progress):
        setattr(progress, field.name, getattr(values, field.name))


def arrays_of(structure: Any) -> Any:
    """`structure` with its tensors copied to the host as arrays; None stays None."""
    return tf.nest.map_structure(lambda t: None if t is None else t.numpy() if hasattr(t, "numpy") else t, structure)
