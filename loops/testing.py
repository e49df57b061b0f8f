"""Tools for testing training loops, for users' tests too: crashes at a named point, a fake clock, a reader of event files."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops import fault_points
from loops.errors import InjectedCrash

__all__ = ["FakeClock", "InjectedCrash", "crash_at", "read_events"]


@contextlib.contextmanager
def crash_at(name: str, count: int = 1, how: str = "kill") -> Iterator[None]:
    """A context in which the run crashes at a named point.

    Use it to test that a run survives a crash: crash it, start it again, and compare the result with that of an undisturbed run. For a
    program in a process of its own, the environment variable `TAPELOOPS_CRASH_AT="NAME:COUNT,HOW"` does the same. Only one point is armed
    at a time; at the end of the context the point that was armed before is armed again.

    Args:
        name: the point. While a snapshot is written: "before_write", "half_written", "before_rename" (complete, but not in its place),
            "before_prune" (in its place, no older one deleted yet). While the loop runs: "hook", "feed", "evaluation", "step".
        count: crash when the point is reached for this time; 1: the first time.
        how: "kill" ends the process at once, as by SIGKILL, without any clean-up. "raise" raises `InjectedCrash`. "exit" leaves the
            interpreter as `sys.exit` does, with code 70. A thread writes the snapshots; its errors are raised in the training thread.

    Raises:
        ValueError: if `name`, `count` or `how` is not valid.

    Example:
        >>> from loops import fault_points
        >>> with crash_at("hook", count=2, how="raise"):
        ...     fault_points.reached("hook")
        ...     fault_points.reached("hook")
        Traceback (most recent call last):
        loops.errors.InjectedCrash: Crash injected at 'hook'.
    """
    with fault_points.armed(name, count, how):
        yield


class FakeClock:
    """A clock that moves only when it is told to, so that tests of what happens "every 30 seconds" need not sleep.

    Args:
        now: time at the start, in seconds.
        tick: seconds by which each reading advances the clock.

    Example:
        >>> clock = FakeClock(tick=0.5)
        >>> clock.advance(10)
        >>> clock(), clock()
        (10.0, 10.5)

        In a loop: `loop.clock = FakeClock()`, before `loop.run`.
    """

    def __init__(self, now: float = 0.0, *, tick: float = 0.0):
        self.now = float(now)
        self.tick = tick

    def __call__(self) -> float:
        now = self.now
        self.now += self.tick
        return now

    def advance(self, seconds: float) -> None:
        """Advances the clock by `seconds`."""
        if seconds < 0:
            raise ValueError(f"A clock goes forward; it cannot advance by {seconds!r} seconds.")
        self.now += seconds


def read_events(logdir: str | os.PathLike[str]) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """Reads all TensorBoard event files below a directory.

    Args:
        logdir: directory to search, with its subdirectories.

    Returns:
        run -> tag -> list of (step, value) in the order in which they were written. A run is named by its path below `logdir` ("."
        for `logdir` itself). A scalar is a float, a text a str, a histogram an array of shape [buckets, 3], an image the list of its
        byte strings (width, height, PNG files). A graph has the tag "graph" and its serialized `GraphDef`.

    Example:
        >>> import tempfile
        >>> from loops.summaries.writer import SummaryWriter
        >>> logdir = tempfile.mkdtemp()
        >>> with SummaryWriter(logdir + "/train") as writer:
        ...     writer.scalars([10], {"loss": [0.5]})
        >>> read_events(logdir)
        {'train': {'loss': [(10, 0.5)]}}
    """
    runs: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for directory, _, files in sorted(os.walk(logdir)):
        tags: defaultdict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in sorted(name for name in files if ".tfevents." in name):
            _read_file(os.path.join(directory, file), tags)
        if tags:
            runs[os.path.relpath(directory, logdir)] = dict(tags)
    return runs


def _read_file(path: str, tags: defaultdict[str, list[tuple[int, Any]]]) -> None:
    records = iter(tf.data.TFRecordDataset(path).as_numpy_iterator())
    while True:
        try:
            event = tf.compat.v1.Event.FromString(next(records))
        except StopIteration:
            return
        except tf.errors.DataLossError:  # the last record of a run that was killed while it wrote
            return
        if event.graph_def:
            tags["graph"].append((event.step, event.graph_def))
        for value in event.summary.value:
            tags[value.tag].append((event.step, _decode(value)))


def _decode(value: Any) -> Any:
    if value.HasField("simple_value"):
        return value.simple_value
    array = tf.make_ndarray(value.tensor)
    if array.dtype == object:
        return [bytes(item) for item in array.ravel()] if array.ndim else bytes(array.item()).decode()
    return float(array) if array.ndim == 0 else np.asarray(array)
