"""Writes snapshots in a thread while training goes on, one at a time, and reports errors in the training thread."""

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

# How long the exit of the process waits for a snapshot that is being written: a drive that does not answer must not block it for ever.
EXIT_SECONDS = 300.0


class SnapshotWriter:
    """Writes the snapshots of one store in the background.

    A snapshot that cannot be written because of the disk (full, read-only, gone) does not end the run: `failure` says what is wrong, until
    a later snapshot is written. The next method that the training thread calls raises any other error.

    Args:
        store: where snapshots go.
        report: called, in the training thread, with a sentence when writing begins to fail, and when it works again.

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
        """As `store.begin(step)`. Returns None, and counts as a failure to save, if the disk does not allow it.

        Raises:
            Exception: the error of the snapshot before, if it was not an `OSError`.
        """
        self.poll()
        with self.failing(step):
            return self.store.begin(step)
        return None

    def submit(self, draft: Draft, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Waits until the snapshot before is written, begins to write this one, and returns.

        Args:
            draft: from `begin`; the caller must not use it any more.
            arrays: name -> array. They must not change any more: pass copies, not views of variables.
            state: JSON-able; serialized before this method returns.
            info: JSON-able; serialized before this method returns.

        Raises:
            TypeError: if `state` or `info` is not JSON-able.
            Exception: the error of the snapshot before, if it was not an `OSError`.
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
            seconds: longest time to wait; None: no limit.

        Returns:
            Whether nothing is being written now.

        Raises:
            Exception: the error of the snapshot, if it was not an `OSError`.
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
        """Notices a snapshot that has been written meanwhile, and reports or raises its error. Does not wait."""
        self.wait(0)

    def close(self) -> None:
        """As `wait`; the writer can be used again."""
        self.wait()

    @contextlib.contextmanager
    def failing(self, step: int) -> Iterator[None]:
        """A context that catches an `OSError` and counts it as a failure to save the snapshot of `step`.

        Use it around the caller's own writing into `draft.files`.
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
    """A thread that writes one snapshot."""

    def __init__(self, step: int, write: Callable[[], pathlib.Path]):
        self.step = step
        self.error: BaseException | None = None
        self.done = False  # stays False in a forked process, where the thread does not exist
        # A daemon thread: Python's exit would wait for another kind without a limit, `_finish_writing` waits with one.
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
