"""Writes files whole: whoever reads one finds the old content or the new, never a part, also if the writing process is killed.

The content goes into a temporary file in the same folder, which then takes the name in one step. If that fails, the temporary file is
deleted and the old one stays; one that a killed process left behind is overwritten by the next write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

__all__ = ["sync_directory", "write_anywhere", "write_atomically", "write_bytes", "write_first", "write_text"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[str], Any], *, sync: bool = False) -> None:
    """Lets `write` fill a temporary file and then puts it in its place.

    Args:
        path: where the file goes; folders are made.
        write: gets the temporary file's name, which has the endings of `path`.
        sync: whether to return only when the disk has it. It then survives a power failure, and takes as long as the disk needs.

    Raises:
        OSError: if that is not possible; whatever `write` raises.

    Example:
        >>> import shutil
        >>> folder = tempfile.mkdtemp()
        >>> write_text(f"{folder}/a.txt", "hello")
        >>> write_atomically(f"{folder}/b.txt", lambda name: shutil.copy(f"{folder}/a.txt", name))
        >>> sorted(os.listdir(folder))
        ['a.txt', 'b.txt']
    """
    target = pathlib.Path(path)
    stem, dot, endings = target.name.partition(".")
    temporary = target.with_name(f".{stem}.writing{dot}{endings}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(str(temporary))
        if sync:
            with open(temporary, "rb+", buffering=0) as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_directory(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, sync: bool = False) -> None:
    """Writes `content`; arguments and errors are those of `write_atomically`."""
    write_atomically(path, lambda name: pathlib.Path(name).write_bytes(content), sync=sync)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = False) -> None:
    """Writes `text` as UTF-8; arguments and errors are those of `write_atomically`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_first(path: str | os.PathLike[str], text: str) -> bool:
    """Writes `text` as UTF-8 unless there is a file already; of several processes that try, exactly one succeeds.

    Args:
        path: where the file goes; folders are made.
        text: what to write.

    Returns:
        Whether the file is ours.

    Raises:
        OSError: if it cannot be written.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        # A link to a whole file appears at once, and only one of several can make it.
        with contextlib.suppress(FileExistsError):
            os.link(file.name, target)
            return True
    return False


def write_anywhere(path: str, content: bytes) -> None:
    """Writes `content` to any path that `tf.io.gfile` understands, such as one of a remote file system.

    Raises:
        tf.errors.OpError: if that is not possible.
    """
    import tensorflow as tf  # here, because snapshots are read and written without TensorFlow

    folder, name = os.path.split(path)
    # A name without that of the file: TensorBoard reads every file that has "tfevents" in its name.
    temporary = os.path.join(folder, f".{hashlib.sha256(name.encode()).hexdigest()[:16]}.writing")
    try:
        with tf.io.gfile.GFile(temporary, "wb") as file:
            file.write(content)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Returns when the disk has the names of what is in a folder."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network drives cannot do that for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
