"""The snapshots of a run in one folder, one for each saved step: adds only complete ones, returns only verified ones, and deletes old ones.

    <directory>/<step>/           a snapshot (`files.py` says what is in it)
    <directory>/damaged-<step>/   a snapshot that could not be verified; never deleted
    <directory>/.writing-...      a snapshot that is being written; `.replaced-...`, `.pruning-...`: one that will be deleted

A complete snapshot always exists: a new one is written to a temporary folder, synced to the disk, renamed, and the folder above synced;
only then are old ones deleted. This module knows files and bytes, nothing of training, and does not need TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import pathlib
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from loops import fault_points
from loops.errors import DamagedSnapshot
from loops.files import sync_directory
from loops.snapshots import files
from loops.snapshots.content import state_from_bytes, state_to_bytes
from loops.snapshots.files import SnapshotContents
from loops.snapshots.manifest import FILES, Manifest, read_manifest
from loops.snapshots.retention import Best, Retention

__all__ = ["Best", "DamagedSnapshot", "Draft", "Manifest", "Retention", "SnapshotContents", "SnapshotStore"]

_TEMPORARY = re.compile(r"\.(writing|replaced|pruning)-(\d+)-(\d+)(-\d+)?")
_STEP = re.compile(r"0|[1-9]\d*")


class SnapshotStore:
    """Writes snapshots so that a kill at any instant leaves the last good one, and reads them so that all damage is found.

    Only one process may write at a time (`loops.run.workdir_lock` makes sure of it); any number may read.

    Args:
        directory: the folder; the first snapshot creates it.
        keep_last: how many of the newest snapshots stay, at least 1.
        keep_best: which others stay.

    Example:
        >>> import tempfile
        >>> store = SnapshotStore(tempfile.mkdtemp(), keep_last=1)
        >>> for step in (10, 20):
        ...     path = store.begin(step).commit({"w": np.arange(3.0)}, {"epoch": 1}, {"logs": {"loss": 0.5}})
        >>> store.steps()
        [20]
        >>> snapshot = store.latest(print)
        >>> snapshot.step, snapshot.arrays["w"], snapshot.state
        (20, array([0., 1., 2.]), {'epoch': 1})
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep_last: int = 3, keep_best: Best | None = None):
        self.directory = pathlib.Path(directory)
        self.retention = Retention(keep_last, keep_best)
        self._values: dict[int, float | None] = {}
        self._renaming = threading.Lock()
        # Weak references: the folder of a draft that its owner has dropped, after an error for example, is removed as a leftover.
        self._drafts: weakref.WeakValueDictionary[pathlib.Path, Draft] = weakref.WeakValueDictionary()

    def begin(self, step: int) -> Draft:
        """Creates the temporary folder for a snapshot, and removes what killed processes have left.

        Args:
            step: completed training steps. If there is a snapshot of that step, the new one replaces it when it is complete.

        Raises:
            OSError: if the folder cannot be written.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"A snapshot belongs to a number of completed steps, 0 or more; got {step}.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        path = _unused_name(self.directory / f".writing-{step}-{os.getpid()}")
        path.mkdir()
        draft = self._drafts[path] = Draft(self, step, path)
        return draft

    def steps(self) -> list[int]:
        """The steps of all snapshots, ascending; they are not verified."""
        found = set()
        for name in self._names():
            replaced = _TEMPORARY.fullmatch(name)
            if _STEP.fullmatch(name):
                found.add(int(name))
            elif replaced and replaced[1] == "replaced":
                found.add(int(replaced[2]))
        return sorted(found)

    def path(self, step: int) -> pathlib.Path:
        """The folder of the snapshot of a step; it is not verified.

        Raises:
            FileNotFoundError: if there is none; the message lists the steps that there are.
        """
        path = self.directory / str(step)
        if os.path.lexists(path):
            return path
        # A process that was replacing the snapshot was killed between its two renames.
        replaced = sorted(name for name in self._names() if name.startswith(f".replaced-{step}-"))
        if not replaced:
            there = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(
                f"There is no snapshot of step {step} in {str(self.directory)!r}; of these steps there is one: {there}."
            )
        return self.directory / replaced[0]

    def load(self, step: int) -> SnapshotContents:
        """Reads a snapshot and verifies every bit of it.

        Raises:
            DamagedSnapshot: if a file is missing or has other bytes than were written.
            FileNotFoundError: if there is no snapshot of that step.
            PermissionError: if its files may not be read.
            ValueError: if a later version of this library wrote it.
        """
        return files.read(self.path(step), step)

    def verify(self, step: int) -> Manifest:
        """As `load`, but returns the manifest only, and needs only a few MB of memory."""
        return files.verify(self.path(step), step)

    def newest(self) -> tuple[SnapshotContents | None, list[DamagedSnapshot]]:
        """The newest snapshot that can be verified, or None; and the errors of the newer, damaged ones. Changes nothing."""
        damaged: list[DamagedSnapshot] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), damaged
            except DamagedSnapshot as error:
                damaged.append(error)
        return None, damaged

    def latest(self, report: Callable[[str], Any]) -> SnapshotContents | None:
        """The newest snapshot that can be verified. Newer, damaged ones are renamed to `damaged-<step>`; nothing is deleted.

        Args:
            report: called with a sentence for each damaged one: what is wrong, where it is kept, what is used instead.

        Returns:
            The snapshot; None if there is none that can be verified.

        Raises:
            PermissionError: if one may not be read: it may be whole, and passing over it would lose the run's progress.
            ValueError: if a later version of this library wrote one.
        """
        snapshot, damaged = self.newest()
        instead = "there is no other one" if snapshot is None else f"the snapshot of step {snapshot.step:,} is used instead"
        for error in damaged:
            kept = _unused_name(self.directory / f"damaged-{error.step}")
            try:
                os.rename(error.directory, kept)
            except OSError:
                kept = error.directory
            report(f"The snapshot of step {error.step:,} is damaged ({error.reason}). It is kept as {str(kept)!r}; {instead}.")
        return snapshot

    def _put_in_place(self, path: pathlib.Path, step: int, info: Mapping[str, Any]) -> pathlib.Path:
        target, replaced = self.directory / str(step), None
        with self._renaming:
            if os.path.lexists(target):
                # A folder cannot be renamed to the name of another one. If the second rename fails, `path` finds the old folder.
                replaced = _unused_name(self.directory / f".replaced-{step}-{os.getpid()}")
                os.rename(target, replaced)
            fault_points.reached(fault_points.BEFORE_RENAME)
            os.rename(path, target)
            self._values[step] = self._value(info)
            sync_directory(self.directory)
        if replaced is not None:
            _remove(replaced)
        return target

    def _prune(self, written: int) -> None:
        fault_points.reached(fault_points.BEFORE_PRUNE)
        steps = self.steps()
        kept = self.retention.kept({step: self._value_of(step) for step in steps})
        for step in (step for step in steps if step not in kept and step != written):
            # Renamed first: a half-deleted folder, after a kill, must not look like a damaged snapshot.
            renamed = _unused_name(self.directory / f".pruning-{step}-{os.getpid()}")
            # An error here does no harm: the new snapshot is complete, and the next one tries again to delete the old ones.
            with contextlib.suppress(OSError):
                os.rename(self.directory / str(step), renamed)
                _remove(renamed)

    def _value(self, info: Mapping[str, Any]) -> float | None:
        return None if self.retention.best is None else self.retention.best.value(info)

    def _value_of(self, step: int) -> float | None:
        if self.retention.best is None:
            return None
        if step not in self._values:
            try:
                self._values[step] = self._value(read_manifest(self.path(step), step).info)
            except (DamagedSnapshot, OSError, ValueError):
                return None
        return self._values[step]

    def _remove_leftovers(self) -> None:
        with self._renaming:
            for name in self._names():
                match = _TEMPORARY.fullmatch(name)
                path = self.directory / name
                if match is None or path in self._drafts:
                    continue
                kind, step, pid = match[1], match[2], int(match[3])
                # A folder with our own process id is a leftover too: in a container, a restarted process often gets the same id.
                if kind == "writing" and pid != os.getpid() and _is_alive(pid):
                    continue
                if kind == "replaced" and not os.path.lexists(self.directory / step):
                    os.rename(path, self.directory / step)
                else:
                    _remove(path)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []


class Draft:
    """A snapshot that is being made, from `SnapshotStore.begin`; ends with `commit` or `discard`."""

    def __init__(self, store: SnapshotStore, step: int, path: pathlib.Path):
        self.step = step
        self._store = store
        self._path = path

    @property
    def files(self) -> pathlib.Path:
        """A folder for further files of the snapshot. Write them before `commit`; `SnapshotContents.files` finds them again."""
        path = self._path / FILES
        path.mkdir(exist_ok=True)
        return path

    def prepare(self, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> Callable[[], Any]:
        """Serializes `state` and `info` now, and returns a function that does the rest of `commit`. Call it once, from any thread.

        The arrays are not copied and must not change before that call has ended. For arguments and errors see `commit`.
        """
        state_bytes = state_to_bytes(state, "state")
        info_bytes = state_to_bytes(info, "info")
        return functools.partial(self._commit, dict(arrays), state_bytes, info_bytes)

    def commit(self, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> pathlib.Path:
        """Writes the snapshot, renames it to its place, and then deletes old ones. If it fails, it leaves no files.

        Args:
            arrays: name -> array of numbers, booleans or strings.
            state: JSON-able; tuples are read as lists later.
            info: JSON-able and small: values that can be read without the rest. `logs` in it holds the metrics for `Best`.

        Returns:
            The folder of the snapshot.

        Raises:
            OSError: if it cannot be written; the other snapshots stay as they are.
            TypeError: for an array or a state of other types.
        """
        path: pathlib.Path = self.prepare(arrays, state, info)()
        return path

    def discard(self) -> None:
        """Deletes what was written; does nothing after `commit`."""
        _remove(self._path)
        self._store._drafts.pop(self._path, None)

    def _commit(self, arrays: Mapping[str, np.ndarray[Any, Any]], state: bytes, info: bytes) -> pathlib.Path:
        try:
            files.write(self._path, self.step, arrays, state, info, self._store.retention.to_dict())
            target = self._store._put_in_place(self._path, self.step, state_from_bytes(info))
        finally:
            self.discard()
        self._store._prune(self.step)
        return target


def _unused_name(path: pathlib.Path) -> pathlib.Path:
    """`path` if it does not exist, else `path` with -2, -3, ... appended."""
    candidates: Iterable[pathlib.Path] = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 1 << 30))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))


def _remove(path: pathlib.Path) -> None:
    """Deletes a folder or file, and ignores errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # Windows has no signal 0, which only asks whether the process exists
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
