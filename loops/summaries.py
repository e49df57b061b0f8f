"""Writes TensorBoard event files from a background thread, many steps at a time.

The files hold what `tf.summary` (version 2) writes, so TensorBoard shows them like those of any other program. What is worth writing,
and when, is decided elsewhere: see `loops.hooks.TensorBoard`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from loops import event_records, event_rows

__all__ = ["SummaryWriter", "cut_back"]

_file_numbers = itertools.count()
_PREFIX = "events.out.tfevents."
_SECONDS_BETWEEN_WRITES = 0.25
_Job = Callable[[], list[bytes] | bytes | None]  # makes events, or records with events in them, or does something else


class SummaryWriter:
    """Writes one run of TensorBoard events below `logdir`.

    A call only hands its arrays to a background thread, which builds and writes the events; so do not change an array after passing
    it. What goes wrong there (a full disk) is raised by the next call, by `flush` or by `close`. The file is made with the first event.

    Args:
        logdir: directory of the run, made if it is missing. Any path that `tf.io.gfile` understands.
        max_queue: calls that may wait to be written; the next one then blocks.
        mark: letters and digits that the name of the file has near its end, by which `cut_back` knows it again.
        not_before: seconds since the Unix epoch; the name of the file tells no earlier time. TensorBoard reads files in the order of their
            names.
        restarts_at: the file begins by telling TensorBoard to forget what it read of this run at this step and later.

    Attributes:
        last_step: the largest step passed so far, -1 before the first.

    Example:
        >>> import tempfile
        >>> from loops import testing
        >>> logdir = tempfile.mkdtemp()
        >>> with SummaryWriter(logdir + "/train") as writer:
        ...     writer.scalars([1, 2, 3], {"batch_loss": [0.5, 0.25, 0.125]})
        >>> testing.read_events(logdir)["train"]["batch_loss"]
        [(1, 0.5), (2, 0.25), (3, 0.125)]
    """

    def __init__(
        self, logdir: str | os.PathLike[str], *, max_queue: int = 64, mark: str = "", not_before: int = 0, restarts_at: int | None = None
    ):
        self.logdir = os.fspath(logdir)
        self.last_step = -1
        self._file = _EventFile(self.logdir, mark, not_before, restarts_at)
        self._queue: queue.Queue[_Job | threading.Event | None] = queue.Queue(max_queue)
        self._hurry = threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def scalars(self, steps: npt.ArrayLike, values: Mapping[str, npt.ArrayLike], wall_times: npt.ArrayLike | None = None) -> None:
        """Writes one event per step that holds all tags.

        Args:
            steps: step numbers, shape [steps].
            values: tag -> values, shape [steps], written as float32. Masked entries of a masked array are left out.
            wall_times: seconds since the Unix epoch, shape [steps] or a scalar; now if None.
        """
        times = time.time() if wall_times is None else wall_times
        self._put(functools.partial(event_rows.records, steps, dict(values), times))
        self.last_step = max(self.last_step, int(np.max(steps, initial=-1)))

    def histogram(self, tag: str, values: npt.ArrayLike, step: int) -> None:
        """Writes the distribution of `values` (any shape and real dtype) over 30 buckets; non-finite values are not counted."""
        self._put(functools.partial(event_records.histogram, tag, values, step, time.time()))
        self.last_step = max(self.last_step, int(step))

    def image(self, tag: str, images: npt.ArrayLike, step: int) -> None:
        """Writes one image or several.

        Args:
            tag: name of the image.
            images: shape [height, width], [height, width, channels] or [n, height, width, channels] with 1, 3 or 4 channels; uint8,
                or floats from 0 to 1 (others are clipped).
            step: step number.

        Raises:
            ValueError: if the shape is another.
        """
        array = np.asarray(images)
        array = array[None, :, :, None] if array.ndim == 2 else array[None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
            raise ValueError(
                f"An image has shape [height, width], [height, width, channels] or [n, height, width, channels] with 1, 3 or 4 channels; "
                f"'{tag}' has shape {list(np.shape(images))}."
            )
        self._put(functools.partial(event_records.images, tag, array, step, time.time()))
        self.last_step = max(self.last_step, int(step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text, which TensorBoard shows as Markdown."""
        self._put(functools.partial(event_records.text, tag, text, step, time.time()))
        self.last_step = max(self.last_step, int(step))

    def keras_graph(self, tag: str, model_json: str) -> None:
        """Writes the layers of a Keras model, given as its `to_json()`, for TensorBoard's conceptual graph."""
        self._put(functools.partial(event_records.keras_graph, tag, model_json, time.time()))
        self.last_step = max(self.last_step, 0)

    def graph(self, graph: Any) -> None:
        """Writes a `tf.Graph` or a `GraphDef`; TensorBoard shows one for each run, the last."""
        self._put(functools.partial(event_records.graph, graph, time.time()))

    def submit(self, task: Callable[[], object]) -> None:
        """Runs `task` in the background thread, in its turn; for files that belong to the run but are no events."""

        def job() -> None:
            task()

        self._put(job)

    @property
    def files(self) -> dict[str, int]:
        """Name of the file below `logdir` -> its length in bytes; empty before the first event. True after `flush` or `close`."""
        return {self._file.name: self._file.length} if self._file.name else {}

    def flush(self) -> None:
        """Waits until everything passed so far is in the file, and raises what went wrong."""
        if self._thread is not None and not self._closed:
            done = threading.Event()
            self._queue.put(done)
            self._hurry.set()
            done.wait()
        self._raise_error()

    def close(self) -> None:
        """Writes what is left and closes the file; a second call does nothing. Raises what went wrong."""
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                self._queue.put(None)
                self._hurry.set()
                self._thread.join()
        self._raise_error()

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _put(self, job: _Job) -> None:
        self._raise_error()
        if self._closed:
            raise RuntimeError(f"The summary writer of '{self.logdir}' is closed; make a new one to go on writing.")
        if self._thread is None:
            # A daemon, so that a program that forgets to close its writer still ends.
            self._thread = threading.Thread(target=self._work, name="summary-writer", daemon=True)
            self._thread.start()
        self._queue.put(job)
        if 2 * self._queue.qsize() >= self._queue.maxsize:
            self._hurry.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            kind = OSError if isinstance(error, OSError) else RuntimeError
            raise kind(f"TensorBoard events could not be written to '{self.logdir}': {error}") from error

    def _work(self) -> None:
        ended = False
        while not ended:
            job = self._queue.get()
            # What training asks for at the end of an epoch would be done while it does more there, and wait for it again and again. So it
            # is left for a moment, and then done in one go.
            self._hurry.wait(_SECONDS_BETWEEN_WRITES)
            self._hurry.clear()
            with contextlib.suppress(queue.Empty):
                while not (ended := job is None):
                    self._do(job)
                    job = self._queue.get_nowait()
            self._do(self._file.close if ended else self._file.flush)  # TensorBoard follows the run

    def _do(self, job: _Job | threading.Event | None) -> None:
        try:
            if isinstance(job, threading.Event):
                self._file.flush()
            elif job is not None and (made := job()):
                self._file.write(made)
        except BaseException as error:
            self._error = self._error or error
        finally:
            if isinstance(job, threading.Event):
                job.set()


