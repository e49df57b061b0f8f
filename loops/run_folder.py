"""The workdir of a run while the run uses it: locked, found again, saved to in the background.

Knows files, not training: what a state consists of is the business of `runstate.py`.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from loops import workdir as workdirs
from loops.runstate import RunState
from loops.snapshot_writer import SnapshotWriter
from loops.snapshots import Best, Snapshot, SnapshotStore
from loops.workdir_lock import WorkdirLock

__all__ = ["RunFolder", "SaveError"]

FEED = "feed"


class SaveError(OSError):
    """The run has ended, but its last state, or a record of it, could not be saved."""


class RunFolder:
    """Where a run leaves its snapshots.

    Args:
        workdir: the folder.
        resume: "auto", "never" or "must"; see `loops.workdir.check`.

    Raises:
        ValueError: if the folder cannot be used in this way; nothing was made then.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume: str):
        self.path, self._resume = workdirs.check(workdir, resume), resume
        self._lock = WorkdirLock(self.path)
        self._writer: SnapshotWriter | None = None
        self._opened = False

    def open(self, *, keep_last: int, keep_best: Best | None) -> Snapshot | None:
        """Takes the folder for this process.

        Args:
            keep_last, keep_best: which snapshots stay.

        Returns:
            The snapshot to go on from, the first time; None if there is none, or later.

        Raises:
            WorkdirInUse: if another process uses the folder.
            ValueError: if it cannot be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"The workdir {str(self.path)!r} cannot be written: {error.strerror}.") from error
        self._lock.acquire()
        store = SnapshotStore(self.path / workdirs.SNAPSHOTS, keep_last=keep_last, keep_best=keep_best)
        self._writer = SnapshotWriter(store, report=_say)
        if self._opened:
            return None
        workdirs.check(self.path, self._resume)
        found = store.latest(_say)
        if found is None:
            if self._resume == "must":
                raise ValueError(f"There is no snapshot in {str(self.path)!r} to carry on from; resume='auto' begins anew.")
            if (self.path / workdirs.CONFIG).exists():
                _say(f"{self.path} holds a run that saved nothing yet; it begins anew.")
        self._opened = True
        return found

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config.json`, of a run that begins here."""
        workdirs.write_config(self.path, config)

    def save(self, state: RunState, info: Mapping[str, Any], save_feed: Callable[[pathlib.Path], bool]) -> None:
        """Hands a state over to be written; returns when what has to be done in this thread is done.

        Args:
            state: what to save.
            info: JSON-able and small.
            save_feed: writes the position of the feed into a folder.
        """
        writer = self._writer
        assert writer is not None
        draft = writer.begin(state.step)
        if draft is None:
            return
        saved: bool | None = None
        with writer.failing(state.step):
            try:
                saved = save_feed(draft.files / FEED)
            except tf.errors.OpError as error:  # TensorFlow's own of a full disk and its like
                raise OSError(error.message) from error
        if saved is None:
            draft.discard()
            return
        writer.submit(draft, state.arrays, {**state.state, "feed_files": saved}, {**info, "time": time.time()})

    @property
    def last_step(self) -> int | None:
        """The step of the newest snapshot on disk, None if there is none."""
        steps = SnapshotStore(self.path / workdirs.SNAPSHOTS).steps()
        return steps[-1] if steps else None

    def forget(self) -> None:
        """Has the next `open` look for a snapshot again."""
        self._opened = False

    def close(self) -> str | None:
        """Waits for what is being written and lets go of the folder.

        Returns:
            Why the last state could not be saved, or None.
        """
        try:
            if self._writer is None:
                return None
            self._writer.close()
            return self._writer.failure
        finally:
            self._writer = None
            self._lock.release()


def _say(message: str) -> None:
    print(message, flush=True)
