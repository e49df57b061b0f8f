"""Prints where the time of some steps goes: waiting for data, computing, hooks, the loop itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TextIO

from loops.accounting import Timing
from loops.feeds import DatasetFeed
from loops.hooks.base import Hook, Phase
from loops.profiling import ProfiledRange
from loops.triggers import AnyOf

if TYPE_CHECKING:
    from loops.train_loop import TrainLoop

__all__ = ["Profile", "profile"]


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
        self.every = AnyOf(*self._range.triggers())
        self.timing: Timing | None = None
        self._before: Timing | None = None

    def on_train_begin(self, loop: TrainLoop) -> None:
        if isinstance(loop.feed, DatasetFeed):
            self.observes = frozenset({"waiting"})
        self._before = None
        if loop.progress.step == self._range.first - 1:
            self._begin(loop)

    def on_window_end(self, loop: TrainLoop, window: Any) -> None:
        if loop.progress.step == self._range.first - 1:
            self._begin(loop)
        elif loop.progress.step >= self._range.last:
            self._end(loop)

    def on_train_end(self, loop: TrainLoop) -> None:
        self._end(loop)

    def _begin(self, loop: TrainLoop) -> None:
        if self._trace_dir is not None:
            self._range.at(loop.progress.step, os.fspath(self._trace_dir))
        self._before = loop.timing

    def _end(self, loop: TrainLoop) -> None:
        if self._before is None:
            return
        self.timing, self._before = loop.timing.since(self._before), None
        self._range.stop()
        if self.timing.steps:
            last = self._range.first + self.timing.steps - 1
            speed = self.timing.steps / (self.timing.seconds or 1.0)
            heading = f"Steps {self._range.first:,} to {last:,}: {speed:,.0f} steps/s"
            print(heading, self.timing.table(), sep="\n", file=self._stream, flush=True)


def profile(loop: TrainLoop, steps: int = 200, *, after: int = 100, trace_dir: str | os.PathLike[str] | None = None) -> Timing:
    """Trains some steps with a loop and prints where their time went.

    These are steps of training like others, with all hooks of the loop; nothing is undone. For a run with a workdir, give it the hook
    `hooks.Profile`.

    Args:
        loop: a loop without workdir, used before or not.
        steps: how many steps to time.
        after: how many steps to do before, for compilation and caches.
        trace_dir: where to write a trace of TensorFlow's profiler, for TensorBoard's profile page; None writes none.

    Returns:
        What was printed, as numbers.

    Raises:
        ValueError: for a loop with a workdir, or numbers of steps that are not positive.

    Example:
        >>> import keras, loops, numpy as np
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> timing = profile(loops.TrainLoop(task, loops.ArrayFeed((np.ones([64, 4]), np.ones([64, 1])))), steps=50)
        Steps 101 to 150: ... steps/s
        where the time went ...
        ...
        >>> timing.steps
        50
    """
    if loop.workdir is not None:
        raise ValueError("loops.profile trains without saving; for a run with a workdir use the hook hooks.Profile(first, last).")
    if steps < 1 or after < 1:
        raise ValueError(f"loops.profile takes numbers of steps, 1 or more; got steps={steps!r}, after={after!r}.")
    begin = loop.progress.step + after
    hook = Profile(begin + 1, begin + steps, trace_dir=trace_dir)
    hook.name = "loops.profile"
    hook.on_train_begin(loop)
    loop.attach(hook)
    try:
        loop.run(steps=begin + steps)
    finally:
        loop.detach(hook)
    if hook.timing is None:
        raise ValueError(f"The run ended ({loop.outcome}) before step {begin}, where the profile was to begin.")
    return hook.timing
