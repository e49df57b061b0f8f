"""The points that a run gives to a tracker: a file that holds all of them, and those that the tracker has not got yet.

A tracker gets points late, in a thread, and may lose those that it got last when the process is killed. So all points stay in a file of
the workdir, one a line, and the next process asks the tracker what it has and gives it the rest. The file is cut back when a run is
resumed: it then holds the points up to the snapshot, and the run makes those behind it again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Iterator

__all__ = ["Point", "TrackedPoints"]


@dataclasses.dataclass(frozen=True)
class Point:
    """Values that belong to one training step. A step may have several points, each with other names.

    Attributes:
        step: completed training steps.
        time: seconds since 1970 when they were logged.
        values: name -> number.
        pictures: name -> name of a PNG file in the hook's folder of pictures.
    """

    step: int
    time: float
    values: dict[str, float]
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)


class TrackedPoints:
    """Points in the order of their steps, for one thread that adds them and one that takes them.

    Args:
        path: file that holds all points; None keeps only those that were not taken yet, in memory.
        keep: whether the file's points belong to this run; else the first point replaces them.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "points.jsonl")
        >>> points = TrackedPoints(path, keep=False)
        >>> points.add(Point(1, 0.0, {"loss": 0.5}))
        >>> length = points.length
        >>> points.add(Point(2, 0.0, {"loss": 99.0}))
        >>> points.cut(length)
        0
        >>> again = TrackedPoints(path, keep=True)
        >>> again.start_over()
        >>> [point.step for point in again.take(10)[1]]
        [1]
    """

    def __init__(self, path: pathlib.Path | None, *, keep: bool):
        self._path, self._fresh = path, not keep
        self._waiting: collections.deque[Point] = collections.deque()
        self._unwritten: list[Point] = []  # points that the file could not take
        self._changed = threading.Condition()
        self._round = 0  # counts how often the points that wait were replaced
        self._ended = False

    @property
    def length(self) -> int:
        """How much of the file belongs to the points up to now, in bytes."""
        with self._changed:
            return self._length()

    def add(self, point: Point) -> None:
        """Adds a point behind all others.

        Raises:
            OSError: if the file cannot be written; the point is given to the tracker even so.
        """
        with self._changed:
            self._waiting.append(point)
            self._changed.notify_all()
            if self._path is None:
                return
            before = self._length()
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("wb" if self._fresh else "ab") as file:
                    self._fresh = False
                    file.write(json.dumps(dataclasses.asdict(point)).encode() + b"\n")
            except OSError:
                self._unwritten.append(point)
                with contextlib.suppress(OSError):
                    os.truncate(self._path, before)  # the next point begins a line of its own
                raise

    def cut(self, length: int) -> int:
        """Drops the points behind a length that the file had, as the run makes them again.

        Returns:
            How many bytes of that length are missing.

        Raises:
            OSError: if the file cannot be cut.
        """
        with self._changed:
            self._waiting.clear()
            self._unwritten.clear()
            self._round += 1
            found = self._length()
            if found > length and self._path is not None:
                os.truncate(self._path, length)
            return max(0, length - found) if self._path is not None else 0

    def start_over(self) -> None:
        """Lets all points of the run wait again, because the tracker was opened just now; without a file, those that were not taken."""
        with self._changed:
            if self._path is None:
                return
            points = [] if self._fresh or not self._path.exists() else list(_read(self._path))
            points += self._unwritten
            self._waiting = collections.deque(points)
            self._round += 1

    def take(self, most: int) -> tuple[int, list[Point]] | None:
        """Waits for points, and returns up to `most` of them and the number to give to `taken`; None when they have ended."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
            return (self._round, list(itertools.islice(self._waiting, most))) if self._waiting else None

    def taken(self, number: int, count: int) -> None:
        """Says that the tracker has the first `count` points of `take`."""
        with self._changed:
            if number == self._round:
                for _ in range(count):
                    self._waiting.popleft()

    def end(self) -> None:
        """Says that no point follows."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def reopened(self) -> TrackedPoints:
        """The same points for another thread, after the end."""
        with self._changed:
            again = TrackedPoints(self._path, keep=not self._fresh)
            again._waiting, again._unwritten = self._waiting.copy(), list(self._unwritten)
            return again

    def wait_for_end(self, seconds: float) -> bool:
        """Waits until no point follows, at most so long; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, seconds)

    def _length(self) -> int:
        return 0 if self._path is None or self._fresh or not self._path.exists() else self._path.stat().st_size


def _read(path: pathlib.Path) -> Iterator[Point]:
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError):  # the last line, where a disk was full or the power failed
            yield Point(**json.loads(line))
