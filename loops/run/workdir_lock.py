"""Lets one process at a time use a workdir, by a lock that the system releases however the process ends. It knows no runs."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import json
import os
import pathlib
import socket
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

from loops.errors import WorkdirInUse
from loops.messages import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "WorkdirLock", "is_locked"]

LOCK = ".lock"
_TRIES, _SECONDS_BETWEEN_TRIES = 3, 0.02


class WorkdirLock:
    """Holds a workdir for this process, from `acquire` to `release` or the end of the process, a kill included.

    The lock is a `flock` on `<workdir>/.lock`; the content of that file only names the holder. A forked child does not hold the lock. Where
    there is no `flock` (Windows, some network drives), two runs of one process still exclude each other, two processes do not; `report` is
    then called with a warning.

    Args:
        workdir: the folder; `acquire` creates it if it is missing.
        report: called with a sentence if there is no `flock`.

    Example:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> with WorkdirLock(workdir):
        ...     WorkdirLock(workdir).acquire()
        Traceback (most recent call last):
        loops.errors.WorkdirInUse: The workdir ... is in use by this very process since ...
    """

    def __init__(self, workdir: str | os.PathLike[str], report: Callable[[str], Any] = say):
        self.workdir = pathlib.Path(workdir)
        self._report = report
        self._held: pathlib.Path | None = None
        self._file: io.FileIO | None = None
        self._since = ""

    def acquire(self) -> WorkdirLock:
        """Takes the lock; does not wait for it.

        Raises:
            WorkdirInUse: if it is taken; the message says by whom.
            OSError: if the folder cannot be written.
        """
        if self._held is not None:
            raise RuntimeError(f"This lock of {str(self.workdir)!r} is held already; release it first.")
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir.resolve()
        # Checked first: on some network drives a flock belongs to the process. It would be granted twice, and one release would end both.
        for other in list(_held_by_this_process):
            if other._held == path:
                raise WorkdirInUse(f"The workdir {str(self.workdir)!r} is in use by this very process since {other._since}; {_WAYS_OUT}.")
        self._since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self._file = self._lock(path)
        self._held = path
        _held_by_this_process.add(self)
        return self

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        self._held = None
        _held_by_this_process.discard(self)
        file, self._file = self._file, None
        if file is not None:
            # The file stays: deleting it could delete the file that another process has locked meanwhile.
            with file, contextlib.suppress(OSError):
                file.truncate(0)

    def __enter__(self) -> WorkdirLock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.release()

    def _lock(self, path: pathlib.Path) -> io.FileIO | None:
        if fcntl is None:
            self._say_unprotected("this system has no flock")
            return None
        file = io.FileIO(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
        try:
            _lock_now(file)
        except OSError as error:
            with file:
                owner = _owner(os.pread(file.fileno(), 4096, 0))
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise WorkdirInUse(f"The workdir {str(self.workdir)!r} is in use by {owner}; {_WAYS_OUT}.") from None
            if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
                self._say_unprotected(str(error.strerror))
                return None
            raise
        # The lock holds even if the disk is full and nothing can be written into the file.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.pwrite(file.fileno(), json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": self._since}).encode(), 0)
        return file

    def _say_unprotected(self, why: str) -> None:
        self._report(f"The workdir {str(self.workdir)!r} cannot be locked ({why}): see to it that no other process uses it.")


def _lock_now(file: io.FileIO) -> None:
    """Takes the lock. `is_locked` in another process holds it for an instant, so one refusal proves nothing."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_SECONDS_BETWEEN_TRIES)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(workdir: str | os.PathLike[str]) -> bool:
    """Whether a process uses a workdir now, this one included; False where there is no `flock`. Writes nothing."""
    path = pathlib.Path(workdir).resolve()
    if any(lock._held == path for lock in list(_held_by_this_process)):
        return True
    if fcntl is None:
        return False
    try:
        file = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: two that ask at the same time do not take each other for a run.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    finally:
        os.close(file)


_WAYS_OUT = "wait for it, stop it, or give another workdir"

_held_by_this_process: weakref.WeakSet[WorkdirLock] = weakref.WeakSet()


def _owner(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        # The holder has taken the lock, but not yet written its name.
        return "another process"


def _release_in_child() -> None:
    # A child that outlives its killed parent would keep the lock. Closing the child's descriptor leaves the parent's lock in place.
    for lock in list(_held_by_this_process):
        lock._held = None
        file, lock._file = lock._file, None
        if file is not None:
            file.close()
    _held_by_this_process.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
