"""Gives the points of a run to a tracker in a thread, so that training waits for no server, and tries again when a server comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from loops.hooks._tracked_points import Point, TrackedPoints

__all__ = ["Client", "Ending", "TrackerThread"]

_MOST_POINTS = 500  # that are given at once
_SECONDS_BETWEEN_TRIES = 30.0


@dataclasses.dataclass(frozen=True)
class Ending:
    """What the tracker gets when a run ends.

    Attributes:
        outcome: "finished", "stopped", "interrupted" or "failed".
        reason: why it stopped or failed, or None.
        step: completed training steps.
        time: seconds since 1970.
        results: name -> number, of evaluations after the end.
        weights: files with the best weights.
        files: pictures and other files.
    """

    outcome: str
    reason: str | None
    step: int
    time: float
    results: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: Sequence[pathlib.Path] = ()
    files: Sequence[pathlib.Path] = ()


class Client(Protocol):
    """A run of a tracker, used by one thread. Every method may raise any `Exception`; then `abandon` and `open` follow."""

    def open(self) -> None:
        """Makes the run, or finds it again, and finds out which points it has."""

    def send(self, points: Sequence[Point]) -> None:
        """Gives points to the run, but for those that it has."""

    def end(self, ending: Ending) -> None:
        """Says how training ended, and waits until everything is with the tracker."""

    def abandon(self) -> None:
        """Forgets the run after an error."""


class TrackerThread:
    """A thread that opens a client, gives it points as they come, and ends it.

    Args:
        client: the tracker's run.
        points: where points come from.
    """

    def __init__(self, client: Client, points: TrackedPoints):
        self._client, self._points = client, points
        self._ending: Ending | None = None
        self._done = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def end(self, ending: Ending, seconds: float) -> bool:
        """Ends the run when it has all points; returns whether that is done within so many seconds."""
        self._ending = ending
        self._points.end()
        self._thread.join(seconds)
        return self._done

    def _work(self) -> None:
        while True:
            last_try = self._ending is not None
            try:
                self._client.open()
                self._points.start_over()
                while (some := self._points.take(_MOST_POINTS)) is not None:
                    number, points = some
                    self._client.send(points)
                    self._points.taken(number, len(points))
                assert self._ending is not None
                self._client.end(self._ending)
                self._done, self.failure = True, None
                return
            except Exception as error:  # whatever a tracker does, training goes on
                self.failure = self.failure or error  # the first says why; what follows may be a consequence
                with contextlib.suppress(Exception):
                    self._client.abandon()
            if last_try:
                return
            self._points.wait_for_end(_SECONDS_BETWEEN_TRIES)
