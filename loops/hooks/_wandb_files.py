"""Reads how far the files go that Weights & Biases keeps of a run, because its client cannot be asked while it is offline.

A `.wandb` file is a LevelDB log: a header of 7 bytes, then blocks of 32 KB with chunks `checksum (4 bytes), length (2), kind (1), content`.
A record is one chunk (kind 1) or several (2, then any number of 3, then 4) and holds a message of W&B's public protocol. W&B writes whole
blocks, and what is less after some seconds: the file of a process that was killed may lack its last points, and end within a record.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["is_complete", "last_step", "made_whole", "records"]

_HEADER, _BLOCK, _CHUNK = 7, 32768, struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4


def last_step(path: pathlib.Path) -> int:
    """The last step of the history in a `.wandb` file; -1 if it has none."""
    return max((record.history.step.num for record in _messages(path) if record.WhichOneof("record_type") == "history"), default=-1)


def is_complete(path: pathlib.Path) -> bool:
    """Whether a `.wandb` file has all records of its run, the last of which says how the run ended."""
    return any(record.WhichOneof("record_type") == "exit" for record in _messages(path))


def made_whole(path: pathlib.Path) -> bool:
    """Cuts off the last record of a killed process's file, if it is not whole: `wandb sync` would end there, and leave out later files.

    Returns:
        Whether there is a whole record; if not, the file's folder is deleted.
    """
    data = path.read_bytes()
    end = max((end for _, end in records(data)), default=0)
    if not end:
        shutil.rmtree(path.parent)
    elif data[end:].strip(b"\0"):
        os.truncate(path, end)
    return end > 0


def records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The whole records of a `.wandb` file, each with the place where it ends."""
    place, parts = _HEADER, b""
    while place + _CHUNK.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK.size:  # too short for another chunk: zeros
            place += left
            continue
        _, length, kind = _CHUNK.unpack_from(data, place)
        place += _CHUNK.size
        content = data[place : place + length]
        if len(content) < length or kind == 0:
            return
        place += length
        parts = content if kind in (_FULL, _FIRST) else parts + content
        if kind in (_FULL, _LAST):
            yield parts, place


def _messages(path: pathlib.Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    return (wandb_internal_pb2.Record.FromString(content) for content, _ in records(path.read_bytes()))
