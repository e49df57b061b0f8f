"""The workdir of a run: checks and locks it, writes its `config.json`, and hands its snapshots to a background thread.

It knows files, not training: `run_state.py` knows what a state consists of.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from loops.choices import Resume, check_choice
from loops.errors import MismatchError
from loops.files import write_text
from loops.messages import say
from loops.run.resume_rules import versions
from loops.run.run_state import RunState
from loops.run.workdir_lock import LOCK, WorkdirLock
from loops.snapshots.store import Best, SnapshotContents, SnapshotStore
from loops.snapshots.writer import SnapshotWriter

__all__ = ["SNAPSHOTS", "RunFolder", "check_usable", "write_config"]

CONFIG = "config.json"
SNAPSHOTS = "snapshots"
FEED = "feed"


class RunFolder:
    """The workdir of one run, with its lock, `config.json` and snapshots.

    Args:
        workdir: the folder.
        resume: "auto", "never" or "must"; see `check_usable`.

    Raises:
        ValueError: if the folder cannot be used in this way; then nothing was created.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume: Resume):
        self.path, self._resume = check_usable(workdir, resume), resume
        self._lock = WorkdirLock(self.path, report=say)
        self._writer: SnapshotWriter | None = None
        self._opened = False

    @staticmethod
    def feed_of(found: SnapshotContents) -> pathlib.Path | None:
        """Where the feed of a snapshot has its own position files, None if it has none."""
        return found.files / FEED if found.state["feed_files"] and found.files is not None else None

    def open(self, *, keep_last: int, keep_best: Best | None) -> SnapshotContents | None:
        """Locks the folder for this process; the first time, also finds the newest snapshot.

        Args:
            keep_last, keep_best: which snapshots stay.

        Returns:
            The snapshot to go on from; None if there is none, and at every later call.

        Raises:
            WorkdirInUse: if another process uses the folder.
            MismatchError: if there is no snapshot, and there has to be one.
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
        check_usable(self.path, self._resume)
        found = store.latest(say)
        if found is None:
            if self._resume == "must":
                raise MismatchError(f"There is no snapshot in {str(self.path)!r} to carry on from; resume='auto' begins anew.")
            if (self.path / CONFIG).exists():
                say(f"{self.path} holds a run that saved nothing yet; it begins anew.")
        self._opened = True
        return found

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes `config.json` for a run that begins from nothing."""
        write_config(self.path, config)

    def save(self, state: RunState, info: Mapping[str, Any], save_feed: Callable[[pathlib.Path], bool]) -> None:
        """Hands a state to the writing thread; returns when the part that this thread has to do is done.

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
            except tf.errors.OpError as error:  # TensorFlow reports a full disk, for example, by its own error
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
        """Makes the next `open` look for a snapshot again."""
        self._opened = False

    def close(self, ended: Callable[[str | None], Any]) -> str | None:
        """Waits for what is being written and unlocks the folder.

        Args:
            ended: called before the folder is unlocked, with what this returns.

        Returns:
            Why the last state could not be saved, or None.
        """
        try:
            if self._writer is None:
                return None
            self._writer.close()
            ended(self._writer.failure)
            return self._writer.failure
        finally:
            self._writer = None
            self._lock.release()


def check_usable(path: str | os.PathLike[str], resume: Resume = "auto") -> pathlib.Path:
    """Checks that a run may use the folder; creates nothing.

    Args:
        path: a folder that does not exist or is empty, or that an earlier run made.
        resume: "auto" continues a run in the folder if there is one, "never" accepts a new folder only, "must" one with a run only.

    Raises:
        ValueError: if the folder does not fit `resume`, holds something else, is a file, or cannot be written.
    """
    check_choice(resume, Resume, "resume")
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
    """Writes `config.json`: the settings of the run, and the versions of Python and the libraries.

    Raises:
        ValueError: if the file cannot be written.
    """
    text = json.dumps({**config, "versions": versions()}, indent=2, default=str)
    try:
        write_text(workdir / CONFIG, text + "\n")
    except OSError as error:
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {error.strerror}.") from error
