"""One snapshot as files in a folder: writes it, and reads it so that every damaged bit is found.

    manifest.json   names, shapes, dtypes, places and digests of everything else, the caller's `info`, and its own digest
    tensors.bin     the bytes of the arrays, one after another, each at a multiple of 64
    state.json      what is not an array
    files/          files of the caller, such as the checkpoint of a tf.data iterator; missing if there are none

It knows files and bytes, nothing of training. `store.py` knows which snapshots there are, and which of them stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from loops import fault_points
from loops.files import sync_directory
from loops.snapshots.content import allocate, array_bytes, dtype_name, state_from_bytes
from loops.snapshots.manifest import FILES, MANIFEST, STATE, TENSORS, Damage, Entry, File, Manifest, damage_found, read_manifest

__all__ = ["SnapshotContents", "read", "read_array", "verify", "write"]

ALIGNMENT = 64
CHUNK = 4 << 20  # bytes that are hashed, written or read at once


@dataclasses.dataclass(frozen=True)
class SnapshotContents:
    """The content of a snapshot that was read and verified.

    Attributes:
        step: completed training steps.
        arrays: name -> array, which owns its memory.
        state: content of `state.json`.
        info: see `Manifest`.
        files: folder with the caller's own files; it is missing if there are none.
        path: folder of the snapshot.
    """

    step: int
    arrays: dict[str, np.ndarray[Any, Any]]
    state: dict[str, Any]
    info: dict[str, Any]
    files: pathlib.Path
    path: pathlib.Path


def write(
    directory: pathlib.Path,
    step: int,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    state: bytes,
    info: bytes,
    retention: Mapping[str, Any],
) -> None:
    """Writes a snapshot into an existing folder, and returns when it is synced to the disk.

    Args:
        directory: the folder. The files in its `files/` become part of the snapshot.
        step: completed training steps.
        arrays: name -> array. Only arrays that are not contiguous are copied.
        state: from `state_to_bytes`.
        info: from `state_to_bytes`.
        retention: JSON-able.

    Raises:
        OSError: if it cannot be written.
        TypeError: for an array of other objects than numbers, booleans, times and strings.
    """
    fault_points.reached(fault_points.BEFORE_WRITE)
    entries = _write_tensors(directory / TENSORS, arrays)
    _write_file(directory / STATE, state)
    files = [File(STATE, len(state), hashlib.sha256(state).hexdigest()), *sorted(_sync_extra_files(directory), key=lambda file: file.path)]
    manifest = Manifest(step, tuple(entries), tuple(files), state_from_bytes(info), dict(retention))
    _write_file(directory / MANIFEST, manifest.to_bytes())
    sync_directory(directory)


def verify(directory: pathlib.Path, step: int | None) -> Manifest:
    """Reads all files, checks their digests, and returns the manifest.

    Args:
        directory: folder of the snapshot.
        step: the step that the snapshot has to be of; None: any.

    Raises:
        DamagedSnapshot: if a file is missing or has other bytes than were written.
        ValueError: if a later version of this library wrote it.
        PermissionError: if the files may not be read.
    """
    manifest = read_manifest(directory, step)
    buffer = memoryview(bytearray(CHUNK))

    def pass_over(file: io.FileIO, entry: Entry) -> None:
        _read_bytes(file, entry, (buffer[: entry.nbytes - begin] for begin in range(0, entry.nbytes, CHUNK)))

    with damage_found(directory, manifest.step):
        _read_tensors(directory / TENSORS, manifest, pass_over)
        for file in manifest.files:
            _check_file(directory, file, buffer)
    return manifest


def read(directory: pathlib.Path, step: int | None) -> SnapshotContents:
    """Reads and verifies a snapshot. Arguments and errors are those of `verify`."""
    manifest = read_manifest(directory, step)
    arrays: dict[str, np.ndarray[Any, Any]] = {}

    def keep(file: io.FileIO, entry: Entry) -> None:
        arrays[entry.name] = _read_entry(file, entry)

    with damage_found(directory, manifest.step):
        _read_tensors(directory / TENSORS, manifest, keep)
        for file in manifest.files:
            _check_file(directory, file, memoryview(bytearray(CHUNK)))
        state = (directory / STATE).read_bytes()
        if hashlib.sha256(state).hexdigest() != manifest.files[0].digest:
            raise Damage(f"{STATE} changed while it was read")
    return SnapshotContents(manifest.step, arrays, json.loads(state), manifest.info, directory / FILES, directory)


def read_array(directory: pathlib.Path, manifest: Manifest, entry: Entry) -> np.ndarray[Any, Any]:
    """Reads one array of a snapshot.

    Raises:
        DamagedSnapshot: if its bytes are not those that were written.
    """
    with damage_found(directory, manifest.step), open(directory / TENSORS, "rb", buffering=0) as file:
        file.seek(entry.offset)
        return _read_entry(file, entry)


def _write_tensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[Entry]:
    entries: list[Entry] = []
    half, passed = sum(np.asarray(array).nbytes for array in arrays.values()) / 2, False
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        position = 0
        for name, given in arrays.items():
            array = np.asarray(given)
            kind = dtype_name(name, array)
            view = array_bytes(array)
            gap = -position % ALIGNMENT
            _write_all(descriptor, memoryview(bytes(gap)))
            position += gap
            digest = hashlib.sha256()
            for begin in range(0, len(view), CHUNK):
                chunk = view[begin : begin + CHUNK]
                digest.update(chunk)
                _write_all(descriptor, chunk)
                if not passed and position + begin + len(chunk) >= half:
                    passed = True
                    fault_points.reached(fault_points.HALF_WRITTEN)
            entries.append(Entry(name, array.shape, kind, position, len(view), digest.hexdigest()))
            position += len(view)
        if not passed:
            fault_points.reached(fault_points.HALF_WRITTEN)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return entries


def _write_file(path: pathlib.Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _write_all(descriptor, memoryview(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


def _sync_extra_files(directory: pathlib.Path) -> Iterator[File]:
    """Syncs the caller's files to the disk, and yields them with their digests. Folders without any file are removed."""
    root = directory / FILES
    for folder, folders, names in os.walk(root, topdown=False):
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            if path.is_symlink() or not path.is_file():
                raise TypeError(f"{str(path)!r} is no plain file; a snapshot can hold nothing else.")
            with open(path, "rb+" if os.name == "nt" else "rb", buffering=0) as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256")
                yield File(path.relative_to(directory).as_posix(), file.tell(), digest.hexdigest())
        for name in folders:
            if pathlib.Path(folder, name).is_symlink():
                raise TypeError(f"{str(pathlib.Path(folder, name))!r} is a link; a snapshot can hold plain files and folders only.")
        if os.listdir(folder):
            sync_directory(pathlib.Path(folder))
        else:
            os.rmdir(folder)


