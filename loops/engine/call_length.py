"""How many steps a call may do, so that Ctrl-C and hooks that count seconds are answered in time. It runs nothing."""

from __future__ import annotations

__all__ = ["CallLength"]

_CALL_SECONDS = 0.5


class CallLength:
    """Keeps a call shorter than about half a second.

    The first call after a look may cost much more than its steps: the state is copied when it is written. Measured over few steps, that
    would make each step look slow, calls short, and the copy a part of every call. So such a call shortens the next ones only if it is
    long itself, and then by half; the calls behind it measure a step.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._limit = 1.0
        self._seconds_per_step = 0.0

    def limit(self) -> int:
        if self._calls < 2:  # the first call traces and compiles, the second is the first that can be measured
            return 1 if self._calls == 0 else 8
        return max(1, int(self._limit))

    def measured(self, seconds: float, steps: int, *, first: bool) -> None:
        """Learns from a call.

        Args:
            seconds: how long it took.
            steps: how many steps it did.
            first: whether it was the first one after a look.
        """
        self._calls += 1
        if self._calls == 1 or not steps:
            return
        per_step = max(seconds / steps, 1e-9)
        if not first or per_step * self._limit < _CALL_SECONDS:
            # A single slow call (a new block shape is compiled) shortens the next call, not all that follow.
            known = self._seconds_per_step
            self._seconds_per_step = min(per_step, 4 * known) if known else per_step
            self._limit = _CALL_SECONDS / self._seconds_per_step
        elif seconds > 2 * _CALL_SECONDS:
            self._limit = max(1.0, steps / 2)
        elif seconds < _CALL_SECONDS / 2:
            self._limit = max(self._limit, 2.0 * steps)
