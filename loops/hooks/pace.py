"""How fast training goes: steps per second of an epoch, without the time that evaluations take."""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """A stopwatch for steps. It is told the time, in seconds on any monotonic clock, and the count of completed steps.

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