def _read_tensors(path: pathlib.Path, manifest: Manifest, take: Callable[[io.FileIO, Entry], None]) -> None:
    """Calls `take` for each array, with the file positioned at its first byte; `take` has to read all its bytes."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != manifest.tensor_bytes:
            raise Damage(f"{TENSORS} has {size:,} bytes instead of {manifest.tensor_bytes:,}")
        for entry in manifest.entries:
            gap = file.read(entry.offset - file.tell())
            if any(gap):
                raise Damage(f"{TENSORS} was changed before {entry.name!r}")
            take(file, entry)


def _read_entry(file: io.FileIO, entry: Entry) -> np.ndarray[Any, Any]:
    memory, finish = allocate(entry.dtype, entry.shape, entry.nbytes)
    _read_bytes(file, entry, [memory])
    return finish()


def _read_bytes(file: io.FileIO, entry: Entry, views: Iterable[memoryview]) -> None:
    """Fills one view after another with the bytes of an array, and checks their digest."""
    digest = hashlib.sha256()
    for view in views:
        while len(view):
            count = file.readinto(view[:CHUNK])
            if not count:
                raise Damage(f"{TENSORS} ends too early")
            digest.update(view[:count])
            view = view[count:]
    if digest.hexdigest() != entry.digest:
        raise Damage(f"the bytes of {entry.name!r} in {TENSORS} are not those that were written")


def _check_file(directory: pathlib.Path, expected: File, buffer: memoryview) -> None:
    digest = hashlib.sha256()
    size = 0
    with open(directory / expected.path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    if size != expected.nbytes:
        raise Damage(f"{expected.path} has {size:,} bytes instead of {expected.nbytes:,}")
    if digest.hexdigest() != expected.digest:
        raise Damage(f"the bytes of {expected.path} are not those that were written")
