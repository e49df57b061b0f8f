"""Reads how far the files go that Weights & Biases keeps of a run, because its client cannot be asked while it is offline.

A `.wandb` file is a LevelDB log: a header of 7 bytes, then blocks of 32 KB with chunks `checksum (4 bytes), length (2), kind (1), content`.
A record is one chunk (kind 1) or several (2, then any number of 3, then 4) and holds a message of W&B's public protocol. A process that is
killed leaves a file that ends anywhere, even within a record.
"""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator

__all__ = ["last_step", "records"]

_HEADER, _BLOCK, _CHUNK = 7, 32768, struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4


def last_step(path: pathlib.Path) -> int:
    """The last step of the history in a `.wandb` file; -1 if it has none."""
    from wandb.proto import wandb_internal_pb2

    last = -1
    for content in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            last = max(last, record.history.step.num)
    return last


def records(data: bytes) -> Iterator[bytes]:
    """The whole records of a `.wandb` file."""
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
            yield parts
