"""Arrays, JSON and files as one string of bytes, for a collective to carry, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loops.snapshots import content

__all__ = ["packed", "unpacked"]


def packed(arrays: Mapping[str, np.ndarray], described: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Everything as one string of bytes.

    Args:
        arrays: name -> array of any dtype that a variable may have.
        described: JSON-able.
        files: name -> content.
    """
    entries, bodies = [], []
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        data = bytes(content.array_bytes(array))
        entries.append([name, content.dtype_name(name, array), list(array.shape), len(data)])
        bodies.append(data)
    header = content.state_to_bytes(
        {"arrays": entries, "described": described, "files": [[name, len(data)] for name, data in files.items()]}, "the state"
    )
    return b"".join([len(header).to_bytes(8, "little"), header, *bodies, *files.values()])


def unpacked(packed: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """The arrays, the description and the files of which `packed` made these bytes."""
    at = 8 + int.from_bytes(packed[:8], "little")
    header = content.state_from_bytes(packed[8:at])
    arrays: dict[str, Any] = {}
    for name, dtype, shape, size in header["arrays"]:
        memory, finish = content.allocate(dtype, tuple(shape), size)
        if size:  # there is no memory to write to where an array has no element
            memory[:] = packed[at : at + size]
        arrays[name], at = finish(), at + size
    files = {}
    for name, size in header["files"]:
        files[name], at = packed[at : at + size], at + size
    return arrays, header["described"], files
