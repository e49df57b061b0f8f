"""Turns Ctrl-C and SIGTERM into requests, so that the loop can end between two calls and save. A second Ctrl-C interrupts at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from loops.errors import EXIT_PREEMPTED
from loops.messages import alert, say

__all__ = ["Interrupts"]


class Interrupts:
    """A context in which SIGINT, and with `grace` also SIGTERM, only set `requested`. Outside of the main thread it does nothing.

    Args:
        grace: seconds that the run has to end after the first signal; then the process is ended. None: no limit, and SIGTERM keeps its
            handler.

    Attributes:
        requested: True after the first signal.
        preempted: True after a SIGTERM.
    """

    def __init__(self, grace: float | None = None) -> None:
        self.requested = self.preempted = False
        self._grace = grace
        self._timer: threading.Timer | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        # Only the default handlers are replaced: a user's own handler stays.
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._handle)
            if self._grace is not None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTERM:
            self.preempted = True
        elif self.requested:
            raise KeyboardInterrupt
        if self.requested:
            return
        self.requested = True
        again = "" if self.preempted else " (press Ctrl-C again to end at once)"
        say(f"\nInterrupted: ending after the steps in progress{again}.")
        if self._grace is not None:
            self._timer = threading.Timer(self._grace, _end_process, [self._grace, self.preempted])
            self._timer.daemon = True
            self._timer.start()


def _end_process(grace: float, preempted: bool) -> None:
    alert(f"The run did not come to an end within {grace:g} seconds; the last snapshot stands.")
    os._exit(EXIT_PREEMPTED if preempted else 128 + signal.SIGINT)