class _EventFile:
    """An event file that is made when the first event is written."""

    def __init__(self, logdir: str, mark: str, not_before: int, restarts_at: int | None):
        self._logdir, self._mark, self._not_before, self._restarts_at = logdir, mark, not_before, restarts_at
        self._file: Any = None
        self.name, self.length = "", 0

    def write(self, made: list[bytes] | bytes) -> None:
        if self._file is None:
            tf.io.gfile.makedirs(self._logdir)
            now = time.time()
            # The name that TensorFlow gives; but TensorBoard puts files in the order of their names, so the number has leading zeros.
            number = f"{socket.gethostname()}.{os.getpid()}.{next(_file_numbers):04d}"
            self.name = f"{_PREFIX}{max(int(now), self._not_before):010d}.{number}{'.' * bool(self._mark)}{self._mark}.v2"
            self._file = tf.io.gfile.GFile(os.path.join(self._logdir, self.name), "wb")
            first = [event_records.file_version(now)]
            if self._restarts_at is not None:
                first.append(event_records.session_start(self._restarts_at, now))
            self._append(_records(first))
        self._append(made if isinstance(made, bytes) else _records(made))

    def _append(self, records: bytes) -> None:
        self._file.write(records)
        self.length += len(records)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _records(events: list[bytes]) -> bytes:
    """Any events as the records that TensorFlow writes, which it does into memory here."""
    path = f"ram://events/{os.getpid()}/{threading.get_ident()}"
    with tf.io.TFRecordWriter(path) as writer:
        for event in events:
            writer.write(event)
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    tf.io.gfile.remove(path)
    return bytes(content)


def cut_back(directory: str | os.PathLike[str], files: Mapping[str, int], mark: str) -> tuple[dict[str, int], list[str]]:
    """Takes the event files below a directory back to where they were: cuts those of `files`, and deletes the others that bear `mark`.

    Args:
        directory: directory above the runs.
        files: path below `directory` -> length in bytes.
        mark: what `SummaryWriter` was given, not empty.

    Returns:
        The files that are there and their lengths now, and the paths of those that are missing or shorter than they were.

    Example:
        >>> import tempfile
        >>> from loops import testing
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
    # Paths are joined with "/" by gfile on some systems and with the system's own separator by others.
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
    # Remote file systems write whole files only.
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path).removeprefix(_PREFIX)}.cut")
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read(length)
    with tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(content)
    tf.io.gfile.rename(temporary, path, overwrite=True)
