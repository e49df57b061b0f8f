"""Measures where the time of a run goes: waiting for data, computing, hooks, the rest. It reads nothing from the device between two looks.

One account is open at a time. The training thread switches from one account to the next, which takes one reading of a clock. The time of a
section within another one counts for the inner one only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

__all__ = ["Accounts", "Pace", "Timing"]

_NOTABLE_SHARE, _NOTABLE_SECONDS = 0.1, 1.0
_WORDS = {
    "data": "waiting for data",
    "compute": "computing",
    "compile": "tracing and compiling",
    "evaluation": "evaluations",
    "hooks": "hooks",
    "saving": "saving the run",
    "host": "the loop itself",
}
_BOUND_BY = {"data": "Data bounds the steps", "computing": "Computing bounds the steps"}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a run by what they were spent on; they add up to its wall time.

    Attributes:
        data: waiting, because the next batch was not ready.
        compute: compiled calls, until their results were ready.
        compile: tracing and compiling, with the first step of each program.
        evaluation: `loop.evaluate` and everything in it.
        hooks: hooks, without the evaluations that they made.
        saving: copying the state of the run for a snapshot (a thread writes the files).
        host: the rest, such as finding the next look.
        by_hook: name of a hook -> its seconds.
        steps: number of training steps in this time.

    Example:
        >>> timing = Timing(data=1.0, compute=3.0, steps=100)
        >>> timing.seconds, timing.share("data")
        (4.0, 0.25)
        >>> print(timing)
        where the time went   seconds   share   µs/step
        waiting for data        1.000   25.0%  10,000.0
        computing               3.000   75.0%  30,000.0
        all                     4.000  100.0%  40,000.0
        Data bounds the steps (25% of their time is waiting for data).
        >>> timing.bound_by
        'data'
    """

    data: float = 0.0
    compute: float = 0.0
    compile: float = 0.0
    evaluation: float = 0.0
    hooks: float = 0.0
    saving: float = 0.0
    host: float = 0.0
    by_hook: Mapping[str, float] = dataclasses.field(default_factory=dict)
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Wall time, in seconds."""
        return sum(getattr(self, name) for name in _WORDS)

    def share(self, name: str) -> float:
        """The share of `name` (such as "data") in `seconds`, from 0 to 1."""
        return getattr(self, name) / self.seconds if self.seconds else 0.0

    @property
    def bound_by(self) -> Literal["data", "computing"] | None:
        """What bounds the steps: "data" if a tenth or more of their time is waiting for batches, else "computing"; None without steps.

        Batches are made while steps compute, so there is only waiting to speak of where making them takes longer. A faster model would not
        help then; a faster pipeline would.
        """
        worked = self.data + self.compute
        return None if not worked else "data" if self.data >= _NOTABLE_SHARE * worked else "computing"

    def since(self, before: Timing) -> Timing:
        """The time spent after `before`, a timing that was taken earlier in the same run."""
        spent = {name: getattr(self, name) - getattr(before, name) for name in _WORDS}
        by_hook = {name: seconds - before.by_hook.get(name, 0.0) for name, seconds in self.by_hook.items()}
        return dataclasses.replace(self, **spent, by_hook=by_hook, steps=self.steps - before.steps)

    def __str__(self) -> str:
        return self.table()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows."""
        printer.text(self.table())

    def table(self) -> str:
        """A table to print: seconds, share and microseconds per step of each account; below "hooks" each hook, the slowest first."""
        rows = [(_WORDS[name], getattr(self, name)) for name in _WORDS if getattr(self, name) > 0]
        at = next((i + 1 for i, (words, _) in enumerate(rows) if words == _WORDS["hooks"]), len(rows))
        rows[at:at] = [(f"  {name}", s) for name, s in sorted(self.by_hook.items(), key=lambda item: -item[1]) if s > 0]
        rows.append(("all", self.seconds))
        width = max(len("where the time went"), *(len(words) for words, _ in rows))
        lines = [f"{'where the time went':<{width}}  {'seconds':>8}  {'share':>6}  {'µs/step':>8}"]
        for words, seconds in rows:
            share, each = seconds / (self.seconds or 1.0), 1e6 * seconds / max(1, self.steps)
            lines.append(f"{words:<{width}}  {seconds:8.3f}  {share:6.1%}  {each:8,.1f}")
        if self.bound_by is not None:
            lines.append(f"{_BOUND_BY[self.bound_by]} ({self.data / (self.data + self.compute):.0%} of their time is waiting for data).")
        return "\n".join(lines)

    def notice(self) -> str:
        """A sentence if the run waited long for data, else "". It leaves out compilation, which takes no longer in a longer run."""
        worked = self.seconds - self.compile
        if self.data < _NOTABLE_SECONDS or self.data < _NOTABLE_SHARE * worked:
            return ""
        return f"Waited for data for {self.data:,.1f} s, {self.data / worked:.0%} of the time (compilation not counted)."


