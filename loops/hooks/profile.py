"""Prints where the time of a range of steps goes: waiting for data, computing, hooks, the loop itself."""

from __future__ import annotations

import os
from typing import Any, TextIO

from loops.engine.timing import Timing
from loops.hooks.base import Hook, Loop, Phase
from loops.summaries.profiler_range import ProfiledRange
from loops.triggers import At

__all__ = ["Profile"]


class Profile(Hook):
    """Prints a table of the time that a range of steps spent on each activity, and in each hook by name.

    It costs nothing; the results of training stay the same.

    Args:
        first, last: the range, both included and counted from 1 over the whole run. It should not begin at 1: the first steps also compile.
        trace_dir: folder for a trace of these steps by TensorFlow's profiler, for TensorBoard's profile page; None: no trace.
        stream: where to print; standard output if None.

    Attributes:
        timing: the `loops.Timing` of the range, None before its end.

    Raises:
        ValueError: if `first` and `last` are not a range of steps.

    Example:
        >>> import keras, loops, numpy as np
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones([640, 3], "float32")
        >>> history = loops.fit(model, x, x[:, :1], epochs=2, verbose=0, hooks=[Profile(first=11, last=40)])
        Steps 11 to 40: ... steps/s
        where the time went ...
        ...
    """

    phase = Phase.RECORD

    def __init__(self, first: int = 101, last: int = 300, *, trace_dir: str | os.PathLike[str] | None = None, stream: TextIO | None = None):
        self._range = ProfiledRange((first, last), name="Profile(first, last)")
        self._trace_dir, self._stream = trace_dir, stream
        self.every = At(*self._range.looks())
        self.timing: Timing | None = None
        self._timing_at_begin: Timing | None = None

    def on_train_begin(self, loop: Loop) -> None:
        self._timing_at_begin = None
        if loop.progress.step == self._range.first - 1:
            self._begin(loop)

    def on_window_end(self, loop: Loop, window: Any) -> None:
        if loop.progress.step == self._range.first - 1:
            self._begin(loop)
        elif loop.progress.step >= self._range.last:
            self._end(loop)

    def on_train_end(self, loop: Loop) -> None:
        self._end(loop)

    def _begin(self, loop: Loop) -> None:
        if self._trace_dir is not None:
            self._range.at(loop.progress.step, os.fspath(self._trace_dir))
        self._timing_at_begin = loop.timing

    def _end(self, loop: Loop) -> None:
        if self._timing_at_begin is None:
            return
        self.timing, self._timing_at_begin = loop.timing.since(self._timing_at_begin), None
        self._range.stop()
        if self.timing.steps:
            last = self._range.first + self.timing.steps - 1
            speed = self.timing.steps / (self.timing.seconds or 1.0)
            heading = f"Steps {self._range.first:,} to {last:,}: {speed:,.0f} steps/s"
            print(heading, self.timing.table(), sep="\n", file=self._stream, flush=True)
