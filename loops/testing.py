"""Tools for testing training loops, ours and those of users."""

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
    """Within this context the run crashes at a named point.

    To test that a run survives what happens to it: crash it, start it again, and compare with one that was left alone. For a program that
    is started in a process of its own, the environment variable `TAPELOOPS_CRASH_AT="NAME:COUNT,HOW"` does the same. One point is armed at
    a time; the one that was armed before comes back at the end.

    Args:
        name: where. While a snapshot is written: "before_write", "half_written", "before_rename" (complete, but not in its place),
            "before_prune" (in its place, nothing older deleted yet). While the loop runs: "hook", "feed", "evaluation", "step".
        count: at which time that the point is reached, 1 for the first.
        how: "kill": the process ends at once, as by SIGKILL, and nothing is cleaned up. "raise": `InjectedCrash`, an error like any other.
            "exit": as by `sys.exit`, with code 70. A snapshot is written by a thread: what it raises arrives in the training thread.

    Raises:
        ValueError: for a name, count or way that does not exist.

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
    """A clock that stands still until it is told to go on: with it, tests of what happens "every 30 seconds" need no sleeping.

    Args:
        now: time at the start, in seconds.
        tick: seconds by which the clock goes on each time that it is read.

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
        """Lets `seconds` pass."""
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
        except tf.errors.DataLossError:  # the last record of a run that was killed while writing
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
