"""Fingerprints of data: short texts that differ if the data does, made from a bounded part of it.

At most 256 places are read of each array, spread evenly from the first row to the last, and at most 4 KB at each place; of a small array
that is all. So the fingerprint of 100 GB on a disk takes as long as that of one, and a change between two places is not seen. Values are
compared as a feed gives them: other floats than `keras.config.floatx()` are converted first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api

__all__ = ["as_fed", "class_weight_text", "fingerprint", "fingerprints", "fingerprints_of_batches", "named_leaves"]

_PLACES = 256
_BYTES_AT_A_PLACE = 4096
_PIECES_OF_A_ROW = 4
_MOST_STRINGS = 4096  # read wholly


def fingerprint(array: Any) -> str:
    """The fingerprint of an array or tensor, 16 hexadecimal digits.

    Args:
        array: NumPy array (also `np.memmap`) or dense tensor, of numbers, booleans or text; `[N, ...]` or a single value.

    Example:
        >>> a = np.arange(6.0)
        >>> fingerprint(a) == fingerprint(a.astype("float32")), fingerprint(a) == fingerprint(a[::-1])
        (True, False)
    """
    digest = hashlib.sha256(f"{_dtype_name(array)} {tuple(array.shape)}".encode())
    for piece in _pieces(array):
        for part in _bytes_of(piece):
            digest.update(part)
    return digest.hexdigest()[:16]


def fingerprints(leaves: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Name -> fingerprint.

    Args:
        leaves: pairs of name and data: arrays, dense, ragged or sparse tensors, sparse matrices of SciPy, or what becomes an array. None is
            left out.
    """
    found = {}
    for name, leaf in leaves:
        parts = [fingerprint(array) for array in _arrays_of(leaf)]
        if parts:
            found[name] = " ".join(parts)
    return found


def named_leaves(data: Any, *, weights: str = "sample_weight") -> list[tuple[str, Any]]:
    """The leaves of a batch, or of data of that structure, by names that an error can use.

    Args:
        data: nested structure; mostly (inputs, labels) or (inputs, labels, weights).
        weights: what the third part is.

    Example:
        >>> [name for name, _ in named_leaves(({"a": 1, "b": 2}, 3))]
        ['inputs/a', 'inputs/b', 'labels (part 1 of the batch)']
    """
    structure = keras.tree.lists_to_tuples(data)
    heads = {0: "inputs", 1: "labels (part 1 of the batch)", 2: f"{weights} (part 2 of the batch)"}
    named = []
    for path, leaf in keras.tree.flatten_with_path(structure):
        if not isinstance(structure, tuple):
            path = (0, *path)
        head = heads.get(path[0], f"part {path[0]} of the batch") if path[0] == 0 or len(structure) <= 3 else f"part {path[0]} of the batch"
        named.append(("/".join([head, *map(str, path[1:])]), leaf))
    return named


def fingerprints_of_batches(batches: Sequence[Any]) -> dict[str, str]:
    """Name -> fingerprint of each leaf of some batches."""
    columns = [named_leaves(batch) for batch in batches]
    return fingerprints((f"{name}, batch {i}", leaf) for i, column in enumerate(columns) for name, leaf in column)


def class_weight_text(class_weight: Mapping[int, float] | None) -> str | None:
    """The weights of classes as text, in the order of the classes."""
    if class_weight is None:
        return None
    return "{" + ", ".join(f"{int(label)}: {float(weight)!r}" for label, weight in sorted(class_weight.items())) + "}"


def as_fed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The NumPy dtype in which a feed gives values of `dtype`."""
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return np.dtype(tf.as_dtype(keras.config.floatx()).as_numpy_dtype)
    return dtype.newbyteorder("=") if dtype.kind in "iuc" else dtype


def _arrays_of(leaf: Any) -> list[Any]:
    if leaf is None:
        return []
    if isinstance(leaf, tf.RaggedTensor):
        return [*_arrays_of(leaf.flat_values), *leaf.nested_row_splits]
    if isinstance(leaf, tf.SparseTensor):
        return [leaf.indices, *_arrays_of(leaf.values), leaf.dense_shape]
    if _private_api.is_scipy_sparse(leaf):
        names = ("data", "indices", "indptr", "row", "col", "offsets", "shape")
        return [np.asarray(getattr(leaf, name)) for name in names if hasattr(leaf, name)]
    if isinstance(leaf, tf.Tensor):
        return [] if leaf.dtype in (tf.variant, tf.resource) else [leaf]
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    return [array.astype("U") if array.dtype.kind in "Mm" else array]


def _dtype_name(array: Any) -> str:
    dtype = np.dtype(array.dtype.as_numpy_dtype) if isinstance(array, tf.Tensor) else array.dtype
    return "text" if dtype.kind in "OSU" else as_fed(dtype).name


def _pieces(array: Any) -> Iterator[np.ndarray]:
    """The parts of the array that are looked at, in order."""
    if not len(array.shape) or not _size(array):
        yield _host(array)
        return
    n, is_text = int(array.shape[0]), _dtype_name(array) == "text"
    row = max(1, _size(array) // n) * (1 if is_text else array.dtype.size if isinstance(array, tf.Tensor) else array.dtype.itemsize)
    count = max(1, (_MOST_STRINGS // _PLACES if is_text else _BYTES_AT_A_PLACE) // row)
    everything = range(0, n, count)
    for start in everything if len(everything) <= _PLACES else [i * (n - count) // (_PLACES - 1) for i in range(_PLACES)]:
        rows = _host(array[start : start + count])
        if count > 1 or row <= _BYTES_AT_A_PLACE or is_text:
            yield rows
            continue
        size = _BYTES_AT_A_PLACE // _PIECES_OF_A_ROW // rows.dtype.itemsize
        for i in range(_PIECES_OF_A_ROW):
            begin = i * (rows.size - size) // (_PIECES_OF_A_ROW - 1)
            yield rows.flat[begin : begin + size]


def _size(array: Any) -> int:
    return int(np.prod([int(d) for d in array.shape], dtype=np.int64))


def _host(part: Any) -> np.ndarray:
    return np.asarray(part.numpy()) if isinstance(part, tf.Tensor) else part


def _bytes_of(piece: np.ndarray) -> Iterator[bytes]:
    if piece.dtype.kind in "OSU":
        for item in piece.flat:
            text = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass")
            yield len(text).to_bytes(8, "little") + text[:_BYTES_AT_A_PLACE] + text[-_BYTES_AT_A_PLACE:]
    else:
        yield np.ascontiguousarray(piece.astype(as_fed(piece.dtype), copy=False)).tobytes()
