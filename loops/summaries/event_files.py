"""Event files of TensorBoard on disk: writes them, and cuts them back to an earlier length.

`event_records.py` and `event_rows.py` make their content, and `writer.py` decides when it is written.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from loops.files import write_anywhere
from loops.summaries import event_records
from loops.summaries.records import record

__all__ = ["EventFile", "cut_back"]

_file_numbers = itertools.count()
_PREFIX = "events.out.tfevents."


class EventFile:
    """An event file that is created when the first event is written. Its arguments are those of `writer.SummaryWriter`.

    Attributes:
        name: name of the file, empty before it is created.
        length: bytes written so far.
    """

    def __init__(self, logdir: str, *, mark: str, not_before: int, restarts_at: int | None):
        self._logdir, self._mark, self._not_before, self._restarts_at = logdir, mark, not_before, restarts_at
        self._file: Any = None
        self.name, self.length = "", 0

    def write(self, made: list[bytes] | bytes) -> None:
        """Appends serialized events, or records with events in them."""
        if self._file is None:
            tf.io.gfile.makedirs(self._logdir)
            now = time.time()
            # TensorFlow's form of the name, but with leading zeros, because TensorBoard reads files in the order of their names.
            number = f"{socket.gethostname()}.{os.getpid()}.{next(_file_numbers):04d}"
            self.name = f"{_PREFIX}{max(int(now), self._not_before):010d}.{number}{'.' * bool(self._mark)}{self._mark}.v2"
            self._file = tf.io.gfile.GFile(os.path.join(self._logdir, self.name), "wb")
            first = [event_records.file_version(now)]
            if self._restarts_at is not None:
                first.append(event_records.session_start(self._restarts_at, now))
            self._append(b"".join(map(record, first)))
        self._append(made if isinstance(made, bytes) else b"".join(map(record, made)))

    def _append(self, records: bytes) -> None:
        self._file.write(records)
        self.length += len(records)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def cut_back(directory: str | os.PathLike[str], files: Mapping[str, int], mark: str) -> tuple[dict[str, int], list[str]]:
    """Cuts the event files of `files` back to their earlier lengths, and deletes all other event files with `mark` in their names.

    Args:
        directory: directory above the runs.
        files: path below `directory` -> length in bytes.
        mark: the `mark` of their `SummaryWriter`, not empty.

    Returns:
        The files of `files` that exist, with their lengths now; and the paths of those that are missing or shorter than they were.

    Example:
        >>> import tempfile
        >>> from loops import testing
        >>> from loops.summaries.writer import SummaryWriter
        >>> logdir = tempfile.mkdtemp()
        >>> writer = SummaryWriter(logdir, mark="a1")
        >>> writer.scalars([1], {"loss": [0.5]})
        >>> writer.flush()
        >>> files = writer.files
        >>> writer.scalars([2], {"loss": [0.25]})
        >>> writer.close()
        >>> kept, lost = cut_back(logdir, files, "a1")
        >>> kept == files, lost, testing.read_events(logdir)
        (True, [], {'.': {'loss': [(1, 0.5)]}})
    """
    if not mark:
        raise ValueError("cut_back deletes files by their mark; give the one that their SummaryWriter was given.")
    root = os.fspath(directory)
    kept: dict[str, int] = {}
    lost: list[str] = []
    for name, length in files.items():
        path = os.path.join(root, name)
        size = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else -1
        if size > length:
            _cut(path, length)
        if size < length:
            lost.append(name)
        if size >= 0:
            kept[name] = min(size, length)
    # gfile joins paths with "/" on some systems, and with the system's separator on others.
    known = {os.path.normpath(os.path.join(root, name)) for name in files}
    for folder, _, names in list(tf.io.gfile.walk(root)):
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(_PREFIX) and name.endswith(f".{mark}.v2") and os.path.normpath(path) not in known:
                tf.io.gfile.remove(path)
    return kept, lost


def _cut(path: str, length: int) -> None:
    if os.path.exists(path):
        os.truncate(path, length)
        return
    # A remote file system cannot cut a file: write its beginning again.
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read(length)
    write_anywhere(path, content)
