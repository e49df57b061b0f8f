"""Arrays as plain bytes, state as the bytes of JSON, and back, bit for bit.

Arrays may be of whatever TensorFlow keeps in variables, `bfloat16`, `float8` and strings included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["array_bytes", "dtype_name", "receive", "state_from_bytes", "state_to_bytes"]

_STRINGS = {"object:bytes": bytes, "object:str": str}


def dtype_name(name: str, array: np.ndarray[Any, Any]) -> str:
    """The type of an array's items, as a name that `receive` understands: "<f4", "bfloat16", "object:bytes".

    Args:
        name: what messages call the array.
        array: of numbers, booleans, times, or strings; an array of Python objects may hold `bytes` only or `str` only.

    Raises:
        TypeError: if it holds anything else.

    Example:
        >>> dtype_name("x", np.zeros(3, np.float32)), dtype_name("y", np.zeros(3, ml_dtypes.bfloat16))
        ('<f4', 'bfloat16')
    """
    if hasattr(ml_dtypes, array.dtype.name):
        return array.dtype.name
    if array.dtype.kind in "biufcSUmM":
        return array.dtype.str
    if array.dtype.kind == "O":
        items = list(array.flat)
        for kind, python_type in _STRINGS.items():
            if all(type(item) is python_type for item in items):
                return kind
    raise TypeError(f"The array {name!r} has dtype {array.dtype}; a snapshot can hold numbers, booleans, times and strings.")


def array_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order; a view of its memory if it is contiguous.

    Example:
        >>> bytes(array_bytes(np.array([1, 2], "<i2")))
        b'\\x01\\x00\\x02\\x00'
    """
    if array.dtype.kind == "O":
        strings = [item if isinstance(item, bytes) else item.encode("utf-8", "surrogatepass") for item in array.flat]
        return memoryview(np.array([len(item) for item in strings], "<i8").tobytes() + b"".join(strings))
    if not array.nbytes:
        return memoryview(b"")
    # Buffers do not know bfloat16 and its like.
    return array.reshape(-1).view(np.uint8).data


def receive(dtype: str, shape: tuple[int, ...], nbytes: int) -> tuple[memoryview, Callable[[], np.ndarray[Any, Any]]]:
    """The other way: memory to put the bytes into, and what to call then for the array, which owns its memory.

    Args:
        dtype: from `dtype_name`.
        shape: of the array.
        nbytes: length of what `array_bytes` gave.

    Example:
        >>> memory, finish = receive("<i2", (2,), 4)
        >>> memory[:] = b"\\x01\\x00\\x02\\x00"
        >>> finish()
        array([1, 2], dtype=int16)
    """
    if dtype in _STRINGS:
        content = bytearray(nbytes)
        return memoryview(content), lambda: _strings(dtype, shape, content)
    array = np.empty(shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    # The empty array of strings of no length cannot be seen as bytes.
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b""), lambda: array


def state_to_bytes(value: Mapping[str, Any], what: str) -> bytes:
    """`value` as JSON that comes back as it was, tuples as lists.

    Args:
        value: numbers, strings, booleans, None, and lists and dicts with string keys of these. NaN and infinities are allowed.
        what: how messages call it.

    Raises:
        TypeError: if there is something else in it; the message says where.
    """
    _check_json(value, what)
    return json.dumps(value).encode()


def state_from_bytes(text: bytes) -> dict[str, Any]:
    """What `state_to_bytes` made."""
    found: dict[str, Any] = json.loads(text)
    return found


_LEAVES = frozenset([float, int, str, bool, type(None)])


def _check_json(value: Any, where: str) -> None:
    # A history is long, and training waits.
    if type(value) in _LEAVES or type(value) is list and _LEAVES.issuperset(map(type, value)):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            # JSON would turn a key 1 into "1" without a word.
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}; keys of a snapshot's state are strings.")
            _check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif not isinstance(value, str | int | float):
        raise TypeError(
            f"{where} is a {type(value).__name__}, which JSON cannot hold; make it a number, string, list or dict, or an array."
        )


def _strings(dtype: str, shape: tuple[int, ...], content: bytearray) -> np.ndarray[Any, Any]:
    array = np.empty(shape, object)
    lengths = np.frombuffer(content, "<i8", array.size)
    ends = 8 * array.size + np.cumsum(lengths)
    for index, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
        item = bytes(content[end - length : end])
        array.flat[index] = item if dtype == "object:bytes" else item.decode("utf-8", "surrogatepass")
    return array
