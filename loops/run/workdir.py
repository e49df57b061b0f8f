"""The workdir of a run: who may use it, its `config.json`, and its snapshots, which are written in the background.

Knows files, not training: `run_state.py` says what a state consists of.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from loops.files import write_text
from loops.messages import say
from loops.run.resume_rules import versions
from loops.run.run_state import RunState
from loops.run.workdir_lock import LOCK, WorkdirLock
from loops.snapshots.store import Best, SnapshotContents, SnapshotStore
from loops.snapshots.writer import SnapshotWriter

__all__ = ["SNAPSHOTS", "RunFolder", "check", "write_config"]

CONFIG = "config.json"
SNAPSHOTS = "snapshots"
RESUME = ("auto", "never", "must")
FEED = "feed"


class RunFolder:
    """Where a run leaves its snapshots.

    Args:
        workdir: the folder.
        resume: "auto", "never" or "must"; see `check`.

    Raises:
        ValueError: if the folder cannot be used in this way; nothing was made then.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume: str):
        self.path, self._resume = check(workdir, resume), resume
        self._lock = WorkdirLock(self.path, report=say)
        self._writer: SnapshotWriter | None = None
        self._opened = False

    def open(self, *, keep_last: int, keep_best: Best | None) -> SnapshotContents | None:
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
        store = SnapshotStore(self.path / SNAPSHOTS, keep_last=keep_last, keep_best=keep_best)
        self._writer = SnapshotWriter(store, report=say)
        if self._opened:
            return None
        check(self.path, self._resume)
        found = store.latest(say)
        if found is None:
            if self._resume == "must":
                raise ValueError(f"There is no snapshot in {str(self.path)!r} to carry on from; resume='auto' begins anew.")
            if (self.path / CONFIG).exists():
                say(f"{self.path} holds a run that saved nothing yet; it begins anew.")
        self._opened = True
        return found

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config.json`, of a run that begins here."""
        write_config(self.path, config)

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
        steps = SnapshotStore(self.path / SNAPSHOTS).steps()
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


def check(path: str | os.PathLike[str], resume: str = "auto") -> pathlib.Path:
    """Whether a run may use the folder; makes nothing.

    Args:
        path: a folder that does not exist or is empty, or that an earlier run made.
        resume: "auto" carries an earlier run on, "never" takes a new folder only, "must" an earlier run only.

    Raises:
        ValueError: if it does not fit `resume`, holds something else, is no folder, or cannot be written.
    """
    if resume not in RESUME:
        raise ValueError(f"`resume` must be one of {', '.join(map(repr, RESUME))}; got {resume!r}.")
    workdir = pathlib.Path(path)
    if workdir.is_file():
        raise ValueError(f"The workdir {str(workdir)!r} is a file; give the name of a folder.")
    used = sorted(p.name for p in workdir.iterdir() if p.name != LOCK) if workdir.is_dir() else []
    ours = CONFIG in used or SNAPSHOTS in used
    if used and (resume == "never" or not ours):
        ways = "give a new one, delete it, or carry its run on with resume='auto'" if ours else "give a new one, or delete it"
        raise ValueError(f"The workdir {str(workdir)!r} is used already (it holds {', '.join(used[:4])}); {ways}.")
    if resume == "must" and not ours:
        raise ValueError(f"There is no run in {str(workdir)!r} to carry on; resume='auto' begins one.")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {str(existing)!r} is no folder that you may write into.")
    return workdir


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes `config.json`: the settings of the run, and the versions it was made with.

    Raises:
        ValueError: if that is not possible.
    """
    text = json.dumps({**config, "versions": versions()}, indent=2, default=str)
    try:
        write_text(workdir / CONFIG, text + "\n")
    except OSError as error:
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {error.strerror}.") from error
