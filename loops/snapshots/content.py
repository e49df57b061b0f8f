"""Converts arrays to plain bytes and state to JSON, and back, bit for bit. It knows no files.

Arrays may have every dtype that TensorFlow keeps in variables, `bfloat16`, `float8` and strings included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["allocate", "array_bytes", "dtype_name", "state_from_bytes", "state_to_bytes"]

_STRINGS = {"object:bytes": bytes, "object:str": str}


def dtype_name(name: str, array: np.ndarray[Any, Any]) -> str:
    """The dtype of an array as a name that `allocate` understands: "<f4", "bfloat16", "object:bytes".

    Args:
        name: name of the array in error messages.
        array: numbers, booleans, times, or strings; an array of Python objects may hold only `bytes`, or only `str`.

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
    # The buffer protocol does not know types such as bfloat16.
    return array.reshape(-1).view(np.uint8).data


def allocate(dtype: str, shape: tuple[int, ...], nbytes: int) -> tuple[memoryview, Callable[[], np.ndarray[Any, Any]]]:
    """The inverse of `array_bytes`: memory to read the bytes into, and a function that then returns the array, which owns its memory.

    Args:
        dtype: from `dtype_name`.
        shape: shape of the array.
        nbytes: length of what `array_bytes` returned.

    Example:
        >>> memory, finish = allocate("<i2", (2,), 4)
        >>> memory[:] = b"\\x01\\x00\\x02\\x00"
        >>> finish()
        array([1, 2], dtype=int16)
    """
    if dtype in _STRINGS:
        content = bytearray(nbytes)
        return memoryview(content), lambda: _strings(dtype, shape, content)
    array = np.empty(shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    # NumPy cannot view an array without bytes, such as one of empty strings, as bytes.
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b""), lambda: array


def state_to_bytes(value: Mapping[str, Any], what: str) -> bytes:
    """`value` as JSON, from which `state_from_bytes` makes the same value, with lists for tuples.

    Args:
        value: numbers, strings, booleans, None, and lists and dicts with string keys of these. NaN and infinities are allowed.
        what: name of the value in error messages.

    Raises:
        TypeError: if it contains something else; the message says where.
    """
    _check_json(value, what)
    return json.dumps(value).encode()


def state_from_bytes(text: bytes) -> dict[str, Any]:
    """The inverse of `state_to_bytes`."""
    found: dict[str, Any] = json.loads(text)
    return found


_LEAVES = frozenset([float, int, str, bool, type(None)])


def _check_json(value: Any, where: str) -> None:
    # Leaves and flat lists first, because a history can be long, and training waits for this check.
    if type(value) in _LEAVES or type(value) is list and _LEAVES.issuperset(map(type, value)):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            # JSON would silently turn the key 1 into "1".
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
