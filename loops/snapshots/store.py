"""The snapshots of a run in one folder: one for each step that was saved, put there whole or not at all, and found whole or set aside.

    <directory>/<step>/           a snapshot (`loops.snapshot_files` says what is in it)
    <directory>/damaged-<step>/   one that did not verify; never deleted
    <directory>/.writing-...      one that is being written; `.replaced-...`, `.pruning-...`: one that is on its way out

Order is all: a new snapshot is written beside the others, synced, renamed, synced again; only then is an older one deleted. It knows files
and bytes, nothing of training, and does not need TensorFlow.
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
    """Writes snapshots so that a kill at any instant leaves the last good one, and reads them so that nothing damaged gets by.

    One process may write at a time (`loops.workdir_lock` sees to that); any number may read.

    Args:
        directory: the folder; it is made with the first snapshot.
        keep_last: how many of the newest stay, at least 1.
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
        # A draft that its owner dropped, because of an error, say, is cleared away like those of killed processes.
        self._drafts: weakref.WeakValueDictionary[pathlib.Path, Draft] = weakref.WeakValueDictionary()

    def begin(self, step: int) -> Draft:
        """Makes the temporary folder for a snapshot, and clears away what killed processes left.

        Args:
            step: completed training steps. If there is a snapshot of that step, the new one takes its place when it is whole.

        Raises:
            OSError: if the folder cannot be written.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"A snapshot belongs to a number of completed steps, 0 or more; got {step}.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._clear()
        path = _free(self.directory / f".writing-{step}-{os.getpid()}")
        path.mkdir()
        draft = self._drafts[path] = Draft(self, step, path)
        return draft

    def steps(self) -> list[int]:
        """The steps of which there are snapshots, whole or not, ascending."""
        found = set()
        for name in self._names():
            replaced = _TEMPORARY.fullmatch(name)
            if _STEP.fullmatch(name):
                found.add(int(name))
            elif replaced and replaced[1] == "replaced":
                found.add(int(replaced[2]))
        return sorted(found)

    def path(self, step: int) -> pathlib.Path:
        """The folder of the snapshot of a step, whether it is whole or not.

        Raises:
            FileNotFoundError: if there is none; the message says which there are.
        """
        path = self.directory / str(step)
        if os.path.lexists(path):
            return path
        # A process that was replacing it was killed between two renames.
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
            DamagedSnapshot: if anything is not as it was written.
            FileNotFoundError: if there is none of that step.
            PermissionError: if it may not be read.
            ValueError: if a later version wrote it.
        """
        return files.read(self.path(step), step)

    def verify(self, step: int) -> Manifest:
        """As `load`, but keeps nothing: says what the snapshot holds, and needs a few MB of memory."""
        return files.verify(self.path(step), step)

    def newest(self) -> tuple[SnapshotContents | None, list[DamagedSnapshot]]:
        """The newest snapshot that verifies, or None, and what is wrong with those that are newer; changes nothing."""
        damaged: list[DamagedSnapshot] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), damaged
            except DamagedSnapshot as error:
                damaged.append(error)
        return None, damaged

    def latest(self, report: Callable[[str], Any]) -> SnapshotContents | None:
        """The newest snapshot that verifies. Newer ones that do not are renamed to `damaged-<step>`; nothing is deleted.

        Args:
            report: is given a sentence for each damaged one: what is wrong, where it is kept, what is used instead.

        Returns:
            The snapshot; None if there is none that verifies.

        Raises:
            PermissionError: if one may not be read: then nothing is wrong with it, and to pass over it would lose what it holds.
            ValueError: if a later version wrote one.
        """
        snapshot, damaged = self.newest()
        instead = "there is no other one" if snapshot is None else f"the snapshot of step {snapshot.step:,} is used instead"
        for error in damaged:
            kept = _free(self.directory / f"damaged-{error.step}")
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
                # A folder cannot be renamed onto another. If the second rename fails, the old one is found under its other name.
                replaced = _free(self.directory / f".replaced-{step}-{os.getpid()}")
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
            # Under another name first: a kill while it is being deleted would leave what looks like a damaged snapshot.
            doomed = _free(self.directory / f".pruning-{step}-{os.getpid()}")
            # The new snapshot is safe. What cannot be deleted now is tried again with the next one.
            with contextlib.suppress(OSError):
                os.rename(self.directory / str(step), doomed)
                _remove(doomed)

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

    def _clear(self) -> None:
        with self._renaming:
            for name in self._names():
                match = _TEMPORARY.fullmatch(name)
                path = self.directory / name
                if match is None or path in self._drafts:
                    continue
                kind, step, pid = match[1], match[2], int(match[3])
                # After a restart in a container, the process often has the number of the one before.
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
    """A snapshot in the making, from `SnapshotStore.begin`; ends with `commit` or `discard`."""

    def __init__(self, store: SnapshotStore, step: int, path: pathlib.Path):
        self.step = step
        self._store = store
        self._path = path

    @property
    def files(self) -> pathlib.Path:
        """A folder for files that belong to the snapshot: write them before `commit`. They come back as `SnapshotContents.files`."""
        path = self._path / FILES
        path.mkdir(exist_ok=True)
        return path

    def prepare(self, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> Callable[[], Any]:
        """Takes `state` and `info` as they are now, and returns what `commit` does with them, to be called once, from any thread.

        The arrays are not copied; they must not change until then. For arguments and errors see `commit`.
        """
        state_bytes = state_to_bytes(state, "state")
        info_bytes = state_to_bytes(info, "info")
        return functools.partial(self._commit, dict(arrays), state_bytes, info_bytes)

    def commit(self, arrays: Mapping[str, np.ndarray[Any, Any]], state: Mapping[str, Any], info: Mapping[str, Any]) -> pathlib.Path:
        """Writes the snapshot, puts it in its place, and then prunes. If that fails, nothing of it is left.

        Args:
            arrays: name -> array of numbers, booleans or strings.
            state: JSON-able; comes back as it was, tuples as lists.
            info: JSON-able and small: what is to be seen without reading the rest. `logs` in it holds the metrics for `Best`.

        Returns:
            The folder of the snapshot.

        Raises:
            OSError: if it cannot be written; the snapshots that there were are as they were.
            TypeError: for an array or a state that cannot be held.
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


def _free(path: pathlib.Path) -> pathlib.Path:
    """`path`, or with -2, -3, ... behind it if that is taken."""
    candidates: Iterable[pathlib.Path] = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in range(1, 1 << 30))
    return next(candidate for candidate in candidates if not os.path.lexists(candidate))


def _remove(path: pathlib.Path) -> None:
    """Deletes a folder or file, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # no harmless signal there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
