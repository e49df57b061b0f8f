"""Named points in the code at which a test may kill the process, raise an error, or exit: `reached("hook")` marks one.

A point that is not armed costs a comparison with None. Arm one with `loops.testing.crash_at`, or from outside of the process with the
environment variable `TAPELOOPS_CRASH_AT`: "before_rename:2,kill" kills it (SIGKILL) when it reaches `before_rename` for the second time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from loops.errors import InjectedCrash

__all__ = [
    "BEFORE_PRUNE",
    "BEFORE_RENAME",
    "BEFORE_WRITE",
    "ENVIRONMENT_VARIABLE",
    "EVALUATION",
    "EXIT_CODE",
    "FEED",
    "HALF_WRITTEN",
    "HOOK",
    "NAMES",
    "STEP",
    "WAYS",
    "arm",
    "armed",
    "reached",
]

BEFORE_WRITE = "before_write"  # a snapshot is about to be written
HALF_WRITTEN = "half_written"  # half of the snapshot's tensors are in the file
BEFORE_RENAME = "before_rename"  # the snapshot is complete, but not yet in its place
BEFORE_PRUNE = "before_prune"  # the snapshot is in its place, and no older one is deleted yet
HOOK = "hook"  # a hook is about to be called
FEED = "feed"  # a block is about to be cut
EVALUATION = "evaluation"  # an evaluation has begun
STEP = "step"  # training steps, counted one by one
NAMES = (BEFORE_WRITE, HALF_WRITTEN, BEFORE_RENAME, BEFORE_PRUNE, HOOK, FEED, EVALUATION, STEP)

WAYS = ("kill", "raise", "exit")
EXIT_CODE = 70  # of a process that "exit" ends
ENVIRONMENT_VARIABLE = "TAPELOOPS_CRASH_AT"


class _Crash:
    def __init__(self, name: str, count: int, how: str):
        self.name, self.how = name, how
        self._left = count
        self._lock = threading.Lock()  # snapshots are written by a thread

    def count(self, name: str, times: int) -> None:
        if name != self.name:
            return
        with self._lock:
            now = 0 < self._left <= times
            self._left -= times
        if not now:
            return
        if self.how == "raise":
            raise InjectedCrash(f"Crash injected at {name!r}.")
        if self.how == "exit":
            sys.exit(EXIT_CODE)
        if hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(EXIT_CODE)


_armed: _Crash | None = None


def reached(name: str, times: int = 1) -> None:
    """Marks a point in the code; does nothing unless a test armed it.

    Args:
        name: one of `NAMES`.
        times: how often the point is passed at once, such as the steps of one call of the program.

    Raises:
        InjectedCrash: if the point is armed with "raise" and its count is reached.
    """
    if _armed is not None:
        _armed.count(name, times)


def arm(name: str, count: int = 1, how: str = "kill") -> None:
    """Arms one point, in place of the one that was armed; `loops.testing.crash_at` says what the arguments mean.

    Raises:
        ValueError: for a name, count or way that does not exist.
    """
    global _armed
    if name not in NAMES:
        raise ValueError(f"There is no crash point {name!r}; there are {', '.join(NAMES)}.")
    if how not in WAYS:
        raise ValueError(f"A crash point can {', '.join(WAYS)}; it cannot {how!r}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"A crash point needs a count of 1 or more (which time that it is reached); got {count!r}.")
    _armed = _Crash(name, count, how)


@contextlib.contextmanager
def armed(name: str, count: int = 1, how: str = "kill") -> Iterator[None]:
    """Arms a point as `arm` does, within this context; at its end, the point that was armed before, if any, is armed again."""
    global _armed
    before = _armed
    arm(name, count, how)
    try:
        yield
    finally:
        _armed = before


def _arm_from_environment(text: str) -> None:
    place, _, how = text.partition(",")
    name, _, count = place.partition(":")
    if count and not count.isdecimal():
        raise ValueError(f'{ENVIRONMENT_VARIABLE} looks like "before_rename:2,kill" (name, count, way); got {text!r}.')
    arm(name.strip(), int(count or 1), how.strip() or "kill")


if text := os.environ.get(ENVIRONMENT_VARIABLE):
    _arm_from_environment(text)