class Accounts:
    """Counts seconds for a `Timing`.

    Args:
        clock: monotonic seconds.

    Example:
        >>> from loops.testing import FakeClock
        >>> clock = FakeClock()
        >>> accounts = Accounts(clock)
        >>> accounts.begin()
        >>> with accounts.of("hooks", "Mine"):
        ...     clock.advance(2)
        ...     with accounts.of("data"):
        ...         clock.advance(5)
        >>> timing = accounts.timing(steps=1)
        >>> timing.hooks, timing.data
        (2.0, 5.0)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._open = [("host", "")]
        self._since, self._running = clock(), False
        self._seconds: dict[tuple[str, str], float] = {}
        self._sections: dict[tuple[str, str], _Section] = {}

    def begin(self) -> None:
        """A run begins: empties all accounts. From now on, time outside of all sections counts for "host"."""
        self._seconds = {}
        self._since, self._running = self.clock(), True

    def end(self) -> None:
        """The run has ended: later time is not counted."""
        self._switch()
        self._running = False

    def of(self, name: str, detail: str = "") -> _Section:
        """A context whose time counts for `name`, one of the fields of `Timing`; for hooks `detail` is the hook's name."""
        key = name, detail
        if key not in self._sections:
            self._sections[key] = _Section(self, key)
        return self._sections[key]

    def count_as(self, name: str) -> None:
        """Counts the open section for another account, from its beginning or the end of its last inner section on."""
        self._open[-1] = name, ""

    def move(self, seconds: float, source: str, target: str) -> None:
        """Moves seconds that were counted for the account `source`, at most all, to `target`, where they turned out to belong."""
        self._switch()
        seconds = min(seconds, self._seconds.get((source, ""), 0.0))
        if self._running:
            for name, change in ((source, -seconds), (target, seconds)):
                self._seconds[name, ""] = self._seconds.get((name, ""), 0.0) + change

    def timing(self, *, steps: int) -> Timing:
        """The time spent up to now in the run in progress, or in the last one."""
        self._switch()
        spent = dict.fromkeys(_WORDS, 0.0)
        by_hook: dict[str, float] = {}
        for (name, detail), seconds in self._seconds.items():
            if name in spent:
                spent[name] += seconds
            if name == "hooks":
                by_hook[detail] = seconds
        return Timing(**spent, by_hook=by_hook, steps=steps)

    def _switch(self) -> None:
        now, account = self.clock(), self._open[-1]
        if self._running:
            self._seconds[account] = self._seconds.get(account, 0.0) + now - self._since
        self._since = now

    def _enter(self, key: tuple[str, str]) -> None:
        self._switch()
        self._open.append(key)

    def _leave(self) -> None:
        self._switch()
        self._open.pop()


class _Section:
    """The context of one account, which may be entered many times."""

    def __init__(self, accounts: Accounts, key: tuple[str, str]):
        self._accounts, self._key = accounts, key

    def __enter__(self) -> None:
        self._accounts._enter(self._key)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._accounts._leave()


class Pace:
    """Measures steps per second, without the time of evaluations.

    The caller passes the time, in seconds on any monotonic clock, and the number of completed steps.

    Example:
        >>> pace = Pace()
        >>> pace.start(step=0, now=10.0)
        >>> pace.pause(now=12.0)
        >>> pace.go_on(now=20.0)
        >>> pace.steps_per_second(step=40, now=22.0)
        10.0
    """

    def __init__(self) -> None:
        self.start(0, 0.0)

    def start(self, step: int, now: float) -> None:
        """An epoch begins."""
        self._step, self._begin, self._paused_at, self._paused = step, now, now, 0.0

    def pause(self, now: float) -> None:
        """An evaluation begins."""
        self._paused_at = now

    def go_on(self, now: float) -> None:
        """The evaluation has ended."""
        self._paused += now - self._paused_at

    def steps_per_second(self, step: int, now: float) -> float:
        """Steps per second since the start; 0 before the first step."""
        seconds = now - self._begin - self._paused
        return (step - self._step) / seconds if seconds > 0 else 0.0
