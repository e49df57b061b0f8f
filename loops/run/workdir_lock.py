"""One process at a time in a workdir: a lock that the system releases however the process ends, and a sentence for the second one."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import json
import os
import pathlib
import socket
import types
import weakref
from collections.abc import Callable
from typing import Any

from loops.errors import WorkdirInUse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "WorkdirLock"]

LOCK = ".lock"


class WorkdirLock:
    """Holds a workdir for this process, from `acquire` to `release` or the end of the process, a kill included.

    The lock is a `flock` on `<workdir>/.lock`; what stands in that file only says who holds it. Processes that are forked meanwhile do not
    hold it. Where there is no `flock` (Windows, some network drives), two runs in this process are still kept apart, two processes are not;
    that is said once.

    Args:
        workdir: the folder. `acquire` makes it.
        report: is given a sentence if there can be no lock.

    Example:
        >>> import tempfile
        >>> workdir = tempfile.mkdtemp()
        >>> with WorkdirLock(workdir):
        ...     WorkdirLock(workdir).acquire()
        Traceback (most recent call last):
        loops.run.workdir_lock.WorkdirInUse: The workdir ... is in use by this very process since ...
    """

    def __init__(self, workdir: str | os.PathLike[str], report: Callable[[str], Any] = print):
        self.workdir = pathlib.Path(workdir)
        self._report = report
        self._held: pathlib.Path | None = None
        self._file: io.FileIO | None = None
        self._since = ""

    def acquire(self) -> WorkdirLock:
        """Takes the lock, at once or not at all.

        Raises:
            WorkdirInUse: if it is taken; the message says by whom.
            OSError: if the folder cannot be written.
        """
        if self._held is not None:
            raise RuntimeError(f"This lock of {str(self.workdir)!r} is held already; release it first.")
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir.resolve()
        # Asked first: on drives where a flock is a lock of the whole process, it would be granted twice, and lost with either.
        for other in list(_held_here):
            if other._held == path:
                raise WorkdirInUse(f"The workdir {str(self.workdir)!r} is in use by this very process since {other._since}; {_WAYS_OUT}.")
        self._since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self._file = self._lock(path)
        self._held = path
        _held_here.add(self)
        return self

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        self._held = None
        _held_here.discard(self)
        file, self._file = self._file, None
        if file is not None:
            # The file stays: whoever deleted it could delete one that somebody else has locked meanwhile.
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                owner = _owner(os.pread(file.fileno(), 4096, 0))
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise WorkdirInUse(f"The workdir {str(self.workdir)!r} is in use by {owner}; {_WAYS_OUT}.") from None
            if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
                self._say_unprotected(str(error.strerror))
                return None
            raise
        # A full disk does not make the lock any weaker.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.pwrite(file.fileno(), json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": self._since}).encode(), 0)
        return file

    def _say_unprotected(self, why: str) -> None:
        self._report(f"The workdir {str(self.workdir)!r} cannot be locked ({why}): see to it that no other process uses it.")


_WAYS_OUT = "wait for it, stop it, or give another workdir"

_held_here: weakref.WeakSet[WorkdirLock] = weakref.WeakSet()


def _owner(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        # It has just begun, and not yet written who it is.
        return "another process"


def _let_go_in_child() -> None:
    # A worker that outlives its killed parent would keep the lock. Closing does not take it from the parent.
    for lock in list(_held_here):
        lock._held = None
        file, lock._file = lock._file, None
        if file is not None:
            file.close()
    _held_here.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
