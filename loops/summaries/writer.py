"""Writes TensorBoard event files from a background thread, many steps at a time.

The files hold what `tf.summary` (version 2) writes, so TensorBoard shows them like those of any other program. This module does not decide
what is written, or when: `loops.hooks.TensorBoard` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from loops.summaries import event_records, event_rows, hparams
from loops.summaries.event_files import EventFile

__all__ = ["SummaryWriter"]

_SECONDS_BETWEEN_WRITES = 0.25
_Job = Callable[[], list[bytes] | bytes | None]  # returns events, or records with events in them; or None, after another task


@dataclasses.dataclass(frozen=True)
class _ScalarsJob:
    steps: npt.ArrayLike
    values: Mapping[str, npt.ArrayLike]
    wall_times: npt.ArrayLike

    def read(self) -> event_rows.Scalars:
        return event_rows.Scalars(self.steps, self.values, self.wall_times)


class SummaryWriter:
    """Writes the events of one TensorBoard run into `logdir`.

    A call only hands its arrays to a background thread, which builds and writes the events; so do not change an array after passing
    it. The next call, `flush` or `close` raises the errors of that thread (a full disk). The first event creates the file.

    Args:
        logdir: directory of the run, created if it is missing. Any path that `tf.io.gfile` understands.
        max_queue: number of calls that may wait to be written; a further one blocks.
        mark: letters and digits near the end of the file's name, by which `event_files.cut_back` finds its files.
        not_before: seconds since the Unix epoch; the time in the file's name is not earlier. TensorBoard reads files in the order of their
            names.
        restarts_at: a step; the file begins with an event that makes TensorBoard drop what it has read of this run at this step and later.

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
        self._file = EventFile(self.logdir, mark=mark, not_before=not_before, restarts_at=restarts_at)
        self._queue: queue.Queue[_Job | _ScalarsJob | threading.Event | None] = queue.Queue(max_queue)
        self._write_now = threading.Event()
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
        self._put(_ScalarsJob(steps, dict(values), times))
        self.last_step = max(self.last_step, int(np.max(steps, initial=-1)))

    def histogram(self, tag: str, values: npt.ArrayLike, step: int) -> None:
        """Writes the distribution of `values` (any shape and real dtype) over 30 buckets; non-finite values are not counted."""
        self._put(functools.partial(event_records.histogram, tag, values, step, time.time()))
        self.last_step = max(self.last_step, int(step))

    def image(self, tag: str, images: npt.ArrayLike, step: int) -> None:
        """Writes one image or several.

        Args:
            tag: name of the images.
            images: shape [height, width], [height, width, channels] or [n, height, width, channels] with 1, 3 or 4 channels; uint8,
                or floats from 0 to 1 (others are clipped).
            step: step number.

        Raises:
            ValueError: if the shape is none of these.
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

    def hparams(self, values: Mapping[str, bool | float | str]) -> None:
        """Writes the hyper-parameters of a run for the HParams dashboard."""
        self._put(functools.partial(hparams.given, dict(values)))
        self.last_step = max(self.last_step, 0)

    def ended(self, outcome: str | None) -> None:
        """Writes for the HParams dashboard how a run ended, see `TrainLoop.outcome`."""
        self._put(functools.partial(hparams.ended, outcome))

    def keras_graph(self, tag: str, model_json: str) -> None:
        """Writes the layers of a Keras model, given as its `to_json()`, for TensorBoard's conceptual graph."""
        self._put(functools.partial(event_records.keras_graph, tag, model_json, time.time()))
        self.last_step = max(self.last_step, 0)

    def graph(self, graph: Any) -> None:
        """Writes a `tf.Graph` or a `GraphDef`; TensorBoard shows the last one of each run."""
        self._put(functools.partial(event_records.graph, graph, time.time()))

    def submit(self, task: Callable[[], object]) -> None:
        """Runs `task` in the background thread, after the earlier calls; for files of the run that are not event files."""

        def job() -> None:
            task()

        self._put(job)

    @property
    def files(self) -> dict[str, int]:
        """Name of the file -> its length in bytes; empty before the first event. The length is exact after `flush` or `close`."""
        return {self._file.name: self._file.length} if self._file.name else {}

    def flush(self) -> None:
        """Waits until everything passed so far is in the file, and raises the first error."""
        if self._thread is not None and not self._closed:
            done = threading.Event()
            self._queue.put(done)
            self._write_now.set()
            done.wait()
        self._raise_error()

    def close(self) -> None:
        """Writes what is left and closes the file; a second call does nothing. Raises the first error."""
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                self._queue.put(None)
                self._write_now.set()
                self._thread.join()
        self._raise_error()

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _put(self, job: _Job | _ScalarsJob) -> None:
        self._raise_error()
        if self._closed:
            raise RuntimeError(f"The summary writer of '{self.logdir}' is closed; make a new one to go on writing.")
        if self._thread is None:
            # A daemon thread, so that a program that does not close its writer can end.
            self._thread = threading.Thread(target=self._work, name="summary-writer", daemon=True)
            self._thread.start()
        self._queue.put(job)
        if 2 * self._queue.qsize() >= self._queue.maxsize:
            self._write_now.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            kind = OSError if isinstance(error, OSError) else RuntimeError
            raise kind(f"TensorBoard events could not be written to '{self.logdir}': {error}") from error

    def _work(self) -> None:
        ended = False
        while not ended:
            jobs = [self._queue.get()]
            # At the end of an epoch the training thread is busy with several hooks, and this thread would compete with it for the
            # interpreter lock at every event. So it waits for a moment and then does all waiting jobs together.
            self._write_now.wait(_SECONDS_BETWEEN_WRITES)
            self._write_now.clear()
            with contextlib.suppress(queue.Empty):
                while jobs[-1] is not None:
                    jobs.append(self._queue.get_nowait())
            ended = jobs[-1] is None
            self._do_all(jobs)
            self._do(self._file.close if ended else self._file.flush)  # so that TensorBoard can follow the run

    def _do_all(self, jobs: list[_Job | _ScalarsJob | threading.Event | None]) -> None:
        scalars = {i: read for i, job in enumerate(jobs) if isinstance(job, _ScalarsJob) and (read := self._do(job.read)) is not None}
        records = dict(zip(scalars, self._do(lambda: event_rows.records_together(list(scalars.values()))) or [], strict=False))
        for i, job in enumerate(jobs):
            if isinstance(job, threading.Event):
                self._do(self._file.flush)
                job.set()
            elif job is not None:
                made = records.get(i) if isinstance(job, _ScalarsJob) else self._do(job)
                if made:
                    self._do(functools.partial(self._file.write, made))

    def _do(self, task: Callable[[], Any]) -> Any:
        """What `task` returns; None after an error, which the next call raises."""
        try:
            return task()
        except BaseException as error:
            self._error = self._error or error
            return None
