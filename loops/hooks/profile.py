"""Prints where the time of some steps goes: waiting for data, computing, hooks, the loop itself."""

from __future__ import annotations

import os
from typing import Any, TextIO

from loops.engine.timing import Timing
from loops.feeds import DatasetFeed
from loops.hooks.base import Hook, Loop, Phase
from loops.summaries.profiler_range import ProfiledRange
from loops.triggers import At

__all__ = ["Profile"]


class Profile(Hook):
    """Prints a table of where the time of a range of steps went, each hook by name.

    Where the program pulls from a `tf.data` iterator by itself (graph mode), steps are timed within the graph while this hook is in the
    list, which costs some microseconds for each; otherwise it costs nothing. Numbers stay the same.

    Args:
        first, last: the range, both included and counted from 1 over the whole run. It should not begin at 1: the first steps compile.
        trace_dir: where to write a trace of TensorFlow's profiler of these steps, for TensorBoard's profile page; None writes none.
        stream: where to print; standard output if None.

    Attributes:
        timing: the `loops.Timing` of the range, None before its end.

    Raises:
        ValueError: if this is no range.

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
        self._before: Timing | None = None

    def on_train_begin(self, loop: Loop) -> None:
        if isinstance(loop.feed, DatasetFeed):
            self.observes = frozenset({"waiting"})
        self._before = None
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
        self._before = loop.timing

    def _end(self, loop: Loop) -> None:
        if self._before is None:
            return
        self.timing, self._before = loop.timing.since(self._before), None
        self._range.stop()
        if self.timing.steps:
            last = self._range.first + self.timing.steps - 1
            speed = self.timing.steps / (self.timing.seconds or 1.0)
            heading = f"Steps {self._range.first:,} to {last:,}: {speed:,.0f} steps/s"
            print(heading, self.timing.table(), sep="\n", file=self._stream, flush=True)
