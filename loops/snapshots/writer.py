"""Writes snapshots while training goes on: one thread, one snapshot at a time, and errors that come back to the training thread."""

from __future__ import annotations

import atexit
import contextlib
import pathlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from loops.messages import say
from loops.snapshots.store import Draft, SnapshotStore

__all__ = ["SnapshotWriter"]

# A normal exit waits so long for a write in flight; a drive that does not answer must not keep a dying process.
EXIT_SECONDS = 300.0


class SnapshotWriter:
    """Writes the snapshots of one store in the background.

    A snapshot that cannot be written because of the disk (full, read-only, gone) does not end the run: `failure` says what is wrong until
    one is written again. Any other error is raised in the training thread, by the next method that is called.

    Args:
        store: where snapshots go.
        report: is given a sentence when writing begins to fail, and one when it works again. It is called in the training thread.

    Attributes:
        failure: why the newest snapshot could not be saved, as a sentence; None if it could.
        saved_step: step of the newest snapshot that this writer saved, None before the first one.

    Example:
        >>> import tempfile
        >>> store = SnapshotStore(tempfile.mkdtemp())
        >>> writer = SnapshotWriter(store, print)
        >>> draft = writer.begin(10)
        >>> writer.submit(draft, {"w": np.arange(3.0)}, {"epoch": 1}, {})
        >>> writer.close()
        >>> writer.saved_step, writer.failure
        (10, None)
    """

    def __init__(self, store: SnapshotStore, report: Callable[[str], Any] = say):
        self.store = store
        self.failure: str | None = None
        self.saved_step: int | None = None
        self._report = report
        self._reported = False
        self._writing: _Write | None = None

    def begin(self, step: int) -> Draft | None:
        """`store.begin(step)`; None if the disk does not allow it, which counts as a failure to save.

        Raises:
            Exception: what the snapshot before ended with, unless that was the disk.
        """
        self.poll()
        with self.failing(step):
            return self.store.begin(step)
        return None

    def submit(self, draft: Draft, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Waits until the snapshot before is written, and returns while this one is being written.

        Args:
            draft: from `begin`; it is the writer's from now on.
            arrays: name -> array. They must not be changed any more: copies, not views of what is trained.
            state: JSON-able; taken as it is now.
            info: JSON-able; taken as it is now.

        Raises:
            TypeError: if `state` or `info` cannot be held.
            Exception: what the snapshot before ended with, unless that was the disk.
        """
        try:
            write = draft.prepare(arrays, state, info)
            self.wait()
        except BaseException:
            draft.discard()
            raise
        self._writing = _Write(draft.step, write)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until nothing is being written.

        Args:
            seconds: for how long at most; None: as long as it takes.

        Returns:
            Whether nothing is being written now.

        Raises:
            Exception: what the snapshot ended with, unless that was the disk.
        """
        writing = self._writing
        if writing is None:
            return True
        if not writing.join(seconds):
            return False
        self._writing = None
        if isinstance(writing.error, OSError):
            self._failed(writing.step, writing.error)
        elif writing.error is not None:
            raise writing.error
        elif writing.done:
            self._saved(writing.step)
        return True

    def poll(self) -> None:
        """Takes note of a snapshot that has been written meanwhile: reports and errors arrive here. Costs nothing; waits for nothing."""
        self.wait(0)

    def close(self) -> None:
        """As `wait`; the writer can be used again."""
        self.wait()

    @contextlib.contextmanager
    def failing(self, step: int) -> Iterator[None]:
        """In this context an `OSError` counts as a failure to save the snapshot of `step`, and does not leave it.

        For what the caller writes into `draft.files`.
        """
        try:
            yield
        except OSError as error:
            self._failed(step, error)

    def _failed(self, step: int, error: OSError) -> None:
        where = str(self.store.directory)
        self.failure = f"The snapshot of step {step:,} could not be saved in {where!r} ({error.strerror or error})."
        if not self._reported:
            self._reported = True
            saved = (
                "none was saved before" if self.saved_step is None else f"the last one that was saved is that of step {self.saved_step:,}"
            )
            self._report(f"{self.failure} Training goes on, the next one is tried again; {saved}.")

    def _saved(self, step: int) -> None:
        self.saved_step, self.failure = step, None
        if self._reported:
            self._reported = False
            self._report(f"Snapshots can be saved again in {str(self.store.directory)!r}: that of step {step:,} is.")


class _Write:
    """One snapshot on its way to the disk."""

    def __init__(self, step: int, write: Callable[[], pathlib.Path]):
        self.step = step
        self.error: BaseException | None = None
        self.done = False  # stays so in a forked process, which has no such thread
        # Not a thread that an exit waits for without end, see `_finish_writing`.
        self._thread = threading.Thread(target=self._run, args=(write,), name=f"snapshot-{step}", daemon=True)
        _in_flight.add(self)
        self._thread.start()

    def join(self, seconds: float | None) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, write: Callable[[], pathlib.Path]) -> None:
        try:
            write()
            self.done = True
        except BaseException as error:
            self.error = error
        finally:
            _in_flight.discard(self)


_in_flight: weakref.WeakSet[_Write] = weakref.WeakSet()


@atexit.register
def _finish_writing() -> None:
    end = time.monotonic() + EXIT_SECONDS
    for write in list(_in_flight):
        write.join(max(0.0, end - time.monotonic()))
